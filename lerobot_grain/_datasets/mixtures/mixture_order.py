"""The Grain source of a mixture's positions, each of which is a row of one of its components.
Sharded, sliced and resumed by one number, as `_datasets/frame_order`, whose rules hold here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._datasets.delta_timestamps import StateAfter
from lerobot_grain._datasets.element_specs import NUMBER, TEXT
from lerobot_grain._datasets.mixtures.components import Component
from lerobot_grain._datasets.mixtures.mixture_state import MixtureState, restored
from lerobot_grain._datasets.positions import (
    PartOfPositions,
    PositionsIterator,
    PositionsIterDataset,
)
from lerobot_grain._order.mixture import MixtureOrder
from lerobot_grain._order.shuffle import EpochOrder
from lerobot_grain._reading.pending import SourceBlock

# Examples that are pulled at a time: so many for each component on average, since what it costs to
# ask for them is by component.
_EXAMPLES_PER_COMPONENT = 32
_EXAMPLES_PER_BLOCK = (256, 4096)  # at least, and at most


class MixtureOrderIterDataset(PositionsIterDataset):
    """The rows of a mixture, as (name of the component, row).

    Args:
      components: in the order of their names.
      state: of the mixture, not begun.
      part: which positions.
      allow_changes: whether states of other components and shares are restored.
      end: as of `PositionsIterDataset`.
    """

    def __init__(
        self,
        components: Sequence[Component],
        state: MixtureState,
        part: PartOfPositions,
        *,
        allow_changes: bool,
        end: str | None,
    ) -> None:
        super().__init__(part, end=end)
        self._components = components
        self._state = state
        self._allow_changes = allow_changes

    def __iter__(self) -> MixtureOrderIterator:
        return MixtureOrderIterator(
            self._components, self._state, self.part, allow_changes=self._allow_changes
        )

    @property
    def _element_spec(self) -> Any:
        return TEXT, NUMBER

    def __str__(self) -> str:
        return f"MixtureOrderIterDataset({len(self._components)} components)"


class MixtureOrderIterator(PositionsIterator):
    """Yields rows one by one, or window requests in blocks."""

    def __init__(
        self,
        components: Sequence[Component],
        state: MixtureState,
        part: PartOfPositions,
        *,
        allow_changes: bool,
    ) -> None:
        super().__init__(part)
        self._components = components
        self._new = state
        self._allow_changes = allow_changes
        self._rows = [_ComponentRows(component) for component in components]
        # Assigned in one step, so that it is right wherever an exception of a signal handler
        # strikes.
        self._place = _Place(state, state.order(), base=0, handed_out=0)

    def __next__(self) -> tuple[str, int]:
        self._assert_not_closed()
        before = self._place
        try:
            positions = self._next_positions(1)
            (component,), own = before.order.places(positions)
            row = self._rows[component].at(own)
        except BaseException:
            self._place = before
            raise
        return self._components[component].name, row.item(0)

    def next_block(self) -> tuple[list[SourceBlock], StateAfter]:
        """Returns the next requests of all components, and their states.

        Raises:
          StopIteration: there are no more.
        """
        least, most = _EXAMPLES_PER_BLOCK
        count = min(most, max(least, _EXAMPLES_PER_COMPONENT * len(self._components)))
        positions = self._next_positions(count)
        place = self._place
        numbers, own = place.order.places(positions)
        by_number = np.argsort(numbers, kind="stable")
        present, firsts = np.unique(numbers[by_number], return_index=True)
        parts = []
        for number, places in zip(present.tolist(), np.split(by_number, firsts[1:]), strict=True):
            rows = self._rows[number].at(own[places])
            block = self._components[number].transformation.block(rows, own[places])
            parts.append(SourceBlock(number, block, places))
        count = len(positions)
        step = self._part.step
        end = place.base + place.handed_out * step
        return parts, lambda taken: place.state.at(end - (count - taken) * step)

    def _next_positions(self, count: int) -> Integers:
        place = self._place
        positions = self._part.next_positions(
            base=place.base, handed_out=place.handed_out, count=count
        )
        self._place = place._replace(handed_out=place.handed_out + len(positions))
        return positions

    def get_state(self) -> dict[str, Any]:
        place = self._place
        return place.state.at(place.base + place.handed_out * self._part.step)

    def set_state(self, state: dict[str, Any]) -> None:
        found, position = restored(state, self._new, allow_changes=self._allow_changes)
        self._place = _Place(found, found.order(), base=position, handed_out=0)

    def __str__(self) -> str:
        return f"MixtureOrderIterator({len(self._components)} components)"


class _Place(NamedTuple):
    """The place where an iterator stands: the mixture and its order, and the elements handed out
    since `base`; so the position is base + handed_out * step.
    """

    state: MixtureState
    order: MixtureOrder
    base: int
    handed_out: int


class _ComponentRows:
    """The rows at positions of a component, which go forward."""

    def __init__(self, component: Component) -> None:
        self._order = component.order.order.rows
        self._epoch: tuple[int, EpochOrder] | None = None

    def at(self, positions: Integers) -> Integers:
        """Returns the rows at own positions, int64 `(n,)`, ascending."""
        epochs, elements = self._order.places_of(positions)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            if self._epoch is None or self._epoch[0] != epoch:
                self._epoch = epoch, self._order.epoch(epoch)
            members = epochs == epoch
            rows[members] = self._epoch[1].rows(elements[members])
        return rows
