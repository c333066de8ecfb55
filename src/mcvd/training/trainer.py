"""The state of a training run, and its step: on one process or many (torchrun), restartable with the same result.

Everything random at step s is a function of (seed, s): the clips, masks, times and noise of the whole batch, of which
each process takes its rows. So a killed run continues exactly, and a run on 8 processes sees the same data as on one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mcvd.config import from_dict, to_dict
from mcvd.diffusion.loss import min_snr_weight
from mcvd.draw import SEEDS, generator_at
from mcvd.errors import McvdError
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.training.ema import Ema
from mcvd.training.initialise import initialise_from
from mcvd.training.log import changes
from mcvd.training.muon import optimizer_for, optimizer_name
from mcvd.training.parallel import sharded_as, sharded_moments, whole, wrap
from mcvd.training.precision import Precision
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.recorded import Part, RecordedStep, check_recordable
from mcvd.training.source import ClipSource, to_model_range


def learning_rate(step: int, config: OptimizerConfig, steps: int) -> float:
    """The rate of step `step` (0 to `steps`): linear warm-up from 0, then as `config.decay` says until `steps`."""
    rate = config.lr * min(step / config.warmup, 1.0) if config.warmup else config.lr
    if config.decay == "cosine" and step >= config.warmup:
        done = (step - config.warmup) / max(steps - config.warmup, 1)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    if config.decay == "wsd":
        rate *= min(1.0, (steps - step) / max(config.cooldown * steps, 1))
    return rate


def check(recipe: Recipe, processes: Processes) -> None:
    """Raises McvdError if these processes cannot train by this recipe."""
    if recipe.batch % (processes.count * recipe.accumulate):
        parts = f"{processes.count} processes of {recipe.accumulate} parts"
        raise McvdError(f"batch {recipe.batch} does not divide among {parts}")
    if recipe.recorded:
        check_recordable(recipe, processes)
    Precision(recipe.precision, processes.device)


class Trainer:
    """The state of a run, and its step; `mcvd.training.run.train` drives it."""

    def __init__(self, recipe: Recipe, processes: Processes, source: ClipSource):
        check(recipe, processes)
        self.recipe, self.processes, self.source = recipe, processes, source
        device = processes.device
        self.precision = Precision(recipe.precision, device)
        torch.manual_seed(recipe.seed & SEEDS)
        self.model = VideoDiffusion(recipe.model).to(device)
        self.network = wrap(self.model, recipe, processes)
        self.optimizer = optimizer_for(self.model, recipe.optimizer, fused=device.type == "cuda")
        self.recorded = RecordedStep(self.optimizer, device) if recipe.recorded else None
        self.ema = Ema(self.model, recipe.ema, recipe.ema_warmup, recipe.ema_power)
        self.step = self.clips_seen = 0
        self.best, self.best_of = math.inf, ""
        """The smallest validation error so far, and the hash of the clips; known only to the first process."""

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step -> loss (mean over this process's clips) and norm of the gradient before clipping."""
        recipe, processes = self.recipe, self.processes
        seed = recipe.seed * 1_000_003 + self.step * processes.count + processes.rank
        torch.manual_seed(seed & SEEDS)  # dropout
        rate = learning_rate(self.step, recipe.optimizer, recipe.steps)
        parts = self._parts()
        loss, norm = self.recorded(self._update, parts, rate) if self.recorded else self._update(parts, rate)
        self.ema.update()
        self.step += 1
        self.clips_seen += recipe.batch
        return loss, norm

    def _parts(self) -> Iterator[Part]:
        """This process's share of the step's batch, part by part: its clips, and what is drawn for them.

        (A method: the frame of a generator expression would keep the trainer alive in the traceback of an error.)
        """
        batch, count = self.recipe.batch, self.processes.count
        share, size = batch // count, batch // (count * self.recipe.accumulate)
        draw = self.model.draw(batch, generator_at(self.recipe.seed, self.step, self.processes.device))
        for start in range(self.processes.rank * share, (self.processes.rank + 1) * share, size):
            first = self.step * batch + start
            yield self.source.batch(range(first, first + size)), draw.rows(start, start + size)

    def _update(self, parts: Iterable[Part], rate: float | Tensor) -> tuple[Tensor, Tensor]:
        """The optimizer's step on the parts of a batch, taken one after another; what `RecordedStep` records."""
        device, count = self.processes.device, self.recipe.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for i, (clips, draw) in enumerate(parts):
            frames = to_model_range(clips, device)
            with self._no_sync() if i < count - 1 else contextlib.nullcontext():
                with self.precision.autocast:
                    loss = (self.network(frames, draw) * self._weight(draw.t)).mean() / count
                self.precision.backward(loss)
            total += loss.detach()
        self.precision.unscale(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.precision.step(self.optimizer, norm)
        return total, norm

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged once, with the last part; sharded ones with every part, as no process holds all."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()

    def _weight(self, t: Tensor) -> Tensor | float:
        if self.recipe.weighting == "uniform":
            return 1.0
        config = self.recipe.model
        return min_snr_weight(config.schedule.alpha_bar_on(t.device)[t].float(), config.prediction)

    def state_dict(self) -> dict[str, Any] | None:
        """All that a restart needs, on any number of processes and with any sharding; random numbers need no state.

        All processes must call it; None in all but the first.
        """
        state = {
            "step": self.step,
            "clips_seen": self.clips_seen,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "precision": self.precision.state_dict(),
            "best": self.best,
            "best_of": self.best_of,
            "config": to_dict(self.recipe.model),
            "data": self.recipe.data.source,
        }
        state = whole(state, keep=self.processes.first)
        return state if self.processes.first else None

    def load_state_dict(self, state: dict, where: str) -> None:
        """Restores what `state_dict` returned; the model and the optimizer must be the same."""
        if not (isinstance(state, dict) and {"step", "model", "optimizer", "ema", "config"} <= state.keys()):
            raise McvdError(
                f"{where} holds a checkpoint that mcvd train did not write; move it away, or choose another --output"
            )
        config = from_dict(ModelConfig, state["config"], where)
        if config != self.recipe.model:
            differ = changes(to_dict(config), to_dict(self.recipe.model), "model.")
            raise McvdError(
                f"{where} holds a run of another model: {differ}; choose another --output, nothing was changed"
            )
        before, name = optimizer_name(state["optimizer"]), self.recipe.optimizer.name
        if before != name:
            raise McvdError(
                f"{where} holds a run with optimizer {before}, the recipe says {name}; "
                "choose another --output, nothing was changed"
            )
        self.model.load_state_dict(sharded_as(state["model"], self.model.state_dict()))
        moments = sharded_moments(state["optimizer"], self.optimizer)
        # all else is this run's own: the recipe may have been edited since, and the device be another
        both = zip(self.optimizer.param_groups, moments["param_groups"], strict=True)
        groups = [own | {"params": before["params"]} for own, before in both]
        self.optimizer.load_state_dict(moments | {"param_groups": groups})
        self.ema.load_state_dict(sharded_as(state["ema"], self.ema.state_dict()))
        self.precision.load_state_dict(state.get("precision", {}))
        self.best, self.best_of = state.get("best", math.inf), state.get("best_of", "")
        self.step = state["step"]
        self.clips_seen = state.get("clips_seen", self.step * self.recipe.batch)

    def start_from(self, source: VideoDiffusion) -> list[str]:
        """Copies the weights of another model where they fit; returns the names of the others."""
        torch.manual_seed(self.recipe.seed & SEEDS)
        model = VideoDiffusion(self.recipe.model).to(self.processes.device)  # as this one began, but not sharded
        new = initialise_from(model, source)
        self.model.load_state_dict(sharded_as(model.state_dict(), self.model.state_dict()))
        self.ema = Ema(self.model, self.recipe.ema, self.recipe.ema_warmup, self.recipe.ema_power)
        return new

    def averaged(self) -> VideoDiffusion | None:
        """A model with the averaged weights, in evaluation mode. All processes must call it; None but in the first."""
        weights = whole(self.ema.shadow, keep=self.processes.first)
        if not self.processes.first:
            return None
        model = VideoDiffusion(self.recipe.model).to(self.processes.device)
        model.load_state_dict(weights)
        return model.eval()
