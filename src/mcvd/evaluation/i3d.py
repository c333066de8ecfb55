"""I3D (RGB, Kinetics-400; Carreira and Zisserman 2017): the network whose 400 logits FVD is computed on.

Written for speed on any device: videos are stored ``(B, T, H, W, C)``, so that a 1x1x1 convolution is one matrix
product, and a k x k x k convolution is a 2-D convolution over the concatenated channels of k neighbouring frames (up
to twice as fast as a 3-D convolution on CPUs; `winograd` for the largest). Batch-norm is folded into the weights.
Padding is TensorFlow's SAME: as much as needed, the odd pixel or frame at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcvd.errors import McvdError
from mcvd.evaluation.weights import load_weights
from mcvd.given import tensor, unit_range
from mcvd.networks import winograd
from mcvd.networks.precision import exactly

SIZE = 224
SHORTEST = 9
"""Fewest frames that leave 2 time steps, of 8 frames each, for the last average."""
BATCH_NORM_EPS = 1e-3
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def load(weights: Path | str | None = None, device: torch.device | str | None = None) -> I3D:
    """The network with its published weights, ready for use: ``load()(clips) -> logits``.

    weights: a file or folder that holds them; default: the cache of ``mcvd fetch i3d``, or a local folder of assets.
    Raises McvdError if they are missing or not the published ones.
    """
    network = I3D().float()  # whatever the default dtype is
    network.load_state_dict(fold_batch_norm(load_weights("i3d", weights)))
    network = network.to(device or "cpu").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def resize(videos: Tensor) -> Tensor:
    """Resizes videos to I3D's input: shorter side 224 by bilinear interpolation without antialiasing, centre crop
    224 x 224, grey repeated to three colours. ``(B, T, C, H, W)`` in [0, 1] or uint8 -> ``(B, T, 3, 224, 224)``."""
    videos = unit_range(videos).float()
    height, width = videos.shape[-2:]
    scale = SIZE / min(height, width)
    shape = (SIZE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIZE)
    frames = F.interpolate(videos.flatten(0, 1), shape, mode="bilinear", align_corners=False)
    top, left = (shape[0] - SIZE) // 2, (shape[1] - SIZE) // 2
    frames = frames[..., top : top + SIZE, left : left + SIZE]
    return frames.unflatten(0, videos.shape[:2]).expand(-1, -1, 3, -1, -1)


class I3D(nn.Module):
    """Inception-v1 inflated to three dimensions, for inference only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1a = TapsConv(3, 64, 7, stride=2)
        self.conv_2b = nn.Linear(64, 64)
        self.conv_2c = TapsConv(64, 192, 3)
        channels = 192
        for stage, widths in zip(MIXED, _WIDTHS):
            self.add_module(f"mixed_{stage}", Mixed(channels, *widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.Linear(channels, 400)

    def forward(self, clips: Tensor, chunk: int = 8) -> Tensor:
        """Logits before the softmax, averaged over time: clips ``(B, T, 3, 224, 224)`` in [0, 1] or uint8, T >= 9 ->
        ``(B, 400)`` float32, without gradients. chunk: clips computed at once; bounds memory, changes results by
        rounding at most."""
        if tensor(clips).ndim != 5 or tuple(clips.shape[2:]) != (3, SIZE, SIZE):
            raise McvdError(f"I3D takes clips of shape (B, T, 3, 224, 224), not {tuple(clips.shape)}; see i3d.resize")
        if clips.shape[1] < SHORTEST:
            raise McvdError(f"I3D needs clips of at least {SHORTEST} frames, these have {clips.shape[1]}")
        device = self.logits.weight.device
        with exactly(device):
            parts = [self._logits(unit_range(part.to(device)).float()) for part in clips.split(chunk)]
        return torch.cat(parts)  # outside inference mode: an ordinary tensor

    def features(self, videos: Tensor, chunk: int = 8) -> Tensor:
        """Logits of videos of any size, grey or colour, resized chunk by chunk: ``(B, T, C, H, W)`` -> ``(B, 400)``."""
        if tensor(videos).ndim != 5 or videos.shape[2] not in (1, 3):
            raise McvdError(f"I3D takes videos of shape (B, T, C, H, W), C 1 or 3, not {tuple(videos.shape)}")
        device = self.logits.weight.device
        parts = [self(resize(part.to(device)), chunk) for part in videos.split(chunk)]
        return torch.cat(parts)

    def _logits(self, clips: Tensor) -> Tensor:
        def pool(x: Tensor) -> Tensor:
            return F.relu_(max_pool(x, (1, 3, 3), (1, 2, 2)))  # ReLU and maximum commute; this order takes fewer ReLUs

        x = self.conv_1a((clips - 0.5).permute(0, 1, 3, 4, 2), pool)
        x = self.conv_2c(F.relu_(self.conv_2b(x)), pool)
        for stage in MIXED:
            if stage == "4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if stage == "5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(f"mixed_{stage}")(x)
        # I3D averages over 2 x 7 x 7 at stride 1, then takes the mean of the logits: all linear, so average first.
        x = x.mean((2, 3))
        return self.logits((x[:, :-1] + x[:, 1:]).mean(1) / 2)


_WIDTHS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""Channels of each Mixed block: branch 0; branch 1 reduced, out; branch 2 reduced, out; branch 3."""


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 then 3x3x3, twice; 3x3x3 max-pool then 1x1x1."""

    def __init__(
        self, channels: int, one: int, reduced: int, three: int, reduced2: int, three2: int, pool: int
    ) -> None:
        super().__init__()
        self.widths = (one, reduced, reduced2)
        self.pointwise = nn.Linear(channels, sum(self.widths))  # the three 1x1x1 convolutions of the same input
        self.branch_1 = TapsConv(reduced, three, 3)
        self.branch_2 = TapsConv(reduced2, three2, 3)
        self.branch_3 = nn.Linear(channels, pool)

    def forward(self, x: Tensor) -> Tensor:
        one, reduced, reduced2 = F.relu_(self.pointwise(x)).split(self.widths, -1)
        pooled = F.relu_(self.branch_3(max_pool(x, (3, 3, 3), (1, 1, 1))))
        return torch.cat([one, self.branch_1(reduced), self.branch_2(reduced2), pooled], -1)


class TapsConv(nn.Module):
    """k x k x k convolution of ``(B, T, H, W, C)``, SAME padding, as 2-D convolutions over up to k stacked frames.

    Output frames that see the same taps are computed together, so no work goes into padding frames: a tenth to a third
    of all work, at the depths where a clip is 2 to 5 frames long.
    """

    def __init__(self, channels: int, out: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.weight = nn.Parameter(torch.empty(out, size * channels, size, size))
        self.bias = nn.Parameter(torch.empty(out))
        self._parts: dict[tuple[int, int, torch.device], Tensor] = {}
        self._turned: Tensor | None = None

    def forward(self, x: Tensor, then: Callable[[Tensor], Tensor] = F.relu_) -> Tensor:
        """``then`` is applied to each run of output frames while it is still in the CPU's caches."""
        batch, frames, height, width, channels = x.shape
        k, s = self.size, self.stride
        before, _ = same_padding(frames, k, s)
        (top, bottom), (left, right) = same_padding(height, k, s), same_padding(width, k, s)
        even = (top, left) == (bottom, right)
        turned = winograd.turn_input(x) if self._by_winograd(x) else None
        outputs = []
        for (low, high), run in groupby(range(math.ceil(frames / s)), lambda t: self._seen(t * s - before, frames)):
            first, *rest = run
            start, count = first * s - before, 1 + len(rest)
            if turned is not None:
                stacked = torch.cat([turned[:, :, start + i : start + i + count] for i in range(low, high)], -1)
                y = torch.bmm(stacked.flatten(1, 4), self._turned_weight()[:, low * channels : high * channels])
                y = winograd.turn_output(y.unflatten(1, stacked.shape[1:5]).flatten(1, 2)) + self.bias
                outputs.append(then(y.unflatten(0, (batch, count))))
                continue
            shape = (batch, count, height, width, high - low, channels)
            if even:
                taps = inside = x.new_empty(shape)
            else:
                shape = (batch, count, height + top + bottom, width + left + right, high - low, channels)
                taps = x.new_zeros(shape)
                inside = taps[:, :, top : top + height, left : left + width]
            for i in range(low, high):
                inside[:, :, :, :, i - low] = x[:, start + i : start + i + (count - 1) * s + 1 : s]
            images = taps.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)  # channels last without a copy
            y = F.conv2d(images, self._part(low, high), self.bias, s, (top, left) if even else 0)
            outputs.append(then(y.permute(0, 2, 3, 1).unflatten(0, (batch, count))))
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]

    def _by_winograd(self, x: Tensor) -> bool:
        """Whether it pays: for large images of many channels, on a CPU."""
        height, width, channels = x.shape[2:]
        large = min(height, width) >= 28 and height % winograd.TILE == width % winograd.TILE == 0
        return x.device.type == "cpu" and self.size == 3 and self.stride == 1 and large and channels >= 64

    def _turned_weight(self) -> Tensor:
        if self._turned is None:
            self._turned = winograd.turn_weight(self.weight)
        return self._turned

    def _seen(self, start: int, frames: int) -> tuple[int, int]:
        """(low, high): taps low .. high - 1 of a window that starts at frame ``start`` lie in the clip."""
        return max(0, -start), min(self.size, frames - start)

    def _part(self, low: int, high: int) -> Tensor:
        """The weights of taps low .. high - 1, copied once: oneDNN wants them contiguous."""
        if (low, high) == (0, self.size):
            return self.weight
        key = (low, high, self.weight.device)
        if key not in self._parts:
            part = self.weight.unflatten(1, (self.size, -1))[:, low:high].flatten(1, 2)
            self._parts[key] = part.contiguous(memory_format=torch.channels_last)
        return self._parts[key]


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: (before, after) along one side, so that ceil(length / stride) windows fit."""
    total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def max_pool(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max-pool of ``(B, T, H, W, C)`` with SAME padding that never wins: first in space, then in time."""
    batch, frames, height, width, _ = x.shape
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    (top, _), (left, _) = (same_padding(n, k, s) for n, k, s in zip((height, width), size[1:], stride[1:]))
    # ceil_mode pads at the end; padding is minus infinity on both sides.
    images = F.max_pool2d(images, size[1:], stride[1:], (top, left), ceil_mode=True)
    y = images.permute(0, 2, 3, 1).unflatten(0, (batch, frames))
    before, _ = same_padding(frames, size[0], stride[0])
    starts = range(-before, -before + math.ceil(frames / stride[0]) * stride[0], stride[0])
    if size[0] == 1:
        return y
    windows = [y[:, max(start, 0) : start + size[0]].amax(1) for start in starts]
    return torch.stack(windows, 1)


def fold_batch_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `I3D` from the published tensors, batch-norm (eps 1e-3, no scale) folded in."""
    folded = {}
    for unit in sorted({name.split(".weight")[0] for name in weights if name.endswith(".weight")} - {"logits"}):
        scale = (weights[f"{unit}.var"].double() + BATCH_NORM_EPS).rsqrt()
        kernel = weights[f"{unit}.weight"].double() * scale.view(-1, 1, 1, 1, 1)
        bias = weights[f"{unit}.shift"].double() - weights[f"{unit}.mean"].double() * scale
        # (out, in, t, h, w) -> (out, t * in, h, w), or (out, in) for a matrix
        kernel = kernel.flatten(1) if kernel[0, 0].numel() == 1 else kernel.transpose(1, 2).flatten(1, 2)
        if unit == "1a":  # sees x - 1/2 where the published network sees 2x - 1
            kernel = 2 * kernel
        folded[unit] = (kernel.float(), bias.float())
    state = {"logits.weight": weights["logits.weight"].flatten(1), "logits.bias": weights["logits.bias"]}

    def put(name: str, *units: str) -> None:
        state[f"{name}.weight"] = torch.cat([folded[unit][0] for unit in units])
        state[f"{name}.bias"] = torch.cat([folded[unit][1] for unit in units])

    for unit in ("1a", "2b", "2c"):
        put(f"conv_{unit}", unit)
    for stage in MIXED:
        put(f"mixed_{stage}.pointwise", f"{stage}.0", f"{stage}.1a", f"{stage}.2a")
        put(f"mixed_{stage}.branch_1", f"{stage}.1b")
        put(f"mixed_{stage}.branch_2", f"{stage}.2b")
        put(f"mixed_{stage}.branch_3", f"{stage}.3")
    return state
