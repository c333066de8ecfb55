"""3x3 and 1x1 convolutions that are fast on CPUs: packed weights in sampling, weight gradients in training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mcvd.networks import winograd

SAMPLING, LEARNING = 96, 64
"""Channels from which Winograd is faster: for a convolution with transformed weights, and for a weight's gradient."""


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size of ``(B, C, H, W)``."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.packs = False  # see `packed_convolutions`
        self.packed: Callable[[Tensor], Tensor] | None = None
        self.packed_for: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if torch.is_grad_enabled():
            learns = self.weight.requires_grad and _can(self) and self._suits_winograd(x, LEARNING)
            return _Convolution.apply(x, self.weight, self.bias) if learns else super().forward(x)
        if not self.packs:
            return super().forward(x)
        if self.packed is None or self.packed_for != x.shape:
            self.packed_for = x.shape
            self.packed = self._by_winograd() if self._suits_winograd(x, SAMPLING) else self._directly(x)
        return self.packed(x)

    def _suits_winograd(self, x: Tensor, channels: int) -> bool:
        """Whether fewer multiplications pay for transforming images and weights (docs/performance.md)."""
        count, _, height, width = x.shape
        whole = self.kernel_size == (3, 3) and height % winograd.TILE == width % winograd.TILE == 0
        return whole and min(self.in_channels, self.out_channels) >= channels and count * height * width >= 512

    def _by_winograd(self) -> Callable[[Tensor], Tensor]:
        return partial(winograd.convolve, turned=winograd.turn_weight(self.weight.detach()), bias=self.bias)

    def _directly(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        # the best layout depends on the size and number of images: weights packed for others are packed again in every
        # call, which takes up to twenty times as long as the convolution
        where = self.padding, self.stride, self.dilation, self.groups
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            self.weight.detach().to_mkldnn(),
            *where,  # type: ignore[arg-type]
            list(x.shape),
        )
        return lambda x: torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *where, "none", [], "")


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution with its weight gradient by Winograd; oneDNN's is its slowest operation on many processors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        where = (1, 1), (1, 1), (1, 1), False, (0, 0), 1  # stride, padding, dilation; not transposed; groups
        d_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *where, (of_x, False, False))[0]
        d_weight = winograd.weight_gradient(x, grad) if of_weight else None
        return d_x, d_weight, grad.sum((0, 2, 3)) if of_bias else None


@contextlib.contextmanager
def packed_convolutions(network: nn.Module) -> Iterator[None]:
    """Within it, and without gradients, convolutions on CPUs keep their weights packed in the fastest layout.

    Otherwise, oneDNN packs plain weights in every call, which takes as long as the arithmetic if images are small and
    few. 3x3 convolutions of many channels use :mod:`mcvd.networks.winograd`, whose weights take four times as much
    memory. The results are the same up to rounding. The copies are made by the first call, again by one with images of
    another shape or number, and dropped at the end: weights must not change meanwhile. Elsewhere (GPUs, types other
    than float32, autocast, PyTorch without oneDNN) this does nothing.
    """
    convolutions = [part for part in network.modules() if isinstance(part, Conv2d) and not part.packs and _can(part)]
    for part in convolutions:
        part.packs = True
    try:
        yield
    finally:
        for part in convolutions:
            part.packs, part.packed, part.packed_for = False, None, None


def _can(part: nn.Conv2d) -> bool:
    weight = part.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
