"""Lanes: each brings the pieces of one reader, in a thread, ahead of the consumer.

Lane i of n reads shard i of n of the stream. It asks by state, so that any
reader can go on where another one was lost: a lane asks again, from its last whole piece on.

Rules:
* At most `pieces_ahead` pieces of a lane wait, besides the one that comes next. A reader that is
  not asked does not read on.
* A reader that is lost costs time, and changes nothing of what comes. If none answers for
  `patience_seconds`, the lane ends with `StorageError`; the state stays, and the next call begins
  again.
* Errors of what is read are not of the lane: they come at their place in the stream.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lerobot_grain._base.errors import StorageError
from lerobot_grain._base.permits import permits
from lerobot_grain._datasets.feed.worker_stream import Piece
from lerobot_grain._datasets.positions import PartOfPositions

# Between two attempts, doubled from the first to the last.
_PAUSES_SECONDS = (0.05, 2.0)
_JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LaneRequest:
    """The next pieces of a lane.

    Attributes:
      state: of the stream.
      part: the positions of the lane.
      piece_size: examples of a piece.
    """

    state: dict[str, Any]
    part: PartOfPositions
    piece_size: int

    @property
    def first(self) -> int:
        """The position of the first example."""
        position: int = self.state["position"]
        return self.part.start + position

    def after(self, num_examples: int) -> LaneRequest:
        """Returns what comes after so many examples of it."""
        position = self.state["position"] + num_examples * self.part.step
        return replace(self, state={**self.state, "position": position})


class LostReaderError(StorageError):
    """A reader does not answer any more: the lane asks again."""


class OpenReaders(Protocol):
    """Readers of one stream."""

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Piece]:
        """Yields what a lane reads, to its end; called again after `LostReaderError`, for the rest.

        Raises:
          LostReaderError: the reader was lost. Any other error: it comes to the consumer.
        """

    def close(self) -> None:
        """Ends all, in any thread: what waits in `pieces` raises."""


class Lanes:
    """The pieces of all lanes in turn (`readers.ReadersStream`).

    Args:
      readers: that lanes ask.
      requests: what each lane reads.
      pieces_ahead: of a lane, that wait, at least 1.
      patience_seconds: for which a lane asks on where no reader answers.
    """

    def __init__(
        self,
        readers: OpenReaders,
        requests: Sequence[LaneRequest],
        *,
        pieces_ahead: int,
        patience_seconds: float,
    ) -> None:
        self._stop = _Stop()
        self._lanes = [
            _Lane(readers, number, request, pieces_ahead, patience_seconds, self._stop)
            for number, request in enumerate(requests)
        ]
        self._turn = 0
        self._error: BaseException | None = None
        # Also when the iterator is collected, and at the end of the program.
        self.close = weakref.finalize(self, _end, readers, self._lanes, self._stop)
        for lane in self._lanes:
            lane.thread.start()

    def __iter__(self) -> Lanes:
        return self

    def __next__(self) -> Piece:
        if self._error is not None:
            raise self._error
        item = self._lanes[self._turn % len(self._lanes)].take()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        self._turn += 1
        return item

    def end(self) -> None:
        """Makes a `__next__` that waits in another thread raise."""
        for lane in self._lanes:
            lane.ready.put(StorageError("the readers were closed while they were in use"))


class _Stop:
    """An event that the garbage collector may set in a thread that waits for it: one of
    `threading` would wait for a lock that this thread holds, a `SimpleQueue` does not.

    Attributes:
      is_set: whether it was.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._woken = permits(0)

    def set(self) -> None:
        """Ends all waiting, also that which begins later."""
        self.is_set = True
        self._woken.put(None)

    def wait(self, seconds: float) -> None:
        """Waits so long, at most until it is set."""
        with contextlib.suppress(queue.Empty):
            self._woken.get(timeout=seconds)
            self._woken.put(None)  # for the others that wait


class _Lane:
    """A thread, and the pieces that wait for the consumer."""

    def __init__(
        self,
        readers: OpenReaders,
        number: int,
        request: LaneRequest,
        pieces_ahead: int,
        patience_seconds: float,
        stop: _Stop,
    ) -> None:
        self.ready: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        # Of pieces that may still be put there.
        self.room = permits(pieces_ahead)
        self._readers = readers
        self._number = number
        self._request = request
        self._patience = _Patience(patience_seconds, stop)
        self._stop = stop
        self.thread = threading.Thread(
            target=self._run, daemon=True, name=f"lerobot_grain lane {number}"
        )

    def take(self) -> Piece | BaseException:
        """Returns the next piece, or what ends the lane."""
        item = self.ready.get()
        self.room.put(None)
        return item

    def _run(self) -> None:
        try:
            while not self._stop.is_set:
                try:
                    self._read_on()
                    return
                except LostReaderError as error:
                    self._patience.wait(error)
        except BaseException as error:
            self.ready.put(error)

    def _read_on(self) -> None:
        """Reads to the end of the lane."""
        for piece in self._readers.pieces(self._number, self._request):
            self._patience.renew()
            self._request = self._request.after(piece.num_examples)
            self.room.get()
            if self._stop.is_set:
                return
            self.ready.put(piece)
            if piece.error is not None:
                self.ready.put(piece.error)
                return
        self.ready.put(StopIteration())


class _Patience:
    """How long a lane asks on."""

    def __init__(self, seconds: float, stop: _Stop) -> None:
        self._seconds = seconds
        self._stop = stop
        self._lost_at: float | None = None
        self._pause = _PAUSES_SECONDS[0]

    def renew(self) -> None:
        """Notes that a reader answers."""
        self._lost_at = None
        self._pause = _PAUSES_SECONDS[0]

    def wait(self, error: LostReaderError) -> None:
        """Waits before the next attempt.

        Raises:
          StorageError: none has answered for too long.
        """
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > self._seconds:
            raise StorageError(
                f"{error}; no reader has answered for {self._seconds:.0f} s; start readers again, "
                "and call next again: nothing was lost"
            )
        self._stop.wait(self._pause)
        self._pause = min(2 * self._pause, _PAUSES_SECONDS[1])


def _end(readers: OpenReaders, lanes: Sequence[_Lane], stop: _Stop) -> None:
    stop.set()
    for lane in lanes:
        lane.room.put(None)
    readers.close()
    # The garbage collector may run in any thread; and a signal handler may have raised before one
    # was started.
    ends = time.monotonic() + _JOIN_SECONDS
    for lane in lanes:
        if lane.thread.ident is not None and lane.thread is not threading.current_thread():
            lane.thread.join(max(0.0, ends - time.monotonic()))
