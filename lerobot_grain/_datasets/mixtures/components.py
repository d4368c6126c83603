"""The components of a mixture: which streams may be one, and the transformations that come after
their reader.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import grain

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.delta_timestamps import DeltaTimestamps, OrderedWindowsIterDataset
from lerobot_grain._datasets.episodes.episode_dataset import EpisodeIterDataset
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.read_windows import Reading, ReadWindowsIterDataset
from lerobot_grain._reading.batches import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A stream in a mixture.

    Attributes:
      name: of the component.
      order: its rows.
      transformation: rows -> window requests.
      reading: what is read of each request.
      maps: Grain's datasets of the `.map`s on it, the last one first.
      dataset: all of it, as it was given.
    """

    name: str
    order: FrameOrderIterDataset
    transformation: DeltaTimestamps
    reading: Reading
    maps: tuple[grain.IterDataset[Any], ...]
    dataset: grain.IterDataset[Any]

    @property
    def identity(self) -> dict[str, Any]:
        """The state of its stream without the position."""
        state = self.order.__iter__().get_state()
        return {key: value for key, value in state.items() if key != "position"}

    @classmethod
    def of(cls, name: str, dataset: grain.IterDataset[Any]) -> Component:
        """Returns a dataset as a component.

        Raises:
          InvalidRequestError: it is not an endless, whole `LeRobotIterDataset`, or has other
            transformations on it than `.map`.
        """
        maps: list[grain.IterDataset[Any]] = []
        node: Any = dataset
        while not isinstance(node, ReadWindowsIterDataset):
            if type(node) is not _MAP:
                found = type(node).__name__
                remedy = (
                    "grain.IterDataset.mix takes streams of chunks"
                    if isinstance(node, EpisodeIterDataset)
                    else "Put .filter, .random_map, .batch, .repeat and prefetching after the "
                    "mixture"
                )
                raise InvalidRequestError(
                    f"a mixture: {name!r} is made with {found}; expected a LeRobotIterDataset, or "
                    f".map on one. {remedy}"
                )
            maps.append(node)
            (node,) = node.parents
        (requests,) = node.parents
        if not isinstance(requests, OrderedWindowsIterDataset):
            raise InvalidRequestError(
                f"a mixture: the requests of {name!r} come from {requests}; expected a "
                "LeRobotIterDataset"
            )
        order = requests.order
        part = order.part
        if part.num_positions is not None:
            raise InvalidRequestError(
                f"a mixture: {name!r} has {order.end}; components are endless, and "
                "num_examples= of the mixture ends it"
            )
        if part.step != 1 or part.start != 0:
            raise InvalidRequestError(
                f"a mixture: {name!r} is shard {part.start} of {part.step}; expected the whole "
                "stream, shard_options= belongs to the mixture"
            )
        return cls(
            name=name,
            order=order,
            transformation=requests.transformation,
            reading=node.reading,
            maps=tuple(maps),
            dataset=dataset,
        )


class MappedExamples:
    """Applies the maps of a component to examples, one by one."""

    def __init__(self, component: Component) -> None:
        self._name = component.name
        self._given = _GivenIterator()
        dataset: Any = _Given(self._given)
        for node in reversed(component.maps):
            mapped = copy.copy(node)
            # Grain's own iterator calls the function, and counts, whatever version of Grain it is.
            vars(mapped)["_parents"] = (dataset,)
            dataset = mapped
        self._iterator = dataset.__iter__()

    def __call__(self, example: Example) -> Any:
        """Returns the example after all maps.

        Raises:
          InvalidRequestError: one of them raised `StopIteration`. Any other error of theirs.
        """
        self._given.example = example
        try:
            return next(self._iterator)
        except StopIteration:
            raise InvalidRequestError(
                f"a mixture: a function in .map of {self._name!r} raised StopIteration, perhaps "
                "through next(); catch it there"
            ) from None


class _GivenIterator(grain.DatasetIterator[Example]):
    """Yields what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.example: Example = {}

    def __next__(self) -> Example:
        return self.example

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        del state

    def __str__(self) -> str:
        return "an example of a mixture"


class _Given(grain.IterDataset[Example]):
    def __init__(self, iterator: _GivenIterator) -> None:
        super().__init__()
        self._iterator = iterator

    def __iter__(self) -> grain.DatasetIterator[Example]:
        return self._iterator

    def __str__(self) -> str:
        return "an example of a mixture"


# The class of Grain's that `.map` returns an instance of.
_MAP = type(_Given(_GivenIterator()).map(dict))
