"""Factor-2 resampling with the FIR kernel [1, 3, 3, 1] (StyleGAN2's choice, used by the published network).

Plain operations with fixed weights; no custom kernel is needed. Up to a factor of 4, each direction is the other's
transpose and therefore the other's gradient; PyTorch's own gradients of the two are slow on GPUs.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def downsample(x: Tensor) -> Tensor:
    """``(B, C, [N,] H, W)`` -> ``(B, C, [N,] H/2, W/2)``: depthwise FIR with zero padding 1, stride 2."""
    return _on_maps(_Downsample.apply if torch.is_grad_enabled() else _down, x)


def upsample(x: Tensor) -> Tensor:
    """``(B, C, [N,] H, W)`` -> ``(B, C, [N,] 2H, 2W)``: the transposed FIR, times 4."""
    return _on_maps(_Upsample.apply if torch.is_grad_enabled() else _up, x)


def _on_maps(resample: Any, x: Tensor) -> Tensor:
    return resample(x.flatten(1, -3)).unflatten(1, x.shape[1:-2])


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _down(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _up(grad) / 4


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _up(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _down(grad) * 4


def _down(x: Tensor) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        # sixteen shifted images, which compiled code reads while it computes the next operation
        height, width = x.shape[-2:]
        padded, weights = F.pad(x, (1, 1, 1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
        parts = (
            padded[..., i : i + height : 2, j : j + width : 2] * (weights[i] * weights[j])
            for i, j in itertools.product(range(4), repeat=2)
        )
        return functools.reduce(torch.add, parts)
    taps = torch.full((4,), 3 / 8, dtype=x.dtype, device=x.device)  # filled in place: a copy would stop a GPU's queue
    taps[::3].fill_(1 / 8)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def _up(x: Tensor) -> Tensor:
    # With these taps, this is bilinear interpolation at half-pixel centres over zero padding. `F.interpolate`, one fast
    # kernel on every backend, repeats the border pixel instead, with a weight of 1/4: multiplying by 3/4 removes it.
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    rows, columns = (_border(side, doubled) for side in doubled.shape[-2:])
    weights = rows[:, None] * columns
    # multiplied in place, the output of a compiled `_Upsample` has a wrong gradient under PyTorch 2.11
    return doubled * weights if torch.compiler.is_compiling() else doubled.mul_(weights)


def _border(side: int, like: Tensor) -> Tensor:
    weights = torch.ones(side, dtype=like.dtype, device=like.device)
    weights[0].fill_(0.75)
    weights[-1].fill_(0.75)
    return weights
