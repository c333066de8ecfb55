"""This package as an implementation to measure, under the contract of :mod:`mcvd.benchmark.peer`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcvd.benchmark.peer import EMA_DECAY, GRADIENT_CLIP, LEARNING_RATE, Callables, Implementation
from mcvd.device import tuned_convolutions
from mcvd.diffusion.sampling import sample
from mcvd.diffusion.solvers import Table, published_table
from mcvd.interop.official import from_official
from mcvd.model import Draw, ModelConfig, VideoDiffusion
from mcvd.networks.engine import calls_by, network_call
from mcvd.networks.precision import autocast
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.trainer import Processes, Trainer

NAME = "mcvd"


def implementation(precision: str = "fp32", engine: str = "torch") -> Implementation:
    """precision: `fp32`, or `bf16` by autocast; engine: for calls; `compile` also compiles the training step."""
    note = f"this package, {precision}{'' if engine == 'torch' else f', {engine}'}"

    def build(config: ModelConfig, state_dict: dict[str, Tensor]) -> Callables:
        ours = Ours(config, state_dict, precision, engine)
        return {"network": ours.network, "sample": ours.sample, "train_step": ours.train_step}

    return Implementation(NAME, note, build)


class Ours:
    """One model with the functions of the contract."""

    def __init__(self, config: ModelConfig, state_dict: dict[str, Tensor], precision: str, engine: str):
        self.device = next(iter(state_dict.values())).device
        self.precision, self.engine = precision, engine
        self.model = VideoDiffusion(config).to(self.device).eval()
        self.model.network.load_state_dict(from_official(self.model.network, state_dict, "the benchmark's weights"))
        self.trainer: Trainer | None = None

    def network(self, past: Tensor, future: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """See :mod:`mcvd.benchmark.peer`."""
        with torch.no_grad(), autocast(self.precision, self.device):
            condition = self.model.network.encode(past, future)
        running = contextlib.ExitStack()  # open as long as `call` lives, as during a whole `fill`
        running.enter_context(calls_by(self.model.network, self.engine))
        run = network_call(self.model.network)

        def call(x: Tensor, time: Tensor, _running: contextlib.ExitStack = running) -> Tensor:
            time = time[:1] if bool((time == time[0]).all()) else time  # one row for all, as when sampling
            with torch.no_grad(), autocast(self.precision, self.device):
                return run(x, time, condition)

        return call

    def sample(
        self, past: Tensor, future: Tensor, x: Tensor, noise: Callable[[], Tensor], steps: int, calls: int
    ) -> Tensor:
        """See :mod:`mcvd.benchmark.peer`; what `mcvd.rollout` does for a block."""
        table = published_table("ddpm", self.model.config.schedule, steps, denoise=False)
        seen = torch.ones(len(past), dtype=torch.bool, device=self.device)
        rows = torch.arange(len(past), device=self.device).repeat_interleave(len(x) // len(past))
        network = self.model.network
        with torch.no_grad(), autocast(self.precision, self.device), calls_by(network, self.engine):
            denoise = self.model.denoiser(past, future, seen, rows)
            return sample(denoise, Table(table.rows[:calls]), x, noise)

    @tuned_convolutions()
    def train_step(self, video: Tensor, draw: Draw) -> Tensor:
        """See :mod:`mcvd.benchmark.peer`; the trainer's own step."""
        if self.trainer is None:
            self.trainer = self._make_trainer(len(video))
            self.model = self.trainer.model  # one model, not two, in memory
        given = Given(video, draw)
        self.trainer.source = given
        self.trainer.model.draw = given.draw  # type: ignore[method-assign]
        return self.trainer.train_step()[0]

    def _make_trainer(self, batch: int) -> Trainer:
        recipe = Recipe(
            model=self.model.config,
            optimizer=OptimizerConfig(lr=LEARNING_RATE, warmup=0, clip=GRADIENT_CLIP),
            batch=batch,
            ema=EMA_DECAY,
            precision="bf16" if self.precision == "bf16" else "fp32",
            compile=self.engine == "compile",
            recorded=self.device.type == "cuda",
        )
        trainer = Trainer(recipe, Processes(0, 1, self.device), Given())
        trainer.start_from(self.model)
        return trainer


class Given:
    """Fixed clips and random numbers in place of those that a trainer draws."""

    def __init__(self, video: Tensor | None = None, draw: Draw | None = None):
        self.video, self.drawn = video, draw

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips."""
        assert self.video is not None
        return self.video

    def draw(self, clips: int, generator: torch.Generator | None = None) -> Draw:
        """The random numbers."""
        assert self.drawn is not None
        return self.drawn
