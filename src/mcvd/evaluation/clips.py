"""The real clips of a protocol, by number: the same on every machine and in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from mcvd.data.clips import Clips
from mcvd.data.moving_mnist import CANVAS, MovingMNIST, check_frames, find_mnist, load_digits, reference_sequence
from mcvd.data.settings import settings_for
from mcvd.errors import McvdError
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Source
from mcvd.files import expanded
from mcvd.text import counted, printable

PUBLISHED_DIGITS = 256
"""Test images, counted from the first, that the published test set draws its digits from."""
_AT_ONCE = 32  # clips


class RealClips(Interface):
    """Clips ``(B, T, C, H, W)`` uint8 by their numbers."""

    def batch(self, indices: Sequence[int], /) -> Tensor:
        """The clips with these numbers."""


def real_clips(protocol: Protocol, data: Path | str | None = None, report: Callable[[str], None] = print) -> RealClips:
    """The real clips of a protocol, numbers 0 .. protocol.clips - 1.

    data: a folder made by `mcvd data prepare`, raw videos (prepared once, in the cache; `report` gets lines about it)
    or the authors' HDF5 shards; for Moving MNIST a folder with the MNIST files (None: the cache).
    Raises McvdError if the data are missing or do not fit the protocol.
    """
    path = None if data is None else expanded(data)
    if protocol.source == "moving-mnist":
        return _moving_digits(protocol, path)
    if path is None:
        raise McvdError(f"protocol {protocol.name} needs {protocol.data}: say where the videos are with --data FOLDER")
    return _stored(protocol, path, report)


def _moving_digits(protocol: Protocol, path: Path | None) -> RealClips:
    if protocol.split == "all":
        raise McvdError("Moving MNIST has training and test digits only: set split to train or test")
    check_frames(protocol.size, protocol.channels, "the protocol")
    digits = load_digits(find_mnist(path), "train" if protocol.split == "train" else "test", limit=PUBLISHED_DIGITS)
    span = (protocol.clip_frames - 1) * protocol.stride + 1
    if protocol.choice == "published":
        return _PublishedDigits(protocol, digits, span)
    return _Strided(MovingMNIST(digits, span, size=protocol.size[0], seed=protocol.choice_seed), protocol.stride)


class _Strided:
    """Every stride-th frame of clips."""

    def __init__(self, clips: MovingMNIST, stride: int):
        self.clips, self.stride = clips, stride

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self.clips.batch(indices)[:, :: self.stride]


class _PublishedDigits:
    """The authors' stream of Moving MNIST, started at the seed. In their runs the seed is the first index that a
    shuffled loader happens to request, so the distribution is theirs, but the exact clips of a published run are not
    known."""

    def __init__(self, protocol: Protocol, digits: Tensor, span: int):
        rng = np.random.RandomState(protocol.choice_seed)
        videos = torch.stack([reference_sequence(digits, rng, span) for _ in range(protocol.clips)])
        if protocol.size[0] != CANVAS:
            means = videos.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).float().mean((-1, -3))
            videos = means.add(0.5).floor().to(torch.uint8)  # halves up, as `MovingMNIST` rounds
        self.videos = videos[:, :: protocol.stride]

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self.videos[list(indices)]


def _stored(protocol: Protocol, path: Path, report: Callable[[str], None]) -> RealClips:
    from mcvd.data.prepare import open_data, prepared_data  # needs PyAV; Moving MNIST does not

    height, width = protocol.size
    place = prepared_data(path, settings_for(protocol.source, protocol.size, protocol.channels), report)
    clips = open_data(
        place,
        protocol.clip_frames,
        size=protocol.size,
        channels=protocol.channels,
        stride=protocol.stride,
        split=protocol.split,
        fixed=protocol.clips,
        starts="published" if protocol.choice == "published" else "spread",
        seed=protocol.choice_seed,
    )
    if height < clips.stored[0] and width < clips.stored[1]:
        raise McvdError(
            f"{path} holds frames of {clips.stored[1]}x{clips.stored[0]}, but protocol {protocol.name} compares"
            f" {width}x{height}: prepare the videos at that size, or measure at theirs with"
            f" --set size=[{clips.stored[0]},{clips.stored[1]}]"
        )
    used, whole = len(clips.videos), len(clips.all_videos)
    trained = sum(clips.all_videos[i].split == "train" for i in clips.videos)
    on = f"measuring on {counted(used, 'video')} of {whole}"
    if protocol.source == "videos" and protocol.split == "all" and trained:
        report(f"{on}; a model trained on this folder has seen {trained} of them")
    elif protocol.split != "all" and used < whole:
        too = "" if protocol.split == "train" else ", those for training too"
        hint = f"; --set split=all takes all{too}" if protocol.source == "videos" else ""  # else: a published split
        report(f"{on} (split {protocol.split}){hint}")
    return clips


def sources(clips: RealClips, count: int) -> list[Source]:
    """Where clips 0 .. count - 1 come from; empty for clips that are not cut out of stored videos."""
    if not isinstance(clips, Clips):
        return []
    places = map(clips.place, range(count))
    return [Source(printable(clips.all_videos[place.video].name), place.start) for place in places]


def content(clips: RealClips, count: int) -> tuple[str, int]:
    """A hash of the pixels of clips 0 .. count - 1, and how many of these clips are distinct."""
    digest, each = hashlib.sha256(), set()
    for first in range(0, count, _AT_ONCE):
        part = clips.batch(range(first, min(first + _AT_ONCE, count)))
        if first == 0:
            digest.update(f"{count} {list(part.shape[1:])}\n".encode())
        for clip in part.contiguous().numpy():
            data = clip.tobytes()
            digest.update(data)
            each.add(hashlib.sha256(data).digest())
    return digest.hexdigest(), len(each)
