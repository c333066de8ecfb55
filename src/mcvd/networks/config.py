"""Everything that the shape of a network depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcvd.errors import McvdError
from mcvd.layout import BlockLayout

MOST = 100_000
"""Of pixels, channels or blocks: a larger number is a mistake, and memory would run out first."""


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net of :mod:`mcvd.networks.unet`; all that its shape depends on."""

    size: tuple[int, int] = (64, 64)
    """Height and width in pixels; each a multiple of patch * 2 ** (levels - 1)."""
    channels: int = 1
    """Colours of a frame: 1 grey, 3 RGB."""
    layout: BlockLayout = field(default_factory=lambda: BlockLayout(5, 5, 5))
    """Past, current and future frames of a block."""
    patch: int = 1
    """Side, in pixels, of the squares that the first level sees as one pixel with patch ** 2 times the channels (the
    paper: 1). With 2, the network works on a quarter of the pixels (as in arXiv 2410.19324)."""
    width: int = 64
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level, in units of `width`; every level halves the resolution."""
    blocks: int = 2
    """Residual blocks per level."""
    attention: tuple[int, ...] = (8, 16, 32)
    """Resolutions (shorter side of a level, in pixels) with self-attention."""
    head_channels: int = 64
    """Channels per attention head; -1: one head."""
    dropout: float = 0.1
    conditioning: str = "concat"
    """How the network sees the condition: `concat` (as channels) or `spatin` (as modulation of every norm)."""
    spatin_width: int = 128
    """Hidden channels of SPATIN's modulation."""
    mask_embedding: bool = False
    """Tell the network by an embedding whether the past was hidden."""
    time_embedding: bool = True
    """Tell the network the noise level; False exists for published checkpoints only."""
    frames: str = "channels"
    """Where the frames of a block are: in the `channels` (the paper), or along their own axis, with 3-D convolutions
    (`3d`) or convolutions over space, then time (`pseudo3d`); attention is then over space, then time."""

    def __post_init__(self) -> None:
        if self.conditioning not in ("concat", "spatin"):
            raise McvdError(f"conditioning is {self.conditioning!r}; it is 'concat' or 'spatin'")
        if self.conditioning == "spatin" and not self.layout.condition_frames:
            raise McvdError("a SPATIN network needs past or future frames; this layout has none: use concat")
        if self.frames not in ("channels", "3d", "pseudo3d"):
            raise McvdError(f"frames is {self.frames!r}; it is 'channels', '3d' or 'pseudo3d'")
        if not 0.0 <= self.dropout < 1.0:
            raise McvdError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.mask_embedding and not self.time_embedding:
            raise McvdError("mask_embedding is part of the time embedding: it needs time_embedding")
        frames = 1 if self.frames == "channels" else self.layout.current  # these share the SPATIN width
        for name, values, least in (
            ("size", self.size, 1),
            ("channels", (self.channels,), 1),
            ("patch", (self.patch,), 1),
            ("width", (self.width,), 4),
            ("multipliers", self.multipliers, 1),
            ("blocks", (self.blocks,), 1),
            ("spatin_width", (self.spatin_width,), frames if self.conditioning == "spatin" else 1),
        ):
            if min(values, default=0) < least:
                raise McvdError(f"{name} is {getattr(self, name)}; it must be at least {least}")
            if max(values) > MOST:
                raise McvdError(f"{name} is {getattr(self, name)}; it must be at most {MOST}")
        if self.head_channels < 1 and self.head_channels != -1:
            raise McvdError(f"head_channels is {self.head_channels}; it must be at least 1, or -1 for one head")
        if self.patch > 1 and self.frames != "channels":
            raise McvdError(f"patch is {self.patch}; with frames {self.frames!r} it must be 1")
        step = self.patch * 2 ** (len(self.multipliers) - 1)
        if any(side % step for side in self.size):
            height, width = self.size
            patches = f" of patches of {self.patch} pixels" if self.patch > 1 else ""
            raise McvdError(
                f"size {height}x{width} is not a multiple of {step}, as {len(self.multipliers)} levels{patches} need"
            )

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the first level."""
        height, width = self.size
        return height // self.patch, width // self.patch

    @property
    def resolutions(self) -> list[int]:
        """Shorter side of every level, in pixels: what `attention` names."""
        return [min(self.inner) // 2**level for level in range(len(self.multipliers))]

    def heads(self, channels: int) -> int:
        """Attention heads of a layer with this many channels."""
        if self.head_channels == -1 or channels < self.head_channels:
            return 1
        if channels % self.head_channels:
            raise McvdError(f"head_channels {self.head_channels} does not divide a level of {channels} channels")
        return channels // self.head_channels
