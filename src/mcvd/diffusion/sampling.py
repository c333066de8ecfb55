"""The one sampling loop: it runs any solver's table over any denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mcvd.diffusion.solvers import Table

Denoiser = Callable[[Tensor, int, float], Tensor]
"""(x_t, t, alpha_bar) -> x0_hat, shaped like x_t, not clipped."""


def sample(
    denoiser: Denoiser,
    table: Table,
    x: Tensor,
    noise: Callable[[], Tensor],
    *,
    clip: bool = True,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """From start noise x ~ N(0, I) to a clean video, by the rows of `table`.

    denoiser: see :data:`Denoiser`.
    noise: returns fresh N(0, I) noise shaped like x; called once for each row whose noise weight is not 0, in the order
        of the rows.
    clip: limit x0_hat to [-1, 1] before it is used (the published `clip_before`).
    on_step: called with (row number, state after the row); for progress and for trajectories.

    Returns the state after the last row, an estimate of x0 that is not clipped.
    """
    base = x
    x0s: list[Tensor] = []
    eps_s: list[Tensor] = []
    reads_eps = any(row.eps for row in table.rows)
    for i, row in enumerate(table.rows):
        base = x if row.anchor else base
        raw = denoiser(x, row.t, row.alpha_bar)
        x0 = raw.clamp(-1, 1) if clip else raw
        x0s.insert(0, x0)
        if reads_eps:
            used = x0 if table.clip_eps else raw
            eps_s.insert(0, (x - math.sqrt(row.alpha_bar) * used) / math.sqrt(1 - row.alpha_bar))
        del x0s[table.memory :], eps_s[table.memory :]

        x = row.base * base if row.base else torch.zeros_like(base)
        for weights, outputs in ((row.x0, x0s), (row.eps, eps_s)):
            for weight, output in zip(weights, outputs):
                if weight:
                    x = x.add(output, alpha=weight)
        if row.noise:
            x = x.add(noise(), alpha=row.noise)
        if on_step is not None:
            on_step(i, x)
    return x
