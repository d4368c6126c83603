"""Puts the pieces of batches that workers read into the order of the stream.

Example k of n workers is that of worker k % n. A round is one piece of each worker: its examples
interleave, and whatever number of them is taken becomes one batch.

Rules:
* A round whose worker has ended or failed is handed out up to that worker's next example. Only then
  comes the end, or the error.
* What is handed out lies in memory of its own: the shared memory of a piece goes with its round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._datasets.feed.worker_stream import Piece
from lerobot_grain._reading.batches import Batch, check_same_shapes, num_examples


class _Run(NamedTuple):
    """Examples of a part of a piece, and where they go in the batch."""

    part: Batch
    examples: slice
    places: slice


class Rounds:
    """The examples of all workers, from a position on.

    Args:
      pieces: of all workers in turn.
      num_workers: how many there are, at least 1.
      first: position of the first example.
      step: positions from one example to the next.
      arrays: memory of batches.
    """

    def __init__(
        self,
        pieces: Iterator[Piece],
        *,
        num_workers: int,
        first: int,
        step: int,
        arrays: ArrayPool,
    ) -> None:
        self._pieces = pieces
        self._num_workers = num_workers
        self._first = first
        self._step = step
        self._arrays = arrays
        self._round: list[Piece] = []
        self._length = self._taken = 0  # examples of the round
        self._end: Exception | None = None

    def take(self, count: int) -> Batch:
        """Returns the next `count` examples, or all that are left; strings as lists.

        Raises:
          StopIteration: there are none. Any other error: one of them could not be read.
        """
        runs: list[_Run] = []
        found = 0
        while found < count:
            if self._taken == self._length:
                try:
                    self._next_round()
                except StopIteration:
                    if found:
                        break
                    raise
            now = min(count - found, self._length - self._taken)
            runs += self._runs(now, found)
            self._taken += now
            found += now
        return _joined(runs, found, self._arrays)

    def _next_round(self) -> None:
        if self._end is not None:
            raise self._end
        self._first += self._length * self._step
        self._round = []
        self._length = self._taken = 0
        while len(self._round) < self._num_workers:
            try:
                piece = next(self._pieces)
            except Exception as error:  # also StopIteration
                self._end = error
                break
            expected = self._first + len(self._round) * self._step
            assert piece.first == expected, "pieces come in the order of the workers"
            self._round.append(piece)
        lengths = [piece.num_examples for piece in self._round]
        errors = [piece.error for piece in self._round]
        if self._end is not None:
            lengths.append(0)
            errors.append(self._end)
        # Up to the first example that is not there.
        self._length, worker = min(
            (length * self._num_workers + worker, worker) for worker, length in enumerate(lengths)
        )
        if errors[worker] is not None:
            self._end = errors[worker]
        elif len(set(lengths)) > 1:
            self._end = self._last_error()
        if self._length == 0:
            assert self._end is not None
            raise self._end

    def _last_error(self) -> Exception:
        """Returns what a stream ends with of which a worker had less than another; pieces that
        come before are not needed.
        """
        while True:
            try:
                next(self._pieces)
            except Exception as error:
                return error

    def _runs(self, count: int, place: int) -> list[_Run]:
        """Returns the next `count` examples of the round, the first one to be put at `place`."""
        found: list[_Run] = []
        n = self._num_workers
        for worker, piece in enumerate(self._round):
            # Of its examples: those that come at `taken` or later, and before `taken` + `count`.
            begin = -(-max(0, self._taken - worker) // n)
            stop = -(-max(0, self._taken + count - worker) // n)
            offset = 0
            for part in piece.parts:
                length = num_examples(part)
                low = max(begin, offset)
                high = min(stop, offset + length)
                if low < high:
                    at = place + low * n + worker - self._taken
                    found.append(
                        _Run(
                            part,
                            slice(low - offset, high - offset),
                            slice(at, at + (high - low - 1) * n + 1, n),
                        )
                    )
                offset += length
        return found


def _joined(runs: Sequence[_Run], count: int, arrays: ArrayPool) -> Batch:
    """Returns the examples of all runs, each at its place."""
    check_same_shapes([run.part for run in runs])
    return {key: _joined_key(key, runs, count, arrays) for key in runs[0].part}


def _joined_key(key: str, runs: Sequence[_Run], count: int, arrays: ArrayPool) -> Any:
    first = runs[0].part[key]
    out: Any
    if not isinstance(first, np.ndarray):
        out = [None] * count
    elif first.dtype.hasobject:
        out = np.empty((count, *first.shape[1:]), first.dtype)
    else:
        out = arrays.empty(key, (count, *first.shape[1:]), first.dtype)
    for part, examples, places in runs:
        out[places] = part[key][examples]
    return out
