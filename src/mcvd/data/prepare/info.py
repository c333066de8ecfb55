"""What a data set holds: counts, sizes, what was left out, and a picture of some clips."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mcvd.data.clips import Clips
from mcvd.data.hdf5 import Hdf5Shards, hdf5_shards, stored_videos, video_length
from mcvd.data.prepare.items import Item, array_shape, find_items, no_videos
from mcvd.data.prepare.parts import too_short
from mcvd.data.settings import Settings
from mcvd.data.shards import Shards, is_prepared, read_manifest
from mcvd.data.sheet import contact_sheet, drawable
from mcvd.data.splits import assign_splits
from mcvd.data.video import video_info
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.text import colours, counted

_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass
class SplitInfo:
    """One side of the split."""

    videos: int = 0
    frames: int = 0
    groups: set[str] = field(default_factory=set)
    shortest: int = 0
    longest: int = 0

    def add(self, frames: int, group: str) -> None:
        """Counts a video."""
        self.shortest = min(self.shortest, frames) if self.videos else frames
        self.longest = max(self.longest, frames)
        self.videos += 1
        self.frames += frames
        self.groups.add(group)


@dataclass
class DataInfo:
    """What is known about a data set. Raw videos are not decoded for it, so damage in them is not noticed."""

    path: Path
    kind: str
    """`prepared`, `hdf5` (the authors' shards) or `raw`."""
    splits: dict[str, SplitInfo] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(height, width) of the frames before preparation; empty for HDF5."""
    fps: Counter[float | None] = field(default_factory=Counter)
    """Frames per second; None: unknown."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(source, why it is left out)."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(source, what the decoder warned of), of videos that are used."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are not videos, by suffix, and folders that mcvd itself made."""
    stored: tuple[int, int, int] | None = None
    """(H, W, C) of the frames that clips are made of; None for raw videos."""

    def add(self, split: str, group: str, frames: int, size: tuple[int, int] | None, fps: float | None) -> None:
        """Counts a video."""
        self.splits.setdefault(split, SplitInfo()).add(frames, group)
        self.fps[None if fps is None else round(fps, 3)] += 1
        if size is not None:
            self.sizes[size] += 1

    def lines(self) -> list[str]:
        """Lines of text for people."""
        out = [f"{self.path}: {self.kind}"]
        if self.stored:
            out[0] += f", frames {self.stored[1]}x{self.stored[0]}, {colours(self.stored[2])}"
        for name in sorted(self.splits, key=lambda name: (_ORDER.get(name, 9), name)):
            part = self.splits[name]
            out.append(
                f"{name:<7}{counted(part.videos, 'video')} in {counted(len(part.groups), 'group')}, "
                f"{counted(part.frames, 'frame')} "
                f"({part.shortest} to {part.longest} a video)"
            )
        if self.sizes:
            some = [f"{width}x{height} ({count})" for (height, width), count in self.sizes.most_common(4)]
            out.append(f"sizes  {', '.join(some)}{', ...' if len(self.sizes) > 4 else ''} before preparation"[:200])
        rates = [f"{'unknown' if fps is None else f'{fps:.4g}'} ({count})" for fps, count in self.fps.most_common(4)]
        out.append(f"fps    {', '.join(rates)}")
        for kind, remarks in (("left out", self.skipped), ("note", self.notes)):
            out += [f"{kind}: {why if source in why else f'{source}: {why}'}" for source, why in remarks]
        if self.ignored:
            out.append("no videos: " + ", ".join(f"{count} {suffix}" for suffix, count in self.ignored.items()))
        return out


def info(path: Path | str) -> DataInfo:
    """What a prepared folder, the authors' HDF5 shards, or a place with raw videos holds."""
    path = expanded(path)
    if is_prepared(path):
        manifest = read_manifest(path)
        out = DataInfo(path, "prepared", ignored=manifest.ignored, stored=manifest.frame_shape)
        for entry in manifest.videos:
            out.add(entry.split, entry.group, entry.frames, entry.source_size, entry.fps)
        out.skipped = [(entry.source, entry.skipped) for entry in manifest.skipped]
        out.notes = [(entry.source, entry.note) for entry in manifest.videos if entry.note]
        return out
    if path.exists() and hdf5_shards(path):
        videos, _, stored = stored_videos(path)
        out = DataInfo(path, "hdf5", stored=stored)
        for video in videos:
            out.add(video.split, video.group, video.frames, None, None)
        return out
    items, ignored = find_items(path)
    if not items:
        raise no_videos(path)
    out = DataInfo(path, "raw", ignored=dict(ignored))
    usable = []
    for item in items:
        try:
            with item.on_disk() as readable:
                frames, size, fps = _measured(readable)
            if frames < Settings.min_frames:
                raise too_short(item.name, frames, Settings.min_frames)
            usable.append((item, frames, size, fps))
        except McvdError as error:
            out.skipped.append((item.name, str(error)))
    free = [item.name for item, *_ in usable if not item.split]
    drawn = dict(zip(free, assign_splits(free)))
    for item, frames, size, fps in usable:
        out.add(*drawn.get(item.name, (item.split, item.group or item.name)), frames, size, fps)
    return out


def _measured(item: Item) -> tuple[int, tuple[int, int] | None, float | None]:
    """Frames, (height, width) and rate of a video, without decoding it; None: unknown."""
    if item.problem:
        raise McvdError(item.problem)
    if item.kind in ("npz", "npy"):
        if len(shape := array_shape(item)) not in (3, 4):
            raise McvdError(f"{item.name} holds an array {shape}; a video has 3 or 4 dimensions")
        return shape[0], None, None
    if item.kind == "hdf5":
        return video_length(Path(item.files[0]), int(item.key)), None, None
    one = video_info(item.files[0])
    size = one.height, one.width
    return (len(item.files), size, None) if item.kind == "images" else (one.frames, size, one.fps)


def open_data(path: Path, frames: int, **options: Any) -> Clips:
    """Clips of a prepared folder or of the authors' HDF5 shards; options as for `Clips`."""
    if is_prepared(path):
        return Shards(path, frames, **options)
    if path.exists() and hdf5_shards(path):
        return Hdf5Shards(path, frames, **options)
    raise McvdError(f"{path} is neither a prepared folder nor HDF5 shards; prepare it: mcvd data prepare")


def data_sheet(
    path: Path | str, png: Path | str | None = None, *, clips: int = 8, frames: int = 10, split: str = "train"
) -> Image.Image:
    """A picture of clips spread evenly over the videos of a split of a prepared folder or HDF5 shards.

    png: where to save it as well. Each row is labelled with its video's name. frames: per row; fewer if no video has
    that many.
    """
    path = expanded(path)
    with warnings.catch_warnings(action="ignore"):  # what there is to say is said of the clips of the sheet
        whole = open_data(path, 1, split=split)
    frames = min(frames, max(whole.all_videos[i].frames for i in whole.videos))
    source = open_data(path, frames, split=split, fixed=clips)
    names = [source.all_videos[source.place(i).video].name for i in range(clips)]
    rows = [(drawable(name)[-32:], clip) for name, clip in zip(names, source.batch(range(clips)))]
    return contact_sheet(rows, path=png)
