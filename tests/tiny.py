"""The smallest model that still has every kind of layer, with weights that matter."""

import torch

from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.config import UNetConfig

NETWORK = {
    "size": (16, 16),
    "channels": 1,
    "layout": BlockLayout(2, 3, 1),
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (),
    "dropout": 0.0,
}
OPEN = Masking(0.5, 0.5)  # every task is allowed


def config(
    masking: Masking = OPEN,
    prediction: str = "eps",
    steps: int = 100,
    noisy_condition=False,
    context_noise=0.0,
    **network,
):
    return ModelConfig(
        network=UNetConfig(**{**NETWORK, **network}),
        masking=masking,
        schedule=NoiseSchedule(steps=steps),
        prediction=prediction,
        noisy_condition=noisy_condition,
        context_noise=context_noise,
    )


def model(seed: int = 0, **options) -> VideoDiffusion:
    """A random model in evaluation mode. Layers that start near zero, and would hide bugs behind them, do not here."""
    torch.manual_seed(seed)
    made = VideoDiffusion(config(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.2)
    return made.eval()


def video(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random uint8 frames of the given shape, e.g. (T, 1, 16, 16)."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed), device="cpu")
