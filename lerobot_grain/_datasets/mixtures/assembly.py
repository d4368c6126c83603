"""Puts the examples of all components of a mixture together, in the order of its positions, and
checks that they have one structure.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._datasets.mixtures.components import Component, MappedExamples
from lerobot_grain._datasets.open_stream import Assembly
from lerobot_grain._reading.batches import Batch, split
from lerobot_grain._reading.pending import Taken, TakenTogether

# From this size on, rows of an array are copied one by one: that costs less than indexing, which
# goes through a copy.
_LARGE_BYTES = 4096


class _Unmapped(NamedTuple):
    """An example as it was read, and the number of its component."""

    component: int
    example: Any


class MixtureAssembly(Assembly):
    """Examples of a mixture.

    Args:
      components: in the order of their numbers.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        self._names = [component.name for component in components]
        self._maps = [MappedExamples(component) for component in components]
        self._structure = _Structure()
        self._arrays = ArrayPool()

    def examples(self, taken: TakenTogether) -> list[Any]:
        found: list[Any] = [None] * sum(len(part.places) for part in taken.parts)
        frames = split({**taken.frames}) if taken.frames else [{}] * len(found)
        for component, batch, places in taken.parts:
            for place, example in zip(places.tolist(), split(batch), strict=True):
                found[place] = _Unmapped(component, {**example, **frames[place]})
        return found

    def finished(self, example: Any) -> Any:
        component, read = example
        mapped = self._maps[component](read)
        self._structure.check(_leaves(mapped), self._names[component])
        return mapped

    def source_of(self, example: Any) -> int:
        component, _ = example
        return int(component)

    def batch(self, taken: TakenTogether) -> Batch:
        parts = taken.parts
        common = {key: _leaf(value[0]) for key, value in taken.frames.items()}
        for component, batch, _ in parts:
            leaves = {key: _leaf(value[0]) for key, value in batch.items()}
            self._structure.check({**leaves, **common}, self._names[component])
        if len(parts) == 1:
            return {**parts[0].batch, **taken.frames}
        count = sum(len(part.places) for part in parts)
        joined = {
            key: self._joined(key, [part.batch[key] for part in parts], parts, count)
            for key in parts[0].batch
        }
        return {**joined, **taken.frames}

    def _joined(self, key: str, values: list[Any], taken: Sequence[Taken], count: int) -> Any:
        if isinstance(values[0], list):
            items: list[Any] = [None] * count
            for value, part in zip(values, taken, strict=True):
                for place, item in zip(part.places.tolist(), value, strict=True):
                    items[place] = item
            return items
        array = self._arrays.empty(key, (count, *values[0].shape[1:]), values[0].dtype)
        for value, part in zip(values, taken, strict=True):
            if value[:1].nbytes < _LARGE_BYTES:
                array[part.places] = value
            else:
                for place, row in zip(part.places.tolist(), value, strict=True):
                    array[place] = row
        return array


class _Structure:
    """The structure that all examples have: that of the first one."""

    def __init__(self) -> None:
        self._first: tuple[str, Mapping[str, Any]] | None = None

    def check(self, leaves: Mapping[str, Any], name: str) -> None:
        """Notes or compares the leaves of an example of a component.

        Raises:
          InvalidRequestError: they are not those of the first example.
        """
        if self._first is None:
            self._first = name, leaves
        first_name, first = self._first
        if leaves == first:
            return
        leaf = next(key for key in {**first, **leaves} if first.get(key) != leaves.get(key))
        raise InvalidRequestError(
            f"a mixture: {leaf!r} is {_shown(leaves.get(leaf))} in an example of {name!r}, and "
            f"{_shown(first.get(leaf))} in one of {first_name!r}; expected the same keys, shapes "
            "and dtypes of all components. Bring them to a common form with .map on each, or with "
            "features=, image_size= and delta_timestamps="
        )


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Returns path -> dtype and shape of each leaf."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_leaves(item, f"{path}/{key}" if path else str(key)))
        return found
    if isinstance(value, tuple | list) and not (
        _are_messages(value) or all(isinstance(item, str) for item in value)
    ):
        found = {}
        for number, item in enumerate(value):
            found.update(_leaves(item, f"{path}/{number}"))
        return found
    return {path: _leaf(value)}


def _leaf(value: Any) -> Any:
    """Returns what is compared of a leaf: dtype and shape, of texts and others the type."""
    if _are_messages(value):
        return "messages", ()
    if isinstance(value, str | list | tuple):
        return type(value).__name__, np.shape(value)
    dtype = getattr(value, "dtype", None)
    return (type(value).__name__ if dtype is None else _name_of(dtype)), np.shape(value)


def _are_messages(value: Any) -> bool:
    """Returns whether a value is language: messages, or lists of them in a window. How many there
    are differs from row to row.
    """
    return isinstance(value, list) and all(
        _are_messages(item)
        if isinstance(item, list)
        else isinstance(item, Mapping) and not any(hasattr(each, "dtype") for each in item.values())
        for item in value
    )


# NumPy makes the text anew each time, and this is asked for every leaf of every example.
@functools.cache
def _name_of(dtype: Any) -> str:
    """Returns the name of a dtype; texts have one, though each length has a dtype of its own."""
    return {"U": "str", "S": "bytes"}.get(getattr(dtype, "kind", ""), str(dtype))


def _shown(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf[0]} {leaf[1]}"
