"""Paired differences between two systems on the same clips; their intervals are far narrower than the numbers'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result
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


@dataclass(frozen=True)
class Contestant:
    """A system with what its differences from all others need, computed once."""

    name: str
    evaluation: Evaluation

    @property
    def result(self) -> Result:
        """Its numbers."""
        return self.evaluation.result

    @cached_property
    def clips(self) -> set[int]:
        """The clips that have rows; none if there are no rows."""
        return {clip for clip, _ in self.evaluation.table or ()}

    @cached_property
    def per_clip(self) -> dict[str, Tensor]:
        """Every metric with one value per clip; see `per_clip`."""
        return per_clip(self._table, self.result.protocol)

    @cached_property
    def resampled_fvd(self) -> Tensor:
        """FVD (all samples pooled) in each resample of the clips, ``(resamples,)``."""
        real, made = self._table.rows("real", sample=0), self._table.grid("features")
        counts = resampled_counts(len(real), FVD_RESAMPLES)
        values = [resampled_frechet(real, made, row) for row in counts]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    @property
    def _table(self) -> Table:
        assert self.evaluation.table is not None
        return self.evaluation.table


def paired_differences(a: Contestant, b: Contestant) -> tuple[list[Paired], list[str]]:
    """The differences a - b of PSNR, SSIM, LPIPS, CRPS and FVD that both have, and notes on why others are missing."""
    pair = f"{a.name} and {b.name}"
    if a.evaluation.table is None or b.evaluation.table is None:
        return [], [f"no paired difference of {pair}: rows.safetensors is not in both folders"]
    if not a.result.data or a.result.data != b.result.data:
        return [], [f"no paired difference of {pair}: they did not see the same clips"]
    if differences(a.result, b.result):
        return [], [f"no paired difference of {pair}: they were measured differently"]
    if a.clips != b.clips:
        return [], [f"no paired difference of {pair}: their rows are of different clips"]
    found, notes = [], []
    for name in in_order(a.per_clip.keys() & b.per_clip.keys(), a.result.protocol):
        change = a.per_clip[name] - b.per_clip[name]
        if len(change) < 2 or not bool(change.isfinite().all()):
            notes.append(f"no paired difference of {pair} in {name}: only one clip, or a clip reproduced exactly")
            continue
        low, high = bootstrap(change)
        found.append(Paired(a.name, b.name, name, float(change.mean()), low, high, len(change)))
    if "fvd" in a.result.numbers and "fvd" in b.result.numbers and {"real", "features"} <= a.evaluation.table.columns:
        difference = a.result.numbers["fvd"].value - b.result.numbers["fvd"].value
        if math.isfinite(difference):
            changes = a.resampled_fvd - b.resampled_fvd
            low, high = _percentiles(changes + (difference - changes.mean()))  # centred on the difference
            found.append(Paired(a.name, b.name, "fvd", difference, low, high, len(a.clips)))
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
    low, high = values.quantile(values.new_tensor([0.025, 0.975])).tolist()
    return low, high
