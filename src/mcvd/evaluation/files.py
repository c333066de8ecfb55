"""Safetensors files: written atomically, and read with errors of one clear line."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.files import whole_file


def save_tensors(tensors: dict[str, Tensor], path: Path | str) -> None:
    """Writes a safetensors file atomically."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise McvdError(f"cannot write {path}: {reason}") from error


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Reads a safetensors file; raises McvdError if it is missing or damaged."""
    try:
        return load(Path(path).read_bytes())  # given a path, safetensors reads only files with UTF-8 names
    except FileNotFoundError as error:
        raise McvdError(f"{path} does not exist") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise McvdError(f"{path} cannot be read: {error}") from error
