"""How metrics are named and ordered in tables, how their values are printed, and which values are better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Number

TITLES = {
    "fvd": "FVD",
    "fvd_trajectory": "FVD, mean of trajectories",
    "fvd_infinity": "FVD, endless",
    "kvd": "KVD",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "crps": "CRPS",
    "spread_skill": "spread/skill",
}
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "kvd": 4, "crps": 4, "spread_skill": 3}
_BETTER: dict[str, Literal["higher", "lower", "one"]] = {
    "psnr": "higher",
    "ssim": "higher",
    "spread_skill": "one",
    **dict.fromkeys(("lpips", "fvd", "fvd_trajectory", "fvd_infinity", "kvd", "crps"), "lower"),
}
_ARROWS = {"higher": " ↑", "lower": " ↓", "one": " → 1"}


def title(metric: str) -> str:
    """A metric's display name; unknown ones keep their own."""
    return TITLES.get(metric, metric)


def heading(metric: str) -> str:
    """The title with an arrow in the better direction."""
    return title(metric) + _ARROWS.get(_BETTER.get(metric, ""), "")


def direction(metric: str) -> str:
    """`higher is better`, in words."""
    return {"higher": "higher is better", "lower": "lower is better", "one": "1 is best", "": ""}[
        _BETTER.get(metric, "")
    ]


def order(protocol: Protocol) -> list[str]:
    """Metrics in the order of a table: the protocol's own FVD first. Of one trajectory there is no mean."""
    fvd = ["fvd", "fvd_trajectory"] if protocol.fvd_pooled or protocol.samples == 1 else ["fvd_trajectory", "fvd"]
    return [*fvd, *(name for name in TITLES if name not in fvd)]


def in_order(metrics: set[str], protocol: Protocol) -> list[str]:
    """Metrics in the order of a table under this protocol; unknown ones last."""
    known = [name for name in order(protocol) if name in metrics]
    return known + sorted(metrics - set(known))


def value_text(metric: str, number: Number) -> str:
    """``25.31 [24.90, 25.77]``; zero has no sign."""
    digits = _DIGITS.get(metric, 1)
    text = f"{number.value:z.{digits}f}"
    if number.low is None or number.high is None or not math.isfinite(number.low + number.high):
        return text
    return f"{text} [{number.low:z.{digits}f}, {number.high:z.{digits}f}]"


def printed(metric: str, value: float | None) -> str:
    """A metric's value with its usual digits; `-` for none."""
    return "-" if value is None else value_text(metric, Number(value))


def interval(metric: str, number: Number) -> str:
    """`[12.34, 14.56]`, or nothing if there is no interval."""
    return value_text(metric, number).partition(" ")[2]


def best_of(metric: str, values: Sequence[float | None]) -> set[int]:
    """Indices of the best values by this metric, all that print the same; none for a single value."""
    known = {i: value for i, value in enumerate(values) if value is not None and not math.isnan(value)}
    better = _BETTER.get(metric)
    if len(known) < 2 or better is None:
        return set()
    cost = {"higher": lambda value: -value, "lower": lambda value: value, "one": lambda value: abs(value - 1)}[better]
    best = min(known.values(), key=cost)
    return {i for i, value in known.items() if printed(metric, value) == printed(metric, best)}
