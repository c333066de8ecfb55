"""Network calls compiled by torch.compile: a few kernels do what is to be done between two convolutions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.networks.blocks import Condition
from mcvd.networks.replay import Replay
from mcvd.networks.unet import UNet

_SEEN: WeakKeyDictionary[UNet, set[Any]] = WeakKeyDictionary()
"""What PyTorch has compiled in this process: of every network, shapes and precisions."""


def compiled_calls(network: UNet) -> Callable[..., Tensor]:
    """Calls of this network, compiled once for every shape of their inputs (a minute); on GPUs also recorded.

    Raises McvdError, at the first call, where PyTorch finds no compiler.
    """
    compiled = torch.compile(network, dynamic=False)  # sizes that may change make slower kernels
    seen = _SEEN.setdefault(network, set())

    def call(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        shapes = tuple((tuple(part.shape), part.dtype) for part in (x, time, *condition.tensors()))
        kind = x.device.type
        what = shapes, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        if what not in seen:
            warnings.warn(f"compiling the network, once for {len(x)} at a time: a minute or two", stacklevel=2)
            seen.add(what)
            # PyTorch compiles the same code 8 times, and then runs it uncompiled; in every thread anew
            versions = sum(len(shapes) for shapes in _SEEN.values())
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, versions + 8)
        try:
            return compiled(x, time, condition)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = " ".join(str(error).strip().split("\n\n")[0].split())
            raise McvdError(f"torch.compile failed ({why}); choose engine torch") from error

    device = next(network.parameters()).device
    return Replay(call, device) if device.type == "cuda" else lambda slot, *inputs: call(*inputs)
