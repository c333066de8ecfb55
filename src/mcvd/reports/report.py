"""The report of an evaluation: numbers, curves, clips and published values, as one page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.summary import shortfalls
from mcvd.evaluation.table import Table
from mcvd.evaluation.wording import direction, heading, in_order, interval, order, printed, title
from mcvd.reports.curves import COLUMN, Curve, copy_curve, copy_label, copy_table, system_curves
from mcvd.reports.match import FIELDS, in_words, measured
from mcvd.reports.page import Grid, Page, Picture, Section, Text, write_page
from mcvd.reports.published import METRICS, benchmark_of, published
from mcvd.reports.shown import draw_clips
from mcvd.reports.svg import line_chart
from mcvd.text import counted

PICTURE_BUDGET = 24_000_000  # bytes of clips on one page; the first clip is always shown


def write_report(folder: Path | str) -> list[Path]:
    """Writes `report.html` (one self-contained file) and `report.md` with `report_files/` into the folder of an
    evaluation, and returns both paths. Parts that need missing rows or videos say so. Raises McvdError if the folder
    is not that of an evaluation or holds a damaged file."""
    evaluation = Evaluation.load(folder)
    return write_page(make_page(evaluation), evaluation.folder, "report")


def make_page(evaluation: Evaluation) -> Page:
    """The report as a document."""
    result, protocol = evaluation.result, evaluation.result.protocol
    copy = copy_table(evaluation)
    sections = [
        _numbers(evaluation, copy),
        _curves(evaluation, copy),
        *_clips(evaluation),
        _published(evaluation),
        _protocol(evaluation),
        _system(evaluation),
    ]
    return Page(f"{result.system.name} on {protocol.name}", f"{result.words} {result.date}".strip(), sections)


def _numbers(evaluation: Evaluation, copy: Table | None) -> Section:
    result = evaluation.result
    copied = _copied_numbers(copy)
    header = ["metric", "value", "95 % interval", *([copy_label(result.protocol)] if copied else []), "of", "interval"]
    rows = []
    for name in in_order(set(result.numbers), result.protocol):
        number = result.numbers[name]
        row = [heading(name), printed(name, number.value), interval(name, number)]
        row += [printed(name, copied.get(name))] if copied else []
        rows.append([*row, number.of, number.interval])
    parts: list[Text | Grid | Picture] = []
    parts += [Text(f"{note[0].upper()}{note[1:]}.") for note in shortfalls(result)]
    if not result.complete:
        parts.append(Text("FVD, and PSNR, SSIM and LPIPS of the best sample, depend on these counts."))
    parts.append(Grid(header, rows))
    if copied and copy is not None:
        parts.append(
            Text(
                f"{copy_label(result.protocol).capitalize()}: no model needed; on the {counted(len(copy), 'clip')}"
                " whose videos were kept. A model that does not beat it has not shown that it learnt motion. The best"
                " of several samples has an advantage over it; their mean (in the curves below) does not.",
                note=True,
            )
        )
    return Section("Numbers", parts)


def _copied_numbers(copy: Table | None) -> dict[str, float]:
    if copy is None:
        return {}
    return {name: copy.summary(name).mean for name in ("psnr", "ssim") if COLUMN[name] in copy.columns}


def _curves(evaluation: Evaluation, copy: Table | None) -> Section:
    result, protocol = evaluation.result, evaluation.result.protocol
    parts: list[Text | Grid | Picture] = []
    for name in COLUMN:
        curves: list[Curve] = []
        if evaluation.table is not None and COLUMN[name] in evaluation.table.columns:
            curves = system_curves(evaluation.table, name, protocol.best, result.sources)
        elif name in result.frames:
            curves = [Curve(result.system.name, result.frames[name])]
        if not curves:
            continue
        base = copy_curve(copy, name, copy_label(protocol)) if copy is not None else None
        curves += [base] if base else []
        words = f"{title(name)} of every frame, {direction(name)}"
        options = (protocol.past, f"frame of the clip (generated: {_made(protocol)})", words)
        alone = line_chart(name, curves, *options, alone=True)
        inline = line_chart(name, curves, *options, alone=False)
        parts += [Text(words), Picture(f"curve-{name}.svg", alone.encode(), words, inline)]
    if not parts:
        return Section("Frame by frame", [Text("There is no ground truth, or no frame metric was measured.")])
    if evaluation.table is not None:
        note = (
            "Means over clips of each clip's value (for PSNR too); the band is 1.96 standard errors, with the"
            " clips of one video taken together. PSNR of a frame is capped at 100 dB."
        )
    else:
        note = "Means over clips; PSNR is that of the mean error. Without rows.safetensors there is no band."
    if copy is None and protocol.task != "generate":
        note += " There is no copy baseline: videos/ is not in the folder."
    return Section("Frame by frame", [*parts, Text(note, note=True)])


def _clips(evaluation: Evaluation) -> list[Section]:
    if not evaluation.videos:
        return [Section("Clips", [Text("The videos were not kept: there is no videos/ in the folder.")])]
    kept, used, left_out = len(evaluation.videos), 0, 0
    sections: list[Section] = []
    for shown in draw_clips(evaluation):
        size = len(shown.sheet) + len(shown.animation)
        if sections and used + size > PICTURE_BUDGET:
            left_out += 1
            continue
        used += size
        parts: list[Text | Grid | Picture] = [Text(shown.caption, note=True)] if shown.caption else []
        name = f"clip-{shown.clip:05d}"
        parts.append(Picture(f"{name}.gif", shown.animation, f"animation of clip {shown.clip}"))
        parts.append(Picture(f"{name}.png", shown.sheet, f"all frames of clip {shown.clip}"))
        sections.append(Section(shown.title[0].upper() + shown.title[1:], parts, level=3))
    text = (
        f"Chosen among the {counted(kept, 'clip')} whose videos were kept. Edges: blue: given; orange:"
        " generated; none (grey in the animation): real, not shown to the model."
    )
    if left_out:
        text += f" {counted(left_out, 'clip')} more would make the page too large."
    return [Section("Clips", [Text(text, note=True)]), *sections]


def _published(evaluation: Evaluation) -> Section:
    result = evaluation.result
    benchmark, protocol = benchmark_of(result.protocol), measured(result)
    rows = published(benchmark)
    if not rows:
        return Section("Published values", [Text(f"None known for {benchmark}.")])
    ours = [(name, result.numbers.get(order(result.protocol)[0] if name == "fvd" else name)) for name in METRICS]
    own = [printed(name, number.value) if number else "" for name, number in ours]
    cells = [[result.system.name, *own, "this evaluation", "", ""]]
    for row in rows:
        values = [row.values[name].text if name in row.values else "" for name in METRICS]
        cells.append([row.method, *values, str(row.match(protocol)), row.confidence, row.source])
    header = ["system", *(heading(name) for name in METRICS), "protocol", "confidence", "source"]
    note = (
        "Values as printed. Verified: in a table by those who measured it, or who print it beside their own; third"
        " party: in a text that repeats it; recalled: check it before you quote it. Where the protocol differs or is"
        " not stated, the values give an order of magnitude, not a ranking."
    )
    return Section("Published values", [Grid(header, cells, own=frozenset({0})), Text(note, note=True)])


def _protocol(evaluation: Evaluation) -> Section:
    result = evaluation.result
    done = measured(result)
    rows = []
    for name, value in dataclasses.asdict(result.protocol).items():
        asked, carried_out = in_words(name, value), in_words(name, getattr(done, name))
        words = asked if asked == carried_out else f"{carried_out} (the protocol asks for {asked})"
        rows.append([FIELDS.get(name, name), words])
    if result.videos:
        rows.append(["videos that the clips come from", str(result.videos)])
    rows.append(["sha256 of the real clips", result.data])
    rows += [[f"sha256 of {name}", value] for name, value in sorted(result.networks.items())]
    return Section("Protocol", [Grid(["", ""], rows)])


def _system(evaluation: Evaluation) -> Section:
    result, system = evaluation.result, evaluation.result.system
    rows = [["name", system.name], ["sha256 of the weights", system.weights or "not known: videos were scored"]]
    if system.solver:
        rows += [
            ["solver", f"{system.solver}, {counted(system.steps, 'step')}"],
            ["guidance", f"{system.guidance:g}"],
            ["seed", str(system.seed)],
            ["sampled as the published code did", "yes" if system.reference else "no"],
            ["precision", system.precision],
            ["engine", system.engine],
        ]
    rows += [["mcvd", system.version], ["machine", result.machine], ["date", result.date]]
    rows += [["time", f"{result.seconds:.0f} s"]] if result.seconds else []
    return Section("System", [Grid(["", ""], [row for row in rows if row[1]])])


def _made(protocol: Protocol) -> str:
    return f"{protocol.made.start} to {protocol.made.stop - 1}"
