"""The rows that come in an epoch, as runs of rows of one episode each.

An epoch of all rows has the same clips every time. If rows are weighted or left out
(`_order/sampling/weighted_rows`), or have a stride (`_order/sampling/strided_rows`), each epoch has
its own. Steps 2 to 5 of the order (`_order/shuffle`) are the same for all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers


class Runs:
    """Rows in runs: those of one clip, or of an episode, ascending.

    Attributes:
      lengths: integers `(runs,)`, rows of each, > 0.
      episodes: int64 `(runs,)`, place of the episode of each among the selected ones.
    """

    lengths: npt.NDArray[np.integer]
    episodes: Integers

    def __len__(self) -> int:
        return len(self.lengths)

    def chosen(self, numbers: Integers) -> Runs:
        """Returns the runs with these numbers, int64 `(n,)`, in that order."""
        raise NotImplementedError

    def rows(self, numbers: Integers, places: Integers) -> Integers:
        """Returns int64 `(n,)`: the row at each place in each run, int64 `(n,)` each."""
        raise NotImplementedError


class SteppedRuns(Runs):
    """Runs whose rows have one distance from each other.

    Args:
      first_rows: int64 `(runs,)`.
      lengths, episodes: as of `Runs`.
      step: the distance; 1: consecutive rows.
    """

    def __init__(
        self,
        first_rows: Integers,
        lengths: npt.NDArray[np.integer],
        episodes: Integers,
        *,
        step: int,
    ) -> None:
        self.lengths = lengths
        self.episodes = episodes
        self._first_rows = first_rows
        self._step = step

    def chosen(self, numbers: Integers) -> SteppedRuns:
        return SteppedRuns(
            self._first_rows[numbers],
            self.lengths[numbers],
            self.episodes[numbers],
            step=self._step,
        )

    def rows(self, numbers: Integers, places: Integers) -> Integers:
        return self._first_rows[numbers] + self._step * places


class RankedRows:
    """The rows of runs, one run after the other: rank -> row."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        # Numbers are added up faster in place than with a change of their dtype.
        self._stops = runs.lengths.astype(np.int64)
        np.cumsum(self._stops, out=self._stops)

    def rows(self, ranks: Integers) -> Integers:
        """Returns int64 `(n,)`: the rows at ranks, int64 `(n,)`."""
        numbers = np.searchsorted(self._stops, ranks, side="right")
        starts = self._stops[numbers] - self._runs.lengths[numbers]
        return self._runs.rows(numbers, ranks - starts)


class RowSource:
    """The rows of every epoch.

    Attributes:
      num_rows: rows of an epoch, or of `num_epochs` epochs together.
      num_epochs: after so many epochs, numbers of rows repeat.
    """

    num_rows: int
    num_epochs: int = 1

    def runs(self, epoch: int) -> Runs:
        """Returns the runs of an epoch, in the order of episodes and rows; those of clips where
        there is a shuffle, which then permutes them.
        """
        raise NotImplementedError

    def start_of(self, epoch: int) -> int:
        """Returns the position at which an epoch begins."""
        return epoch * self.num_rows

    def places_of(self, positions: Integers) -> tuple[Integers, Integers]:
        """Returns of positions the epoch, and the element in it, int64 `(n,)` each."""
        epochs, elements = np.divmod(positions, self.num_rows)
        return epochs, elements

    def runs_every_epoch(self) -> Integers:
        """Returns int64 `(episodes,)`: the number of runs of each that come in every epoch."""
        raise NotImplementedError


class EveryRow(RowSource):
    """All selected rows, each once an epoch.

    Args:
      first_rows: int64 `(episodes,)`, the first selected row of each selected episode.
      lengths: int64 `(episodes,)`, selected rows of each, > 0.
      clip_length: `None`: a run is all of an episode.
    """

    def __init__(self, first_rows: Integers, lengths: Integers, *, clip_length: int | None) -> None:
        self.num_rows = int(lengths.sum())
        self._first_rows = first_rows
        self._lengths = lengths
        self._clip_length = clip_length

    def runs(self, epoch: int) -> Runs:
        del epoch
        return SteppedRuns(
            *cut_into_clips(self._first_rows, self._lengths, self._clip_length), step=1
        )

    def runs_every_epoch(self) -> Integers:
        return num_clips(self._lengths, self._clip_length)


def num_clips(lengths: Integers, clip_length: int | None) -> Integers:
    """Returns int64 `(episodes,)`: into how many clips episodes of these lengths are cut; `None`:
    one each.
    """
    return np.ones_like(lengths) if clip_length is None else -(-lengths // clip_length)


def cut_into_clips(
    first_rows: Integers, lengths: Integers, clip_length: int | None
) -> tuple[Integers, Integers, Integers]:
    """Returns the first row, the length and the number of the episode of every clip, int64
    `(clips,)` each; arguments as of `EveryRow`.
    """
    if clip_length is None:
        return first_rows, lengths, np.arange(len(lengths))
    clips_of = num_clips(lengths, clip_length)
    episodes = np.repeat(np.arange(len(lengths)), clips_of)
    within = np.arange(len(episodes)) - np.repeat(np.cumsum(clips_of) - clips_of, clips_of)
    starts = within * clip_length
    return (
        first_rows[episodes] + starts,
        np.minimum(clip_length, lengths[episodes] - starts),
        episodes,
    )
