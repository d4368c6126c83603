"""Measures a stream: how fast it is read, what the reader waited for, and how well its order is
mixed. No printing: that is `_cli`.

Rules:
* Reading is measured through `.batch()`, as training reads; what it counts comes from the reader's
  own statistics.
* Randomness is measured on the order alone, a whole epoch of it and no byte read: the few thousand
  rows that are read in some seconds are too few for a correlation. Tests hold that the stream has
  this order.
* Beside each figure of randomness stands what a global shuffle of all frames would give.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._datasets.pipelines import read_statistics
from lerobot_grain._reading.read_statistics import ReadStatistics

Floats = npt.NDArray[np.float64]

# Rows of the order that are looked at: 3 microseconds each, and enough for a correlation to within
# 0.01.
MAX_ORDER_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The examples that a stream returned, and when.

    Attributes:
      batch_size: examples a batch.
      batch_seconds: float64 `(batches,)`, when each batch was there, counted from the first `next`.
      statistics: of the reader, after the last batch.
    """

    batch_size: int
    batch_seconds: Floats
    statistics: ReadStatistics

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
      rows: int64 `(iterations,)`, the row at each iteration.
      num_rows: rows of the whole epoch; more than `len(rows)` where the order was cut off.
      correlation: |Pearson's correlation| of row and iteration: 0 is mixed, 1 is the order of the
        file.
      episodes_per_batch: int64 `(batches,)`, different episodes in each whole batch.
      global_episodes_per_batch: the number expected from a global shuffle of all frames.
      gaps: int64, ascending: iterations between every two consecutive frames of one episode that
        are both among `rows`.
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
            next(iterator)
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
        batch_size=batch_size, batch_seconds=np.array(batch_seconds), statistics=statistics
    )


def measure_randomness(
    dataset: LeRobotIterDataset, *, batch_size: int, max_rows: int
) -> Randomness:
    """Computes the order of the first epoch, up to `max_rows`, and how well it is mixed.

    Reads nothing.
    """
    table = dataset.repository.episodes
    order = FrameOrderIterDataset(dataset.repository, shuffle=dataset.shuffle, num_epochs=1)
    rows = np.fromiter(islice(iter(order), max_rows), np.int64)
    episodes = np.searchsorted(table.first_rows, rows, side="right") - 1
    gaps = consecutive_gaps(rows, table.first_rows)
    num_batches = len(rows) // batch_size
    batches = np.sort(episodes[: num_batches * batch_size].reshape(num_batches, batch_size), axis=1)
    return Randomness(
        rows=rows,
        num_rows=table.num_rows,
        # Undefined for a single row.
        correlation=abs(float(np.corrcoef(rows, np.arange(len(rows)))[0, 1]))
        if len(rows) > 1
        else 1.0,
        episodes_per_batch=1 + (np.diff(batches, axis=1) > 0).sum(axis=1),
        global_episodes_per_batch=expected_episodes(table.lengths, min(batch_size, table.num_rows)),
        gaps=gaps,
        gap_histogram=np.bincount(np.log2(gaps).astype(np.int64))
        if len(gaps)
        else np.zeros(0, np.int64),
    )


def consecutive_gaps(rows: Integers, first_rows: Integers) -> Integers:
    """Returns the iterations between every two consecutive rows of one episode, ascending.

    Args:
      rows: int64 `(iterations,)`, the row at each iteration, no row twice.
      first_rows: int64 `(episodes,)`, ascending, row of the first frame of each episode.
    """
    by_row = np.argsort(rows)
    ascending = rows[by_row]
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
