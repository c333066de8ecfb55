"""`mcvd predict`"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.options import Context, Flag, MaybeCount, Output, Reading, Sampling


@dataclass(kw_only=True)
class Command:
    """Predicts what happens next in a clip: new frames after its end or, with --backward, before its start.

    Example: mcvd predict clip.mp4 --frames 20 --samples 4
    """

    clip: Annotated[Path, Positional, arg(metavar="CLIP")]
    """Video file, gif, webp, folder of images, or npz."""
    frames: Annotated[MaybeCount, arg(help_behavior_hint="(default: one block)")] = None
    """Frames to generate; any number, block by block."""
    backward: Flag = False
    """Generate the frames before the clip instead."""
    context: Context = None
    """Frames from the clip's end (backward: its start) that are given to the model and kept in the output video."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    output: Annotated[Output, arg(name="")] = field(default_factory=Output)
    reading: Annotated[Reading, arg(name="")] = field(default_factory=Reading)

    def run(self) -> None:
        """Runs the command."""
        import torch

        from mcvd.cli.work import context_frames, fill_in, load_model, new_frames, read_clip
        from mcvd.files import stem

        model = load_model(self.sampling)
        clip = read_clip(self.clip, model, self.sampling.model, self.reading)
        seen = model.layout.future if self.backward else model.layout.past
        given = context_frames(clip.video, self.context, seen, end=not self.backward)
        new = given.new_zeros(new_frames(self.frames, model), *given.shape[1:])
        parts = [(given, True), (new, False)]
        if self.backward:
            parts.reverse()
        known = [flag for part, flag in parts for _ in part]
        video = torch.cat([part for part, _ in parts])
        task = "backward" if self.backward else "predict"
        fill_in(model, video, known, f"{stem(self.clip)}-{task}", self.sampling, self.output, clips=[clip])
