"""The authors' HDF5 shards, read with plain h5py (the extra `mcvd[hdf5]`): no pickle is opened.

A shard holds ``len/<i>`` (frames of video i) and ``<i>/<j>`` (its frame j, uint8, (H, W) grey or (H, W, 3) RGB). KTH
adds ``person/<i>``; UCF-101 adds ``target/<i>`` and, to the first of several shards, the numbers ``num_train`` and
``num_test``; BAIR and Cityscapes have train/ and test/ folders. The split is the published one:

    KTH          persons 1-20 train, 21-25 test
    UCF-101      the first num_train videos train; of each whole ten of the others the first test
    other sets   by train/, val/ and test/ folders, else one video in ten is test
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mcvd.data.clips import Clips, StoredVideo
from mcvd.data.splits import assign_splits, folder_split
from mcvd.errors import McvdError
from mcvd.files import expanded, own_folders
from mcvd.text import first_line

SUFFIXES = (".hdf5", ".h5")
BESIDE = (".pkl", ".txt", ".md", ".json", ".yml", ".yaml", ".csv", "")  # what may lie beside shards
KTH_TRAIN_PERSONS = 20
UCF_TEST_EVERY = 10
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises on reading a damaged file."""


def hdf5_shards(path: Path) -> list[Path]:
    """The shards at or below a path, sorted by name; none if there are other data beside them."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    own = own_folders(path, files)
    files = [file for file in files if own.isdisjoint(file.parents)]
    shards = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    others = [file for file in files if file.suffix.lower() not in (*SUFFIXES, *BESIDE) and file.name[0] != "."]
    return [] if others else shards


class Hdf5Shards(Clips):
    """Clips of one split of the authors' shards; all arguments but the path are those of `Clips`.

    path: one shard, a folder of shards, or a folder with train/ and test/. Frames are unpacked one by one on every
    read: about 100 times slower than a prepared folder (`mcvd data prepare` takes these shards too).
    """

    def __init__(self, path: Path | str, frames: int, *, split: str = "train", **options: Any):
        self._open: dict[Path, Any] = {}
        videos, self.places, stored = stored_videos(expanded(path))
        super().__init__(videos, stored, frames, split=split, where=str(path), **options)

    def _read(self, video: int, start: int) -> np.ndarray:
        file, key = self.places[video]
        if file not in self._open:
            self._open[file] = open_shard(file)
        frames = [_frame(self._open[file], file, key, start + i * self.stride) for i in range(self.frames)]
        if any(frame.shape != self.stored for frame in frames):
            raise McvdError(f"video {key} of {file} has frames of another size than {self.stored}")
        return np.stack(frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files cannot go to another process


def stored_videos(root: Path) -> tuple[list[StoredVideo], list[tuple[Path, int]], tuple[int, int, int]]:
    """All videos of the shards at or below a path; of each its shard and number there; (H, W, C) of the first frame.

    Raises McvdError where there is none, or a shard is damaged.
    """
    videos: list[StoredVideo] = []
    places: list[tuple[Path, int]] = []
    stored: tuple[int, ...] = ()
    for file in hdf5_shards(root):
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        with read_shard(file) as shard:
            for key, split, group in shard_videos(shard, name):
                frames = int(shard[f"len/{key}"][()])
                videos.append(StoredVideo(f"{name}#{key}", frames, split, group))
                places.append((file, key))
                if frames and not stored:  # the published conversion leaves videos that it could not decode, empty
                    stored = _frame(shard, file, key, 0).shape
    if not stored:
        what = "video with frames" if videos else f"HDF5 shard ({' or '.join(SUFFIXES)}) with a video in it"
        raise McvdError(f"{root} holds no {what}")
    undecided = [i for i, video in enumerate(videos) if not video.split]
    for i, (split, group) in zip(undecided, assign_splits([videos[i].name for i in undecided], "file")):
        videos[i] = replace(videos[i], split=split, group=group)
    height, width, channels = stored
    return videos, places, (height, width, channels)


def shard_videos(shard: Any, name: str) -> Iterator[tuple[int, str, str]]:
    """(number, split, group) of every video of an open shard; split is "" if nothing determines it, "unused" if the
    published code never takes the video. `name` is the shard's path below the data set's folder."""
    if "len" not in shard:
        raise McvdError(f"{shard.filename} has no group 'len': it is not a shard of the published system")
    keys = sorted(int(key) for key in shard["len"] if key.isdigit())
    persons = {key: int(shard[f"person/{key}"][()]) for key in keys} if "person" in shard else None
    ucf = None if persons is not None else _ucf_counts(shard)
    for key in keys:
        if persons is not None:
            split = "train" if persons[key] <= KTH_TRAIN_PERSONS else "test"
            yield key, split, f"person{persons[key]:02d}"
        elif ucf is not None:
            before, train, test = ucf
            position = before + key - train
            split = "train" if position < 0 else "test" if position in ucf_test_positions(test) else "unused"
            yield key, split, f"{name}#{key}"
        else:
            yield key, folder_split(name) or "", f"{name}#{key}"


def _ucf_counts(shard: Any) -> tuple[int, int, int] | None:
    """Of a shard of UCF-101: (videos in the shards before it, training videos, test videos); None of another set."""
    file, before = Path(shard.filename), 0
    _, train, test = _counts(shard)
    if train is None and "target" in shard:  # counted through all shards, but written into the first
        earlier = sorted(other for other in file.parent.iterdir() if other.suffix.lower() in SUFFIXES)
        earlier = [other for other in earlier if other.name < file.name]
        if earlier:
            file = earlier[0]
            _, train, test = _counts_in(file, file.stat().st_mtime_ns)
            before = sum(_counts_in(other, other.stat().st_mtime_ns)[0] for other in earlier)
    if train is None:
        return None
    if test is None:
        raise McvdError(f"{file} has num_train, but no num_test: it is damaged")
    return before, train, test


def _counts(shard: Any) -> tuple[int, int | None, int | None]:
    """Videos in a shard, and the numbers of training and test videos if it has them."""
    train, test = (int(shard[name][()]) if name in shard else None for name in ("num_train", "num_test"))
    return len(shard.get("len", ())), train, test


@cache  # or every shard would open all before it
def _counts_in(file: Path, mtime_ns: int) -> tuple[int, int | None, int | None]:
    with read_shard(file) as shard:
        return _counts(shard)


def ucf_test_positions(videos: int) -> range:
    """Which of the test videos of UCF-101 the published test set takes: one of each whole ten (369 of 3696)."""
    return range(0, max(videos // UCF_TEST_EVERY, 1) * UCF_TEST_EVERY, UCF_TEST_EVERY)


def video_length(file: Path, key: int) -> int:
    """How many frames a video of a shard has."""
    with read_shard(file) as shard:
        return int(shard[f"len/{key}"][()])


def video_frames(file: Path, key: int) -> Iterator[np.ndarray]:
    """All frames of a video of a shard, (H, W, C) uint8."""
    with read_shard(file) as shard:
        for index in range(int(shard[f"len/{key}"][()])):
            yield _frame(shard, file, key, index)


def open_shard(file: Path) -> Any:
    """The open h5py file; McvdError if h5py is not installed or the file is damaged."""
    try:
        import h5py
    except ImportError:
        raise McvdError(f"{file} needs h5py: pip install 'mcvd[hdf5]'") from None
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise McvdError(f"{file} is damaged, or not an HDF5 file ({first_line(error)[:100]})") from error


@contextlib.contextmanager
def read_shard(file: Path) -> Iterator[Any]:
    """The h5py file of `open_shard`, closed afterwards; McvdError too if what is read from it is damaged."""
    with open_shard(file) as shard:
        try:
            yield shard
        except DAMAGE as error:
            raise McvdError(f"{file} is damaged ({first_line(error)[:100]})") from error


def _frame(shard: Any, file: Path, key: int, index: int) -> np.ndarray:
    try:
        frame = shard[f"{key}/{index}"][()]
    except DAMAGE as error:
        raise McvdError(f"{file} has no frame {index} of video {key}, or it is damaged") from error
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3):
        raise McvdError(f"frame {index} of video {key} in {file} is {frame.dtype} {frame.shape}, not uint8 (H, W[, 3])")
    return frame.reshape(*frame.shape[:2], -1)
