"""The line on a terminal that says how far a command is."""

from __future__ import annotations

import sys
import time

# Often enough to look alive, seldom enough to cost nothing.
_PAUSE_SECONDS = 0.2


class ProgressLine:
    """One line on standard error that is written over, if that is a terminal."""

    def __init__(self) -> None:
        self._next = 0.0 if sys.stderr.isatty() else float("inf")

    def show(self, text: str) -> None:
        """Writes the line again, unless that was a moment ago."""
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _PAUSE_SECONDS
            print(f"\r{text} ", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erases the line."""
        if 0.0 < self._next < float("inf"):
            # To the start of the line, and erase it.
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
