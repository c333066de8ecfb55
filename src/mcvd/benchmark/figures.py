"""Turns measured times into printed figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcvd.benchmark.calibrate import Ceiling
from mcvd.benchmark.measure import Sample, summarise

ARITHMETIC = ("matmul", "convolution")
"""The ceilings that are measured again in every round: whatever slows the machine down slows them down, too."""


def ceiling_runs(ceilings: Mapping[str, Ceiling]) -> dict[str, Callable[[], object]]:
    """The ceilings to interleave with everything else, by name."""
    return {f"/{name}": ceilings[name].run for name in ARITHMETIC}


def peaks(ceilings: Mapping[str, Ceiling], rounds: Sequence[Mapping[str, Sample]]) -> list[float]:
    """The machine's operations per second in each round: the better of both ceilings."""
    return [max(ceilings[name].work / taken[f"/{name}"].wall for name in ARITHMETIC) for taken in rounds]


def figures(times: Sequence[Sample], best: Sequence[float], flops: int, frames: int) -> dict[str, Any]:
    """times, best: per round; flops, frames: of what was timed."""
    wall = summarise([t.wall for t in times])
    return {
        "seconds": wall._asdict(),
        "processor_seconds": summarise([t.processor for t in times])._asdict(),
        "frames_per_second": frames / wall.median,
        "mfu": summarise([flops / t.wall / peak for t, peak in zip(times, best)])._asdict(),
    }
