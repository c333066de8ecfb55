"""Line charts as SVG, without a plotting library: small, sharp, light and dark, with values shown under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mcvd.evaluation.wording import printed
from mcvd.reports.curves import Curve

WIDTH, HEIGHT = 720, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 42  # px around the plot
STYLE = """
.mcvd-chart{font:12px system-ui,sans-serif}
.mcvd-chart text{fill:#555}.mcvd-chart .grid{stroke:#ddd}
.mcvd-chart .system{color:#d9690f}.mcvd-chart .mean{color:#b07aa1}.mcvd-chart .copy{color:#777}
.mcvd-chart circle{fill:currentColor}.mcvd-chart .band{fill:currentColor;fill-opacity:.2}
.mcvd-chart .line{stroke:currentColor;fill:none;stroke-width:2}
.mcvd-chart .line.mean{stroke-dasharray:7 4}.mcvd-chart .line.copy{stroke-dasharray:2 4}
@media(prefers-color-scheme:dark){.mcvd-chart text{fill:#bbb}.mcvd-chart .grid{stroke:#444}
.mcvd-chart .system{color:#f28e2b}.mcvd-chart .mean{color:#d4a6c8}.mcvd-chart .copy{color:#aaa}}
"""


def line_chart(metric: str, curves: Sequence[Curve], first: int, x_label: str, title: str, *, alone: bool) -> str:
    """Curves over the frames ``first, first + 1, ...``, as SVG.

    Values that are not finite have no point. metric: sets how values under the pointer are printed. alone: for a
    separate file, with the namespace and size that a page does not need.
    """
    values = [v for c in curves for part in (c.mean, c.low, c.high) if part for v in part if math.isfinite(v)]
    ticks = nice_ticks(min(values, default=0), max(values, default=1))
    bottom, top, count = ticks[0], ticks[-1], max(len(curve.mean) for curve in curves)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom)

    space = f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"' if alone else ""
    parts = [
        f'<svg{space} class="mcvd-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick(tick, ticks)}</text>')
    every = max(1, math.ceil(count / 20))
    parts += [
        f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{first + i}</text>'
        for i in range(0, count, every)
    ]
    for curve in curves:
        if curve.low and curve.high:
            known = [i for i, ends in enumerate(zip(curve.low, curve.high)) if all(map(math.isfinite, ends))]
            edge = [(x(i), y(curve.high[i])) for i in known] + [(x(i), y(curve.low[i])) for i in reversed(known)]
            parts.append(f'<polygon class="band {curve.role}" points="{_points(edge)}"/>')
    for curve in curves:
        points = {i: value for i, value in enumerate(curve.mean) if math.isfinite(value)}
        line = [(x(i), y(value)) for i, value in points.items()]
        parts.append(f'<polyline class="line {curve.role}" points="{_points(line)}"/>')
        for i, value in points.items():
            told = f"frame {first + i}, {curve.label}: {printed(metric, value)}"
            if curve.low and curve.high:
                told += f" [{printed(metric, curve.low[i])}, {printed(metric, curve.high[i])}]"
            dot = f'<circle class="{curve.role}" cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.5">'
            parts.append(f"{dot}<title>{escape(told)}</title></circle>")
    return "\n".join([*parts, *_legend(curves), "</svg>"])


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, pen = [], float(LEFT)
    for curve in curves:
        label = curve.label + (", 95 % band" if curve.low else "")
        parts.append(f'<line class="line {curve.role}" x1="{pen:.0f}" x2="{pen + 26:.0f}" y1="15" y2="15"/>')
        parts.append(f'<text x="{pen + 32:.0f}" y="19">{escape(label)}</text>')
        pen += 56 + 6.2 * len(label)
    return parts


def nice_ticks(low: float, high: float) -> list[float]:
    """3 to 6 equally spaced round numbers; the first is not above `low`, the last not below `high`."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= raw * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, stop + 1)]


def _tick(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = next((n for n in range(7) if abs(step * 10**n - round(step * 10**n)) < 1e-6), 7)
    return f"{value:.{digits}f}"


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
