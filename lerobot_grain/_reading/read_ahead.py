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
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._order.windows import mask_keys
from lerobot_grain._reading.batches import Batch, part_of
from lerobot_grain._reading.frames.frame_reader import (
    BlockFrames,
    FrameCopy,
    FrameReader,
    Priority,
)
from lerobot_grain._reading.pending import (
    Announced,
    PendingBlock,
    PendingPart,
    SourceBlock,
    TakenTogether,
    Taking,
    window_forms,
)
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._reading.read_statistics import ReadStatistics, sum_of
from lerobot_grain._reading.rows.row_reader import RowCaches, RowReader

# Examples that are planned at a time, and whose GOPs are grouped into decode tasks: enough for
# arrays to pay, and frames for sequential speed; few enough for an early first batch.
_EXAMPLES_PER_BLOCK = 256
# Frames of examples that are taken together only to be handed out one by one.
_MAX_TAKEN_BYTES = 4 << 20
# So many blocks are decoded ahead, dropping frames that are needed later if the budget asks for it.
# Many threads decode further ones, for which no frame is dropped, while fewer than that are
# finished, and they have less than `_WORK_SECONDS` of work each. A few threads gain nothing by it.
_DECODED_BLOCKS = 4
# With this many sources or more, a block has this many times the examples, and half as many blocks
# are decoded ahead: planning costs by source, and each is to have some examples in a block.
_MANY_SOURCES = 8
_BLOCKS_OF_MANY_SOURCES = 2
_WORK_SECONDS = 0.15
# At most this many examples are fetched ahead of those, however large the budget is: more would not
# hide more latency.
_MAX_FETCHED_AHEAD = 1024


class ReadAhead:
    """Reads examples in the order in which their blocks were added.

    Args:
      context: of the stream; it is closed with this.
      sources: in the order of their numbers.
      known_examples: add this many examples ahead of `take`, where there are so many.
    """

    def __init__(
        self,
        context: ReadContext,
        sources: Sequence[ReadSource],
        *,
        known_examples: int,
    ) -> None:
        self._known_examples = known_examples
        self._pending: deque[PendingBlock] = deque()
        self._num_pending = 0  # examples
        self._num_fetched = self._num_decoded = 0  # blocks
        self._arrays = ArrayPool()
        self._context = context
        self._sources = sources
        row_caches = RowCaches(context.budget.rows)
        self._rows = [RowReader(context, source, row_caches) for source in sources]
        self._frames = FrameReader(context, sources)

    @property
    def wants_more(self) -> bool:
        """Whether another block should be added before the next `take`."""
        # Ahead of what is decoded, not of what is handed out: frames that are decoded are to be
        # known with all of their uses.
        decoded = sum(map(len, itertools.islice(self._pending, self._num_decoded)))
        further = max(0, decoded - self._blocks_ahead * _EXAMPLES_PER_BLOCK)
        return self._num_pending - further < self._known_examples

    @property
    def is_empty(self) -> bool:
        return not self._pending

    @property
    def _has_many_sources(self) -> bool:
        return len(self._sources) >= _MANY_SOURCES

    @property
    def _blocks_ahead(self) -> int:
        """How many blocks are decoded ahead in any case."""
        return _DECODED_BLOCKS // 2 if self._has_many_sources else _DECODED_BLOCKS

    @property
    def convenient_count(self) -> int:
        """How many of the next examples, at least 1, to take at a time where they are handed out
        one by one.
        """
        example_bytes = max(
            (self._example_bytes(part.frames) for part in self._pending[0].parts), default=0
        )
        return _EXAMPLES_PER_BLOCK if example_bytes * _EXAMPLES_PER_BLOCK <= _MAX_TAKEN_BYTES else 1

    def _example_bytes(self, part: SourceBlock | BlockFrames) -> int:
        return self._frames.example_bytes(part.source, part.block)

    def add(self, parts: Sequence[SourceBlock]) -> None:
        """Adds the requests of the examples that come next: of each source that has some among
        them.

        Raises:
          InvalidRequestError: the memory budget does not hold one example, or the mask of a window
            has the key of something else.
        """
        needed = max(map(self._example_bytes, parts))
        context = self._context
        if needed > context.budget.frames:
            raise InvalidRequestError(
                f"ReadOptions(memory_budget_bytes={context.shared_bytes}): the camera frames of "
                f"one example take {needed} bytes; expected at least "
                f"{context.shared_bytes_for(needed)}"
            )
        step = context.budget.examples_of_block(needed, at_most=_EXAMPLES_PER_BLOCK)
        if self._has_many_sources:
            step = min(_EXAMPLES_PER_BLOCK, step * _BLOCKS_OF_MANY_SOURCES)
        length = sum(len(part.places) for part in parts)
        announced = [self._announced(part) for part in parts]
        for start in range(0, length, step):
            self._pending.append(PendingBlock(announced, start, min(length, start + step)))
        self._num_pending += length

    def _announced(self, part: SourceBlock) -> Announced:
        """Asks for the footers and sample tables that a block of a source needs, and counts its
        frames.
        """
        source = self._sources[part.source]
        keys = mask_keys(
            part.block.is_pad,
            {name: window.outputs for name, window in part.block.named.items()},
            selected=source.selection.keys,
            pad_keys=source.pad_keys,
        )
        self._rows[part.source].announce(part.block)
        entries = self._frames.announce(part.source, part.block)
        return Announced(BlockFrames(part.source, part.block, entries, part.places), keys)

    def take(self, count: int) -> TakenTogether:
        """Takes the next examples: `count`, or fewer, but at least one.

        Fewer, where the next one cannot be read or has windows of other lengths, or where there are
        no more.

        Raises:
          LeRobotGrainError: something that the next example needs could not be read; the reader
            must be closed.
        """
        parts = self._pending[0].parts
        has_one_form = self._frames.have_one_form and all(
            window_forms(part.frames.block) == window_forms(parts[0].frames.block)
            for part in parts[1:]
        )
        taking = Taking(has_one_form=has_one_form)
        # Memory for the frames of each source apart is made for as many examples as it has.
        counts = {} if has_one_form else self._next_counts(count)
        while taking.num_taken < count and self._pending:
            self._run_ahead()
            pending = self._pending[0]
            missing = count - taking.num_taken
            if not all(taking.fits(part.frames) for part in pending.parts):
                break
            self._plan_further()
            while not self._is_ready(pending, missing) and self._plan_further():
                pass
            try:
                examples, values = self._next_part(pending, missing)
            except LeRobotGrainError:
                if taking.num_taken:
                    break
                raise
            copies = []
            for part, batch in values:
                source = part.frames.source
                members = part.members(examples)
                places = part.frames.places[members] + (taking.num_taken - examples.start)
                out, at = taking.add(
                    part.frames,
                    batch,
                    places,
                    self._memory_for_frames,
                    most=counts.get(source, count),
                )
                copies.append(FrameCopy(part.frames, members, out, at))
                self._sources[source].meter.count(examples=len(places))
            self._frames.copy_frames(copies)
            taking.num_taken += examples.stop - examples.start
            self._advance(pending, examples)
        return taking.together()

    def _next_counts(self, count: int) -> Mapping[int, int]:
        """Returns how many of the next examples, up to `count`, are of each source."""
        found: Counter[int] = Counter()
        for pending in self._pending:
            examples = slice(pending.num_taken, min(pending.num_taken + count, pending.length))
            for part in pending.parts:
                members = part.members(examples)
                found[part.frames.source] += members.stop - members.start
            count -= examples.stop - examples.start
            if count == 0:
                break
        return found

    def _memory_for_frames(self, frames: BlockFrames, count: int) -> Mapping[str, npt.NDArray[Any]]:
        """Returns memory for the frames of examples of a source, `(count, ...)`, by key."""
        source = frames.source
        return {
            key: self._arrays.empty(key, (count, *shape), np.dtype(camera.frame_dtype))
            for camera in self._sources[source].selection.videos
            for key, shape in self._frames.shapes_of(source, camera.key, frames.block).items()
        }

    def statistics(self) -> ReadStatistics:
        """Returns what was read so far."""
        used_bytes = self._frames.used_bytes + self._rows[0].used_bytes
        return sum_of(
            [source.meter for source in self._sources],
            used_bytes=used_bytes,
            peak_bytes=max(used_bytes, self._frames.peak_bytes),
            budget_bytes=self._context.budget.total,
        )

    def source_statistics(self, number: int) -> ReadStatistics:
        """Returns what was read so far of one source; memory is not counted by source."""
        meter = self._sources[number].meter
        return sum_of([meter], used_bytes=0, peak_bytes=0, budget_bytes=0)

    def end_requests(self) -> None:
        """Ends the requests that are under way and those to come; for any thread."""
        self._context.requests.end()

    def close(self) -> None:
        """Stops all threads.

        Tasks that have not begun are dropped, requests are ended; what is being decoded is waited
        for.
        """
        self._context.close()

    def _is_ready(self, pending: PendingBlock, limit: int) -> bool:
        """Returns whether the frames of the next examples of a block, up to `limit`, are there."""
        if pending.decoding is not None and pending.decoding.is_finished:
            return True
        examples = slice(pending.num_taken, pending.num_taken + limit)
        return all(
            self._frames.is_done(part.frames, part.members(examples)) for part in pending.parts
        )

    def _next_part(
        self, pending: PendingBlock, limit: int
    ) -> tuple[slice, list[tuple[PendingPart, Batch]]]:
        """Waits for examples of a block, up to `limit`, and up to the first one that cannot be
        read.

        Returns:
          Which examples of the block, and of each part that has some of them everything of these
          but the frames of videos.

        Raises:
          LeRobotGrainError: the first one cannot be read.
        """
        start = pending.num_taken
        stop = min(start + limit, pending.length)
        problems = [
            problem
            for part in pending.parts
            if (problem := self._problem(part, slice(start, stop))) is not None
        ]
        for example, error in sorted(problems, key=lambda found: found[0]):
            if example == start:
                raise error
            stop = min(stop, example)
        examples = slice(start, stop)
        found: list[tuple[PendingPart, Batch]] = []
        try:
            for part in pending.parts:
                members = part.members(examples)
                if members.start < members.stop:
                    found.append((part, self._values(part, members)))
        except LeRobotGrainError:
            if stop - start == 1:
                raise
            return self._next_part(pending, 1)
        return examples, found

    def _problem(self, part: PendingPart, examples: slice) -> tuple[int, Exception] | None:
        """Waits for some examples of a block, of one source.

        Returns:
          `None`, or the first example of the block that could not be read, and why.
        """
        members = part.members(examples)
        if members.start == members.stop:
            return None
        if part.values is None:
            part.values, part.problem = self._rows[part.frames.source].values(part.rows)
        found = [
            problem
            for problem in (part.problem, self._frames.wait(part.frames, members))
            if problem is not None and problem[0] < members.stop
        ]
        if not found:
            return None
        member, error = min(found, key=lambda problem: problem[0])
        return part.frames.places.item(member), error

    def _values(self, part: PendingPart, members: slice) -> Batch:
        """Returns everything of some examples of a source but the frames of videos.

        Raises:
          DatasetFormatError: an embedded image cannot be decoded.
        """
        rows = self._rows[part.frames.source]
        assert part.values is not None
        pictures = rows.pictures(part.frames.block, part.rows, members)
        masks = {key: mask[members].copy() for key, mask in part.masks.items()}
        return {**part_of(part.values, members), **pictures, **masks}

    def _advance(self, pending: PendingBlock, examples: slice) -> None:
        pending.num_taken = examples.stop
        self._num_pending -= examples.stop - examples.start
        if len(pending) == 0:
            self._pending.popleft()
            self._num_fetched -= 1
            self._num_decoded -= 1

    def _run_ahead(self) -> None:
        """Starts decoding the next blocks, as far as the budget allows, and at least what the next
        example needs.
        """
        blocks = self._pending
        while self._num_decoded < min(len(blocks), self._blocks_ahead):
            priority = Priority.SOON if self._num_decoded else Priority.URGENT
            if not self._decode_next(priority):
                break

    def _plan_further(self) -> bool:
        """Fetches, and perhaps decodes, another block ahead; returns whether there was one."""
        has_fetched = self._fetch_further()
        return self._decode_further() or has_fetched

    def _fetch_further(self) -> bool:
        """Asks for the bytes of another block, unless enough was asked for; returns whether it
        did.
        """
        ahead = itertools.islice(self._pending, self._num_decoded, self._num_fetched)
        if (
            self._num_fetched == len(self._pending)
            or sum(map(len, ahead)) >= _MAX_FETCHED_AHEAD
            or self._frames.coded_bytes >= self._context.budget.pending_coded
        ):
            return False
        self._fetch_next()
        return True

    def _decode_further(self) -> bool:
        """Starts decoding another block, where all threads have less to do than they might; returns
        whether it did.
        """
        if not self._context.has_many_decoders or not self._blocks_ahead <= self._num_decoded < len(
            self._pending
        ):
            return False
        started = [
            block.decoding
            for block in itertools.islice(self._pending, self._num_decoded)
            if block.decoding is not None
        ]
        unfinished = [decoding for decoding in started if not decoding.is_finished]
        missing_seconds = _WORK_SECONDS * self._context.num_decoders - sum(
            decoding.seconds for decoding in unfinished
        )
        if len(started) - len(unfinished) >= self._blocks_ahead or missing_seconds <= 0:
            return False
        if self._decode_next(Priority.SPARE):
            return True
        if sum(len(each.unfinished) for each in unfinished) < self._context.num_decoders:
            seconds = sum(decoding.seconds for decoding in started)
            frame_bytes = sum(
                self._example_bytes(part.frames) * len(part.frames.places)
                for block in itertools.islice(self._pending, self._num_decoded)
                for part in block.parts
            )
            self._context.note_shortage(int(frame_bytes * missing_seconds / max(seconds, 1e-6)))
        return False

    def _decode_next(self, priority: Priority) -> bool:
        """Starts decoding the next block; returns whether there was room for it."""
        blocks = self._pending
        if self._num_fetched == self._num_decoded:
            self._fetch_next()
        number = self._num_decoded
        pending = blocks[number]
        for part in pending.parts:
            # Frames that were dropped since they were fetched are fetched again.
            self._frames.fetch(part.frames)
        pending.decoding = self._frames.decode(
            [part.frames for part in pending.parts],
            number,
            # Made where memory is short only: parts of blocks that are only known take time.
            lambda: [[part.frames for part in block.parts] for block in blocks],
            priority=priority,
        )
        if pending.decoding is None:
            return False
        self._num_decoded += 1
        return True

    def _fetch_next(self) -> None:
        pending = self._pending[self._num_fetched]
        self._num_fetched += 1
        for part in pending.parts:
            part.rows = self._rows[part.frames.source].fetch(part.frames.block)
            self._frames.fetch(part.frames)
