"""3x3 and 1x1 convolutions, and their weights in oneDNN's own layout while nothing is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size of ``(B, C, H, W)``."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.packs = False  # see `packed_convolutions`
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.packs or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        if self.packed is None:
            self.packed = self._pack(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    def _pack(self, x: Tensor) -> Tensor:
        # the best layout depends on the size of the images: made for another, it would be turned again in every call
        size = [1, *x.shape[1:]]
        where = self.padding, self.stride, self.dilation, self.groups
        weight = self.weight.detach().to_mkldnn()
        return torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *where, size)  # type: ignore[call-arg,arg-type]


@contextlib.contextmanager
def packed_convolutions(network: nn.Module) -> Iterator[None]:
    """Within it, and without gradients, convolutions on CPUs keep their weights in oneDNN's layout.

    Plain weights are turned into that layout in every call, which takes as long as the arithmetic where images are
    small and few. The results are the same to rounding. The copies, as large as the weights, are made by the first call
    and dropped at the end: weights must not change meanwhile. Elsewhere (GPUs, other than float32, PyTorch without
    oneDNN) there is nothing to turn, and this does nothing.
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
