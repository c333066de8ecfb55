"""Frame metrics as the published evaluation computes them, step by step, for comparison with published numbers.

Differences from the plain metrics: frames are *truncated* to 8 bits, after going to the network's [-1, 1] and back in
float32 (which lowers 63 of the 256 grey levels of real frames by one); SSIM is computed on grey frames, digits rounded
to black and white; LPIPS is computed on frames resized to 128 x 128 with Pillow, digits not rounded.
PSNR is the plain one: of the mean error over all frames of a video, before any rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcvd.evaluation.image import ssim
from mcvd.given import unit_range


def through_network_range(video: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1] -> [0, 1] in float32, the way of real frames to the metrics; uint8 is first divided by 255.

    A model's output has come from [-1, 1] already and stays the same: a second time changes nothing.
    """
    return (2 * unit_range(video).float() - 1 + 1) / 2


def to_uint8(video: Tensor, binary: bool = False) -> Tensor:
    """8-bit frames by truncation; binary: rounded to black and white first (Moving MNIST). [0, 1] or uint8 -> uint8."""
    video = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    return (255 * (video.round() if binary else video).clamp(0, 1)).to(torch.uint8)


def grey(frames: Tensor) -> Tensor:
    """Pillow's "L" of 8-bit frames: ITU-R 601 luma in integers. ``(..., 3 or 1, H, W)`` uint8 -> ``(..., 1, H, W)``."""
    if frames.shape[-3] == 1:
        return frames
    red, green, blue = frames.int().unbind(-3)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(-3)


def published_ssim(video: Tensor, truth: Tensor, binary: bool = False) -> Tensor:
    """SSIM of each frame as published. video, truth: ``(..., C, H, W)`` in [0, 1] -> ``(...)``."""
    x, y = (grey(to_uint8(frames, binary)).double() / 255 for frames in (video, truth))
    return ssim(x, y)


def published_lpips(
    network: Callable[[Tensor, Tensor], Tensor],
    video: Tensor,
    truth: Tensor,
    size: int | None = 128,
) -> Tensor:
    """LPIPS of each frame as published. video, truth: ``(..., C, H, W)`` in [0, 1] -> ``(...)``.

    size: pixels per side that frames are resized to (None: not resized, as published for Cityscapes).
    """
    x, y = (_resized(to_uint8(frames).flatten(0, -4), size) for frames in (video, truth))
    return network(x, y).view(video.shape[:-3])


def _resized(frames: Tensor, size: int | None) -> Tensor:
    """Pillow's bilinear resize of 8-bit frames ``(N, C, H, W)``, which rounds to 8 bits again."""
    if size is None:
        return frames
    pictures = [Image.fromarray(frame.permute(1, 2, 0).squeeze(-1).numpy()) for frame in frames.cpu()]
    arrays = [np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).view(len(frames), size, size, -1).permute(0, 3, 1, 2)
