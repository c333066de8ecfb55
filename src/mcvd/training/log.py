"""What a run reports to people: values and pictures to its trackers, lines or a table to the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from mcvd.config import from_dict, to_dict
from mcvd.errors import McvdError
from mcvd.files import write_whole
from mcvd.training.checkpoint import last_checkpoint, not_written
from mcvd.training.meter import Meter
from mcvd.training.recipe import Recipe
from mcvd.training.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from torch import Tensor

    from mcvd.model import VideoDiffusion
    from mcvd.training.live import LiveTable


class RunLog:
    """Writes into a run folder; with `enabled` False (all processes but the first) it writes nothing.

    device, processes: of the run, for its rates. live: show a table in the terminal instead of lines.
    """

    def __init__(
        self,
        output: Path,
        recipe: Recipe,
        step: int,
        *,
        device: torch.device,
        processes: int = 1,
        enabled: bool = True,
        report: Callable[[str], None] = print,
        live: bool = False,
    ):
        self.output, self.recipe, self.enabled, self.report = output, recipe, enabled, report
        self.steps = recipe.steps
        """Steps of the whole run; with `finish`, this changes during the run."""
        self.table: LiveTable | None = None
        self.trackers: list[Tracker] = []
        if enabled:
            with self._writing():
                (output / "samples").mkdir(parents=True, exist_ok=True)
                write_whole(output / "recipe.yaml", json.dumps(to_dict(recipe), indent=2) + "\n")  # JSON is YAML
                self.trackers = open_trackers(output, recipe, step)
            self.meter = Meter(recipe, device, processes, step)
            if live:
                from mcvd.training.live import LiveTable

                self.table = LiveTable(recipe.steps)
                self.report = self.table.say
        self.began, self.start, self.speed = time.monotonic(), step, 0.0
        self.since = self.began, self.start
        """Time and step from which the speed is measured: after the first line, as the first step may compile."""

    def step(self, step: int, **values: float) -> None:
        """Logs values of a step, with the rates since the last call; names with a / go only to the trackers, and values
        that are not finite only to people."""
        if not self.enabled:
            return
        now, (began, first) = time.monotonic(), self.since
        early = self.recipe.compile and first == self.start
        if step > first:
            self.speed = (step - first) / (now - began)
            if first == self.start:
                self.since = now, step
        values |= (rates := self.meter.rates(step))
        # some values of a step that fp16 skips, or of a run that diverges, are not finite, which JSON cannot express
        finite = {name: number for name, number in values.items() if math.isfinite(number)}
        with self._writing():
            for tracker in self.trackers:
                tracker.scalars(step, finite | {"seconds": round(now - self.began, 2)})
        left = "?" if early or not self.speed else _clock((self.steps - step) / self.speed)
        if self.table is not None:
            self.table.steps = self.steps
            self.table.update(step, values, left)
            return
        names = [name for name in values if "/" not in name and name not in rates]
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in names)
        self.report(f"step {step}/{self.steps}  {shown}  {self.speed * self.recipe.batch:.0f} clips/s  left {left}")

    def picture(self, step: int, model: VideoDiffusion, clips: Tensor) -> None:
        """Saves a sheet, and a GIF per task, of what the model generates from these clips (uint8)."""
        if not self.enabled:
            return
        try:
            from mcvd.training.samples import save_samples
        except ImportError:  # a bare GPU machine without Pillow or PyAV: they can be made from the weights later
            return
        with self._writing():
            for name, path in save_samples(model, clips, self.output / "samples" / f"step-{step:09d}").items():
                for tracker in self.trackers:
                    tracker.picture(step, name, path)

    def resume(self, step: int) -> None:
        """Measures rates from here on: what was done since this step, such as validating and saving, does not count."""
        if self.enabled:
            self.meter.restart(step)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self.enabled:
            self.report(text)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.table is not None:
            self.table.close()
        # after another error, a failure here is ignored
        with self._writing() if error is None else contextlib.suppress(OSError):
            for tracker in self.trackers:
                tracker.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of writing, e.g. on a full disk, into ones for people."""
        try:
            yield
        except OSError as error:
            raise not_written(Path(os.fsdecode(error.filename or self.output)), error, self.output) from None
        except McvdError as error:
            raise McvdError(f"{error}; the last good checkpoint is {last_checkpoint(self.output)}") from error


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def changed_values(recipe: Recipe, output: Path) -> str:
    """The values of a recipe that differ from those of the run in this folder until now, except its length and data."""
    try:
        before = to_dict(from_dict(Recipe, json.loads((output / "recipe.yaml").read_text()), "the run"))
    except (OSError, ValueError, McvdError):  # an incomplete folder, or a run of another version
        return ""
    return changes(before, to_dict(recipe), without=("steps", "data.kind", "data.path"))


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "", without: Collection[str] = ()) -> str:
    """The values that differ between nested dictionaries with the same keys, for people."""
    was, values = _values(before, prefix), _values(now, prefix)
    return ", ".join(
        f"{key} {values[key]} (was {was[key]})" for key in was if values[key] != was[key] and key not in without
    )


def _values(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its path."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= _values(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
