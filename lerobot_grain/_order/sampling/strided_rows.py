"""Rows with a stride: every s-th frame of an episode, others in the next epoch.

So a dataset of 30 fps is read as one of 10, and all of its frames are used: s epochs are a cycle,
in which every selected row comes once. docs/architecture/order.md, "Stride", defines it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Stream, words_at
from lerobot_grain._order.row_sources import (
    RowSource,
    Runs,
    SteppedRuns,
    cut_into_clips,
    num_clips,
)


@dataclass(frozen=True, slots=True, eq=False)
class Stride:
    """Which rows an epoch has: of each episode the rows j, counted from its first selected one,
    with (j + epoch + phase) % step == 0.

    Attributes:
      step: >= 1.
      phases: int64 `(episodes,)`, of each selected episode, 0 <= phase < step.
    """

    step: int
    phases: Integers

    @classmethod
    def of(cls, step: int, numbers: Integers, *, first_frame: int, seed: int | None) -> Stride:
        """Returns the stride of a stream.

        Args:
          step: of the frames that come in one epoch.
          numbers: int64 `(episodes,)`, of the selected episodes.
          first_frame: the first selected one of every episode.
          seed: of the order; `None`: it is sequential, and all episodes have one phase.
        """
        if seed is None:
            drawn = np.zeros(len(numbers), np.int64)
        else:
            words = words_at(np.zeros_like(numbers), Stream.STRIDE, seed=seed, blocks=numbers)
            drawn = (words % np.uint64(step)).astype(np.int64)
        return cls(step, (drawn + first_frame) % step)


class StridedRows(RowSource):
    """The rows of every epoch of a stride.

    Args:
      first_rows, lengths, clip_length: as of `EveryRow`.
      stride: its step is at most the length of the longest episode.
    """

    def __init__(
        self, first_rows: Integers, lengths: Integers, *, stride: Stride, clip_length: int | None
    ) -> None:
        assert stride.step <= lengths.max()
        self.num_rows = int(lengths.sum())
        self.num_epochs = stride.step
        self._first_rows = first_rows
        self._lengths = lengths
        self._stride = stride
        self._clip_length = clip_length
        # The position in a cycle at which each of its epochs begins, and its end.
        self._starts = np.concatenate(([0], np.cumsum(_rows_of_epochs(lengths, stride))))

    def runs(self, epoch: int) -> Runs:
        step = self._stride.step
        clip_first, clip_lengths, episodes = cut_into_clips(
            self._first_rows, self._lengths, self._clip_length
        )
        starts = clip_first - self._first_rows[episodes]
        to_first = (-(starts + epoch % step + self._stride.phases[episodes])) % step
        lengths = -((to_first - clip_lengths) // step)
        # A clip that is shorter than the stride has none in most epochs.
        kept = np.flatnonzero(lengths > 0)
        return SteppedRuns((clip_first + to_first)[kept], lengths[kept], episodes[kept], step=step)

    def start_of(self, epoch: int) -> int:
        cycle, number = divmod(epoch, self.num_epochs)
        return cycle * self.num_rows + int(self._starts[number])

    def places_of(self, positions: Integers) -> tuple[Integers, Integers]:
        cycles, within = np.divmod(positions, self.num_rows)
        numbers = np.searchsorted(self._starts, within, side="right") - 1
        return cycles * self.num_epochs + numbers, within - self._starts[numbers]

    def runs_every_epoch(self) -> Integers:
        return np.minimum(
            num_clips(self._lengths, self._clip_length), self._lengths // self._stride.step
        )


def _rows_of_epochs(lengths: Integers, stride: Stride) -> Integers:
    """Returns int64 `(step,)`: how many rows each epoch of a cycle has."""
    step = stride.step
    whole, rest = np.divmod(lengths, step)
    # The rest of an episode has rows of so many phases that follow each other, each of which comes
    # in another epoch: changes of their number from one phase to the next.
    changes = np.bincount(stride.phases, minlength=2 * step)
    changes -= np.bincount(stride.phases + rest, minlength=2 * step)
    by_phase = np.cumsum(changes)
    by_phase = by_phase[:step] + by_phase[step:]
    found: Integers = int(whole.sum()) + by_phase[-np.arange(step) % step]
    return found
