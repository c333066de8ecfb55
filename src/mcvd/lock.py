"""A lock on a folder, released when the process that holds it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mcvd.errors import Unwritable


@contextlib.contextmanager
def locked(folder: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Locks a folder, created if need be, against other processes of this machine, until this one leaves or ends.

    busy: called if another process holds the lock; it reports that before this process waits, or raises. Unwritable if
    nothing can be written there. File systems without locks, and Windows, go without.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise Unwritable(f"cannot use {folder} as a folder ({reason}); choose another") from None
    with handle:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
