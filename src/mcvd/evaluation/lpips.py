"""LPIPS v0.1 with AlexNet (Zhang et al. 2018): a learned distance between two images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.errors import McvdError
from mcvd.evaluation.weights import load_weights
from mcvd.given import unit_range
from mcvd.networks.precision import exactly

SMALLEST = 31
"""Smallest side, in pixels, that leaves AlexNet's second pooling anything to pool."""


def load(weights: Path | str | None = None, device: torch.device | str | None = None) -> LPIPS:
    """The network with its published weights, ready for use: ``load()(a, b) -> distances``.

    weights: a file or folder that holds them; default: the cache of ``mcvd fetch lpips``, or a local folder of assets.
    Raises McvdError if they are missing or not the published ones.
    """
    network = LPIPS().float()  # whatever the default dtype is
    network.load_state_dict(load_weights("lpips", weights))
    network = network.to(device or "cpu").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


class LPIPS(nn.Module):
    """Squared differences of unit-length AlexNet features, weighted per channel, summed over five depths."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        for depth, channels in enumerate((64, 192, 384, 256, 256), 1):
            self.add_module(f"head{depth}", Head(channels))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor, chunk: int = 64) -> Tensor:
        """Distances of image pairs: a, b ``(B, 3, H, W)`` (or grey, ``(B, 1, H, W)``) in [0, 1] or uint8, sides of at
        least 31 pixels -> ``(B,)`` float32, without gradients. chunk: pairs computed at once; bounds memory,
        changes no value."""
        a, b = unit_range(a), unit_range(b)
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3) or min(a.shape[2:]) < SMALLEST:
            raise McvdError(
                f"LPIPS takes two batches of images (B, 3, H, W) of at least {SMALLEST} pixels per side, not"
                f" {tuple(a.shape)} and {tuple(b.shape)}"
            )
        with exactly(self.shift.device):
            parts = [self._distance(x, y) for x, y in zip(a.split(chunk), b.split(chunk))]
        return torch.cat(parts)  # outside inference mode: an ordinary tensor

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        images = torch.cat([a, b]).to(self.shift.device, torch.float32)
        images = (2 * images - 1).expand(-1, 3, -1, -1)
        x = ((images - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        total = torch.zeros(len(a), device=x.device, dtype=x.dtype)
        for depth, conv in enumerate((self.conv1, self.conv2, self.conv3, self.conv4, self.conv5), 1):
            if depth in (2, 3):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(conv(x))
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            of_a, of_b = unit.chunk(2)
            total += self.get_submodule(f"head{depth}")((of_a - of_b).square())
        return total


class Head(nn.Module):
    """Weighs the channels and averages over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, squares: Tensor) -> Tensor:
        return squares.mean((2, 3)) @ self.weight
