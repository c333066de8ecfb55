"""I3D, the network of FVD: clips per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mcvd.benchmark.calibrate import Ceiling
from mcvd.benchmark.figures import ceiling_runs, figures, peaks
from mcvd.benchmark.measure import interleave
from mcvd.evaluation.i3d import I3D, SIZE


def i3d_row(
    batch: int,
    device: torch.device,
    ceilings: dict[str, Ceiling],
    rounds: int,
    on_round: Callable[[], None],
    frames: int = 16,
) -> dict[str, Any]:
    """Logits of `batch` clips of `frames` frames. Weights are random, which does not affect speed, so none are fetched.

    Operations are those actually carried out, fewer than by definition: padding is skipped, and the largest layers use
    Winograd on CPUs.
    """
    network = I3D().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.02)
    network.eval().requires_grad_(False)
    clips = torch.rand(batch, frames, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with FlopCounterMode(display=False) as counter:
        network(clips)
    rounds_taken = interleave({**ceiling_runs(ceilings), "i3d": lambda: network(clips)}, rounds, device, on_round)
    flops, seen = counter.get_total_flops(), batch * frames
    times = [taken["i3d"] for taken in rounds_taken]
    entry = {**figures(times, peaks(ceilings, rounds_taken), flops, seen), "least_seconds": min(t.wall for t in times)}
    entry["memory_bytes"] = None
    row = {"case": "i3d", "size": [SIZE, SIZE], "batch": batch, "flops": flops, "frames": seen}
    return {**row, "implementations": {"mcvd": entry}}
