"""Safetensors files that are written whole or not at all, and read with one clear line of error."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcvd.errors import McvdError


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file, whole or not at all. Raises OSError where it cannot."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)


def save_tensors(tensors: dict[str, Tensor], path: Path | str) -> None:
    """Writes a safetensors file, whole or not at all."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            temporary.chmod(mode)  # safetensors makes its files readable by their owner alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise McvdError(f"cannot write {path}: {error.strerror or error}") from error


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Reads a safetensors file; McvdError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise McvdError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise McvdError(f"{path} cannot be read: {error}") from error
