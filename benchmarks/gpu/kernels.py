"""Where the time goes: the kernels of a training step and of a network call, by their share of the GPU's time.

    python benchmarks/gpu/kernels.py                                    # recipe digits and smmnist-concat, bf16
    python benchmarks/gpu/kernels.py --compile --recorded               # the same, compiled and recorded
    python benchmarks/gpu/kernels.py --recipes digits-small --batch 4   # any machine; operators on a CPU

Needs torch, numpy, safetensors and tyro. Clips are random: their values do not affect the time.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from mcvd.device import tuned_convolutions
from mcvd.training.processes import Processes
from mcvd.training.recipe import Recipe, read_recipe
from mcvd.training.recorded import WARM
from mcvd.training.trainer import Trainer


@dataclass
class Run:
    """What to record."""

    recipes: tuple[str, ...] = ("digits", "smmnist-concat")
    """Bundled recipes or files."""
    batch: int | None = None
    """Clips per step; None: the recipe's."""
    compile: bool = False
    """Compile the network."""
    recorded: bool = False
    """Record the training step and replay it."""
    steps: int = 5
    """Steps that are recorded."""
    rows: int = 25
    """Kernels that are printed."""


class RandomClips:
    """Random clips, always the same ones, on the device."""

    def __init__(self, recipe: Recipe, device: torch.device):
        network = recipe.model.network
        shape = (recipe.batch, network.layout.frames, network.channels, *network.size)
        self.clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips."""
        return self.clips


def record(name: str, call: Callable[[], object], steps: int, rows: int, device: torch.device) -> None:
    """Prints the time of a call, and its kernels."""
    cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(WARM + 1):  # a step is recorded in the last of these
        call()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        call()
    wait()
    milliseconds = 1e3 * (time.perf_counter() - began) / steps
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            call()
        wait()
    events = recorded.key_averages()
    taken = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total, e.count) for e in events}
    total = sum(microseconds for microseconds, _ in taken.values())
    print(f"\n{name}: {milliseconds:.2f} ms; its kernels {total / 1e3 / steps:.2f} ms")
    for key, (microseconds, count) in sorted(taken.items(), key=lambda item: -item[1][0])[:rows]:
        share, each = microseconds / total, microseconds / 1e3 / steps
        print(f"  {share:6.1%} {each:9.3f} ms {count / steps:7.1f} calls  {key[:140]}", flush=True)


@tuned_convolutions()  # as in `mcvd train`
def main(run: Run) -> None:
    """Records a training step and a network call for each recipe."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    for name in run.recipes:
        recipe = read_recipe(name)
        recipe = dataclasses.replace(
            recipe,
            batch=run.batch or recipe.batch,
            compile=run.compile,
            recorded=run.recorded,
            precision=precision,
            steps=10**6,
        )
        trainer = Trainer(recipe, Processes(0, 1, device), RandomClips(recipe, device))
        what = f"{name}, batch {recipe.batch}, {precision}{', compiled' * run.compile}{', recorded' * run.recorded}"
        record(f"training step, {what}", trainer.train_step, run.steps, run.rows, device)
        network, layout = trainer.model.network.eval(), recipe.model.network.layout
        clips = trainer.source.batch([]).float() / 127.5 - 1
        past, x, future = clips.split([layout.past, layout.current, layout.future], dim=1)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            condition, number = network.encode(past, future), torch.full((1,), 500, device=device)
            record(f"network call, {what}", partial(network, x, number, condition), run.steps, run.rows, device)


if __name__ == "__main__":
    main(tyro.cli(Run))
