"""How wrong the network is on clips that it was not trained on: overall, by noise level, and by task."""

from __future__ import annotations

import torch
from torch import Tensor

from mcvd.draw import Draw, generator_at
from mcvd.model import VideoDiffusion
from mcvd.training.source import to_model_range

BINS = 5  # of noise levels
PART = 16  # clips in one network call
TASK_SHARE = 4  # one clip in that many is measured under every task


@torch.inference_mode()
def validate(model: VideoDiffusion, clips: Tensor, seed: int = 0) -> dict[str, float]:
    """Mean squared errors of the network's output per element, over fixed clips (uint8), masks, times and noise.

    `validation`: over all clips, with masks and times drawn as in training. `validation/t0-199` and so on: the same by
    fifths of the noise levels (t = 0 is the cleanest), if a clip fell into them. `validation/predict`, `/backward`,
    `/interpolate`, `/generate`: every 4th clip under each task that the model is trained for, at the same evenly spread
    times and with the same noise, groups complete and without noise. Costs at most two network calls per clip.

    Errors of models that predict different things (eps, v, x0), or have different noise schedules, are not comparable.
    """
    draw = model.draw(len(clips), generator_at(seed, 0, model.device, stream=1))
    errors = _errors(model, clips, draw)
    found = {"validation": float(errors.mean())}
    levels = model.config.schedule.steps
    which = draw.t.cpu() * BINS // levels
    for i in range(BINS):
        if (inside := which == i).any():
            first, end = -(-i * levels // BINS), -(-(i + 1) * levels // BINS)
            found[f"validation/t{first}-{end - 1}"] = float(errors[inside].mean())

    few = clips[::TASK_SHARE]
    noise = None if draw.context_eps is None else draw.context_eps[::TASK_SHARE]
    t = (torch.arange(len(few), device=model.device) * 2 + 1) * levels // (2 * len(few))
    for task, (past, future) in model.config.masking.tasks(model.layout).items():
        ones = torch.ones(len(few), dtype=torch.bool, device=model.device)
        paired = Draw(ones & past, ones & future, t, draw.eps[::TASK_SHARE], context_eps=noise)
        found[f"validation/{task}"] = float(_errors(model, few, paired).mean())
    return found


def _errors(model: VideoDiffusion, clips: Tensor, draw: Draw) -> Tensor:
    """The mean squared error of each clip's output elements, float64 on the CPU."""
    losses = [
        model.loss(to_model_range(clips[i : i + PART], model.device), draw.rows(i, i + PART))
        for i in range(0, len(clips), PART)
    ]
    return 2 * torch.cat(losses).cpu().double() / draw.eps[0].numel()
