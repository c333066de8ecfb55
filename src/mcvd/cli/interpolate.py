"""`mcvd interpolate`"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.options import Context, MaybeCount, Output, Reading, Sampling


@dataclass(kw_only=True)
class Command:
    """Interpolates between two clips: new frames between the end of the first and the start of the second.

    Example: mcvd interpolate before.mp4 after.mp4 --frames 5
    """

    before: Annotated[Path, Positional, arg(metavar="BEFORE")]
    """The clip before the gap: video file, gif, webp, folder of images, or npz."""
    after: Annotated[Path, Positional, arg(metavar="AFTER")]
    """The clip after the gap."""
    frames: Annotated[MaybeCount, arg(help_behavior_hint="(default: one block)")] = None
    """Frames to generate; any number, block by block."""
    context: Context = None
    """Frames of each clip, next to the gap, that are given to the model and kept in the output video."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    output: Annotated[Output, arg(name="")] = field(default_factory=Output)
    reading: Annotated[Reading, arg(name="")] = field(default_factory=Reading)

    def run(self) -> None:
        """Runs the command."""
        import torch

        from mcvd.cli.work import context_frames, fill_in, load_model, new_frames, read_clip
        from mcvd.files import stem

        model = load_model(self.sampling)
        clips = [read_clip(path, model, self.sampling.model, self.reading) for path in (self.before, self.after)]
        past = context_frames(clips[0].video, self.context, model.layout.past, end=True)
        future = context_frames(clips[1].video, self.context, model.layout.future, end=False)
        new = past.new_zeros(new_frames(self.frames, model), *past.shape[1:])
        known = [True] * len(past) + [False] * len(new) + [True] * len(future)
        video = torch.cat([past, new, future])
        fill_in(model, video, known, f"{stem(self.before)}-interpolate", self.sampling, self.output, clips=clips)
