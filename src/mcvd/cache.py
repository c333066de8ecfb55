"""The cache folder, for files that can be downloaded or made again, and the hash that identifies its entries."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mcvd.errors import McvdError
from mcvd.files import expanded

if TYPE_CHECKING:
    from torch import Tensor


def cache_dir() -> Path:
    """``MCVD_CACHE``, else ``mcvd`` in the user's cache folder on this system (not created here).

    Raises McvdError for a user without a home folder.
    """
    if own := os.environ.get("MCVD_CACHE"):
        return expanded(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return expanded(xdg) / "mcvd"
    try:
        home = Path.home()
    except RuntimeError:  # as in a container whose user has no entry in passwd
        raise McvdError("this user has no home folder for the cache; set MCVD_CACHE to a folder") from None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "mcvd"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "mcvd" / "cache"
    return home / ".cache" / "mcvd"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and values, independent of their order and of the file that holds them."""
    import torch  # only here: the folder alone is asked for by commands that never need it

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
