"""`mcvd score`"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.cli.evaluate import PROTOCOL_HELP, Metrics, Settings, local_device, names, print_protocols, say, show
from mcvd.cli.options import Device, Flag


@dataclass(kw_only=True)
class Command:
    """Computes the metrics of `mcvd evaluate` for any videos, from any source, against real ones.

    A set is a folder of video files, of frame folders or of npz arrays, or one npz or npy file. Generated videos are
    paired with real ones by name (NAME-1, NAME-2 ... are samples of NAME) or, if no name matches, in sorted order.

    Example: mcvd score real/ predictions/ --protocol bair-2to28 --set samples=1
    """

    real: Annotated[Path, Positional, arg(metavar="REAL")]
    """Real clips, at least as long as the protocol's; only their first frames count."""
    made: Annotated[Path, Positional, arg(metavar="FAKE")]
    """Generated videos: whole clips with the given frames in place, or the generated frames alone."""
    protocol: Annotated[str, arg(metavar="NAME", help=PROTOCOL_HELP)]
    set: Settings = field(default_factory=list)
    metrics: Metrics = None
    name: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: from FAKE)")] = ""
    """Name of the system in the result."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/score/NAME-PROTOCOL)")] = (
        None
    )
    """Gets result.json, result.md, rows.safetensors and videos/; a folder of another evaluation is refused."""
    no_videos: Flag = False
    """Do not keep a copy of the clips."""
    device: Device = None
    """cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Runs the command."""
        if self.protocol == "list":
            print_protocols()
            return
        from mcvd.cli.progress import ProgressBar
        from mcvd.device import usable_device
        from mcvd.evaluation.presets import find_protocol
        from mcvd.evaluation.score import score
        from mcvd.files import stem
        from mcvd.text import printable

        protocol = find_protocol(self.protocol, self.set)
        name = printable(self.name or stem(self.made))
        folder = f"{name}-{protocol.name}".replace("/", "-").replace("\\", "-")  # whatever the name, a folder in runs/
        output = self.output or Path("runs") / "score" / folder
        device = usable_device(local_device(self.device))
        with ProgressBar("measuring", "videos") as bar:
            result = score(
                self.real,
                self.made,
                protocol,
                output,
                name=name,
                metrics=names(self.metrics),
                videos=not self.no_videos,
                device=device,
                report=say,
                progress=bar,
            )
        show(result, output)
