"""Two sets of videos as files, from any source: found, named, paired, and read one by one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mcvd.data.arrays import ARRAY_ERRORS, array_frames
from mcvd.data.frames import luma
from mcvd.data.prepare.items import Item, array_shape, find_items, no_videos, open_array
from mcvd.data.stills import sample_of
from mcvd.data.video import read_images, read_video
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.text import printable

Role = Literal["real", "made"]


@dataclass(frozen=True)
class Video:
    """One video of a set."""

    name: str
    item: Item
    place: tuple[int, ...] = ()
    """Index of the video in an array that holds several."""

    def read(self, channels: int) -> Tensor:
        """Its frames, ``(T, C, H, W)`` uint8."""
        if self.item.kind == "images":
            return read_images(self.item.files, channels=channels)
        if self.item.kind == "video":
            return read_video(self.item.files[0], channels=channels)
        frames = array_frames(_load(self.item)[self.place], self.item.name)
        if channels == 1 and frames.shape[3] == 3:
            frames = luma(frames)
        return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()).expand(-1, channels, -1, -1)


def find_videos(path: Path | str, role: Role) -> list[Video]:
    """Every video at or below a path, sorted by name (2 before 10): video files, folders of images, npz and npy arrays.

    An array of 5 or 6 dimensions holds several videos, one after the other. Of an npz with both ``real`` and ``made``,
    as `mcvd evaluate` writes, only the array of this role is taken. Raises McvdError if there are no videos.
    """
    root = expanded(path)
    if not root.exists():
        raise McvdError(f"{root} does not exist")
    items, _ = find_items(root)
    keys = {(item.files[0], item.key) for item in items if item.kind == "npz"}
    both = {file for file, key in keys if key == "real" and (file, "made") in keys}
    videos: list[Video] = []
    for item in items:
        if item.problem or item.kind == "hdf5":
            raise McvdError(item.problem or f"{item.name}: HDF5 shards are for mcvd evaluate; write npz or video files")
        if item.archive:
            raise McvdError(f"{item.archive}: tar files are for training; unpack it")
        if item.files[0] in both and item.key != role:
            continue
        name = printable(_stem(item, root, item.files[0] in both))
        if item.kind not in ("npz", "npy"):
            videos.append(Video(name, item))
            continue
        outer = _shape(item)[:-4]
        places = list(np.ndindex(*outer)) if outer else [()]
        videos += [Video(f"{name}-{i}" if outer else name, item, place) for i, place in enumerate(places, 1)]
    if not videos:
        raise no_videos(root)
    return videos


def pair(real: Sequence[Video], made: Sequence[Video], samples: int) -> tuple[list[list[int]], bool]:
    """For each real video the indices of its `samples` generated ones, and whether names decided: NAME-1, NAME-2 ...
    (or NAME, if there is one) belong to NAME. If no name matches: in sorted order, the samples of a clip in a row.

    Raises McvdError if the counts do not match, or if only some names match: sorted order would then give clips videos
    that were not generated for them.
    """
    names = [video.name for video in real]
    ways = [[video.name for video in made]] if samples == 1 else []
    ways += [[sample_of(video.name) for video in made]]
    for owners in ways:
        groups: dict[str, list[int]] = {name: [] for name in names}
        for index, owner in enumerate(owners):
            groups.setdefault(owner, []).append(index)
        if len(groups) == len(names) and all(len(group) == samples for group in groups.values()):
            return [groups[name] for name in names], True
    owners = max(ways, key=lambda way: len(set(way) & set(names)))
    many, rest = divmod(len(made), len(real))
    if len(made) != len(real) * samples:
        fits = many and not rest and not _unmet(names, made, owners, many)
        raise McvdError(
            f"{len(real)} real and {len(made)} generated videos: the protocol takes {samples} for each real one"
            + (f"; --set samples={many} would fit" if fits else _unmet(names, made, owners, samples))
        )
    if wrong := _unmet(names, made, owners, samples):
        raise McvdError(
            f"some generated videos are named after real ones, others are not{wrong}; name all of them so (NAME-1, "
            "NAME-2 ... for NAME), or none, for sorted order"
        )
    return [list(range(i * samples, (i + 1) * samples)) for i in range(len(real))], False


def _unmet(real: Sequence[str], made: Sequence[Video], owners: Sequence[str], samples: int) -> str:
    """What is missing or superfluous if some generated videos are named after real ones; empty if none is.

    owners: the real video that each generated one belongs to by its name.
    """
    groups: dict[str, list[str]] = {name: [] for name in real}
    if not groups.keys() & set(owners):
        return ""
    strange = [video.name for video, owner in zip(made, owners) if owner not in groups]
    for video, owner in zip(made, owners):
        if owner in groups:
            groups[owner].append(video.name)
    numbers = {
        name: {int(re.findall(r"\d+$", one)[0]) for one in group if one != name} for name, group in groups.items()
    }
    first = min({1}.union(*numbers.values()))  # some count from 0
    missing = []
    for name, group in groups.items():
        if len(group) < samples:
            absent = [f"{name}-{i}" for i in range(first, first + samples) if i not in numbers[name]]
            missing += absent[: samples - len(group)] if group else [name]
        strange += group[samples:]
    alike = [name for name, count in Counter(real).items() if count > 1]
    parts = {"missing": missing, "too many": strange, "real ones that share a name": alike}
    return "".join(f"; {what}: {_some(names)}" for what, names in parts.items() if names)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def files_sha256(videos: Sequence[Video]) -> str:
    """A hash of the names and the content of all files of a set."""
    digest, done = hashlib.sha256(), set()
    for video in videos:
        digest.update(f"{video.name}\n".encode())
        for file in video.item.files:
            if file not in done:
                done.add(file)
                with open(file, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _stem(item: Item, root: Path, pair_file: bool) -> str:
    """A video's name without suffix and, if all come from one file, without that file's name."""
    if item.kind == "images":
        return item.name
    file = item.name.removesuffix(f"#{item.key}")
    name = str(PurePosixPath(file).with_suffix(""))
    if file == item.name or pair_file:
        return name
    return item.key if root.is_file() else f"{name}#{item.key}"


def _shape(item: Item) -> tuple[int, ...]:
    """The shape of an array; McvdError unless it has 3 to 6 dimensions. Grey videos get a channel dimension."""
    shape = array_shape(item)
    if not 3 <= len(shape) <= 6:
        raise McvdError(f"{item.name} holds an array {shape}; videos have 3 to 6 dimensions")
    if len(shape) > 3 and shape[-3] not in (1, 3) and shape[-1] not in (1, 3):  # several grey videos, perhaps
        raise McvdError(
            f"{item.name} holds an array {shape}; several videos end in (T, H, W, C) or (T, C, H, W) with C 1 or 3:"
            " grey videos need an axis of 1"
        )
    return shape if len(shape) > 3 else (*shape, 1)


_open: dict[tuple[Item, tuple[int, int]], np.ndarray] = {}  # only the last array: its videos are read one after another


def _load(item: Item) -> np.ndarray:
    try:
        key = item, item.stamp()  # the file may have been replaced meanwhile
        if key not in _open:
            _open.clear()
            if item.kind == "npy":
                _open[key] = np.load(item.files[0], mmap_mode="r", allow_pickle=False)
            else:
                with open_array(item) as stream:
                    _open[key] = np.load(stream, allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise McvdError(f"{item.name} is damaged, or not a numpy file of plain numbers") from error
    return _open[key]
