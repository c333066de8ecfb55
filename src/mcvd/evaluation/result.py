"""The result of an evaluation: numbers, each with its interval, and everything they depend on, as one JSON file.

The folder of an evaluation holds `result.json` (a `Result`), `rows.safetensors` (a `Table`: columns ``mse``, ``ssim``,
``lpips`` per generated frame, ``features`` per generated video; once per clip, at sample 0: ``real``, the features of
the real clip, the columns of `calibration`, and ``seconds``), `result.md` and, for the report, `videos/`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcvd.config import from_dict, to_dict
from mcvd.errors import McvdError
from mcvd.evaluation.protocol import Protocol
from mcvd.files import write_whole


def json_text(data: Any) -> str:
    """Data as JSON. JSON has no non-finite numbers, such as the PSNR of a perfect video: they are written as the
    strings "inf", "-inf" and "nan", which `Result.load` reads as numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(data), indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Number:
    """A metric's value with its 95 % interval."""

    value: float
    low: float | None = None
    """Lower end of the interval; None if there is no interval."""
    high: float | None = None
    """Upper end of the interval."""
    interval: str = ""
    """What the interval is: `bootstrap over videos, 1000 resamples` or `1.96 standard errors over 10 trajectories`."""
    of: str = ""
    """What was measured, in words: `best of 10 samples, mean over 256 clips`."""


@dataclass(frozen=True)
class System:
    """What was measured."""

    name: str
    """Display name: the model's, or that of the folder of scored videos."""
    weights: str = ""
    """sha256 of the weights' tensors and the configuration; empty if only videos were scored."""
    solver: str = ""
    steps: int = 0
    guidance: float = 1.0
    seed: int = 0
    reference: bool = False
    """Sampled as the published code does, defects included."""
    version: str = ""
    """Version of mcvd."""
    precision: str = "fp32"
    """Arithmetic of the network."""
    engine: str = "torch"
    """What ran the network."""


@dataclass(frozen=True)
class Source:
    """Where a real clip comes from."""

    video: str
    """Name of the video: its path below the folder of the data."""
    start: int = 0
    """The clip's first frame in the video, as prepared."""


@dataclass(frozen=True)
class Result:
    """Numbers of one system under one protocol."""

    protocol: Protocol
    system: System
    clips: int
    """Clips measured; at most the protocol's."""
    samples: int
    """Videos generated per clip."""
    data: str
    """sha256 of the real clips' pixels; equal hashes mean equal pixels."""
    numbers: dict[str, Number] = field(default_factory=dict)
    """By metric: psnr, ssim, lpips, fvd, fvd_trajectory, kvd, crps, spread_skill ..."""
    frames: dict[str, list[float]] = field(default_factory=dict)
    """By metric: its mean over clips at every generated frame, in order of time; psnr: that of the mean error."""
    networks: dict[str, str] = field(default_factory=dict)
    """sha256 of the metric networks' tensors: i3d, lpips."""
    different: int | None = None
    """How many of the clips are distinct (the data may hold fewer than requested); None: not known."""
    sources: list[Source] = field(default_factory=list)
    """Where each real clip comes from, in order; empty if the clips are synthesized, or it is not known."""
    machine: str = ""
    seconds: float = 0.0
    """Total seconds of work, summed over processes and restarts."""
    date: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything the protocol asks for was measured."""
        return self.clips == self.protocol.clips and self.samples == self.protocol.samples

    @property
    def videos(self) -> int:
        """How many videos the real clips come from; 0 if they are synthesized, or it is not known."""
        return len({source.video for source in self.sources})

    @property
    def words(self) -> str:
        """The protocol in one sentence, of the metrics that were measured."""
        return self.protocol.sentence(self.numbers)

    def save(self, path: Path | str) -> None:
        """Writes it as JSON, atomically."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json_text(to_dict(self)))
        except OSError as error:
            raise McvdError(f"cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Reads a `result.json`, or the one in a folder."""
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise McvdError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise McvdError(f"{path} is not the result of an evaluation: {error}") from None
        return from_dict(cls, data, str(path))
