"""Which device is used by default, whether a device is available, and how cuDNN chooses its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mcvd.errors import McvdError

_BEFORE: list[bool] = []
"""What `tuned_convolutions` found, from the first caller on: threads may leave it in any order, the last resets it."""


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


@contextlib.contextmanager
def tuned_convolutions() -> Iterator[None]:
    """Within it, cuDNN tries its kernels for every new shape of a convolution, and keeps the fastest.

    Pays where a shape is seen hundreds of times. Set globally, for all threads; no effect without a GPU.
    """
    _BEFORE.append(torch.backends.cudnn.benchmark)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = _BEFORE.pop()
