"""Requests that can be ended from another thread.

A thread that waits for a server cannot be stopped; the connection under it can. So a reader that is
closed need not wait for a stalled server. Only the connections of its own requests are broken: what
others read goes on.

At the end of the program all scopes are ended, so that no thread of it waits on.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

# Requests that end this soon leave connections that can be used again.
_GRACE_SECONDS = 0.3
_LONGEST_WAIT_SECONDS = 1.5
# How often a thread that waits for anything else than an answer looks whether it was ended.
CHECK_SECONDS = 0.1

_THREAD = threading.local()


class Interruptible(Protocol):
    """A request with its attempts."""

    def interrupt(self) -> None:
        """Breaks the connection that it uses, if any; the thread waiting for it gets an error."""


class CancelScope:
    """The requests of some threads, which can be ended together.

    Attributes:
      is_ended: whether they were; then there are no further ones.
    """

    def __init__(self) -> None:
        self.is_ended = False
        # Taken as such, and not as the condition, whose `with` is Python: an exception of a signal
        # handler that strikes inside of it leaves the lock locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._under_way: set[Interruptible] = set()
        _SCOPES.add(self)

    def enter(self) -> None:
        """Makes all requests that the calling thread sends from now on part of this scope."""
        _THREAD.scope = self

    @contextlib.contextmanager
    def request(self, request: Interruptible) -> Iterator[None]:
        """Marks a request as under way, with all its attempts and the pauses between them."""
        with self._lock:
            self._under_way.add(request)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(request)
                if not self._under_way:
                    self._changed.notify_all()

    def end(self) -> bool:
        """Ends the requests that are under way and refuses those to come.

        Returns:
          Whether all have ended. One that is still waiting for a connection to be made ends when
          that does, with an error.
        """
        self.is_ended = True
        gives_up_at = time.monotonic() + _LONGEST_WAIT_SECONDS
        with self._lock:
            if self._changed.wait_for(lambda: not self._under_way, _GRACE_SECONDS):
                return True
        while time.monotonic() < gives_up_at:
            with self._lock:
                waiting = list(self._under_way)
            for request in waiting:
                request.interrupt()
            with self._lock:
                # Again, because one may have got a new connection in the meantime.
                if self._changed.wait_for(lambda: not self._under_way, CHECK_SECONDS):
                    return True
        return False

    def interrupt(self) -> None:
        """Breaks the connections of the requests that are under way, and waits for nothing, not
        even for the lock.
        """
        for request in list(self._under_way):
            request.interrupt()


_SCOPES: weakref.WeakSet[CancelScope] = weakref.WeakSet()


def end_all() -> None:
    """Ends all requests of the process, without waiting for them: at its end."""
    scopes = list(_SCOPES)
    for scope in scopes:
        scope.is_ended = True
    for scope in scopes:
        scope.interrupt()


def scope_of_thread() -> CancelScope | None:
    """Returns the scope that the calling thread has entered, if any."""
    return getattr(_THREAD, "scope", None)
