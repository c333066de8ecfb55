"""A metric frame by frame: for the system, with its 95 % interval, and for copying the given frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcvd.evaluation.measure import Instruments, measure
from mcvd.evaluation.presets import choose_metrics
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Source
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.statistics import half_width, videos_of
from mcvd.evaluation.table import Table
from mcvd.text import counted

SMALLEST_ERROR = 1e-10  # mean squared error of a frame, 100 dB: an identical frame would have infinite PSNR
COLUMN = {"psnr": "mse", "ssim": "ssim", "lpips": "lpips"}


@dataclass(frozen=True)
class Curve:
    """Mean over clips at every generated frame, and the ends of its 95 % interval (see `half_width`)."""

    label: str
    mean: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    role: str = "system"
    """`system`, `mean` (over its samples) or `copy`."""


def frame_values(table: Table, metric: str) -> Tensor:
    """``psnr``, ``ssim`` or ``lpips`` of every frame of every video, ``(clips, samples, frames)``."""
    values = table.grid(COLUMN[metric]).double()
    return decibels(values) if metric == "psnr" else values


def decibels(error: Tensor) -> Tensor:
    """PSNR of mean squared errors."""
    return -10 * error.clamp_min(SMALLEST_ERROR).log10()


def system_curves(table: Table, metric: str, best: bool, sources: Sequence[Source] = ()) -> list[Curve]:
    """The curve that the protocol asks for, with its interval, and, if that is the best sample's, also the mean over
    samples: what a single video is like. sources: where each clip comes from."""
    videos = videos_of(sorted({clip for clip, _ in table}), sources)
    values = frame_values(table, metric)
    mean, samples = values.mean(1), values.shape[1]
    if not best or samples == 1:
        label = f"mean over {samples} samples" if samples > 1 else "the sample"
        return [_with_interval(label, mean, videos)]
    chosen = values[torch.arange(len(values), device="cpu"), table.best_samples(metric)]
    return [
        _with_interval(f"best of {samples} samples", chosen, videos),
        Curve("mean over samples", mean.mean(0).tolist(), role="mean"),
    ]


def _with_interval(label: str, values: Tensor, videos: Sequence[int]) -> Curve:
    mean = values.mean(0)
    if max(videos) < 1:
        return Curve(label, mean.tolist())
    half = half_width(values, videos)
    return Curve(label, mean.tolist(), (mean - half).tolist(), (mean + half).tolist())


def copied(real: Tensor, protocol: Protocol) -> Tensor | None:
    """A prediction that needs no model, ``(frames, C, H, W)`` uint8: the nearest given frame repeated or, between two,
    a cross-fade; None for generation. real: ``(T, C, H, W)`` uint8."""
    p, n = protocol.past, protocol.frames
    if protocol.task == "generate":
        return None
    if protocol.task == "predict":
        return real[p - 1].expand(n, *real.shape[1:])
    if protocol.task == "backward":
        return real[p + n].expand(n, *real.shape[1:])
    share = (torch.arange(1, n + 1, device=real.device) / (n + 1)).view(n, 1, 1, 1)
    return ((1 - share) * real[p - 1].float() + share * real[p + n].float()).round().to(torch.uint8)


def copy_label(protocol: Protocol) -> str:
    """What `copied` does, in words."""
    return {
        "predict": "last given frame copied",
        "backward": "first given frame copied",
        "interpolate": "given frames faded",
        "generate": "",
    }[protocol.task]


def copy_table(evaluation: Evaluation) -> Table | None:
    """Squared error and SSIM of `copied` for the clips whose videos were kept, measured as the protocol says; None for
    generation or without videos. SSIM is left out if its window does not fit."""
    protocol, table = evaluation.result.protocol, Table()
    if protocol.task == "generate" or not evaluation.videos:
        return None
    metrics = [name for name in ("psnr", "ssim") if name in choose_metrics(protocol)[0]]
    for clip in evaluation.videos:
        real = evaluation.real(clip)
        copy = copied(real, protocol)
        assert copy is not None  # None only for generation
        whole = real.clone()
        whole[protocol.made] = copy
        table.merge(measure(protocol, metrics, Instruments(), clip, real[None], whole[None, None]))
    return table


def copy_curve(table: Table, metric: str, label: str) -> Curve | None:
    """The curve of a `copy_table`; None for a metric that is not in it."""
    if COLUMN[metric] not in table.columns:
        return None
    words = f"{label} ({counted(len(table), 'clip')})"
    return Curve(words, frame_values(table, metric).mean((0, 1)).tolist(), role="copy")
