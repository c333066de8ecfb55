"""Checkpoints that survive a kill at any moment: written to a temporary file, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.saving import read_config_and_notes
from mcvd.text import first_line

KEEP = 2  # the newest and the one before it
NAME = re.compile(r"checkpoint-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes checkpoint-<step>.pt into the folder; then deletes all but the newest `KEEP`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{step:09d}.pt"
    partial = folder / "checkpoint.partial"  # one name: the next save takes the place of what a kill has left
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        # torch's writer fails again when it is closed, and reports that instead
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise not_written(path, cause, folder) from None
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def save_model(folder: Path, name: str, model: VideoDiffusion, notes: dict[str, Any]) -> Path:
    """Writes a model folder of this name into the run folder; the files of a previous one are replaced atomically."""
    try:
        return model.save(folder / name, notes=notes)
    except (OSError, SafetensorError) as error:
        raise not_written(folder / name, error, folder) from None


def model_steps(folder: Path) -> int:
    """The most steps that a saved model of a run has, as its notes say; 0 if there is none."""
    steps = [0]
    for name in ("model", "best"):
        with contextlib.suppress(McvdError):
            steps.append(int(read_config_and_notes(folder / name)[1].get("steps", 0)))
    return max(steps)


def last_checkpoint(folder: Path) -> str:
    """The newest checkpoint, for error messages."""
    return str(found[-1]) if (found := checkpoints(folder)) else "none"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*.pt") if NAME.fullmatch(path.name))


def load_checkpoint(folder: Path, device: torch.device, *, mapped: bool = False) -> dict[str, Any] | None:
    """The newest checkpoint of a run; None if it has none. One that cannot be read is an error, not a fresh start.

    mapped: read tensors from the file when they are used (on the CPU), not all at once.
    Raises McvdError for the file; torch.OutOfMemoryError where the device has too little memory for it.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return torch.load(found[-1], map_location=device, mmap=mapped, weights_only=True)
    except torch.OutOfMemoryError:  # the file is good and should not be deleted
        raise
    except OSError as error:
        raise McvdError(f"cannot read {found[-1]}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file can raise anything
        reason = first_line(error)
        raise McvdError(f"{found[-1]} is damaged ({reason}); delete it to continue from the previous one") from None


def not_written(path: Path, error: Exception, folder: Path) -> McvdError:
    """The error for a file of a run that cannot be written, e.g. on a full disk."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return McvdError(f"cannot write {path} ({reason}); the last good checkpoint is {last_checkpoint(folder)}")
