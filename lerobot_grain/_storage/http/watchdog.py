"""Time as a process lives through it, and a watch that ends what takes too long of it.

A process may stand still for an hour: SIGSTOP, the lid of a laptop, a virtual machine that is
moved. Nobody was slow meanwhile, so this time counts for no deadline. A thread that waits for a
server cannot be stopped; the connection under it can. So at its deadline the connection of an
attempt is broken, wherever the attempt waits: for a status line, between two headers, for the rest
of a chunk.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from lerobot_grain._base.per_process import PerProcess

# How often the watch looks. A step that takes this much longer is one in which the process stood
# still (a busy machine delays a thread by tenths of a second).
_STEP_SECONDS = 0.25
_STANDSTILL_SECONDS = 5.0
# Deadlines that are no longer waited for are removed only when this many have accumulated: a
# request ends long before its deadline.
_MANY_CANCELLED = 1000


class AwakeClock:
    """Seconds that go by while the process runs.

    Args:
      monotonic: seconds that always go by.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last = monotonic()
        self._lost = 0.0

    def __call__(self) -> float:
        with self._lock:
            now = self._monotonic()
            if now - self._last > _STANDSTILL_SECONDS:
                self._lost += now - self._last - _STEP_SECONDS
            self._last = now
            return now - self._lost


class Watch:
    """Calls what was asked for at its time, in a thread of its own. For one process; thread-safe.

    While somebody waits, the clock is looked at every quarter of a second, so that it knows when
    the process stood still.
    """

    def __init__(self) -> None:
        self.clock = AwakeClock()
        # In C, and not a `Condition`, whose `with` is Python: an exception of a signal handler that
        # strikes inside of it leaves the lock locked.
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def after(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        """Calls `call` once, unless what is inside of the context ends within `seconds`."""
        number = next(self._numbers)
        with self._lock:
            heapq.heappush(self._waiting, (self.clock() + seconds, number, call))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, daemon=True, name="lerobot_grain watch"
                )
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._cancelled.add(number)
                if len(self._cancelled) > _MANY_CANCELLED:
                    self._waiting = [
                        each for each in self._waiting if each[1] not in self._cancelled
                    ]
                    heapq.heapify(self._waiting)
                    self._cancelled.clear()

    def _run(self) -> None:
        while True:
            due: list[Callable[[], None]] = []
            with self._lock:
                now = self.clock()
                while self._waiting and (
                    self._waiting[0][0] <= now or self._waiting[0][1] in self._cancelled
                ):
                    _, number, call = heapq.heappop(self._waiting)
                    if number in self._cancelled:
                        self._cancelled.discard(number)
                    else:
                        due.append(call)
                if not self._waiting and not due:
                    self._cancelled.clear()
                    self._thread = None
                    return
            for call in due:
                call()
            time.sleep(_STEP_SECONDS)


# The watch of this process.
watch = PerProcess(Watch)
