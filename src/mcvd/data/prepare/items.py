"""What there is to prepare: every video below a folder, however it is stored, without decoding any.

A tar file, such as WebDataset's shards, counts as the folder that it would unpack to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
from PIL import Image

from mcvd.data.arrays import ARRAY_ERRORS
from mcvd.data.hdf5 import SUFFIXES, read_shard, shard_videos
from mcvd.data.prepare.tar import File, Part, members, pieces
from mcvd.data.stills import IMAGE_ERRORS, IMAGE_SUFFIXES, MAYBE_ANIMATED, VIDEO_SUFFIXES, natural, pages, sample_of
from mcvd.errors import McvdError, Unwritable
from mcvd.files import own_folders

PACKED = (".zip", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".rar", ".7z")
"""Archives that are not read: reaching a file in the middle would mean unpacking all before it."""

Kind = Literal["video", "images", "npy", "npz", "tfrecord", "hdf5"]


@dataclass(frozen=True)
class Item:
    """One video to prepare. It is sent to worker processes as JSON."""

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
    """Why it cannot be used, if that is known already."""
    archive: str = ""
    """The tar file that `files` are in; empty: they are on disk."""
    spans: tuple[tuple[int, int], ...] = ()
    """(first byte, bytes) of each of the files in the archive."""

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Item]:
        """The item with its files on disk: those in an archive are copied out while this is open, but for an npz, of
        which one array is needed.

        Raises McvdError if the archive is cut short. Errors within name the archive, not the copies.
        """
        if not self.archive or self.kind == "npz":
            yield self
            return
        with tempfile.TemporaryDirectory() as folder:
            copies = [Path(folder, PurePosixPath(file).name) for file in self.files]
            for copy, span in zip(copies, self.spans):
                copy_out(pieces(self.archive, span), copy)
            try:
                yield replace(self, files=tuple(map(str, copies)), archive="", spans=())
            except McvdError as error:
                inside = PurePosixPath(self.archive, self.files[0]).parent
                raise McvdError(str(error).replace(folder, str(inside))) from error

    def stamp(self) -> tuple[int, int]:
        """(bytes, latest change in ns) of its files: equal as long as they have not been touched."""
        if self.archive:
            return sum(size for _, size in self.spans), Path(self.archive).stat().st_mtime_ns
        stats = [Path(file).stat() for file in self.files]
        return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)

    def sha256(self) -> str:
        """Hash of the content (for a part of a file: of the whole file and the part's key)."""
        digest = hashlib.sha256(self.key.encode())
        for number, file in enumerate(self.files):
            if self.archive:
                member = hashlib.sha256()
                for piece in pieces(self.archive, self.spans[number]):
                    member.update(piece)
                digest.update(member.hexdigest().encode())
            else:
                digest.update(_file_sha256(file, Path(file).stat().st_mtime_ns).encode())
        return digest.hexdigest()


def copy_out(content: Iterable[bytes], to: Path) -> None:
    """Writes a part of a file to a temporary one. Raises Unwritable if there is no room for it."""
    with to.open("wb", buffering=0) as out:
        for piece in content:
            rest = memoryview(piece)
            try:
                while rest:
                    rest = rest[out.write(rest) :]
            except OSError as error:
                reason = f"cannot write {to} ({error.strerror or error})"
                raise Unwritable(f"{reason}; TMPDIR names another folder for temporary files") from error


@lru_cache(maxsize=16)  # a file with hundreds of videos in it is hashed once
def _file_sha256(file: str, mtime_ns: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_items(root: Path) -> tuple[list[Item], Counter[str]]:
    """Every video at or below a path, sorted by name, and how many files of other suffixes there are.

    A folder with images in it is one video, an animated image is one, an npz is one per array. An image named NAME
    beside a video NAME, or videos NAME-1, NAME-2 ..., is their preview and only counted. Folders below that mcvd itself
    made are left out and counted too, or a run would be trained on its own samples; so are folders that may not be
    read, and linked folders, which may lead in circles. A link to a file that is gone counts as that file. Tar files
    are read only if nothing else is of use: beside other videos, they are what these were unpacked from.
    """
    files: list[Path] = []
    folders: list[Path] = []
    for place in [root] if root.is_file() else sorted(root.rglob("*")):
        if place.is_file() or (place.is_symlink() and not place.is_dir()):
            files.append(place)
        elif place.is_dir():
            folders.append(place)
    base = root.parent if root.is_file() else root
    own = own_folders(root, files)
    found = [File(file.relative_to(base).as_posix(), str(file)) for file in files if own.isdisjoint(file.parents)]
    ignored = Counter(f"folder of mcvd's own ({folder.relative_to(base).as_posix()})" for folder in sorted(own))
    ignored.update(f"linked folder ({link.relative_to(base).as_posix()})" for link in linked_folders(folders))
    closed = [  # which rglob passes over
        folder for folder in folders if not (folder.is_symlink() or os.access(folder, os.R_OK | os.X_OK))
    ]
    ignored.update(f"folder that may not be read ({folder.relative_to(base).as_posix()})" for folder in closed)
    items, others = _sort(found)
    if not items and others.pop(".tar", 0):
        for file in found:
            if file.path.lower().endswith(".tar") and not _hidden(file.name):
                inside, more = _in_tar(file)
                items, others = items + inside, others + more
    return sorted(items, key=lambda item: natural(item.name)), ignored + others


def linked_folders(places: Iterable[Path]) -> list[Path]:
    """The links to folders among files and folders."""
    return [place for place in places if place.is_symlink() and place.is_dir()]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _sort(files: Iterable[File]) -> tuple[list[Item], Counter[str]]:
    """The videos that files hold, or form together, and how many other files there are, by suffix."""
    items: list[Item] = []
    others: Counter[str] = Counter()
    images: dict[str, list[File]] = {}
    videos: set[str] = set()
    for file in files:
        if _hidden(file.name):
            continue
        suffix, found = PurePosixPath(file.name).suffix.lower(), len(items)
        if suffix in VIDEO_SUFFIXES or (suffix in MAYBE_ANIMATED and _pages(file) > 1):
            items.append(_item("video", file.name, [file]))
        elif suffix in IMAGE_SUFFIXES:
            images.setdefault(str(PurePosixPath(file.name).parent), []).append(file)
        elif suffix == ".npy":
            items.append(_item("npy", file.name, [file]))
        elif suffix == ".npz":
            items += _arrays(file)
        elif suffix in SUFFIXES and not file.archive:
            items += _hdf5_items(file)
        else:
            others[suffix or "(none)"] += 1
        if len(items) > found:
            videos.add(_sample(file.name))
    videos |= images.keys()
    videos |= {sample_of(name) for name in videos}
    for folder, pictures in images.items():
        previews = [_sample(picture.name) in videos for picture in pictures]  # clip.jpg beside clip.mp4
        others.update(PurePosixPath(file.name).suffix.lower() for file, preview in zip(pictures, previews) if preview)
        pictures = [file for file, preview in zip(pictures, previews) if not preview]
        if not pictures:
            continue
        pictures.sort(key=lambda picture: natural(PurePosixPath(picture.name).name))
        for name, sequence in _sequences(folder, pictures):
            # pictures beside a folder that is called as theirs
            items.append(_item("images", f"./{name}" if folder == "." and name in images else name, sequence))
    return items, others


def _sample(name: str) -> str:
    """What the names of files that belong together begin with: the path up to the first dot in the file's name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _item(kind: Kind, name: str, files: list[File], key: str = "", problem: str = "") -> Item:
    archive = files[0].archive
    spans = tuple(file.span for file in files) if archive else ()
    return Item(name, kind, tuple(file.path for file in files), key, problem=problem, archive=archive, spans=spans)


def _sequences(folder: str, pictures: list[File]) -> Iterator[tuple[str, list[File]]]:
    """Names and pictures of the videos that the pictures of a folder form: one; in a tar file, perhaps one per sample
    of several pictures, as WebDataset names them (KEY.0.jpg, KEY.1.jpg, ...)."""
    samples: dict[str, list[File]] = {}
    for picture in pictures:
        samples.setdefault(_sample(picture.name), []).append(picture)
    if pictures[0].archive and 1 < len(samples) < len(pictures):
        yield from samples.items()
    else:
        yield Path(pictures[0].path).parent.name if folder == "." else folder, pictures


def _in_tar(tar: File) -> tuple[list[Item], Counter[str]]:
    """Like `_sort`, for the content of a tar file; what lies before damage is used."""
    damage: list[Item] = []

    def whole() -> Iterator[File]:
        try:
            yield from members(tar)
        except McvdError as error:
            damage.append(Item(f"{tar.name}#damaged", "video", (tar.path,), problem=str(error)))

    items, others = _sort(whole())
    return items + damage, others


def _arrays(file: File) -> Iterator[Item]:
    try:
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            keys = sorted(member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy"))
    except ARRAY_ERRORS as error:
        where = PurePosixPath(file.archive, file.path)
        yield _item("npz", file.name, [file], problem=f"{where} is damaged, or not an npz file ({error})")
        return
    if not keys:
        yield _item("npz", file.name, [file], problem=f"{file.name} holds no array")
    for key in keys:
        yield _item("npz", file.name if len(keys) == 1 else f"{file.name}#{key}", [file], key)


@contextlib.contextmanager
def open_array(item: Item) -> Iterator[IO[bytes]]:
    """The npy file of an npz or npy item, as a stream; McvdError if it is damaged, or what is read from it is."""
    file = item.files[0]
    try:
        if item.kind == "npy":
            with open(file, "rb") as stream:
                yield stream
        else:
            stamp = Path(item.archive or file).stat().st_mtime_ns
            with _opened_npz(file, item.archive, item.spans, stamp).open(f"{item.key}.npy") as stream:
                yield stream
    except ARRAY_ERRORS as error:
        raise McvdError(item.problem or f"{item.name} is damaged ({error})") from error


@lru_cache(maxsize=2)  # opening an npz reads the names of all its arrays; sets that are compared are read by turns
def _opened_npz(file: str, archive: str, spans: tuple[tuple[int, int], ...], mtime_ns: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(Part(archive, spans[0]) if archive else file)


def array_shape(item: Item) -> tuple[int, ...]:
    """Shape of an array in an npz or npy file, from its header only; McvdError if it is damaged or not an array."""
    with open_array(item) as stream:
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape = tuple(map(int, read(stream)[0]))
    if not shape:
        raise McvdError(f"{item.name} holds a single number, not a video")
    return shape


def _hdf5_items(file: File) -> Iterator[Item]:
    try:
        with read_shard(Path(file.path)) as shard:
            for key, split, group in shard_videos(shard, file.name):
                yield Item(f"{file.name}#{key}", "hdf5", (file.path,), str(key), split, group)
    except McvdError as error:
        yield _item("hdf5", file.name, [file], problem=str(error))


def _pages(file: File) -> int:
    """Pictures in an image file; 1 if it cannot be read: decoding it reports the error."""
    try:
        with file.open() as stream:
            if file.name.lower().endswith(".png") and not _may_move(stream):
                return 1
            with Image.open(stream) as image:
                return pages(image)
    except IMAGE_ERRORS:
        return 1


def _may_move(png: IO[bytes]) -> bool:
    """Whether a png's header announces an animation, or is too long to tell; in 10 us, as folders may hold 100,000."""
    head, pixels, _ = png.read(4096).partition(b"IDAT")
    png.seek(0)
    return not pixels or b"acTL" in head


def no_videos(root: Path, what: str = "videos, arrays or folders of images") -> McvdError:
    """The error for a place without usable videos."""
    if not root.exists():
        return McvdError(f"{root} does not exist")
    places = [root] if root.is_file() else sorted(root.rglob("*"))
    packed = next((file for file in places if file.name.lower().endswith(PACKED) and file.is_file()), None)
    link = next(iter(linked_folders(places)), None)
    hint = f"; unpack {packed.name} first" if packed else f"; the link {link.name} is not followed" if link else ""
    return McvdError(f"{root} holds no {what}{hint}")


def not_downloaded(root: Path, what: str) -> McvdError:
    """The error for a place that does not hold the raw download of a published data set."""
    return no_videos(root, f"{what}; for videos with other names, use layout `videos`")
