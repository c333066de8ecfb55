"""Whether FVD and KVD rank distortions of real clips as an eye does: python benchmarks/fvd_sanity.py CLIPS.npz ...

For every set of videos (an npz with one array per video, or a folder of videos), random halves of its clips are
compared, many times: unchanged, with the frames of one half in random order, and with noise on them. Expected in every
split: unchanged halves are closest, then the wrong order, then the noise. KVD is unbiased: between unchanged halves its
mean over the splits is 0, however few clips there are, and single splits scatter around it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcvd.evaluation import i3d
from mcvd.evaluation.frechet import Moments, frechet_distance, kernel_distance
from mcvd.evaluation.video_sets import find_videos

NOISE = 0.1  # standard deviation, frames in [0, 1]
MADE = ("as they are", "wrong order", "noise")


@dataclass(frozen=True)
class Distances:
    """FVD and KVD between one half of the clips and each version (`MADE`) of the other, one value per split."""

    fvd: dict[str, list[float]]
    kvd: dict[str, list[float]]

    def in_order(self) -> int:
        """Number of splits in which FVD grows from each of `MADE` to the next."""
        return sum(a < b < c for a, b, c in zip(*(self.fvd[name] for name in MADE), strict=True))


def cut_clips(path: Path, frames: int, most: int | None = None, seed: int = 0) -> Tensor:
    """Consecutive clips of the videos, in random order, ``(N, frames, C, H, W)`` uint8."""
    clips = [clip for video in find_videos(path, "real") for clip in video.read(3).split(frames) if len(clip) == frames]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))
    return torch.stack([clips[i] for i in order[:most]])


def shuffled(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Each clip's frames in a random order of its own."""
    orders = [torch.randperm(clips.shape[1], generator=generator) for _ in clips]
    return torch.stack([clip[order] for clip, order in zip(clips, orders)])


def noisy(clips: Tensor, generator: torch.Generator) -> Tensor:
    """The clips with independent Gaussian noise on every frame."""
    return (clips.float() / 255 + NOISE * torch.randn(clips.shape, generator=generator)).clamp(0, 1)


def distances(features: Callable[[Tensor], Tensor], clips: Tensor, splits: int, seed: int = 0) -> Distances:
    """One random half of the clips against the other: unchanged, in the wrong order, with noise."""
    generator = torch.Generator().manual_seed(seed)
    videos = clips, shuffled(clips, generator), noisy(clips, generator)
    found = {name: features(videos) for name, videos in zip(MADE, videos)}
    result = Distances({name: [] for name in MADE}, {name: [] for name in MADE})
    for _ in range(splits):
        order = torch.randperm(len(clips), generator=generator)
        one, other = order[: len(clips) // 2], order[len(clips) // 2 :]
        real = found["as they are"][one]
        for name in MADE:
            fake = found[name][other]
            result.fvd[name].append(frechet_distance(Moments(real), Moments(fake)))
            result.kvd[name].append(kernel_distance(real, fake))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, help="npz files or folders of videos")
    parser.add_argument("--frames", type=int, default=10, help="frames per clip, at least 9")
    parser.add_argument("--most", type=int, help="most clips per set")
    parser.add_argument("--splits", type=int, default=20, help="random splits per set")
    options = parser.parse_args()
    network = i3d.load()
    for path in options.clips:
        began, clips = time.perf_counter(), cut_clips(path, options.frames, options.most)
        found = distances(lambda videos: network.features(videos, 4), clips, options.splits)
        sizes = f"{len(clips) // 2} clips against {len(clips) - len(clips) // 2}, {options.frames} frames"
        order = f"FVD in order in {found.in_order()} of {options.splits} splits"
        print(f"{path.stem}: {sizes}; {order}; {time.perf_counter() - began:.0f} s")
        for name in MADE:
            print(f"  {name:12} FVD {_spread(found.fvd[name])}, KVD {_spread(found.kvd[name])}", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} (splits: {min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
