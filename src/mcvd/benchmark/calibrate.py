"""This machine's ceilings: the rates of large matrix products, of convolutions, and of copying memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mcvd.benchmark.measure import timed

LEAST_SECONDS = 0.02  # a timed run lasts at least about this long
TRIES = 3


@dataclass(frozen=True)
class Ceiling:
    """Work that only the machine limits."""

    name: str
    what: str
    work: float
    """Floating-point operations (a multiply-add is 2), or bytes read and written, per `run`."""
    run: Callable[[], object]
    rate: float
    """Best of some runs, in work per second."""


def calibrate(device: torch.device, dtype: torch.dtype, quick: bool = False) -> dict[str, Ceiling]:
    """The ceilings ``matmul`` and ``convolution`` (operations per second) and ``bandwidth`` (bytes per second).

    Each is the best of a few sizes. dtype: of the numbers; accumulation is up to the backend. quick: tiny sizes for
    tests; the rates then mean nothing.
    """
    large = device.type == "cuda"
    sides = (64,) if quick else (4096, 8192) if large else (768, 1536)
    batch = 1 if quick else 64 if large else 8
    # channels and side of the images: those of a 64-pixel network of width 64, and of one twice as wide
    shapes = ((8, 8),) if quick else ((64, 64), (128, 32), (192, 16), (256, 8), (256, 32))
    numbers = 1 << 12 if quick else 1 << 28 if large else 1 << 25
    return {
        "matmul": max((_matmul(n, device, dtype) for n in sides), key=_rate),
        "convolution": max((_convolution(batch, c, n, device, dtype) for c, n in shapes), key=_rate),
        "bandwidth": _copy(numbers, device),
    }


def _rate(ceiling: Ceiling) -> float:
    return ceiling.rate


def _matmul(n: int, device: torch.device, dtype: torch.dtype) -> Ceiling:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return _ceiling("matmul", f"{n} x {n} times {n} x {n}", 2.0 * n**3, lambda: torch.mm(a, b, out=out), device)


def _convolution(batch: int, channels: int, side: int, device: torch.device, dtype: torch.dtype) -> Ceiling:
    x = torch.randn(batch, channels, side, side, device=device).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
    work = 2.0 * 9 * channels**2 * batch * side**2
    what = f"3x3, {channels} to {channels} channels, {batch} images of {side}x{side}, channels last"
    return _ceiling("convolution", what, work, lambda: F.conv2d(x, weight, padding=1), device)


def _copy(numbers: int, device: torch.device) -> Ceiling:
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    what = f"copy of {source.nbytes / 2**20:.4g} MiB, bytes read and written"
    return _ceiling("bandwidth", what, 2.0 * source.nbytes, lambda: target.copy_(source), device)


@torch.inference_mode()
def _ceiling(name: str, what: str, work: float, once: Callable[[], object], device: torch.device) -> Ceiling:
    """Repeats short work until a run lasts `LEAST_SECONDS`, and takes the best of some runs."""
    once()
    repeats = max(1, round(LEAST_SECONDS / max(timed(once, device).wall, 1e-7)))

    @torch.inference_mode()
    def run() -> None:
        for _ in range(repeats):
            once()

    best = min(timed(run, device).wall for _ in range(TRIES))
    return Ceiling(name, what, work * repeats, run, work * repeats / best)
