"""`mcvd benchmark`"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from mcvd.cli.options import Count, Device, Engine, Flag, MaybeCount

CaseName = Literal["network", "sampling", "training", "i3d", "startup"]


@dataclass(kw_only=True)
class Command:
    """Times network calls, sampling, training steps and I3D on this machine, beside the machine's own ceiling: seconds,
    frames per second, share of the ceiling and MiB of memory, by batch and resolution. Weights and clips are random.

    Examples: mcvd benchmark; mcvd benchmark --cases network --batch 1 8 --size 64 128 --json;
    mcvd benchmark --peer benchmarks/peers/plain.py --cases training --batch 8
    """

    recipe: Annotated[tuple[str, ...], arg(metavar="RECIPE ...")] = ("smmnist-concat",)
    """Networks, by recipe: bundled names or .yaml files."""
    cases: tuple[CaseName, ...] = ("network", "sampling", "training", "i3d")
    """What to time; startup times whole commands, each in its own process."""
    batch: Annotated[tuple[Count, ...], arg(metavar="N ...")] = (1,)
    """Clips per batch; several values are measured one after another."""
    size: Annotated[tuple[Count, ...], arg(metavar="N ...", help_behavior_hint="(default: the recipe's)")] = ()
    """Pixels per side; several values are measured one after another."""
    samples: Count = 1
    """Sampling: samples per clip."""
    solver_steps: Count = 100
    """Sampling: total number of DDPM steps."""
    steps: Count = 5
    """Sampling: steps to run and time; the total is extrapolated, as all steps cost the same. Set it to --solver-steps
    to time all of them."""
    rounds: Count = 5
    """Rounds; each times everything once, in alternating order."""
    peer: Annotated[tuple[Path, ...], arg(metavar="FILE.py ...", help_behavior_hint="(default: none)")] = ()
    """Other implementations to time in the same rounds on the same weights and noise: files that define
    build(config, state_dict); see docs/performance.md."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of this package; peers keep their own."""
    engine: Engine = "torch"
    """What runs this package's network; compile also compiles the training step."""
    threads: Annotated[MaybeCount, arg(help_behavior_hint="(default: torch's)")] = None
    """CPU threads."""
    skip_memory: Flag = False
    """Do not measure memory (which takes a process per figure)."""
    device: Device = None
    """cpu, cuda or cuda:N."""
    json: Flag = False
    """Print one JSON document instead of a table."""

    def run(self) -> None:
        """Runs the command."""
        import torch

        from mcvd.benchmark.run import Options, benchmark
        from mcvd.benchmark.table import table
        from mcvd.cli.progress import ProgressBar
        from mcvd.device import default_device
        from mcvd.training.recipe import read_recipe

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        stems = [Path(recipe).stem for recipe in self.recipe]
        names = [stem if stems.count(stem) == 1 else recipe for stem, recipe in zip(stems, self.recipe)]
        options = Options(
            models={name: read_recipe(recipe).model for name, recipe in zip(names, self.recipe)},
            cases=self.cases,
            batches=self.batch,
            sizes=self.size,
            samples=self.samples,
            solver_steps=self.solver_steps,
            timed_steps=min(self.steps, self.solver_steps),
            rounds=self.rounds,
            device=self.device or default_device(),
            precision=self.precision,
            engine=self.engine,
            peers=self.peer,
            memory=not self.skip_memory,
        )
        # a peer may print anything: stdout is for the result
        with contextlib.redirect_stdout(sys.stderr), ProgressBar("measuring", "rounds") as bar:
            document = benchmark(options, bar)
        print(json.dumps(document, indent=1) if self.json else table(document))
