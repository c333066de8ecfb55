"""What runs the network calls of sampling: PyTorch with packed or recorded calls, its compiler, or OpenVINO."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

from torch import Tensor

from mcvd.errors import McvdError
from mcvd.networks.blocks import Condition
from mcvd.networks.compiled import compiled_calls
from mcvd.networks.convolution import packed_convolutions
from mcvd.networks.openvino import openvino_calls
from mcvd.networks.replay import replayed_calls
from mcvd.networks.unet import UNet

Call = Callable[[Tensor, Tensor, Condition], Tensor]

ENGINES: dict[str, Callable[[UNet], Callable[..., Tensor] | None]] = {
    "torch": replayed_calls,
    "compile": compiled_calls,
    "openvino": openvino_calls,
}


_LOCKS: WeakKeyDictionary[UNet, threading.RLock] = WeakKeyDictionary()
"""One lock per network, whose engine serves one thread at a time."""


@contextlib.contextmanager
def calls_by(network: UNet, engine: str = "torch") -> Iterator[None]:
    """Within it, and without gradients, `network_call` of this network uses this engine.

    Weights must not change meanwhile: packed, recorded and exported ones are copies, dropped at the end. Raises
    McvdError for an unknown name, or an engine that this machine or the network's device does not have. Other threads
    wait until this one leaves.
    """
    if engine not in ENGINES:
        raise McvdError(f"engine is {engine!r}; it is one of {', '.join(ENGINES)}")
    with _LOCKS.setdefault(network, threading.RLock()):
        before, network.calls = network.calls, ENGINES[engine](network)
        try:
            with packed_convolutions(network):
                yield
        finally:
            network.calls = before


def network_call(network: UNet, slot: int = 0) -> Call:
    """What a sampling step calls: the network, or its engine's replacement. slot: a number for each of the conditions
    that are used in turn."""
    calls = network.calls
    return network if calls is None else lambda *inputs: calls(slot, *inputs)
