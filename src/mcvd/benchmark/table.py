"""The document of a benchmark as text for people."""

from __future__ import annotations

from typing import Any

HEADER = ("what", "time", "frames/s", "of ceiling", "memory", "ratio", "in processor time", "difference")


def table(document: dict[str, Any]) -> str:
    """Lines of at most about 160 characters: the machine, its ceilings, a block a row."""
    machine, ceilings = document["machine"], document["ceilings"]
    lines = [
        f"{machine['name']} ({machine['device']}), {machine['threads']} threads, torch {machine['torch']}; "
        f"{document['protocol']['precision']}, {document['protocol']['rounds']} rounds, interleaved"
    ]
    for name, ceiling in ceilings.items():
        lines.append(f"{name:<12} {_engineering(ceiling['rate'])}{ceiling['unit']}  ({ceiling['what']})")
    measured = [row for row in document["rows"] if "implementations" in row]
    cells: list[tuple[str, ...]] = [HEADER]
    for row in measured:
        cells += [(_title(row), *[""] * 7), *(_cells(name, entry) for name, entry in row["implementations"].items())]
    if measured:
        widths = [max(len(row[i]) for row in cells if any(row[1:]) or not i) for i in range(len(HEADER))]
        lines.append("")
        lines += ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in cells]
    for row in document["rows"]:
        if "command" in row:
            beyond = row.get("beyond_torch")
            more = f"; beyond importing torch {_seconds(beyond)}" if beyond else ""
            lines.append(f"start-up: {row['command']}: {_seconds(row['seconds'])}{more}")
    return "\n".join(lines)


def _title(row: dict[str, Any]) -> str:
    side = "x".join(map(str, reversed(row["size"])))
    parts = [row["case"], row.get("recipe", ""), f"{side}, batch {row['batch']}"]
    if "samples" in row:
        parts.append(
            f"{row['samples']} samples each, {row['solver_steps']} DDPM steps ({row['timed_steps']} of them timed)"
        )
    parts.append(f"{_engineering(row['flops'])}FLOP, {row['frame_cost']:.3g} x the time a frame of the first such row")
    return ", ".join(filter(None, parts))


def _cells(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    memory, difference = entry["memory_bytes"], entry.get("difference")
    shown = "" if memory is None else f"{memory / 2**20:,.0f} MiB"
    if memory is not None and entry.get("memory_ratio") is not None:
        shown += f" (ours {entry['memory_ratio']:.0%} of it)"
    return (
        f"  {name}",
        _seconds(entry["seconds"]),
        f"{entry['frames_per_second']:.4g}",
        f"{entry['mfu']['median']:.0%}",
        shown,
        _ratio(entry.get("ratio")),
        _ratio(entry.get("processor_ratio")),
        "" if difference is None else f"{difference:.1e}" + ("" if entry["equal"] else " DIFFERS"),
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
