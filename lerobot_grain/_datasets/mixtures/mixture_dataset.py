"""`MixtureIterDataset`: streams of many datasets as one, with weights, read by one reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Rational
from typing import Any

import grain

from lerobot_grain._base.arguments import check_int, check_seed
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.element_specs import common_spec
from lerobot_grain._datasets.feed.batches import WithBatches
from lerobot_grain._datasets.mixtures.assembly import MixtureAssembly
from lerobot_grain._datasets.mixtures.components import Component
from lerobot_grain._datasets.mixtures.mixture_order import (
    MixtureOrderIterator,
    MixtureOrderIterDataset,
)
from lerobot_grain._datasets.mixtures.mixture_state import MixtureState
from lerobot_grain._datasets.open_stream import OpenStream
from lerobot_grain._datasets.positions import PartOfPositions
from lerobot_grain._datasets.read_windows import ReadWindowsIterator
from lerobot_grain._order.mixture import TURN, shares_of
from lerobot_grain._order.shuffle import LOOKAHEAD_EXAMPLES, lookahead_examples
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._reading.read_ahead import ReadAhead
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._reading.read_statistics import ReadStatistics

# At most so many positions are known ahead. The rows of one GOP of a component that has one slot in
# a thousand are so far from each other that all that lies between them cannot be kept anyway.
_MAX_KNOWN_EXAMPLES = 8192


class MixtureIterDataset(WithBatches[Any]):
    """Streams of many datasets as one, in exact shares, resumed to the example.

        mixture = MixtureIterDataset(
            {"arm": LeRobotIterDataset("org/arm"), "hand": LeRobotIterDataset("org/hand").map(f)},
            {"arm": 3, "hand": 1},
        )

    Each component has exactly its share of the 65,536 examples of a turn, in an order that is
    shuffled anew for every turn. Each goes through its own rows in its own order, epoch after
    epoch. One reader serves all: memory, threads and the time to the first batch are those of one
    stream.

    Its state is one position and, for each component, where the present weights began; it restores
    on any number of shards. With `allow_changes`, it also restores with other weights, and with
    components added or taken out: from its position on, the ones of this dataset hold.

    Args:
      components: by name, each a `LeRobotIterDataset`, or `.map` on one, without `num_epochs` and
        `shard_options`. Their examples must have the same keys, shapes and dtypes.
      weights: by name, finite and > 0; they need not sum to 1. `None`: all are equal.
      seed: of the order in which components take turns, 0 <= seed < 2**64.
      num_examples: the mixture ends after this many, over all shards; `None`: it never does.
      shard_options: shard i of n gets positions i, i + n, ...; `grain.sharding.ShardByJaxProcess()`
        for one shard a host.
      read_options: memory and threads for all components; the ones of the components do not count.
      allow_changes: whether a state of other weights or components is restored.

    Raises:
      InvalidRequestError: an argument is out of its range, or a component is another dataset. From
        `next`: an example has another structure than those before it.
    """

    def __init__(
        self,
        components: Mapping[str, grain.IterDataset[Any]],
        weights: Mapping[str, float | Rational] | None = None,
        *,
        seed: int = 0,
        num_examples: int | None = None,
        shard_options: grain.sharding.ShardOptions = grain.sharding.NoSharding(),  # noqa: B008 (a frozen value)
        read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
        allow_changes: bool = False,
    ) -> None:
        check_seed(seed, of="MixtureIterDataset")
        if num_examples is not None:
            check_int(
                "num_examples", num_examples, least=1, otherwise=", or None for an endless stream"
            )
        self._shares = shares_of(_checked_weights(components, weights))
        self._components = [Component.of(name, components[name]) for name in self._shares]
        state = MixtureState.new(
            seed=seed,
            shares=self._shares,
            identities={component.name: component.identity for component in self._components},
        )
        order = MixtureOrderIterDataset(
            self._components,
            state,
            PartOfPositions.of_shard(num_examples, shard_options),
            allow_changes=allow_changes,
            end=None if num_examples is None else f"num_examples={num_examples}",
        )
        super().__init__(order)
        self._order = order
        self._read_options = read_options

    @property
    def shares(self) -> dict[str, int]:
        """By name of the component: how many of 65,536 examples that follow each other are its."""
        return dict(self._shares)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components, in the order of their names."""
        return tuple(self._components)

    def __iter__(self) -> MixtureIterator:
        reading = _MixtureReading(
            self._components, self._shares, self._read_options, step=self._order.position_step
        )
        return MixtureIterator(
            self._order.__iter__(), reading, name=str(self), components=list(self._shares)
        )

    @property
    def makes_batches(self) -> bool:
        return not any(component.maps for component in self._components)

    @property
    def _element_spec(self) -> Any:
        return common_spec(
            {
                component.name: grain.experimental.get_element_spec(component.dataset)
                for component in self._components
            }
        )

    def __str__(self) -> str:
        return f"MixtureIterDataset({len(self._components)} components)"


class MixtureIterator(ReadWindowsIterator):
    """Yields the examples of a mixture."""

    def __init__(
        self,
        parent: MixtureOrderIterator,
        reading: _MixtureReading,
        *,
        name: str,
        components: Sequence[str],
    ) -> None:
        super().__init__(parent, reading, name=name)
        self._names = components

    def component_statistics(self) -> dict[str, ReadStatistics]:
        """Returns by name of the component what was read of it; memory is counted for all
        together.
        """
        return {name: self.source_statistics(number) for number, name in enumerate(self._names)}


class _MixtureReading:
    """Opens the reader of a mixture."""

    def __init__(
        self,
        components: Sequence[Component],
        shares: Mapping[str, int],
        options: ReadOptions,
        *,
        step: int,
    ) -> None:
        self._components = components
        self._shares = shares
        self._options = options
        self._step = step

    def open(self, parent: MixtureOrderIterator) -> OpenStream:
        """Begins to read the positions of `parent`."""
        readings = [component.reading for component in self._components]
        context = ReadContext(
            self._options, num_cameras=sum(len(each.selection.videos) for each in readings)
        )
        sources = [
            component.reading.source(number, component.order.needed_every_epoch_of(self._step))
            for number, component in enumerate(self._components)
        ]
        ahead = ReadAhead(
            context,
            sources,
            known_examples=self._known_examples(),
        )
        return OpenStream(parent.get_state(), parent, ahead, MixtureAssembly(self._components))

    def _known_examples(self) -> int:
        """Returns how far ahead positions must be known, so that a GOP of any component is decoded
        once for all of its rows.
        """
        wanted = [
            (lookahead_examples(component.order.shuffle) - LOOKAHEAD_EXAMPLES)
            * TURN
            // self._shares[component.name]
            for component in self._components
        ]
        return min(_MAX_KNOWN_EXAMPLES, LOOKAHEAD_EXAMPLES + max(wanted))


def _checked_weights(
    components: Mapping[str, Any], weights: Mapping[str, float | Rational] | None
) -> Mapping[str, float | Rational]:
    """Returns the weights, of exactly the components."""
    if weights is None:
        return dict.fromkeys(components, 1)
    if different := sorted(weights.keys() ^ components.keys()):
        name = different[0]
        found = "has no weight" if name in components else "has a weight, but is no component"
        raise InvalidRequestError(
            f"a mixture: {name!r} {found}; expected one weight for each component"
        )
    return weights
