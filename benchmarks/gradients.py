"""What 3x3 convolutions and dropout cost in a training step on a CPU, in several ways: python benchmarks/gradients.py

For each kind of layer of the paper's network, at 8 clips: the convolution itself and the gradient of its input, by
oneDNN and by Winograd with weights transformed every time; the gradient of its weight by oneDNN from channels-last and
from contiguous tensors, by Winograd, which training uses, and as nine matrix products over the rows of padded pixels,
each shifted by one tap (no copy except the padding). Then dropout, forward and backward, as in PyTorch and as in
training. Milliseconds, the least of a few interleaved tries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.measure import interleave
from mcvd.networks import winograd
from mcvd.networks.dropout import dropout

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


def turned_round(weight: Tensor) -> Tensor:
    """The weight of the convolution that computes the gradient of the input."""
    return weight.flip(2, 3).transpose(0, 1)


def dropouts(clips: int) -> dict[str, Callable[[], object]]:
    """Dropout of the widest images, forward and backward."""
    x = torch.randn(clips, 64, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(x)
    return {
        "PyTorch's": lambda: torch.autograd.grad(F.dropout(x, 0.1), x, grad),
        "its native_dropout": lambda: torch.autograd.grad(torch.native_dropout(x, 0.1, True)[0], x, grad),
        "four elements a draw": lambda: torch.autograd.grad(dropout(x, 0.1), x, grad),
    }


def least_seconds(calls: Mapping[str, Callable[[], object]], goes: int) -> dict[str, float]:
    """The shortest time of each call."""
    taken = interleave(calls, goes, torch.device("cpu"))
    return {name: min(times[name].wall for times in taken) for name in calls}


def ways(c_in: int, c_out: int, side: int, clips: int) -> dict[str, Callable[[], Tensor]]:
    """The variants timed for one layer."""
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
        "convolution, Winograd": lambda: winograd.convolve(x, winograd.turn_weight(weight), None),
        "input": lambda: oneDNN(x, weight, grad, "input"),
        "input, Winograd": lambda: winograd.convolve(grad, winograd.turn_weight(turned_round(weight)), None),
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
        least = least_seconds(ways(*layer, options.clips), options.goes)
        totals = {name: totals.get(name, 0) + seconds for name, seconds in least.items()}
        print(f"{layer[0]} to {layer[1]} channels, {layer[2]}x{layer[2]}:", _row(least), flush=True)
    print("all:", _row(totals))
    print("dropout, 64 channels, 64x64:", _row(least_seconds(dropouts(options.clips), options.goes)))


def _row(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1000 * value:.1f}" for name, value in seconds.items())


if __name__ == "__main__":
    main()
