"""Mixed precision: what autocast computes in, and the scaling of the loss that fp16 needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mcvd.networks.precision import autocast, fast_on

SCALE = 2.0**8  # of the loss at the start; the summed loss has large gradients, which overflow at torch's 2 ** 16
SKIPS = 30  # that many steps in a row with infinite gradients are too many: each halves the scale


class Precision:
    """The arithmetic of a run.

    Under fp16 a step whose gradients overflow is skipped and the scale of the loss halved; it doubles after 2000 good
    steps. The weights stay in float32.
    """

    def __init__(self, name: str, device: torch.device):
        """name: `precision` of the recipe. Raises McvdError if it is slow on the device."""
        if name == "auto":
            name = "bf16" if fast_on(device)[0] == "bf16" else "fp32"
        self.fp16 = name == "fp16"
        self.autocast = autocast(name, device)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=SCALE, enabled=self.fp16)
        self.skipped = torch.zeros((), dtype=torch.long, device=device)
        """Skipped steps in a row; kept on the device, so that counting does not wait for it."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the (scaled) loss."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives the gradients their true size, for clipping; once a step."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """The optimizer's step, skipped if the gradient, whose norm is given, has overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.fp16:
            self.skipped = torch.where(norm.isfinite(), 0, self.skipped + 1)

    def state_dict(self) -> dict[str, Any]:
        """The scale and for how long it has been good; empty unless fp16."""
        return self.scaler.state_dict() | {"skipped": int(self.skipped)} if self.fp16 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; a run that had another precision until now starts with a new scale."""
        if self.fp16 and state:
            self.skipped.fill_(state["skipped"])
            self.scaler.load_state_dict({key: value for key, value in state.items() if key != "skipped"})
