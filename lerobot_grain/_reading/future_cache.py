"""A cache of futures, bounded by the total size of their results: sample tables, footers, row
groups that are costly to make.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class FutureCache(Generic[Key, Value]):
    """Futures by key; above a limit the least recently used ones that are done are dropped.

    For one thread.

    Args:
      limit: on the sum of the sizes.
      size: of a value.

    Attributes:
      limit: may be changed.
      total: the sum of the sizes, as far as they are known.
    """

    def __init__(self, *, limit: int, size: Callable[[Value], int]) -> None:
        self.limit = limit
        self._size = size
        self._futures: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._unsized: list[Key] = []
        self.total = 0

    def get(self, key: Key, make: Callable[[], Future[Value]]) -> Future[Value]:
        """Returns the future of a key, made if it is not there."""
        found = self._futures.get(key)
        if found is not None:
            self._futures.move_to_end(key)
            return found
        self._drop()
        found = self._futures[key] = make()
        self._unsized.append(key)
        return found

    def _drop(self) -> None:
        for key in [key for key in self._unsized if self._futures[key].done()]:
            future = self._futures[key]
            self._sizes[key] = self._size(future.result()) if future.exception() is None else 0
            self.total += self._sizes[key]
            self._unsized.remove(key)
        while self.total > self.limit and self._sizes:
            oldest = next(key for key in self._futures if key in self._sizes)
            self.total -= self._sizes.pop(oldest)
            del self._futures[oldest]
