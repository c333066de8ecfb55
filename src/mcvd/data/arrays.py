"""Videos in numpy's files: npy and npz arrays in several layouts."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from mcvd.errors import McvdError

ARRAY_SUFFIXES = (".npz", ".npy")

ARRAY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What numpy and zipfile raise for a damaged file, or one of another kind."""


def array_in(source: Path | IO[bytes], name: str = "") -> np.ndarray:
    """The array in an npy file, or the one in an npz that is named `video` or is the only one, as (T, H, W, C) uint8.
    The content decides which of the two a file is, not its suffix. name: what McvdError calls a source with no path."""
    path = name or source
    try:
        loaded = np.load(source, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded as arrays:
                keys = list(arrays)
                key = "video" if "video" in keys else keys[0] if len(keys) == 1 else None
                if key is None:
                    some = ", ".join(keys[:4]) + (" ..." if len(keys) > 4 else "")
                    raise McvdError(f"{path} holds {len(keys)} arrays ({some}) and none is named 'video'")
                loaded = arrays[key]
    except ARRAY_ERRORS as error:
        # (numpy takes anything unknown for a pickle; its message would mislead)
        reason = error.strerror if isinstance(error, OSError) else None
        what = f"cannot be read ({reason})" if reason else "is damaged, or not a numpy file of plain numbers"
        raise McvdError(f"{path} {what}") from error
    except MemoryError as error:  # before any number is read: the header of a damaged file may say anything
        raise McvdError(f"{path} claims to hold more numbers than fit into memory") from error
    return array_frames(loaded, str(path))


def array_frames(loaded: np.ndarray, where: str) -> np.ndarray:
    """An array in one of `read_video`'s layouts, as a video (T, H, W, C) uint8; McvdError names `where`."""
    shape = f"{where} holds an array {loaded.shape} {loaded.dtype}"
    layouts = "(T, H, W), (T, H, W, C) or (T, C, H, W) with C 1 or 3"
    if loaded.ndim == 3:
        if loaded.shape[2] in (3, 4) and min(loaded.shape[:2]) > 4:
            raise McvdError(f"{shape}, which looks like a single picture; a video is {layouts}")
        loaded = loaded[..., None]
    elif loaded.ndim != 4:
        raise McvdError(f"{shape}; a video is {layouts}")
    else:
        first, last = loaded.shape[1] in (1, 3), loaded.shape[3] in (1, 3)
        if first == last:
            raise McvdError(f"{shape}; {'channels may be axis 1 or 3' if first else 'no axis has 1 or 3 channels'}: "
                            f"a video is {layouts}")  # fmt: skip
        loaded = loaded.transpose(0, 2, 3, 1) if first else loaded
    if not loaded.size:
        raise McvdError(f"{shape}: {'no frame' if len(loaded) == 0 else 'no pixel in its frames'}")
    if loaded.dtype == np.bool_:
        return loaded.astype(np.uint8) * 255
    if np.issubdtype(loaded.dtype, np.floating):
        low, high = float(loaded.min()), float(loaded.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise McvdError(f"{shape} with values {low:.3g} .. {high:.3g}; floats must lie in [0, 1]")
        return (loaded.clip(0, 1) * 255).round().astype(np.uint8)
    if loaded.dtype != np.uint8:
        raise McvdError(f"{shape}; values must be uint8, or float in [0, 1]")
    return loaded
