"""The folder of an evaluation, read back: `result.json`, `rows.safetensors` and `videos/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcvd.data.arrays import ARRAY_ERRORS
from mcvd.errors import McvdError
from mcvd.evaluation.folder import IDENTITY
from mcvd.evaluation.result import Result
from mcvd.evaluation.table import Table
from mcvd.files import expanded


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation in a folder. Rows and videos may be missing."""

    folder: Path
    result: Result

    @classmethod
    def load(cls, path: Path | str) -> Evaluation:
        """Reads the result of a folder, or of the `result.json` in it; raises McvdError if there is none."""
        path = expanded(path)
        if (path / IDENTITY).is_file() and not (path / "result.json").is_file():
            raise McvdError(f"{path} holds an unfinished evaluation; run the same command again to continue it")
        if path.is_dir() and not (path / "result.json").is_file():
            raise McvdError(f"{path} is not the folder of an evaluation (mcvd evaluate, mcvd score): no result.json")
        return cls(path if path.is_dir() else path.parent, Result.load(path))

    @cached_property
    def table(self) -> Table | None:
        """The measurements of every video; None if they were not kept."""
        path = self.folder / "rows.safetensors"
        return Table.load(path) if path.is_file() else None

    @cached_property
    def videos(self) -> dict[int, Path]:
        """The files that hold the videos, by clip, in order; empty if they were not kept."""
        paths = sorted((self.folder / "videos").glob("*.npz"))
        for path in paths:
            if not path.stem.isdecimal():
                raise McvdError(f"{path}: the videos of a clip must be named by its number, such as 00012.npz")
        return {int(path.stem): path for path in paths}

    def real(self, clip: int) -> Tensor:
        """The real clip, ``(T, C, H, W)`` uint8, given frames included."""
        return self._read(clip, "real", 4)

    def made(self, clip: int) -> Tensor:
        """The videos generated for a clip, ``(S, T, C, H, W)`` uint8, given frames included."""
        return self._read(clip, "made", 5)

    def _read(self, clip: int, name: str, dimensions: int) -> Tensor:
        path = self.videos[clip]
        try:
            with np.load(path) as archive:
                array = archive[name]
        except ARRAY_ERRORS as error:
            raise McvdError(f"{path} cannot be read: {error}") from None
        frames = self.result.protocol.clip_frames
        if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-4] != frames or 0 in array.shape:
            raise McvdError(
                f"{path}: {name} is {array.dtype} {array.shape}; it must be uint8 of {dimensions} dimensions with"
                f" {frames} frames"
            )
        return torch.from_numpy(array)
