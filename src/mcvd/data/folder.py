"""A folder of anyone's videos as training clips: decoded once, kept as uint8 in memory, addressed by position."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcvd.data.video import IMAGE_SUFFIXES, read_video
from mcvd.errors import McvdError

TEST_SHARE = 10  # one video in this many is kept for validation, chosen by a hash of its name


class VideoFolder:
    """Random clips from every video file, array file and image folder below `path`.

    frames: consecutive frames of a clip, `stride` video frames apart. Position i of the stream is a function of
    (seed, i) and the files alone. Videos that cannot be read, or are too short, are named in a warning and left out.
    split: "train" or "test"; whole videos are assigned by name, see `in_split`.
    """

    def __init__(
        self,
        path: Path,
        frames: int,
        *,
        size: tuple[int, int],
        channels: int,
        stride: int = 1,
        flip: bool = False,
        split: str = "train",
        seed: int = 0,
    ):
        if not path.exists():
            raise McvdError(f"{path} is not there; give a folder of videos")
        sources = find_videos(path)
        if not sources:
            raise McvdError(f"{path} holds no videos, arrays or folders of images")
        mine = in_split(sources, path, split)
        self.videos: list[Tensor] = []
        problems = []
        for source in mine:
            try:
                video = read_video(source, size=size, channels=channels, stride=stride)
            except McvdError as error:
                problems.append(str(error))
                continue
            if len(video) >= frames:
                self.videos.append(video)
            else:
                problems.append(f"{source} has {len(video)} frames at stride {stride}, a clip needs {frames}")
        if problems:
            warnings.warn(f"{len(problems)} of {len(mine)} videos left out: {'; '.join(problems)}", stacklevel=2)
        if not self.videos:
            raise McvdError(f"no usable video in {path}: {problems[0]}")
        self.frames, self.flip, self.seed = frames, flip, seed
        # long videos hold more clips, so they are drawn more often
        self.starts = np.cumsum([len(video) - frames + 1 for video in self.videos])

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """``(B, frames, C, H, W)`` uint8."""
        return torch.stack([self._clip(int(i)) for i in indices])

    def _clip(self, index: int) -> Tensor:
        draw = np.random.default_rng([self.seed, index])
        place = int(draw.integers(self.starts[-1]))
        which = int(np.searchsorted(self.starts, place, side="right"))
        start = place - (int(self.starts[which - 1]) if which else 0)
        clip = self.videos[which][start : start + self.frames]
        return clip.flip(-1) if self.flip and draw.integers(2) else clip


def find_videos(path: Path) -> list[Path]:
    """Every video below a folder, sorted: files that `read_video` opens, and folders that hold images."""
    if path.is_file():
        return [path]
    found: set[Path] = set()
    for file in path.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        suffix = file.suffix.lower()
        if suffix in STILLS:
            found.add(file.parent)
        elif suffix in VIDEOS:
            found.add(file)
    return sorted(found)


VIDEOS = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".ts",
        ".3gp",
        ".ogv",
        ".gif",
        ".webp",
        ".apng",
        ".npz",
        ".npy",
    ]
)
STILLS = frozenset(IMAGE_SUFFIXES) - VIDEOS


def in_split(videos: Sequence[Path], root: Path, split: str) -> list[Path]:
    """The videos of a split. One in `TEST_SHARE`, and at least one, is "test", by a hash of its path below the root.

    No video is in both splits, unless there is only one.
    """

    def draw(video: Path) -> int:
        return int.from_bytes(hashlib.sha256(video.relative_to(root).as_posix().encode()).digest()[:4], "big")

    test = {video for video in videos if draw(video) % TEST_SHARE == 0}
    if not test or len(test) == len(videos):
        test = {min(videos, key=draw)}
    return [video for video in videos if (video in test) == (split == "test")] or list(videos)
