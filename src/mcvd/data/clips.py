"""Training and test clips by position, from whole videos in any store.

`Clips` chooses the video, the first frame, the part of the picture and whether to mirror it; a store (`Shards`,
`Hdf5Shards`) only has to return frames. Position i depends only on (seed, i) and the data: there is no state, so a run
that is continued, or spread over several processes, sees the same clips.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcvd.data.stills import natural
from mcvd.errors import McvdError
from mcvd.given import whole
from mcvd.text import colours


@dataclass(frozen=True)
class StoredVideo:
    """A video of a data set: its name, how many frames are stored, and which side of the split it is on."""

    name: str
    frames: int
    split: str
    group: str


class Place(NamedTuple):
    """Where a clip lies: index of the video, first frame, corner of the picture in pixels, mirrored or not."""

    video: int
    start: int
    top: int
    left: int
    mirrored: bool


class Clips:
    """Clips of `frames` frames, `stride` stored frames apart, from the videos of one split.

    size: (height, width) of a clip. From larger stored frames, a random part of that size is cut out, the same for all
    frames of a clip (the middle for fixed clips). None: whole frames.
    flip: mirror half of the clips left to right (never fixed ones).
    fixed: None: an endless random stream; long videos hold more clips, so they are drawn more often. A number: that
    many clips that never change, spread evenly over the videos (as the published test sets are) and over their
    lengths; position i is clip i mod `fixed`.
    split: side of the split that the videos are from; `all`: every video.
    starts: first frames of fixed clips: spread over the length of their video, or `published_starts` with the seed.
    where: the data set's name in errors. Videos too short for a clip are named in a warning and left out.
    """

    def __init__(
        self,
        videos: Sequence[StoredVideo],
        stored: tuple[int, int, int],
        frames: int,
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        stride: int = 1,
        flip: bool = False,
        split: str = "train",
        fixed: int | None = None,
        starts: Literal["spread", "published"] = "spread",
        seed: int = 0,
        where: str = "the data",
    ):
        frames, stride, seed = whole("frames", frames, 1), whole("stride", stride, 1), whole("seed", seed, 0)
        fixed = None if fixed is None else whole("fixed", fixed, 1)
        size = size or stored[:2]
        if channels not in (None, stored[2]) or size[0] > stored[0] or size[1] > stored[1]:
            raise McvdError(
                f"{where} holds frames of {stored[1]}x{stored[0]}, {colours(stored[2])}; {size[1]}x{size[0]}, "
                f"{colours(channels or stored[2])}, are needed: prepare the videos again, into another folder"
            )
        self.frames, self.size, self.channels, self.stride = frames, size, stored[2], stride
        self.flip, self.fixed, self.seed = flip, fixed, seed
        self.stored, self.all_videos = stored, videos
        self.slack = (stored[0] - size[0], stored[1] - size[1])
        self.span = (frames - 1) * stride + 1
        mine = _of_split(videos, split, where)
        if fixed is not None:  # by persons, then by names, as the published test set of KTH; other groups follow names
            mine.sort(key=lambda i: natural(videos[i].group))
        self.videos = [i for i in mine if videos[i].frames >= self.span]
        if not self.videos:
            raise _all_short(videos, mine, split, self.span, where)
        short = [f"{videos[i].name} ({videos[i].frames})" for i in mine if videos[i].frames < self.span]
        if short:
            some = ", ".join(short[:5]) + (", ..." if len(short) > 5 else "")
            warnings.warn(
                f"{len(short)} of {len(mine)} videos for {split} in {where} are shorter than a clip ({self.span} "
                f"frames): {some}; left out",
                stacklevel=3,
            )
        self.rooms = np.array([videos[i].frames - self.span + 1 for i in self.videos])
        self.ends = np.cumsum(self.rooms)
        last = len(self.videos) - 1
        self._chosen = [round(i / max(fixed - 1, 1) * last) for i in range(fixed)] if fixed else []
        self._starts = None
        if starts == "published":
            self._starts = published_starts([int(self.rooms[which]) for which in self._chosen], seed)

    def __len__(self) -> int:
        """The number of different clips: of all videos, the possible first frames."""
        return int(self.ends[-1])

    def place(self, index: int) -> Place:
        """Where the clip at a position lies."""
        if self.fixed is not None:
            return self._fixed_place(index % self.fixed)
        draw = np.random.default_rng([self.seed, index])
        clip, mirrored = int(draw.integers(self.ends[-1])), bool(draw.integers(2))
        which = int(np.searchsorted(self.ends, clip, side="right"))
        start = clip - int(self.ends[which] - self.rooms[which])
        top, left = (int(draw.integers(room + 1)) if room else 0 for room in self.slack)
        return Place(self.videos[which], start, top, left, mirrored and self.flip)

    def _fixed_place(self, index: int) -> Place:
        """Videos by the published rule; clips that share a video are spread over its length, the first at frame 0."""
        which = self._chosen[index]
        if self._starts is not None:
            return Place(self.videos[which], self._starts[index], self.slack[0] // 2, self.slack[1] // 2, False)
        first, sharing = self._chosen.index(which), self._chosen.count(which)
        start = round((index - first) / max(sharing - 1, 1) * (int(self.rooms[which]) - 1))
        return Place(self.videos[which], start, self.slack[0] // 2, self.slack[1] // 2, False)

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips at these positions, ``(B, frames, C, H, W)`` uint8."""
        places = [self.place(int(i)) for i in indices]
        height, width = self.size
        out = np.empty((len(places), self.frames, self.channels, height, width), np.uint8)
        for row, place in zip(out, places):
            clip = self._read(place.video, place.start)
            clip = clip[:, place.top : place.top + height, place.left : place.left + width]
            for channel in range(self.channels):
                row[:, channel] = clip[..., channel]
        # mirrored here, not above: reading pixels backwards, three bytes apart, takes five times as long as the copy
        clips, mirrored = torch.from_numpy(out), torch.tensor([place.mirrored for place in places], device="cpu")
        if mirrored.any():
            clips[mirrored] = clips[mirrored].flip(-1)
        return clips

    def _read(self, video: int, start: int) -> np.ndarray:
        """Frames start, start + stride, ... of a video, ``(frames, H, W, C)`` uint8; `video` counts all splits."""
        raise NotImplementedError


def published_starts(rooms: Sequence[int], seed: int) -> list[int]:
    """First frames of test clips by the rule of the authors' loader: clips are visited in a random order, and each
    start is drawn from numpy's legacy generator; the last of its `rooms` possible ones is never drawn if there are two.

    Both streams begin at `seed`. In the authors' runs, they continued after whatever had been drawn before (weights,
    other loaders), so the distribution is theirs, but not the exact clips of a published run.
    """
    order = torch.randperm(len(rooms), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    rng, out = np.random.RandomState(seed), [0] * len(rooms)
    for index in order:
        out[index] = int(rng.choice(rooms[index] - 1)) if rooms[index] > 1 else 0
    return out


def _of_split(videos: Sequence[StoredVideo], split: str, where: str) -> list[int]:
    """Indices of the videos of a split, or of `all`; data with a single group serve for all splits, with a warning."""
    if split == "all":
        return list(range(len(videos)))
    mine = [i for i, video in enumerate(videos) if video.split == split]
    if mine:
        return mine
    counts = {name: sum(video.split == name for video in videos) for name in sorted({v.split for v in videos})}
    if len({video.group for video in videos}) == 1:
        warnings.warn(f"{where} holds one group of videos, so '{split}' is the same as training", stacklevel=4)
        return list(range(len(videos)))
    raise McvdError(
        f"{where} holds no video for {split}, only {counts}: name the folder of all of them, or split them otherwise "
        "(split_by)"
    )


def _all_short(videos: Sequence[StoredVideo], mine: Sequence[int], split: str, span: int, where: str) -> McvdError:
    """The error if no video of a split is long enough for a clip; another split may have longer ones."""
    best, longest = (max(some, key=lambda video: video.frames) for some in ([videos[i] for i in mine], videos))
    text = (
        f"no video for {split} in {where} is as long as a clip, {span} frames from its first to its last: the longest "
        f"of {len(mine)} has {best.frames}"
    )
    if longest.frames < span:
        return McvdError(f"{text}; take longer videos, clips of fewer frames, or a smaller stride")
    return McvdError(
        f"{text}; one of {longest.frames} is for {longest.split}: sort the videos into train/ and test/ folders, or "
        "split them differently (split_by; test_share of mcvd data prepare)"
    )
