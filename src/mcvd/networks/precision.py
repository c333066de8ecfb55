"""Half precision: which devices are fast in it, and its autocast; plain float32 where numbers must be exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mcvd.errors import McvdError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

BF16_UNITS = "avx512_bf16", "amx_bf16"  # of x86 processors: AMD from Zen 4, Intel from Sapphire Rapids


def fast_on(device: torch.device) -> tuple[str, ...]:
    """Names of the precisions that a device has units for, the best for training first. CPUs run the others slowly."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return ("fp32", "bf16") if any(found.get(name) for name in BF16_UNITS) else ("fp32",)
    if device.type != "cuda":
        return ("fp32",)
    # older GPUs than Ampere emulate bf16: torch.cuda.is_bf16_supported says that they have it
    has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    return ("bf16", "fp16", "fp32") if has_bf16 else ("fp16", "fp32")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Convolutions, matrix products and attention in this precision; weights stay in float32, on GPUs norms too.

    Raises McvdError for an unknown precision, or one that is slow on the device.
    """
    if precision not in PRECISIONS:
        raise McvdError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if precision not in (fast := fast_on(device)):
        raise McvdError(f"{device} has no fast {precision}; choose {' or '.join(fast)}")
    half = precision != "fp32"
    return torch.autocast(device.type, PRECISIONS[precision] if half else torch.bfloat16, enabled=half)


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Without gradients and in float32 throughout (no TF32, no bf16), whatever the caller has set."""
    to: Any = torch.backends
    changed = []
    try:
        # from general to specific settings: a specific one without a value of its own follows the general one
        for place in (to, to.cudnn, to.mkldnn, to.cudnn.conv, to.cuda.matmul, to.mkldnn.conv, to.mkldnn.matmul):
            if (precision := place.fp32_precision) in ("tf32", "bf16"):
                changed.append((place, precision))
                place.fp32_precision = "ieee"
        with torch.inference_mode(), autocast("fp32", device):
            yield
    finally:
        for place, precision in changed:
            place.fp32_precision = precision
