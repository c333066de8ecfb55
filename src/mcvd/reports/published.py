"""Published values: their sources, how certain these are, and whether the values were measured as ours are.

The values are in `published.yaml`, beside this file, which is read on first use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml

from mcvd.errors import McvdError
from mcvd.evaluation.presets import EDITED
from mcvd.evaluation.protocol import Protocol
from mcvd.reports.match import Match, match_fields

Confidence = Literal["verified", "third party", "recalled"]
METRICS = ("fvd", "psnr", "ssim", "lpips")
_NUMBER = r"\d+(?:\.\d+)?"
_VALUE = re.compile(rf"~?(?P<low>{_NUMBER})(?:\.\.(?P<high>{_NUMBER})|\s*\+-\s*{_NUMBER})?")


@dataclass(frozen=True)
class Quoted:
    """A value as printed in its source."""

    text: str
    """As printed: `87.9`, `0.121 ± 0.05`, `94–96`, `~17`."""
    value: float
    """The number; the middle of a range."""

    @classmethod
    def parse(cls, written: object, where: str) -> Quoted:
        """`87.9`, `0.121 +- 0.05`, `94..96` or `~17`; raises McvdError for anything else."""
        found = _VALUE.fullmatch(str(written).strip())
        if not found:
            raise McvdError(f"{where}: {written!r} is not a value: write a number, `a +- b`, `a..b` or `~a`")
        low, high = float(found["low"]), float(found["high"] or found["low"])
        text = str(written).strip().replace("..", "–").replace("+-", "±")
        return cls(text, (low + high) / 2)


@dataclass(frozen=True)
class Published:
    """The values of one method on one benchmark, from one source."""

    benchmark: str
    """Name of the protocol preset that the values belong to, such as `bair-2to14`, or the common start of several
    names, such as `kth-interpolate`, if the source does not say which."""
    method: str
    values: dict[str, Quoted]
    """By metric: fvd, psnr, ssim, lpips."""
    source: str
    """Where the values were read."""
    confidence: Confidence
    protocol: dict[str, Any] = field(default_factory=dict)
    """The known fields of the `Protocol` that the values were measured under; all others are not stated."""
    apart: str = ""
    """Why they cannot be compared whatever the protocol, such as another camera."""

    def match(self, protocol: Protocol) -> Match:
        """Whether these values were measured as numbers under `protocol` are, and what differs."""
        return match_fields(protocol, self.protocol, self.apart)


def benchmark_of(protocol: Protocol) -> str:
    """The benchmark that a protocol belongs to: its preset's name without `+edited`, `-made` and `-100`, which change
    how the same frames are measured."""
    return protocol.name.removesuffix(EDITED).removesuffix("-made").removesuffix("-100")


def published(benchmark: str | None = None) -> tuple[Published, ...]:
    """The published values of a benchmark (none for an unknown one), or all of them; lowest FVD first."""
    rows = [row for row in _all() if benchmark is None or f"{benchmark}-".startswith(f"{row.benchmark}-")]
    return tuple(sorted(rows, key=lambda row: row.values["fvd"].value if "fvd" in row.values else float("inf")))


@cache
def _all() -> tuple[Published, ...]:
    data = yaml.safe_load((files("mcvd.reports") / "published.yaml").read_text(encoding="utf-8"))
    return parse(data)


def parse(data: dict[str, Any]) -> tuple[Published, ...]:
    """Rows from the content of the YAML file; raises McvdError if a group names something undefined in it."""
    rows = []
    for group in data["groups"]:
        where = f"published.yaml: {group['benchmark']}"
        for kind, name in (
            ("benchmarks", group["benchmark"]),
            ("protocols", group["protocol"]),
            ("sources", group["source"]),
        ):
            if name not in data[kind]:
                raise McvdError(f"{where}: {name} is not one of its {kind}")
        if group["confidence"] not in get_args(Confidence):
            raise McvdError(f"{where}: confidence is {group['confidence']!r}, not {', '.join(get_args(Confidence))}")
        known = {**data["benchmarks"][group["benchmark"]], **data["protocols"][group["protocol"]]}
        known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        for row in group["rows"]:
            values = {name: Quoted.parse(row[name], f"{where}: {row['method']}") for name in METRICS if name in row}
            if not values or row.keys() - {*METRICS, "method", "apart"}:
                raise McvdError(f"{where}: {row['method']}: no value, or an unknown key")
            rows.append(
                Published(
                    group["benchmark"],
                    row["method"],
                    values,
                    data["sources"][group["source"]],
                    group["confidence"],
                    known,
                    row.get("apart", ""),
                )
            )
    return tuple(rows)
