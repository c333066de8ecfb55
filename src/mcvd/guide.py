"""Autoguidance (arXiv 2406.02507): sampling moves away from what a weaker model says.

Blocks that see frames can be guided by them (classifier-free guidance); those that see nothing have no condition to
follow more closely. A weaker model of the same data makes the same mistakes, only larger ones, so that the difference
between the two points away from mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.networks.config import UNetConfig
from mcvd.networks.engine import network_call
from mcvd.networks.unet import UNet

if TYPE_CHECKING:
    from mcvd.model import ModelConfig, VideoDiffusion


@dataclass(frozen=True)
class GuideConfig:
    """The guide of a model: a weaker network that generates the current frames of a block from nothing."""

    network: UNetConfig
    """Its layout has no past and no future; size, channels, current frames and all else are the model's."""
    scale: float = 2.0
    """The model's output is replaced by guide + scale (output - guide); 1 is the model itself."""
    noise: float = 0.95
    """The guide acts from the noise level sqrt(1 - alpha_bar), in [0, 1], upwards (guidance in an interval, arXiv
    2404.07724): there, what the frames show is decided. Below, it would only sharpen edges."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale < 1.0:
            raise McvdError(f"the guide's scale is {self.scale}; it must be a number of at least 1")
        if not 0.0 <= self.noise <= 1.0:
            raise McvdError(f"the guide's noise is {self.noise}; it must be between 0 and 1")
        if self.network.layout.condition_frames:
            raise McvdError("a guide generates from nothing: its layout must have past 0 and future 0")

    def acts(self, alpha_bar: float) -> bool:
        """Whether it acts at this noise level."""
        return self.scale != 1.0 and 1.0 - alpha_bar >= self.noise**2

    def check(self, network: UNetConfig) -> None:
        """Raises McvdError unless it makes the same frames as this network."""
        for name in ("size", "channels"):
            mine, theirs = getattr(self.network, name), getattr(network, name)
            if mine != theirs:
                raise McvdError(f"the guide's {name} is {mine}, the model's {theirs}; they must be equal")
        mine, theirs = self.network.layout.current, network.layout.current
        if mine != theirs:
            raise McvdError(f"the guide makes {mine} frames at once, the model {theirs}; they must be equal")


def guide_call(network: UNet) -> Callable[[Tensor, Tensor], Tensor]:
    """A guide's call: x_t ``(B, k, C, H, W)`` and the network's time ``(1,)`` -> its output, of the shape of x_t."""
    nothing = torch.zeros(1, 0, network.config.channels, *network.config.size, device=next(network.parameters()).device)
    condition, call = network.encode(nothing, nothing), network_call(network)
    return lambda x, time: call(x, time, condition)


def guided(
    model: VideoDiffusion, weaker: VideoDiffusion, scale: float = GuideConfig.scale, noise: float = GuideConfig.noise
) -> VideoDiffusion:
    """The model with a guide for all that it generates from nothing, in evaluation mode; `save` stores both.

    weaker: a smaller or less trained model of the same data, with past 0 and future 0 in its layout.
    scale, noise: see :class:`GuideConfig`. Raises McvdError for models that do not fit each other.
    """
    if (False, False) not in model.config.masking.combinations(model.layout):
        raise McvdError("the model was not trained to generate from nothing; there is nothing to guide")
    for name in _SHARED:
        if getattr(weaker.config, name) != getattr(model.config, name):
            raise McvdError(f"the {name} of the guide and of the model differ; both must be trained with the same")
    config: ModelConfig = replace(model.config, guide=GuideConfig(weaker.config.network, scale, noise))
    out = type(model)(config).to(model.device)
    out.network.load_state_dict(model.network.state_dict())
    assert out.guide is not None
    out.guide.load_state_dict(weaker.network.state_dict())
    out.notes = model.notes
    return out.eval()


_SHARED = "schedule", "prediction", "time_from_noise"
