"""Dropout whose random numbers do not slow down training steps on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 2**16


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its elements set to 0, the others divided by 1 - rate; uses torch's global generator.

    On CPUs, PyTorch draws its masks one element after another. Here, one draw of 64 bits serves four elements, in half
    the time of `F.dropout`, backward included. The rate is rounded to 1 / 65536.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.native_dropout(x, rate, True)[0]
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None).view(torch.int16)
    keep = torch.empty_like(x, dtype=torch.bool)
    torch.ge(draws.as_strided(keep.shape, keep.stride()), round(rate * _LEVELS) - _LEVELS // 2, out=keep)
    return torch.where(keep, x, 0.0) * (1 / (1 - rate))
