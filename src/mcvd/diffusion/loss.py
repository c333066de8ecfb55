"""The training objective: E || target - network(x_t, t | condition) ||^2 (DDPM eq. 14, MCVD eq. 3)."""

from __future__ import annotations

from torch import Tensor

MIN_SNR = 5.0  # the paper's gamma


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """``(B, ...)`` -> ``(B,)``: half the squared error, summed over all frames, colours and pixels as published.

    (The sum, not the mean, is what the published gradient clipping of 1.0 was tuned with.)
    """
    return 0.5 * (output - target).square().flatten(1).sum(dim=1)


def min_snr_weight(alpha_bar: Tensor, prediction: str) -> Tensor:
    """Weight of the squared error at each noise level (Min-SNR-gamma, arXiv 2303.09556), ``(B,)`` -> ``(B,)``.

    In terms of x0 the weight is min(SNR, 5) with SNR = alpha_bar / (1 - alpha_bar); an error in eps counts 1 / SNR of
    that, one in v 1 / (SNR + 1).
    """
    snr = alpha_bar / (1 - alpha_bar)
    weight = snr.clamp(max=MIN_SNR)
    if prediction == "eps":
        return weight / snr
    return weight / (snr + 1) if prediction == "v" else weight
