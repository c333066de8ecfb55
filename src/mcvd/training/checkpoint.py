"""Checkpoints that survive a kill at any moment: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from mcvd.errors import McvdError

KEEP = 2  # the newest and the one before it
NAME = re.compile(r"checkpoint-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes checkpoint-<step>.pt into the folder; then forgets all but the newest `KEEP`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{step:09d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        partial.unlink(missing_ok=True)
        last = found[-1] if (found := checkpoints(folder)) else "none"
        raise McvdError(f"cannot write {path} ({error.strerror}); the last good checkpoint is {last}") from None
    os.replace(partial, path)
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*.pt") if NAME.fullmatch(path.name))


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint of a run; None if it has none. One that cannot be read is an error, not a fresh start."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return torch.load(found[-1], map_location=device, weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise McvdError(f"{found[-1]} is damaged ({reason}); delete it to go on from the one before") from None
