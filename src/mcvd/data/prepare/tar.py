"""Files that may be in a tar file: what it holds, and reading a file from it without those before."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, cast

from mcvd.errors import McvdError

_BLOCK = 512  # a header; zeros end the archive


@dataclass(frozen=True)
class File:
    """A file on disk, or in a tar file, which counts as the folder that it would unpack to."""

    name: str
    """Path below the common root."""
    path: str
    """On disk, or in the archive."""
    archive: str = ""
    """The tar file; empty: the file is on disk."""
    span: tuple[int, int] = (0, 0)
    """(first byte, bytes) in the archive."""
    extract: Callable[[], IO[bytes]] | None = None

    def open(self) -> IO[bytes]:
        """A stream of its bytes."""
        return open(self.path, "rb", buffering=0) if self.extract is None else self.extract()


def members(tar: File) -> Iterator[File]:
    """The plain files of a tar file that is not compressed. Each can be opened until the next is asked for.

    Raises McvdError for a damaged one, after yielding what lies before the damage.
    """
    problem: object = None
    try:
        with tarfile.open(tar.path, "r:") as archive:
            last: dict[str, tarfile.TarInfo] = {}  # of files with the same name, tar unpacks the last
            try:
                last.update((member.name, member) for member in archive if member.isreg())
                cast(IO[bytes], archive.fileobj).seek(archive.offset)
                if cast(IO[bytes], archive.fileobj).read(_BLOCK).strip(b"\0"):
                    problem = f"bad header at byte {archive.offset}"  # which tarfile takes for the end
            except tarfile.TarError as error:
                problem = error
            for name, member in last.items():
                path = PurePosixPath(name.lstrip("/"))
                extract = cast(Callable[[], IO[bytes]], partial(archive.extractfile, member))
                span = member.offset_data, member.size
                yield File(str(tar.name / path), str(path), tar.path, span, extract)
    except (OSError, tarfile.TarError) as error:
        problem = error
    if problem is not None:
        raise McvdError(f"{tar.path} is damaged, or not a plain tar file ({problem})")


def pieces(archive: str, span: tuple[int, int]) -> Iterator[bytes]:
    """The bytes of a file in a tar file. Raises McvdError if the archive ends before them."""
    start, left = span
    with open(archive, "rb") as stream:
        stream.seek(start)
        while left:
            piece = stream.read(min(left, 1 << 20))
            if not piece:
                raise McvdError(f"{archive} is cut short")
            left -= len(piece)
            yield piece
