"""The folder of an evaluation: what identifies it, the rows so far, the videos, the result.

identity.json      protocol, system, data and metrics, written before the first rows; any other evaluation is refused
rows/A-B.safetensors   the rows of clips A .. B - 1, one complete file per batch, from whichever process measured it
videos/00012.npz   `real` (T, C, H, W) and `made` (S, T, C, H, W) uint8, written before the rows of that clip
rows.safetensors   all rows, at the end; then result.md and result.json are written, and rows/ is removed
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.evaluation.result import Result
from mcvd.evaluation.table import Table
from mcvd.files import expanded, whole_file, write_whole

IDENTITY = "identity.json"


class Folder:
    """An evaluation on disk. All files are written atomically, so a kill costs each process at most one batch."""

    def __init__(self, path: Path | str):
        self.path = expanded(path)
        self.rows = self.path / "rows"

    def check(self, identity: dict[str, Any]) -> None:
        """Creates the folder; raises McvdError if it cannot be written or holds anything but this evaluation."""
        self._meet(identity, claim=False)

    def claim(self, identity: dict[str, Any]) -> None:
        """Makes the folder this evaluation's; raises McvdError if another one was first. Called only after the first
        videos are generated and measured: an evaluation that fails before that leaves no file behind."""
        self._meet(identity, claim=True)

    def _meet(self, identity: dict[str, Any], claim: bool) -> None:
        identity = json.loads(json.dumps(identity))
        file = self.path / IDENTITY
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                strange = [item.name for item in self.path.iterdir() if not item.name.startswith(IDENTITY)]
                if strange and not file.is_file():  # another process may have claimed it just now
                    raise McvdError(f"{self.path} holds other files ({strange[0]}); choose another --output")
                if not claim:
                    if not os.access(self.path, os.W_OK):  # before hours of sampling, not after
                        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                    return
                write_whole(file, json.dumps(identity, indent=1) + "\n")
            old = json.loads(file.read_text())
        except OSError as error:
            raise McvdError(f"cannot use {self.path}: {error.strerror or error}") from None
        except ValueError as error:
            raise McvdError(f"{file} is damaged ({error}); choose another --output") from None
        differ = [f"{key} {was}, not {now}" for key, was, now in _differences(old, identity)]
        if differ:
            more = f" and {len(differ) - 2} more" if len(differ) > 2 else ""
            raise McvdError(
                f"{self.path} holds another evaluation ({'; '.join(differ[:2])}{more}); choose another --output"
            )

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.path / "result.json").is_file()

    def result(self) -> Result | None:
        """The finished result, if there is one."""
        return Result.load(self.path) if self.finished else None

    def table(self) -> Table:
        """All rows so far, from all processes and starts; of a clip measured several times, the first rows."""
        whole = self.path / "rows.safetensors"
        while True:
            files = ([whole] if whole.is_file() else []) + sorted(self.rows.glob("*.safetensors"))
            try:
                tables = [Table.load(file) for file in files]
            except McvdError:
                if all(file.is_file() for file in files):
                    raise
                continue  # another process has just merged them into one
            try:
                return Table().merge(*tables)
            except McvdError as error:
                raise McvdError(
                    f"{self.path}: {error}; remove one of the files with its rows, or choose another --output"
                ) from None

    def save_rows(self, table: Table, first: int, end: int) -> None:
        """Writes the rows of clips first .. end - 1."""
        table.save(self.rows / f"{first:05d}-{end:05d}.safetensors")

    def clips_done(self) -> int:
        """How many distinct clips have rows in rows/, by the file names."""
        ranges = [map(int, file.stem.split("-")) for file in self.rows.glob("*.safetensors")]
        return len({clip for first, end in ranges for clip in range(first, end)})

    def save_video(self, clip: int, real: Tensor, made: Tensor) -> None:
        """Writes videos/CLIP.npz: real ``(T, C, H, W)``, made ``(S, T, C, H, W)``, both uint8."""
        path = self.path / "videos" / f"{clip:05d}.npz"
        try:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, real=real.numpy(), made=made.numpy())
        except OSError as error:
            raise McvdError(f"cannot write {path}: {error.strerror or error}") from None

    def finish(self, table: Table, result: Result, line: str) -> None:
        """Writes all rows as one file, the Markdown and the result; then removes rows/."""
        table.save(self.path / "rows.safetensors")
        try:
            write_whole(self.path / "result.md", line)
        except OSError as error:
            raise McvdError(f"cannot write {self.path / 'result.md'}: {error.strerror or error}") from None
        result.save(self.path / "result.json")
        shutil.rmtree(self.rows, ignore_errors=True)


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) for everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            found
            for name in names
            for found in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [(key, old, new)]
