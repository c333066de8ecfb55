"""The training objective: E || target - network(x_t, t | condition) ||^2 (DDPM eq. 14, MCVD eq. 3)."""

from __future__ import annotations

from torch import Tensor


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """``(B, ...)`` -> ``(B,)``: half the squared error, summed over all frames, colours and pixels as published.

    (The sum, not the mean, is what the published gradient clipping of 1.0 was tuned with.)
    """
    return 0.5 * (output - target).square().flatten(1).sum(dim=1)
