"""`mcvd compare`"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mcvd.cli.options import Flag


@dataclass(kw_only=True)
class Command:
    """Evaluations side by side: numbers with their 95 % intervals, and paired differences between systems evaluated on
    the same clips. Numbers measured differently do not share a column, unless --mixed is given.

    Example: mcvd compare results/ours results/theirs --published
    """

    folders: Annotated[tuple[Path, ...], Positional, arg(metavar="FOLDER...", help_behavior_hint="")]
    """Folders written by mcvd evaluate or score, or their result.json; all are compared with the first."""
    mixed: Flag = False
    """Let numbers under different protocols share a column; differences are marked, and none is called best."""
    published: Flag = False
    """Add published values for the benchmark of the first folder, each with its source and protocol."""
    format: Literal["md", "csv", "json"] = "md"
    """Markdown for reading, csv for spreadsheets, json with everything."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.reports.compare import compare, to_csv, to_json, to_markdown
        from mcvd.text import printable

        comparison = compare(self.folders, mixed=self.mixed, with_published=self.published)
        if self.format == "md":
            print(printable(to_markdown(comparison)))
            return
        for note in comparison.notes:
            print(f"mcvd: note: {note}", file=sys.stderr)
        sys.stdout.write(printable(to_csv(comparison)) if self.format == "csv" else to_json(comparison))
