"""The exponential moving average of the weights, which is what samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a module's parameters in float32, under the parameters' names.

    decay: weight of the old average at each update; the published models use 0.999 from the first step on.
    warmup: lets the average follow faster at the start: decay is at most (1 + n) / (10 + n) at update n. Short runs
        would otherwise sample from a mixture with their initial weights.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999, warmup: bool = False):
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the parameters; call after every optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(
            list(self.shadow.values()), [p.detach().float() for p in self.parameters.values()], 1 - decay
        )
        self.updates += 1

    def state_dict(self) -> dict[str, object]:
        """The averages and how many updates they have seen."""
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what `state_dict` gave."""
        for name, value in self.shadow.items():
            value.copy_(state["shadow"][name])
        self.updates = state["updates"]

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averages that can be loaded into the module."""
        return {name: value.clone() for name, value in self.shadow.items()}
