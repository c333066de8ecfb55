"""Paired differences between two systems on the same clips; their intervals are far narrower than the numbers'."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.statistics import FVD_RESAMPLES, resampled_counts, resampled_frechet
from mcvd.evaluation.table import Table
from mcvd.evaluation.wording import in_order
from mcvd.reports.curves import COLUMN
from mcvd.reports.match import differences

ENOUGH = 10  # clips; with fewer, the interval is too narrow to call anything significant


@dataclass(frozen=True)
class Paired:
    """How much larger a metric is for system `a` than for `b`, on average over the same clips."""

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    """Ends of the 95 % interval: percentiles over resamples of the clips, with all samples of each."""
    clips: int

    @property
    def verdict(self) -> str:
        """`significant`: the interval excludes 0; `too few clips` to tell; else `not significant`."""
        if self.clips < ENOUGH:
            return "too few clips"
        return "significant" if self.low > 0 or self.high < 0 else "not significant"


def paired_differences(a: Evaluation, b: Evaluation, a_name: str, b_name: str) -> tuple[list[Paired], list[str]]:
    """The differences a - b of PSNR, SSIM, LPIPS, CRPS and FVD that both have, and notes on why others are missing."""
    pair = f"{a_name} and {b_name}"
    if a.table is None or b.table is None:
        return [], [f"no paired difference of {pair}: rows.safetensors is not in both folders"]
    if not a.result.data or a.result.data != b.result.data:
        return [], [f"no paired difference of {pair}: they did not see the same clips"]
    if differences(a.result, b.result):
        return [], [f"no paired difference of {pair}: they were measured differently"]
    if {clip for clip, _ in a.table} != {clip for clip, _ in b.table}:
        return [], [f"no paired difference of {pair}: their rows are of different clips"]
    found, notes = [], []
    ours, theirs = per_clip(a.table, a.result.protocol), per_clip(b.table, b.result.protocol)
    for name in in_order(ours.keys() & theirs.keys(), a.result.protocol):
        change = ours[name] - theirs[name]
        if len(change) < 2 or not bool(change.isfinite().all()):
            notes.append(f"no paired difference of {pair} in {name}: only one clip, or a clip reproduced exactly")
            continue
        low, high = bootstrap(change)
        found.append(Paired(a_name, b_name, name, float(change.mean()), low, high, len(change)))
    if "fvd" in a.result.numbers and "fvd" in b.result.numbers and {"real", "features"} <= a.table.columns:
        difference = a.result.numbers["fvd"].value - b.result.numbers["fvd"].value
        if math.isfinite(difference):
            low, high, clips = _frechet_interval(a.table, b.table, difference)
            found.append(Paired(a_name, b_name, "fvd", difference, low, high, clips))
        else:
            notes.append(f"no paired difference of {pair} in fvd: one of the two values is not finite")
    return found, notes


def per_clip(table: Table, protocol: Protocol) -> dict[str, Tensor]:
    """Every metric with one value per clip: PSNR, SSIM and LPIPS of its best sample or the mean over its samples, as
    the protocol says, and CRPS. By name, ``(clips,)`` float64."""
    values = {}
    for name, column in COLUMN.items():
        if column in table.columns:
            values[name] = table.per_clip(name, protocol.best)
    if "crps" in table.columns:
        values["crps"] = table.rows("crps", sample=0).double().flatten(1).mean(1)
    return values


def bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of values ``(clips,)``: percentiles of the means of resampled clips (Efron 1979)."""
    return _percentiles(resampled_counts(len(values)) @ values.double() / len(values))


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def _frechet_interval(a: Table, b: Table, difference: float) -> tuple[float, float, int]:
    """Interval of a difference of FVDs (all samples pooled), centred on it; number of clips."""
    real, ours, theirs = a.rows("real", sample=0), a.grid("features"), b.grid("features")
    changes = [
        resampled_frechet(real, ours, counts) - resampled_frechet(real, theirs, counts)
        for counts in resampled_counts(len(real), FVD_RESAMPLES)
    ]
    resampled = torch.tensor(changes, dtype=torch.float64)
    low, high = _percentiles(resampled + (difference - resampled.mean()))
    return low, high, len(real)
