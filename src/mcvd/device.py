"""Which device is used by default, and whether a device is available."""

from __future__ import annotations

import torch

from mcvd.errors import McvdError


def default_device() -> str:
    """The first CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(device: str | None) -> str:
    """`device` (None: the default one); McvdError if torch cannot use it."""
    device = default_device() if device is None else device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # which of them depends on the build of torch
        raise McvdError(f"torch cannot use the device {device!r} on this machine; try cpu") from None
    return device
