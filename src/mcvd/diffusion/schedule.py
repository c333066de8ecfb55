"""Noise schedules: alpha_bar[t], t = 0 cleanest ... steps - 1 noisiest (DDPM section 2; cosine: arXiv 2102.09672)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mcvd.errors import McvdError

MOST_STEPS = 1_000_000
"""Noise levels: a larger number is a mistake."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The variances of the forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), in float64."""

    kind: str = "linear"
    """`linear` in beta (DDPM, all published checkpoints) or `cosine` in alpha_bar."""
    steps: int = 1000
    """T, the number of noise levels."""
    beta_first: float = 1e-4
    """beta at t = 0 (linear only)."""
    beta_last: float = 0.02
    """beta at t = T - 1 (linear only)."""
    zero_terminal: bool = False
    """Rescale so that alpha_bar is 0 at t = T - 1: pure noise, from which sampling starts (arXiv 2305.08891). Needs a
    network that predicts v or x0, because eps says nothing about the video there."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine"):
            raise McvdError(f"noise schedule is {self.kind!r}; it is 'linear' or 'cosine'")
        if not (0 < self.beta_first < 1 and 0 < self.beta_last < 1):
            raise McvdError(f"beta goes from {self.beta_first} to {self.beta_last}; both must lie between 0 and 1")
        if not 1 <= self.steps <= MOST_STEPS:
            raise McvdError(f"a noise schedule has 1 to {MOST_STEPS} steps, not {self.steps}")
        if self.zero_terminal and self.steps < 2:
            raise McvdError("a zero-terminal noise schedule needs at least 2 steps: a single one would be pure noise")

    @cached_property
    def alpha_bar(self) -> Tensor:
        """``(T,)`` float64 on the CPU, descending; alpha_bar of "before t = 0" is 1."""
        if self.kind == "linear":
            beta = torch.linspace(self.beta_first, self.beta_last, self.steps, dtype=torch.float64, device="cpu")
            alpha_bar = torch.cumprod(1 - beta, dim=0)
        else:
            u = torch.arange(1, self.steps + 1, dtype=torch.float64, device="cpu") / self.steps
            alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        if self.zero_terminal:  # arXiv 2305.08891, algorithm 1: shift and scale the roots, keep the first
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alpha_bar

    @cached_property
    def beta(self) -> Tensor:
        """``(T,)`` float64 on the CPU: beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}."""
        before = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])
        return 1 - self.alpha_bar / before

    def alpha_bar_on(self, device: torch.device) -> Tensor:
        """`alpha_bar` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.alpha_bar.to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def at(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar at time numbers t ``(B,)``, on t's device, to broadcast over `like` ``(B, ...)``, in its dtype."""
        return self.alpha_bar_on(t.device)[t].to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
