"""Whether two numbers were measured in the same way and, if not, in which fields of the protocol they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result

FIELDS = {
    "data": "data",
    "task": "task",
    "past": "frames given before",
    "frames": "frames generated",
    "future": "frames given after",
    "source": "source of the frames",
    "split": "side of the split",
    "size": "size of frames",
    "channels": "colours",
    "stride": "every n-th frame, n",
    "clips": "test clips",
    "samples": "samples of a clip",
    "choice": "choice of clips",
    "choice_seed": "seed of the clips",
    "pixels": "frames that SSIM and LPIPS see",
    "binary": "rounded to black and white for SSIM",
    "lpips_size": "side of pictures for LPIPS",
    "best": "value of a clip",
    "fvd": "frames in FVD",
    "fvd_pooled": "FVD over samples",
}
_VALUES: dict[tuple[str, Any], str] = {
    ("source", "moving-mnist"): "drawn on the fly",
    ("channels", 1): "grey",
    ("channels", 3): "RGB",
    ("choice", "fixed"): "spread evenly, fixed",
    ("choice", "published"): "random starts, as published",
    ("pixels", "published"): "8 bits by truncation, as published",
    ("pixels", "plain"): "as they are",
    ("binary", True): "yes",
    ("binary", False): "no",
    ("lpips_size", None): "as they are",
    ("best", True): "its best sample",
    ("best", False): "mean over its samples",
    ("fvd", "context"): "given and generated",
    ("fvd", "made"): "generated alone",
    ("fvd", "none"): "not measured",
    ("fvd_pooled", True): "all pooled",
    ("fvd_pooled", False): "mean over trajectories",
}
_OURS = {"name", "data", "source", "choice_seed"}  # our own words and numbers, which no paper states
_OF_GIVEN = {"pixels", "binary", "lpips_size", "best", "fvd"}  # meaningless if no frame is given


@dataclass(frozen=True)
class Difference:
    """One thing that two measurements did differently."""

    field: str
    """A field of `Protocol`, or `network of lpips`."""
    mine: str
    other: str

    def __str__(self) -> str:
        return f"{FIELDS.get(self.field, self.field)}: {self.mine}, not {self.other}"


@dataclass(frozen=True)
class Match:
    """How far a published value is known to be measured as ours was."""

    differs: tuple[Difference, ...]
    unknown: tuple[str, ...]
    """Fields of `Protocol` that the source does not state."""
    apart: str = ""
    """A reason outside the protocol why the values cannot be compared."""

    @property
    def differing(self) -> bool:
        """Whether something is known to differ."""
        return bool(self.differs or self.apart)

    def __str__(self) -> str:
        unknown = ", ".join(FIELDS.get(name, name) for name in self.unknown)
        if self.differing:
            reasons = [*filter(None, [self.apart]), *map(str, self.differs)]
            return f"differs: {'; '.join(reasons)}" + (f" (not stated: {unknown})" if unknown else "")
        return "the same" if not unknown else f"the same as far as stated (not stated: {unknown})"


def in_words(field: str, value: Any) -> str:
    """The value of a field of `Protocol` in words."""
    if (field, value) in _VALUES:
        return _VALUES[field, value]
    return "x".join(map(str, reversed(value))) if field == "size" else str(value)


def measured(result: Result) -> Protocol:
    """The protocol as carried out: with the clips and samples actually measured, without fields of no effect."""
    return dataclasses.replace(result.protocol.in_force, clips=result.clips, samples=result.samples)


def differences(a: Result, b: Result) -> tuple[Difference, ...]:
    """How two results were measured differently: protocol fields except the name, and metric networks."""
    mine, other = dataclasses.asdict(measured(a)), dataclasses.asdict(measured(b))
    out = [
        Difference(name, in_words(name, value), in_words(name, other[name]))
        for name, value in mine.items()
        if name != "name" and value != other[name]
    ]
    out += [
        Difference(f"network of {network}", a.networks[network][:8], b.networks[network][:8])
        for network in sorted(a.networks.keys() & b.networks.keys())
        if a.networks[network] != b.networks[network]
    ]
    return tuple(out)


def match_fields(protocol: Protocol, known: Mapping[str, Any], apart: str = "") -> Match:
    """Compares a protocol with the known fields of another; fields missing from `known` count as not stated."""
    idle = _OURS | _OF_GIVEN if protocol.task == "generate" else _OURS
    mine = {name: value for name, value in dataclasses.asdict(protocol).items() if name not in idle}
    differs = [
        Difference(name, in_words(name, value), in_words(name, known[name]))
        for name, value in mine.items()
        if name in known and known[name] != value
    ]
    return Match(tuple(differs), tuple(name for name in mine if name not in known), apart)
