"""What a recipe will cost, before it runs: weights, arithmetic, memory, time. Allocates no more than a matrix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mcvd.draw import Draw
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.training.muon import muon_weights
from mcvd.training.parallel import blocks
from mcvd.training.recipe import Recipe

BYTES_PER_WEIGHT = 4 * 5  # weight, gradient, two averages of Adam, EMA; all float32
BYTES_LESS = 4  # for a weight that Muon updates, which has one average
SHARE_OF_MATMUL = 0.4  # of the machine's rate for large matrices; measured for the published networks, see `rate`


@dataclass(frozen=True)
class Estimate:
    """Costs of a run; memory and time are for a single process that takes the whole batch."""

    parameters: int
    flops: int
    """For one clip in one step, forward and backward (a multiply-add is 2)."""
    state_bytes: int
    """Weights, gradients, averages of the optimizer, EMA."""
    activation_bytes: int
    """What is kept for the backward pass of one part of the batch, in float32; half of it under bf16 or fp16."""

    def seconds(self, recipe: Recipe, rate: float) -> float:
        """Duration of the whole run, at `rate` floating-point operations per second."""
        return self.flops * recipe.batch * recipe.steps / rate


def estimate(recipe: Recipe) -> Estimate:
    """Builds the network on the meta device, where tensors have shapes but no contents, and counts.

    Raises McvdError for a recipe that no machine can train, as its batch does not divide into parts.
    """
    if recipe.batch % recipe.accumulate:
        raise McvdError(f"batch {recipe.batch} does not divide into accumulate {recipe.accumulate} parts")
    part = recipe.batch // recipe.accumulate
    schedule = replace(recipe.model.schedule)  # a copy: the recipe's own stays as it is
    # alpha_bar has contents, which a meta tensor cannot index: one level stands for all
    schedule.__dict__["alpha_bar"] = torch.empty(schedule.steps, device="meta")
    with torch.device("meta"):
        model = VideoDiffusion(replace(recipe.model, schedule=schedule)).train()
        layout, network = model.layout, recipe.model.network
        video = torch.empty(1, layout.frames, network.channels, *network.size, dtype=torch.float32)
        draw = Draw(
            torch.ones(1, dtype=torch.bool),
            torch.ones(1, dtype=torch.bool),
            torch.zeros(1, dtype=torch.long),
            torch.empty(1, layout.current, network.channels, *network.size, dtype=torch.float32),
        )
    with FlopCounterMode(display=False) as counter:
        kept = _Kept(model, counter)
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda x: x):
            model.loss(video, draw)
    count = sum(p.numel() for p in model.parameters())
    state = BYTES_PER_WEIGHT * count
    if recipe.optimizer.name == "muon":
        state -= BYTES_LESS * sum(p.numel() for p in muon_weights(model))
    again = kept.block_flops if recipe.checkpointing else 0
    flops = 3 * counter.get_total_flops() + again
    return Estimate(count, flops, state, part * kept.peak(recipe.checkpointing))


class _Kept:
    """What a forward pass keeps for the backward pass, in each block and outside of them."""

    def __init__(self, model: VideoDiffusion, counter: FlopCounterMode):
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.outside: dict[int, torch.UntypedStorage] = {}  # by address, which is not reused while they are kept
        self.inputs: dict[int, torch.UntypedStorage] = {}
        self.inside: list[dict[int, torch.UntypedStorage]] = []
        self.here = self.outside
        self.block_flops = 0
        began = 0

        def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal began
            began, self.here = counter.get_total_flops(), {}
            self.inside.append(self.here)
            for tensor in _tensors(inputs):
                self.inputs[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

        def leave(*_: object) -> None:
            self.here = self.outside
            self.block_flops += counter.get_total_flops() - began

        for block in blocks(model.network):
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave)

    def add(self, tensor: Tensor) -> Tensor:
        """A hook for saved tensors."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.here[storage._cdata] = storage
        return tensor

    def peak(self, recomputed: bool) -> int:
        """Bytes at the peak; recomputed: the blocks keep only their inputs, and are run again one at a time."""
        outside = self.outside | self.inputs if recomputed else self.outside
        total = sum(storage.nbytes() for storage in outside.values())
        own = [{at: storage for at, storage in block.items() if at not in outside} for block in self.inside]
        if recomputed:
            return total + max(sum(storage.nbytes() for storage in block.values()) for block in own)
        together = {at: storage for block in own for at, storage in block.items()}
        return total + sum(storage.nbytes() for storage in together.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in the arguments of a block."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def rate(device: torch.device) -> float:
    """Floating-point operations per second to expect of this device in training: a share of its matrix rate."""
    return SHARE_OF_MATMUL * matmul_rate(device)


@lru_cache
def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second in large matrix products, bf16 on GPUs, float32 on CPUs; measured once."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    # random numbers, because GPUs are faster on equal ones; from a separate generator, so that no run changes
    a = torch.randn(n, n, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
