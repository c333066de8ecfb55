"""Fine-tuning: copies the weights of another model wherever they fit, and says which are new."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mcvd.config import to_dict
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.networks.config import UNetConfig
from mcvd.training.log import changes
from mcvd.training.recipe import Recipe


def adapted(recipe: Recipe, source: VideoDiffusion) -> Recipe:
    """The recipe, counting time as the weights of `source` do.

    Raises McvdError if the weights contradict the recipe in other ways, such as another noise schedule, or if most do
    not fit. Another prediction is allowed: only the last convolution depends on it.
    """
    mine, theirs = recipe.model, source.config
    noise, before = (
        {name: to_dict(getattr(of, name)) for name in ("schedule", "noisy_condition")} for of in (mine, theirs)
    )
    if differ := changes(before, noise, "model."):
        raise McvdError(f"the weights to start from had other noise: the recipe has {differ}; make these values equal")
    made = dataclasses.replace(recipe, model=dataclasses.replace(mine, time_from_noise=theirs.time_from_noise))
    with torch.device("meta"):  # shapes without contents
        initialise_from(VideoDiffusion(made.model), source)
    return made


@torch.no_grad()
def initialise_from(model: VideoDiffusion, source: VideoDiffusion) -> list[str]:
    """Copies the weights of `source` into `model`; returns the names of those that are (partly) new.

    Of the first and last convolution, which grow with the frames of a block, the parts for frames that both models have
    are copied: the past frames nearest to the current ones, the first current and the first future frames. The other
    condition frames start at 0, so that the model begins as `source` is. If it predicts something else (eps, v, x0),
    the last convolution is new; of attention with another number of heads, all but the norm is.
    """
    mine, theirs = model.config.network, source.config.network
    another = model.config.prediction != source.config.prediction
    own, given = model.network.state_dict(), source.network.state_dict()
    new = []
    for name, weight in own.items():
        other = given.get(name)
        if another and name.startswith("conv_out."):
            new.append(name)
            continue
        same = _meaning(name, weight, mine) == _meaning(name, weight, theirs)
        if other is not None and other.shape == weight.shape and same:
            weight.copy_(other)
            continue
        new.append(name)
        if other is not None and name.startswith(("conv_in.", "conv_out.")) and model.channels == source.channels:
            _copy_frames(name, weight, other, mine, theirs)
    if sum(own[name].numel() for name in new) > sum(weight.numel() for weight in own.values()) / 2:
        both = to_dict(theirs), to_dict(mine), "model.network."
        differ = changes(*both, without=_FREE) or changes(*both)
        raise McvdError(
            f"most of the weights to start from do not fit: the recipe has {differ}; make these values equal"
        )
    return new


_FREE = [
    f"model.network.{name}"
    for name in ("size", "channels", "head_channels", "dropout", "layout.past", "layout.current", "layout.future")
]
"""Values that few weights depend on, in most networks."""


def _meaning(name: str, weight: Tensor, config: UNetConfig) -> tuple[object, ...]:
    """What a weight's shape leaves open: which frames its inputs or outputs are, and the heads of attention.

    Layouts with equal sums of frames, such as 10 past frames and 5 past with 5 future ones, have weights of one shape;
    so have all numbers of heads, which share out the same channels.
    """
    if ".qkv." in name or ".out." in name:
        return (config.heads(len(weight) // (3 if ".qkv." in name else 1)),)
    layout, pixels = config.layout, (config.channels, config.patch)
    if config.frames != "channels":
        return (layout,) if "merge" in name or "converter" in name else ()
    if name.startswith("conv_out."):
        return layout.current, *pixels
    if name == "conv_in.weight":
        seen = layout if config.conditioning == "concat" else layout.current
        return seen, *pixels
    return (layout.past, layout.future, *pixels) if name.endswith("shared.weight") else ()


def _copy_frames(name: str, weight: Tensor, other: Tensor, mine: UNetConfig, theirs: UNetConfig) -> None:
    if mine.frames != "channels" or theirs.frames != "channels" or mine.width != theirs.width:
        return
    if mine.patch != theirs.patch:
        return
    maps = mine.channels * mine.patch**2  # of one frame
    if name.startswith("conv_out."):
        rows = min(len(weight), len(other))
        weight[:rows] = other[:rows]
        return
    if name != "conv_in.weight":
        return
    weight[:, mine.layout.current * maps :] = 0
    start = start_other = 0
    condition = ("past", "future") if mine.conditioning == theirs.conditioning == "concat" else ()
    for group in ("current", *condition):
        frames, frames_other = getattr(mine.layout, group), getattr(theirs.layout, group)
        both = min(frames, frames_other)
        # of the past, the frames nearest to the current ones correspond; of the others, the first
        at, at_other = (frames - both, frames_other - both) if group == "past" else (0, 0)
        to = slice((start + at) * maps, (start + at + both) * maps)
        of = slice((start_other + at_other) * maps, (start_other + at_other + both) * maps)
        weight[:, to] = other[:, of]
        start, start_other = start + frames, start_other + frames_other
