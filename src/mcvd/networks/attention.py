"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.networks.blocks import NEAR_ZERO, group_count, initialise, residual_sum


class Attention(nn.Module):
    """(x + attend(norm(x))) / sqrt(2) over all pixels of ``(B, C, H, W)``; heads are contiguous runs of channels."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(group_count(channels), channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = initialise(nn.Linear(channels, channels), NEAR_ZERO)
        initialise(self.qkv, 0.1 * 2)  # each third is a (C, C) layer: its mean fan is C, not 2C

    def forward(self, x: Tensor) -> Tensor:
        b, c, *pixels = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(b, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c)
        h = self.out(h).transpose(1, 2).reshape(b, c, *pixels)
        return residual_sum(x, h)
