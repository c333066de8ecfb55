"""Gradients of the paper network's 3x3 convolutions on a CPU, by several ways: python benchmarks/gradients.py

For each kind of layer, at 8 clips: the convolution itself; the gradient of its input; the gradient of its weight as
oneDNN computes it from channels-last and from contiguous tensors, by Winograd, which training uses, and as nine matrix
products over the rows of the padded pixels, each shifted by one tap (no copy but the padding). Milliseconds, the least
of a few goes, interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.networks import winograd

LAYERS = (  # channels in, channels out, pixels a side
    (64, 64, 64),
    (128, 64, 64),
    (192, 64, 64),
    (128, 128, 32),
    (256, 128, 32),
    (320, 128, 32),
    (192, 192, 16),
    (448, 192, 16),
    (256, 256, 8),
    (512, 256, 8),
)


def oneDNN(x: Tensor, weight: Tensor, grad: Tensor, of: str) -> Tensor:
    """The gradient of the input or of the weight."""
    mask = [of == "input", of == "weight", False]
    where = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *where, mask)[mask.index(True)]


def nine_products(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a 3x3 weight ``(out, in, 3, 3)``, from channels-last tensors."""
    row = x.shape[3] + 2
    seen = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)
    wide = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).flatten(0, 2)  # 0 where a row would run into the next
    wide = wide[: len(wide) - 2 * row - 2]
    out = x.new_empty(3, 3, x.shape[1], grad.shape[1])
    for i in range(3):
        for j in range(3):
            start = i * row + j
            torch.mm(seen[start : start + len(wide)].t(), wide, out=out[i, j])
    return out.permute(3, 2, 0, 1)


def ways(c_in: int, c_out: int, side: int, clips: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed of one layer."""
    plain = [
        torch.randn(clips, c_in, side, side),
        torch.randn(c_out, c_in, 3, 3),
        torch.randn(clips, c_out, side, side),
    ]
    x, weight, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in plain)
    expected = oneDNN(x, weight, grad, "weight")
    for other in (winograd.weight_gradient(x, grad), nine_products(x, grad)):
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    return {
        "convolution": lambda: F.conv2d(x, weight, padding=1),
        "input": lambda: oneDNN(x, weight, grad, "input"),
        "weight": lambda: oneDNN(x, weight, grad, "weight"),
        "weight, contiguous": lambda: oneDNN(*plain, "weight"),
        "weight, Winograd": lambda: winograd.weight_gradient(x, grad),
        "weight, nine products": lambda: nine_products(x, grad),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--goes", type=int, default=5)
    options = parser.parse_args()
    totals: dict[str, float] = {}
    for layer in LAYERS:
        calls = ways(*layer, options.clips)
        least = dict.fromkeys(calls, float("inf"))
        for _ in range(options.goes + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                least[name] = min(least[name], time.perf_counter() - began)
        totals = {name: totals.get(name, 0) + seconds for name, seconds in least.items()}
        print(f"{layer[0]} to {layer[1]} channels, {layer[2]}x{layer[2]}:", _row(least), flush=True)
    print("all:", _row(totals))


def _row(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1000 * value:.1f}" for name, value in seconds.items())


if __name__ == "__main__":
    main()
