"""`mcvd guide`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.options import Number


@dataclass(kw_only=True)
class Command:
    """Makes samples better: sampling moves away from what a weaker model says (autoguidance).

    The weaker model is a small one, trained for minutes by the same recipe with fewer weights, such as --set
    model.network.width=8 --set model.network.head_channels=8.

    Example: mcvd guide runs/mine runs/weak --output models/mine
    """

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """The model: a bundled name, a folder, or owner/name."""
    weaker: Annotated[str, Positional, arg(metavar="WEAKER")]
    """The weaker model, of the same frames and tasks."""
    output: Annotated[Path, arg(metavar="FOLDER")]
    """Folder for the model with its guide: config.json and model.safetensors."""
    scale: Number = 1.5
    """The network's output becomes guide + scale * (output - guide); 1 is the model itself, and larger values give
    clearer but less varied videos."""
    noise: Number = 0.95
    """The guide acts where the noise's standard deviation, from 0 to 1, is at least this: where it is decided what the
    frames show."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.errors import McvdError
        from mcvd.files import expanded, model_output
        from mcvd.guide import guided
        from mcvd.interop.load import load

        output = model_output(self.output)
        if output.resolve() == expanded(self.weaker).resolve():
            raise McvdError(f"{output} is the weaker model, which would be lost; choose another --output")
        made = guided(load(self.model, device="cpu"), load(self.weaker, device="cpu"), self.scale, self.noise)
        folder = made.save(output)
        print(
            f"wrote {folder}; name it as --model, or see what the guide changes: mcvd evaluate {folder} --protocol ..."
        )
