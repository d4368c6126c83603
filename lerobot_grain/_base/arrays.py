"""Integer arrays, and arrays that nobody may write to."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

Array = TypeVar("Array", bound=npt.NDArray[Any])


def read_only(array: Array) -> Array:
    """Returns the array itself, which cannot be written to any more."""
    array.flags.writeable = False
    return array


def evenly_spread(count: int, at_most: int | None) -> Integers:
    """Returns int64 `(n,)`: at most so many of the numbers from 0 to `count - 1`, ascending, evenly
    spread, the first and the last among them; all of them where `at_most` is not less, or `None`.
    """
    wanted = count if at_most is None else min(count, at_most)
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def short_hash(*arrays: npt.NDArray[Any]) -> str:
    """Returns 16 hexadecimal digits that say what numbers arrays hold, the same on every
    machine.
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.name} {array.shape} ".encode())
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()[:16]
