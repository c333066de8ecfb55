"""The exponential moving average of the weights, which is used for sampling."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Ema:
    """Averages of a module's parameters in float32: `shadow`, under the parameters' names.

    decay: weight of the old average at each update; the published models use 0.999 from the first step on.
    warmup: lets the average follow faster at the start: decay is at most (1 + n) / (10 + n) at update n. Short runs
        would otherwise sample from a mixture with their initial weights.
    power: the relative width of a power profile, instead of `decay` and `warmup`; see `power_exponent`.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999, warmup: bool = False, power: float | None = None):
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.exponent = None if power is None else power_exponent(power)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the parameters; call after every optimizer step."""
        decay = self.decay
        if self.exponent is not None:
            decay = (1 - 1 / (self.updates + 1)) ** (self.exponent + 1)
        elif self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.shadow.values()), [p.detach().float() for p in self.parameters.values()], 1 - decay
        )
        self.updates += 1

    def state_dict(self) -> dict[str, object]:
        """The averages and the number of updates."""
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Restores what `state_dict` returned."""
        for name, value in self.shadow.items():
            value.copy_(state["shadow"][name])
        self.updates = state["updates"]


def power_exponent(width: float) -> float:
    """The gamma of a power profile of this relative width (sigma_rel of EDM2, arXiv 2312.02696, section 3.1).

    Such an average weighs the weights of step t' in proportion to t'^gamma: it forgets the start at any length of run.
    Its standard deviation, as a share of the run, is sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), which
    is solved for gamma. 0 < width <= 1 / sqrt(12), where gamma = 0 is the plain mean.
    """
    t = width**-2
    # (gamma + 2)^2 (gamma + 3) = t (gamma + 1)
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return max(float(roots.real.max()), 0.0)
