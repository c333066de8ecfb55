"""Network calls on a GPU without their launch overhead: recorded once, then replayed (CUDA graphs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcvd.networks.blocks import Condition
from mcvd.networks.unet import UNet

T = TypeVar("T")


def replayed_calls(network: UNet) -> Replay | None:
    """Calls of this network on a GPU that replay a recorded call; None on CPUs.

    With a small batch, the GPU waits for Python, which launches several hundred kernels per call; a recording launches
    them all at once, with bit-identical results. For each set of input shapes, the first call runs as usual, the second
    is recorded, and all later ones are replayed. Recordings share their memory.
    """
    device = next(network.parameters()).device
    return Replay(network, device) if device.type == "cuda" else None


def aside(stream: torch.cuda.Stream, run: Callable[[], T]) -> T:
    """Runs on the stream of a recording, so that what libraries keep per stream exists before it is made."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = run()
    current.wait_stream(stream)
    return result


class Replay:
    """The recordings of a network, by the shapes of their inputs."""

    def __init__(self, network: Callable[[Tensor, Tensor, Condition], Tensor], device: torch.device):
        self.network = network
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.recordings: dict[Any, Recording | None] = {}

    def __call__(self, slot: int, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output, a tensor of its own."""
        key = (slot, *((part.shape, part.dtype) for part in (x, time, *condition.tensors())))
        if key not in self.recordings:
            self.recordings[key] = None
            return aside(self.stream, lambda: self.network(x, time, condition))
        recording = self.recordings[key]
        if recording is None:
            recording = aside(self.stream, lambda: Recording(self, x, time, condition))
            self.recordings[key] = recording
        return recording(x, time, condition)


class Recording:
    """One call, recorded: it reads and writes the same memory whenever it is replayed."""

    def __init__(self, replay: Replay, x: Tensor, time: Tensor, condition: Condition):
        self.x, self.time = x.clone(), time.clone()
        # not a copy: SPATIN's maps are large, and the denoiser that they were made for is the first to use them
        rows = None if condition.rows is None else condition.rows.clone()
        self.own, self.given = replace(condition, rows=rows), condition
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: threads that load data may use the GPU meanwhile
        with torch.cuda.graph(self.graph, replay.pool, replay.stream, capture_error_mode="thread_local"):
            self.output = replay.network(self.x, self.time, self.own)

    def __call__(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.x.copy_(x)
        self.time.copy_(time)
        if condition is not self.given:  # the next block's
            for mine, new in zip(self.own.tensors(), condition.tensors()):
                mine.copy_(new)
            self.given = condition
        self.graph.replay()
        return self.output.clone()
