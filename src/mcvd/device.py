"""Where the work is done: when nobody says where, and whether it can be."""

from __future__ import annotations

import torch

from mcvd.errors import McvdError


def default_device() -> str:
    """The first CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(device: str | None) -> str:
    """`device`, None being the default one; McvdError where torch cannot work on it."""
    device = default_device() if device is None else device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # by what this torch was built with
        raise McvdError(f"torch cannot use the device {device!r} on this machine; try cpu") from None
    return device
