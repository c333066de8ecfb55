"""What two process settings gain on a CPU (`mcvd.cli.main` makes both): python benchmarks/settings.py

How threads wait between two operations: `spin` (OpenMP's default), `short spin` (10,000 turns) or `sleep`
(OMP_WAIT_POLICY=PASSIVE), alone and in pairs on the same cores. And what glibc does with freed buffers: return them to
the system (its default), which clears their pages again for the next operation, or keep them.

Times a network call of one SMMNIST clip, or loss and gradient of eight, in separate processes; the better of two
runs of each counts. Needs an otherwise idle machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

WAITING = {"spin": {}, "short spin": {"GOMP_SPINCOUNT": "10000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
TOGETHER = (("spin",), ("short spin",), ("sleep",), *[(name, name) for name in WAITING], ("spin", "sleep"))
CALLS, GOES = 10, 2


def call_to_time(work: str) -> Callable[[], object]:
    """The call to time: `network` or `training`."""
    import torch

    from mcvd.model import VideoDiffusion
    from mcvd.networks.convolution import packed_convolutions
    from mcvd.training.recipe import read_recipe

    model = VideoDiffusion(read_recipe("smmnist-concat").model)
    if work == "training":
        video = torch.rand(8, model.layout.frames, 1, 64, 64) * 2 - 1
        return lambda: model.loss(video).mean().backward()
    past, future, x = (torch.randn(1, n, 1, 64, 64) for n in (5, 0, 5))

    def network() -> object:
        with torch.no_grad():
            return model.network(x, torch.tensor([500]), condition)

    with torch.no_grad():
        condition = model.network.encode(past, future)
    packed_convolutions(model.network).__enter__()  # as long as the process lives
    return network


def child(work: str, memory: str) -> None:
    """Prints the median seconds of a call."""
    if memory == "kept":
        from mcvd.cli.main import _keep_memory

        _keep_memory()
    call, seconds = call_to_time(work), []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    print(sorted(seconds)[CALLS // 2])


def measure(waiting: tuple[str, ...], work: str = "network", memory: str = "handed back") -> list[float]:
    """Median seconds of a call in each of these processes, run together; the best of all runs."""
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    goes = []
    for _ in range(GOES):
        command = [sys.executable, __file__, work, memory]
        running = [subprocess.Popen(command, env=bare | WAITING[name], stdout=subprocess.PIPE) for name in waiting]
        goes.append([float(process.communicate()[0]) for process in running])
    return [min(seconds) for seconds in zip(*goes)]


def main() -> None:
    for names in TOGETHER:
        seconds = measure(names)
        print("network call: " + " beside ".join(f"{n} {s:.3f} s" for n, s in zip(names, seconds)), flush=True)
    for work in ("network", "training"):
        for memory in ("handed back", "kept"):
            print(f"{work}: freed memory {memory} {measure(('spin',), work, memory)[0]:.3f} s", flush=True)


if __name__ == "__main__":
    child(*sys.argv[1:]) if sys.argv[1:] else main()
