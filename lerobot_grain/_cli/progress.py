"""The line on a terminal that says how far a command is."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

# Often enough to look alive, seldom enough to cost nothing.
_PAUSE_SECONDS = 0.2


class ProgressLine:
    """One line on standard error that is written over, if that is a terminal.

    It is drawn when it is shown, and not by a thread, so that none is left when the command ends.
    As a context manager it is erased at the end.
    """

    def __init__(self) -> None:
        self._next = 0.0 if sys.stderr.isatty() else float("inf")
        self._drawn: tuple[Progress, TaskID] | None = None

    def show(self, text: str, *, share: float | None = None) -> None:
        """Writes the line again, unless that was a moment ago.

        Args:
          text: says how far the command is.
          share: of the work that is done, for a bar; `None`: not known.
        """
        if time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + _PAUSE_SECONDS
        if self._drawn is None:
            self._drawn = _started(has_bar=share is not None)
        progress, task = self._drawn
        # A width that changes with every figure would let the bar jump.
        progress.update(task, description=text.ljust(24), completed=share or 0.0)
        progress.refresh()

    def show_files(self, done: int, total: int) -> None:
        """Writes how many files have been looked at."""
        self.show(f"{done:,} of {total:,} files", share=done / total)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn[0].stop()
            self._drawn = None


def _started(*, has_bar: bool) -> tuple[Progress, TaskID]:
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    if has_bar:
        columns += [BarColumn(bar_width=24), TimeRemainingColumn()]
    progress = Progress(
        *columns, console=Console(file=sys.stderr), auto_refresh=False, transient=True
    )
    task = progress.add_task("", total=1.0)
    progress.start()
    return progress, task
