"""Network calls compiled by torch.compile: a few kernels do what is to be done between two convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.networks.blocks import Condition
from mcvd.networks.replay import Replay
from mcvd.networks.unet import UNet


def compiled_calls(network: UNet) -> Callable[..., Tensor]:
    """Calls of this network, compiled once for every shape of their inputs (a minute); on GPUs also recorded.

    Raises McvdError, at the first call, where PyTorch finds no compiler.
    """
    compiled = torch.compile(network, dynamic=False)  # sizes that may change make slower kernels

    def call(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        try:
            return compiled(x, time, condition)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = " ".join(str(error).strip().split("\n\n")[0].split())
            raise McvdError(f"torch.compile failed ({why}); choose engine torch") from error

    device = next(network.parameters()).device
    return Replay(call, device) if device.type == "cuda" else lambda slot, *inputs: call(*inputs)
