"""3x3 and 1x1 convolutions, and the weights that make them fast on CPUs while nothing is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from mcvd.networks import winograd


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size of ``(B, C, H, W)``."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.packs = False  # see `packed_convolutions`
        self.packed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if (
            not self.packs
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        if self.packed is None:
            self.packed = self._by_winograd() if self._suits_winograd(x) else self._directly(x)
        return self.packed(x)

    def _suits_winograd(self, x: Tensor) -> bool:
        """Where a quarter of the multiplications pays for turning images and weights (docs/performance.md)."""
        count, _, height, width = x.shape
        whole = self.kernel_size == (3, 3) and height % winograd.TILE == width % winograd.TILE == 0
        return whole and min(self.in_channels, self.out_channels) >= 96 and count * height * width >= 512

    def _by_winograd(self) -> Callable[[Tensor], Tensor]:
        return partial(winograd.convolve, turned=winograd.turn_weight(self.weight.detach()), bias=self.bias)

    def _directly(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        # the best layout depends on the size of the images: made for another, it would be turned again in every call
        size = [1, *x.shape[1:]]
        where = self.padding, self.stride, self.dilation, self.groups
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            self.weight.detach().to_mkldnn(),
            *where,  # type: ignore[arg-type]
            size,
        )
        return lambda x: torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *where, "none", [], "")


@contextlib.contextmanager
def packed_convolutions(network: nn.Module) -> Iterator[None]:
    """Within it, and without gradients, convolutions on CPUs keep their weights as they are fastest.

    Plain weights are turned into oneDNN's layout in every call, which takes as long as the arithmetic where images are
    small and few. 3x3 convolutions of many channels go through :mod:`mcvd.networks.winograd`: their weights take four
    times as much memory. The results are the same to rounding. The copies are made by the first call, for images of its
    size, and dropped at the end: weights must not change meanwhile. Elsewhere (GPUs, other than float32, autocast,
    PyTorch without oneDNN) nothing is kept, and this does nothing.
    """
    convolutions = [part for part in network.modules() if isinstance(part, Conv2d) and not part.packs and _can(part)]
    for part in convolutions:
        part.packs = True
    try:
        yield
    finally:
        for part in convolutions:
            part.packs, part.packed = False, None


def _can(part: nn.Conv2d) -> bool:
    weight = part.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
