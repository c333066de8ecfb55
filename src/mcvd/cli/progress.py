"""A progress bar on stderr for whatever lasts longer than a second, and lines if stderr is not a terminal.

If nobody can read it any more (a terminal that was closed, a full disk), the work goes on without.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

PATIENCE = 0.5  # s of work, and at least as much still to come, before a bar appears
LINE_EVERY = 30.0  # s between lines when stderr is a file


class ProgressBar:
    """``with ProgressBar("sampling", "steps") as bar: work(progress=bar)``; call it with (done, total)."""

    def __init__(self, what: str, unit: str):
        self.what, self.unit = what, unit
        self.began = self.said = time.monotonic()
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        with _while_it_is_read():
            self._tell(done, total)

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        elapsed = now - self.began
        left = elapsed / max(done, 1) * (total - done)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif not sys.stderr.isatty():
            if now - self.said > LINE_EVERY:
                self.said = now
                print(f"mcvd: {self.what}: {done} of {total} {self.unit}, {left:.0f} s left", file=sys.stderr)
        elif elapsed > PATIENCE and left > PATIENCE:
            self._show(done, total)

    def _show(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        counts = TextColumn(f"{{task.completed:.0f}} of {{task.total:.0f}} {self.unit}, left")
        columns = (TextColumn(self.what), BarColumn(), counts, TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        self.task = self.bar.add_task(self.what, completed=done, total=total)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            with _while_it_is_read():
                self.bar.stop()


@contextlib.contextmanager
def _while_it_is_read() -> Iterator[None]:
    try:
        yield
    except OSError:
        from mcvd.cli.main import drop_output

        drop_output(sys.stderr)
