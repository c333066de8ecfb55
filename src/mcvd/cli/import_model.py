"""`mcvd import`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mcvd.cli.options import Flag


@dataclass(kw_only=True)
class Command:
    """Converts a published checkpoint (checkpoint_N.pt, with config.yml in the same folder) into a model folder.

    Example: mcvd import logs/checkpoint_700000.pt --output models/kth
    """

    checkpoint: Annotated[Path, Positional, arg(metavar="CHECKPOINT.pt")]
    """The authors' file; no code in it is executed."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: models/EXPERIMENT_STEP)")] = None
    """Folder for config.json and model.safetensors; by default named after EXPERIMENT/logs/checkpoint_STEP.pt."""
    raw: Flag = False
    """Take the raw weights, not the averaged (EMA) ones used for the published results."""
    dtype: Literal["float32", "float16"] = "float32"
    """How weights are stored: 4 or 2 bytes each."""

    def run(self) -> None:
        """Runs the command."""
        import torch

        from mcvd.files import model_name, model_output
        from mcvd.interop.official import import_checkpoint
        from mcvd.saving import CONFIG, WEIGHTS

        folder = model_output(self.output or Path("models") / model_name(self.checkpoint))
        model = import_checkpoint(self.checkpoint, folder, ema=not self.raw, dtype=getattr(torch, self.dtype))
        size = sum((folder / name).stat().st_size for name in (CONFIG, WEIGHTS)) / 1e6
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"wrote {folder} ({parameters:.1f} M parameters, {size:.1f} MB); look at it with: mcvd info {folder}")
