"""Calibration of several sampled futures against the ground truth: per-pixel CRPS, and spread over skill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.evaluation.table import Table
from mcvd.given import unit_range


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each element, fair for S samples (Ferro 2014); lower is better.

    samples ``(S, ...)``, S >= 2, truth ``(...)`` -> ``(...)``: E|x - truth| - E|x - x'| / 2 over distinct samples. In
    units of the data; for identical samples it is the absolute error.
    """
    count = _count(samples, truth)
    weights = 2 * torch.arange(1, count + 1, device=samples.device, dtype=samples.dtype) - count - 1
    spread = torch.tensordot(weights, samples.sort(0).values, 1) / (count * (count - 1))  # half of E|x - x'|
    return (samples - truth).abs().mean(0) - spread


def calibration(samples: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Columns for a `Table`, one row per clip, one number per frame, averaged over pixels: ``crps``, ``variance`` of
    the samples (unbiased) and ``error``, the squared error of their mean.

    samples ``(B, S, T, C, H, W)``, truth ``(B, T, C, H, W)``, uint8 or in [0, 1] -> each ``(B, T)``, float64.
    """
    samples, truth = unit_range(samples).double().transpose(0, 1), unit_range(truth).double()
    _count(samples, truth)
    columns = {
        "crps": crps(samples, truth),
        "variance": samples.var(0, unbiased=True),
        "error": (samples.mean(0) - truth).square(),
    }
    return {name: value.flatten(2).mean(2) for name, value in columns.items()}


def spread_skill(table: Table, samples: int) -> Tensor:
    """Spread over skill of each frame, ``(T,)``: 1 is calibrated, below 1 means too little variety.

    sqrt((1 + 1/S) mean variance / mean squared error of the mean of S samples) over all clips of a table that holds
    the columns of `calibration`, at sample 0 of each clip (Fortin et al. 2014).
    """
    variance, error = (table.rows(name, sample=0).mean(0) for name in ("variance", "error"))
    return math.sqrt(1 + 1 / samples) * (variance / error).sqrt()


def _count(samples: Tensor, truth: Tensor) -> int:
    if samples.shape[1:] != truth.shape or len(samples) < 2:
        raise McvdError(
            f"calibration takes 2 or more samples per clip: shapes {tuple(samples.shape)} and {tuple(truth.shape)}"
        )
    return len(samples)
