"""3x3 convolutions, and the gradients of their weights, in a quarter of the multiplications: Winograd's F(4x4, 3x3).

For images of many channels on CPUs, where arithmetic limits the speed of a convolution (Lavin and Gray 2016, arXiv
1509.09308). 4x4 outputs come from a 6x6 patch of input: constant matrices transform both, and in between each of 36
positions is a plain matrix product over channels. In float32 the sums differ from a direct convolution's by 1e-5, at
most 1e-4 of their size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4
PARTS = 36
"""Positions of a patch, each with its matrix product."""
CACHE = 2**22
"""Bytes of transformed images to process at a time, so that they stay in the processor's caches."""
_MATRICES = {
    "input": torch.tensor(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        dtype=torch.float64,
        device="cpu",
    ),
    "weight": torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
        device="cpu",
    )
    / 24,
    "output": torch.tensor(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        dtype=torch.float64,
        device="cpu",
    ),
}


@functools.cache
def _both_ways(what: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One of the matrices, for rows and columns at once; cached, because a network call needs them a hundred times."""
    with torch.inference_mode(False):  # the first caller may be in inference mode, the next may want gradients
        return torch.kron(_MATRICES[what], _MATRICES[what]).to(device, dtype)


def turn_weight(weight: Tensor) -> Tensor:
    """Transforms weights ``(out, in, 3, 3)`` -> ``(36, in, out)``."""
    out, into = weight.shape[:2]
    matrix = _both_ways("weight", weight.dtype, weight.device)
    return (matrix @ weight.permute(2, 3, 1, 0).reshape(9, into * out)).view(PARTS, into, out)


def turn_input(images: Tensor, lines: slice = slice(None)) -> Tensor:
    """Transforms images ``(..., H, W, C)``, H and W multiples of 4 -> ``(36, ..., H / 4, W / 4, C)``; zero padding 1.

    lines: which lines of pixels, from one multiple of 4 to another; their padding is the neighbouring lines, not 0.
    """
    start, stop, _ = lines.indices(images.shape[-3])
    above, below = int(start > 0), int(stop < images.shape[-3])
    padded = F.pad(images[..., start - above : stop + below, :, :], (0, 0, 1, 1, 1 - above, 1 - below))
    patches = padded.unfold(-3, TILE + 2, TILE).unfold(-3, TILE + 2, TILE)
    patches = patches.movedim((-2, -1), (0, 1)).flatten(0, 1)  # (36, ..., H / 4, W / 4, C)
    return (_both_ways("input", images.dtype, images.device) @ patches.flatten(1)).view(patches.shape)


def turn_output(products: Tensor) -> Tensor:
    """Transforms products ``(36, N, H / 4, W / 4, out)`` -> ``(N, H, W, out)``."""
    _, count, rows, columns, channels = products.shape
    return _output_tiles(products).reshape(count, rows * TILE, columns * TILE, channels)


def convolve(images: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution that keeps the size, ``(N, C, H, W)`` -> ``(N, out, H, W)`` (channels last in memory).

    turned: weights from `turn_weight`; H and W are multiples of 4.
    """
    count, _, height, width = images.shape
    rows, columns, channels = height // TILE, width // TILE, turned.shape[2]
    images = images.permute(0, 2, 3, 1)
    out = images.new_empty(count, height, width, channels)
    bias = images.new_zeros(()) if bias is None else bias
    most = CACHE // (PARTS * columns * max(turned.shape[1:]) * images.element_size())
    for which, lines in _pieces(count, rows, most):
        part = turn_input(images[which], lines)
        products = torch.bmm(part.flatten(1, 3), turned).unflatten(1, part.shape[1:4])
        made = out[which, lines].unflatten(1, (-1, TILE)).unflatten(3, (columns, TILE))
        torch.add(_output_tiles(products), bias, out=made)
    return out.permute(0, 3, 1, 2)


def weight_gradient(images: Tensor, grad: Tensor) -> Tensor:
    """The gradient ``(out, in, 3, 3)`` of the weight of `convolve`, from ``(N, in, H, W)`` and ``(N, out, H, W)``.

    Every step of `convolve` backwards: the transposed output matrix transforms the gradient of the outputs, 36 products
    with the transformed images sum over all tiles, and the transposed weight matrix turns the sums into 3x3 taps.
    """
    count, into, height, width = images.shape
    rows, columns, out = height // TILE, width // TILE, grad.shape[1]
    images, grad = images.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    output, weight = (_both_ways(what, images.dtype, images.device).t() for what in ("output", "weight"))
    total = images.new_empty(PARTS, into, out)
    # every piece reads and writes the whole sum: with pieces as small as in `convolve`, that would dominate
    row = PARTS * columns * max(into, out)
    pieces = _pieces(count, rows, max(CACHE // images.element_size(), 3 * total.numel()) // row)
    for i, (which, lines) in enumerate(pieces):
        seen = turn_input(images[which], lines).flatten(1, 3)
        tiles = grad[which, lines].unflatten(2, (columns, TILE)).unflatten(1, (-1, TILE)).movedim((2, 4), (0, 1))
        turned = (output @ tiles.reshape(TILE**2, -1)).view(PARTS, -1, out)
        total.baddbmm_(seen.transpose(1, 2), turned, beta=min(i, 1))  # 0 for the first, which writes without reading
    return (weight @ total.flatten(1)).view(3, 3, into, out).permute(3, 2, 0, 1)


def _pieces(count: int, rows: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Which images, and which of their lines, to process at a time: about `most` rows of tiles, at least one."""
    if most >= rows:
        images = most // rows
        for i in range(0, count, images):
            yield slice(i, min(i + images, count)), slice(0, rows * TILE)
        return
    band = math.ceil(rows / math.ceil(rows / max(most, 1)))
    for i in range(count):
        for row in range(0, rows, band):
            yield slice(i, i + 1), slice(row * TILE, min(row + band, rows) * TILE)


def _output_tiles(products: Tensor) -> Tensor:
    """``(36, N, H / 4, W / 4, out)`` -> ``(N, H / 4, 4, W / 4, 4, out)``, a view in another order."""
    tiles = (_both_ways("output", products.dtype, products.device) @ products.flatten(1)).view(
        TILE, TILE, *products.shape[1:]
    )
    return tiles.permute(2, 3, 0, 4, 1, 5)
