"""A stream that is being read, from one state on: what was pulled of its parent, what was read
ahead, and what was handed out.

A signal handler may raise anywhere (Ctrl-C, a scheduler's SIGTERM), and the program may go on: with
`next`, or with the state that it saves then. So there is one number that says what the consumer
has, and it is assigned last, in one step; everything else is only read ahead.

Rules:
* `num_handed_out` is the truth. The state is computed from it and from what was noted of the blocks
  that were pulled, never kept apart.
* While something that reads ahead is changed, the stream is marked as torn. A torn stream is not
  continued: the parent is put back to the state of `num_handed_out`, and everything after that is
  read again (`ReadWindowsIterator._mended`).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.delta_timestamps import StateAfter
from lerobot_grain._reading.batches import Batch, Example, join, num_examples, split
from lerobot_grain._reading.pending import SourceBlock, TakenTogether
from lerobot_grain._reading.read_ahead import ReadAhead
from lerobot_grain._reading.read_statistics import ReadStatistics


class OneThread:
    """Refuses a second thread inside of what is for one at a time.

    Not a lock, which a signal handler that raises could leave locked.
    """

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}

    def enter(self) -> None:
        """Notes that the calling thread is inside.

        Raises:
          InvalidRequestError: another one is.
        """
        me = threading.get_ident()
        if self._inside.setdefault("thread", me) != me:
            raise InvalidRequestError(
                "next was called while another thread is inside of next of the same iterator; an "
                "iterator is for one thread at a time, give each thread an iterator of its own, "
                "with shard_options"
            )

    def leave(self) -> None:
        self._inside.pop("thread", None)


class Blocks(Protocol):
    """The order of a stream, in blocks."""

    def next_block(self) -> tuple[list[SourceBlock], StateAfter]:
        """Returns the next requests, and their states.

        Raises:
          StopIteration: there are no more.
        """


class Assembly(Protocol):
    """Puts examples of all sources together."""

    def examples(self, taken: TakenTogether) -> list[Any]:
        """Returns examples that were taken together, in their order, not finished."""

    def finished(self, example: Any) -> Any:
        """Returns one of them as it is handed out."""

    def source_of(self, example: Any) -> int:
        """Returns the number of the source of one of them."""

    def batch(self, taken: TakenTogether) -> Batch:
        """Returns the same as a batch."""


class OneSource(Assembly):
    """Examples that all come from one source."""

    def examples(self, taken: TakenTogether) -> list[Example]:
        return split(self.batch(taken))

    def finished(self, example: Example) -> Example:
        return example

    def source_of(self, example: Example) -> int:
        del example
        return 0

    def batch(self, taken: TakenTogether) -> Batch:
        return {**taken.parts[0].batch, **taken.frames}


class _Block(NamedTuple):
    """Examples that were pulled: the first one, counted as `num_handed_out` is, how many, and the
    parent's state after n of them.
    """

    first: int
    length: int
    state_after: StateAfter


class OpenStream:
    """Reads examples in the order of its parent.

    Args:
      begin: the parent's state.
      blocks: the parent, in blocks; pulled ahead from here on.
      ahead: reads them.
      assembly: puts examples together.

    Attributes:
      num_handed_out: examples that the consumer has. Assigned where they are handed out, after
        everything else was done.
      is_torn: whether an exception struck while this was changed; then it must not be used but for
        `state`.
      has_ended: whether the parent has ended and all was handed out.
    """

    def __init__(
        self,
        begin: dict[str, Any],
        blocks: Blocks,
        ahead: ReadAhead,
        assembly: Assembly,
    ) -> None:
        self._begin = begin
        self._blocks = blocks
        self._ahead = ahead
        self._assembly = assembly
        self._pulled: deque[_Block] = deque()
        self._parent_error: Exception | None = None
        # Examples that are handed out one by one: the first one, and all that were taken with it.
        self._taken: tuple[int, list[Any]] = (0, [])
        self.num_handed_out = 0
        self.is_torn = self.has_ended = False

    def state(self) -> dict[str, Any]:
        """Returns the parent's state after the last example that was handed out."""
        count = self.num_handed_out
        for block in self._pulled:
            if block.first < count <= block.first + block.length:
                return block.state_after(count - block.first)
        return dict(self._begin)

    def next_example(self) -> Any:
        """Returns the example that comes next; again and again the same one, until it is counted in
        `num_handed_out`.

        Raises:
          StopIteration: there is none. Any other error: it cannot be read.
        """
        first, examples = self._taken
        if self.num_handed_out == first + len(examples):
            with self._changing():
                ahead = self._filled()
                self._taken = first, examples = (
                    self.num_handed_out,
                    self._assembly.examples(ahead.take(ahead.convenient_count)),
                )
        return self._assembly.finished(examples[self.num_handed_out - first])

    def take_batch(self, batch_size: int) -> Batch:
        """Returns the next `batch_size` examples, or all that are left; to be counted in
        `num_handed_out`, or the stream is torn.

        Raises:
          StopIteration: there is none. Any other error: one of them cannot be read.
        """
        with self._changing():
            batches = [self._assembly.batch(self._filled().take(batch_size))]
            while missing := batch_size - sum(num_examples(batch) for batch in batches):
                # There are no more, or the next one cannot be read, which taking it says.
                try:
                    batches.append(self._assembly.batch(self._filled().take(missing)))
                except StopIteration:
                    break
            return join(batches)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self.is_torn = True
        yield
        self.is_torn = False

    def source_statistics(self, number: int) -> ReadStatistics:
        """Returns what was read of one source, and how many of its examples were handed out."""
        found = self._ahead.source_statistics(number)
        waiting = [self._assembly.source_of(example) for example in self._not_handed_out()]
        return replace(found, examples=found.examples - waiting.count(number))

    def statistics(self) -> ReadStatistics:
        """Returns what was read, and how many examples were handed out."""
        found = self._ahead.statistics()
        return replace(found, examples=found.examples - len(self._not_handed_out()))

    def _not_handed_out(self) -> list[Any]:
        """Returns the examples that were taken one by one, and are not counted yet."""
        first, examples = self._taken
        return examples[max(0, self.num_handed_out - first) :]

    def end_requests(self) -> None:
        """Ends the requests that are under way and those to come; for any thread.

        Then nothing more can be read, and `take` raises.
        """
        self._ahead.end_requests()

    def close(self) -> None:
        """Stops reading ahead; `state` stays."""
        self._ahead.close()

    def _filled(self) -> ReadAhead:
        """Returns the reader with as many examples as it wants to know, where there are so many.

        Raises:
          StopIteration: there is none. Any other error: the parent has raised it, or what it asks
            for cannot be read.
        """
        while len(self._pulled) > 1 and self._pulled[1].first < self.num_handed_out:
            self._pulled.popleft()
        while self._parent_error is None and self._ahead.wants_more:
            try:
                block, state_after = self._blocks.next_block()
                self._ahead.add(block)
                length = sum(len(part.places) for part in block)
            except Exception as error:
                # also StopIteration: the examples before it are handed out first
                self._parent_error = error
            else:
                first = self._pulled[-1].first + self._pulled[-1].length if self._pulled else 0
                self._pulled.append(_Block(first, length, state_after))
        if self._ahead.is_empty:
            assert self._parent_error is not None
            raise self._parent_error
        return self._ahead
