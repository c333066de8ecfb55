"""One process at a time prepares into a folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from mcvd.data.prepare.parts import unwritable


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time prepares into a folder; the others wait, and then find the work done. Death unlocks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise unwritable(folder, error) from error
    with handle:
        with contextlib.suppress(ImportError, OSError):  # Windows, and network disks without locks
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                warnings.warn(f"another process is preparing {folder}; waiting for it", stacklevel=4)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
