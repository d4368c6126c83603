"""Integer arrays, and arrays that nobody may write to."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

Array = TypeVar("Array", bound=npt.NDArray[Any])


def read_only(array: Array) -> Array:
    """Returns the array itself, which cannot be written to any more."""
    array.flags.writeable = False
    return array
