"""Values of which each process has one of its own: what belongs to threads and sockets does not
survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """Called, gives the value of this process, made when it is first asked for. Thread-safe.

    There is no lock, which a fork could copy locked.

    Args:
      make: makes it; threads that ask at once may make several, of which one is used.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._values: dict[int, Value] = {}

    def __call__(self) -> Value:
        found = self._values.get(os.getpid())
        return self._values.setdefault(os.getpid(), self._make()) if found is None else found
