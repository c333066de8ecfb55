"""Paired differences between two systems on the same clips; their intervals are far narrower than the numbers'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result, Source
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.statistics import percentiles, resampled_fvd, resampled_means, videos_of
from mcvd.evaluation.table import Table
from mcvd.evaluation.wording import in_order
from mcvd.reports.curves import COLUMN
from mcvd.reports.match import differences

ENOUGH = 10  # videos; with fewer, the interval is too narrow to call anything significant


@dataclass(frozen=True)
class Paired:
    """How much larger a metric is for system `a` than for `b`, on average over the same clips."""

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    """Ends of the 95 % interval: percentiles over resamples of the videos, with all clips and samples of each."""
    clips: int
    videos: int
    """How many videos these are from, as far as known; else as many as clips."""

    @property
    def verdict(self) -> str:
        """`significant`: the interval excludes 0; `too few clips` (or `videos`) to tell; else `not significant`."""
        if self.videos < ENOUGH:
            return f"too few {'clips' if self.videos == self.clips else 'videos'}"
        return "significant" if self.low > 0 or self.high < 0 else "not significant"


@dataclass(frozen=True)
class Contestant:
    """A system with what its differences from all others need, computed once."""

    name: str
    evaluation: Evaluation
    sources: Sequence[Source] = ()
    """Where the clips come from, as far as known: the same of all systems that saw the same clips."""

    @property
    def result(self) -> Result:
        """Its numbers."""
        return self.evaluation.result

    @cached_property
    def clips(self) -> set[int]:
        """The clips that have rows; none if there are no rows."""
        return {clip for clip, _ in self.evaluation.table or ()}

    @cached_property
    def videos(self) -> list[int]:
        """Which video each clip is from."""
        return videos_of(sorted(self.clips), self.sources)

    @cached_property
    def per_clip(self) -> dict[str, Tensor]:
        """Every metric with one value per clip; see `per_clip`."""
        return per_clip(self._table, self.result.protocol)

    @cached_property
    def resampled_fvd(self) -> Tensor:
        """FVD (all samples pooled) in each resample of the videos, ``(resamples,)``."""
        return resampled_fvd(self._table.rows("real", sample=0), self._table.grid("features"), self.videos)

    @property
    def _table(self) -> Table:
        assert self.evaluation.table is not None
        return self.evaluation.table


def contestants(names: Sequence[str], evaluations: Sequence[Evaluation]) -> list[Contestant]:
    """Systems to be compared. Of those that saw the same clips, one may know best which videos these were cut from:
    `mcvd score` takes every file for a video."""
    known = [evaluation.result for evaluation in evaluations if evaluation.result.videos]
    out = []
    for name, evaluation in zip(names, evaluations):
        same = [result for result in known if result.data == evaluation.result.data]
        sources = min(same, key=lambda result: result.videos).sources if same else ()
        out.append(Contestant(name, evaluation, sources))
    return out


def paired_differences(a: Contestant, b: Contestant) -> tuple[list[Paired], list[str]]:
    """The differences a - b of PSNR, SSIM, LPIPS, CRPS and FVD that both have, and notes on why others are missing."""
    pair = f"{a.name} and {b.name}"
    if a.evaluation.table is None or b.evaluation.table is None:
        return [], [f"no paired difference of {pair}: rows.safetensors is not in both folders"]
    if a.result.data != b.result.data:
        return [], [f"no paired difference of {pair}: they did not see the same clips"]
    if differences(a.result, b.result):
        return [], [f"no paired difference of {pair}: they were measured differently"]
    if a.clips != b.clips:
        return [], [f"no paired difference of {pair}: their rows are of different clips"]
    found, notes, videos = [], [], len(set(a.videos))
    for name in in_order(a.per_clip.keys() & b.per_clip.keys(), a.result.protocol):
        change = a.per_clip[name] - b.per_clip[name]
        if videos < 2 or not bool(change.isfinite().all()):
            notes.append(f"no paired difference of {pair} in {name}: only one video, or a clip reproduced exactly")
            continue
        low, high = percentiles(resampled_means(change, a.videos))
        found.append(Paired(a.name, b.name, name, float(change.mean()), low, high, len(change), videos))
    both = "fvd" in a.result.numbers and "fvd" in b.result.numbers
    if both and videos > 1 and {"real", "features"} <= a.evaluation.table.columns:
        difference = a.result.numbers["fvd"].value - b.result.numbers["fvd"].value
        if math.isfinite(difference):
            changes = a.resampled_fvd - b.resampled_fvd
            low, high = percentiles(changes + (difference - changes.mean()))  # centred on the difference
            found.append(Paired(a.name, b.name, "fvd", difference, low, high, len(a.clips), videos))
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
