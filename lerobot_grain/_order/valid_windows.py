"""Windows that hold valid rows only.

If a window would reach a row that is not valid, it holds the nearest valid one on the way from
there to the row of the example, and is marked in its mask: the same that happens at the ends of an
episode. Rows farther away that are valid again are reached.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers, short_hash
from lerobot_grain._order.windows import Mask, WindowBlock


class ValidRuns:
    """The valid rows of a dataset, as runs.

    Args:
      is_valid: bool `(rows,)`.
    """

    def __init__(self, is_valid: npt.NDArray[np.bool_]) -> None:
        changes = np.flatnonzero(np.diff(is_valid.astype(np.int8), prepend=0, append=0))
        self._starts = changes[0::2]
        # A run before all rows, whose end is -1, and one after them.
        self._lasts = np.concatenate(([-1], changes[1::2] - 1))
        self._nexts = np.concatenate((self._starts, [len(is_valid)]))
        # Valid rows before the end of each run.
        self._counts = np.concatenate(([0], np.cumsum(self._lasts[1:] + 1 - self._starts)))

    @property
    def definition(self) -> str:
        """A hash of the rows, the same on every machine."""
        return short_hash(self._starts, self._lasts, self._nexts)

    def numbers_of(self, rows: Integers) -> Integers:
        """Returns how many valid rows are before each row, int64 `(n,)`: of a valid row, its number
        among them.
        """
        runs = np.searchsorted(self._starts, rows, side="right")
        return self._counts[runs] - np.maximum(0, self._lasts[runs] + 1 - rows)

    def rows_of(self, numbers: Integers) -> Integers:
        """Returns the valid rows with numbers, int64 `(n,)`, which exist."""
        runs = np.searchsorted(self._counts, numbers, side="right") - 1
        return self._starts[runs] + (numbers - self._counts[runs])

    def last_before(self, rows: Integers) -> Integers:
        """Returns the last valid row before each row, int64 `(n,)`; -1: there is none."""
        runs = np.searchsorted(self._starts, rows, side="left")
        return np.minimum(self._lasts[runs], rows - 1)

    def padded(self, block: WindowBlock, first_rows: Integers) -> WindowBlock:
        """Returns a block whose windows hold valid rows only.

        Args:
          block: windows inside of their episodes.
          first_rows: int64 `(examples,)`, row of frame 0 of the episode of each.
        """
        done: dict[int, tuple[Integers, Mask]] = {}
        for key, window in block.frames.items():
            # Features with equal windows share them.
            if id(window) not in done:
                anchors = block.anchor_frames[:, None]
                done[id(window)] = self._window(
                    window, block.is_pad[key], anchors, first_rows[:, None]
                )
        found = {key: done[id(window)] for key, window in block.frames.items()}
        return replace(
            block,
            frames={key: frames for key, (frames, _) in found.items()},
            is_pad={key: is_pad for key, (_, is_pad) in found.items()},
        )

    def _window(
        self, frames: Integers, is_pad: Mask, anchors: Integers, first_rows: Integers
    ) -> tuple[Integers, Mask]:
        rows = first_rows + frames
        runs = np.searchsorted(self._starts, rows, side="right")
        is_valid = rows <= self._lasts[runs]
        # Never beyond the example's own row, which need not be valid itself.
        back = np.maximum(self._lasts[runs] - first_rows, anchors)
        forth = np.minimum(self._nexts[runs] - first_rows, anchors)
        moved = np.where(is_valid, frames, np.where(frames >= anchors, back, forth))
        return moved, is_pad | ~is_valid
