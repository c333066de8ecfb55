"""The published 3-D and pseudo-3-D networks: frames along an axis of their own, features ``(B, C, N, H, W)``.

No result of the paper uses them. The U-Net is the same; these are its layers. A concat network sees current, past and
future frames along N on the way down, and keeps only the current frames on the way up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.networks.attention import Attention
from mcvd.networks.blocks import FrameOps, Spatin, initialise
from mcvd.networks.config import UNetConfig


class PseudoConv3d(nn.Module):
    """A convolution over each frame, SiLU, then one over the frames of each pixel."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__()
        self.space = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
        self.time = nn.Conv1d(c_out, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(_per_frame(self.space, x))
        return _per_pixel(self.time, x)


class SpaceTimeAttention(nn.Module):
    """Attention over the pixels of each frame, then over the frames of each pixel."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.space = Attention(channels, heads)
        self.time = Attention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        return _per_pixel(self.time, _per_frame(self.space, x))


class MergeFrames(nn.Conv2d):
    """N frames to M frames, by one matrix for all channels and pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Spatin3d(Spatin):
    """SPATIN for N frames: a convolution first turns the condition's frames into N frames, for each colour."""

    def __init__(self, channels: int, colours: int, frames: tuple[int, int], width: int, scale: int, ops: FrameOps):
        super().__init__(channels, colours, width, scale, ops)
        self.converter = initialise(ops.conv(*frames, 1))

    def maps(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        # to this convolution frames are channels, and colours are frames
        return super().maps(self.converter(condition.transpose(1, 2)).transpose(1, 2))


class AxisFrames:
    """Frames have an axis: features ``(B, C, N, H, W)``; see `FrameOps`."""

    def __init__(self, config: UNetConfig):
        self.config, layout = config, config.layout
        self.conv_type = PseudoConv3d if config.frames == "pseudo3d" else _conv3d
        self.concat = config.conditioning == "concat"
        self.frames = layout.current + (layout.condition_frames if self.concat else 0)

    def maps(self, frames: int) -> int:
        return self.config.channels

    def fold(self, frames: Tensor) -> Tensor:
        return frames.transpose(1, 2)

    def unfold(self, maps: Tensor) -> Tensor:
        return maps.transpose(1, 2)

    def conv(self, c_in: int, c_out: int, kernel: int) -> nn.Module:
        return self.conv_type(c_in, c_out, kernel)

    def attention(self, channels: int, heads: int) -> nn.Module:
        return SpaceTimeAttention(channels, heads)

    def spatin(self, channels: int, level: int) -> Spatin | None:
        if self.concat:
            return None
        c, layout = self.config, self.config.layout
        frames = (layout.condition_frames, layout.current)
        return Spatin3d(channels, c.channels, frames, c.spatin_width // layout.current, 2**level, self)

    def merge(self) -> nn.Module:
        return initialise(MergeFrames(self.frames, self.config.layout.current, 1)) if self.concat else nn.Identity()

    def share(self, conv_in: nn.Module, condition: Tensor) -> Tensor:
        return condition

    def first(self, conv_in: nn.Module, x: Tensor, share: Tensor | None) -> Tensor:
        return conv_in(x if share is None else torch.cat([x, share.expand(len(x), *share.shape[1:])], dim=2))


def _conv3d(c_in: int, c_out: int, kernel: int) -> nn.Module:
    return nn.Conv3d(c_in, c_out, kernel, padding=kernel // 2)


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a layer of ``(B, C, H, W)`` to every frame of ``(B, C, N, H, W)``."""
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _per_pixel(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a layer of ``(B, C, N)`` to every pixel of ``(B, C, N, H, W)``."""
    y = layer(x.permute(0, 3, 4, 1, 2).flatten(0, 2))
    return y.unflatten(0, (x.shape[0], *x.shape[3:])).permute(0, 3, 4, 1, 2)
