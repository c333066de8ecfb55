"""`mcvd generate`"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from mcvd.cli.options import MaybeCount, Output, Sampling


@dataclass(kw_only=True)
class Command:
    """Generates new videos unconditionally.

    Example: mcvd generate --frames 30 --samples 16
    """

    frames: Annotated[MaybeCount, arg(help_behavior_hint="(default: one block)")] = None
    """Frames per video; any number, generated block by block."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    output: Annotated[Output, arg(name="")] = field(default_factory=Output)

    def run(self) -> None:
        """Runs the command."""
        import torch

        from mcvd.cli.work import fill_in, load_model, new_frames

        model = load_model(self.sampling)
        frames = new_frames(self.frames, model)
        video = torch.zeros(frames, model.channels, *model.size)
        fill_in(model, video, [False] * frames, "generate", self.sampling, self.output)
