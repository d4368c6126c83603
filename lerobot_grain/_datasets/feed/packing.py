"""Puts the small arrays of a batch into one, so that they go to another process through shared
memory together.

Each block of shared memory takes a tenth of a millisecond. Everything else goes
through a pipe, which holds 64 KiB: a worker that is killed while it waits for room in it leaves
half a message, for whose rest the consumer would wait forever. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._reading.batches import Batch, num_examples

# From this size on an array has a block of its own.
_MIN_OWN_BYTES = 64 << 10
# Arrays that are smaller, all together, go through the pipe.
MIN_SHARED_BYTES = 8 << 10
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of the arrays of a batch.

    Attributes:
      keys: of the batch, in its order.
      small: key -> dtype, shape and first byte of each array in `PackedBatch.small`.
    """

    keys: tuple[str, ...]
    small: dict[str, tuple[np.dtype[np.generic], tuple[int, ...], int]]


class PackedBatch(NamedTuple):
    """A batch on its way.

    Attributes:
      values: those that are not small arrays.
      small: uint8 `(bytes,)`: the small arrays one after the other.
      layout: of both.
    """

    values: Batch
    small: npt.NDArray[np.uint8]
    layout: Layout

    @property
    def num_examples(self) -> int:
        """The examples of the batch."""
        for _, shape, _ in self.layout.small.values():
            return shape[0]
        return num_examples(self.values)


def packed(batch: Batch) -> PackedBatch:
    """Returns a batch ready to be sent."""
    small: dict[str, tuple[np.dtype[np.generic], tuple[int, ...], int]] = {}
    size = 0
    for key, value in batch.items():
        if (
            isinstance(value, np.ndarray)
            and not value.dtype.hasobject
            and value.nbytes < _MIN_OWN_BYTES
        ):
            small[key] = (value.dtype, value.shape, size)
            size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(size, np.uint8)
    for key, place in small.items():
        _view(memory, *place)[...] = batch[key]
    values = {key: value for key, value in batch.items() if key not in small}
    return PackedBatch(values, memory, Layout(tuple(batch), small))


def unchanged(batch: Batch) -> PackedBatch:
    """Returns a batch that came without being packed, in the same form."""
    return PackedBatch(batch, np.empty(0, np.uint8), Layout(tuple(batch), {}))


def unpacked(found: PackedBatch) -> Batch:
    """Returns the batch; its small arrays are views of `small`."""
    values, memory, layout = found
    return {
        key: values[key] if key in values else _view(memory, *layout.small[key])
        for key in layout.keys
    }


def _view(
    memory: npt.NDArray[np.uint8],
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    first: int,
) -> npt.NDArray[np.generic]:
    stop = first + math.prod(shape) * dtype.itemsize
    return memory[first:stop].view(dtype).reshape(shape)
