"""The folder for what the library fetched or made and can bring again, and the hash that such things are known by."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cache_dir() -> Path:
    """``MCVD_CACHE``, else ``mcvd`` in the user's folder for such things (not made here)."""
    if own := os.environ.get("MCVD_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "mcvd"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mcvd"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mcvd" / "cache"
    return Path.home() / ".cache" / "mcvd"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and values; the order and the file around them do not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
