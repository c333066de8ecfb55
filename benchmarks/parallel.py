"""Whether sharding, recomputation and compilation match plain training, and what each costs, on this machine.

    torchrun --nproc-per-node 2 benchmarks/parallel.py --steps 2                      # a tiny network, on CPUs too
    torchrun --nproc-per-node 8 benchmarks/parallel.py --recipe ucf101-spatin --steps 10

Trains a few steps in every combination on random clips, all from the same weights; prints the loss and the norm of the
gradient of each step (they should agree to about 5e-6 in fp32), the seconds of the last step, the largest GPU memory
of a process, and how many of all graphs torch.compile compiled.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch._dynamo
from torch import Tensor, nn

from mcvd.layout import BlockLayout
from mcvd.model import ModelConfig
from mcvd.networks.config import UNetConfig
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe, read_recipe
from mcvd.training.trainer import Trainer

TINY = UNetConfig(
    size=(16, 16), layout=BlockLayout(2, 3, 1), width=8, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=8
)


class Noise:
    """Clips of random pixels, by position."""

    def __init__(self, network: UNetConfig) -> None:
        self.shape = (network.layout.frames, network.channels, *network.size)

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips at these positions, uint8."""
        each = [torch.Generator().manual_seed(int(i)) for i in indices]
        return torch.stack([torch.randint(256, self.shape, generator=g, dtype=torch.uint8) for g in each])


def measure(recipe: Recipe, processes: Processes) -> str:
    """A line about a few steps of this recipe."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cuda = processes.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(recipe, processes, Noise(recipe.model.network))
    seen, seconds = [], 0.0
    for _ in range(recipe.steps):
        began = time.perf_counter()
        loss, norm = trainer.train_step()
        seen.append(f"{processes.mean(loss):.6g}/{float(norm):.6g}")  # waits for the device
        seconds = time.perf_counter() - began
    frames = torch._dynamo.utils.counters["frames"]
    memory = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if cuda else ""
    compiled = f", {frames['ok']} of {frames['total']} graphs" if recipe.compile else ""
    return f"{' '.join(seen)}  {seconds:.2f} s{memory}{compiled}"


def main() -> None:
    """Prints a line per combination."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", help="bundled name or YAML file (default: a tiny network)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile; inductor is what training uses")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe) if options.recipe else Recipe(model=ModelConfig(TINY))
    recipe = replace(recipe, steps=options.steps, batch=options.batch, precision=options.precision)
    recipe = replace(recipe, optimizer=OptimizerConfig(lr=1e-4, warmup=0))
    network = replace(recipe.model.network, dropout=0.0)  # each process draws its own dropout
    recipe = replace(recipe, model=replace(recipe.model, network=network))
    real = nn.Module.compile
    nn.Module.compile = lambda self, **how: real(self, backend=options.backend, **how)  # type: ignore
    with Processes.join(None) as processes:
        for sharding, checkpointing, compiled in itertools.product(("none", "full"), (False, True), (False, True)):
            line = measure(replace(recipe, sharding=sharding, checkpointing=checkpointing, compile=compiled), processes)
            if processes.first:
                words = f"sharding {sharding:4}  checkpointing {checkpointing!s:5}  compile {compiled!s:5}"
                print(f"{words}  {line}", flush=True)


if __name__ == "__main__":
    main()
