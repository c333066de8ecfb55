"""A result as lines: for the terminal, and as Markdown ready for a paper."""

from __future__ import annotations

from mcvd.evaluation.result import Result
from mcvd.evaluation.wording import TITLES, order, value_text
from mcvd.text import counted, plain


def how_sampled(result: Result) -> str:
    """The system in words: ``digits, dpm++ 20 steps, guidance 2``."""
    system = result.system
    parts = [system.name]
    if system.solver:
        parts.append(f"{system.solver} {counted(system.steps, 'step')}")
    if system.guidance != 1:
        parts.append(f"guidance {system.guidance:g}")
    if system.reference:
        parts.append("as the published sampler")
    if system.precision != "fp32":
        parts.append(system.precision)
    if system.engine != "torch":
        parts.append(f"engine {system.engine}")
    return ", ".join(parts)


def shortfalls(result: Result) -> list[str]:
    """What a reader must know about the counts: less was measured than the protocol asks for, or clips repeat."""
    protocol, notes = result.protocol, []
    if not result.complete:
        clips, samples = counted(protocol.clips, "clip"), counted(protocol.samples, "sample")
        notes.append(f"incomplete: {result.clips} of {clips}, {result.samples} of {samples}")
    if repeats := repeated(result):
        notes.append(repeats)
    return notes


def repeated(result: Result) -> str:
    """A note that clips repeat, because the data hold fewer than requested; empty if they do not."""
    if result.different is None or result.different >= result.clips:
        return ""
    few = f"only {result.different} of {counted(result.clips, 'clip')} are distinct, as the data hold no more"
    known = result.sources and len(set(result.sources)) <= result.different  # then intervals count a repeat as none
    return few if known else f"{few}: the intervals are too narrow"


def markdown(result: Result) -> str:
    """A table of one row with its protocol below, ready for a paper."""
    names = [name for name in order(result.protocol) if name in result.numbers]
    head = " | ".join(TITLES[name] for name in names)
    cells = " | ".join(value_text(name, result.numbers[name]) for name in names)
    intervals = sorted({number.interval for number in result.numbers.values() if number.interval})
    protocol = result.protocol
    measured = "".join(f" {note[0].upper()}{note[1:]}." for note in shortfalls(result))
    lines = [
        f"| | {head} |",
        "|---" * (len(names) + 1) + "|",
        f"| {plain(how_sampled(result))} | {cells} |",
        "",
        f"Protocol {plain(protocol.name)}: {plain(result.words)}{measured}"
        + (f" In brackets 95 % intervals: {'; '.join(intervals)}." if intervals else "")
        + f" Real clips {result.data[:12]}"
        + (f" from {counted(result.videos, 'video')}" if result.videos else "")
        + (f", weights {result.system.weights[:12]}" if result.system.weights else "")
        + "".join(f", {name} {value[:12]}" for name, value in sorted(result.networks.items()))
        + f" (sha256); mcvd {result.system.version}"
        + (f", seed {result.system.seed}" if result.system.solver else "")  # scored videos: nothing was drawn
        + f", {result.date}.",
    ]
    return "\n".join(lines) + "\n"


def lines(result: Result) -> list[str]:
    """For a terminal."""
    out = [f"{how_sampled(result)}, protocol {result.protocol.name}", result.words]
    out += shortfalls(result)
    for name in order(result.protocol):
        if name in result.numbers:
            number = result.numbers[name]
            how = f" ({number.of}{'; ' + number.interval if number.interval else ''})"
            out.append(f"{TITLES[name]:<26} {value_text(name, number)}{how}")
    return out
