"""The optimizer: Adam, or Muon for the weights of convolutions and linear layers with Adam for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mcvd.training.parallel import sharded_as
from mcvd.training.recipe import OptimizerConfig

SMALLEST = 2000  # elements up to which Muon is not worth it for a weight
EMBEDDINGS = ("network.time.", "network.sigma.", "network.mask.")
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan's polynomial, which is steep at 0 and then stays within 0.7 and 1.2
ITERATIONS = 5
SIZE = 0.2  # of Adam's usual update, as root mean square (Liu et al. 2025)


def optimizer_for(model: nn.Module, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that a recipe asks for. fused: Adam as one kernel, for GPUs."""
    chosen = muon_weights(model) if config.name == "muon" else []
    taken = {id(weight) for weight in chosen}
    adam = torch.optim.AdamW(
        [weight for weight in model.parameters() if id(weight) not in taken],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused,
    )
    return Muon(chosen, adam, config.momentum) if config.name == "muon" else adam


def optimizer_name(state: dict[str, Any]) -> str:
    """The name of the optimizer that this state belongs to."""
    return "muon" if "momentum" in state["param_groups"][0] else "adam"


def muon_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon updates: of convolutions and linear layers, except small ones and those of embeddings."""
    named = model.named_parameters()
    return [w for name, w in named if w.dim() >= 2 and w.numel() > SMALLEST and not name.startswith(EMBEDDINGS)]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for its first group of parameters, the given Adam for the second.

    The update of a weight is its averaged gradient, as a matrix of outputs by inputs with all singular values near 1,
    scaled to the size of Adam's (Liu et al. 2025, arXiv 2502.16982), so that both share rate and weight decay.
    `torch.optim.Muon` takes no convolutions, takes one matrix at a time, and computes in bf16 even where that is slow.
    """

    def __init__(self, weights: list[nn.Parameter], adam: torch.optim.AdamW, momentum: float):
        usual = adam.param_groups[0]
        own = {"params": weights, "momentum": momentum, "lr": usual["lr"], "weight_decay": usual["weight_decay"]}
        super().__init__([own, usual], {})
        self.adam = adam

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Parameters without a gradient stay as they are. closure: not used."""
        self._orthogonal_step(self.param_groups[0])
        # loading a checkpoint replaces both objects
        self.adam.param_groups, self.adam.state = self.param_groups[1:], self.state
        self.adam.step()

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if weight not in self.state:
                self.state[weight]["average"] = torch.zeros_like(weight)
        stacks = defaultdict(list)
        for weight in weights:
            stacks[tuple(sorted((len(weight), weight.numel() // len(weight))))].append(weight)
        # one stack after another: of sharded weights, every process then gathers no more than these
        for (_, columns), stack in stacks.items():
            gradients, averages = [weight.grad for weight in stack], [self.state[weight]["average"] for weight in stack]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            # Nesterov's: a lerp, which PyTorch 2.11 lacks for sharded weights
            ahead = torch._foreach_mul(gradients, 1 - group["momentum"])
            torch._foreach_add_(ahead, averages, alpha=group["momentum"])
            made = orthogonalise(torch.stack([_matrix(update) for update in ahead])).to(stack[0].dtype)
            made *= -group["lr"] * SIZE * columns**0.5
            updates = [sharded_as(_as_weight(update, weight), weight) for update, weight in zip(made, stack)]
            if group["weight_decay"]:
                torch._foreach_mul_(stack, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(stack, updates)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices ``(N, R, C)``, R <= C, with their singular vectors and all singular values near 1; zero stays zero."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _matrix(update: Tensor) -> Tensor:
    """A weight's whole update as a matrix with no more rows than columns; the kernel's inputs last, as in memory."""
    whole = update.full_tensor() if isinstance(update, DTensor) else update
    matrix = whole.movedim(1, -1).flatten(1)
    return matrix.mT if len(matrix) > matrix.shape[1] else matrix


def _as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """The inverse of `_matrix`."""
    matrix = matrix if len(matrix) == len(weight) else matrix.mT
    return matrix.unflatten(1, (*weight.shape[2:], weight.shape[1])).movedim(-1, 1)
