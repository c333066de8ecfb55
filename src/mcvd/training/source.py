"""Training clips by position: item i of a run is the same whatever the number of processes or restarts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mcvd.data.moving_mnist import MovingMNIST, check_frames, find_mnist, load_digits
from mcvd.data.settings import settings_for
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.training.recipe import Recipe

TEST_CLIPS = 64  # fixed clips of the held-out videos

Report = Callable[[str], None]


class ClipSource(Protocol):
    """Clips ``(B, T, C, H, W)`` uint8 for positions 0, 1, 2, ... of an endless stream."""

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips at these positions."""


def to_model_range(clips: Tensor, device: torch.device) -> Tensor:
    """uint8 clips -> float in [-1, 1] on the device."""
    return clips.to(device, non_blocking=True).float() / 127.5 - 1


def clip_source(recipe: Recipe, split: str, device: torch.device, report: Report | None = None) -> ClipSource:
    """The clips of a recipe: `split` is "train" (a random stream) or "test" (other digits; or `TEST_CLIPS` fixed clips
    of other videos, the validation ones if there are any).

    Raw videos are prepared once, in the cache. report: gets the lines about that (default: the first process prints).
    """
    network = recipe.model.network
    frames = network.layout.frames
    if recipe.data.kind == "moving-mnist":
        check_frames(network.size, network.channels, "the recipe")
        path = None if recipe.data.path is None else Path(recipe.data.path)
        try:
            folder = find_mnist(path)
        except McvdError as error:
            if path is None:
                raise
            raise McvdError(f"{error}; for your own videos take a recipe for videos, e.g. videos-small") from None
        digits = load_digits(folder, "train" if split == "train" else "test")
        counts = recipe.data.digits
        return MovingMNIST(digits, frames, size=network.size[0], num_digits=counts, seed=recipe.seed, device=device)
    if recipe.data.path is None:
        raise McvdError("this recipe trains on videos: say where they are with --data FOLDER")
    from mcvd.data.prepare import info, open_data, prepared_data  # needs PyAV; Moving MNIST does not

    path = prepared_data(
        expanded(recipe.data.path),
        settings_for(
            recipe.data.layout,
            network.size,
            network.channels,
            fit=recipe.data.fit,
            fps=recipe.data.fps,
            split_by=recipe.data.split_by,
        ),
        say_nothing if split != "train" else report or _say_first,
    )
    if split == "test" and "val" in info(path).splits:
        split = "val"
    return open_data(
        path,
        frames,
        size=network.size,
        channels=network.channels,
        stride=recipe.data.stride,
        flip=recipe.data.flip,
        split=split,
        fixed=None if split == "train" else TEST_CLIPS,
        seed=recipe.seed,
    )


def say_nothing(line: str) -> None:
    """Discards a report: of a second split, or of a process that is not the first."""


def _say_first(line: str) -> None:
    """Prints in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
