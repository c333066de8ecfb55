"""Small folders as `mcvd evaluate` writes them, of numbers that a test chooses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Number, Result, System
from mcvd.evaluation.table import Table

PROTOCOL = Protocol("bair-2to14", "BAIR, test", "predict", 2, 14, size=(16, 16), channels=1, clips=12, samples=3)


def shift(values: torch.Tensor, by: float) -> torch.Tensor:
    """Mean squared errors whose PSNR is higher by `by` dB."""
    return values * 10 ** (-by / 10)


def errors(clips: int = 12, samples: int = 3, frames: int = 14, seed: int = 0) -> torch.Tensor:
    """Mean squared errors (clips, samples, frames)."""
    return 0.01 + 0.05 * torch.rand(clips, samples, frames, generator=torch.Generator().manual_seed(seed)).double()


def write_folder(
    folder: Path,
    mse: torch.Tensor,
    protocol: Protocol = PROTOCOL,
    *,
    name: str = "tiny",
    lpips: bool = True,
    videos: int = 4,
    data: str = "d" * 64,
    numbers: dict[str, Number] | None = None,
    **system: object,
) -> Path:
    """An evaluation of which the squared errors are `mse`; SSIM is 1 - mse and LPIPS the square root of mse.

    videos: clips whose videos are kept, the first ones. numbers: besides PSNR, SSIM and LPIPS.
    """
    clips, samples = mse.shape[:2]
    table = Table()
    columns = {"mse": mse, "ssim": 1 - mse, **({"lpips": mse.sqrt()} if lpips else {})}
    for sample in range(samples):
        table.add(range(clips), sample, **{key: value[:, sample] for key, value in columns.items()})
    table.save(folder / "rows.safetensors")
    found = dict(numbers or {})
    for metric in ("psnr", "ssim", *(["lpips"] if lpips else [])):
        s = table.summary(metric, "best" if protocol.best else "mean")
        found[metric] = Number(s.mean, s.mean - s.conf95, s.mean + s.conf95, "1.96 standard errors over clips", "best")
    about = dataclasses.replace(System(name, version="0.1.0", solver="ddpm", steps=100), **system)
    result = Result(protocol, about, clips, samples, data, found, machine="a machine", date="2026-11-22")
    result.save(folder / "result.json")
    (folder / "videos").mkdir()
    draw = np.random.default_rng(0)
    for clip in range(videos):
        shape = (protocol.clip_frames, 1, *protocol.size)
        real, made = draw.integers(0, 256, shape, np.uint8), draw.integers(0, 256, (samples, *shape), np.uint8)
        np.savez_compressed(folder / "videos" / f"{clip:05d}.npz", real=real, made=made)
    return folder
