"""Files that the library can download into its cache. A file is checked before it gets its name."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO

from mcvd.cache import cache_dir
from mcvd.errors import McvdError
from mcvd.files import expanded, whole_file

MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(file name, bytes so far, bytes in total or None)``."""


def fetch_mnist(
    destination: Path | str | None = None, source: Path | str | None = None, progress: Progress | None = None
) -> Path:
    """Puts the four original MNIST files into a folder and returns it; complete files in it are left alone.

    destination: the folder; default ``cache_dir()/mnist``.
    source: a folder that holds the files, or a URL below which they are; default: the public mirrors, in order.
    Raises McvdError if no source has a file with the right checksum; no incomplete file gets its final name.
    """
    folder = expanded(destination) if destination is not None else cache_dir() / "mnist"
    places = [str(source)] if source is not None else list(MNIST_MIRRORS)
    for name, md5 in MNIST_MD5.items():
        target = folder / name
        if not (target.is_file() and _md5(target) == md5):
            fetch_file([_join(place, name) for place in places], target, md5, progress)
    return folder


def fetch_file(places: Sequence[str], target: Path, md5: str, progress: Progress | None = None) -> None:
    """Copies the first of ``places`` (URLs or local files) whose md5 is right to ``target``, atomically."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise McvdError(f"cannot create the folder {target.parent}: {error.strerror or error}") from error
    problems = []
    for place in places:
        try:
            with whole_file(target) as temporary:
                with temporary.open("wb") as out:
                    found = _copy(place, out, target.name, progress)
                if found != md5:
                    raise OSError(f"checksum {found}, expected {md5}")
            return
        except (OSError, HTTPException, ValueError) as error:  # no answer, one that is no HTTP, no address
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            problems.append(f"{place}: {' '.join(str(reason).split())}")
    raise McvdError(f"cannot get {target.name} ({'; '.join(problems)}); put the file into {target.parent} by hand")


def _copy(place: str, out: IO[bytes], name: str, progress: Progress | None) -> str:
    """Streams ``place`` into ``out``; returns the md5 of the content."""
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(place, timeout=30) if "://" in place else open(place, "rb") as stream:
        length = stream.headers.get("Content-Length") if hasattr(stream, "headers") else os.stat(place).st_size
        while chunk := stream.read(1 << 18):
            out.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(name, done, int(length) if length is not None else None)
    return digest.hexdigest()


def _join(place: str, name: str) -> str:
    return place.rstrip("/") + "/" + name if "://" in place else str(expanded(place) / name)


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
