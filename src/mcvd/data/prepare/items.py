"""What there is to prepare: every video below a folder, whatever it is stored as, without decoding any."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image

from mcvd.data.arrays import ARRAY_ERRORS
from mcvd.data.hdf5 import SUFFIXES, shard_videos
from mcvd.data.stills import IMAGE_ERRORS, IMAGE_SUFFIXES, natural, pages
from mcvd.errors import McvdError
from mcvd.files import own_folders

_CONTAINERS = """
    mp4 m4v mov avi mkv webm mpg mpeg mpe m2v wmv asf flv f4v ts mts m2ts vob 3gp 3g2 ogv ogg rm rmvb divx dv mxf nut
    ivf y4m h264 hevc mjpeg
"""
VIDEOS = frozenset("." + suffix for suffix in _CONTAINERS.split())
MAYBE_ANIMATED = frozenset([".gif", ".webp", ".apng", ".png", ".tif", ".tiff", ".avif"])

Kind = Literal["video", "images", "npy", "npz", "tfrecord", "hdf5"]


@dataclass(frozen=True)
class Item:
    """One video to prepare. It goes to worker processes as JSON."""

    name: str
    """Its name in the manifest: path below the root, then `#` and what part of the file."""
    kind: Kind
    files: tuple[str, ...]
    """The file, or all images in order."""
    key: str = ""
    """Array in an npz, byte position of a TFRecord, number in an HDF5 shard."""
    split: str = ""
    """Split of a data set that has its own; empty: to be drawn."""
    group: str = ""
    problem: str = ""
    """Why it cannot be used, where that is known already."""

    def stamp(self) -> tuple[int, int]:
        """(bytes, latest change in ns) of its files: equal as long as nobody has touched them."""
        stats = [Path(file).stat() for file in self.files]
        return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)

    def sha256(self) -> str:
        """Hash of the content (of a part of a file: of the whole file and the part's key)."""
        digest = hashlib.sha256(self.key.encode())
        for file in self.files:
            if len(self.files) > 1:
                digest.update(Path(file).name.encode(errors="surrogateescape") + b"\0")
            digest.update(_file_sha256(file, Path(file).stat().st_mtime_ns).encode())
        return digest.hexdigest()


@lru_cache(maxsize=16)  # a file with hundreds of videos in it is hashed once
def _file_sha256(file: str, mtime_ns: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_items(root: Path) -> tuple[list[Item], Counter[str]]:
    """Every video at or below a path, sorted by name, and how many files of other suffixes lie there.

    A folder with images in it is one video, an animated image is one, an npz is one for every array. Folders below that
    mcvd made itself are left out and counted too: a run would be trained on what it drew.
    """
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    base = root.parent if root.is_file() else root
    items: list[Item] = []
    images: dict[Path, list[Path]] = {}
    own = own_folders(root, files)
    ignored = Counter(f"folder of mcvd's own ({folder.relative_to(base).as_posix()})" for folder in sorted(own))
    for file in files:
        relative = file.relative_to(base)
        if any(part.startswith(".") for part in relative.parts) or not own.isdisjoint(file.parents):
            continue
        suffix, name = file.suffix.lower(), relative.as_posix()
        if suffix in VIDEOS or (suffix in MAYBE_ANIMATED and _pages(file) > 1):
            items.append(Item(name, "video", (str(file),)))
        elif suffix in IMAGE_SUFFIXES:
            images.setdefault(file.parent, []).append(file)
        elif suffix == ".npy":
            items.append(Item(name, "npy", (str(file),)))
        elif suffix == ".npz":
            items += _arrays(file, name)
        elif suffix in SUFFIXES:
            items += _hdf5_items(file, base)
        else:
            ignored[suffix or "(none)"] += 1
    for folder, pictures in images.items():
        name = folder.relative_to(base).as_posix()
        pictures.sort(key=lambda picture: natural(picture.name))
        items.append(Item(folder.name if name == "." else name, "images", tuple(map(str, pictures))))
    return sorted(items, key=lambda item: natural(item.name)), ignored


def _arrays(file: Path, name: str) -> Iterator[Item]:
    try:
        with zipfile.ZipFile(file) as archive:
            keys = sorted(member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy"))
    except ARRAY_ERRORS as error:
        yield Item(name, "npz", (str(file),), problem=f"{file} is damaged, or not an npz file ({error})")
        return
    for key in keys:
        yield Item(name if len(keys) == 1 else f"{name}#{key}", "npz", (str(file),), key)


def array_shape(item: Item) -> tuple[int, ...]:
    """Shape of an array in an npz or npy file, from its head alone; McvdError where it is damaged or no array."""
    try:
        with contextlib.ExitStack() as stack:
            if item.kind == "npy":
                stream: IO[bytes] = stack.enter_context(open(item.files[0], "rb"))
            else:
                stream = stack.enter_context(
                    stack.enter_context(zipfile.ZipFile(item.files[0])).open(f"{item.key}.npy")
                )
            major, _ = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape = tuple(map(int, read(stream)[0]))
    except ARRAY_ERRORS as error:
        raise McvdError(item.problem or f"{item.name} is damaged ({error})") from error
    if not shape:
        raise McvdError(f"{item.name} holds a single number, no video")
    return shape


def _hdf5_items(file: Path, base: Path) -> Iterator[Item]:
    relative = file.relative_to(base).as_posix()
    try:
        for key, split, group in shard_videos(file, relative):
            yield Item(f"{relative}#{key}", "hdf5", (str(file),), str(key), split, group)
    except McvdError as error:
        yield Item(relative, "hdf5", (str(file),), problem=str(error))


def _pages(file: Path) -> int:
    """Pictures in an image file; 1 where it cannot be read, which is noticed again when it is decoded."""
    try:
        if file.suffix.lower() == ".png" and not _may_move(file):
            return 1
        with Image.open(file) as image:
            return pages(image)
    except IMAGE_ERRORS:
        return 1


def _may_move(png: Path) -> bool:
    """Whether a png's head announces an animation, or is too long to tell: 10 us, for folders hold 100 000 of them."""
    with open(png, "rb", buffering=0) as stream:
        head, pixels, _ = stream.read(4096).partition(b"IDAT")
    return not pixels or b"acTL" in head


def no_videos(root: Path, what: str = "videos, arrays or folders of images") -> McvdError:
    """The error for a place that holds nothing of use."""
    return McvdError(f"{root} does not exist" if not root.exists() else f"{root} holds no {what}")


def not_downloaded(root: Path, what: str) -> McvdError:
    """The error for a place that does not hold the raw download of a published data set."""
    return no_videos(root, f"{what}; videos of other names have layout `videos`")
