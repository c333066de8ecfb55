"""What a model makes of the same clips, as one picture: all tasks that it was trained for, above each other."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from mcvd.data.sheet import contact_sheet
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion


def sample_sheet(
    model: VideoDiffusion, clips: Tensor, rows: int = 2, solver: str = "dpm++", steps: int = 20, guidance: float = 1.0
) -> Image.Image:
    """Truth, prediction, backward prediction, interpolation and generation of the first `rows` clips.

    clips: ``(B, p + k + f, C, H, W)`` uint8. Tasks that the model was not trained for are left out.
    """
    p, k, f = model.layout.past, model.layout.current, model.layout.future
    truth = clips[:rows]
    tasks = {
        "predict": [True] * p + [False] * (k + f),
        "backward": [False] * (p + k) + [True] * f,
        "interpolate": [True] * p + [False] * k + [True] * f,
        "generate": [False] * (p + k + f),
    }
    lines: list[tuple[str, Tensor]] = [(f"clip {i}", clip) for i, clip in enumerate(truth)]
    made = [-torch.ones(p + k + f, dtype=torch.int)] * len(lines)
    for task, known in tasks.items():
        if all(known) or (task != "generate" and not any(known)):
            continue
        try:
            video = model.fill(truth, known, solver=solver, steps=steps, guidance=guidance)
        except McvdError:  # not trained for this task
            continue
        lines += [(f"{task} {i}", clip.cpu()) for i, clip in enumerate(video)]
        made += [1 - torch.tensor(known).int()] * len(video)
    return contact_sheet(lines, torch.stack(made))
