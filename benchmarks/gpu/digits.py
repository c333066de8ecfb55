"""Trains the full `digits` model on one large GPU, in resumable pieces; then measures it.

    python benchmarks/gpu/digits.py prepare              # where mcvd is installed: packs digits and recipe (20 MB)
    python benchmarks/gpu/digits.py train --minutes 20   # on the GPU machine: as many steps as 20 minutes allow
    python benchmarks/gpu/digits.py evaluate             # PSNR best of 10 on 256 clips, JSON and a sheet
    python benchmarks/gpu/digits.py smoke                # the same with a tiny network, on any machine: a minute

On the GPU machine only torch, numpy, safetensors and tyro are needed (PYTHONPATH=src). `train` leaves the averaged
weights in <output>/model as bf16; `mcvd` loads that folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent)]

import digits as quality  # noqa: E402 - benchmarks/digits.py
from mcvd.config import from_dict, override, parse_assignments, to_dict  # noqa: E402
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits  # noqa: E402
from mcvd.model import VideoDiffusion  # noqa: E402
from mcvd.training.recipe import Recipe, read_recipe  # noqa: E402
from mcvd.training.run import train as run_training  # noqa: E402

PACKED = HERE / "digits-data"


@dataclass
class Prepare:
    """Packs the resized digits and the recipe, so that the GPU machine needs no Pillow and no YAML."""

    mnist: Path | None = None
    """Folder of the MNIST files; None: the cache (`mcvd fetch mnist`)."""
    recipe: str = "digits"
    """Bundled recipe or YAML file."""
    set: tuple[str, ...] = ()
    """Changes to the recipe, such as model.network.patch=2."""


@dataclass
class Train:
    """Trains for some minutes; with --no-finish the same command again continues."""

    output: Path = Path("runs/digits")
    """Run folder."""
    minutes: float = 8.0
    """Finish, or just stop with a checkpoint, after these minutes."""
    finish: bool = True
    """Do as many steps as fit into the minutes; --no-finish does the recipe's, in several pieces."""
    compile: bool = True
    """Compile the network (a minute or two at the start of each piece)."""
    recorded: bool = True
    """Record the step and replay it."""
    steps: int | None = None
    """Total optimizer steps, unless finish chooses them; None: the recipe's."""
    init_from: str | None = None
    """Model whose weights the run starts from: `digits` is the bundled one."""


@dataclass
class Evaluate:
    """Measures the averaged weights."""

    output: Path = Path("runs/digits")
    """Run folder."""
    clips: int = 256
    """Test clips."""
    samples: int = 10
    """Samples per clip."""
    solver: str = "ddpm"
    """Solver."""
    steps: int = 100
    """Network calls per block."""


@dataclass
class Smoke:
    """The same with a tiny network: trains in two pieces, then evaluates."""

    output: Path = Path("runs/digits-smoke")
    """Run folder."""


def packed_clips(recipe: Recipe, split: str, device: torch.device) -> MovingMNIST:
    """Moving MNIST from the packed digits, drawn on the device itself."""
    digits = torch.from_numpy(np.load(PACKED / "digits.npz")[split])
    network, counts = recipe.model.network, recipe.data.digits
    frames, size = network.layout.frames, network.size[0]
    return MovingMNIST(digits, frames, size=size, num_digits=counts, seed=recipe.seed, device=device)


def packed_recipe() -> Recipe:
    if not (file := PACKED / "recipe.json").is_file():
        raise SystemExit(f"{PACKED} is missing; make it first: python benchmarks/gpu/digits.py prepare")
    return from_dict(Recipe, json.loads(file.read_text()), str(file))


def prepare(options: Prepare) -> None:
    PACKED.mkdir(exist_ok=True)
    root = find_mnist(options.mnist)
    np.savez_compressed(
        PACKED / "digits.npz", **{split: load_digits(root, split).numpy() for split in ("train", "test")}
    )
    recipe = override(read_recipe(options.recipe), parse_assignments(options.set, "--set"), "--set")
    (PACKED / "recipe.json").write_text(json.dumps(to_dict(recipe), indent=1) + "\n")
    print(f"packed {PACKED}: {sum(f.stat().st_size for f in PACKED.iterdir()) / 2**20:.1f} MiB")


def train(options: Train) -> None:
    recipe = packed_recipe()
    steps = options.steps or recipe.steps
    recipe = dataclasses.replace(recipe, compile=options.compile, recorded=options.recorded, steps=steps)
    folder = run_training(
        recipe,
        options.output,
        minutes=options.minutes,
        finish=options.finish,
        init_from=options.init_from,
        clips=packed_clips,
        report=lambda line: print(line, flush=True),
    )
    notes = json.loads((folder / "config.json").read_text()).get("notes")
    VideoDiffusion.from_folder(folder).save(options.output / "model-bf16", torch.bfloat16, notes)


def evaluate(options: Evaluate) -> None:
    quality.main(
        quality.Options(
            model=str(options.output / "model-bf16"),
            digits=PACKED / "digits.npz",
            clips=options.clips,
            samples=options.samples,
            solver=options.solver,
            steps=options.steps,
            batch_size=640,
            output=options.output / f"quality-{options.solver}-{options.steps}.json",
        )
    )


def smoke(options: Smoke) -> None:
    recipe = packed_recipe()
    network = dataclasses.replace(recipe.model.network, width=16, multipliers=(1, 1), blocks=1, attention=())
    small = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, network=network),
        batch=4,
        log_every=2,
        save_every=4,
        sample_every=8,
    )
    for steps in (4, 8):
        run_training(dataclasses.replace(small, steps=steps), options.output, clips=packed_clips)
    VideoDiffusion.from_folder(options.output / "model").save(options.output / "model-bf16", torch.bfloat16)
    evaluate(Evaluate(options.output, clips=2, samples=2, solver="dpm++", steps=4))


if __name__ == "__main__":
    chosen = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Prepare | Train | Evaluate | Smoke]  # type: ignore[misc]
    )
    {Prepare: prepare, Train: train, Evaluate: evaluate, Smoke: smoke}[type(chosen)](chosen)
