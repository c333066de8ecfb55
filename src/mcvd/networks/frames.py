"""Frames as channels: the layers of the paper's networks, features ``(B, C, H, W)``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.networks.attention import Attention
from mcvd.networks.blocks import FrameOps, Spatin
from mcvd.networks.config import UNetConfig
from mcvd.networks.convolution import Conv2d
from mcvd.networks.frames3d import AxisFrames


class ChannelFrames:
    """Frames are channels, as in the paper: features ``(B, C, H, W)``, current frames before the condition's; see
    `FrameOps`.

    The pixels of a patch are channels too, after the colours: those of one frame stay together.
    """

    frames = 1

    def __init__(self, config: UNetConfig):
        self.config = config

    def maps(self, frames: int) -> int:
        return frames * self.config.channels * self.config.patch**2

    def fold(self, frames: Tensor) -> Tensor:
        maps, patch = frames.flatten(1, 2), self.config.patch
        return F.pixel_unshuffle(maps, patch) if patch > 1 else maps

    def unfold(self, maps: Tensor) -> Tensor:
        maps = F.pixel_shuffle(maps, self.config.patch) if self.config.patch > 1 else maps
        return maps.unflatten(1, (-1, self.config.channels))

    def conv(self, c_in: int, c_out: int, kernel: int) -> nn.Module:
        return Conv2d(c_in, c_out, kernel)

    def attention(self, channels: int, heads: int) -> nn.Module:
        return Attention(channels, heads)

    def spatin(self, channels: int, level: int) -> Spatin | None:
        c = self.config
        if c.conditioning == "concat":
            return None
        return Spatin(channels, self.maps(c.layout.condition_frames), c.spatin_width, 2**level, self)

    def merge(self) -> nn.Module:
        return nn.Identity()

    def share(self, conv_in: nn.Module, condition: Tensor) -> Tensor:
        # a convolution is linear in its input channels
        return F.conv2d(condition, conv_in.weight[:, -condition.shape[1] :], padding=1)  # type: ignore[index]

    def first(self, conv_in: nn.Module, x: Tensor, share: Tensor | None) -> Tensor:
        h = F.conv2d(x, conv_in.weight[:, : x.shape[1]], conv_in.bias, padding=1)  # type: ignore[index,arg-type]
        return h if share is None else h + share


def frame_ops(config: UNetConfig) -> FrameOps:
    """The layers for `config.frames`."""
    return ChannelFrames(config) if config.frames == "channels" else AxisFrames(config)
