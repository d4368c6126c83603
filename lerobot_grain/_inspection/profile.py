"""Measures a stream: how fast it is read, what the reader waited for, and how well its order is
mixed. No printing: that is `_cli`.

Rules:
* Reading is measured through `.batch()`, as training reads; what it counts comes from the reader's
  own statistics.
* Randomness is measured on the order alone, a whole epoch of it and no byte read: the few thousand
  rows that are read in some seconds are too few for a correlation. Tests hold that the stream has
  this order.
* With each figure of randomness comes what a global shuffle of the rows of an epoch would give.
* With weights or rows that are not valid, how often rows come is counted, on the order alone, too,
  and comes with how often they are to come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._datasets.pipelines import only_source_under, read_statistics
from lerobot_grain._datasets.sampling.selected_rows import SelectedRows
from lerobot_grain._order.row_sources import cut_into_clips
from lerobot_grain._order.sampling.weights import UNIT
from lerobot_grain._reading.read_statistics import ReadStatistics

Floats = npt.NDArray[np.float64]

# Rows of the order that are looked at: 3 microseconds each, and enough for a correlation to within
# 0.01.
MAX_ORDER_ROWS = 1 << 18
# Rows of the order that are counted by weight, and rounds of it: enough for shares to within a
# percent, in some seconds.
MAX_COUNTED_ROWS = 1 << 21
MAX_COUNTED_EPOCHS = 100
# Up to so many weights are shown one by one.
_MOST_WEIGHTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The examples that a stream returned, and when.

    Attributes:
      batch_size: examples a batch.
      batch_seconds: float64 `(batches,)`, when each batch was there, counted from the first `next`.
      statistics: of the reader, after the last batch.
      last_batch: as the stream gave it.
    """

    batch_size: int
    batch_seconds: Floats
    statistics: ReadStatistics
    last_batch: Mapping[str, Any]

    @property
    def num_examples(self) -> int:
        return len(self.batch_seconds) * self.batch_size

    @property
    def seconds(self) -> float:
        return float(self.batch_seconds[-1])

    @property
    def examples_per_second(self) -> float:
        return self.num_examples / self.seconds

    @property
    def steady_examples_per_second(self) -> float | None:
        """Without the first batch and the time to it; `None` where there is no other."""
        if len(self.batch_seconds) == 1:
            return None
        return (self.num_examples - self.batch_size) / float(
            self.batch_seconds[-1] - self.batch_seconds[0]
        )

    @property
    def other_seconds(self) -> float:
        """Time in which nothing was waited for: planning, assembling and batching in the consumer's
        thread.
        """
        return max(
            0.0,
            self.seconds
            - self.statistics.waited_for_fetch_seconds
            - self.statistics.waited_for_decode_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomness:
    """How well the beginning of an order is mixed.

    Attributes:
      rows: int64 `(iterations,)`, the row at each iteration. With weights, rows may come again.
      num_rows: rows of the whole epoch; more than `len(rows)` where the order was cut off.
      correlation: |Pearson's correlation| of row and iteration: 0 is mixed, 1 is the order of the
        file.
      episodes_per_batch: int64 `(batches,)`, different episodes in each whole batch.
      global_episodes_per_batch: the number expected from a global shuffle of the rows of an epoch.
      gaps: int64, ascending: iterations between every two consecutive frames of one episode that
        are both among `rows`, the first time that each comes.
      gap_histogram: int64 `(bins,)`: bin k counts gaps in `[2**k, 2**(k + 1))`.
    """

    rows: Integers
    num_rows: int
    correlation: float
    episodes_per_batch: Integers
    global_episodes_per_batch: float
    gaps: Integers
    gap_histogram: Integers

    @property
    def median_gap(self) -> float | None:
        return float(np.median(self.gaps)) if len(self.gaps) else None

    @property
    def global_median_gap(self) -> float:
        """The median of the distance of two of `rows` in a random permutation of them: a share 1 -
        sqrt(1/2).
        """
        return len(self.rows) * (1 - math.sqrt(0.5))


def measure_reading(
    dataset: LeRobotIterDataset,
    *,
    batch_size: int,
    max_batches: int | None,
    max_seconds: float | None,
    on_batch: Callable[[int, float], None],
) -> Reading:
    """Reads batches, one at least, until a limit is reached.

    Args:
      dataset: an endless stream.
      batch_size: examples a batch.
      max_batches, max_seconds: the limits; at least one is given.
      on_batch: called after each batch with the examples and the seconds so far.

    Raises:
      LeRobotGrainError: as the stream raises it.
    """
    assert max_batches is not None or max_seconds is not None
    batch_seconds: list[float] = []
    iterator = iter(dataset.batch(batch_size))
    try:
        start = time.perf_counter()
        while True:
            batch = next(iterator)
            batch_seconds.append(time.perf_counter() - start)
            on_batch(len(batch_seconds) * batch_size, batch_seconds[-1])
            if max_batches is not None and len(batch_seconds) >= max_batches:
                break
            if max_seconds is not None and batch_seconds[-1] >= max_seconds:
                break
        statistics = read_statistics(iterator)
    finally:
        iterator.close()
    return Reading(
        batch_size=batch_size,
        batch_seconds=np.array(batch_seconds),
        statistics=statistics,
        last_batch=batch,
    )


def measure_randomness(
    dataset: LeRobotIterDataset, *, batch_size: int, max_rows: int
) -> Randomness:
    """Computes the order of the first epoch, up to `max_rows`, and how well it is mixed.

    Reads nothing.
    """
    table = dataset.repository.episodes
    source = _source_of(dataset)
    num_rows = source.order.rows.start_of(1)
    rows = source.order.rows.epoch(0).rows(np.arange(min(num_rows, max_rows)))
    episodes = np.searchsorted(table.first_rows, rows, side="right") - 1
    gaps = consecutive_gaps(rows, table.first_rows)
    num_batches = len(rows) // batch_size
    batches = np.sort(episodes[: num_batches * batch_size].reshape(num_batches, batch_size), axis=1)
    return Randomness(
        rows=rows,
        num_rows=num_rows,
        # Undefined for a single row.
        correlation=abs(float(np.corrcoef(rows, np.arange(len(rows)))[0, 1]))
        if len(rows) > 1
        else 1.0,
        episodes_per_batch=1 + (np.diff(batches, axis=1) > 0).sum(axis=1),
        global_episodes_per_batch=_global_episodes(source, batch_size),
        gaps=gaps,
        gap_histogram=np.bincount(np.log2(gaps).astype(np.int64))
        if len(gaps)
        else np.zeros(0, np.int64),
    )


def _source_of(dataset: LeRobotIterDataset) -> FrameOrderIterDataset:
    found = only_source_under(dataset, asked_by="measure")
    assert isinstance(found, FrameOrderIterDataset)
    return found


def _global_episodes(source: FrameOrderIterDataset, batch_size: int) -> float:
    """Returns how many different episodes a batch of a global shuffle has on average."""
    rows = source.selected_rows
    lengths = rows.lengths
    if rows.weights is not None:
        sums = np.repeat(rows.weights.values, rows.weights.lengths) / UNIT
        lengths = np.rint(np.add.reduceat(sums, np.cumsum(lengths) - lengths)).astype(np.int64)
    return expected_episodes(lengths, min(batch_size, int(lengths.sum())))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """Rows of one weight, or of neighboring ones, and how often they came.

    Attributes:
      least, most: how often a row comes in an epoch on average, those of the smallest and of the
        largest weight; 0: never.
      num_rows: of the group.
      expected: how often a row of the group is to come in an epoch, on average.
      found: how often it did.
    """

    least: float
    most: float
    num_rows: int
    expected: float
    found: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequencies:
    """How often rows come, by their weights, and clips.

    Attributes:
      rows_per_epoch: that come in one, each as often as it does.
      num_epochs: that were looked at; less than 1: the beginning of one.
      groups: by weight, ascending, rows that never come first: of each weight, or where there are
        many, ten of about as many rows.
      clips_by_times: float64: how many of the clips with a weight above 0 came 0, 1, 2, ... times
        in an epoch, on average over those that were looked at; a clip comes as often as that of
        its rows that came most often. Empty where no whole epoch was looked at.
      clip_frames_per_row: frames of these clips, each as often as its clip came, by rows that
        came: as many are decoded for a row, at most, where clips are whole GOPs. `None` where
        `clips_by_times` is empty.
    """

    rows_per_epoch: int
    num_epochs: float
    groups: tuple[WeightGroup, ...]
    clips_by_times: Floats
    clip_frames_per_row: float | None


def measure_frequencies(
    dataset: LeRobotIterDataset, *, max_rows: int, max_epochs: int
) -> Frequencies | None:
    """Counts how often rows come in the first epochs; `None` where each comes once an epoch.

    Reads nothing.

    Args:
      max_rows: so many rows of the order are looked at, at most: whole epochs, one at least, or
        the beginning of the first one.
      max_epochs: so many epochs at most.
    """
    source = _source_of(dataset)
    selected = source.selected_rows
    if selected.weights is None:
        return None
    scaled = np.repeat(selected.weights.values, selected.weights.lengths)
    num_rows = source.num_rows
    num_epochs = min(max_epochs, max(1, max_rows // num_rows))
    clips = _ClipCounts(source, scaled)
    found = np.zeros(len(scaled), np.int64)
    for epoch in range(num_epochs):
        rows = source.order.rows.epoch(epoch).rows(np.arange(min(num_rows, max_rows)))
        times = np.bincount(_places_of(selected, rows), minlength=len(scaled))
        found += times
        clips.add(times)
    looked_at = int(found.sum())
    is_whole = looked_at >= num_rows
    return Frequencies(
        rows_per_epoch=num_rows,
        num_epochs=looked_at / num_rows,
        groups=_groups(scaled / UNIT, found * num_rows / looked_at),
        clips_by_times=clips.by_times / num_epochs if is_whole else np.zeros(0),
        clip_frames_per_row=clips.num_frames / looked_at if is_whole else None,
    )


def _places_of(selected: SelectedRows, rows: Integers) -> Integers:
    """Returns int64 `(n,)`: places of rows among the selected ones."""
    episodes = np.searchsorted(selected.first_rows, rows, side="right") - 1
    starts = np.cumsum(selected.lengths) - selected.lengths
    return starts[episodes] + rows - selected.first_rows[episodes]


class _ClipCounts:
    """Counts how often clips come.

    Attributes:
      by_times: int64: how many clips came 0, 1, 2, ... times, summed over epochs.
      num_frames: of the clips that came, each as often as it did.
    """

    def __init__(self, source: FrameOrderIterDataset, scaled: Integers) -> None:
        selected = source.selected_rows
        clip_length = None if source.shuffle is None else source.shuffle.clip_length
        _, lengths, _ = cut_into_clips(selected.first_rows, selected.lengths, clip_length)
        self._lengths = lengths
        self._starts = np.cumsum(lengths) - lengths
        self._comes = np.maximum.reduceat(scaled, self._starts) > 0
        self.by_times = np.zeros(1, np.int64)
        self.num_frames = 0

    def add(self, times: Integers) -> None:
        """Adds an epoch: int64 `(rows,)`, how often each selected row came."""
        of_clips = np.maximum.reduceat(times, self._starts)
        self.num_frames += int((of_clips * self._lengths).sum())
        counted = np.bincount(of_clips[self._comes], minlength=len(self.by_times))
        counted[: len(self.by_times)] += self.by_times
        self.by_times = counted


def _groups(times: Floats, found: Floats) -> tuple[WeightGroup, ...]:
    """Returns rows in groups by weight.

    Args:
      times: float64 `(rows,)`, how often each row is to come in an epoch.
      found: float64 `(rows,)`, how often it did, on average.
    """
    distinct, numbers = np.unique(times, return_inverse=True)
    if len(distinct) > _MOST_WEIGHTS:
        # Rows of one weight stay together.
        counts = np.cumsum(np.bincount(numbers[times > 0], minlength=len(distinct)))
        deciles = np.minimum(10 * (counts - 1) // counts[-1], 9)
        group_of = np.where(distinct > 0, 1 + deciles, 0)[numbers]
    else:
        group_of = numbers
    groups = []
    for group in np.unique(group_of):
        members = group_of == group
        groups.append(
            WeightGroup(
                least=float(times[members].min()),
                most=float(times[members].max()),
                num_rows=int(np.count_nonzero(members)),
                expected=float(times[members].mean()),
                found=float(found[members].mean()),
            )
        )
    return tuple(groups)


def consecutive_gaps(rows: Integers, first_rows: Integers) -> Integers:
    """Returns the iterations between every two consecutive rows of one episode, ascending.

    Args:
      rows: int64 `(iterations,)`, the row at each iteration; of those that come again, the first
        time counts.
      first_rows: int64 `(episodes,)`, ascending, row of the first frame of each episode.
    """
    ascending, by_row = np.unique(rows, return_index=True)
    together = (np.diff(ascending) == 1) & ~np.isin(ascending[1:], first_rows)
    return np.sort(np.abs(np.diff(by_row)[together]))


def expected_episodes(lengths: Integers, batch_size: int) -> float:
    """Returns how many different episodes a batch has on average, when it is drawn from all frames
    without replacement.

    Args:
      lengths: int64 `(episodes,)`, frames of each.
      batch_size: at most their sum.
    """
    total = int(lengths.sum())
    # An episode is missing with the probability C(total - length, batch) / C(total, batch).
    missing = 0.0
    for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
        if total - length >= batch_size:
            missing += int(count) * math.exp(
                _log_choose(total - int(length), batch_size) - _log_choose(total, batch_size)
            )
    return len(lengths) - missing


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
