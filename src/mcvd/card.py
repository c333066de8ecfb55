"""What a model is, for people: the rows of `mcvd info`, and the README of a model on a hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvd.text import colours, counted, plain

if TYPE_CHECKING:
    from torch import nn

    from mcvd.guide import GuideConfig
    from mcvd.model import ModelConfig, VideoDiffusion


def model_rows(model: VideoDiffusion) -> list[tuple[str, str]]:
    """What a model is and what it was trained for: (name, value) pairs."""
    config, layout = model.config, model.layout
    solver, steps = model.sampler()
    height, width = model.size
    frames = f"{layout.past} past, {layout.current} generated at once, {layout.future} future"
    return [
        ("size", f"{width}x{height} pixels, {colours(model.channels)}"),
        ("frames", f"{frames}; videos are written at {config.fps:.4g} per second"),
        ("tasks", ", ".join(commands(model)) or "none"),
        ("parameters", f"{_weights(model.network) / 1e6:.2f} million"),
        ("network", f"width {config.network.width} x {config.network.multipliers}, {config.network.conditioning}"),
        ("noise", f"{config.schedule.kind} schedule, {config.schedule.steps} levels; predicts {config.prediction}"),
        ("solver", f"{solver}, {counted(steps, 'step')} per block, unless --solver and --steps say otherwise"),
        ("trained with", _hidden(config)),
        *([("guide", _guide(config.guide, _weights(model.guide)))] if config.guide and model.guide else []),
        *((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in model.notes.items()),
    ]


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _guide(guide: GuideConfig, weights: int) -> str:
    network = guide.network
    size = f"{weights / 1e6:.2f} million parameters, width {network.width} x {network.multipliers}"
    return f"{size}; scale {guide.scale:g}, at noise from {guide.noise:g}"


def _hidden(config: ModelConfig) -> str:
    """What training did to past and future frames."""
    masking, layout = config.masking, config.network.layout
    groups = ("past", layout.past, masking.past), ("future", layout.future, masking.future)
    parts = [f"{name} hidden {share:.0%} of the time" for name, frames, share in groups if frames]
    if masking.together:
        parts.append("both together")
    if masking.frames:
        parts.append(f"{masking.frames:.0%} of single frames hidden")
    if config.context_noise:
        parts.append(f"noise up to {config.context_noise:g} on them")
    return ", ".join(parts) or "no past and no future"


def commands(model: VideoDiffusion) -> list[str]:
    """The commands that the model was trained for."""
    return ["predict --backward" if name == "backward" else name for name in model.config.masking.tasks(model.layout)]


def model_card(model: VideoDiffusion, repo_id: str) -> str:
    """The README.md of a model in a hub repository, from what the model itself holds; its owner adds data and
    licence."""
    given = {
        "predict": "clip.mp4 --frames 20",
        "predict --backward": "clip.mp4 --frames 10",
        "interpolate": "before.mp4 after.mp4",
        "generate": "--frames 20",
    }
    lines = [f"mcvd {command} {given[command]} --model {repo_id}" for command in commands(model)]
    table = "\n".join(f"| {plain(name)} | {plain(value)} |" for name, value in model_rows(model))
    return f"""---
library_name: mcvd
tags: [mcvd, diffusion, video-prediction, video-interpolation, video-generation]
---

# {repo_id.rpartition("/")[2]}

A model of masked conditional video diffusion (MCVD, [arXiv 2205.09853](https://arxiv.org/abs/2205.09853)).

| | |
|---|---|
{table}

```
{chr(10).join(lines)}
```

```python
import mcvd

model = mcvd.load("{repo_id}")
```
"""
