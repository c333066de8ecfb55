"""What recomputing activations saves and costs: peak memory and time of one forward and backward pass, on the CPU.

    python benchmarks/memory.py --recipes smmnist-concat smmnist-spatin --batch 2

Every measurement runs in its own process and reads Linux's peak resident set size. `estimated` is what
`mcvd train --dry-run` says for the same batch, plus the gradients, which exist at the end of the pass.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from mcvd.training.estimate import estimate
from mcvd.training.processes import Processes
from mcvd.training.recipe import read_recipe
from mcvd.training.trainer import Trainer


def status(name: str) -> int:
    """A size that Linux reports for this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(name: str, batch: int, checkpointing: bool, rounds: int) -> dict[str, float]:
    """For this process: peak memory above that of the weights, and the best time of some rounds."""
    recipe = replace(read_recipe(name), batch=batch, accumulate=1, checkpointing=checkpointing)
    network = recipe.model.network
    trainer = Trainer(recipe, Processes(0, 1, torch.device("cpu")), source=None)  # type: ignore[arg-type]
    video = torch.rand(batch, network.layout.frames, network.channels, *network.size) * 2 - 1
    draw = trainer.model.draw(batch, torch.Generator().manual_seed(0))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, best = status("VmRSS"), float("inf")
    for _ in range(rounds):
        trainer.model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        trainer.network(video, draw).mean().backward()
        best = min(best, time.perf_counter() - began)
    cost = estimate(recipe)
    return {
        "measured": status("VmHWM") - before,
        "estimated": cost.activation_bytes + 4 * cost.parameters,
        "seconds": best,
    }


def main() -> None:
    """Prints a line per recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="+", default=["smmnist-concat", "smmnist-spatin"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.batch, options.one[1] == "on", options.rounds)))
        return
    # every freed tensor goes back to the system, as it would go back to the pool on a GPU
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for name in options.recipes:
        got = []
        for mode in ("off", "on"):
            words = ["--one", name, mode, "--batch", str(options.batch), "--rounds", str(options.rounds)]
            done = subprocess.run(
                [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, check=True
            )
            got.append(json.loads(done.stdout))
        off, on = got
        print(
            f"{name} batch {options.batch}: peak {off['measured'] / 1e6:.0f} -> {on['measured'] / 1e6:.0f} MB "
            f"(estimated {off['estimated'] / 1e6:.0f} -> {on['estimated'] / 1e6:.0f}), "
            f"{on['measured'] / off['measured']:.2f} of it, in {on['seconds'] / off['seconds']:.2f} times the time"
        )


if __name__ == "__main__":
    main()
