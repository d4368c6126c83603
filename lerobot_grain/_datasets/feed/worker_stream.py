"""The part that runs in a reader, such as a worker process: a stream from a state on, as single
examples or as pieces of batches, with every error in a form that reaches the consumer.

Rules:
* A `StopIteration` that is not the end, an exception or an example that does not pickle would be
  lost on the way (Grain 0.2.18): they become errors that reach the consumer.
* A piece that cannot be read whole is read example by example, so that the ones before the error
  are handed out.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import grain

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.feed.packing import PackedBatch, packed
from lerobot_grain._datasets.open_stream import OpenStream
from lerobot_grain._datasets.positions import Element, PositionsIterDataset
from lerobot_grain._datasets.read_windows import ReadWindowsIterator
from lerobot_grain._reading.batches import Batch, join, num_examples


class OneToOneIterDataset(grain.IterDataset[Element]):
    """Its parent from a state on, in the reader; checks that every row gives one example, and that
    what comes out can be sent.

    Args:
      parent: a stream of ours, or `.map` on one.
      source: of its rows.
      state: of the stream.
      of: name of the dataset that asks, for messages.
    """

    def __init__(
        self,
        parent: grain.IterDataset[Element],
        source: PositionsIterDataset,
        state: dict[str, Any],
        *,
        of: str,
    ) -> None:
        super().__init__(parent)
        # The same object as under `parent`, also after pickling, so it is sliced with it.
        self._source = source
        self._state = state
        self._of = of

    def __iter__(self) -> grain.DatasetIterator[Element]:
        parent = self._parent.__iter__()
        parent.set_state(self._state)
        return _OneToOneIterator(parent, self._source, of=self._of)

    def __str__(self) -> str:
        return "OneToOneIterDataset"


class _OneToOneIterator(grain.DatasetIterator[Element]):
    _closed = True

    def __init__(
        self,
        parent: grain.DatasetIterator[Element],
        source: PositionsIterDataset,
        *,
        of: str,
    ) -> None:
        super().__init__(parent)
        self._source = source
        self._of = of
        self._sent_one = False

    def __next__(self) -> Element:
        element: Element = self._checked(self._next_example)
        if not self._sent_one:
            _expect_sendable(element, of=self._of)
            self._sent_one = True
        return element

    def _next_example(self) -> tuple[Element, int]:
        return next(self._parent), 1

    def _checked(self, take: Callable[[], tuple[Any, int]]) -> Any:
        """Returns what `take` takes of the parent; it also says how many examples that is."""
        before = self._parent.get_state()
        try:
            taken, count = take()
        except StopIteration:
            self._expect_end(before)
            raise
        except (Exception, SystemExit) as error:
            raise _sendable(error) from error
        step = self._source.position_step
        advanced = self._parent.get_state()["position"] - before["position"]
        if advanced != count * step:
            examples = "one example" if count == 1 else f"{count} examples"
            raise InvalidRequestError(
                f"{self._of}: {examples} took {advanced // step} rows; "
                f"{ONE_TO_ONE.format(self._of)}"
            )
        return taken

    def _expect_end(self, state: dict[str, Any]) -> None:
        order = self._source.__iter__()
        order.set_state(state)
        if next(order, None) is not None:
            raise InvalidRequestError(
                f"{self._of}: StopIteration at position {state['position']}, which "
                "is not the end of the stream: a function in .map raised it, perhaps through "
                "next(); catch it there"
            )

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._parent.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


class Piece(NamedTuple):
    """Examples of one worker that follow each other there.

    Attributes:
      first: position of the first one, of all shards.
      parts: its batches; more than one where its examples do not fit together.
      error: of the example after them, if it could not be read.
    """

    first: int
    parts: tuple[PackedBatch, ...]
    error: Exception | None

    @property
    def num_examples(self) -> int:
        """Its examples, without the one that could not be read."""
        return sum(part.num_examples for part in self.parts)


class PiecesIterDataset(OneToOneIterDataset[Piece]):
    """The same as pieces of batches, of a parent that is a stream of ours without `.map`.

    Args:
      parent, source, state, of: as of `OneToOneIterDataset`.
      piece_size: examples of a piece; fewer come before the end, or before an error.
    """

    def __init__(
        self,
        parent: grain.IterDataset[Any],
        source: PositionsIterDataset,
        state: dict[str, Any],
        *,
        of: str,
        piece_size: int,
    ) -> None:
        super().__init__(parent, source, state, of=of)
        self._piece_size = piece_size

    def __iter__(self) -> grain.DatasetIterator[Piece]:
        parent = self._parent.__iter__()
        parent.set_state(self._state)
        return _PieceIterator(parent, self._source, of=self._of, piece_size=self._piece_size)

    def __str__(self) -> str:
        return f"PiecesIterDataset({self._piece_size})"


class _PieceIterator(_OneToOneIterator[Piece]):
    def __init__(
        self,
        parent: ReadWindowsIterator,
        source: PositionsIterDataset,
        *,
        of: str,
        piece_size: int,
    ) -> None:
        super().__init__(parent, source, of=of)
        self._piece_size = piece_size

    def __next__(self) -> Piece:
        before = self._parent.get_state()
        first = self._source.part.start + before["position"]
        try:
            whole: Batch = self._checked(functools.partial(self._next_batch, self._piece_size))
            return Piece(first, (packed(whole),), None)
        except StopIteration:
            raise
        except Exception:
            # Also examples that were read and then refused are not sent.
            self._parent.set_state(before)
            parts, error = self._one_by_one()
            return Piece(first, tuple(map(packed, parts)), error)

    def _next_batch(self, count: int) -> tuple[Batch, int]:
        def take(stream: OpenStream) -> tuple[Batch, int]:
            batch = stream.take_batch(count)
            return batch, num_examples(batch)

        parent: ReadWindowsIterator = self._parent
        found = parent.hand_out(take, self._stats)
        return found, num_examples(found)

    def _one_by_one(self) -> tuple[list[Batch], Exception | None]:
        """Returns the examples before the one that cannot be read, and why; raises where there are
        none.
        """
        found: list[Batch] = []
        problem: Exception | None = None
        while len(found) < self._piece_size and problem is None:
            try:
                found.append(self._checked(functools.partial(self._next_batch, 1)))
            except Exception as error:
                if not found:
                    raise
                problem = error
        try:
            return [join(found)], problem
        except InvalidRequestError:
            return found, problem


ONE_TO_ONE = (
    "expected one example for every row: put .filter, .batch, .random_map and .mix after {}"
)


def _sendable(error: BaseException) -> Exception:
    """Returns the error, or one that says the same and survives the way to another process."""
    if isinstance(error, Exception):
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
        except Exception:
            # Whatever a pickling method of another library raises: it is the reason to replace the
            # error, and says nothing more.
            pass
    return RuntimeError(f"{type(error).__qualname__} in a worker process: {error}")


def _expect_sendable(element: object, *, of: str) -> None:
    try:
        pickle.dumps(element)
    except Exception as error:
        raise InvalidRequestError(
            f"{of}: an example does not pickle ({error}); expected NumPy "
            "arrays, numbers and strings"
        ) from None
