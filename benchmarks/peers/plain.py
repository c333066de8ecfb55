"""The same U-Net, written plainly, as a reader of the paper would first write it. A peer for `mcvd benchmark --peer`.

Eager float32, contiguous tensors, attention as softmax(q k^T) v, general FIR resampling (insert zeros, pad,
convolve every channel with the flipped kernel, keep every second pixel), SPATIN maps computed in every call.
Written from the published key names without any part of mcvd's networks, so it stays the same when those change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.benchmark.peer import EMA_DECAY, GRADIENT_CLIP, LEARNING_RATE
from mcvd.diffusion.gaussian import add_noise, x0_from_eps
from mcvd.diffusion.sampling import sample as run_table
from mcvd.diffusion.solvers import Table, published_table
from mcvd.layout import hide, split
from mcvd.model import Draw, ModelConfig

NOTE = "plain eager float32: explicit attention, general FIR, contiguous"


class PlainUNet(nn.Module):
    """Runs the published flat list of layers; x, condition ``(B, frames * C, H, W)``; label 0 is the noisiest."""

    def __init__(self, config: ModelConfig, state: dict[str, Tensor]):
        super().__init__()
        self.c = config.network
        if self.c.frames != "channels" or not self.c.time_embedding or self.c.mask_embedding:
            raise ValueError("the plain peer has no 3-D, timeless or mask-embedding networks")
        names = [(name, name.replace(".", "/")) for name in state]
        self.weights = nn.ParameterDict({flat: nn.Parameter(state[name].clone().contiguous()) for name, flat in names})

    def w(self, layer: str, part: str = "weight") -> Tensor:
        return self.weights[f"unet.all_modules.{layer}.{part}".replace(".", "/")]

    def has(self, layer: str) -> bool:
        return f"unet.all_modules.{layer}.weight".replace(".", "/") in self.weights

    def linear(self, x: Tensor, layer: str) -> Tensor:
        return F.linear(x, self.w(layer), self.w(layer, "bias"))

    def conv(self, x: Tensor, layer: str) -> Tensor:
        weight = self.w(layer)
        return F.conv2d(x, weight, self.w(layer, "bias"), padding=weight.shape[-1] // 2)

    def spatin(self, x: Tensor, layer: str, condition: Tensor) -> Tensor:
        seen = F.interpolate(condition, size=x.shape[-2:], mode="nearest")
        hidden = F.silu(self.conv(seen, f"{layer}.mlp_shared.0"))
        gamma, beta = self.conv(hidden, f"{layer}.mlp_gamma"), self.conv(hidden, f"{layer}.mlp_beta")
        return F.group_norm(x, groups(x.shape[1]), eps=1e-6) * (1 + gamma) + beta

    def act_norm(self, x: Tensor, layer: str, embedding: Tensor, condition: Tensor) -> Tensor:
        if self.has(f"{layer}.Norm_0.mlp_gamma"):
            h = self.spatin(x, f"{layer}.Norm_0", condition)
        else:
            h = F.group_norm(x, groups(x.shape[1]), eps=1e-5)
        scale, shift = self.linear(F.silu(embedding), f"{layer}.Dense_0")[:, :, None, None].chunk(2, 1)
        return F.silu(h * (1 + scale) + shift)

    def block(
        self,
        x: Tensor,
        i: int,
        embedding: Tensor,
        condition: Tensor,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        h = self.act_norm(x, f"{i}.actnorm0", embedding, condition)
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self.act_norm(self.conv(h, f"{i}.Conv_0"), f"{i}.actnorm1", embedding, condition)
        h = self.conv(F.dropout(h, self.c.dropout, self.training), f"{i}.Conv_1")
        if self.has(f"{i}.Conv_2"):
            x = self.conv(x, f"{i}.Conv_2")
        return (x + h) / math.sqrt(2)

    def attention(self, x: Tensor, i: int) -> Tensor:
        b, c, height, width = x.shape
        h = F.group_norm(x, groups(c), self.w(f"{i}.GroupNorm_0"), self.w(f"{i}.GroupNorm_0", "bias"), 1e-6)
        tokens = h.flatten(2).transpose(1, 2)
        heads = self.c.heads(c)
        maps = (tokens @ self.w(f"{i}.NIN_{j}", "W") + self.w(f"{i}.NIN_{j}", "b") for j in range(3))
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in maps)
        weights = (q @ k.transpose(2, 3) / math.sqrt(c // heads)).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        out = out @ self.w(f"{i}.NIN_3", "W") + self.w(f"{i}.NIN_3", "b")
        return (x + out.transpose(1, 2).reshape(b, c, height, width)) / math.sqrt(2)

    def forward(self, x: Tensor, label: Tensor, condition: Tensor) -> Tensor:
        c, concat = self.c, self.c.conditioning == "concat"
        half = c.width // 2
        frequencies = torch.exp(torch.arange(half, device=x.device) * -(math.log(10000) / (half - 1)))
        phase = label.float()[:, None] * frequencies
        embedding = torch.cat([phase.sin(), phase.cos()], 1)
        embedding = self.linear(F.silu(self.linear(embedding, "0")), "1")
        h = self.conv(torch.cat([x, condition], 1) if concat else x, "2")

        i, skips, levels = 3, [h], len(c.multipliers)
        attends = [min(c.size) // 2**level in c.attention for level in range(levels)]
        for level in range(levels):
            for _ in range(c.blocks):
                h, i = self.block(h, i, embedding, condition), i + 1
                if attends[level]:
                    h, i = self.attention(h, i), i + 1
                skips.append(h)
            if level < levels - 1:
                h, i = self.block(h, i, embedding, condition, halve), i + 1
                skips.append(h)
        h = self.block(self.attention(self.block(h, i, embedding, condition), i + 1), i + 2, embedding, condition)
        i += 3
        for level in reversed(range(levels)):
            for _ in range(c.blocks + 1):
                h, i = self.block(torch.cat([h, skips.pop()], 1), i, embedding, condition), i + 1
            if attends[level]:
                h, i = self.attention(h, i), i + 1
            if level:
                h, i = self.block(h, i, embedding, condition, double), i + 1
        if concat:
            norm = f"{i}.Norm_0"
            h = F.group_norm(h, groups(h.shape[1]), self.w(norm), self.w(norm, "bias"), 1e-5)
        else:
            h = self.spatin(h, f"{i}.Norm_0", condition)
        return self.conv(F.silu(h), f"{i + 1}")


def groups(channels: int) -> int:
    return next(g for g in range(min(channels // 4, 32), 0, -1) if channels % g == 0)


def fir(x: Tensor, up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """General FIR resampling with the kernel [1, 3, 3, 1] in both directions."""
    b, c, height, width = x.shape
    x = x.reshape(b * c, 1, height, width)
    if up > 1:
        spread = x.new_zeros(b * c, 1, height * up, width * up)
        spread[..., ::up, ::up] = x
        x = spread
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    kernel = torch.outer(taps, taps).flip(0, 1)[None, None] * gain
    x = F.conv2d(F.pad(x, (*pad, *pad)), kernel)[..., ::down, ::down]
    return x.reshape(b, c, x.shape[-2], x.shape[-1])


def halve(x: Tensor) -> Tensor:
    return fir(x, 1, 2, (1, 1), 1.0)


def double(x: Tensor) -> Tensor:
    return fir(x, 2, 1, (2, 1), 4.0)


def build(config: ModelConfig, state_dict: dict[str, Tensor]) -> dict[str, Callable]:
    net = PlainUNet(config, state_dict).eval()
    steps = config.schedule.steps
    trained: list = []

    def network(past: Tensor, future: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        condition = torch.cat([past, future], 1).flatten(1, 2)

        @torch.no_grad()
        def call(x: Tensor, time: Tensor) -> Tensor:
            return net(x.flatten(1, 2), time, condition).view_as(x)

        return call

    def sample(
        past: Tensor, future: Tensor, x: Tensor, noise: Callable[[], Tensor], solver_steps: int, calls: int
    ) -> Tensor:
        each = len(x) // len(past)
        call = network(past.repeat_interleave(each, 0), future.repeat_interleave(each, 0))

        def denoise(x: Tensor, t: int, alpha_bar: float) -> Tensor:
            label = torch.full((len(x),), steps - 1 - int(t), device=x.device)
            return x0_from_eps(x, call(x, label), torch.tensor(alpha_bar, device=x.device))

        table = published_table("ddpm", config.schedule, solver_steps, denoise=False)
        return run_table(denoise, Table(table.rows[:calls]), x, noise)

    def train_step(video: Tensor, draw: Draw) -> Tensor:
        if not trained:
            net.train()
            adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
            trained.extend((adam, copy.deepcopy(net)))
        optimizer, average = trained
        past, current, future = split(video.float() / 127.5 - 1, config.network.layout)
        x_t = add_noise(current, draw.eps, config.schedule.at(draw.t, current))
        condition = torch.cat([hide(past, draw.past_seen), hide(future, draw.future_seen)], 1).flatten(1, 2)
        output = net(x_t.flatten(1, 2), steps - 1 - draw.t, condition).view_as(x_t)
        loss = 0.5 * (output - draw.eps).square().flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), GRADIENT_CLIP)
        optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), net.parameters()):
                mean.lerp_(weight, 1 - EMA_DECAY)
        return loss.detach()

    return {"network": network, "sample": sample, "train_step": train_step}
