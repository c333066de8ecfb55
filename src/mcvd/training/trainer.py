"""The training loop: one process or many (torchrun), restartable at any step with the same result.

Everything random at step s is a function of (seed, s): the clips, masks, times and noise of the whole batch, of which
each process takes its rows. So a run that was killed continues exactly, and a run on 8 processes sees what one sees.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mcvd.config import from_dict, to_dict
from mcvd.diffusion.loss import min_snr_weight
from mcvd.draw import generator_at
from mcvd.errors import McvdError
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mcvd.training.ema import Ema
from mcvd.training.initialise import adapted, initialise_from
from mcvd.training.log import RunLog
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.source import TEST_CLIPS, ClipSource, clip_source, to_model_range
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


@dataclass
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @staticmethod
    @contextlib.contextmanager
    def join(device: str | None) -> Iterator[Processes]:
        """Joins the group that torchrun made, if any; leaves it at the end."""
        grouped = dist.is_torchelastic_launched()
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if grouped:
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
            if device == "cuda":
                device = f"cuda:{dist.get_node_local_rank()}"
                torch.cuda.set_device(device)
        try:
            yield (
                Processes(dist.get_rank(), dist.get_world_size(), torch.device(device))
                if grouped
                else Processes(0, 1, torch.device(device))
            )
        finally:
            if grouped:
                dist.destroy_process_group()


class Trainer:
    """The state of a run, and its step. `train` drives it."""

    def __init__(self, recipe: Recipe, processes: Processes, source: ClipSource):
        if recipe.batch % (processes.count * recipe.accumulate):
            parts = f"{processes.count} processes of {recipe.accumulate} parts"
            raise McvdError(f"batch {recipe.batch} does not divide among {parts}")
        self.recipe, self.processes, self.source = recipe, processes, source
        device = processes.device
        torch.manual_seed(recipe.seed)
        self.model = VideoDiffusion(recipe.model).to(device)
        config = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            **_adam(config),
            fused=device.type == "cuda",
        )
        self.ema = Ema(self.model, recipe.ema, recipe.ema_warmup, recipe.ema_power)
        self.step = 0
        if recipe.compile:
            self.model.network.compile()
        self.network: nn.Module = DistributedDataParallel(self.model) if processes.count > 1 else self.model
        bf16 = device.type == "cuda" and recipe.precision != "fp32" and torch.cuda.is_bf16_supported()
        if recipe.precision == "bf16" and not bf16:
            raise McvdError(f"{device} has no fast bf16; leave precision at auto")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step -> loss (mean over this process's clips) and norm of the gradient before clipping."""
        recipe, rank, count, device = self.recipe, self.processes.rank, self.processes.count, self.processes.device
        parts = recipe.accumulate
        size = recipe.batch // (count * parts)
        first = self.step * recipe.batch
        draw = self.model.draw(recipe.batch, generator_at(recipe.seed, self.step, device))
        torch.manual_seed(recipe.seed * 1_000_003 + self.step * count + rank)  # dropout

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, recipe.optimizer, recipe.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in range(parts):
            start = (rank * parts + part) * size
            clips = to_model_range(self.source.batch(range(first + start, first + start + size)), device)
            mine = draw.rows(start, start + size)
            with self._no_sync() if part < parts - 1 else contextlib.nullcontext():
                with self.autocast:
                    loss = (self.network(clips, mine) * self._weight(mine.t)).mean() / parts
                loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip)
        self.optimizer.step()
        self.ema.update()
        self.step += 1
        return total, norm

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged once, with the last part."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()

    def _weight(self, t: Tensor) -> Tensor | float:
        if self.recipe.weighting == "uniform":
            return 1.0
        config = self.recipe.model
        return min_snr_weight(config.schedule.alpha_bar.to(t.device)[t].float(), config.prediction)

    def state_dict(self) -> dict[str, object]:
        """All that a restart needs; random numbers need no state."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "config": to_dict(self.recipe.model),
            "data": _data_name(self.recipe),
        }

    def load_state_dict(self, state: dict, where: str) -> None:
        """Takes over what `state_dict` gave; the model must have the same configuration."""
        if from_dict(ModelConfig, state["config"], where) != self.recipe.model:
            raise McvdError(f"{where} holds a run of another model; choose another --output, nothing was changed")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # the recipe may have been edited since
            group.update(_adam(self.recipe.optimizer))
        self.ema.load_state_dict(state["ema"])
        self.step = state["step"]

    def start_from(self, source: VideoDiffusion) -> list[str]:
        """Takes over the weights of another model where they fit; returns the names of the others."""
        new = initialise_from(self.model, source)
        self.ema = Ema(self.model, self.recipe.ema, self.recipe.ema_warmup, self.recipe.ema_power)
        return new

    def averaged(self) -> VideoDiffusion:
        """A model with the averaged weights, in evaluation mode."""
        model = VideoDiffusion(self.recipe.model).to(self.processes.device)
        model.load_state_dict(self.ema.weights())
        return model.eval()


def _adam(config: OptimizerConfig) -> dict[str, Any]:
    return {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}


def _data_name(recipe: Recipe) -> str:
    return recipe.data.kind if recipe.data.path is None else str(Path(recipe.data.path).expanduser().resolve())


def train(
    recipe: Recipe,
    output: Path,
    *,
    device: str | None = None,
    minutes: float | None = None,
    init_from: str | Path | None = None,
    clips: Callable[[Recipe, str, torch.device], ClipSource] = clip_source,
    report: Callable[[str], None] = print,
    live: bool = False,
) -> Path:
    """Trains until `recipe.steps`, or for about `minutes`; run again with the same arguments to continue.

    output: run folder: checkpoints, `model/` (the averaged weights, to be loaded by `mcvd.load`), log.jsonl,
    TensorBoard events and samples/. Nothing in it is ever deleted but older checkpoints. SIGTERM and Ctrl-C save first.
    init_from: a model, as `mcvd.load` takes it, whose weights a new run starts from wherever they fit; a run that
        continues has weights of its own.
    clips: gives the source of a split ("train" or "test"); the recipe's data by default.
    live: show a table in the terminal, instead of a line each time, while the steps are made.

    Returns the model folder. Raises McvdError if the loss is not finite, naming the last good checkpoint.
    """
    with Processes.join(device) as processes:
        source = None
        if init_from is not None:
            from mcvd.interop.load import load

            source = load(init_from, device=str(processes.device))
            recipe = adapted(recipe, source)
        trainer = Trainer(recipe, processes, clips(recipe, "train", processes.device))
        state = load_checkpoint(output, processes.device)
        if state is not None:
            trainer.load_state_dict(state, str(output))
            if processes.rank == 0:
                report(f"continuing {output} at step {trainer.step}")
                if state.get("data") != _data_name(recipe):
                    report(f"note: until now it was trained on {state.get('data')}, from here on {_data_name(recipe)}")
        elif source is not None:
            new = trainer.start_from(source)
            if processes.rank == 0:
                report(f"starting from {init_from}" + (f"; new, wholly or in part: {', '.join(new)}" if new else ""))
        del state, source
        test = clips(recipe, "test", processes.device).batch(range(TEST_CLIPS))
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        with RunLog(
            output,
            recipe,
            trainer.step,
            device=processes.device,
            processes=processes.count,
            enabled=processes.rank == 0,
            report=report,
            live=live,
        ) as log:
            _loop(trainer, test, log, output, deadline)
        return output / "model"


def _loop(trainer: Trainer, test: Tensor, log: RunLog, output: Path, deadline: float) -> None:
    recipe = trainer.recipe
    per_element = 2 / trainer.model.draw(1).eps.numel()
    saved = trainer.step if checkpoints(output) else -1
    with _stop_signals() as stop:
        leave = False
        while trainer.step < recipe.steps and not leave:
            loss, norm = trainer.train_step()
            step, last = trainer.step, trainer.step == recipe.steps
            if time.monotonic() > deadline:
                stop.append("time is up")
            leave = _agree(trainer, bool(stop))  # a signal from here on waits for the next step, in all processes
            save = step % recipe.save_every == 0 or last or leave
            shown = step % recipe.log_every == 0 or last or step == 1
            if save or shown:  # reading the loss waits for the device
                value, gradient = _mean(trainer, loss), float(norm)
                _check_finite(value, gradient, step, output)
            if shown:
                rate = float(trainer.optimizer.param_groups[0]["lr"])
                log.step(step, loss=value, error=value * per_element, gradient=gradient, learning_rate=rate)
            if log.enabled and (step % recipe.sample_every == 0 or last):
                model = trainer.averaged()
                log.step(step, **validate(model, test))
                log.picture(step, model, test)
            if log.enabled and save and saved != step:
                saved = step
                # the model first: after a kill between the two, the checkpoint that is taken up makes both again
                trainer.averaged().save(output / "model", notes={"steps": step, "clips_seen": step * recipe.batch})
                save_checkpoint(output, step, trainer.state_dict())
    if trainer.step < recipe.steps:
        why = stop[0] if stop else "another process was asked to"
        log.say(f"stopped at step {trainer.step} ({why}); run the same command again to continue")


def _check_finite(loss: float, gradient: float, step: int, output: Path) -> None:
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        last = found[-1] if (found := checkpoints(output)) else "none"
        raise McvdError(
            f"the loss is {loss:.4g} and its gradient {gradient:.4g} at step {step}; "
            f"the last good checkpoint is {last}: lower the learning rate and run again"
        )


def _mean(trainer: Trainer, value: Tensor) -> float:
    """The mean over all processes, so that the log does not depend on how many there are."""
    if trainer.processes.count > 1:
        dist.all_reduce(value)
        value /= trainer.processes.count
    return float(value)


def _agree(trainer: Trainer, stop: bool) -> bool:
    """Whether any process wants to stop: all must leave at the same step, or the others would wait for ever."""
    if trainer.processes.count == 1:
        return stop
    flag = torch.tensor(float(stop), device=trainer.processes.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list that SIGTERM, SIGUSR1 and Ctrl-C put their name into, instead of ending the process."""
    stop: list[str] = []
    names = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    old = {name: signal.signal(name, lambda number, _: stop.append(signal.Signals(number).name)) for name in names}
    try:
        yield stop
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
