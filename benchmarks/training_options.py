"""What individual training options change, on a budget of minutes: the same tiny network on Moving MNIST 32x32.

    python benchmarks/training_options.py --output runs/training-options     # resumes; then prints the table
    python benchmarks/training_options.py --output runs/training-options --steps 4 --clips 2    # a smoke test

Every training is one JSON file in the output folder; existing ones are not repeated. All rows share data, number of
steps, batch, learning rate and (except `v, seed 1`) seed. Figures are for 5 -> 15 prediction (three blocks) and for
prediction from only the last 2 of these 5 frames, by DPM-Solver++ with 10 steps, one sample per clip, on fixed test
clips.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcvd.config import override
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.evaluation.image import psnr
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.config import UNetConfig
from mcvd.training.ema import Ema
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.trainer import Processes, Trainer
from mcvd.training.validation import validate

PAST, BLOCK, BLOCKS = 5, 5, 3
SHORT = 2  # frames of a short context
SEED = 2022  # seed of the test clips
AVERAGES: dict[str, dict[str, Any]] = {"constant": {}, "warm-up": {"warmup": True}, "power": {"power": 0.1}}
"""Weight averages kept for every training; a row uses one of them."""

PAPER = Recipe(
    model=ModelConfig(
        network=UNetConfig(
            size=(32, 32),
            layout=BlockLayout(PAST, BLOCK),
            width=16,
            multipliers=(1, 2, 2),
            blocks=1,
            attention=(),
            dropout=0.0,
        ),
        masking=Masking(past=0.25),
    ),
    optimizer=OptimizerConfig(lr=2e-3, warmup=30),
    batch=16,
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    average: str = "warm-up"
    context_noise: float = 0.0
    """Noise on generated frames when sampling."""


@dataclass(frozen=True)
class Training:
    """One training: what it changes, and the rows measured with it."""

    changes: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)


V, X0 = {"model.prediction": "v"}, {"model.prediction": "x0"}
TRAININGS = {
    "eps": Training({}, {"the paper: eps, EMA 0.999": Row("constant"), "eps, EMA warm-up": Row()}),
    "v": Training(
        V,
        {"v, EMA 0.999": Row("constant"), "v, EMA warm-up (= v below)": Row(), "v, EMA power 0.1": Row("power")},
    ),
    "frames": Training({**V, "model.masking.frames": 0.3}, {"v, 0.3 of frames hidden": Row()}),
    "context-noise": Training(
        {**V, "model.context_noise": 0.5},
        {"v, context noise to 0.5": Row(), "the same, sampled at 0.2": Row(context_noise=0.2)},
    ),
    "v-seed-1": Training({**V, "seed": 1}, {"v, seed 1": Row()}),
    "min-snr": Training({**V, "weighting": "min-snr"}, {"v, Min-SNR": Row()}),
    "cosine": Training({**V, "optimizer.decay": "cosine"}, {"v, cosine rate": Row()}),
    "cosine-noise": Training({**V, "model.schedule.kind": "cosine"}, {"v, cosine noise schedule": Row()}),
    "x0": Training(X0, {"x0": Row()}),
    "x0-min-snr": Training({**X0, "weighting": "min-snr"}, {"x0, Min-SNR": Row()}),
    "x0-cosine-noise": Training({**X0, "model.schedule.kind": "cosine"}, {"x0, cosine noise schedule": Row()}),
    "patch": Training(
        {**X0, "model.network.patch": 2, "model.network.width": 32, "model.network.multipliers": [1, 1]},
        {"x0, patches of 2, the inner levels as wide": Row()},
    ),
    "muon": Training({**X0, "optimizer.name": "muon"}, {"x0, Muon": Row()}),
    "modern": Training(
        {**X0, "model.masking.frames": 0.1, "model.context_noise": 0.3},
        {"as recipe modern: x0, 0.1 of frames hidden, context noise to 0.3, power": Row("power")},
    ),
}


@dataclass
class Options:
    """What to run."""

    output: Path = Path("runs/training-options")
    """Folder of the results."""
    mnist: Path | None = None
    """Folder of the MNIST files; None: the cache."""
    steps: int = 400
    """Optimizer steps of each training."""
    clips: int = 32
    """Test clips."""
    only: tuple[str, ...] = tuple(TRAININGS)
    """Which trainings, by name."""
    minutes: float = 1e9
    """Start no training after this many minutes."""


def measure(model: VideoDiffusion, clips: Tensor, row: Row) -> dict[str, float]:
    """The figures of one row on test clips ``(B, 20, 1, 32, 32)`` uint8."""
    truth = clips.float() / 255
    sampling = {"solver": "dpm++", "steps": 10}
    made = model.predict(clips[:, :PAST], BLOCK * BLOCKS, context_noise=row.context_noise, **sampling)
    found = {
        f"psnr_block_{i + 1}": float(psnr(block, real).mean())
        for i, (block, real) in enumerate(zip(made.split(BLOCK, 1), truth[:, PAST:].split(BLOCK, 1)))
    }
    short = model.predict(clips[:, PAST - SHORT : PAST], BLOCK, **sampling)
    found["psnr_short"] = float(psnr(short, truth[:, PAST : PAST + BLOCK]).mean())
    errors = validate(model, clips[:, : PAST + BLOCK])
    return found | {"error": errors["validation/predict"]}


def run(training: Training, digits: dict[str, Tensor], clips: Tensor, steps: int) -> dict[str, Any]:
    """Trains once, measures all rows."""
    recipe = override(dataclasses.replace(PAPER, steps=steps), training.changes, "change")
    frames = recipe.model.network.layout.frames
    source = MovingMNIST(digits["train"], frames, size=32, seed=0)  # the same clips for every seed
    trainer = Trainer(recipe, Processes(0, 1, torch.device("cpu")), source)
    averages = {name: Ema(trainer.model, **options) for name, options in AVERAGES.items()}
    began, cpu = time.monotonic(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
        for ema in averages.values():
            ema.update()
    result: dict[str, Any] = {"steps": steps, "train_cpu_seconds": time.process_time() - cpu, "rows": {}}
    model = VideoDiffusion(recipe.model).eval()
    for name, row in training.rows.items():
        model.load_state_dict(averages[row.average].shadow)
        result["rows"][name] = measure(model, clips, row)
    result |= {"cpu_seconds": time.process_time() - cpu, "seconds": time.monotonic() - began}
    return result | {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def baselines(clips: Tensor) -> dict[str, dict[str, float]]:
    """The same figures without a model: the last given frame repeated, and black."""
    truth = clips.float() / 255
    made = {"the last frame again": truth[:, PAST - 1 : PAST].expand_as(truth), "black": torch.zeros_like(truth)}
    spans = {f"psnr_block_{i + 1}": slice(PAST + i * BLOCK, PAST + (i + 1) * BLOCK) for i in range(BLOCKS)}
    spans["psnr_short"] = spans["psnr_block_1"]
    return {
        name: {key: float(psnr(video[:, at], truth[:, at]).mean()) for key, at in spans.items()}
        for name, video in made.items()
    }


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Markdown."""
    print("| | error | block 1 | block 2 | block 3 | from 2 frames | training, CPU s |\n|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        figures = [f"{row['error']:.4f}" if "error" in row else ""]
        figures += [f"{row[key]:.2f}" for key in ("psnr_block_1", "psnr_block_2", "psnr_block_3", "psnr_short")]
        figures += [f"{row['seconds']:.0f}" if "seconds" in row else ""]
        print(f"| {name} | {' | '.join(figures)} |")


def main(options: Options) -> None:
    folder, began = options.output, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    digits = {split: load_digits(find_mnist(options.mnist), split) for split in ("train", "test")}  # type: ignore
    frames = PAST + BLOCK * BLOCKS
    clips = MovingMNIST(digits["test"], frames, size=32, seed=SEED).batch(range(options.clips))
    rows, cpu = baselines(clips), 0.0
    for name in options.only:
        training = TRAININGS[name]
        path = folder / f"{name}-{options.steps}-steps-{options.clips}-clips.json"
        if not path.exists():
            if time.monotonic() - began > 60 * options.minutes:
                print(f"not trained: {name}")
                continue
            path.write_text(json.dumps(run(training, digits, clips, options.steps), indent=1) + "\n")
            print(f"trained: {name}", flush=True)
        result = json.loads(path.read_text())
        rows |= {name: row | {"seconds": result["train_cpu_seconds"]} for name, row in result["rows"].items()}
        cpu += result["cpu_seconds"]
    print(f"\n{options.steps} steps of {PAPER.batch} clips, {options.clips} test clips; {cpu / 60:.1f} CPU minutes\n")
    print_table(rows)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
