"""Blocks of examples that were asked for, and examples that are taken of them, by the source that
they come from. Only bookkeeping: `_reading/read_ahead` does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.batches import Batch, join
from lerobot_grain._reading.frames.frame_reader import BlockFrames, Decoding
from lerobot_grain._reading.rows.row_reader import PendingRows


class SourceBlock(NamedTuple):
    """The part of a block of examples that comes from one source.

    Attributes:
      source: its number.
      block: the requests of its examples.
      places: int64 `(examples,)`, ascending: of its examples among all of the block.
    """

    source: int
    block: WindowBlock
    places: Integers


class Taken(NamedTuple):
    """Examples of one source that were taken.

    Attributes:
      source: its number.
      batch: of them.
      places: int64 `(examples,)`, ascending: of its examples among all that were taken together.
    """

    source: int
    batch: Batch
    places: Integers


@dataclass(eq=False, slots=True)
class PendingPart:
    """The part of a block that was asked for that comes from one source."""

    frames: BlockFrames
    masks: Mapping[str, npt.NDArray[np.bool_]]  # of its windows, by their keys in examples
    rows: PendingRows | None = None
    values: Batch | None = None
    # the first example whose values cannot be had, and why
    problem: tuple[int, Exception] | None = None

    def members(self, examples: slice) -> slice:
        """Returns which of its examples are among some of the block."""
        start, stop = np.searchsorted(self.frames.places, (examples.start, examples.stop)).tolist()
        return slice(start, stop)


@dataclass(eq=False, slots=True)
class PendingBlock:
    """A block that was asked for, and not taken to its end yet."""

    parts: Sequence[PendingPart]
    length: int
    num_taken: int = 0
    decoding: Decoding | None = None

    def __len__(self) -> int:
        return self.length - self.num_taken


class Taking:
    """Examples of one source that are being taken.

    Args:
      arrays: of each camera, for all examples that may come.
      lengths: of the windows of each feature.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], lengths: Mapping[str, int]) -> None:
        self.lengths = lengths
        self._arrays = arrays
        self._batches: list[Batch] = []
        self._places: list[Integers] = []
        self._count = 0

    def add(self, batch: Batch, places: Integers) -> Mapping[str, npt.NDArray[Any]]:
        """Adds examples, but for the frames of videos; returns where these go."""
        start = self._count
        self._count += len(places)
        self._batches.append(batch)
        self._places.append(places)
        return {key: array[start : self._count] for key, array in self._arrays.items()}

    def taken(self, source: int) -> Taken:
        """Returns all examples."""
        batch = join(self._batches)
        batch.update({key: array[: self._count] for key, array in self._arrays.items()})
        return Taken(source, batch, np.concatenate(self._places))


def window_lengths(block: WindowBlock) -> dict[str, int]:
    """Returns feature key -> frames of its windows."""
    return {key: window.shape[1] for key, window in block.frames.items()}
