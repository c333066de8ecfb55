"""The parts of the paper's U-Net: groups, time-modulated norms, SPATIN, residual blocks.

All parts take features ``(B, C, H, W)`` or, in the 3-D variants, ``(B, C, N, H, W)``: what depends on the frame axis
comes from a :class:`FrameOps`; everything else is the same code. Initialisation follows DDPM: uniform, variance-scaled
by the average of fan-in and fan-out; the last convolution of every residual branch starts near zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.networks.dropout import dropout
from mcvd.networks.norm import norm_silu
from mcvd.networks.resample import downsample, upsample

NEAR_ZERO = 1e-10  # initial scale of layers whose output should start near 0; not exactly 0, as in the published code
RESIDUAL = 1 / math.sqrt(2)


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: at most 32, at least 4 channels each, the largest number that divides `channels`."""
    groups = min(channels // 4, 32)
    while channels % groups:
        groups -= 1
    return groups


def scaled_uniform_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """U(-b, b) with b = sqrt(3 scale / mean(fan_in, fan_out)), in place; `weight` is ``(out, in, *kernel)``."""
    taps = math.prod(weight.shape[2:])
    bound = math.sqrt(3 * scale / (taps * (weight.shape[0] + weight.shape[1]) / 2))
    return nn.init.uniform_(weight, -bound, bound)


def initialise(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Initialises every convolution and linear layer inside `layer`; biases start at 0. Returns the layer."""
    for part in layer.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            scaled_uniform_(part.weight, scale)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return layer


def residual_sum(x: Tensor, h: Tensor) -> Tensor:
    """(x + h) / sqrt(2), written into h if no gradient needs it."""
    free = not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and h.dtype == x.dtype
    return torch.add(x, h, out=h if free else None).mul_(RESIDUAL)


class FrameOps(Protocol):
    """How the layers of a network see the frames of a block: as channels, or along an axis of their own."""

    frames: int
    """Width of the sinusoidal time embedding, in units of the first level's; 1 if frames are channels."""

    def maps(self, frames: int) -> int:
        """Channels of this many folded frames."""

    def fold(self, frames: Tensor) -> Tensor:
        """``(B, frames, C, H, W)`` -> the input of convolutions."""

    def unfold(self, maps: Tensor) -> Tensor:
        """The inverse of `fold`, for the current frames."""

    def conv(self, c_in: int, c_out: int, kernel: int) -> nn.Module:
        """A convolution that keeps the size."""

    def attention(self, channels: int, heads: int) -> nn.Module:
        """Self-attention, with its residual sum."""

    def spatin(self, channels: int, level: int) -> Spatin | None:
        """The SPATIN norm of this level; None for concat."""

    def merge(self) -> nn.Module:
        """A layer from the frames on the way down to those on the way up."""

    def share(self, conv_in: nn.Module, condition: Tensor) -> Tensor:
        """What the first convolution can compute once from a folded condition."""

    def first(self, conv_in: nn.Module, x: Tensor, share: Tensor | None) -> Tensor:
        """The first convolution, of folded current frames x and the condition's share (None: no condition)."""


@dataclass
class Condition:
    """The encoded past and future frames, computed once per block; shared by all steps and all samples of a clip.

    share: what the condition adds to the first convolution of a concat network (`FrameOps.share`), or None.
    maps: one (1 + gamma, beta) pair per SPATIN norm, in the order of the norms; empty for concat.
    frames: instead of maps, the folded frames from which every SPATIN norm computes its maps when it runs: this saves
        memory, but repeats the work in every step. `rows`: which of them each trajectory has (None: each its own).
    past_seen: ``(B,)`` bool, whether the past is seen; None: all are.
    sigma: ``(B,)``, standard deviation of the noise in past and future frames; None: 0 for all.

    A condition of one row serves any number of trajectories.
    """

    share: Tensor | None
    maps: list[tuple[Tensor, Tensor]]
    past_seen: Tensor | None = None
    sigma: Tensor | None = None
    frames: Tensor | None = None
    rows: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        parts = [getattr(self, name) for name in self._parts()]
        return [*parts, *chain.from_iterable(self.maps)]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Condition:
        """A condition of the same kind with other tensors, in the order of `tensors()`."""
        left = iter(tensors)
        parts = {name: next(left) for name in self._parts()}
        return replace(self, maps=[(next(left), next(left)) for _ in self.maps], **parts)

    def _parts(self) -> list[str]:
        names = "share", "past_seen", "sigma", "frames", "rows"
        return [name for name in names if getattr(self, name) is not None]

    def take(self, rows: Tensor) -> Condition:
        """The conditions of these rows ``(B,)``, which may repeat; a condition of one row is returned unchanged."""
        parts = (self.share, self.frames, self.past_seen, *(gain for gain, _ in self.maps))
        if all(part is None or len(part) == 1 for part in parts):
            return self
        return Condition(
            None if self.share is None else self.share[rows],
            [(gain[rows], bias[rows]) for gain, bias in self.maps],
            None if self.past_seen is None else self.past_seen[rows],
            None if self.sigma is None else self.sigma[rows],
            self.frames,
            None if self.frames is None else rows,
        )


class Spatin(nn.Module):
    """Space-time adaptive normalisation: maps from the condition scale and shift a GroupNorm (paper, section 2.4).

    `maps` computes everything that depends only on the condition, outside the sampling loop. `scale` is the factor
    between the video's resolution and the features' (nearest-neighbour: every scale-th pixel).
    """

    def __init__(self, channels: int, condition_channels: int, width: int, scale: int, ops: FrameOps):
        super().__init__()
        self.scale, self.channels = scale, channels
        self.groups, self.eps = group_count(channels), 1e-6
        self.shared = initialise(ops.conv(condition_channels, width, 3))
        self.gamma = initialise(ops.conv(width, channels, 3))
        self.beta = initialise(ops.conv(width, channels, 3))
        self.slot = -1  # its index in Condition.maps, set by the network

    def maps(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Folded condition ``(B, frames * C, H, W)`` -> 1 + gamma, beta ``(B, channels, H / scale, W / scale)``."""
        hidden = F.silu(self.shared(condition[..., :: self.scale, :: self.scale]))
        return 1 + self.gamma(hidden), self.beta(hidden)

    def maps_in(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """This norm's maps, one for each trajectory or one for all."""
        if condition.frames is None:
            return condition.maps[self.slot]
        gain, bias = self.maps(condition.frames)
        return (gain, bias) if condition.rows is None else (gain[condition.rows], bias[condition.rows])

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        gain, bias = self.maps_in(condition)
        return torch.addcmul(bias, F.group_norm(x, self.groups, eps=self.eps), gain)


class ModulatedNorm(nn.Module):
    """silu(norm(x) * (1 + scale) + shift): scale and shift from the time embedding, norm is GroupNorm or SPATIN.

    embedding: width of the time embedding; 0: no modulation, and a GroupNorm learns its own scale and shift.
    """

    def __init__(self, channels: int, embedding: int, spatin: Spatin | None):
        super().__init__()
        self.modulation = initialise(nn.Linear(embedding, 2 * channels)) if embedding else None
        # eps differs between the two in the published networks: 1e-5 here, 1e-6 inside SPATIN
        self.spatin = spatin
        self.norm = None
        if spatin is None:
            self.norm = nn.GroupNorm(group_count(channels), channels, 1e-5, affine=not embedding)

    def forward(self, x: Tensor, embedding: Tensor | None, condition: Condition) -> Tensor:
        scale = shift = None
        if self.modulation is not None:
            scale, shift = self.modulation(embedding).chunk(2, dim=1)
            scale = 1 + scale
        if self.norm is None:
            assert self.spatin is not None
            maps = self.spatin.maps_in(condition)
            return norm_silu(x, self.spatin.groups, self.spatin.eps, scale, shift, maps)
        if self.norm.affine:
            scale, shift = self.norm.weight[None], self.norm.bias[None]
        return norm_silu(x, self.norm.num_groups, self.norm.eps, scale, shift)


class ResidualBlock(nn.Module):
    """Two modulated norms and convolutions (BigGAN order), optionally with resampling by 2; the sum over sqrt(2)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        dropout: float,
        ops: FrameOps,
        level: int,
        resample: str = "",
    ):
        super().__init__()
        self.resample = {"": None, "down": downsample, "up": upsample}[resample]
        after = level + {"": 0, "down": 1, "up": -1}[resample]
        self.norm0 = ModulatedNorm(c_in, embedding, ops.spatin(c_in, level))
        self.conv0 = initialise(ops.conv(c_in, c_out, 3))
        self.norm1 = ModulatedNorm(c_out, embedding, ops.spatin(c_out, after))
        self.dropout = dropout
        self.conv1 = initialise(ops.conv(c_out, c_out, 3), NEAR_ZERO)
        self.shortcut = initialise(ops.conv(c_in, c_out, 1)) if c_in != c_out or resample else None

    def forward(self, x: Tensor, embedding: Tensor | None, condition: Condition) -> Tensor:
        h = self.norm0(x, embedding, condition)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        h = self.norm1(h, embedding, condition)
        if self.training and self.dropout:
            h = dropout(h, self.dropout)
        h = self.conv1(h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return residual_sum(x, h)
