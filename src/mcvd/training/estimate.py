"""What a recipe will cost, before it runs: weights, arithmetic, memory, time. Allocates no more than a matrix."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mcvd.model import Draw, VideoDiffusion
from mcvd.training.recipe import Recipe

BYTES_PER_WEIGHT = 4 * 5  # weight, gradient, two averages of Adam, EMA; all float32
SHARE_OF_MATMUL = 0.4  # of the machine's rate for large matrices; measured for the published networks, see `rate`


@dataclass(frozen=True)
class Estimate:
    """Costs of a run; memory and time are for one process that takes the whole batch."""

    parameters: int
    flops: int
    """Of one clip in one step, forward and backward (a multiply-add is 2)."""
    state_bytes: int
    """Weights, gradients, Adam and EMA."""
    activation_bytes: int
    """What the backward pass of one part of the batch keeps, in float32; half of it under bf16."""

    def seconds(self, recipe: Recipe, rate: float) -> float:
        """Of the whole run, at `rate` floating-point operations a second."""
        return self.flops * recipe.batch * recipe.steps / rate


def estimate(recipe: Recipe) -> Estimate:
    """Builds the network on the meta device, where tensors have shapes but no contents, and counts."""
    part = recipe.batch // recipe.accumulate
    with torch.device("meta"):
        model = VideoDiffusion(recipe.model).train()
        layout, network = model.layout, recipe.model.network
        video = torch.empty(1, layout.frames, network.channels, *network.size)
        draw = Draw(
            torch.ones(1, dtype=torch.bool),
            torch.ones(1, dtype=torch.bool),
            torch.zeros(1, dtype=torch.long),
            torch.empty(1, layout.current, network.channels, *network.size),
        )
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    # alpha_bar has contents, which a meta tensor cannot index: one level stands for all
    model.config.schedule.__dict__["alpha_bar"] = torch.empty(recipe.model.schedule.steps, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model.loss(video, draw)
    finally:
        del model.config.schedule.__dict__["alpha_bar"]
    del loss
    count = sum(p.numel() for p in model.parameters())
    return Estimate(count, 3 * counter.get_total_flops(), BYTES_PER_WEIGHT * count, part * sum(kept.values()))


def rate(device: torch.device) -> float:
    """Floating-point operations a second that training may expect of this device: a share of its matrix rate."""
    return SHARE_OF_MATMUL * matmul_rate(device)


@lru_cache
def matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second in large matrix products, bf16 on GPUs and float32 on CPUs; measured once."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    # random numbers, because GPUs are faster on equal ones; from a generator of its own, so that no run changes
    a = torch.randn(n, n, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
