"""What a run leaves for people to look at: log.jsonl, TensorBoard events, sample sheets, lines with the time left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mcvd.config import to_dict
from mcvd.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from mcvd.model import VideoDiffusion


class RunLog:
    """Writes into a run folder; with `enabled` False (other processes than the first) it writes nothing."""

    def __init__(
        self, output: Path, recipe: Recipe, step: int, *, enabled: bool = True, report: Callable[[str], None] = print
    ):
        self.output, self.recipe, self.enabled, self.report = output, recipe, enabled, report
        self.began, self.first_step = time.monotonic(), step
        if not enabled:
            return
        (output / "samples").mkdir(parents=True, exist_ok=True)
        (output / "recipe.yaml").write_text(json.dumps(to_dict(recipe), indent=2) + "\n")  # JSON is YAML
        self.file = output / "log.jsonl"
        if self.file.exists():  # lines after the checkpoint were of steps that are now made again
            kept = [line for line in self.file.read_text().splitlines() if _step_of(line) <= step]
            self.file.write_text("".join(line + "\n" for line in kept))
        self.board = _tensorboard(output / "tensorboard", step + 1)

    def step(self, step: int, **values: float) -> None:
        """Logs values of a step; the first call after a start sets the clock for the estimate of the time left."""
        if not self.enabled:
            return
        made, seconds = step - self.first_step, time.monotonic() - self.began
        speed = made / seconds
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values, "seconds": round(seconds, 2)}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        left = _clock((self.recipe.steps - step) / speed) if speed else "?"
        self.report(f"step {step}/{self.recipe.steps}  {shown}  {speed * self.recipe.batch:.0f} clips/s  left {left}")

    def picture(self, step: int, model: VideoDiffusion, clips: Tensor) -> None:
        """Saves a sheet of what the model makes of these clips (uint8), for all its tasks."""
        if not self.enabled:
            return
        try:
            from mcvd.training.samples import sample_sheet
        except ImportError:  # a bare GPU machine without Pillow: the sheets can be made from the weights later
            return
        sheet = sample_sheet(model, clips)
        sheet.save(self.output / "samples" / f"step-{step:09d}.png")
        if self.board is not None:
            import numpy as np

            self.board.add_image("samples", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self.enabled:
            self.report(text)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled and self.board is not None:
            self.board.close()


def _tensorboard(folder: Path, purge_step: int) -> SummaryWriter | None:
    """A writer of TensorBoard events; None on a bare GPU machine that has torch and little else."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that was being written when the run was killed
        return 1 << 62


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
