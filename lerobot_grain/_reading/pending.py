"""Blocks of examples that were asked for, and examples that are taken of them, by the source that
they come from. Only bookkeeping: `_reading/read_ahead` does the work.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.batches import Batch, join
from lerobot_grain._reading.frames.frame_reader import BlockFrames
from lerobot_grain._reading.frames.gop_decoder import Decoding
from lerobot_grain._reading.rows.row_reader import PendingRows

WindowForms = tuple[Mapping[str, int], Mapping[str, Any]]

# Up to so many examples are looked up in a list, which is faster there.
_FEW = 32


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
      batch: of them, without the frames that all sources have in common.
      places: int64 `(examples,)`, ascending: of its examples among all that were taken together.
    """

    source: int
    batch: Batch
    places: Integers


class TakenTogether(NamedTuple):
    """Examples that were taken together.

    Attributes:
      parts: of each source that has some of them, in the order of the numbers of the sources.
      frames: camera -> frames of all examples, `(examples, ...)`, if those of all sources have one
        form; else empty, and each part has its own.
    """

    parts: Sequence[Taken]
    frames: Mapping[str, npt.NDArray[Any]]


class Announced(NamedTuple):
    """A block that was asked for, of one source.

    Attributes:
      frames: that it needs.
      mask_keys: feature key, or name of a window -> key of its mask in examples.
    """

    frames: BlockFrames
    mask_keys: Mapping[str, str]

    def part(self, start: int, stop: int) -> PendingPart | None:
        """Returns the part of it for the examples from `start` to `stop` of the block; `None` if
        there is none.
        """
        source, block, entries, places = self.frames
        first, last = np.searchsorted(places, (start, stop)).tolist()
        if first == last:
            return None
        members = slice(first, last)
        block = block[members]
        entries = {key: each[members] for key, each in entries.items()}
        return PendingPart(
            BlockFrames(source, block, entries, places[members] - start),
            block.window_values(self.mask_keys),
        )


@dataclass(eq=False, slots=True)
class PendingPart:
    """The part of a block that was asked for that comes from one source."""

    frames: BlockFrames
    # masks of its windows, and seconds of those with names, by their keys in examples
    masks: Mapping[str, npt.NDArray[Any]]
    rows: PendingRows | None = None
    values: Batch | None = None
    # the first example whose values could not be read, and why
    problem: tuple[int, Exception] | None = None

    def members(self, examples: slice) -> slice:
        """Returns which of its examples are among some of the block."""
        places = self.frames.places
        if len(places) > _FEW:
            start, stop = np.searchsorted(places, (examples.start, examples.stop)).tolist()
            return slice(start, stop)
        few = places.tolist()
        return slice(bisect_left(few, examples.start), bisect_left(few, examples.stop))


class PendingBlock:
    """Examples that were asked for, and not taken to the last one yet.

    Args:
      announced: the block that they belong to, by source.
      start, stop: which of its examples they are.

    Attributes:
      length: how many there are.
      num_taken: how many of them were taken.
      decoding: of their frames, once it was started.
    """

    def __init__(self, announced: Sequence[Announced], start: int, stop: int) -> None:
        self.length = stop - start
        self.num_taken = 0
        self.decoding: Decoding | None = None
        self._announced = announced
        self._start = start
        self._parts: list[PendingPart] | None = None

    def __len__(self) -> int:
        return self.length - self.num_taken

    @property
    def parts(self) -> list[PendingPart]:
        """By source; made when they are needed first, since many blocks are known far ahead."""
        if self._parts is None:
            stop = self._start + self.length
            found = [each.part(self._start, stop) for each in self._announced]
            self._parts = [part for part in found if part is not None]
        return self._parts


class Taking:
    """Examples that are being taken, and memory for their frames.

    Args:
      has_one_form: whether the frames of all sources do.
    """

    def __init__(self, *, has_one_form: bool) -> None:
        self._has_one_form = has_one_form
        self._frames: dict[int, _FrameArrays] = {}
        self._batches: dict[int, list[Batch]] = {}
        self._places: dict[int, list[Integers]] = {}
        self.num_taken = 0

    def fits(self, frames: BlockFrames) -> bool:
        """Returns whether examples can be in one batch with those that were taken."""
        found = self._frames.get(self._group(frames))
        return found is None or found.forms == window_forms(frames.block)

    def add(
        self,
        frames: BlockFrames,
        batch: Batch,
        places: Integers,
        make: Callable[[BlockFrames, int], Mapping[str, npt.NDArray[Any]]],
        *,
        most: int,
    ) -> tuple[Mapping[str, npt.NDArray[Any]], Integers]:
        """Adds examples of a source, but for the frames of videos.

        Args:
          frames: of the part of a block that they belong to.
          batch: of them.
          places: of them among all that are taken.
          make: memory for the frames of so many examples, by camera.
          most: so many examples may come whose frames go into the same memory.

        Returns:
          Where the frames go: by camera, and which examples of these arrays.
        """
        group = self._group(frames)
        if group not in self._frames:
            arrays = make(frames, most)
            self._frames[group] = _FrameArrays(arrays, window_forms(frames.block))
        self._batches.setdefault(frames.source, []).append(batch)
        self._places.setdefault(frames.source, []).append(places)
        found = self._frames[group]
        if self._has_one_form:
            return found.arrays, places
        return found.arrays, found.next_places(len(places))

    def together(self) -> TakenTogether:
        """Returns everything that was taken."""
        parts = []
        for source in sorted(self._batches):
            batch = join(self._batches[source])
            if not self._has_one_form:
                found = self._frames[source]
                batch.update({key: each[: found.count] for key, each in found.arrays.items()})
            parts.append(Taken(source, batch, np.concatenate(self._places[source])))
        common = self._frames[0].arrays if self._has_one_form and self._frames else {}
        return TakenTogether(parts, {key: each[: self.num_taken] for key, each in common.items()})

    def _group(self, frames: BlockFrames) -> int:
        """Returns which arrays hold the frames of a source."""
        return 0 if self._has_one_form else frames.source


@dataclass(eq=False, slots=True)
class _FrameArrays:
    """Memory for frames: by key in examples, for windows of these forms."""

    arrays: Mapping[str, npt.NDArray[Any]]
    forms: WindowForms
    count: int = 0

    def next_places(self, count: int) -> Integers:
        """Returns the next ones that are free."""
        self.count += count
        return np.arange(self.count - count, self.count)


def window_forms(block: WindowBlock) -> WindowForms:
    """Returns feature key -> frames of its windows, and name -> form of the window with it."""
    return (
        {key: window.shape[1] for key, window in block.frames.items()},
        {name: window.form for name, window in block.named.items()},
    )
