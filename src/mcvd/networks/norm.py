"""silu(GroupNorm(x), modulated): the step before every convolution, with little memory traffic and little memory.

The formula is `_plain`. Without gradients, most of it runs in place. With gradients, the three maps between x and the
result are not kept but recomputed in the backward pass, which costs no more than reading them would.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def norm_silu(
    x: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    maps: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """silu((n * gain + bias) * scale + shift) with n the group norm of x ``(B, C, ...)``.

    scale, shift: ``(B, C)``, or ``(1, C)`` for all rows; None leaves them out.
    maps: gain, bias ``(B or 1, C, ...)`` of SPATIN, for every pixel; None leaves them out.
    """
    gain, bias = (None, None) if maps is None else maps
    if torch.compiler.is_dynamo_compiling():
        return _by_channels(x, groups, eps, scale, shift, gain, bias)
    if not torch.is_grad_enabled():
        return _plain(x, groups, eps, scale, shift, gain, bias)
    return _NormSilu.apply(x, groups, eps, scale, shift, gain, bias)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``(B, C)`` -> ``(B, C, 1, 1[, 1])``, so that it broadcasts over the pixels (and frames) of `like`."""
    return values.reshape(*values.shape, *[1] * (like.dim() - 2))


def _plain(
    x: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    if scale is not None and shift is not None and len(scale) == 1:  # the same for all rows
        if gain is None or bias is None:  # the norm's own scale and shift
            return _silu(F.group_norm(x, groups, scale[0], shift[0], eps))
        if len(gain) == 1 < len(x):  # modulates one map instead of those of all rows
            by = per_channel(scale, x)
            gain, bias, scale, shift = gain * by, torch.addcmul(per_channel(shift, x), bias, by), None, None
    y = F.group_norm(x, groups, eps=eps)
    return _silu(_modulated(y, scale, shift, gain, bias, in_place=not torch.is_grad_enabled())[0])


def _by_channels(
    x: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """`_plain` for a compiler: sums over pixels, channel by channel, so that neighbours in memory are summed side by
    side (a group alone would read a few bytes of every row); then one factor and one offset per channel."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pixels = tuple(range(2, x.dim()))

    def group_mean(values: Tensor) -> Tensor:  # (B, C), the same for all channels of a group
        of_groups = values.unflatten(1, (groups, -1))
        return of_groups.mean(2, keepdim=True).expand_as(of_groups).flatten(1)

    mean, square = group_mean(wide.mean(pixels)), group_mean(wide.square().mean(pixels))
    factor = ((square - mean.square()).clamp(min=0) + eps).rsqrt()
    offset = -mean * factor
    if gain is not None and bias is not None:
        n = wide * per_channel(factor, x) + per_channel(offset, x)
        y, _ = _modulated(n, scale, shift, gain, bias)
        return F.silu(y).to(x.dtype)
    if scale is not None and shift is not None:
        factor, offset = factor * scale, offset * scale + shift
    return F.silu(wide * per_channel(factor, x) + per_channel(offset, x)).to(x.dtype)


def _silu(y: Tensor) -> Tensor:
    return F.silu(y, inplace=not torch.is_grad_enabled())


class _NormSilu(torch.autograd.Function):
    """`_plain` that keeps only x and what modulates it for the backward pass. Computes in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        eps: float,
        scale: Tensor | None,
        shift: Tensor | None,
        gain: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        dense = _dense(x)
        sizes = (x.shape[0], x.shape[1], math.prod(x.shape[2:]))
        y, mean, rstd = torch.native_group_norm(dense, None, None, *sizes, groups, eps)
        ctx.save_for_backward(x, mean, rstd, scale, shift, gain, bias)
        y, _ = _modulated(y, scale, shift, gain, bias, in_place=True)
        return F.silu(y, inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scale, shift, gain, bias = ctx.saved_tensors
        dense = _dense(x)
        each = x.shape[1] // mean.shape[1]  # channels of a group
        spread = rstd.repeat_interleave(each, dim=1)
        offset = -(mean * rstd).repeat_interleave(each, dim=1)
        n = torch.addcmul(per_channel(offset, x), dense, per_channel(spread, x))  # the normalised x
        y, mapped = _modulated(n, scale, shift, gain, bias)
        g = torch.ops.aten.silu_backward(grad.to(dense.dtype), y)
        del y

        d_scale = d_shift = d_gain = d_bias = None
        pixels = tuple(range(2, x.dim()))
        total, moment = g.sum(pixels), (g * mapped).sum(pixels)  # (B, C)
        if scale is not None and shift is not None:
            d_scale = moment.sum_to_size(scale.shape).to(scale.dtype)
            d_shift = total.sum_to_size(shift.shape).to(shift.dtype)
            total, moment = total * scale, moment * scale
            g = g * per_channel(scale, x).to(g.dtype) if gain is not None else g
        if gain is not None and bias is not None:
            d_bias = g.sum_to_size(bias.shape).to(bias.dtype)
            d_gain = (g * n).sum_to_size(gain.shape).to(gain.dtype)
            g = g * gain
            total, moment = g.sum(pixels), (g * n).sum(pixels)

        # the group norm: g minus its mean and its component along n, per group
        def group_mean(sums: Tensor) -> Tensor:
            count = each * math.prod(x.shape[2:])
            return (sums.unflatten(1, (-1, each)).sum(2) / count).repeat_interleave(each, dim=1) * spread

        outer = spread if gain is not None or scale is None else spread * scale
        d_x = torch.addcmul(per_channel(-group_mean(total), x), n, per_channel(-group_mean(moment), x))
        d_x.addcmul_(g, per_channel(outer, x))
        return d_x.to(x.dtype), None, None, d_scale, d_shift, d_gain, d_bias


def _dense(x: Tensor) -> Tensor:
    """x in float32 at least, laid out as `native_group_norm` requires: contiguous or, on CPUs, channels last."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if wide.device.type == "cpu" and x.dim() == 4 and wide.is_contiguous(memory_format=torch.channels_last):
        _, c, h, w = wide.shape
        return wide.as_strided(wide.shape, (c * h * w, 1, c * w, c))  # a batch of 1 may have any first stride
    return wide.contiguous()


def _modulated(
    n: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """((n * gain + bias) * scale + shift, n * gain + bias)."""
    out = n if in_place else None
    mapped = n if gain is None or bias is None else torch.addcmul(bias, n, gain, out=out)
    if scale is None or shift is None:
        return mapped, mapped
    return torch.addcmul(per_channel(shift, n), mapped, per_channel(scale, n), out=out), mapped
