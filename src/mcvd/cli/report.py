"""`mcvd report`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(kw_only=True)
class Command:
    """Writes the report of an evaluation again, from the contents of its folder: report.html, one self-contained file
    (at most about 35 MB) to open in a browser or send, and report.md with report_files/.

    Example: mcvd report results/ours
    """

    folder: Annotated[Path, Positional, arg(metavar="FOLDER")]
    """Folder written by mcvd evaluate or score. Existing reports in it are replaced."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.reports.report import write_report
        from mcvd.text import printable

        for path in write_report(self.folder):
            print(printable(f"wrote {path}"))
