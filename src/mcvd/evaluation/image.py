"""Frame metrics: squared error, PSNR and SSIM of two videos; `published_frames.py` has the published variants.

Videos are uint8 or float in [0, 1], each on its own. Leading axes broadcast: many samples, one ground truth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.given import unit_range

SMALLEST = 11
"""Smallest side, in pixels, that SSIM's window fits into."""


def mse(video: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each frame. video, truth: ``(..., C, H, W)`` in [0, 1] -> ``(...)``, float64.

    Kept per frame, it gives the PSNR of any set of frames: -10 log10 of their mean. Raises McvdError for frames of
    different shapes.
    """
    x, y = _pair(video, truth, 3)
    return (x - y).square().flatten(-3).mean(-1)


def psnr(video: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each video, in dB: 10 log10(1 / mean squared error over all its frames).

    video, truth: ``(..., T, C, H, W)`` in [0, 1] -> ``(...)``, float64. This is the PSNR of the mean error, as in the
    published results, not the mean of the frames' PSNRs. Raises McvdError for videos of different shapes.
    """
    x, y = _pair(video, truth, 4)
    return -10 * torch.log10((x - y).square().flatten(-4).mean(-1))


def ssim(video: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004), as in scikit-image with `gaussian_weights=True`.

    video, truth: ``(..., C, H, W)`` in [0, 1], sides of at least 11 pixels -> ``(...)``, float64, mean over colours.
    Gaussian window of 11x11 pixels, sigma 1.5; data range 1; only where the window fits (another treatment of
    borders gives other values: torchmetrics is 0.05 higher on 64x64 frames).
    """
    video, truth = _pair(video, truth, 3)
    if min(video.shape[-2:]) < SMALLEST:
        raise McvdError(f"SSIM takes frames of at least {SMALLEST} pixels per side, not {tuple(video.shape)}")
    x, y = video.flatten(0, -3)[:, None], truth.flatten(0, -3)[:, None]
    offset = torch.arange(-5, 6, dtype=torch.float64, device=x.device)
    window = torch.exp(-0.5 * (offset / 1.5) ** 2)
    window = window / window.sum()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index = index / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.mean((1, 2, 3)).view(video.shape[:-2]).mean(-1)


def _pair(video: Tensor, truth: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Both in float64, broadcast to one shape; the last `axes` axes must already be equal."""
    x, y = unit_range(video).double(), unit_range(truth).double()
    try:
        if x.shape[-axes:] == y.shape[-axes:] and min(x.ndim, y.ndim) >= axes:
            x, y = torch.broadcast_tensors(x, y)
            return x, y
    except RuntimeError:
        pass
    shape = "T, C, H, W" if axes == 4 else "C, H, W"
    raise McvdError(f"the two videos (..., {shape}) must have one shape, not {tuple(x.shape)} and {tuple(y.shape)}")
