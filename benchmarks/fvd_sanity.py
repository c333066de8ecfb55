"""Whether FVD and KVD order what an eye orders, on real clips: python benchmarks/fvd_sanity.py CLIPS.npz ...

Of every set of videos (an npz with one array a video, or a folder of videos) two random halves of its clips are
compared: as they are, with the frames of one half in random order, and with noise on them. Expected: half against half
is the smallest, then the wrong order, then the noise; KVD, whose mean does not depend on the number of clips, is about
0 between halves, within what so few clips allow.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
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


@dataclass(frozen=True)
class Distances:
    """FVD and KVD between a half of the clips and what became of the other."""

    fvd: dict[str, float]
    kvd: dict[str, float]


def cut_clips(path: Path, frames: int, most: int | None = None, seed: int = 0) -> Tensor:
    """Clips that follow each other in the videos, in random order, ``(N, frames, C, H, W)`` uint8."""
    clips = [clip for video in find_videos(path, "real") for clip in video.read(3).split(frames) if len(clip) == frames]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))
    return torch.stack([clips[i] for i in order[:most]])


def shuffled(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Each clip's frames in an order of its own."""
    orders = [torch.randperm(clips.shape[1], generator=generator) for _ in clips]
    return torch.stack([clip[order] for clip, order in zip(clips, orders)])


def noisy(clips: Tensor, generator: torch.Generator) -> Tensor:
    """With Gaussian noise of its own on every frame."""
    return (clips.float() / 255 + NOISE * torch.randn(clips.shape, generator=generator)).clamp(0, 1)


def distances(features: Callable[[Tensor], Tensor], clips: Tensor, seed: int = 0) -> Distances:
    """Every other clip against the rest: as it is, in the wrong order, with noise."""
    generator = torch.Generator().manual_seed(seed)
    one, other = clips[0::2], clips[1::2]
    made = {"as it is": other, "shuffled": shuffled(other, generator), "noisy": noisy(other, generator)}
    real, found = features(one), {name: features(videos) for name, videos in made.items()}
    fvd = {name: frechet_distance(Moments(real), Moments(fake)) for name, fake in found.items()}
    return Distances(fvd, {name: kernel_distance(real, fake) for name, fake in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, help="npz files or folders of videos")
    parser.add_argument("--frames", type=int, default=15, help="of a clip, at least 9")
    parser.add_argument("--most", type=int, help="clips of a set at most")
    options = parser.parse_args()
    network = i3d.load()
    for path in options.clips:
        began, clips = time.perf_counter(), cut_clips(path, options.frames, options.most)
        found = distances(lambda videos: network.features(videos, 4), clips)
        cells = ", ".join(f"{name} {found.fvd[name]:.1f} (KVD {found.kvd[name]:.3f})" for name in found.fvd)
        halves = f"{(len(clips) + 1) // 2} clips against {len(clips) // 2}"
        print(
            f"{path.stem}: {halves}, {options.frames} frames: {cells}; {time.perf_counter() - began:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
