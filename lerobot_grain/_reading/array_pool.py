"""Arrays whose memory is used again once nobody refers to them: fresh memory for every batch costs
more than filling it. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

# Smaller arrays are left to the allocator, which uses their memory again itself.
_MIN_BYTES = 1 << 18
# Free memories that are kept for one purpose: one is filled while the other is used.
_MAX_FREE = 1


class ArrayPool:
    """Makes arrays. The memory of one goes to another when it, and every view of it, is garbage."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int], deque[npt.NDArray[np.uint8]]] = {}

    def empty(self, purpose: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Returns an array with any contents, in memory of an earlier one of the same purpose and
        size if there is one.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _MIN_BYTES:
            return np.empty(shape, dtype)
        free = self._free.setdefault((purpose, num_bytes), deque(maxlen=_MAX_FREE))
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        return np.asarray(_Lease(memory, shape, dtype, free))


class _Lease:
    """What an array, and so every view of it, keeps alive: NumPy's views refer to it, and not to
    the memory.
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
