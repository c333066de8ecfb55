"""Runs the cases for this package and its peers, and puts all figures into one document (docs/performance.md)."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcvd import __version__
from mcvd.benchmark import ours
from mcvd.benchmark.calibrate import Ceiling, calibrate
from mcvd.benchmark.cases import CASES, Case, Setting, random_weights, setting_model, untimed
from mcvd.benchmark.figures import ceiling_runs, figures, peaks
from mcvd.benchmark.i3d import i3d_row
from mcvd.benchmark.measure import Sample, interleave, summarise
from mcvd.benchmark.memory import Request, peak_bytes
from mcvd.benchmark.peer import Callables, Implementation, load_peer
from mcvd.benchmark.startup import startup_rows
from mcvd.device import usable_device
from mcvd.errors import McvdError
from mcvd.model import ModelConfig

FORMAT = "mcvd-benchmark-1"
TOLERANCE = 1e-4  # of outputs of order 1 in float32
Progress = Callable[[int, int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    models: dict[str, ModelConfig]
    """By name in the table."""
    cases: tuple[str, ...] = ("network", "sampling", "training")
    """From `CASES`, `i3d` and `startup`."""
    batches: tuple[int, ...] = (1,)
    sizes: tuple[int, ...] = ()
    """Pixels per side; empty: each model's own."""
    samples: int = 1
    solver_steps: int = 100
    timed_steps: int = 5
    rounds: int = 5
    device: str = "cpu"
    precision: str = "fp32"
    engine: str = "torch"
    """From `mcvd.networks.engine.ENGINES`; `compile` also compiles the training step."""
    peers: tuple[Path, ...] = ()
    memory: bool = True
    quick_calibration: bool = False
    """For tests: the ceilings then mean nothing."""


def benchmark(options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """The whole document; progress: takes (rounds done, rounds in total)."""
    for name in options.cases:
        if name not in (*CASES, "i3d", "startup"):
            raise McvdError(f"no case {name}; cases: {', '.join((*CASES, 'i3d', 'startup'))}")
    if not (options.cases and options.models and options.batches):
        raise McvdError("nothing to measure: name at least one case, one recipe and one batch")
    for name, value in (("batch", min(options.batches)), ("samples", options.samples), ("rounds", options.rounds)):
        if value < 1:
            raise McvdError(f"{name} is {value}; it must be at least 1")
    device = torch.device(usable_device(options.device))
    settings = [(CASES[name], setting) for name in options.cases if name in CASES for setting in _settings(options)]
    extra = [name for name in options.cases if name not in CASES]
    more = {"i3d": len(options.batches), "startup": 1}  # rows
    ticks = _Ticks((len(settings) + sum(more[name] for name in extra)) * (options.rounds + 1), progress)

    peers = [load_peer(path) for path in options.peers]
    names = [ours.NAME, *(peer.name for peer in peers)]
    if len(set(names)) < len(names):
        raise McvdError(f"the peers' files must have different names: {', '.join(names[1:])}")
    implementations = [ours.implementation(options.precision, options.engine), *peers]
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    ceilings = calibrate(device, dtype, options.quick_calibration)

    rows = [_row(case, setting, implementations, ceilings, options, ticks) for case, setting in settings]
    if "i3d" in extra:
        rows += [i3d_row(batch, device, ceilings, options.rounds, ticks) for batch in options.batches]
    if "startup" in extra:
        rows += startup_rows(options.rounds, ticks)
    _add_growth(rows)
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "protocol": {
            "rounds": options.rounds,
            "precision": options.precision,
            "engine": options.engine,
            "weights": "random, seed 0, the same for all",
            "difference": "on GPUs without TF32 in convolutions; timed with it, as torch has it, for all",
            "interval": "of the median by order statistics: 95 % or more from 6 rounds on, else the range",
            "sampling": "if not whole: timed steps + (solver - timed steps) x median of the timed but the first",
            "ratio": "peer's time / this package's, within a round, wall time; processor_ratio: processor time",
            "least_ratio": "of the shortest times of all rounds",
            "mfu": "operations by definition / time / the better of matmul and convolution in the same round",
        },
        "ceilings": {
            name: {"rate": c.rate, "unit": "byte/s" if name == "bandwidth" else "FLOP/s", "what": c.what}
            for name, c in ceilings.items()
        },
        "implementations": {i.name: i.note for i in implementations},
        "rows": rows,
    }


class _Ticks:
    """Counts rounds."""

    def __init__(self, total: int, progress: Progress | None):
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _settings(options: Options) -> list[Setting]:
    return [
        Setting(
            name,
            setting_model(model, size),
            batch,
            options.samples,
            options.solver_steps,
            options.timed_steps,
        )
        for name, model in options.models.items()
        for size in options.sizes or (None,)
        for batch in options.batches
    ]


def _row(
    case: Case,
    setting: Setting,
    implementations: Sequence[Implementation],
    ceilings: dict[str, Ceiling],
    options: Options,
    ticks: Callable[[], None],
) -> Row:
    """One case in one setting, for every implementation that offers it."""
    device = torch.device(options.device)
    weights = random_weights(setting.model, device)
    checks: dict[str, Tensor] = {}
    functions: dict[str, Callable[[], object]] = {}
    for implementation in implementations:

        def build(config: ModelConfig, of: Implementation = implementation) -> Callables:
            return of.build(config, {name: weight.clone() for name, weight in weights.items()})

        offered = build(setting.model)
        if case.offer in offered:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                checks[implementation.name] = case.check(build, setting, device)
            for part, function in case.parts(offered[case.offer], setting, device).items():
                functions[f"{implementation.name}/{part}"] = function
    calls = {**ceiling_runs(ceilings), **functions}
    rounds = interleave(calls, options.rounds, device, ticks, untimed(case, device))
    row, best = _described(case, setting), peaks(ceilings, rounds)
    base: list[Sample] = []
    for implementation in implementations:
        if (name := implementation.name) not in checks:
            continue
        times = [_whole(case, setting, name, taken) for taken in rounds]
        base = base or times
        entry = figures(times, best, row["flops"], row["frames"])
        entry["least_seconds"] = _whole(case, setting, name, _least(rounds)).wall
        entry["memory_bytes"] = _memory(case, setting, implementation, options) if options.memory else None
        if name != ours.NAME:
            entry |= _beside(times, base, checks[name], checks[ours.NAME])
            entry["least_ratio"] = entry["least_seconds"] / row["implementations"][ours.NAME]["least_seconds"]
        row["implementations"][name] = entry
    _add_memory_ratios(row)
    return row


def _described(case: Case, setting: Setting) -> Row:
    """What was measured."""
    network = setting.model.network
    row: Row = {
        "case": case.name,
        "recipe": setting.recipe,
        "conditioning": network.conditioning,
        "size": list(network.size),
        "batch": setting.batch,
    }
    if case.name == "sampling":
        row |= {"samples": setting.samples, "solver": "ddpm", "solver_steps": setting.solver_steps}
        row |= {"timed_steps": setting.timed_steps}
    return row | {"flops": case.flops(setting), "frames": case.frames(setting), "implementations": {}}


def _whole(case: Case, setting: Setting, name: str, taken: dict[str, Sample]) -> Sample:
    """The total time in one round, from its parts."""
    parts = {key.partition("/")[2]: sample for key, sample in taken.items() if key.startswith(f"{name}/")}
    wall = case.seconds({part: sample.wall for part, sample in parts.items()}, setting)
    return Sample(wall, case.seconds({part: sample.processor for part, sample in parts.items()}, setting))


def _least(rounds: list[dict[str, Sample]]) -> dict[str, Sample]:
    """The shortest time of every part: on a shared machine, the closest to an undisturbed one."""
    return {key: Sample(*(min(taken[key][i] for taken in rounds) for i in range(2))) for key in rounds[0]}


def _beside(times: list[Sample], base: list[Sample], output: Tensor, truth: Tensor) -> Row:
    """Paired ratios and the difference of the outputs: a number, or words if there is none."""
    ratio = summarise([t.wall / b.wall for t, b in zip(times, base)])
    processor = summarise([t.processor / max(b.processor, 1e-9) for t, b in zip(times, base)])
    largest = float(truth.abs().max())
    unlike = difference = None
    if output.shape != truth.shape:  # they might broadcast
        unlike = f"shape {tuple(output.shape)}, not {tuple(truth.shape)}"
    elif not math.isfinite(difference := float((output.cpu() - truth.cpu()).abs().max())):
        unlike, difference = "not finite", None  # JSON has no NaN
    return {
        "ratio": ratio._asdict(),
        "processor_ratio": processor._asdict(),
        "difference": difference,
        "unlike": unlike,
        "largest_output": largest if math.isfinite(largest) else None,
        "equal": difference is not None and difference <= TOLERANCE,
    }


def _memory(case: Case, setting: Setting, implementation: Implementation, options: Options) -> int | None:
    peer = next((path for path in options.peers if path.stem == implementation.name), None)
    return peak_bytes(
        Request(
            case.name,
            setting,
            options.device,
            torch.get_num_threads(),
            options.precision,
            options.engine,
            None if peer is None else str(peer),
        )
    )


def _add_memory_ratios(row: Row) -> None:
    mine = row["implementations"][ours.NAME]["memory_bytes"]
    for name, entry in row["implementations"].items():
        if name != ours.NAME:
            theirs = entry["memory_bytes"]
            entry["memory_ratio"] = mine / theirs if mine is not None and theirs else None


def _add_growth(rows: list[Row]) -> None:
    """How the time per frame grows, relative to the first row of the same case and model."""
    first: dict[tuple[str, str], float] = {}
    for row in rows:
        if "frames" in row:
            cost = row["implementations"][ours.NAME]["seconds"]["median"] / row["frames"]
            row["frame_cost"] = cost / first.setdefault((row["case"], row.get("recipe", "")), cost)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the program."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        what = next(named, platform.processor() or platform.machine())
    return {
        "device": device.type,
        "name": what,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mcvd": __version__,
    }
