"""Permits: a semaphore that the garbage collector may release in any thread."""

from __future__ import annotations

import queue

Permits = queue.SimpleQueue[None]


def permits(count: int) -> Permits:
    """Returns so many permits: `get` takes one and waits while there is none, `put(None)` gives one
    back.

    A semaphore of `threading` has a lock. Where the garbage collector ends what waits, in the
    middle of the wait and in its own thread, releasing it would wait for that lock forever.
    """
    found: Permits = queue.SimpleQueue()
    for _ in range(count):
        found.put(None)
    return found
