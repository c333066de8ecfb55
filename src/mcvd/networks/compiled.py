"""Network calls compiled by torch.compile, which fuses the operations between two convolutions into few kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mcvd.device import tuned_convolutions
from mcvd.errors import McvdError
from mcvd.networks.blocks import Condition
from mcvd.networks.replay import Replay
from mcvd.networks.unet import UNet

_SEEN: WeakKeyDictionary[UNet, set[Any]] = WeakKeyDictionary()
"""What PyTorch has compiled in this process: the shapes and precisions, by network."""

_allowed = 8  # PyTorch's default


def allow_versions(more: int) -> None:
    """Lets PyTorch compile this many more versions of a function: beyond its limit, it silently runs it uncompiled.

    Versions for networks that are gone count, too, and every thread has a limit of its own.
    """
    global _allowed
    _allowed += more
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _allowed)


def compiled_calls(network: UNet) -> Callable[..., Tensor]:
    """Calls of this network, compiled once per shape of their inputs (about a minute); on GPUs also recorded.

    The first call raises McvdError if PyTorch finds no compiler.
    """
    compiled = torch.compile(network, dynamic=False)  # kernels for variable sizes are slower
    seen = _SEEN.setdefault(network, set())

    def call(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        shapes = tuple((tuple(part.shape), part.dtype) for part in (x, time, *condition.tensors()))
        kind = x.device.type
        what = shapes, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        if what not in seen:
            warnings.warn(f"compiling the network once for batches of {len(x)}: a minute or two", stacklevel=2)
            seen.add(what)
            allow_versions(1)
        try:
            with tuned_convolutions():
                return compiled(x, time, condition)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = " ".join(str(error).strip().split("\n\n")[0].split())
            raise McvdError(f"torch.compile failed ({why}); choose engine torch") from error

    device = next(network.parameters()).device
    return Replay(call, device) if device.type == "cuda" else lambda slot, *inputs: call(*inputs)
