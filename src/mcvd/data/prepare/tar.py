"""Files that may be in a tar file: what it holds, and reading a file from it without those before."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, cast

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
            last: dict[PurePosixPath, tarfile.TarInfo] = {}  # of files with the same name, tar unpacks the last
            try:
                last.update((PurePosixPath(member.name.lstrip("/")), member) for member in archive if member.isreg())
                cast(IO[bytes], archive.fileobj).seek(archive.offset)
                if cast(IO[bytes], archive.fileobj).read(_BLOCK).strip(b"\0"):
                    problem = f"bad header at byte {archive.offset}"  # which tarfile takes for the end
            except tarfile.TarError as error:
                problem = error
            for path, member in last.items():
                extract = cast(Callable[[], IO[bytes]], partial(archive.extractfile, member))
                span = member.offset_data, member.size
                yield File(str(tar.name / path), str(path), tar.path, span, extract)
    except (OSError, tarfile.TarError) as error:
        problem = error
    if problem is not None:
        raise McvdError(f"{tar.path} is damaged, or not a plain tar file ({problem})")


class Part(io.RawIOBase):
    """A file in a tar file, as a stream that can be read from any place."""

    def __init__(self, archive: str, span: tuple[int, int]):
        self.stream = open(archive, "rb")  # noqa: SIM115
        self.start, self.size = span
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.stream.seek(self.start + self.at)
        done = self.stream.readinto(memoryview(buffer)[: max(0, self.size - self.at)])
        self.at += done
        return done

    def close(self) -> None:
        self.stream.close()
        super().close()


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
