"""`mcvd guide`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.options import Number


@dataclass(kw_only=True)
class Command:
    """Makes unconditional generation better: sampling moves away from what a weaker model says (autoguidance).

    The weaker model is a small one, trained for minutes on the same data with --set model.network.layout.past=0 --set
    model.network.layout.future=0.

    Example: mcvd guide runs/mine runs/weak --output models/mine
    """

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """The model: a bundled name, a folder, or owner/name."""
    weaker: Annotated[str, Positional, arg(metavar="WEAKER")]
    """The weaker model, whose layout has past 0 and future 0."""
    output: Annotated[Path, arg(metavar="FOLDER")]
    """Folder for the model with its guide: config.json and model.safetensors."""
    scale: Number = 2.0
    """The network's output becomes guide + scale * (output - guide); 1 is the model itself, and larger values give
    clearer but less varied videos."""
    noise: Number = 0.95
    """The guide acts where the noise's standard deviation, from 0 to 1, is at least this: where it is decided what the
    frames show."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.files import expanded
        from mcvd.guide import guided
        from mcvd.interop.load import load

        made = guided(load(self.model, device="cpu"), load(self.weaker, device="cpu"), self.scale, self.noise)
        folder = made.save(expanded(self.output))
        print(f"wrote {folder}; look at it with: mcvd generate --model {folder} --samples 8")
