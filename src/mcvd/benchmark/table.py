"""A benchmark's document as readable text."""

from __future__ import annotations

from typing import Any

from mcvd.text import counted

HEADER = ("", "time", "least", "frames/s", "of ceiling", "memory", "ratio", "of least", "of processor", "difference")


def table(document: dict[str, Any]) -> str:
    """Lines of text: the machine, its ceilings, one block per row."""
    machine, ceilings = document["machine"], document["ceilings"]
    lines = [
        f"{machine['name']} ({machine['device']}), {machine['threads']} threads, torch {machine['torch']}; "
        f"{document['protocol']['precision']}, {counted(document['protocol']['rounds'], 'round')}, interleaved"
    ]
    for name, ceiling in ceilings.items():
        lines.append(f"{name:<12} {_engineering(ceiling['rate'])}{ceiling['unit']}  ({ceiling['what']})")
    measured = [row for row in document["rows"] if "implementations" in row]
    cells = [[_cells(name, entry) for name, entry in row["implementations"].items()] for row in measured]
    every = [HEADER, *(line for block in cells for line in block)]
    widths = [max(len(line[i]) for line in every) for i in range(len(HEADER))]
    for row, block in zip(measured, cells):
        lines += ["", _title(row), _aligned(HEADER, widths), *(_aligned(line, widths) for line in block)]
    for row in document["rows"]:
        if "command" in row:
            beyond = row.get("beyond_torch")
            more = f"; beyond importing torch {_seconds(beyond)}" if beyond else ""
            lines.append(f"start-up: {row['command']}: {_seconds(row['seconds'])}{more}")
    return "\n".join(lines)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{text:<{width}}" for text, width in zip(cells, widths)).rstrip()


def _title(row: dict[str, Any]) -> str:
    side = "x".join(map(str, reversed(row["size"])))
    parts = [row["case"], row.get("recipe", ""), f"{side}, batch {row['batch']}"]
    if "samples" in row:
        steps = f"{row['solver_steps']} DDPM steps ({row['timed_steps']} of them timed)"
        parts.append(f"{counted(row['samples'], 'sample')} each, {steps}")
    parts.append(f"{_engineering(row['flops'])}FLOP, {row['frame_cost']:.3g} x the first such row's time per frame")
    return ", ".join(filter(None, parts))


def _cells(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    memory, difference = entry["memory_bytes"], entry.get("difference")
    apart = entry.get("unlike") or ("" if difference is None else f"{difference:.1e}")
    shown = "" if memory is None else f"{memory / 2**20:,.0f} MiB"
    if memory is not None and entry.get("memory_ratio") is not None:
        shown += f" (ours {entry['memory_ratio']:.0%} of it)"
    return (
        f"  {name}",
        _seconds(entry["seconds"]),
        f"{entry['least_seconds']:.4g} s",
        f"{entry['frames_per_second']:.4g}",
        f"{entry['mfu']['median']:.0%}",
        shown,
        _ratio(entry.get("ratio")),
        f"{entry['least_ratio']:.2f}" if "least_ratio" in entry else "",
        f"{entry['processor_ratio']['median']:.2f}" if "processor_ratio" in entry else "",
        apart if entry.get("equal", True) else f"{apart} DIFFERS",
    )


def _seconds(summary: dict[str, float]) -> str:
    return f"{summary['median']:.4g} s ({summary['low']:.4g} to {summary['high']:.4g})"


def _ratio(summary: dict[str, float] | None) -> str:
    return "" if summary is None else f"{summary['median']:.2f} ({summary['low']:.2f} to {summary['high']:.2f})"


def _engineering(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g} "
