"""Half precision: which devices are fast in it, and the autocast under which a network computes in it."""

from __future__ import annotations

import torch

from mcvd.errors import McvdError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fast_on(device: torch.device) -> tuple[str, ...]:
    """Names of the precisions that a device has units for, best first. CPUs can do the others, slowly."""
    if device.type != "cuda":
        return ("fp32",)
    return ("bf16", "fp16", "fp32") if torch.cuda.is_bf16_supported() else ("fp16", "fp32")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Convolutions, matrix products and attention in this precision, norms and weights in float32.

    Raises McvdError for an unknown precision, or one that the device is not fast in.
    """
    if precision not in PRECISIONS:
        raise McvdError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if precision not in (fast := fast_on(device)):
        raise McvdError(f"{device} has no fast {precision}; choose {' or '.join(fast)}")
    half = precision != "fp32"
    return torch.autocast(device.type, PRECISIONS[precision] if half else torch.bfloat16, enabled=half)
