"""The Grain transformation from rows to window requests; and requests in blocks, as the reader
plans them, of any order or parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.element_specs import request_spec
from lerobot_grain._datasets.frame_order import FrameOrderIterator, FrameOrderIterDataset
from lerobot_grain._datasets.sampling.selected_rows import ValidRowsArgument, valid_values
from lerobot_grain._order.valid_windows import ValidRuns
from lerobot_grain._order.windows import (
    TOLERANCE_SECONDS,
    WindowBlock,
    WindowRequest,
    first_invalid,
    same_windows,
    stack_requests,
    window_offsets,
)
from lerobot_grain._reading.pending import SourceBlock
from lerobot_grain._repository.repository import Repository

# Number of examples of a block that were handed out -> the parent's state.
StateAfter = Callable[[int], dict[str, Any]]

# Requests that are pulled at a time.
_EXAMPLES_PER_BLOCK = 256


class DeltaTimestamps(grain.transforms.Map):
    """Custom Grain transformation: row -> `WindowRequest`, the frames that the example at that row
    needs.

    Pure arithmetic on the episode table; nothing is read. Use it as
    `.map(DeltaTimestamps(repository, {...}))` on any dataset of rows.

    Args:
      repository: an opened dataset.
      delta_timestamps: feature key -> distances in seconds from the row, such as `{"action": [0.0,
        0.1, 0.2]}`.
      tolerance_seconds: a delta may be off a whole number of frames by this much.
      valid_rows: where a window would reach a row that is not valid, it holds the nearest valid one
        on the way to the row of the example, and is marked in its mask. As `ValidRows.values`;
        `None`: windows reach all rows.

    Raises:
      InvalidRequestError: no such feature, or a delta is not a whole number of frames; the message
        names the nearest ones.
    """

    def __init__(
        self,
        repository: Repository,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        *,
        tolerance_seconds: float = TOLERANCE_SECONDS,
        valid_rows: ValidRowsArgument = None,
    ) -> None:
        self._episodes = repository.episodes
        self._offsets = window_offsets(
            delta_timestamps or {},
            fps=repository.fps,
            tolerance_seconds=tolerance_seconds,
            known_keys=tuple(repository.features),
        )
        self._valid: ValidRuns | None = None
        if valid_rows is not None:
            everything = np.arange(self._episodes.num_episodes)
            found = valid_values(repository, valid_rows, selected=everything)
            self._valid = ValidRuns(
                found.values
                if found.are_of_rows
                else np.repeat(found.values, self._episodes.lengths)
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the features with windows."""
        return self._offsets.keys

    def map(self, element: int) -> WindowRequest:
        if self._valid is not None:
            number, _ = self._episodes.locate(element)
            return _only_request(self.block(np.array([element])), row=element, episode=number)
        episodes = self._episodes
        position, frame = episodes.place_of(element)
        return self._offsets.request(
            row=element,
            episode=episodes.number_of(position),
            frame=frame,
            length=episodes.lengths.item(position),
        )

    def output_spec(self, input_spec: Any) -> WindowRequest:
        """Returns the spec of the requests, for `grain.experimental.get_element_spec`."""
        del input_spec
        return request_spec(self._offsets.lengths)

    def block(self, rows: npt.NDArray[np.int64]) -> WindowBlock:
        """Returns the requests of rows, int64 `(n,)`, which exist."""
        episodes, frames = self._episodes.locate_all(rows)
        block = self._offsets.block(
            episodes=episodes, frames=frames, lengths=self._episodes.lengths[episodes]
        )
        if self._valid is None:
            return block
        return self._valid.padded(block, self._episodes.first_rows[episodes])


def _only_request(block: WindowBlock, *, row: int, episode: int) -> WindowRequest:
    """Returns the only request of a block."""
    return WindowRequest(
        row,
        episode,
        block.anchor_frames.item(0),
        {key: window[0] for key, window in block.frames.items()},
        {key: mask[0] for key, mask in block.is_pad.items()},
    )


def windows_of(requests: grain.IterDataset[Any]) -> tuple[str, ...] | None:
    """Returns the keys of the features that requests have windows of, as far as their pipeline
    tells it; `None` where it does not.
    """
    for value in vars(requests).values():
        # Grain keeps the method of a transformation.
        transformation = getattr(value, "__self__", value)
        if isinstance(transformation, DeltaTimestamps):
            return transformation.keys
    found = [
        windows_of(parent)
        for parent in getattr(requests, "_parents", ())
        if isinstance(parent, grain.IterDataset)
    ]
    known = [keys for keys in found if keys is not None]
    return tuple(dict.fromkeys(key for keys in known for key in keys)) if known else None


class OrderedWindowsIterDataset(grain.IterDataset[WindowRequest]):
    """`FrameOrderIterDataset(...).map(DeltaTimestamps(...))`, which can also be had in blocks."""

    def __init__(self, order: FrameOrderIterDataset, transformation: DeltaTimestamps) -> None:
        super().__init__(order)
        self.order = order
        self.transformation = transformation

    def __iter__(self) -> OrderedWindowsIterator:
        return OrderedWindowsIterator(
            self._parent.__iter__(),
            self.transformation,
            position_step=self._parent.position_step,
            needed_every_epoch=self._parent.needed_every_epoch,
        )

    @property
    def _element_spec(self) -> Any:
        return self.transformation.output_spec(None)

    def __str__(self) -> str:
        return f"{self._parent}.map(DeltaTimestamps)"


class OrderedWindowsIterator(grain.DatasetIterator[WindowRequest]):
    """Yields requests one by one, or in blocks.

    Attributes:
      needed_every_epoch: as of `FrameOrderIterDataset`.
    """

    # For an object whose construction failed, such as a failed copy: there is nothing to close.
    _closed = True

    def __init__(
        self,
        order: FrameOrderIterator,
        transformation: DeltaTimestamps,
        *,
        position_step: int,
        needed_every_epoch: npt.NDArray[np.bool_],
    ) -> None:
        super().__init__(order)
        self._transformation = transformation
        self._position_step = position_step
        self.needed_every_epoch = needed_every_epoch

    def __next__(self) -> WindowRequest:
        before = self._parent.get_state()
        try:
            return self._transformation.map(next(self._parent))
        except BaseException:
            self._parent.set_state(before)
            raise

    def next_block(self) -> tuple[list[SourceBlock], StateAfter]:
        """Returns the next requests, of the only source, and their states.

        Raises:
          StopIteration: there are no more.
        """
        rows = self._parent.next_rows(_EXAMPLES_PER_BLOCK)
        state = self._parent.get_state()
        step = self._position_step
        count = len(rows)
        return _of_one_source(self._transformation.block(rows)), lambda taken: {
            **state,
            "position": state["position"] - (count - taken) * step,
        }

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._parent.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)

    def index_of(self, state: dict[str, Any]) -> int:
        """Returns the number, in this shard, of the request that comes after a state of this
        stream.
        """
        index: int = self._parent.index_of(state)
        return index

    def _get_next_index(self) -> int:
        return self.index_of(self.get_state())

    def _set_next_index(self, index: int) -> None:
        grain.experimental.set_next_index(self._parent, index)


class WindowBlockBuilder:
    """Builds blocks of the requests of any iterator.

    Attributes:
      needed_every_epoch: bool `(episodes,)`: of no episode, since nothing is known of what will
        come.
    """

    def __init__(
        self, parent: grain.DatasetIterator[WindowRequest], repository: Repository
    ) -> None:
        self._parent = parent
        self._episodes = repository.episodes
        self.needed_every_epoch = np.zeros(self._episodes.num_episodes, np.bool_)
        self._next: tuple[WindowRequest, dict[str, Any]] | None = None  # pulled, and not in a block
        self._error: Exception | None = None

    def next_block(self) -> tuple[list[SourceBlock], StateAfter]:
        """As `OrderedWindowsIterator.next_block`; any error of the parent, or in a request, comes
        after the requests before it.
        """
        requests: list[WindowRequest] = []
        states: list[dict[str, Any]] = []
        while len(requests) < _EXAMPLES_PER_BLOCK and self._pull() is not None:
            assert self._next is not None
            if requests and not same_windows(requests[0], self._next[0]):
                break
            requests.append(self._next[0])
            states.append(self._next[1])
            self._next = None
        if not requests:
            assert self._error is not None
            raise self._error
        block = stack_requests(requests)
        episodes = self._episodes
        positions = episodes.positions_of(block.episodes)
        problem = first_invalid(
            block, positions, episodes.lengths, shown_episodes=episodes.shown_numbers
        )
        block = replace(block, episodes=positions)
        if problem is not None:
            index, text = problem
            self._next = None
            self._error = InvalidRequestError(f"a WindowRequest: {text}")
            block = block[:index]
            if index == 0:
                raise self._error
        return _of_one_source(block), lambda taken: {**states[taken - 1]}

    def _pull(self) -> tuple[WindowRequest, dict[str, Any]] | None:
        if self._next is None and self._error is None:
            try:
                self._next = next(self._parent), self._parent.get_state()
            except Exception as error:  # also StopIteration
                self._error = error
        return self._next


def _of_one_source(block: WindowBlock) -> list[SourceBlock]:
    return [SourceBlock(0, block, np.arange(len(block)))]
