"""A training step that is recorded once and then replayed (CUDA graphs).

A step launches thousands of kernels, most of them small. Launched one by one from Python, they keep a fast GPU waiting;
a recording launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mcvd.draw import Draw
from mcvd.errors import McvdError
from mcvd.networks.replay import aside
from mcvd.training.processes import Processes
from mcvd.training.recipe import Recipe

WARM = 3
"""Steps before the recording, in which libraries choose kernels and get their memory."""

Part = tuple[Tensor, Draw]
Step = Callable[[Iterable[Part], Tensor], tuple[Tensor, Tensor]]


def check_recordable(recipe: Recipe, processes: Processes) -> None:
    """Raises McvdError if the steps of this recipe cannot be recorded here."""
    for wrong, why in (
        (processes.device.type != "cuda", f"only steps on a GPU can be recorded, not on {processes.device.type}"),
        (processes.count > 1, f"only steps of a single process can be recorded, not of {processes.count}"),
        (recipe.checkpointing, "steps with checkpointing cannot be recorded"),
        (recipe.precision == "fp16", "steps in fp16 cannot be recorded, as some of them are skipped"),
    ):
        if wrong:
            raise McvdError(f"{why}; set recorded to false")


class RecordedStep:
    """Steps of one run: the first few are done by Python, later ones replay a recording of the next.

    optimizer: the one that the steps use.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.device = optimizer, device
        self.rate = torch.zeros((), device=device)
        self.parts: list[Part] = []
        """What the recording reads; the parts of every step are copied here."""
        self.calls = 0
        self.stream = torch.cuda.Stream(device)
        self.recording: tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]] | None = None

    def __call__(self, step: Step, parts: Iterable[Part], rate: float) -> tuple[Tensor, Tensor]:
        """One step with this learning rate -> loss and gradient norm, tensors of their own.

        step: takes clips ``(B, T, C, H, W)`` uint8 with their draws, part by part, and the learning rate. All it reads
            are these tensors, on the device, and what it keeps there itself; it never waits for the device, and does
            the same at every call.
        """
        for i, (clips, draw) in enumerate(parts):
            if i == len(self.parts):
                self.parts.append((torch.empty_like(clips, device=self.device), draw.empty_like()))
            mine, own = self.parts[i]
            mine.copy_(clips, non_blocking=True)
            own.copy_(draw)
        self.rate.fill_(rate)
        self.calls += 1
        if self.calls <= WARM:
            return aside(self.stream, lambda: step(self.parts, self.rate))
        if self.recording is None:
            self.recording = self._record(step)
        graph, (loss, norm) = self.recording
        graph.replay()
        return loss.clone(), norm.clone()

    def _record(self, step: Step) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # the fused Adam always is, but wants to be told
        graph = torch.cuda.CUDAGraph()
        # thread_local: threads that load data may use the GPU meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            return graph, step(self.parts, self.rate)
