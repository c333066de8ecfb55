"""`score`: measures videos from any source against real ones, by the same protocols and code as `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mcvd import __version__
from mcvd.errors import McvdError
from mcvd.evaluation.clips import content
from mcvd.evaluation.folder import Folder
from mcvd.evaluation.measure import Instruments, load_instruments, network_hashes
from mcvd.evaluation.presets import choose_metrics
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result, Source, System
from mcvd.evaluation.run import Job, Progress, Report, Worker, nothing, run
from mcvd.evaluation.video_sets import Video, files_sha256, find_videos, pair
from mcvd.files import stem
from mcvd.text import counted, printable

_VIDEOS_AT_ONCE = 32


def score(
    real: Path | str,
    made: Path | str,
    protocol: Protocol,
    output: Path | str,
    *,
    name: str = "",
    metrics: Sequence[str] | None = None,
    instruments: Instruments | None = None,
    videos: bool = True,
    device: torch.device | str = "cpu",
    worker: Worker | None = None,
    report: Report = print,
    progress: Progress | None = None,
) -> Result | None:
    """Measures videos against real ones -> the result, also written to `output`; None in all processes but the first.

    real, made: files or folders, see `find_videos`; paired as `pair` says (generation: not at all).
    A real video has at least as many frames as a clip of the protocol; only its first ones count. A generated one is a
    whole clip, whose given frames are taken as they are, or the generated frames alone. Frames are not changed: the
    protocol's stride and resizing describe how the real clips were made; other sizes are refused.
    name: of the system (default: the name of `made`). The other arguments are those of `evaluate`.
    """
    worker = worker or Worker.of_torchrun()
    say = report if worker.rank == 0 else nothing
    chosen, notes = choose_metrics(protocol, metrics, published=instruments is None)
    for note in notes:
        say(note)
    truth, fakes = find_videos(real, "real"), find_videos(made, "made")
    pairs = _pairs(protocol, truth, fakes, say)
    if len(pairs) > protocol.clips:
        raise McvdError(
            f"{real} holds {counted(len(pairs), 'clip')}, but protocol {protocol.name} takes {protocol.clips}: "
            f"--set clips={len(pairs)} measures all"
        )
    if len(pairs) < protocol.clips:
        clips = counted(len(pairs), "clip")
        say(f"note: {clips} of the {protocol.clips} of protocol {protocol.name}: the result is incomplete")
    truth = truth[: len(pairs)]
    known = _RealVideos(truth, protocol, say)
    job = Job(
        protocol,
        System(printable(name or stem(made) or str(made)), version=__version__),
        chosen,
        known,
        len(pairs),
        *content(known, len(pairs)),
        _reader(fakes, pairs, protocol),
        batch=max(1, _VIDEOS_AT_ONCE // protocol.samples),
        networks=network_hashes(chosen) if instruments is None else dict(instruments.hashes),
        sources=[Source(video.name) for video in truth],
        videos=files_sha256(fakes),
    )
    return run(
        job,
        Folder(output),
        lambda: instruments or load_instruments(chosen, device),
        videos=videos,
        worker=worker,
        device=device,
        report=say,
        progress=progress if worker.rank == 0 else None,
    )


def _pairs(protocol: Protocol, real: list[Video], made: list[Video], report: Report) -> list[list[int]]:
    """The indices of the generated videos of each real one that is measured."""
    samples = protocol.samples
    if protocol.task != "generate":
        pairs, named = pair(real, made, samples)
        if not named:
            ends = [f"{real[i].name} with {made[i].name}" for i in ([0, -1] if len(made) > 1 else [0])]
            report(f"paired in sorted order: {', '.join(ends)}")
        return pairs
    count = min(len(real), len(made) // samples)
    if not count:
        raise McvdError(f"{len(made)} generated videos are too few: protocol {protocol.name} takes {samples} per clip")
    if len(real) > count or len(made) > count * samples:
        report(f"measuring the first {count} of {len(real)} real and {count * samples} of {len(made)} generated videos")
    return [list(range(i * samples, (i + 1) * samples)) for i in range(count)]


class _RealVideos:
    """Real clips from files."""

    def __init__(self, videos: Sequence[Video], protocol: Protocol, report: Report):
        self.videos, self.protocol, self.report = videos, protocol, report
        self.said = False

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The clips with these numbers, ``(B, T, C, H, W)`` uint8."""
        return torch.stack([self._clip(self.videos[i]) for i in indices])

    def _clip(self, video: Video) -> Tensor:
        protocol, frames = self.protocol, video.read(self.protocol.channels)
        _check_size(video, frames, protocol)
        if len(frames) < protocol.clip_frames:
            raise McvdError(
                f"{video.name} has {len(frames)} frames; a clip of protocol {protocol.name} has {protocol.clip_frames}"
            )
        if len(frames) > protocol.clip_frames and not self.said:
            self.said = True
            self.report(
                f"note: real videos are longer than a clip ({video.name}: {len(frames)} frames): only the first "
                f"{protocol.clip_frames} count"
            )
        return frames[: protocol.clip_frames]


def _reader(made: Sequence[Video], pairs: list[list[int]], protocol: Protocol) -> Callable[[int, Tensor], Tensor]:
    def read(first: int, real: Tensor) -> Tensor:
        groups = pairs[first : first + len(real)]
        return torch.stack(
            [torch.stack([_made_clip(made[i], clip, protocol) for i in group]) for clip, group in zip(real, groups)]
        )

    return read


def _made_clip(video: Video, real: Tensor, protocol: Protocol) -> Tensor:
    frames = video.read(protocol.channels)
    _check_size(video, frames, protocol)
    if len(frames) == protocol.clip_frames:
        return frames
    if len(frames) == protocol.frames:  # the generated frames alone
        whole = real.clone()
        whole[protocol.made] = frames
        return whole
    which = f"{protocol.clip_frames} frames" + (
        f", or the {protocol.frames} generated ones" if protocol.frames < protocol.clip_frames else ""
    )
    raise McvdError(f"{video.name} has {len(frames)} frames; protocol {protocol.name} takes {which}")


def _check_size(video: Video, frames: Tensor, protocol: Protocol) -> None:
    height, width = frames.shape[2:]
    if (height, width) != protocol.size:
        times = height // protocol.size[0]
        enlarged = times > 1 and (height, width) == (times * protocol.size[0], times * protocol.size[1])
        hint = (
            "; mcvd enlarges small frames in mp4, mov, webm, avi and gif: write mkv, npz or folders of frames instead"
            if enlarged
            else ""
        )
        raise McvdError(
            f"{video.name} has frames of {width}x{height}, but protocol {protocol.name} compares "
            f"{protocol.size[1]}x{protocol.size[0]}{hint}; --set size=[{height},{width}] measures at that size"
        )
