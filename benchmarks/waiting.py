"""What threads that sleep while they wait cost, and threads that spin: python benchmarks/waiting.py

Times a network call of one SMMNIST clip in processes of their own, alone and in pairs on the same cores, by how their
threads wait between two operations: `spin` (OpenMP's default), `short spin` (10,000 turns) and `sleep`
(OMP_WAIT_POLICY=PASSIVE). For a machine that does nothing else; the best of three goes of each counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

POLICIES = {"spin": {}, "short spin": {"GOMP_SPINCOUNT": "10000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
TOGETHER = (("spin",), ("short spin",), ("sleep",), *[(name, name) for name in POLICIES], ("spin", "sleep"))
CALLS, ROUNDS = 10, 3


def time_calls() -> None:
    """In a process of its own: prints the median seconds of a call."""
    import torch

    from mcvd.model import VideoDiffusion
    from mcvd.networks.convolution import packed_convolutions
    from mcvd.training.recipe import read_recipe

    network = VideoDiffusion(read_recipe("smmnist-concat").model).eval().network
    past, future, x = (torch.randn(1, n, 1, 64, 64) for n in (5, 0, 5))
    seconds = []
    with torch.no_grad(), packed_convolutions(network):
        condition = network.encode(past, future)
        for _ in range(CALLS):
            began = time.perf_counter()
            network(x, torch.tensor([500]), condition)
            seconds.append(time.perf_counter() - began)
    print(sorted(seconds)[CALLS // 2])


def main() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for names in TOGETHER:
        rounds = []
        for _ in range(ROUNDS):
            running = [
                subprocess.Popen([sys.executable, __file__, "child"], env=bare | POLICIES[name], stdout=subprocess.PIPE)
                for name in names
            ]
            rounds.append([float(process.communicate()[0]) for process in running])
        best = [min(times) for times in zip(*rounds)]
        print(" beside ".join(f"{name} {seconds:.3f} s" for name, seconds in zip(names, best)), flush=True)


if __name__ == "__main__":
    time_calls() if sys.argv[1:] == ["child"] else main()
