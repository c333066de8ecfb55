"""How fast a run is, when it will be done, how much memory it takes, and how well it uses the machine."""

from __future__ import annotations

import sys
import time

import torch

from mcvd.training.estimate import estimate, matmul_rate
from mcvd.training.recipe import Recipe


class Meter:
    """Rates of one process between two calls. Creating one counts the arithmetic of a step, and measures the machine's
    rate in about 0.2 s.

    processes: how many share a batch.
    """

    def __init__(self, recipe: Recipe, device: torch.device, processes: int = 1, step: int = 0):
        self.device, self.batch = device, recipe.batch
        self.flops = estimate(recipe).flops * recipe.batch / processes
        self.peak = matmul_rate(device)
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts measuring here: what was done before, such as sampling, does not count as training."""
        self.step, self.time = step, time.monotonic()

    def rates(self, step: int) -> dict[str, float]:
        """Since the last call: `steps_per_second`, `clips_per_second` of all processes, `mfu`; `memory_gb` at its peak,
        if the system reports it.

        mfu, model FLOPs utilisation (arXiv 2204.02311, appendix B): arithmetic that the steps needed, forward and
        backward, over what this process's device does in large matrix products (measured). Empty if no step was made.
        """
        steps, seconds = step - self.step, time.monotonic() - self.time
        if not steps:
            return {}
        self.restart(step)
        speed = steps / seconds
        rates = {"steps_per_second": speed, "clips_per_second": speed * self.batch}
        if (peak := memory(self.device)) is not None:
            rates["memory_gb"] = peak / 1e9
        return rates | {"mfu": speed * self.flops / self.peak}


def memory(device: torch.device) -> int | None:
    """Bytes at the peak: allocated by torch on a GPU, resident in this process on a CPU; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Pace:
    """How long steps take, pauses to validate and save included, but not the first step, which may compile."""

    SAFETY = 0.97  # share of the time to plan for: the last save needs some too

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def steps_until(self, deadline: float, step: int) -> int | None:
        """Total steps at the deadline, estimated from the steps since the first call; None in that call."""
        now = time.monotonic()
        if self.first is None:
            self.first = now, step
            return None
        began, first = self.first
        each = (now - began) / (step - first)
        return step + max(int(self.SAFETY * (deadline - now) / each), 0)
