"""Memory that is used again, or given back to the operating system.

Fresh memory for every batch costs more than filling it. So the arrays of an `ArrayPool` get memory
of earlier ones that nobody refers to any more.

Memory that threads allocate and free, in pieces of all sizes, leaves holes in the heaps of the C
library, and new threads leave other ones. While an iterator was opened and closed every three
seconds for an hour, what was allocated stayed the same to 0.8 MB, and the process grew by 16 MB
from minute 10 on (docs/robustness.md). glibc gives the holes back when it is told to.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

# Smaller arrays are left to the allocator, which uses their memory again itself.
_MIN_BYTES = 1 << 18
# Free memories of one size that are kept for one purpose: one is filled while the other is used.
_MAX_FREE = 1
# Free memories of other sizes that are kept for a purpose while one is made: of parts of batches
# that come again. Episodes, each of a length of its own, would keep everything.
_MAX_OTHER_BYTES = 256 << 20
# Between two times of telling it: that takes 5 to 40 ms.
_PAUSE_SECONDS = 10.0
_told_at = -_PAUSE_SECONDS


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None


_trim = _find_trim()


def give_back() -> None:
    """Gives memory that nobody uses back to the operating system, unless that was done a moment
    ago. For any thread.
    """
    global _told_at
    if _trim is None:
        return
    now = time.monotonic()
    if now - _told_at > _PAUSE_SECONDS:
        _told_at = now
        _trim(0)


class ArrayPool:
    """Makes arrays. The memory of one goes to another when it, and every view of it, is garbage."""

    def __init__(self) -> None:
        self._free: dict[tuple[Hashable, int], deque[npt.NDArray[np.uint8]]] = {}

    def empty(
        self, purpose: Hashable, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Returns an array with any contents, in memory of an earlier one of the same purpose and
        size if there is one. Arrays of objects have memory of their own.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _MIN_BYTES or dtype.hasobject:
            return np.empty(shape, dtype)
        free = self._free.setdefault((purpose, num_bytes), deque(maxlen=_MAX_FREE))
        try:
            memory = free.pop()
        except IndexError:
            self._drop_others(purpose, num_bytes)
            memory = np.empty(num_bytes, np.uint8)
        return np.asarray(_Lease(memory, shape, dtype, free))

    def _drop_others(self, purpose: Hashable, num_bytes: int) -> None:
        """Drops free memories of other sizes, the sizes that were asked for first, where there are
        too many.
        """
        others = [key for key in self._free if key[0] == purpose and key[1] != num_bytes]
        kept_bytes = sum(key[1] * len(self._free[key]) for key in others)
        for key in others:
            if kept_bytes > _MAX_OTHER_BYTES and self._free[key]:
                kept_bytes -= key[1] * len(self._free.pop(key))


class _Lease:
    """The object that an array, and so every view of it, keeps alive: NumPy's views refer to it,
    and not to the memory.
    """

    def __init__(
        self,
        memory: npt.NDArray[np.uint8],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        free: deque[npt.NDArray[np.uint8]],
    ) -> None:
        self._memory = memory
        self._free = free
        self.__array_interface__: dict[str, Any] = {
            **memory.view(dtype).__array_interface__,
            "shape": shape,
        }

    def __del__(self) -> None:
        # From any thread: appending is atomic.
        self._free.append(self._memory)
