"""Factor-2 resampling with the FIR kernel [1, 3, 3, 1] (StyleGAN2's choice, used by the published network).

Plain convolutions of fixed weights: no custom kernel is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def downsample(x: Tensor) -> Tensor:
    """``(B, C, [N,] H, W)`` -> ``(B, C, [N,] H/2, W/2)``: depthwise FIR with zero padding 1, stride 2."""
    maps = x.flatten(1, -3)
    taps = torch.full((4,), 3 / 8, dtype=x.dtype, device=x.device)  # filled in place: a copy would stop a GPU's queue
    taps[::3].fill_(1 / 8)
    kernel = torch.outer(taps, taps).expand(maps.shape[1], 1, 4, 4)
    return F.conv2d(maps, kernel, stride=2, padding=1, groups=maps.shape[1]).unflatten(1, x.shape[1:-2])


def upsample(x: Tensor) -> Tensor:
    """``(B, C, [N,] H, W)`` -> ``(B, C, [N,] 2H, 2W)``: the transposed FIR, four times as strong.

    With these taps it is bilinear interpolation at half-pixel centres over zero padding. Interpolation, which every
    backend has as one fast kernel, repeats the border pixel instead: where that counts for a quarter, 3/4 remain.
    """
    doubled = F.interpolate(x.flatten(1, -3), scale_factor=2, mode="bilinear", align_corners=False)
    rows, columns = (_border(side, doubled) for side in doubled.shape[-2:])
    return doubled.mul_(rows[:, None] * columns).unflatten(1, x.shape[1:-2])


def _border(side: int, like: Tensor) -> Tensor:
    weights = torch.ones(side, dtype=like.dtype, device=like.device)
    weights[0].fill_(0.75)
    weights[-1].fill_(0.75)
    return weights
