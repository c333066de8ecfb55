"""What a model generates from the same clips, for every task that it was trained for: one picture, and a GIF each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcvd.data.sheet import GIVEN, MADE, contact_sheet
from mcvd.data.video_write import write_video
from mcvd.model import VideoDiffusion

FASTEST_SHOWN = 50  # frames per second: viewers show no faster GIF


class Sample(NamedTuple):
    """What was generated for one task."""

    known: list[bool]
    """One flag per frame."""
    video: Tensor
    """``(B, p + k + f, C, H, W)`` in [0, 1]"""


def sample_tasks(
    model: VideoDiffusion, clips: Tensor, solver: str = "dpm++", steps: int | None = None, guidance: float = 1.0
) -> dict[str, Sample]:
    """Fills in clips ``(B, p + k + f, C, H, W)`` uint8 for each task that the model was trained for, by its name.

    steps: None: the solver's default.
    """
    p, k, f = model.layout.past, model.layout.current, model.layout.future
    made = {}
    for task, (past, future) in model.config.masking.tasks(model.layout).items():
        known = [past] * p + [False] * k + [future] * f
        video = model.fill(clips, known, solver=solver, steps=steps, guidance=guidance)
        made[task] = Sample(known, video.cpu())
    return made


def sample_sheet(
    model: VideoDiffusion,
    clips: Tensor,
    rows: int = 2,
    solver: str = "dpm++",
    steps: int | None = None,
    guidance: float = 1.0,
) -> Image.Image:
    """Ground truth, prediction, backward prediction, interpolation and generation for the first `rows` clips.

    clips: ``(B, p + k + f, C, H, W)`` uint8. Tasks that the model was not trained for are left out.
    """
    return _sheet(clips[:rows], sample_tasks(model, clips[:rows], solver, steps, guidance))


def save_samples(model: VideoDiffusion, clips: Tensor, path: Path, rows: int = 2) -> dict[str, Path]:
    """Writes PATH.png, the sheet, and PATH-TASK.gif for each task; returns them by name: `samples`, `samples/TASK`.

    clips: fixed ones of the held-out videos; `rows` of them are shown, spread evenly, as neighbours are often of one
    video.
    """
    clips = clips[np.linspace(0, len(clips) - 1, min(rows, len(clips))).round().astype(int).tolist()].cpu()
    made = sample_tasks(model, clips)
    files = {"samples": path.with_name(f"{path.name}.png")}
    _sheet(clips, made).save(files["samples"])
    for task, sample in made.items():
        files[f"samples/{task}"] = file = path.with_name(f"{path.name}-{task}.gif")
        write_video(file, side_by_side(clips, sample), fps=min(model.config.fps, FASTEST_SHOWN))
    return files


def side_by_side(clips: Tensor, sample: Sample) -> Tensor:
    """``(T, 3, H', W')`` uint8: the clips in a row, what was generated from them below; edges as in the sheet.

    Unconditional generation has no clips above it.
    """
    made = (sample.video.clamp(0, 1) * 255).round().to(torch.uint8)
    edges = [GIVEN if known else MADE for known in sample.known]
    rows = [_row(made, edges)]
    if any(sample.known):
        rows.insert(0, _row(clips, [GIVEN if known else (255, 255, 255) for known in sample.known]))
    return torch.cat(rows, 2)


def _row(videos: Tensor, edges: list[tuple[int, int, int]]) -> Tensor:
    """Videos ``(B, T, C, H, W)`` beside each other, with an edge of one pixel in the colour of each frame."""
    batch, frames, _, height, width = videos.shape
    colours = torch.tensor(edges, dtype=torch.uint8, device="cpu").view(1, frames, 3, 1, 1)
    out = colours.repeat(batch, 1, 1, height + 2, width + 2)
    out[..., 1:-1, 1:-1] = videos.cpu()
    return torch.cat(list(out), -1)


def _sheet(truth: Tensor, made: dict[str, Sample]) -> Image.Image:
    lines: list[tuple[str, Tensor]] = [(f"clip {i}", clip) for i, clip in enumerate(truth)]
    edges = [-torch.ones(truth.shape[1], dtype=torch.int, device="cpu")] * len(lines)
    for task, (known, video) in made.items():
        lines += [(f"{task} {i}", clip) for i, clip in enumerate(video)]
        edges += [1 - torch.tensor(known, device="cpu").int()] * len(video)
    return contact_sheet(lines, torch.stack(edges))
