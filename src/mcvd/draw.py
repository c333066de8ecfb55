"""Everything random in one training step: which frames are hidden, times, noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SEEDS = (1 << 63) - 1
"""Mask for the bits of a seed that PyTorch's generators accept."""


class Draw(NamedTuple):
    """The random part of the loss of B clips."""

    past_seen: Tensor
    """``(B,)`` bool"""
    future_seen: Tensor
    """``(B,)`` bool"""
    t: Tensor
    """``(B,)`` long, time numbers"""
    eps: Tensor
    """``(B, k, C, H, W)``, the noise added to the current frames"""
    frames_seen: Tensor | None = None
    """``(B, p + f)`` bool, which past and future frames are seen if their group is; None: all"""
    context_sigma: Tensor | None = None
    """``(B,)``, standard deviation of the noise in past and future frames; None: 0"""
    context_eps: Tensor | None = None
    """``(B, p + f, C, H, W)``, noise of past and future, N(0, I); None for a model that adds none"""

    def rows(self, start: int, stop: int) -> Draw:
        """The draw of the clips `start` to `stop` - 1 only."""
        return Draw(*(None if x is None else x[start:stop] for x in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Draw:
        """The draw on a device."""
        return Draw(*(None if x is None else x.to(device, non_blocking=True) for x in self))  # type: ignore[arg-type]

    def empty_like(self) -> Draw:
        """Tensors of the same shapes, for `copy_`."""
        return Draw(*(None if x is None else torch.empty_like(x) for x in self))  # type: ignore[arg-type]

    def copy_(self, other: Draw) -> None:
        """Takes the values of another draw."""
        for mine, new in zip(self, other):
            if mine is not None and new is not None:
                mine.copy_(new)


def generator_at(seed: int, step: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """A generator that depends only on (seed, step, stream)."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + stream) * 0x9E3779B1 + step & SEEDS)
