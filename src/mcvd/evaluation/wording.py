"""Which values of a metric are better, and how numbers of several systems stand in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Number
from mcvd.evaluation.summary import TITLES, order, value_text

_BETTER: dict[str, Literal["higher", "lower", "one"]] = {
    "psnr": "higher",
    "ssim": "higher",
    "spread_skill": "one",
    **dict.fromkeys(("lpips", "fvd", "fvd_trajectory", "fvd_infinity", "kvd", "crps"), "lower"),
}
_ARROWS = {"higher": " ↑", "lower": " ↓", "one": " → 1"}


def title(metric: str) -> str:
    """What people call a metric; its own name where it is not known."""
    return TITLES.get(metric, metric)


def heading(metric: str) -> str:
    """The title with an arrow to what is better."""
    return title(metric) + _ARROWS.get(_BETTER.get(metric, ""), "")


def direction(metric: str) -> str:
    """`higher is better`, in words."""
    return {"higher": "higher is better", "lower": "lower is better", "one": "1 is best", "": ""}[
        _BETTER.get(metric, "")
    ]


def in_order(metrics: set[str], protocol: Protocol) -> list[str]:
    """Metrics in the order of a table under this protocol; those that are not known last."""
    known = [name for name in order(protocol) if name in metrics]
    return known + sorted(metrics - set(known))


def printed(metric: str, value: float | None) -> str:
    """A metric's value with its usual digits; `-` for none."""
    return "-" if value is None else value_text(metric, Number(value))


def interval(metric: str, number: Number) -> str:
    """`[12.34, 14.56]`, or nothing where there is no interval."""
    return value_text(metric, number).partition(" ")[2]


def best_of(metric: str, values: Sequence[float | None]) -> set[int]:
    """Positions of the best values by this metric, all of them where they print the same; none for one value alone."""
    known = {i: value for i, value in enumerate(values) if value is not None and not math.isnan(value)}
    better = _BETTER.get(metric)
    if len(known) < 2 or better is None:
        return set()
    cost = {"higher": lambda value: -value, "lower": lambda value: value, "one": lambda value: abs(value - 1)}[better]
    best = min(known.values(), key=cost)
    return {i for i, value in known.items() if printed(metric, value) == printed(metric, best)}
