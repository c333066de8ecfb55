"""Where a run's values and pictures go: log.jsonl and TensorBoard always, W&B or trackio when asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from mcvd.config import to_dict
from mcvd.errors import McvdError
from mcvd.files import write_whole
from mcvd.training.recipe import Recipe


class Tracker(Protocol):
    """Keeps what a run reports."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG, or an animated GIF, in a file that stays."""

    def close(self) -> None:
        """The run has ended, or stopped for now."""


class JsonLines:
    """One JSON object per line, in a file."""

    def __init__(self, path: Path, step: int):
        self.path = path
        if path.exists():  # lines after the checkpoint are of steps that are now repeated
            kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
            write_whole(path, "".join(line + "\n" for line in kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def picture(self, step: int, name: str, path: Path) -> None:
        """The file is in the run folder already."""

    def close(self) -> None:
        """Nothing to do: every line is complete."""


class TensorBoard:
    """Events for `tensorboard --logdir`. Raises ImportError if TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the plot of each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Adds the file as it is: TensorBoard plays GIFs, and its own add_video would need moviepy to make one."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as opened:
            width, height = opened.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        events = self.writer.file_writer
        assert events is not None  # until it is closed
        events.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Writes what is still buffered."""
        self.writer.close()


class Hosted:
    """W&B or trackio, whose calls are the same. A continued run is continued there too, found by its folder."""

    def __init__(self, package: str, output: Path, recipe: Recipe):
        self.package = hosted_package(package)
        name = f"{output.name}-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:8]}"
        more = {"id": name, "dir": str(output)} if package == "wandb" else {}
        self.package.init(project="mcvd", name=name, config=to_dict(recipe), resume="allow", **more)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values."""
        self.package.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Sends the file."""
        moves = path.suffix == ".gif"
        shown = self.package.Video(str(path), format="gif") if moves else self.package.Image(str(path))
        self.package.log({name: shown}, step=step)

    def close(self) -> None:
        """Sends what is still buffered."""
        self.package.finish()


def hosted_package(name: str) -> Any:
    """W&B or trackio; McvdError if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise McvdError(f"tracker {name} is a package that is not installed; pip install 'mcvd[{name}]'") from None


def open_trackers(output: Path, recipe: Recipe, step: int) -> list[Tracker]:
    """The trackers of a run that has made `step` steps; McvdError if the recipe's own tracker is not installed."""
    hosted = [] if recipe.tracker is None else [Hosted(recipe.tracker, output, recipe)]
    found: list[Tracker] = [JsonLines(output / "log.jsonl", step), *hosted]
    with contextlib.suppress(ImportError):
        found.append(TensorBoard(output / "tensorboard", step))
    return found


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that was being written when the run was killed
        return 1 << 62
