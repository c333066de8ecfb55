"""`mcvd fill`"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.options import MaybeCount, Output, Reading, Sampling
from mcvd.errors import McvdError

_KNOWN_HELP = (
    "Frames that are given, counted from 0, ranges inclusive: 0-4,15-19. The clip's other frames are not shown to the "
    "model, but appear on the contact sheet for comparison."
)


@dataclass(kw_only=True)
class Command:
    """Fills in any missing frames of a clip: known frames are kept, all others are generated.

    Example: mcvd fill clip.mp4 --known 0-4,15-19
    """

    clip: Annotated[Path, Positional, arg(metavar="CLIP")]
    """Video file, gif, webp, folder of images, or npz."""
    known: Annotated[str, arg(metavar="RANGES", help=_KNOWN_HELP)]
    length: Annotated[MaybeCount, arg(help_behavior_hint="(default: the clip's)")] = None
    """Frames in the output video; may exceed the clip's."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    output: Annotated[Output, arg(name="")] = field(default_factory=Output)
    reading: Annotated[Reading, arg(name="")] = field(default_factory=Reading)

    def run(self) -> None:
        """Runs the command."""
        from mcvd.cli.work import fill_in, load_model, read_clip
        from mcvd.files import stem
        from mcvd.given import MOST_FRAMES, whole

        ranges = parse_ranges(self.known)
        model = load_model(self.sampling)
        clip = read_clip(self.clip, model, self.sampling.model, self.reading)
        length = whole("--length", self.length or len(clip.video), 1, MOST_FRAMES)
        known = known_mask(ranges, length, min(length, len(clip.video)))
        real = clip.video[:length]
        video = real.new_zeros(length, *real.shape[1:])
        video[: len(real)] = real
        name = f"{stem(self.clip)}-fill"
        fill_in(model, video, known, name, self.sampling, self.output, clips=[clip], truth=real)


def parse_ranges(text: str) -> list[range]:
    """``0-4,15`` -> [range(0, 5), range(15, 16)]; raises McvdError for anything else."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise McvdError(f"--known: {part.strip()!r} is neither a frame nor a range; write it like 0-4,15-19")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise McvdError(f"--known: {part.strip()} ends before it starts; did you mean {last}-{first}?")
        ranges.append(range(first, last + 1))
    return ranges


def known_mask(ranges: list[range], length: int, there: int) -> list[bool]:
    """A flag for each of `length` frames; raises McvdError for a known frame beyond the clip's `there` frames."""
    last = max(part[-1] for part in ranges)
    if last >= there:
        raise McvdError(f"--known names frame {last}, but the clip has only frames 0-{there - 1}")
    known = [any(i in part for part in ranges) for i in range(length)]
    if all(known):
        raise McvdError(
            "every frame is known, so none is left to generate; leave some out of --known, or give --length"
        )
    return known
