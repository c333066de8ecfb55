"""Checks and normalises what a caller passes: videos, flags and numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mcvd.errors import McvdError

MOST_FRAMES = 1_000_000
"""The most frames of one video; a larger number is a mistake, and memory would run out first."""
MOST_FPS = 1000
"""Frames per second: frames are repeated to reach a rate, and a higher one would fill any disk."""
LUMA = 0.299, 0.587, 0.114
"""ITU-R 601: weights of red, green and blue in grey."""


def given_video(video: Tensor, size: tuple[int, int], channels: int, known: Tensor | None = None) -> Tensor:
    """A video ``(T, C, H, W)`` or ``(B, T, C, H, W)``, uint8 or float in [0, 1] -> ``(B, T, C, H, W)`` float32.

    size: (height, width) that the frames must have; channels: 1 or 3, to which they are converted. known: ``(T,)``
    bool, the frames to use; all others become black, whatever they hold. Raises McvdError for anything else.
    """
    if tensor(video).dim() not in (4, 5):
        raise McvdError(f"a video is (T, C, H, W) or (B, T, C, H, W); this has shape {tuple(video.shape)}")
    if not video.numel():
        raise McvdError(f"the video is empty: its shape is {tuple(video.shape)}")
    video = (video if video.dim() == 5 else video[None]).detach()
    if known is not None:
        if known.shape != video.shape[1:2]:
            have = tuple(known.shape)
            raise McvdError(f"known has shape {have}; it takes one flag for each of {video.shape[1]} frames")
        video = video.where(known.to(video.device).view(-1, 1, 1, 1), torch.zeros_like(video))
    video = unit_range(video, 1e-4, nan=False).float().clamp(0, 1)
    if video.shape[2] != channels:
        if {video.shape[2], channels} != {1, 3}:
            raise McvdError(f"the video has {video.shape[2]} channels, the model {channels}; it is (T, C, H, W)")
        if channels == 3:
            video = video.expand(-1, -1, 3, -1, -1)
        else:
            video = (video * video.new_tensor(LUMA).view(3, 1, 1)).sum(2, keepdim=True)
    if tuple(video.shape[3:]) != size:
        (height, width), (rows, columns) = video.shape[3:], size
        raise McvdError(
            f"frames are {height}x{width}, the model's are {rows}x{columns}; read the video with size=model.size"
        )
    return video


def tensor(video: Tensor) -> Tensor:
    """The video itself; McvdError if it is not a tensor."""
    if not isinstance(video, Tensor):
        raise McvdError(f"a video is a tensor, not {type(video).__name__}; torch.as_tensor converts an array")
    return video


def unit_range(video: Tensor, beyond: float = 0.01, *, nan: bool = True) -> Tensor:
    """uint8, or float in [0, 1], of any shape -> float in [0, 1]; McvdError for other types and values.

    beyond: how far outside floats may lie, because of filters and rounding. nan: accept it, as a model may generate it.
    """
    if tensor(video).dtype == torch.uint8:
        return video.float() / 255
    if not video.is_floating_point():
        raise McvdError(f"a video is uint8 or float, not {video.dtype}")
    if video.numel():
        values = video.detach().float()
        low, high = map(float, values.aminmax())
        if nan and math.isnan(low):  # it must not hide the others
            low, high = map(float, values.nan_to_num(0.5).aminmax())
        if low < -beyond or high > 1 + beyond or (math.isnan(low) and not nan):
            raise McvdError(f"float video must lie in [0, 1]; this has values from {low:.3g} to {high:.3g}")
    return video


def frame_flags(known: Sequence[bool] | Tensor) -> Tensor:
    """One flag per frame as a bool tensor on the CPU; flags may also be 0 and 1. Raises McvdError for anything else."""
    try:
        known = known.copy() if isinstance(known, np.ndarray) else known  # torch takes no array read backwards
        flags = torch.as_tensor(known, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise McvdError(f"known is {str(known)[:60]}; it takes one flag, True or False, for each frame") from None
    if ((flags != 0) & (flags != 1)).any():
        raise McvdError("known takes one flag, True or False, for each frame, not frame numbers")
    return flags.bool()


def finite(name: str, value: float) -> float:
    """The value of an argument that must be a finite number in float32; if it is not, McvdError names it."""
    try:
        good = math.isfinite(value) and abs(value) <= torch.finfo(torch.float32).max
    except (TypeError, ValueError, OverflowError):  # a whole number may be too large for a float
        good = False
    if not good:
        raise McvdError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """The value of an argument that must be a whole number in [least, most]; if it is not, McvdError names it."""
    try:
        value = operator.index(value)
    except TypeError:
        raise McvdError(f"{name} is {value!r}; it must be a whole number") from None
    if value < least:
        raise McvdError(f"{name} is {value}; it must be at least {least}")
    if most is not None and value > most:
        raise McvdError(f"{name} is {value}; it must be at most {most}")
    return value
