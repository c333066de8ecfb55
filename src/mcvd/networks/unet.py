"""The denoising U-Net of the paper (NCSN++/DDPM++ layout), concat and SPATIN, for any block layout and resolution.

The network knows frames, not noise: it maps the current frames of a block, a time number and a condition to one output
per current frame. `encode` turns past and future into the condition once; `forward` runs once per sampling step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.errors import McvdError
from mcvd.layout import BlockLayout
from mcvd.networks.attention import Attention
from mcvd.networks.blocks import (
    NEAR_ZERO,
    Condition,
    FrameOps,
    ResidualBlock,
    Spatin,
    group_count,
    initialise,
)


@dataclass(frozen=True)
class UNetConfig:
    """Everything the shape of a network depends on."""

    size: tuple[int, int] = (64, 64)
    """Height and width in pixels; each a multiple of 2 ** (levels - 1)."""
    channels: int = 1
    """Colours of a frame: 1 grey, 3 RGB."""
    layout: BlockLayout = BlockLayout(5, 5, 5)
    """Past, current and future frames of a block."""
    width: int = 64
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level, in units of `width`; every level halves the resolution."""
    blocks: int = 2
    """Residual blocks per level."""
    attention: tuple[int, ...] = (8, 16, 32)
    """Resolutions (pixels, of the shorter side) that get self-attention."""
    head_channels: int = 64
    """Channels per attention head; -1 is one head."""
    dropout: float = 0.1
    conditioning: str = "concat"
    """How the network sees the condition: `concat` (as channels) or `spatin` (as modulation of every norm)."""
    spatin_width: int = 128
    """Hidden channels of SPATIN's modulation."""
    mask_embedding: bool = False
    """Tell the network by an embedding whether the past was hidden."""

    def __post_init__(self) -> None:
        if self.conditioning not in ("concat", "spatin"):
            raise McvdError(f"conditioning is {self.conditioning!r}; it is 'concat' or 'spatin'")
        if self.conditioning == "spatin" and not self.layout.condition_frames:
            raise McvdError("a SPATIN network needs past or future frames; this layout has none: use concat")
        step = 2 ** (len(self.multipliers) - 1)
        if any(side % step for side in self.size):
            raise McvdError(
                f"size {self.size[0]}x{self.size[1]} is not a multiple of {step}, which {len(self.multipliers)} levels need"
            )

    def heads(self, channels: int) -> int:
        """Attention heads of a layer with this many channels."""
        if self.head_channels == -1 or channels < self.head_channels:
            return 1
        if channels % self.head_channels:
            raise McvdError(f"head_channels {self.head_channels} does not divide a level of {channels} channels")
        return channels // self.head_channels


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of time numbers t ``(B,)`` -> ``(B, dim)``: all sines, then all cosines; an odd dim ends in a zero."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    phase = t.to(torch.float32)[:, None] * frequency
    return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, dim % 2))


class Level(nn.Module):
    """One resolution of one side of the U-Net: residual blocks with their attention, then a change of resolution.

    On the way down every block may be followed by attention; on the way up only the last one is.
    """

    def __init__(self, blocks: list[ResidualBlock], attention: list[nn.Module], resample: ResidualBlock | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.resample = resample


class UNet(nn.Module):
    """Current frames ``(B, k, C, H, W)``, time ``(B,)`` and a condition -> output ``(B, k, C, H, W)``."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        layout = c.layout
        condition_channels = layout.condition_frames * c.channels
        self.concat = c.conditioning == "concat"

        def spatin(channels: int, level: int) -> nn.Module | None:
            return None if self.concat else Spatin(channels, condition_channels, c.spatin_width, 2**level)

        ops = FrameOps(lambda i, o, k: nn.Conv2d(i, o, k, padding=k // 2), Attention, Spatin)
        embedding = 4 * c.width
        self.time = nn.Sequential(
            initialise(nn.Linear(c.width, embedding)), nn.SiLU(), initialise(nn.Linear(embedding, embedding))
        )
        self.mask = nn.Embedding(2, c.width // 2) if c.mask_embedding else None
        if self.mask is not None:
            embedding += c.width // 2

        def block(c_in: int, c_out: int, level: int, resample: str = "") -> ResidualBlock:
            return ResidualBlock(c_in, c_out, embedding, c.dropout, ops, spatin, level, resample)

        def attention(channels: int) -> nn.Module:
            return ops.attention(channels, c.heads(channels))

        frames = layout.current + (layout.condition_frames if self.concat else 0)
        self.conv_in = initialise(ops.conv(frames * c.channels, c.width, 3))
        last = len(c.multipliers) - 1
        attends = [min(c.size) // 2**level in c.attention for level in range(last + 1)]
        here, skips = c.width, [c.width]  # channels now, and of every feature map that the way up will read

        down = []
        for level, multiplier in enumerate(c.multipliers):
            out, blocks, attentions = c.width * multiplier, [], []
            for _ in range(c.blocks):
                blocks.append(block(here, out, level))
                if attends[level]:
                    attentions.append(attention(out))
                here = out
                skips.append(here)
            resample = None
            if level != last:
                resample = block(here, here, level, "down")
                skips.append(here)
            down.append(Level(blocks, attentions, resample))
        self.down = nn.ModuleList(down)

        self.middle = nn.ModuleList([block(here, here, last), attention(here), block(here, here, last)])

        up = []
        for level in range(last, -1, -1):
            out, blocks = c.width * c.multipliers[level], []
            for _ in range(c.blocks + 1):
                blocks.append(block(here + skips.pop(), out, level))
                here = out
            attentions = [attention(here)] if attends[level] else []
            up.append(Level(blocks, attentions, block(here, here, level, "up") if level else None))
        self.up = nn.ModuleList(up)

        if self.concat:
            self.norm_out: nn.Module = nn.GroupNorm(group_count(here), here, eps=1e-5)
        else:
            self.norm_out = Spatin(here, condition_channels, c.spatin_width, 1)
        self.conv_out = initialise(ops.conv(here, layout.current * c.channels, 3), NEAR_ZERO)
        for slot, norm in enumerate(self.spatin_norms()):
            norm.slot = slot

    def spatin_norms(self) -> Iterator[Spatin]:
        """All SPATIN norms, in the order of `Condition.maps`."""
        return (part for part in self.modules() if isinstance(part, Spatin))

    def encode(self, past: Tensor, future: Tensor, past_seen: Tensor | None = None) -> Condition:
        """What past ``(B, p, C, H, W)`` and future ``(B, f, C, H, W)`` become; hidden frames are all 0.

        Runs once per block. For concat it is their share of the first convolution (a convolution is linear in its input
        channels), for SPATIN the modulation maps of every norm.
        """
        condition = torch.cat([past, future], dim=1).flatten(1, 2)
        if condition.is_cuda or self.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            condition = condition.contiguous(memory_format=torch.channels_last)
        if not self.concat:
            return Condition(None, [norm.maps(condition) for norm in self.spatin_norms()], past_seen)
        if not condition.shape[1]:
            return Condition(None, [], past_seen)
        share = F.conv2d(condition, self.conv_in.weight[:, -condition.shape[1] :], padding=1)
        return Condition(share, [], past_seen)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x ``(B, k, C, H, W)`` in the model's range [-1, 1] plus noise; time ``(B,)``, whatever the weights count in."""
        c = self.config
        embedding = self.time(time_embedding(time, c.width).to(x.dtype))
        if self.mask is not None:
            seen = condition.past_seen
            seen = torch.ones_like(time, dtype=torch.long) if seen is None else seen.long()
            embedding = torch.cat([embedding, self.mask(seen)], dim=1)
        embedding = F.silu(embedding)  # every norm reads it through this activation

        x = x.flatten(1, 2)
        h = F.conv2d(x, self.conv_in.weight[:, : x.shape[1]], self.conv_in.bias, padding=1)
        if condition.frames is not None:
            h = h + condition.frames
        skips = [h]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = block(h, embedding, condition)
                if level.attention:
                    h = level.attention[i](h)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, embedding, condition)
                skips.append(h)

        first, attention, second = self.middle
        h = second(attention(first(h, embedding, condition)), embedding, condition)

        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, condition)
            for attend in level.attention:
                h = attend(h)
            if level.resample is not None:
                h = level.resample(h, embedding, condition)

        h = self.norm_out(h) if self.concat else self.norm_out(h, condition)
        return self.conv_out(F.silu(h)).unflatten(1, (c.layout.current, c.channels))
