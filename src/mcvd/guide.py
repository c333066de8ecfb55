"""Autoguidance (arXiv 2406.02507): sampling moves away from what a weaker model says.

A weaker model of the same data makes the same mistakes, only larger ones, so that the difference between the two points
away from mistakes. It sees the same past and future frames, or nothing, so it guides every task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mcvd.errors import McvdError
from mcvd.networks.config import UNetConfig

if TYPE_CHECKING:
    from mcvd.model import ModelConfig, VideoDiffusion


@dataclass(frozen=True)
class GuideConfig:
    """The guide of a model: a weaker network for the same blocks."""

    network: UNetConfig
    """Its size, channels and layout are the model's."""
    scale: float = 1.5
    """The model's output is replaced by guide + scale (output - guide); 1 is the model itself."""
    noise: float = 0.95
    """The guide acts from the noise level sqrt(1 - alpha_bar), in [0, 1], upwards (guidance in an interval, arXiv
    2404.07724): there, what the frames show is decided. Below, it would mostly sharpen edges."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale < 1.0:
            raise McvdError(f"the guide's scale is {self.scale}; it must be a number of at least 1")
        if not 0.0 <= self.noise <= 1.0:
            raise McvdError(f"the guide's noise is {self.noise}; it must be between 0 and 1")

    def acts(self, alpha_bar: float) -> bool:
        """Whether it acts at this noise level."""
        return self.scale != 1.0 and 1.0 - alpha_bar >= self.noise**2

    def check(self, network: UNetConfig) -> None:
        """Raises McvdError unless it takes and makes the same frames as this network."""
        for name in ("size", "channels", "layout"):
            mine, theirs = getattr(self.network, name), getattr(network, name)
            if mine != theirs:
                raise McvdError(f"the guide's {name} is {mine}, the model's {theirs}; they must be equal")


def guided(
    model: VideoDiffusion, weaker: VideoDiffusion, scale: float = GuideConfig.scale, noise: float = GuideConfig.noise
) -> VideoDiffusion:
    """The model with a guide for all that it generates, in evaluation mode; `save` stores both.

    weaker: a smaller or less trained model of the same data, trained for (at least) the same tasks.
    scale, noise: see :class:`GuideConfig`. Raises McvdError for models that do not fit each other.
    """
    for name in _SHARED:
        if getattr(weaker.config, name) != getattr(model.config, name):
            raise McvdError(f"the {name} of the guide and of the model differ; both must be trained with the same")
    if weaker.stride != model.stride:
        raise McvdError(f"the guide was trained on one frame in {weaker.stride}, the model on one in {model.stride}")
    config: ModelConfig = replace(model.config, guide=GuideConfig(weaker.config.network, scale, noise))
    mine, theirs = (one.config.masking for one in (model, weaker))
    if missing := mine.tasks(model.layout).keys() - theirs.tasks(model.layout).keys():
        raise McvdError(f"the guide was not trained for these tasks of the model: {', '.join(sorted(missing))}")
    if mine.frames and not theirs.frames:
        raise McvdError("the guide was not trained with single frames hidden (masking.frames), as the model was")
    out = type(model)(config).to(model.device)
    out.network.load_state_dict(model.network.state_dict())
    assert out.guide is not None
    out.guide.load_state_dict(weaker.network.state_dict())
    out.notes = dict(model.notes)
    return out.eval()


_SHARED = "schedule", "prediction", "time_from_noise", "noisy_condition", "context_noise"
