"""Sources of positions: which positions of an endless order a shard streams, or a slice of one; and
what their iterators, and those that have the state of their parent, have in common.

Element k is position base + start + k * step, where base is 0 or comes from a restored state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.state import checked_position
from lerobot_grain._order.shuffle import ORDER_VERSION

Element = TypeVar("Element")

# Something of an episode comes in every epoch of one shard of n with certainty if n is 1, and else,
# with so many clips or chunks for each shard, in 95 of 100 cases (1 - e^-3).
_PER_SHARD = 3


def check_num_epochs(num_epochs: int | None) -> None:
    """Checks `num_epochs=`.

    Raises:
      InvalidRequestError: it is neither an int >= 1 nor `None`.
    """
    if num_epochs is not None:
        check_int("num_epochs", num_epochs, least=1, otherwise=", or None for an endless stream")


def are_needed_every_epoch(counts: Integers, *, step: int) -> npt.NDArray[np.bool_]:
    """Returns bool `(n,)`: of which episodes something is needed in every epoch.

    Args:
      counts: int64 `(n,)`, clips or chunks of each in every epoch.
      step: one in so many of them is taken.
    """
    return counts >= (1 if step == 1 else _PER_SHARD * step)


@dataclass(frozen=True, slots=True)
class PartOfPositions:
    """Which positions of an order a shard, or a slice of one, streams.

    Attributes:
      num_positions: the stream ends after this many, over all shards; `None`: it never does.
      shard_options: of the shard.
      start, step: of this part.
    """

    num_positions: int | None
    shard_options: grain.sharding.ShardOptions
    start: int
    step: int

    @classmethod
    def of_shard(
        cls, num_positions: int | None, shard_options: grain.sharding.ShardOptions
    ) -> PartOfPositions:
        """Returns all that a shard streams."""
        return cls(
            num_positions, shard_options, shard_options.shard_index, shard_options.shard_count
        )

    def sliced(self, sl: slice, *, sequential_slice: bool) -> PartOfPositions:
        """Returns every `sl.step`-th element of this part from the `sl.start`-th on.

        Raises:
          InvalidRequestError: the slice has an end, or goes backwards.
        """
        if sequential_slice:
            raise NotImplementedError(
                "lerobot_grain: contiguous slices (sequential_slice) are not supported; every "
                "worker takes every n-th row"
            )
        start = sl.start or 0
        step = sl.step or 1
        if sl.stop is not None or start < 0 or step < 1:
            raise InvalidRequestError(
                f"set_slice({sl}): expected slice(start, None, step) with start >= 0 and step >= 1"
            )
        return replace(self, start=self.start + start * self.step, step=self.step * step)

    def stop_position(self, base: int) -> int | None:
        """Returns the position at which the stream ends; `None`: never."""
        stop = self.num_positions
        if stop is not None and self.shard_options.drop_remainder:
            # All shards together take whole rounds from the base on. A worker's slice ends at the
            # same position as its host's shard.
            count: int = self.shard_options.shard_count
            stop = base + (stop - base) // count * count
        return stop

    def index_of(self, position: int) -> int:
        """Returns the number of the element that comes at the position of a state.

        Raises:
          InvalidRequestError: no element of this part comes there.
        """
        index, rest = divmod(position, self.step)
        if rest:
            raise InvalidRequestError(
                f"get_next_index: the stream stands at position {position} of all shards, which is "
                f"no multiple of {self.step}, the shards that there are: it was restored from a "
                "state of other shards; use get_state"
            )
        return index

    def position_of(self, index: int) -> int:
        """Returns the position of a state at which the element with a number comes next.

        Raises:
          InvalidRequestError: it is not an int >= 0.
        """
        check_int("index", index, least=0, of="set_next_index")
        return index * self.step

    def next_positions(self, *, base: int, handed_out: int, count: int) -> Integers:
        """Returns up to `count` positions after the elements that were handed out since `base`,
        int64 `(n,)`.

        Raises:
          StopIteration: there are no more.
        """
        first = base + self.start + handed_out * self.step
        stop = self.stop_position(base)
        if stop is not None:
            count = min(count, -(-(stop - first) // self.step))
        if count <= 0:
            raise StopIteration
        return np.arange(first, first + count * self.step, self.step)


class PositionsIterDataset(grain.IterDataset[Any]):
    """A source whose state is one position, the same on all shards.

    Attributes:
      part: which positions this is.
      end: the argument that ends the stream, such as `num_epochs=3`, or `None`.
    """

    def __init__(self, part: PartOfPositions, *, end: str | None) -> None:
        super().__init__()
        self.part = part
        self.end = end

    @property
    def shard_options(self) -> grain.sharding.ShardOptions:
        """Which shard this is, of how many."""
        return self.part.shard_options

    @property
    def position_step(self) -> int:
        """Positions from one element of this shard, or slice, to its next: the number of shards
        (times that of workers, in a worker).
        """
        return self.part.step

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Takes every `sl.step`-th element of this shard from the `sl.start`-th on: what Grain's
        `mp_prefetch` calls for each worker.
        """
        self.part = self.part.sliced(sl, sequential_slice=sequential_slice)


class PositionsIterator(grain.DatasetIterator[Any]):
    """An iterator of such a source; elements are numbered in its part."""

    # For an object whose construction failed, such as a failed copy: there is nothing to close.
    _closed = True

    def __init__(self, part: PartOfPositions) -> None:
        super().__init__()
        self._part = part

    def index_of(self, state: dict[str, Any]) -> int:
        """Returns the number, in this shard, of the element that comes after a state of this
        stream.
        """
        return self._part.index_of(state["position"])

    def _get_next_index(self) -> int:
        return self.index_of(self.get_state())

    def _set_next_index(self, index: int) -> None:
        self.set_state({**self.get_state(), "position": self._part.position_of(index)})


class OneOrderIterator(PositionsIterator):
    """An iterator of the order of one dataset; its state is the position and what the order depends
    on.

    Args:
      part: which positions.
      identity: what a state says of the stream besides the position.
      name: of the iterator.
    """

    def __init__(self, part: PartOfPositions, *, identity: dict[str, Any], name: str) -> None:
        super().__init__(part)
        self._identity = identity
        self._name = name
        # Elements handed out since `base`; the global position is base + handed_out * step.
        self._base = self._handed_out = 0

    def get_state(self) -> dict[str, Any]:
        return {
            "format": ORDER_VERSION,
            "position": self._base + self._handed_out * self._part.step,
            **self._identity,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        position = checked_position(state, self._identity)
        self._base = position
        self._handed_out = 0

    def __str__(self) -> str:
        return self._name


class FollowingIterator(grain.DatasetIterator[Element]):
    """An iterator whose state, and number of the next element, are those of its parent."""

    _closed = True

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._parent.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)

    def _get_next_index(self) -> int:
        index: int = grain.experimental.get_next_index(self._parent)
        return index

    def _set_next_index(self, index: int) -> None:
        grain.experimental.set_next_index(self._parent, index)
