"""A training run: resumes in its folder, takes steps, validates, saves, and stops when it is told to."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcvd.cache import tensors_sha256
from mcvd.device import tuned_convolutions
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.lock import locked
from mcvd.model import VideoDiffusion
from mcvd.training.checkpoint import last_checkpoint, load_checkpoint, model_steps, save_checkpoint, save_model
from mcvd.training.initialise import adapted
from mcvd.training.log import RunLog, changed_values
from mcvd.training.meter import Pace
from mcvd.training.precision import SKIPS
from mcvd.training.processes import Processes, stop_signals
from mcvd.training.recipe import Recipe
from mcvd.training.source import TEST_CLIPS, ClipSource, clip_source, say_nothing
from mcvd.training.trackers import hosted_package
from mcvd.training.trainer import Trainer, check
from mcvd.training.validation import validate


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
    output = expanded(output)
    if recipe.data.source == str(output.resolve()):
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
        _resume(trainer, output, finish, say)
        if trainer.step >= trainer.recipe.steps:
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


def _resume(trainer: Trainer, output: Path, finish: bool, say: Callable[[str], None]) -> None:
    """Continues the run in this folder, if there is one; with `finish`, the recipe's steps are not its end."""
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
    if finish:  # how many steps fit is known after two of them
        trainer.recipe = replace(recipe, steps=max(recipe.steps, trainer.step + 2))
    if state is not None:
        if trainer.step >= trainer.recipe.steps:
            say(f"nothing is left to do: {output} is at step {trainer.step} of {recipe.steps}; --steps asks for more")
        else:
            say(f"continuing {output} at step {trainer.step}")
            if changed := changed_values(recipe, output):
                say(f"note: from here on {changed}")
            if state.get("data") != recipe.data.source:
                say(f"note: until now it was trained on {state.get('data')}, from here on {recipe.data.source}")
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
            if sampled:
                save |= processes.any(failed is not None)
            if save:
                # the model first: after a kill between the two, the run continues from before and writes both again
                if model is not None:
                    save_model(output, "model", model, _notes(trainer))
                state = trainer.state_dict()
                if state is not None:
                    save_checkpoint(output, step, state)
            if failed is not None:
                raise failed
            if sampled or save:
                log.resume(step)
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
