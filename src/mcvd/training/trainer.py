"""The training loop: one process or many (torchrun), restartable at any step with the same result.

Everything random at step s is a function of (seed, s): the clips, masks, times and noise of the whole batch, of which
each process takes its rows. So a killed run continues exactly, and a run on 8 processes sees the same data as on one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mcvd.cache import tensors_sha256
from mcvd.config import from_dict, to_dict
from mcvd.device import tuned_convolutions
from mcvd.diffusion.loss import min_snr_weight
from mcvd.draw import SEEDS, generator_at
from mcvd.errors import McvdError
from mcvd.lock import locked
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.training.checkpoint import last_checkpoint, load_checkpoint, model_steps, save_checkpoint, save_model
from mcvd.training.ema import Ema
from mcvd.training.initialise import adapted, initialise_from
from mcvd.training.log import RunLog, changed_values, changes
from mcvd.training.meter import Pace
from mcvd.training.muon import optimizer_for, optimizer_name
from mcvd.training.parallel import sharded_as, sharded_moments, whole, wrap
from mcvd.training.precision import SKIPS, Precision
from mcvd.training.processes import Processes, stop_signals
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.recorded import Part, RecordedStep, check_recordable
from mcvd.training.source import TEST_CLIPS, ClipSource, clip_source, say_nothing, to_model_range
from mcvd.training.trackers import hosted_package
from mcvd.training.validation import validate


def learning_rate(step: int, config: OptimizerConfig, steps: int) -> float:
    """The rate of step `step` (0 is the first): linear warm-up from 0, then as `config.decay` says until `steps`."""
    rate = config.lr * min(step / config.warmup, 1.0) if config.warmup else config.lr
    if config.decay == "cosine" and step >= config.warmup:
        done = (step - config.warmup) / max(steps - config.warmup, 1)
        rate *= 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if config.decay == "wsd":
        rate *= min(1.0, max(steps - step, 0) / max(config.cooldown * steps, 1))
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
    """The state of a run, and its step. `train` drives it."""

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
            "data": _data_name(self.recipe),
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
        weights = whole(self.ema.weights(), keep=self.processes.first)
        if not self.processes.first:
            return None
        model = VideoDiffusion(self.recipe.model).to(self.processes.device)
        model.load_state_dict(weights)
        return model.eval()


def _data_name(recipe: Recipe) -> str:
    return recipe.data.kind if recipe.data.path is None else str(Path(recipe.data.path).expanduser().resolve())


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    device: str | None = None,
    minutes: float | None = None,
    finish: bool = False,
    init_from: str | Path | None = None,
    clips: Callable[[Recipe, str, torch.device], ClipSource] | None = None,
    report: Callable[[str], None] = print,
    live: bool = False,
) -> Path:
    """Trains until `recipe.steps`, or for about `minutes`; run again with the same arguments to continue.

    output: run folder: checkpoints, `model/` (the averaged weights, for `mcvd.load`), `best/` (the same at the step
        with the smallest validation error), log.jsonl, TensorBoard events and samples/. Nothing in it is ever deleted
        except older checkpoints. SIGTERM and Ctrl-C save first.
    finish: choose the number of steps, from the speed so far, so that the run is complete when the minutes are over,
        the decay of the learning rate included; otherwise, they only interrupt it.
    init_from: a model, as `mcvd.load` takes it, whose weights a new run starts from wherever they fit; a run that
        continues has its own weights.
    clips: returns the source of a split ("train" or "test"); None: the recipe's data.
    report: gets the lines for people, from the first process only.
    live: show a table in the terminal during training, instead of lines.

    Returns the model folder. Raises McvdError if the loss is not finite, naming the last good checkpoint, and if
    another process on this machine trains into the same folder.
    """
    if finish and minutes is None:
        raise McvdError("finish chooses the steps that fit into the minutes: say how many minutes")
    output = Path(output).expanduser()
    if _data_name(recipe) == str(output.resolve()):
        raise McvdError(f"{output} is the folder of the data; choose another --output")
    # gradients, even if the caller has disabled them
    with torch.inference_mode(False), torch.enable_grad(), tuned_convolutions(), Processes.join(device) as processes:
        # a function of its own: when it returns, the network is gone, as it must be before the group is left
        _train(recipe, output, processes, minutes, finish, init_from, clips, report, live)
    return output / "model"


def _train(
    recipe: Recipe,
    output: Path,
    processes: Processes,
    minutes: float | None,
    finish: bool,
    init_from: str | Path | None,
    clips: Callable[[Recipe, str, torch.device], ClipSource] | None,
    report: Callable[[str], None],
    live: bool,
) -> None:
    """`train` in one process among those that joined."""
    say = report if processes.first else say_nothing
    clips = clips or functools.partial(clip_source, report=say)
    # what cannot work is an error before hours of preparing videos, and before there is a run folder
    check(recipe, processes)
    if recipe.tracker is not None and processes.first:
        hosted_package(recipe.tracker)
    source = None
    if init_from is not None:
        from mcvd.interop.load import load

        source = load(init_from, device=str(processes.device))
        recipe = adapted(recipe, source)
    trainer = Trainer(recipe, processes, clips(recipe, "train", processes.device))
    # one process validates and samples
    test = clips(recipe, "test", processes.device).batch(range(TEST_CLIPS)) if processes.first else None
    with _alone(output, processes):
        _resume(trainer, output, say)
        if trainer.step >= recipe.steps:
            return
        if source is not None and trainer.step:
            say(f"note: {output} continues from its own weights; those of {init_from} are for a new run")
        elif source is not None:
            new = trainer.start_from(source)
            say(f"starting from {init_from}" + (f"; new, wholly or in part: {', '.join(new)}" if new else ""))
        del source
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        with RunLog(
            output,
            recipe,
            trainer.step,
            device=processes.device,
            processes=processes.count,
            enabled=processes.first,
            report=report,
            live=live,
        ) as log:
            _loop(trainer, test, log, output, deadline, finish)


@contextlib.contextmanager
def _alone(output: Path, processes: Processes) -> Iterator[None]:
    """Keeps other runs out of the run folder during this one; McvdError in all processes if that is not possible."""

    def busy() -> None:
        raise McvdError(f"another run is using {output}; wait for its end, or choose another --output")

    problem = ""
    with contextlib.ExitStack() as held:
        try:
            if processes.first:
                held.enter_context(locked(output, busy))
        except McvdError as error:
            problem = str(error)
        if processes.any(bool(problem)):
            raise McvdError(problem or f"the first process cannot use {output}")
        yield


def _resume(trainer: Trainer, output: Path, say: Callable[[str], None]) -> None:
    """Continues the run in this folder, if there is one."""
    processes, recipe = trainer.processes, trainer.recipe
    sharded = processes.count > 1 and recipe.sharding == "full"
    # if no process could hold all of it, tensors are read from the file one at a time
    state = load_checkpoint(output, torch.device("cpu") if sharded else processes.device, mapped=sharded)
    # a kill before the first checkpoint may leave models of the steps until then, which are made again
    if state is None and (steps := model_steps(output)) > recipe.save_every:
        raise McvdError(
            f"{output} holds a model of {steps} steps and no checkpoint to continue from: choose another --output "
            f"(--init-from {output} starts from its weights); nothing was changed"
        )
    if state is not None:
        trainer.load_state_dict(state, str(output))
        if trainer.step >= recipe.steps:
            say(f"nothing is left to do: {output} is at step {trainer.step} of {recipe.steps}; --steps asks for more")
        else:
            say(f"continuing {output} at step {trainer.step}")
            if changed := changed_values(recipe, output):
                say(f"note: from here on {changed}")
            if state.get("data") != _data_name(recipe):
                say(f"note: until now it was trained on {state.get('data')}, from here on {_data_name(recipe)}")
    if processes.any(processes.largest(trainer.step) != trainer.step):
        raise McvdError(f"the processes found different checkpoints in {output}: all machines must share this folder")


def _loop(trainer: Trainer, test: Tensor | None, log: RunLog, output: Path, deadline: float, finish: bool) -> None:
    """The steps of `train`, and what is done between them: stopping, logging, validating and saving."""
    recipe, processes = trainer.recipe, trainer.processes
    per_element = 2 / trainer.model.draw(1).eps.numel()
    pace, before = Pace(), trainer.step
    with stop_signals() as stop:
        leave, reason = False, 0
        while trainer.step < trainer.recipe.steps and not leave:
            loss, norm = trainer.train_step()
            step = trainer.step
            if finish and (step % recipe.log_every == 0 or (step - before).bit_count() == 1):  # 1, 2, 4, 8, ...
                float(loss)  # waits for the device, whose speed is measured
                steps = pace.steps_until(deadline, step) or trainer.recipe.steps
                log.steps = processes.largest(steps)
                trainer.recipe = replace(trainer.recipe, steps=log.steps)
            # over all processes: whether one was told to stop (a later signal waits for the next step), or is late
            reason = processes.largest(2 if stop else int(time.monotonic() > deadline))
            if finish and reason == 1:  # steps were slower than before: this is the last one
                log.steps = step
                trainer.recipe = replace(trainer.recipe, steps=step)
            leave, last = reason > 0, step == trainer.recipe.steps
            save = step % recipe.save_every == 0 or last or leave
            sampled = step % recipe.sample_every == 0 or last
            shown = step % recipe.log_every == 0 or sampled or step == 1  # rates exclude validation
            if save or shown:  # reading the loss waits for the device
                value, gradient = processes.mean(loss), float(norm)
                _check_finite(trainer, value, gradient, output)
            if shown:
                rate = float(trainer.optimizer.param_groups[0]["lr"])
                log.step(step, loss=value, error=value * per_element, gradient=gradient, learning_rate=rate)
            model, failed = trainer.averaged() if sampled or save else None, None
            if model is not None and test is not None and sampled:
                try:
                    _validate(trainer, model, test, log, output)
                except Exception as error:  # such as a GPU's memory that is full: the steps so far are saved first
                    failed = error
            if save:
                # the model first: after a kill between the two, the run continues from before and writes both again
                if model is not None:
                    save_model(output, "model", model, _notes(trainer))
                state = trainer.state_dict()
                if state is not None:
                    save_checkpoint(output, step, state)
            if failed is not None:
                raise failed
    if trainer.step < trainer.recipe.steps:
        why = stop[0] if stop else "time is up" if reason == 1 else "another process was told to stop"
        log.say(f"stopped at step {trainer.step} ({why}); run the same command again to continue")


def _validate(trainer: Trainer, model: VideoDiffusion, test: Tensor, log: RunLog, output: Path) -> None:
    """Measures the averaged model on the test clips and draws its samples; keeps the best so far in best/."""
    step, errors = trainer.step, validate(model, test)
    error = errors["validation"]
    log.step(step, **errors)
    log.picture(step, model, test)
    clips = tensors_sha256({"clips": test})
    if clips != trainer.best_of:  # errors on different clips say nothing about which model is better
        if trainer.best < math.inf:
            log.say("note: the held-out clips are not those of before, so best/ begins anew")
        trainer.best, trainer.best_of = math.inf, clips
    if error < trainer.best:
        trainer.best = error
        save_model(output, "best", model, _notes(trainer) | {"validation": error})


def _notes(trainer: Trainer) -> dict[str, Any]:
    """What a saved model notes of its training; clips are read with its stride."""
    stride = trainer.recipe.data.stride
    return {"steps": trainer.step, "clips_seen": trainer.clips_seen} | ({"stride": stride} if stride > 1 else {})


def _check_finite(trainer: Trainer, loss: float, gradient: float, output: Path) -> None:
    """Raises McvdError if training has failed: at once, or under fp16, which skips such steps, after many in a row."""
    last = f"the last good checkpoint is {last_checkpoint(output)}"
    if trainer.precision.fp16:
        skipped = int(trainer.precision.skipped)
        if skipped >= SKIPS:
            raise McvdError(
                f"the last {skipped} steps up to {trainer.step} had no finite gradient in fp16; {last}: "
                "lower the learning rate, or choose another precision, and run again"
            )
    elif not (math.isfinite(loss) and math.isfinite(gradient)):
        raise McvdError(
            f"the loss is {loss:.4g} and its gradient {gradient:.4g} at step {trainer.step}; {last}: "
            "lower the learning rate and run again"
        )
