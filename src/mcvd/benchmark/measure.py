"""Times of several functions in interleaved rounds, so that drifts of the machine affect all alike.

Every round calls every function once, in alternating order; untimed rounds come first. Ratios are taken within a round
and summarised over the rounds by their median, with its interval.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mcvd.errors import McvdError


class Sample(NamedTuple):
    """The time of one call, in seconds."""

    wall: float
    processor: float
    """Processor time, summed over the threads of this process; on a GPU, the host's only."""


class Summary(NamedTuple):
    """The median of some values, and an interval for the true median (see `summarise`)."""

    median: float
    low: float
    high: float


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> Sample:
    """Times one call."""
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    function()
    synchronize(device)
    return Sample(time.perf_counter() - wall, time.process_time() - processor)


def run_child(arguments: Sequence[str], what: str, told: str = "") -> str:
    """Runs a Python process that imports this same package -> its output.

    arguments: of the interpreter. told: its input. Raises McvdError that says that `what` failed, and why.
    """
    home = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, *arguments],
        input=told,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise McvdError(f"{what} failed: {reason.removeprefix('mcvd.errors.McvdError: ')}")
    return done.stdout


class Laps:
    """A function that reports its steps: ``function(done)`` calls ``done()`` after every step."""

    def __init__(self, function: Callable[[Callable[[], None]], object], device: torch.device):
        self.function, self.device = function, device
        self.marks: list[Sample] = []

    def __call__(self) -> object:
        """Runs it -> what it returns."""
        self.marks = []
        return self.function(self._done)

    def _done(self) -> None:
        synchronize(self.device)
        self.marks.append(Sample(time.perf_counter(), time.process_time()))

    def lap(self) -> Sample:
        """The median time per step of the last run, without the first step."""
        pairs = list(zip(self.marks, self.marks[1:]))
        return Sample(*(statistics.median(b[i] - a[i] for a, b in pairs) for i in range(2)))


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    on_round: Callable[[], None] | None = None,
    untimed: int = 1,
) -> list[dict[str, Sample]]:
    """The time of every function in every round, by name; for :class:`Laps` also the time of a step, as NAME/lap.

    on_round: called after each round, and once after all untimed ones.
    untimed: rounds before those whose times are returned.
    """
    order = list(functions)
    out: list[dict[str, Sample]] = []
    for i in range(untimed + rounds):
        taken = {}
        for name in order if i % 2 else reversed(order):
            taken[name] = timed(functions[name], device)
            if isinstance(function := functions[name], Laps):
                taken[f"{name}/lap"] = function.lap()
        out.append(taken)
        if on_round is not None and i + 1 >= untimed:
            on_round()
    return out[untimed:]


def summarise(values: Sequence[float]) -> Summary:
    """Median and interval by order statistics: from 6 values on, it covers the true median with at least 95 %, for any
    distribution; for fewer values it is their range."""
    ordered = sorted(values)
    n, cut = len(ordered), 0  # values to leave out at each end
    while cut + 1 < n / 2 and 2 * sum(math.comb(n, j) for j in range(cut + 2)) / 2**n <= 0.05:
        cut += 1
    return Summary(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])
