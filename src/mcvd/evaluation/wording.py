"""How metrics are called, printed and judged, in every table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcvd.evaluation.result import Number

ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1", "": ""}


@dataclass(frozen=True)
class Metric:
    """A metric's name for people, the digits that are printed, and what is better."""

    label: str
    digits: int
    better: Literal["higher", "lower", "one", ""]

    @property
    def heading(self) -> str:
        """The label with an arrow to what is better."""
        return f"{self.label} {ARROWS[self.better]}".strip()


_METRICS = {
    "psnr": Metric("PSNR (dB)", 2, "higher"),
    "ssim": Metric("SSIM", 3, "higher"),
    "lpips": Metric("LPIPS", 3, "lower"),
    "mse": Metric("MSE", 5, "lower"),
    "fvd": Metric("FVD", 1, "lower"),
    "fvd_trajectory": Metric("FVD, mean of trajectories", 1, "lower"),
    "kvd": Metric("KVD", 2, "lower"),
    "crps": Metric("CRPS", 4, "lower"),
    "spread_skill": Metric("spread / skill", 2, "one"),
}


def metric(name: str) -> Metric:
    """What is known of a metric; one that is not known is printed under its name and not judged."""
    return _METRICS.get(name, Metric(name, 4, ""))


def in_order(names: set[str]) -> list[str]:
    """Names of metrics in the order of tables: the known ones as listed here, then the others by name."""
    return [name for name in _METRICS if name in names] + sorted(names - _METRICS.keys())


def printed(name: str, value: float | None) -> str:
    """A metric's value with its usual digits; `-` for none."""
    return "-" if value is None else f"{value:.{metric(name).digits}f}"


def interval(name: str, number: Number) -> str:
    """`[12.3, 14.5]`, or nothing where there is no interval."""
    if number.low is None or number.high is None:
        return ""
    return f"[{printed(name, number.low)}, {printed(name, number.high)}]"


def best_of(name: str, values: Sequence[float | None]) -> set[int]:
    """Positions of the best values by this metric, all of them where they print the same; none for one value alone."""
    known = {i: value for i, value in enumerate(values) if value is not None and not math.isnan(value)}
    better = metric(name).better
    if len(known) < 2 or not better:
        return set()
    cost = {"higher": lambda value: -value, "lower": lambda value: value, "one": lambda value: abs(value - 1)}[better]
    best = min(known.values(), key=cost)
    return {i for i, value in known.items() if printed(name, value) == printed(name, best)}
