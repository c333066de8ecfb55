"""The memory that one implementation needs: a few runs in a separate process that does nothing else.

On CPUs, the peak resident memory (VmHWM of Linux) during the runs, minus the resident memory before anything was built
but after a tiny network had run, so that loaded code does not count; on GPUs, the peak amount allocated by torch.
Weights are included, and in training gradients, Adam's state and averaged weights.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mcvd.benchmark import ours
from mcvd.benchmark.cases import CASES, Case, Setting, random_weights, untimed
from mcvd.benchmark.measure import run_child
from mcvd.benchmark.peer import Build, load_peer
from mcvd.config import from_dict, to_dict

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Request:
    """What a child process is asked to measure."""

    case: str
    setting: Setting
    device: str
    threads: int
    precision: str = "fp32"
    engine: str = "torch"
    peer: str | None = None
    """FILE.py; None: this package."""


def peak_bytes(request: Request) -> int | None:
    """Asks a child process; None if resident memory cannot be read (no GPU, and not Linux)."""
    if not request.device.startswith("cuda") and not CLEAR.exists():
        return None
    what = f"measuring the memory of {request.peer or ours.NAME} ({request.case})"
    return int(run_child(["-m", __name__], what, json.dumps(to_dict(request))).splitlines()[-1])


def measure(request: Request) -> int:
    """Measures, in the child process."""
    torch.set_num_threads(request.threads)
    device, case = torch.device(request.device), CASES[request.case]
    if request.peer:
        implementation = load_peer(Path(request.peer))
    else:
        implementation = ours.implementation(request.precision, request.engine)
    _run(implementation.build, case, _tiny(request.setting), device)  # loads all code that will be needed
    _forget_peak(device)
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    _run(implementation.build, case, request.setting, device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") - before


def _run(build: Build, case: Case, setting: Setting, device: torch.device) -> None:
    weights = random_weights(setting.model, device)
    parts = case.parts(build(setting.model, weights)[case.offer], setting, device)
    del weights
    _forget_peak(device)
    for _ in range(untimed(case, device) + 1):  # from the second on, training has the optimizer's state
        for run in parts.values():
            run()


def _tiny(setting: Setting) -> Setting:
    network = setting.model.network
    side = 4 * 2 ** (len(network.multipliers) - 1)
    network = replace(network, size=(side, side), width=8, blocks=1, attention=(), head_channels=-1)
    return replace(setting, model=replace(setting.model, network=network), batch=1, samples=1)


def _forget_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if hasattr(trim := ctypes.CDLL(None), "malloc_trim"):  # freed memory is not in use: give it back
        trim.malloc_trim(0)
    CLEAR.write_text("5")  # see proc(5): resets VmHWM to what is resident now


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(measure(from_dict(Request, json.load(sys.stdin), "request")))
