"""This package's own network, compiled by OpenVINO. A peer for `mcvd benchmark --peer`: what a CPU compiler would gain.

Needs `pip install openvino`. The network is exported once for each shape of its input (half a minute, not timed), with
the condition as an input, and runs in float32 on the threads that torch has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from mcvd.diffusion.gaussian import x0_from_eps
from mcvd.diffusion.sampling import sample as run_table
from mcvd.diffusion.solvers import Table, published_table
from mcvd.interop.official import from_official
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.blocks import Condition
from mcvd.networks.unet import UNet

NOTE = f"this package's network, compiled by OpenVINO {openvino.__version__}"


class FlatInputs(nn.Module):
    """The network with a condition in tensors, which is what an exported network takes."""

    def __init__(self, network: UNet, condition: Condition):
        super().__init__()
        self.network, self.condition = network, condition

    def forward(self, x: Tensor, time: Tensor, parts: list[Tensor]) -> Tensor:
        share = None if self.condition.share is None else parts[0]
        maps = parts[len(parts) - 2 * len(self.condition.maps) :]
        pairs = list(zip(maps[::2], maps[1::2]))
        return self.network(x, time, dataclasses.replace(self.condition, share=share, maps=pairs))


def parts_of(condition: Condition) -> list[Tensor]:
    """The tensors that `FlatInputs` takes."""
    share = [] if condition.share is None else [condition.share]
    return [part.contiguous() for part in (*share, *(part for pair in condition.maps for part in pair))]


def build(config: ModelConfig, state_dict: dict[str, Tensor]) -> dict[str, Callable]:
    model = VideoDiffusion(config).eval()
    network = model.network
    network.load_state_dict(from_official(network, state_dict, "the benchmark's weights"))
    compiled: dict[Any, Any] = {}

    def caller(condition: Condition) -> Callable[[Tensor, Tensor, Condition], Tensor]:
        """A network call; the condition's tensors are handed over once."""
        parts = parts_of(condition)

        def call(x: Tensor, time: Tensor, _: Condition) -> Tensor:
            inputs = (x.contiguous(), time[:1].clone(), parts)
            key = tuple(part.shape for part in (x, *parts))
            if key not in compiled:
                exported = torch.export.export(FlatInputs(network, condition), inputs)
                options = {
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32",
                }
                program = openvino.compile_model(openvino.convert_model(exported), "CPU", options)
                compiled[key] = program.create_infer_request()
            arrays = [part.numpy() for part in (*inputs[:2], *parts)]
            return torch.from_numpy(compiled[key].infer(arrays, share_inputs=True)[0].copy())

        return call

    def one_network(past: Tensor, future: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        with torch.no_grad():
            condition = network.encode(past, future)
            call = caller(condition)
        return torch.no_grad()(lambda x, time: call(x, time, condition))

    @torch.no_grad()
    def sample(
        past: Tensor, future: Tensor, x: Tensor, noise: Callable[[], Tensor], solver_steps: int, calls: int
    ) -> Tensor:
        each = len(x) // len(past)
        call = one_network(past.repeat_interleave(each, 0), future.repeat_interleave(each, 0))
        schedule = config.schedule

        def denoise(x: Tensor, t: float, alpha_bar: float) -> Tensor:
            eps = call(x, torch.full((1,), schedule.steps - 1 - int(t)))
            return x0_from_eps(x, eps, torch.tensor(alpha_bar))

        table = published_table("ddpm", schedule, solver_steps, denoise=False)
        return run_table(denoise, Table(table.rows[:calls]), x, noise)

    return {"network": one_network, "sample": sample}
