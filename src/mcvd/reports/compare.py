"""Several evaluations in one table, with the differences between systems that saw the same clips.

Numbers under different protocols do not share a column unless the caller allows it; then the differences are written
beside them, and nothing is called best.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcvd.config import to_dict
from mcvd.errors import McvdError
from mcvd.evaluation.result import json_text
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.summary import repeated
from mcvd.evaluation.wording import best_of, heading, in_order, interval, order, printed
from mcvd.reports.match import Difference, differences, measured
from mcvd.reports.page import markdown_table
from mcvd.reports.paired import Paired, contestants, paired_differences
from mcvd.reports.published import Published, Quoted, benchmark_of, published
from mcvd.text import counted, plain, printable


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side."""

    names: tuple[str, ...]
    """Names of the systems, made distinct if two are equal."""
    evaluations: tuple[Evaluation, ...]
    differing: tuple[tuple[Difference, ...], ...]
    """How each was measured differently from the first."""
    paired: tuple[Paired, ...]
    published: tuple[Published, ...]
    notes: tuple[str, ...]
    """What a reader must know before comparing."""

    @property
    def mixed(self) -> bool:
        """Whether the numbers were measured in different ways."""
        return any(self.differing)

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, in table order."""
        names = {name for evaluation in self.evaluations for name in evaluation.result.numbers}
        names |= {name for row in self.published for name in self.quoted(row)}
        return in_order(names, self.evaluations[0].result.protocol)

    def quoted(self, row: Published) -> dict[str, Quoted]:
        """Published values by metric; FVD goes to the column of the FVD that the protocol lists first."""
        column = order(self.evaluations[0].result.protocol)[0]
        return {column if name == "fvd" else name: value for name, value in row.values.items()}


def compare(paths: Sequence[Path | str], *, mixed: bool = False, with_published: bool = False) -> Comparison:
    """Reads evaluations and puts them side by side.

    mixed: numbers under different protocols may share a column.
    with_published: add published values for the benchmark of the first; those known to be measured differently only
        with `mixed`.
    Raises McvdError if protocols differ and `mixed` is off, naming the fields.
    """
    if not paths:
        raise McvdError("nothing to compare: name the folders of one or more evaluations")
    evaluations = tuple(Evaluation.load(path) for path in paths)
    names = _names(evaluations)
    first = evaluations[0].result
    differing = tuple(differences(other.result, first) for other in evaluations)
    if not mixed:
        _refuse(names, differing)
    rows: tuple[Published, ...] = ()
    notes = _notes(names, evaluations)
    if with_published:
        rows, said = _published_rows(evaluations[0], mixed)
        notes += said
    paired: list[Paired] = []
    for a, b in itertools.combinations(contestants(names, evaluations), 2):
        found, said = paired_differences(a, b)
        paired, notes = paired + found, notes + said
    return Comparison(names, evaluations, differing, tuple(paired), rows, tuple(notes))


def _names(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """System names; with the solver, else the folder, if needed to tell them apart."""
    systems = [evaluation.result.system for evaluation in evaluations]
    choices = [
        [system.name for system in systems],
        [f"{s.name} ({s.solver} {s.steps})" if s.solver else s.name for s in systems],
        [f"{s.name} ({e.folder.resolve().name})" for s, e in zip(systems, evaluations)],
        [f"{s.name} ({e.folder})" for s, e in zip(systems, evaluations)],
    ]
    distinct = next((names for names in choices if len(set(names)) == len(names)), None)
    if distinct is None:
        raise McvdError("the same evaluation is named twice")
    return tuple(map(printable, distinct))


def _refuse(names: Sequence[str], differing: Sequence[Sequence[Difference]]) -> None:
    for name, found in zip(names, differing):
        if found:
            raise McvdError(
                f"{name} was measured differently from {names[0]} ({'; '.join(map(str, found))}): such numbers do not"
                " belong in one column; --mixed shows them in one and marks them"
            )


def _notes(names: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    notes = []
    first = evaluations[0].result
    for name, evaluation in zip(names, evaluations):
        result = evaluation.result
        if not result.complete:
            counts = ((p.clips, p.samples) for p in (measured(result), result.protocol))
            done, asked = (f"{counted(clips, 'clip')} x {counted(samples, 'sample')}" for clips, samples in counts)
            notes.append(f"{name} is incomplete: {done}, not {asked}")
        if repeats := repeated(result):
            notes.append(f"{name}: {repeats}")
        if result.data != first.data:
            notes.append(f"{name} saw other real clips than {names[0]} (sha256 {result.data[:8]}, {first.data[:8]})")
    return notes


def _published_rows(evaluation: Evaluation, mixed: bool) -> tuple[tuple[Published, ...], list[str]]:
    benchmark, protocol = benchmark_of(evaluation.result.protocol), measured(evaluation.result)
    rows = published(benchmark)
    if not rows:
        return (), [f"no published values are known for {benchmark}"]
    if mixed:
        return rows, []
    comparable = tuple(row for row in rows if not row.match(protocol).differing)
    hidden = len(rows) - len(comparable)
    return comparable, [f"{hidden} published rows were measured differently; --mixed shows them"] if hidden else []


def to_markdown(comparison: Comparison) -> str:
    """The table with intervals, best values bold; then paired differences and notes."""
    names = comparison.metrics
    best = {name: best_of(name, _values(comparison, name)) for name in names} if not comparison.mixed else {}
    rows, marks = [], list[str]()
    for i, (label, evaluation) in enumerate(zip(comparison.names, comparison.evaluations)):
        label, cells = plain(label), []
        for name in names:
            number = evaluation.result.numbers.get(name)
            value = printed(name, number.value) if number else ""
            value = f"**{value}**" if i in best.get(name, ()) else value
            cells.append(f"{value} {interval(name, number)}".strip() if number else "")
        if comparison.differing[i]:
            label += _mark(marks, "; ".join(map(str, comparison.differing[i])))
        rows.append([label, *cells])
    protocol = measured(comparison.evaluations[0].result)
    for row in comparison.published:
        mark = _mark(marks, f"published; {row.confidence}; {row.source}; protocol: {row.match(protocol)}")
        values = comparison.quoted(row)
        cells = [values[name].text if name in values else "" for name in names]
        rows.append([plain(row.method) + mark, *map(plain, cells)])
    lines = [markdown_table(["system", *(heading(name) for name in names)], rows), ""]
    lines += [f"[{i}] {plain(mark)}  " for i, mark in enumerate(marks, 1)]
    whose = "Protocol of the first system," if comparison.mixed else "Protocol"
    bold = " Bold: best." if any(best.values()) else ""  # a single evaluation beside published values has none
    lines.append(
        f"{whose} {plain(protocol.name)}: {plain(protocol.sentence(names))} Brackets: 95 % intervals."
        + (" Measured in different ways, so nothing is called best." if comparison.mixed else bold)
    )
    if comparison.paired:
        lines += ["", _paired_table(comparison.paired), "", _paired_note(comparison.paired)]
    return "\n".join(
        [*lines, *(["", *(f"Note: {plain(note)}.  " for note in comparison.notes)] if comparison.notes else [])]
    )


def _mark(marks: list[str], text: str) -> str:
    """The mark of a footnote, which is added if new."""
    if text not in marks:
        marks.append(text)
    return f" [{marks.index(text) + 1}]"


def _paired_table(paired: Sequence[Paired]) -> str:
    rows = []
    for row in paired:
        sign = "+" if row.difference > 0 else ""
        ends = f"[{printed(row.metric, row.low)}, {printed(row.metric, row.high)}]"
        value = f"{sign}{printed(row.metric, row.difference)} {ends}"
        clips = str(row.clips) + (f" of {counted(row.videos, 'video')}" if row.videos < row.clips else "")
        rows.append([plain(f"{row.a} - {row.b}"), heading(row.metric), value, clips, row.verdict])
    return markdown_table(["difference", "metric", "value", "clips", ""], rows)


def _paired_note(paired: Sequence[Paired]) -> str:
    many = f" With {len(paired)} differences, 1 in 20 would look significant by chance." if len(paired) > 4 else ""
    return f"Paired differences over the same clips; 95 % intervals by resampling the videos.{many}"


def _values(comparison: Comparison, name: str) -> list[float | None]:
    numbers = [evaluation.result.numbers.get(name) for evaluation in comparison.evaluations]
    return [number.value if number else None for number in numbers]


def to_csv(comparison: Comparison) -> str:
    """One row per system: for every metric its value and the ends of its interval."""
    names = comparison.metrics
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    writer.writerow(["system", "protocol", "clips", "samples", *ends, "differs", "source", "confidence"])
    for label, evaluation, found in zip(comparison.names, comparison.evaluations, comparison.differing):
        result = evaluation.result
        numbers = [result.numbers.get(name) for name in names]
        cells = [cell for n in numbers for cell in ((n.value, n.low, n.high) if n else (None, None, None))]
        differs = "; ".join(map(str, found))
        writer.writerow([label, result.protocol.name, result.clips, result.samples, *cells, differs, "", ""])
    protocol = measured(comparison.evaluations[0].result)
    for row in comparison.published:
        quoted = [comparison.quoted(row).get(name) for name in names]
        cells = [cell for value in quoted for cell in (value.value if value else None, None, None)]
        match = row.match(protocol)
        writer.writerow([row.method, row.benchmark, "", "", *cells, str(match), row.source, row.confidence])
    return stream.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything as JSON, including the full results."""
    protocol = measured(comparison.evaluations[0].result)
    systems: list[dict[str, Any]] = [
        {"name": label, "folder": str(e.folder), "differs": list(map(str, found)), "result": to_dict(e.result)}
        for label, e, found in zip(comparison.names, comparison.evaluations, comparison.differing)
    ]
    quoted = [
        {
            "method": row.method,
            "values": {name: value.text for name, value in comparison.quoted(row).items()},
            "source": row.source,
            "confidence": row.confidence,
            "protocol": str(row.match(protocol)),
        }
        for row in comparison.published
    ]
    paired = [{**dataclasses.asdict(row), "verdict": row.verdict} for row in comparison.paired]
    data = {"mixed": comparison.mixed, "systems": systems, "paired": paired, "published": quoted}
    return json_text({**data, "notes": list(comparison.notes)})
