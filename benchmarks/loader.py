"""Clips per second from prepared shards, against what training steps need on the same machine in the same run.

python benchmarks/loader.py [--recipe smmnist-concat digits-small]

The shards hold --megabytes of random frames, in a temporary folder; clips are drawn from all of them, in the random
order of training. The system's file cache is warm, as after the first epoch if the data fit into memory. A step is
forward, backward, Adam and EMA of the recipe's own network, with torch's default number of threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mcvd.data.prepare import Settings, prepare
from mcvd.data.shards import Shards
from mcvd.training.processes import Processes
from mcvd.training.recipe import read_recipe
from mcvd.training.trainer import Trainer


def loader_rate(folder: Path, frames: int, batch: int, seconds: float) -> float:
    """Clips per second, flips included."""
    shards = Shards(folder, frames, flip=True)
    for position in range(0, 10 * batch, batch):
        shards.batch(range(position, position + batch))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        shards.batch(range(done, done + batch))
        done += batch
    return done / (time.perf_counter() - start)


class OneBatch:
    """Clips that cost no time."""

    def __init__(self, shape: tuple[int, ...]):
        self.clip = torch.randint(0, 256, shape, dtype=torch.uint8)

    def batch(self, indices: object) -> torch.Tensor:
        """The same clip every time."""
        return self.clip.expand(len(indices), *self.clip.shape)  # type: ignore[arg-type]


def step_rate(name: str, batch: int, steps: int) -> float:
    """Clips per second that training with a recipe consumes."""
    recipe = replace(read_recipe(name), batch=batch)
    network = recipe.model.network
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = OneBatch((network.layout.frames, network.channels, *network.size))
    trainer = Trainer(recipe, Processes(0, 1, device), clips)
    trainer.train_step()
    start = time.perf_counter()
    for _ in range(steps):
        loss, _ = trainer.train_step()
    loss.item()  # waits for a GPU
    return batch * steps / (time.perf_counter() - start)


def main() -> None:
    """Prints one line per recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["smmnist-concat", "digits-small"])
    parser.add_argument("--batch", type=int, default=64, help="clips per batch of the loader")
    parser.add_argument("--step-batch", type=int, default=4, help="clips per measured training step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200, help="megabytes of frames in the shards")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = args.megabytes * 10**6 // (100 * 64 * 64 * args.channels)
        draw = np.random.default_rng(0)
        one = draw.integers(0, 256, (100, 64, 64, args.channels), np.uint8)
        np.savez(Path(folder) / "raw.npz", **{f"v{i}": np.roll(one, i, 1) for i in range(videos)})
        settings = Settings((64, 64), args.channels, test_share=0.0)
        start = time.perf_counter()
        prepare(Path(folder) / "raw.npz", Path(folder) / "data", settings, workers=1, shard_bytes=64 << 20)
        print(f"prepared {videos} arrays of 100 frames in {time.perf_counter() - start:.1f} s")
        rate = loader_rate(Path(folder) / "data", args.frames, args.batch, args.seconds)
    shape = f"({args.batch}, {args.frames}, {args.channels}, 64, 64)"
    megabytes = rate * args.frames * 64 * 64 * args.channels / 1e6
    print(f"loader: {rate:,.0f} clips/s in batches {shape}, {megabytes:,.0f} MB/s")
    for name in args.recipe:
        need = step_rate(name, args.step_batch, args.steps)
        print(f"{name}: training consumes {need:.3g} clips/s; the loader gives {rate / need:,.0f} times that")


if __name__ == "__main__":
    main()
