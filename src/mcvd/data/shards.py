"""A prepared data set: videos decoded once, as uint8 frames in a few files that are memory-mapped.

    FOLDER/manifest.jsonl        first line: what the set is; then, by name, a line per video and per file left out
    FOLDER/shards/00000.npy ...  plain numpy arrays (N, H, W, C); the frames of a video lie one after the other

The manifest is written last and atomically: a folder that has one is complete. `mcvd.data.prepare` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcvd.data.clips import Clips, StoredVideo
from mcvd.errors import McvdError
from mcvd.files import expanded

MANIFEST, FORMAT = "manifest.jsonl", 1


@dataclass(frozen=True)
class Entry:
    """One line of the manifest: a video, or a file that is left out (`skipped` says why; it has no frames)."""

    source: str
    """Path below the root, with /; `file.npz#key`, `file.tfrecords#3` or `first.png#30` for a part of something."""
    bytes: int
    """Size of the source files; with `mtime_ns` it tells whether they have changed."""
    mtime_ns: int
    sha256: str = ""
    """Of the source: tells whether it has changed if its time has."""
    content: str = ""
    """sha256 of the stored frames: equal for copies of a video, whatever files they come from."""
    frames: int = 0
    fps: float | None = None
    """Stored frames per second; None if the source does not say."""
    source_size: tuple[int, int] | None = None
    """(height, width) before resizing, in pixels."""
    split: str = ""
    group: str = ""
    """Videos of one group are on one side of the split."""
    shard: int = -1
    offset: int = 0
    """Index of the first frame in the shard."""
    note: str = ""
    """Warnings of the decoder."""
    skipped: str = ""

    def line(self) -> str:
        """As JSON, without the fields that have their defaults."""
        plain = Entry(self.source, self.bytes, self.mtime_ns)
        kept = {key: value for key, value in asdict(self).items() if value != getattr(plain, key) or key in _ALWAYS}
        text = json.dumps(kept, ensure_ascii=False)
        # names may hold bytes that are not UTF-8, and U+2028, which ends a line for Python
        return text if text.isprintable() else json.dumps(kept)

    @staticmethod
    def parse(data: dict[str, Any]) -> Entry:
        """From `line`'s JSON; TypeError if a key is unknown or missing."""
        size = data.get("source_size")
        return Entry(**{**data, "source_size": None if size is None else tuple(size)})


_ALWAYS = ("source", "bytes", "mtime_ns")


@dataclass(frozen=True)
class Manifest:
    """All that is known of a prepared data set without opening its shards."""

    settings: dict[str, Any]
    """Those of `mcvd.data.prepare.Settings`."""
    root: str
    """Where the sources were."""
    version: str
    """The version of mcvd that prepared it."""
    entries: tuple[Entry, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    """Below the root: how many files of each suffix are not videos, and folders that mcvd itself made."""

    @property
    def videos(self) -> tuple[Entry, ...]:
        """Entries with frames."""
        return tuple(entry for entry in self.entries if not entry.skipped)

    @property
    def skipped(self) -> tuple[Entry, ...]:
        """Files left out, with the reason."""
        return tuple(entry for entry in self.entries if entry.skipped)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every stored frame."""
        height, width = self.settings["size"]
        return int(height), int(width), int(self.settings["channels"])


def is_prepared(path: Path) -> bool:
    """Whether a folder holds a complete prepared data set."""
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder; McvdError if there is none, or it is damaged or of a later version."""
    path = folder / MANIFEST
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        data = json.loads(head)
        if data.get("mcvd_data") != FORMAT:
            raise McvdError(f"{path} is of format {data.get('mcvd_data')}, this mcvd reads {FORMAT}: update mcvd")
        entries = tuple(Entry.parse(json.loads(line)) for line in lines)
        if len(entries) != data["lines"]:
            raise ValueError(f"{len(entries)} of {data['lines']} lines")
        return Manifest(data["settings"], data["root"], data["version"], entries, data["ignored"])
    except FileNotFoundError:
        raise McvdError(f"{folder} is not a prepared data set (it has no {MANIFEST}); see: mcvd data prepare") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise McvdError(f"{path} is damaged ({error}); prepare the data again into another folder") from error


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / "shards" / f"{shard:05d}.npy"


class Shards(Clips):
    """Clips of one split of a prepared folder; all arguments but the folder are those of `Clips`."""

    def __init__(self, folder: Path | str, frames: int, *, split: str = "train", **options: Any):
        self.folder = expanded(folder)
        manifest = read_manifest(self.folder)
        self.entries: Sequence[Entry] = manifest.videos
        self._maps: dict[int, np.ndarray] = {}
        videos = [StoredVideo(e.source, e.frames, e.split, e.group) for e in self.entries]
        super().__init__(videos, manifest.frame_shape, frames, split=split, where=str(folder), **options)

    def _read(self, video: int, start: int) -> np.ndarray:
        entry = self.entries[video]
        first = entry.offset + start
        return self._shard(entry.shard)[first : first + self.span : self.stride]

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._maps:
            path = shard_path(self.folder, number)
            needed = max(entry.offset + entry.frames for entry in self.entries if entry.shard == number)
            try:
                frames = np.load(path, mmap_mode="r")
                if frames.dtype != np.uint8 or frames.shape[1:] != self.stored or len(frames) < needed:
                    raise ValueError(f"it is {frames.dtype} {frames.shape}, not {needed} frames of {self.stored}")
            except (OSError, ValueError) as error:
                raise McvdError(f"{path} is missing or damaged ({error}); prepare the data again") from error
            self._maps[number] = frames.view(np.ndarray)  # slicing a memmap object costs ten times more
        return self._maps[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a pickled map would carry all its data to the other process
