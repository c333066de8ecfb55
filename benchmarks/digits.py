"""How good a digits model is: 5 -> 10 prediction on 256 fixed test clips, compared with copying the last frame.

    python benchmarks/digits.py --model digits --clips 256 --samples 10 --solver dpm++ --steps 20

Prints one JSON line (PSNR and SSIM, best and mean over samples, with the protocol) and, with --sheet, draws the first
clips. Needs only torch, numpy, safetensors and tyro (the sheet needs Pillow).
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.evaluation.image import psnr, ssim
from mcvd.interop.load import load
from mcvd.model import VideoDiffusion

SEED = 2022  # of the test clips


@dataclass
class Options:
    """What to measure."""

    model: str = "digits"
    """Bundled name or model folder."""
    digits: Path | None = None
    """Folder of the MNIST files, or an .npz of resized digits (see benchmarks/gpu/digits.py); None: the cache."""
    clips: int = 256
    """Test clips."""
    samples: int = 10
    """Samples per clip."""
    solver: str = "dpm++"
    """Solver, see `mcvd predict --help`."""
    steps: int = 20
    """Network calls per block (of 5 frames)."""
    guidance: float = 1.0
    """How closely the given frames are followed; 1 is the model itself."""
    batch_size: int = 64
    """Trajectories per network call."""
    sheet: Path | None = None
    """PNG to draw the first 4 clips into."""
    output: Path | None = None
    """JSON file to also write the result to."""


def test_digits(path: Path | None) -> Tensor:
    """The digits of the MNIST test set, resized to 32 pixels, ``(N, 32, 32)`` uint8."""
    if path is not None and path.suffix == ".npz":
        return torch.from_numpy(np.load(path)["test"])
    return load_digits(find_mnist(path), "test")


def measure(model: VideoDiffusion, clips: Tensor, options: Options) -> dict[str, float]:
    """PSNR and SSIM of 5 -> 10 prediction of clips ``(B, 15, 1, H, W)`` uint8."""
    truth = clips[:, 5:].float() / 255
    copied = truth.new_empty(truth.shape).copy_(clips[:, 4:5].float() / 255)
    began = time.perf_counter()
    made = model.predict(
        clips[:, :5],
        frames=10,
        samples=options.samples,
        solver=options.solver,
        steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch_size,
    ).cpu()
    seconds = time.perf_counter() - began
    made = made.unflatten(0, (len(clips), options.samples))
    again = truth[:, None].expand_as(made)
    each_psnr, each_ssim = psnr(made, again), ssim(made, again).mean(-1)
    return {
        "psnr_best": float(each_psnr.max(1).values.mean()),
        "psnr_mean": float(each_psnr.mean()),
        "ssim_best": float(each_ssim.max(1).values.mean()),
        "ssim_mean": float(each_ssim.mean()),
        "psnr_first_block": float(psnr(made[:, :, :5], again[:, :, :5]).max(1).values.mean()),
        "psnr_copy_last_frame": float(psnr(copied, truth).mean()),
        "ssim_copy_last_frame": float(ssim(copied, truth).mean()),
        "psnr_all_black": float(psnr(torch.zeros_like(truth), truth).mean()),
        "seconds": seconds,
    }


def main(options: Options) -> None:
    model = load(options.model)
    size = model.size[0]
    clips = MovingMNIST(test_digits(options.digits), 15, size=size, seed=SEED).batch(range(options.clips))
    result = {
        "model": options.model,
        "protocol": f"SMMNIST {size}x{size}, 5 -> 10, {options.clips} test clips (seed {SEED}), "
        f"{options.samples} samples each, {options.solver} {options.steps} steps, guidance {options.guidance:g}",
        **{name: round(value, 4) for name, value in measure(model, clips, options).items()},
        "machine": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.sheet is not None:
        from mcvd.training.samples import sample_sheet

        rows = {"rows": 4, "solver": options.solver, "steps": options.steps, "guidance": options.guidance}
        sample_sheet(model, clips, **rows).save(options.sheet)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
