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


def short_hash(*arrays: npt.NDArray[Any]) -> str:
    """Returns 16 hexadecimal digits that say what numbers arrays hold, the same on every
    machine.
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.name} {array.shape} ".encode())
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()[:16]
