"""The Grain transformation from rows to window requests; and requests in blocks, as the reader
plans them, of any order or parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_opened, check_seed
from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.element_specs import request_spec
from lerobot_grain._datasets.frame_order import FrameOrderIterator, FrameOrderIterDataset
from lerobot_grain._datasets.positions import FollowingIterator
from lerobot_grain._datasets.sampling.selected_rows import ValidRowsArgument, valid_values
from lerobot_grain._order.named_windows import NamedWindows, Window
from lerobot_grain._order.seconds import TOLERANCE_SECONDS
from lerobot_grain._order.valid_windows import ValidRuns
from lerobot_grain._order.windows import (
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
    `.map(DeltaTimestamps(repository, {...}))` on any dataset of rows; or of pairs (row, position)
    where frames of `windows` are drawn, as `FrameOrderIterDataset(..., with_positions=True)` yields
    them.

    Args:
      repository: an opened dataset.
      delta_timestamps: feature key -> distances in seconds from the row, such as `{"action": [0.0,
        0.1, 0.2]}`.
      tolerance_seconds: a delta may be off a whole number of frames by this much.
      valid_rows: where a window would reach a row that is not valid, it holds the nearest valid one
        on the way to the row of the example, and is marked in its mask. As `ValidRows.values`;
        `None`: windows reach all rows.
      windows: name -> window with a name of its own in examples.
      seed: of the draws of `windows`; that of the shuffle, and 0 without one, gives those of
        `LeRobotIterDataset`.

    Raises:
      InvalidRequestError: no such feature, or a delta is not a whole number of frames; the message
        names the nearest ones. The name of a window is that of a feature. From `map`: a frame is to
        be drawn, and the position is not given.
    """

    def __init__(
        self,
        repository: Repository,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        *,
        tolerance_seconds: float = TOLERANCE_SECONDS,
        valid_rows: ValidRowsArgument = None,
        windows: Mapping[str, Window] | None = None,
        seed: int = 0,
    ) -> None:
        check_opened(repository, of="DeltaTimestamps")
        self._episodes = repository.episodes
        check_seed(seed, of="DeltaTimestamps")
        self._seed = seed
        known_keys = tuple(repository.features)
        self._offsets = window_offsets(
            delta_timestamps or {},
            fps=repository.fps,
            tolerance_seconds=tolerance_seconds,
            known_keys=known_keys,
        )
        self._named = NamedWindows(
            windows or {},
            fps=repository.fps,
            tolerance_seconds=tolerance_seconds,
            known_keys=known_keys,
            longest=int(self._episodes.lengths.max()),
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
    def keys(self) -> WindowKeys:
        """Keys of the features with windows, and of the windows with names."""
        return WindowKeys(self._offsets.keys, self._named.outputs)

    @property
    def definition(self) -> dict[str, Any]:
        """All that the frames of requests depend on besides the rows and the episodes, for JSON."""
        return {
            "delta_timestamps": self._offsets.frames_by_key,
            "windows": self._named.definition,
            "valid_rows": None if self._valid is None else self._valid.definition,
            "seed": self._seed if self._named.random_names else None,
        }

    def map(self, element: int | tuple[int, int]) -> WindowRequest:
        row, position = element if isinstance(element, tuple) else (element, None)
        return self.request(row, position)

    def request(self, row: int, position: int | None) -> WindowRequest:
        """Returns the request of a row, and of its own position; `None`: it is not known."""
        episodes = self._episodes
        place, frame = episodes.place_of(row)
        number = episodes.number_of(place)
        if self._valid is not None or self._named.outputs:
            positions = None if position is None else np.array([position])
            return _only_request(self.block(np.array([row]), positions), row=row, episode=number)
        return self._offsets.request(
            row=row, episode=number, frame=frame, length=episodes.lengths.item(place)
        )

    def output_spec(self, input_spec: Any) -> WindowRequest:
        """Returns the spec of the requests, for `grain.experimental.get_element_spec`."""
        del input_spec
        return request_spec(self._offsets.lengths, self._named.outputs, self._named.lengths)

    def block(self, rows: Integers, positions: Integers | None) -> WindowBlock:
        """Returns the requests of rows, int64 `(n,)`, which exist.

        Args:
          positions: int64 `(n,)`: own positions of the rows in their order; `None`: not known.

        Raises:
          InvalidRequestError: positions are needed.
        """
        episodes, frames = self._episodes.locate_all(rows)
        lengths = self._episodes.lengths[episodes]
        first_rows = self._episodes.first_rows[episodes]
        block = self._offsets.block(episodes=episodes, frames=frames, lengths=lengths)
        if self._valid is not None:
            block = self._valid.padded(block, first_rows)
        if not self._named.outputs:
            return block
        if positions is None and (random := self._named.random_names):
            raise InvalidRequestError(
                f"DeltaTimestamps: the frame of windows[{random[0]!r}] is drawn by the position of "
                "the row in its order, which is not known; expected pairs (row, position), as "
                "FrameOrderIterDataset(..., with_positions=True) yields them"
            )
        named = self._named.frames(
            block,
            first_rows=first_rows,
            lengths=lengths,
            positions=positions,
            seed=self._seed,
            valid=self._valid,
        )
        return replace(block, named=named)


def _only_request(block: WindowBlock, *, row: int, episode: int) -> WindowRequest:
    """Returns the only request of a block."""
    return WindowRequest(
        row,
        episode,
        block.anchor_frames.item(0),
        {key: window[0] for key, window in block.frames.items()},
        {key: mask[0] for key, mask in block.is_pad.items()},
        {name: window[0] for name, window in block.named.items()},
    )


class WindowKeys(NamedTuple):
    """The windows that requests have.

    Attributes:
      features: keys of those with delta timestamps.
      named: name -> key in examples -> feature key.
    """

    features: tuple[str, ...]
    named: Mapping[str, Mapping[str, str]]


def windows_of(requests: grain.IterDataset[Any]) -> WindowKeys | None:
    """Returns the windows of requests, as far as their pipeline tells it; `None` where it does
    not.
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
    if not known:
        return None
    features = tuple(dict.fromkeys(key for keys in known for key in keys.features))
    return WindowKeys(features, {name: keys.named[name] for keys in known for name in keys.named})


class OrderedWindowsIterDataset(grain.IterDataset[WindowRequest]):
    """`FrameOrderIterDataset(...).map(DeltaTimestamps(...))`, which also gives blocks."""

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


class OrderedWindowsIterator(FollowingIterator[WindowRequest]):
    """Yields requests one by one, or in blocks.

    Attributes:
      needed_every_epoch: as of `FrameOrderIterDataset`.
    """

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
        position = self._parent.next_position
        try:
            return self._transformation.request(next(self._parent), position)
        except BaseException:
            self._parent.set_state(before)
            raise

    def next_block(self) -> tuple[list[SourceBlock], StateAfter]:
        """Returns the next requests, of the only source, and their states.

        Raises:
          StopIteration: there are no more.
        """
        first = self._parent.next_position
        rows = self._parent.next_rows(_EXAMPLES_PER_BLOCK)
        state = self._parent.get_state()
        step = self._position_step
        count = len(rows)
        positions = first + step * np.arange(count)
        return _of_one_source(self._transformation.block(rows, positions)), lambda taken: {
            **state,
            "position": state["position"] - (count - taken) * step,
        }

    def index_of(self, state: dict[str, Any]) -> int:
        """Returns the number, in this shard, of the request that comes after a state of this
        stream.
        """
        index: int = self._parent.index_of(state)
        return index

    def _get_next_index(self) -> int:
        return self.index_of(self.get_state())


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
