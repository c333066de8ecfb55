"""Wrappers of the network for training: recomputation, compilation, then sharding or DDP.

The order matters. Recomputation is innermost: the backward pass runs a block again with the weights that the layers
around it have gathered. Compilation comes next, so that it sees a plain network; of a sharded one, it compiles the
blocks, because every block gathers its weights, in Python, before it runs; of a recorded one, too, because blocks are
compiled faster. What exchanges gradients is outermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mcvd.model import VideoDiffusion
from mcvd.networks.compiled import allow_versions
from mcvd.networks.unet import UNet
from mcvd.training.processes import Processes
from mcvd.training.recipe import Recipe


def blocks(network: UNet) -> list[nn.Module]:
    """The residual and attention blocks, in the order in which they run: most of the weights and of the arithmetic."""
    found: list[nn.Module] = []
    for level in network.down:
        for i, block in enumerate(level.blocks):
            found += [block, *level.attention[i : i + 1]]
        found += [level.resample] if level.resample is not None else []
    found += network.middle
    for level in network.up:
        found += [*level.blocks, *level.attention]
        found += [level.resample] if level.resample is not None else []
    return found


def wrap(model: VideoDiffusion, recipe: Recipe, processes: Processes) -> nn.Module:
    """What the training step calls, with the weights of the model; in a single process, the model itself."""
    sharded = recipe.sharding == "full" and processes.count > 1
    parts = blocks(model.network)
    if recipe.checkpointing:
        model.network.keeps_maps = False
        for block in parts:
            block.forward = _recomputed(block.forward)
    if recipe.compile:
        compiled = parts if sharded or recipe.recorded else [model.network]
        allow_versions(len(compiled))  # they share their code
        for part in compiled:
            part.compile(dynamic=False)
    if sharded:
        _shard(model, parts, processes)
        return model
    return DistributedDataParallel(model) if processes.count > 1 else model


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward that keeps only its inputs, and is run again, with the same dropout, in the backward pass."""

    def run(x: Tensor, *rest: Any) -> Tensor:
        # x is an argument: checkpoint keeps the random state of the devices that its arguments are on
        return checkpoint(lambda x: forward(x, *rest), x, use_reentrant=False)

    return run


def _shard(model: VideoDiffusion, parts: list[nn.Module], processes: Processes) -> None:
    """FSDP2: every process keeps its share of each weight, and gathers the weights of a block when it runs."""
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for weight in model.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 takes no channels_last weights
    for norm in model.network.spatin_norms():
        # the modulation maps are computed before the block runs, or within it (`UNet.encode`): a group of its own
        fully_shard(list(norm.children()), mesh=mesh)
    for block in parts:
        block.register_forward_pre_hook(_channels_last)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if processes.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo has no mean


def _channels_last(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Features in the layout with the fastest convolutions, which unsharded weights bring about by their own layout."""
    x, *rest = inputs
    return (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, *rest)


def whole(state: Any, keep: bool) -> Any:
    """A nested state with every sharded tensor in one piece, on the CPU; all processes must call it.

    keep: whether this process wants the result; in the others, sharded tensors become None, one at a time.
    """
    if isinstance(state, DTensor):
        value = state.full_tensor()
        return value.cpu() if keep else None
    if isinstance(state, dict):
        return {key: whole(value, keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value, keep) for value in state)
    return state


def sharded_as(state: Any, own: Any) -> Any:
    """The inverse of `whole`: every tensor that is sharded in the nested state `own` becomes this process's share."""
    if isinstance(own, DTensor):
        # every process has read the same file and cuts out its share: nothing is sent; a view would keep the whole
        return distribute_tensor(state.to(own.device), own.device_mesh, own.placements, src_data_rank=None).clone()
    if isinstance(own, dict):
        return {key: sharded_as(value, own.get(key)) for key, value in state.items()}
    return state


def sharded_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of this optimizer, as `whole` returned it, with the averages of a weight sharded as the weight is."""
    own = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))
    return state | {
        "state": {
            i: {
                name: sharded_as(value, own[i]) if value.shape == own[i].shape else value
                for name, value in moments.items()
            }
            for i, moments in state["state"].items()
        }
    }
