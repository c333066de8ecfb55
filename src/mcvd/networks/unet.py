"""The denoising U-Net of the paper (NCSN++/DDPM++ layout), concat and SPATIN, for any block layout and resolution.

The network knows frames, not noise: it maps the current frames of a block, a time number and a condition to one output
per current frame. `encode` turns past and future into the condition once; `forward` runs once per sampling step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.errors import McvdError
from mcvd.networks.blocks import NEAR_ZERO, Condition, ResidualBlock, Spatin, group_count, initialise
from mcvd.networks.config import UNetConfig
from mcvd.networks.frames import frame_ops
from mcvd.networks.memory import free_memory
from mcvd.networks.norm import norm_silu


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of time numbers t ``(B,)`` -> ``(B, dim)``: all sines, then all cosines; an odd dim ends in a zero."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    phase = t.to(torch.float32)[:, None] * frequency
    return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, dim % 2))


def embedding_layers(sinusoids: int, width: int, last: float = 1.0) -> nn.Sequential:
    """Sinusoids ``(B, sinusoids)`` -> embedding ``(B, width)``; last: initial scale of the last layer."""
    return nn.Sequential(initialise(nn.Linear(sinusoids, width)), nn.SiLU(), initialise(nn.Linear(width, width), last))


class Level(nn.Module):
    """One resolution of one side of the U-Net: residual blocks with their attention, then a change of resolution.

    On the way down every block may be followed by attention; on the way up only the last one is. `merges` adapt the
    skip connection of each block on the way up to its frames.
    """

    def __init__(
        self,
        blocks: list[ResidualBlock],
        attention: list[nn.Module],
        resample: ResidualBlock | None,
        merges: list[nn.Module] | None = None,
    ):
        super().__init__()
        self.merges = nn.ModuleList(merges or [])
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.resample = resample


class UNet(nn.Module):
    """Current frames ``(B, k, C, H, W)``, time ``(B,)`` and a condition -> output ``(B, k, C, H, W)``.

    tell_sigma: whether the network is told how noisy past and future frames are, by a separate embedding (weights that
    published networks lack).
    """

    def __init__(self, config: UNetConfig, tell_sigma: bool = False):
        super().__init__()
        if tell_sigma and not config.time_embedding:
            raise McvdError("the noise of past and future is part of the time embedding: it needs time_embedding")
        self.config = c = config
        layout = c.layout
        self.concat = c.conditioning == "concat"
        self.ops = ops = frame_ops(c)

        self.time_width = c.width * ops.frames
        embedding = 4 * self.time_width if c.time_embedding else 0
        self.time = self.mask = None
        if c.time_embedding:
            self.time = embedding_layers(self.time_width, embedding)
        if c.mask_embedding:
            self.mask = nn.Embedding(2, self.time_width // 2)
            embedding += self.time_width // 2

        def block(c_in: int, c_out: int, level: int, resample: str = "") -> ResidualBlock:
            return ResidualBlock(c_in, c_out, embedding, c.dropout, ops, level, resample)

        def attention(channels: int) -> nn.Module:
            return ops.attention(channels, c.heads(channels))

        seen = layout.current + (layout.condition_frames if self.concat else 0)
        self.conv_in = initialise(ops.conv(ops.maps(seen), c.width, 3))
        last = len(c.multipliers) - 1
        attends = [side in c.attention for side in c.resolutions]
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
        self.down: Iterable[Level] = nn.ModuleList(down)  # type: ignore[assignment]

        self.middle = nn.ModuleList([block(here, here, last), attention(here), block(here, here, last)])
        self.merge = ops.merge()

        up = []
        for level in range(last, -1, -1):
            out, blocks = c.width * c.multipliers[level], []
            for _ in range(c.blocks + 1):
                blocks.append(block(here + skips.pop(), out, level))
                here = out
            attentions = [attention(here)] if attends[level] else []
            resample = block(here, here, level, "up") if level else None
            up.append(Level(blocks, attentions, resample, [ops.merge() for _ in blocks]))
        self.up: Iterable[Level] = nn.ModuleList(up)  # type: ignore[assignment]

        if self.concat:
            self.norm_out: nn.Module = nn.GroupNorm(group_count(here), here, eps=1e-5)
        else:
            self.norm_out = ops.spatin(here, 0)  # type: ignore[assignment]
        self.conv_out = initialise(ops.conv(here, ops.maps(layout.current), 3), NEAR_ZERO)
        self.sigma = None
        if tell_sigma:  # near 0 at first; created last, so that all other weights start as without it
            self.sigma = embedding_layers(self.time_width, 4 * self.time_width, NEAR_ZERO)
        for slot, norm in enumerate(self.spatin_norms()):
            norm.slot = slot
        self.keeps_maps = True
        """False if the backward pass recomputes the blocks, which should then include the maps."""
        self.calls: Callable[[int, Tensor, Tensor, Condition], Tensor] | None = None
        """What sampling calls instead of `forward` (:mod:`mcvd.networks.engine`); takes the condition's slot first."""

    def spatin_norms(self) -> Iterator[Spatin]:
        """All SPATIN norms, in the order of `Condition.maps`."""
        return (part for part in self.modules() if isinstance(part, Spatin))

    def maps_fit(self, trajectories: int) -> bool:
        """Whether the modulation maps of so many trajectories fit into a quarter of the free memory; warns if not."""
        height, width = self.config.inner
        frames = 1 if self.config.frames == "channels" else self.config.layout.current
        values = sum(norm.channels * (height // norm.scale) * (width // norm.scale) for norm in self.spatin_norms())
        weight = next(self.parameters())
        wanted = 2 * frames * values * trajectories * weight.element_size()
        free = free_memory(weight.device)
        if 4 * wanted <= free:
            return True
        warnings.warn(
            f"the modulation maps of {trajectories} trajectories would take {wanted / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: every step recomputes them; a smaller batch size is faster",
            stacklevel=2,
        )
        return False

    def encode(
        self,
        past: Tensor,
        future: Tensor,
        past_seen: Tensor | None = None,
        sigma: Tensor | None = None,
        keep_maps: bool = True,
    ) -> Condition:
        """The condition of past ``(B, p, C, H, W)`` and future ``(B, f, C, H, W)``; hidden frames are all 0.

        Runs once per block. For concat, this is their share of the first convolution; for SPATIN, the modulation maps
        of every norm. sigma ``(B,)``: standard deviation of the noise in these frames (None: none).
        keep_maps: if False, every SPATIN norm computes its maps when it runs (`Condition.frames`).
        """
        if not self.config.layout.past:
            past_seen = None  # as published: a past that is not there was never hidden in training
        condition = self.ops.fold(torch.cat([past, future], dim=1))
        if not self.concat and not (keep_maps and self.keeps_maps):
            return Condition(None, [], past_seen, sigma, condition)
        if not self.concat:
            return Condition(None, [norm.maps(condition) for norm in self.spatin_norms()], past_seen, sigma)
        share = self.ops.share(self.conv_in, condition) if self.config.layout.condition_frames else None
        return Condition(share, [], past_seen, sigma)

    def embed(self, time: Tensor, condition: Condition, dtype: torch.dtype) -> Tensor | None:
        """The embedding, for all blocks, of the time ``(B,)`` or ``(1,)`` and the condition's noise level and mask."""
        if self.time is None:
            return None
        embedding = self.time(time_embedding(time, self.time_width).to(dtype))
        if self.sigma is not None:
            sigma = torch.zeros_like(time) if condition.sigma is None else condition.sigma
            # the sinusoids are designed for numbers up to about 1000
            embedding = embedding + self.sigma(time_embedding(1000 * sigma, self.time_width).to(dtype))
        if self.mask is not None:
            seen = condition.past_seen
            seen = torch.ones_like(time, dtype=torch.long) if seen is None else seen.long()
            rows = max(len(embedding), len(seen))
            embedding = torch.cat([embedding.expand(rows, -1), self.mask(seen).expand(rows, -1)], dim=1)
        return F.silu(embedding)  # every norm reads it through this activation

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x ``(B, k, C, H, W)``: frames in [-1, 1] plus noise; time ``(B,)``, counted as these weights count it.

        A time ``(1,)`` and a condition of one row apply to all rows of x; this makes sampling faster.
        """
        return self.with_embedding(x, self.embed(time, condition, x.dtype), condition)

    def with_embedding(self, x: Tensor, embedding: Tensor | None, condition: Condition) -> Tensor:
        """`forward`, given the embedding that `embed` makes."""
        h = self.ops.first(self.conv_in, self.ops.fold(x), condition.share)
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
        h = second(self.merge(attention(first(h, embedding, condition))), embedding, condition)

        for level in self.up:
            for block, merge in zip(level.blocks, level.merges):
                h = block(torch.cat([h, merge(skips.pop())], dim=1), embedding, condition)
            for attend in level.attention:
                h = attend(h)
            if level.resample is not None:
                h = level.resample(h, embedding, condition)

        norm = self.norm_out
        if isinstance(norm, nn.GroupNorm):
            h = norm_silu(h, norm.num_groups, norm.eps, norm.weight[None], norm.bias[None])
        else:
            h = F.silu(norm(h, condition))
        return self.ops.unfold(self.conv_out(h))
