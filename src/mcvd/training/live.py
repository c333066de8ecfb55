"""A table in the terminal that is updated during a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

COLUMNS = {  # of the table, by name of the value
    "loss": ("loss", "{:.4g}"),
    "error": ("error", "{:.4f}"),
    "validation": ("validation", "{:.4f}"),
    "steps_per_second": ("it/s", "{:.3g}"),
    "clips_per_second": ("samples/s", "{:.4g}"),
    "memory_gb": ("memory", "{:.2f} GB"),
    "mfu": ("MFU", "{:.1%}"),
}


class LiveTable:
    """One line of the newest values; messages are printed above it.

    If the terminal has gone, nothing is shown any more: the run goes on, or has yet to be saved.
    """

    def __init__(self, steps: int, console: Console | None = None):
        self.steps, self.shown = steps, dict.fromkeys(COLUMNS, "")
        self.step, self.left = 0, "?"
        self.gone = False
        self.live = Live(self._table(), console=console, refresh_per_second=2)
        self.live.start()

    def update(self, step: int, values: Mapping[str, float], left: str) -> None:
        """Shows the values that have a column; columns without a new value stay as they were."""
        self.step, self.left = step, left
        for name, (_, style) in COLUMNS.items():
            if name in values:
                self.shown[name] = style.format(values[name])
        self._show(lambda: self.live.update(self._table(), refresh=True))

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._show(lambda: self.live.console.print(text, markup=False, highlight=False))

    def close(self) -> None:
        """Stops updating; the table stays in the terminal."""
        self._show(self.live.stop)

    def _show(self, show: Callable[[], None]) -> None:
        if self.gone:
            return
        try:
            show()
        except OSError:
            self.gone = True
            with contextlib.suppress(OSError):
                self.live.stop()  # which gives stdout back

    def _table(self) -> Table:
        table = Table("step", *[head for head, _ in COLUMNS.values()], "left")
        table.add_row(f"{self.step}/{self.steps}", *self.shown.values(), self.left)
        return table
