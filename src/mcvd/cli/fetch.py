"""`mcvd fetch`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(kw_only=True)
class Command:
    """Brings data that training needs, and checks it: mnist (12 MB), for the moving digits.

    Example: mcvd fetch mnist
    """

    what: Annotated[Literal["mnist"], Positional, arg(metavar="mnist")]
    """What to bring."""
    source: Annotated[str | None, arg(metavar="PLACE", help_behavior_hint="(default: the public mirrors)")] = None
    """Folder that holds the files, or URL that they lie under."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: in the cache)")] = None
    """Where to put them; commands find them in the cache by themselves."""

    def run(self) -> None:
        """Does it."""
        from mcvd.cli.progress import ProgressBar
        from mcvd.data.fetch import fetch_mnist

        with ProgressBar("fetching", "bytes") as bar:
            folder = fetch_mnist(self.output, self.source, lambda name, done, total: bar(done, total or done))
        print(f"{self.what} is in {folder}")
