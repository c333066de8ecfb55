"""Measures a batch of clips under a protocol: rows of a `Table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.evaluation import i3d, lpips
from mcvd.evaluation.calibration import calibration
from mcvd.evaluation.image import mse, ssim
from mcvd.evaluation.presets import OF_FEATURES
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.published_frames import published_lpips, published_ssim, through_network_range
from mcvd.evaluation.published_weights import PUBLISHED, Name
from mcvd.evaluation.table import Table


@dataclass(frozen=True)
class Instruments:
    """The metric networks."""

    features: Callable[[Tensor], Tensor] | None = None
    """Videos ``(B, T, C, H, W)`` in [0, 1] -> features ``(B, D)``, for FVD and KVD."""
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    """Two batches of images ``(B, C, H, W)`` in [0, 1] or uint8 -> distances ``(B,)``."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """sha256 of their weights, by name."""


def network_hashes(metrics: Sequence[str]) -> dict[str, str]:
    """sha256 of the published networks that these metrics need, by name."""
    needed: dict[Name, bool] = {"i3d": bool(OF_FEATURES & set(metrics)), "lpips": "lpips" in metrics}
    return {name: PUBLISHED[name].tensors_sha256 for name, is_needed in needed.items() if is_needed}


def load_instruments(metrics: Sequence[str], device: torch.device | str = "cpu") -> Instruments:
    """The networks that these metrics need, on a device; raises McvdError that says how to get missing weights."""
    features = distance = None
    hashes = network_hashes(metrics)
    try:
        if "i3d" in hashes:
            network = i3d.load(device=device)
            chunk = 4 if torch.device(device).type == "cpu" else 16

            def features(videos: Tensor) -> Tensor:
                return network.features(videos, chunk)

        if "lpips" in hashes:
            distance = lpips.load(device=device)
    except McvdError as error:
        rest = ",".join(name for name in metrics if name not in OF_FEATURES | {"lpips"})
        without = f" (or measure without: --metrics {rest})" if rest else ""
        raise McvdError(f"{error}{without}") from None
    return Instruments(features, distance, hashes)


def as_saved(videos: Tensor) -> Tensor:
    """Videos in 8 bits, rounded to nearest: [0, 1] or uint8 -> uint8."""
    return videos if videos.dtype == torch.uint8 else (255 * videos.clamp(0, 1)).round().to(torch.uint8)


def measure(
    protocol: Protocol,
    metrics: Sequence[str],
    instruments: Instruments,
    first: int,
    real: Tensor,
    made: Tensor,
    real_features: Tensor | None = None,
) -> Table:
    """The rows of clips first, first + 1, ...

    real: ``(B, T, C, H, W)`` uint8. made: ``(B, S, T, C, H, W)``, float in [0, 1] or uint8: whole clips with the given
    frames in place. real_features: features of the real clips ``(B, D)``, if already known.
    """
    count, samples = made.shape[:2]
    if protocol.pixels == "plain":
        truth, videos = real.float() / 255, as_saved(made).float() / 255
    else:
        # both, so that equal files measure as equal; it leaves what a model generated unchanged
        truth, videos = through_network_range(real), through_network_range(made)
    clips = range(first, first + count)
    table = Table()
    pairs = {"clips": [clip for clip in clips for _ in range(samples)], "samples": list(range(samples)) * count}

    def add(**columns: Tensor) -> None:
        table.add(pairs["clips"], pairs["samples"], **{name: value.flatten(0, 1) for name, value in columns.items()})

    if protocol.task != "generate":
        x, y = videos[:, :, protocol.made], truth[:, protocol.made]
        y_each = y[:, None].expand_as(x)
        if "psnr" in metrics:
            add(mse=mse(x, y_each))
        if "ssim" in metrics:
            add(ssim=published_ssim(x, y_each, protocol.binary) if protocol.pixels == "published" else ssim(x, y_each))
        if "lpips" in metrics:
            add(lpips=_lpips(protocol, instruments, x, y_each))
        if "calibration" in metrics:
            table.add(clips, 0, **calibration(x, y))
    if OF_FEATURES & set(metrics):
        assert instruments.features is not None
        seen = protocol.made if protocol.fvd == "made" else slice(None)
        if real_features is None:
            real_features = instruments.features(truth[:, seen]).cpu()
        table.add(clips, 0, real=real_features)
        add(features=instruments.features(videos[:, :, seen].flatten(0, 1)).cpu().unflatten(0, (count, samples)))
    return table


def _lpips(protocol: Protocol, instruments: Instruments, x: Tensor, y: Tensor) -> Tensor:
    network = instruments.lpips
    assert network is not None
    if protocol.pixels == "published":
        return published_lpips(network, x, y, protocol.lpips_size).cpu()
    return network(x.flatten(0, 2), y.flatten(0, 2)).view(x.shape[:3]).cpu()
