"""Runs the plan ahead of the consumer: fetches, decodes and assembles examples, strictly in order.

The order of windows is known long before they are needed, and this makes use of it. Requests come
in blocks of a few dozen examples, which are planned together, as arrays. Every block passes three
horizons, nearest last:

1. *known* (`add`): only integers. Every frame is counted with its uses, so it is known which frames
   a GOP will have to give, and when.
2. *fetched*: the coded bytes of its GOPs and its row groups are asked for.
3. *decoded*: GOPs of many episodes and files are decoded together, a few batches ahead; a frame is
   kept until its last known use.

Rules:
* One thread, the consumer's, plans; the pools only run tasks that know everything they need. So the
  order of completion does not matter.
* An error belongs to the example that needs what failed: it is kept, and raised when that example
  is taken.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._order.windows import WindowBlock, mask_keys
from lerobot_grain._reading.batches import Batch, join, part_of
from lerobot_grain._reading.frames.frame_reader import Entries, FrameReader, Priority
from lerobot_grain._reading.memory import ArrayPool
from lerobot_grain._reading.options import MemoryBudget
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._reading.read_statistics import ReadStatistics
from lerobot_grain._reading.rows.row_reader import PendingRows, RowReader

# Examples that are planned at a time, and whose GOPs are grouped into decode tasks: enough for
# arrays to pay, and pictures for sequential speed; few enough for an early first batch.
_EXAMPLES_PER_BLOCK = 256
# Frames of examples that are taken together only to be handed out one by one.
_MAX_TAKEN_BYTES = 4 << 20
# So many blocks are decoded ahead, dropping frames that are needed later if the budget asks for it;
# and further ones, for which no frame is dropped, while those that are decoded ahead take less than
# so many seconds of every thread.
_DECODED_BLOCKS = 4
_DECODED_SECONDS = 0.15
# At most this many examples are fetched ahead of those, however large the budget is: more would not
# hide more latency.
_MAX_FETCHED_AHEAD = 1024


@dataclass(eq=False, slots=True)
class _PendingBlock:
    """A block that was asked for, and not taken to its end yet."""

    block: WindowBlock
    entries: Entries
    masks: Mapping[str, npt.NDArray[np.bool_]]  # of its windows, by their keys in examples
    rows: PendingRows | None = None
    values: Batch | None = None
    # the first example whose values cannot be had, and why
    problem: tuple[int, Exception] | None = None
    num_taken: int = 0
    decode_seconds: float = 0.0  # of a core, once it is decoded

    def __len__(self) -> int:
        return len(self.block) - self.num_taken


class ReadAhead:
    """Reads examples in the order in which their blocks were added.

    Args:
      context: of the stream; it is closed with this.
      known_examples: add this many examples ahead of `take`, where there are so many.
      pad_keys: feature key -> key of the mask of its window in examples, where that is not
        `{key}_is_pad`.
    """

    def __init__(
        self, context: ReadContext, *, known_examples: int, pad_keys: Mapping[str, str]
    ) -> None:
        self._known_examples = known_examples
        self._pad_keys = pad_keys
        self._pending: deque[_PendingBlock] = deque()
        self._num_pending = 0  # examples
        self._num_fetched = self._num_decoded = 0  # blocks
        self._arrays = ArrayPool()
        self._context = context
        self._rows = RowReader(context)
        self._frames = FrameReader(context)

    @property
    def wants_more(self) -> bool:
        """Whether another block should be added before the next `take`."""
        # Ahead of what is decoded, not of what is handed out: frames that are decoded are to be
        # known with all of their uses.
        decoded = sum(map(len, itertools.islice(self._pending, self._num_decoded)))
        further = max(0, decoded - _DECODED_BLOCKS * _EXAMPLES_PER_BLOCK)
        return self._num_pending - further < self._known_examples

    @property
    def is_empty(self) -> bool:
        return not self._pending

    @property
    def convenient_count(self) -> int:
        """How many of the next examples, at least 1, to take at a time where they are handed out
        one by one.
        """
        example_bytes = self._frames.example_bytes(self._pending[0].block) if self._pending else 0
        return _EXAMPLES_PER_BLOCK if example_bytes * _EXAMPLES_PER_BLOCK <= _MAX_TAKEN_BYTES else 1

    def add(self, block: WindowBlock) -> None:
        """Adds the requests of the examples that come next.

        Raises:
          InvalidRequestError: the memory budget does not hold one example, or the mask of a window
            has the key of something else.
        """
        keys = mask_keys(
            block.is_pad, selected=self._context.selection.keys, pad_keys=self._pad_keys
        )
        needed = self._frames.example_bytes(block)
        budget = self._context.budget
        if needed > budget.frames:
            raise InvalidRequestError(
                f"ReadOptions(memory_budget_bytes={budget.total}): the camera frames of one "
                f"example take {needed} bytes; expected at least {MemoryBudget.total_for(needed)}"
            )
        step = budget.examples_of_block(needed, at_most=_EXAMPLES_PER_BLOCK)
        for start in range(0, len(block), step):
            part = block[start : start + step]
            self._rows.announce(part)
            masks = {keys[feature]: mask for feature, mask in part.is_pad.items()}
            self._pending.append(_PendingBlock(part, self._frames.announce(part), masks))
        self._num_pending += len(block)

    def take(self, count: int) -> Batch:
        """Returns the next examples: `count`, or fewer, but at least one.

        Fewer, where the next one cannot be read or has windows of other lengths, or where there are
        no more.

        Raises:
          LeRobotGrainError: something that the next example needs could not be read; the reader
            must be closed.
        """
        parts: list[Batch] = []
        frames: dict[str, npt.NDArray[Any]] = {}
        lengths = _window_lengths(self._pending[0].block)
        done = 0
        while done < count and self._pending:
            self._run_ahead()
            pending = self._pending[0]
            if _window_lengths(pending.block) != lengths:
                break
            self._decode_further()
            while not self._is_ready(pending, count - done) and self._decode_further():
                pass
            try:
                examples, values = self._next_part(pending, count - done)
            except LeRobotGrainError:
                if done:
                    break
                raise
            if not frames:
                frames = {
                    camera.key: self._arrays.empty(
                        camera.key,
                        (count, *self._frames.shape_of(camera.key, pending.block)),
                        np.dtype(camera.frame_dtype),
                    )
                    for camera in self._context.selection.videos
                }
            stop = done + examples.stop - examples.start
            self._frames.copy_frames(
                {key: array[done:stop] for key, array in frames.items()}, pending.entries, examples
            )
            parts.append(values)
            done = stop
            self._advance(pending, examples)
        taken = join(parts)
        taken.update({key: array[:done] for key, array in frames.items()})
        self._context.meter.count(examples=done)
        return taken

    def statistics(self) -> ReadStatistics:
        """Returns what was read so far."""
        used_bytes = self._frames.used_bytes + self._rows.used_bytes
        return self._context.meter.statistics(
            used_bytes=used_bytes,
            peak_bytes=max(used_bytes, self._frames.peak_bytes),
            budget_bytes=self._context.budget.total,
        )

    def end_requests(self) -> None:
        """Ends the requests that are under way and those to come; for any thread."""
        self._context.requests.end()

    def close(self) -> None:
        """Stops all threads.

        Tasks that have not begun are dropped, requests are ended; what is being decoded is waited
        for.
        """
        self._context.close()

    def _is_ready(self, pending: _PendingBlock, limit: int) -> bool:
        """Returns whether the frames of the next examples of a block, up to `limit`, are there."""
        examples = slice(pending.num_taken, pending.num_taken + limit)
        return self._frames.is_done(pending.entries, examples)

    def _next_part(self, pending: _PendingBlock, limit: int) -> tuple[slice, Batch]:
        """Waits for examples of a block, up to `limit`, and up to the first one that cannot be
        read.

        Returns:
          Which examples of the block, and everything of them but the frames of videos.

        Raises:
          LeRobotGrainError: the first one cannot be read.
        """
        start = pending.num_taken
        stop = min(pending.num_taken + limit, len(pending.block))
        if pending.values is None:
            pending.values, pending.problem = self._rows.values(pending.rows)
        problems = [pending.problem, self._frames.wait(pending.entries, slice(start, stop))]
        for example, error in sorted(
            (found for found in problems if found is not None), key=lambda found: found[0]
        ):
            if example == start:
                raise error
            stop = min(stop, example)
        examples = slice(start, stop)
        try:
            pictures = self._rows.pictures(pending.block, pending.rows, examples)
        except LeRobotGrainError:
            if stop - start == 1:
                raise
            return self._next_part(pending, 1)
        masks = {key: mask[examples].copy() for key, mask in pending.masks.items()}
        return examples, {**part_of(pending.values, examples), **pictures, **masks}

    def _advance(self, pending: _PendingBlock, examples: slice) -> None:
        pending.num_taken = examples.stop
        self._num_pending -= examples.stop - examples.start
        if len(pending) == 0:
            self._pending.popleft()
            self._num_fetched -= 1
            self._num_decoded -= 1

    def _run_ahead(self) -> None:
        """Starts what can be started: fetches and decodes, as far ahead as the budget allows, and
        at least what the next example needs.
        """
        blocks = self._pending
        while self._num_decoded < min(len(blocks), _DECODED_BLOCKS):
            priority = Priority.SOON if self._num_decoded else Priority.URGENT
            if not self._decode_next(priority):
                break
        num_examples = sum(
            len(blocks[number]) for number in range(self._num_decoded, self._num_fetched)
        )
        while (
            self._num_fetched < len(blocks)
            and num_examples < _MAX_FETCHED_AHEAD
            and self._frames.coded_bytes < self._context.budget.pending_coded
        ):
            num_examples += len(blocks[self._num_fetched])
            self._fetch_next()

    def _decode_further(self) -> bool:
        """Starts decoding another block, where all threads have less to do than they might; returns
        whether it did.
        """
        blocks = itertools.islice(self._pending, self._num_decoded)
        ahead = sum(block.decode_seconds for block in blocks)
        return (
            _DECODED_BLOCKS <= self._num_decoded < len(self._pending)
            and ahead < _DECODED_SECONDS * self._context.num_decoders
            and self._decode_next(Priority.SPARE)
        )

    def _decode_next(self, priority: Priority) -> bool:
        """Starts decoding the next block; returns whether there was room for it."""
        blocks = self._pending
        if self._num_fetched == self._num_decoded:
            self._fetch_next()
        number = self._num_decoded
        pending = blocks[number]
        # Frames that were dropped since they were fetched are fetched again.
        self._frames.fetch(pending.block, pending.entries)
        coming = [block.entries for block in blocks]
        seconds = self._frames.decode(pending.block, coming, number, priority=priority)
        if seconds is None:
            return False
        pending.decode_seconds = seconds
        self._num_decoded += 1
        return True

    def _fetch_next(self) -> None:
        pending = self._pending[self._num_fetched]
        self._num_fetched += 1
        pending.rows = self._rows.fetch(pending.block)
        self._frames.fetch(pending.block, pending.entries)


def _window_lengths(block: WindowBlock) -> dict[str, int]:
    return {key: window.shape[1] for key, window in block.frames.items()}
