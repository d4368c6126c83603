"""Puts the pieces of batches that workers read into the order of the stream.

Example k of n workers is that of worker k % n. A round is one piece of each worker: its examples
interleave, and whatever number of them is taken becomes one batch.

Rules:
* A round whose worker has ended or failed is handed out up to that worker's next example. Only then
  comes the end, or the error.
* Batches that are handed out lie in memory of their own: the shared memory of a piece goes with
  its round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._datasets.feed.packing import unpacked
from lerobot_grain._datasets.feed.worker_stream import Piece
from lerobot_grain._reading.batches import (
    Batch,
    Shapes,
    check_same_shapes,
    num_examples,
    part_of,
    shapes_of,
)


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
        self._round: list[list[Batch]] = []
        self._length = self._taken = 0  # examples of the round
        self._end: Exception | None = None

    def take(self, count: int) -> Batch:
        """Returns the next `count` examples, or all that are left; strings as lists.

        Raises:
          StopIteration: there are none. Any other error: one of them could not be read.
        """
        batch = _NewBatch(count, self._arrays)
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
            self._fill(batch, now, found)
            self._taken += now
            found += now
        return batch.examples(found)

    def close(self) -> None:
        """Lets go of all memory, also where an error that somebody keeps refers to this."""
        self._round = []
        self._end = None

    def _next_round(self) -> None:
        if self._end is not None:
            raise self._end
        self._first += self._length * self._step
        self._round = []
        errors: list[Exception | None] = []
        self._length = self._taken = 0
        while len(self._round) < self._num_workers:
            try:
                piece = next(self._pieces)
            except Exception as error:  # also StopIteration
                self._end = error
                break
            expected = self._first + len(self._round) * self._step
            assert piece.first == expected, "pieces come in the order of the workers"
            self._round.append([unpacked(part) for part in piece.parts])
            errors.append(piece.error)
            del piece  # or the traceback of an error would keep its memory
        lengths = [sum(map(num_examples, parts)) for parts in self._round]
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

    def _fill(self, batch: _NewBatch, count: int, place: int) -> None:
        # Here, so that no variable of `take` keeps a part of this round while the next one comes.
        runs = self._runs(count, place)
        try:
            while runs:
                batch.put(runs.pop(0))
        finally:
            runs.clear()

    def _runs(self, count: int, place: int) -> list[_Run]:
        """Returns the next `count` examples of the round, the first one to be put at `place`."""
        found: list[_Run] = []
        n = self._num_workers
        for worker, parts in enumerate(self._round):
            # Those of its examples that come at `taken` or later, and before `taken` + `count`.
            begin = -(-max(0, self._taken - worker) // n)
            stop = -(-max(0, self._taken + count - worker) // n)
            offset = 0
            for part in parts:
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


class _NewBatch:
    """A batch that is being put together, in memory of its own."""

    def __init__(self, count: int, arrays: ArrayPool) -> None:
        self._count = count
        self._arrays = arrays
        self._values: Batch = {}
        self._shapes: Shapes = {}

    def put(self, run: _Run) -> None:
        """Copies examples to their places.

        Raises:
          InvalidRequestError: they have other windows than those before.
        """
        part, examples, places = run
        shapes = shapes_of(part)
        if not self._values:
            self._shapes = shapes
            self._values = {key: self._empty(key, value) for key, value in part.items()}
        check_same_shapes(self._shapes, shapes)
        for key, value in part.items():
            self._values[key][places] = value[examples]

    def _empty(self, key: str, like: Any) -> Any:
        if not isinstance(like, np.ndarray):
            return [None] * self._count
        shape = (self._count, *like.shape[1:])
        return self._arrays.empty(key, shape, like.dtype)

    def examples(self, count: int) -> Batch:
        """Returns the first `count` examples."""
        if count == self._count:
            return self._values
        return part_of(self._values, slice(0, count))
