"""Readers: whatever reads the stream of a dataset elsewhere, in other processes or on other
machines; and the iterator that hands out what they read.

Reader i of n streams shard i of n of the stream; what it reads comes back in pieces of batches,
which `Rounds` puts in order, or as single examples. One iterator serves all engines.

Rules:
* The state is that of the stream at the last example that was handed out: k examples of n readers
  are the first k of one process, whatever n is.
* An error hands out nothing and loses nothing: the next call starts the readers again, after the
  last example that was handed out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import grain

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._datasets.element_specs import example_bytes
from lerobot_grain._datasets.feed.batches import WithBatches
from lerobot_grain._datasets.feed.rounds import Rounds
from lerobot_grain._datasets.feed.worker_stream import ONE_TO_ONE
from lerobot_grain._datasets.pipelines import only_source_under
from lerobot_grain._datasets.positions import Element, PositionsIterDataset
from lerobot_grain._reading.batches import (
    Batch,
    num_examples,
    split,
    with_arrays_of_strings,
)

# Examples of a piece, at least where they are small: sending a piece takes a third of a
# millisecond, whatever is in it. If they are large, a reader holds some pieces of so many bytes, or
# of one example.
_MIN_PIECE = 32
_MAX_PIECE_BYTES = 8 << 20
_UNKNOWN_BYTES = 1 << 20


class ReadersStream(Protocol):
    """The output of readers that were started: examples or pieces, of all of them in turn."""

    def __iter__(self) -> Any: ...

    def __next__(self) -> Any: ...

    def close(self) -> None:
        """Ends the readers."""


class Engine(Protocol):
    """Starts readers.

    Attributes:
      num_readers: how many it starts, at least 1.
      sends_examples: whether readers can send single examples, too.
    """

    @property
    def num_readers(self) -> int: ...

    @property
    def sends_examples(self) -> bool: ...

    def start(self, state: dict[str, Any], piece_size: int | None) -> ReadersStream:
        """Starts readers from a state on.

        Args:
          state: of the stream.
          piece_size: examples of a `Piece`; `None`: they send single examples.
        """


class ReadersIterDataset(WithBatches[Element]):
    """Its parent, read by readers. Base class.

    Args:
      parent: a stream of ours, or what an engine takes on one.

    Raises:
      InvalidRequestError: there is not exactly one stream in `parent`, or it has a state of its
        own.
    """

    def __init__(self, parent: grain.IterDataset[Element]) -> None:
        super().__init__(parent)
        name = type(self).__name__
        self._source = only_source_under(parent, asked_by=name)
        if parent.__iter__().get_state().keys() != self._source.__iter__().get_state().keys():
            raise InvalidRequestError(
                f"{name}: {parent} adds something to the state of the stream; "
                f"{ONE_TO_ONE.format(name)}"
            )

    @property
    def makes_batches(self) -> bool:
        # Readers read pieces of what their parent makes batches of.
        return isinstance(self._parent, WithBatches) and self._parent.makes_batches

    @property
    def _element_spec(self) -> Any:
        return grain.experimental.get_element_spec(self._parent)


class ReadersIterator(grain.DatasetIterator[Element]):
    """Yields examples, or hands out batches of them, and counts what was handed out.

    Args:
      read: the dataset that is read.
      source: of its rows.
      engine: starts the readers.
      name: of the iterator.
    """

    _closed = True

    def __init__(
        self,
        read: grain.IterDataset[Element],
        source: PositionsIterDataset,
        engine: Engine,
        *,
        name: str,
    ) -> None:
        super().__init__()
        self._read = read
        self._source = source
        self._engine = engine
        self._name = name
        # Never asked for an example: it says what a state looks like, and refuses those of other
        # streams.
        self._unread = read.__iter__()
        self._base: dict[str, Any] = self._unread.get_state()
        self._handed_out = 0  # since the base
        self._started: _Started | None = None
        self._arrays = ArrayPool()
        self._exhausted = False

    def __next__(self) -> Element:
        found: Element
        if self._engine.sends_examples:
            found = self._hand_out(None, _next_example, self._stats)
        else:
            found = self._hand_out(self._piece_size(1), _next_of_piece, self._stats)
        return found

    def next_batch(self, batch_size: int, *, drop_remainder: bool, stats: Any) -> Batch:
        """As of `feed/batches.MakesBatches`."""

        def take(started: _Started) -> tuple[Batch, int]:
            assert started.rounds is not None
            batch = started.rounds.take(batch_size)
            count = num_examples(batch)
            if drop_remainder and count < batch_size:
                raise _Dropped(count)
            return with_arrays_of_strings(batch), count

        found: Batch = self._hand_out(self._piece_size(batch_size), take, stats)
        return found

    def _hand_out(
        self,
        piece_size: int | None,
        take: Callable[[_Started], tuple[Any, int]],
        stats: Any,
    ) -> Any:
        """Returns what `take` takes of the readers, and counts it: both, or, whatever is raised
        wherever, neither.

        Args:
          piece_size: examples of the pieces that they read; `None`: single examples.
          take: returns it, and how many examples it is.
          stats: Grain's, of the iterator that hands it out.
        """
        self._assert_not_closed()
        if self._exhausted:
            raise StopIteration
        before = self._handed_out
        try:
            with stats.record_self_time():
                if self._started is not None and self._started.piece_size != piece_size:
                    self._stop()
                if self._started is None:
                    self._started = self._start(piece_size)
                element, count = take(self._started)
                stats.record_output_spec(element)
                self._handed_out = before + count
                return element
        except BaseException as error:
            # Nothing was handed out: the next call starts the readers again, and reads the same
            # element.
            self._handed_out = before
            self._exhausted = isinstance(error, StopIteration)
            if isinstance(error, _Dropped):
                self._handed_out += error.count
            self._stop()
            raise

    def _start(self, piece_size: int | None) -> _Started:
        state = self.get_state()
        stream = self._engine.start(state, piece_size)
        if piece_size is None:
            return _Started(stream, None, None)
        rounds = Rounds(
            stream,
            num_workers=self._engine.num_readers,
            first=self._source.part.start + state["position"],
            step=self._source.position_step,
            arrays=self._arrays,
        )
        return _Started(stream, piece_size, rounds)

    def _piece_size(self, batch_size: int) -> int:
        """Returns the examples of a piece: those of a batch that come from one reader, and not few
        where they are small, nor many where they are large.
        """
        wanted = max(_MIN_PIECE, -(-batch_size // self._engine.num_readers))
        return max(1, min(wanted, _MAX_PIECE_BYTES // max(1, self._example_bytes)))

    @functools.cached_property
    def _example_bytes(self) -> int:
        try:
            return example_bytes(grain.experimental.get_element_spec(self._read))
        except (ValueError, NotImplementedError):
            # The requests do not say which windows they have.
            return _UNKNOWN_BYTES

    def _stop(self) -> None:
        started = self._started
        self._started = None
        if started is not None:
            if started.rounds is not None:
                started.rounds.close()
            started.stream.close()

    def end_reading(self) -> None:
        """Ends the readers, in any thread, where the engine can: a `next` that waits for them
        raises, and the one after it starts them again.
        """
        started = self._started
        if started is not None and (end := getattr(started.stream, "end", None)) is not None:
            end()

    def get_state(self) -> dict[str, Any]:
        return {
            **self._base,
            "position": self._base["position"] + self._handed_out * self._source.position_step,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._unread.set_state(state)  # raises before anything has changed
        self._stop()
        self._base = self._unread.get_state()
        self._handed_out = 0
        self._exhausted = False

    def _get_next_index(self) -> int:
        self._unread.set_state(self.get_state())
        index: int = grain.experimental.get_next_index(self._unread)
        return index

    def _set_next_index(self, index: int) -> None:
        grain.experimental.set_next_index(self._unread, index)
        self.set_state(self._unread.get_state())

    def close(self) -> None:
        if self._closed:
            return
        self._stop()
        self._unread.close()
        super().close()

    def __str__(self) -> str:
        return self._name


class _Started(NamedTuple):
    """Readers that were started.

    Attributes:
      stream: of what they read.
      piece_size: as they were asked; `None`: single examples.
      rounds: their pieces, put in order.
    """

    stream: ReadersStream
    piece_size: int | None
    rounds: Rounds | None


class _Dropped(StopIteration):
    """The end, before which some examples are left out."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


def _next_example(started: _Started) -> tuple[Any, int]:
    return next(started.stream), 1


def _next_of_piece(started: _Started) -> tuple[Any, int]:
    assert started.rounds is not None
    return split(started.rounds.take(1))[0], 1
