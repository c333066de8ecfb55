"""The result of an evaluation: numbers, each with its interval, and all that they depend on, as one JSON file.

A folder of an evaluation holds `result.json` (a `Result`), `rows.safetensors` (a `Table`: columns ``mse``, ``ssim``,
``lpips`` per made frame, ``features`` per made video; once a clip, at sample 0: ``real``, the features of the real
clip, those of `calibration`, and ``seconds``), `result.md` and, for the report, `videos/`.
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
    """Data as JSON, which knows no infinite numbers, such as the PSNR of a perfect video: these, and what is not a
    number, are the texts "inf", "-inf" and "nan", which `Result.load` reads as numbers."""

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
    """Lower end of the interval; None where there is too little to say."""
    high: float | None = None
    """Upper end of the interval."""
    interval: str = ""
    """What the interval is: `bootstrap over clips, 1000 resamples` or `1.96 standard errors over 10 trajectories`."""
    of: str = ""
    """What was measured, in words: `best of 10 samples, mean over 256 clips`."""


@dataclass(frozen=True)
class System:
    """What was measured."""

    name: str
    """As a person calls it: a model's name, or of the folder of videos that were scored."""
    weights: str = ""
    """sha256 of the weights' tensors and the configuration; empty where only videos are known."""
    solver: str = ""
    steps: int = 0
    guidance: float = 1.0
    seed: int = 0
    reference: bool = False
    """Sampled as the published code did, its defects included."""
    version: str = ""
    """Of mcvd."""
    precision: str = "fp32"
    """What the network computed in."""
    engine: str = "torch"
    """What carried out its calls."""


@dataclass(frozen=True)
class Result:
    """Numbers of one system under one protocol."""

    protocol: Protocol
    system: System
    clips: int
    """Clips that were measured, at most the protocol's."""
    samples: int
    """Videos made for each of them."""
    data: str
    """sha256 of the real clips' pixels: two results with the same have seen the same pixels."""
    numbers: dict[str, Number] = field(default_factory=dict)
    """By metric: psnr, ssim, lpips, fvd, fvd_trajectory, kvd, crps, spread_skill ..."""
    frames: dict[str, list[float]] = field(default_factory=dict)
    """By metric: its mean over clips at every made frame, in the order of time; psnr: that of the mean error."""
    networks: dict[str, str] = field(default_factory=dict)
    """sha256 of the tensors of the networks that measure: i3d, lpips."""
    different: int | None = None
    """How many of the clips are different, where data hold fewer than were asked for; None: not known."""
    machine: str = ""
    seconds: float = 0.0
    """Of work in all, summed over processes and restarts."""
    date: str = ""

    @property
    def complete(self) -> bool:
        """Whether all that the protocol asks for was measured."""
        return self.clips == self.protocol.clips and self.samples == self.protocol.samples

    def save(self, path: Path | str) -> None:
        """Writes it as JSON, whole or not at all."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json_text(to_dict(self)))
        except OSError as error:
            raise McvdError(f"cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Reads `result.json`, or that of a folder."""
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise McvdError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise McvdError(f"{path} is no result of an evaluation: {error}") from None
        return from_dict(cls, data, str(path))
