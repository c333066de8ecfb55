"""Training clips by position: item i of a run is the same whatever the number of processes or restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.errors import McvdError
from mcvd.training.recipe import Recipe


class ClipSource(Protocol):
    """Clips ``(B, T, C, H, W)`` uint8 for positions 0, 1, 2, ... of an endless stream."""

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips at these positions."""


def clip_source(recipe: Recipe, split: str, device: torch.device) -> ClipSource:
    """The clips of a recipe: `split` is "train" or "test" (other digits, other videos)."""
    network = recipe.model.network
    frames = network.layout.frames
    if recipe.data.kind == "moving-mnist":
        if network.size not in ((64, 64), (32, 32)) or network.channels != 1:
            raise McvdError(f"Moving MNIST is 64x64 or 32x32 and grey; the recipe asks for {network.size}")
        path = None if recipe.data.path is None else Path(recipe.data.path)
        digits = load_digits(find_mnist(path), "train" if split == "train" else "test")
        return MovingMNIST(digits, frames, size=network.size[0], seed=recipe.seed, device=device)
    from mcvd.data.folder import VideoFolder  # needs PyAV; Moving MNIST does not

    if recipe.data.path is None:
        raise McvdError("this recipe trains on videos: say where they are with --data FOLDER")
    return VideoFolder(
        Path(recipe.data.path),
        frames,
        size=network.size,
        channels=network.channels,
        stride=recipe.data.stride,
        flip=recipe.data.flip and split == "train",
        split=split,
        seed=recipe.seed,
    )
