"""The definition of a stream: all that its examples depend on, as values of JSON.

A reader on another machine is started with a dataset of its own, which must be the same one. Its
consumer sends the definition of what it wants, never the dataset: a dataset would have to be
unpickled, which runs whatever code it holds. Two streams with equal definitions and equal states
yield equal examples.

The order of the rows (commit, episodes, weights, shuffle) is not in it: it stands in every state,
and is compared with that. Neither are memory, threads and shards, on which no example depends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grain

from lerobot_grain._base.errors import InvalidRequestError, short_repr
from lerobot_grain._datasets.delta_timestamps import DeltaTimestamps, OrderedWindowsIterDataset
from lerobot_grain._datasets.mixtures.mixture_dataset import MixtureIterDataset
from lerobot_grain._datasets.pipelines import only_source_under
from lerobot_grain._datasets.read_windows import ReadWindowsIterDataset

# Of what readers send, and what they are asked. To be raised with every change of either.
WIRE_VERSION = 1


def definition_of(dataset: grain.IterDataset[Any], *, asked_by: str) -> dict[str, Any]:
    """Returns the definition of a stream that readers on other machines can read.

    Raises:
      InvalidRequestError: it is no `LeRobotIterDataset`, `ReadWindowsIterDataset`, or mixture of
        such.
    """
    parts: dict[str, Any]
    if isinstance(dataset, MixtureIterDataset) and dataset.makes_batches:
        parts = {component.name: _of_stream(component.dataset) for component in dataset.components}
    elif isinstance(dataset, ReadWindowsIterDataset):
        parts = {"stream": _of_stream(dataset)}
    else:
        raise InvalidRequestError(
            f"{asked_by}: found {dataset}; expected a LeRobotIterDataset, a ReadWindowsIterDataset "
            "or a MixtureIterDataset of some without .map; put .map, .filter and .batch after the "
            "readers"
        )
    source = only_source_under(dataset, asked_by=asked_by)
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "wire_version": WIRE_VERSION,
                "num_positions": source.part.num_positions,
                "streams": parts,
            }
        )
    )
    return found


def _of_stream(dataset: Any) -> dict[str, Any]:
    (requests,) = dataset.parents
    nodes = [requests]
    for node in nodes:
        nodes.extend(node.parents)
    try:
        elements = _described(grain.experimental.get_element_spec(dataset))
    except (ValueError, NotImplementedError):
        # The requests do not say which windows they have.
        elements = None
    return {
        "elements": elements,
        "requests": [type(node).__name__ for node in nodes],
        "windows": [
            transformation.definition for node in nodes for transformation in _transformations(node)
        ],
    }


def _transformations(node: object) -> list[DeltaTimestamps]:
    """Returns the windows that a dataset of requests makes."""
    if isinstance(node, OrderedWindowsIterDataset):
        return [node.transformation]
    # Grain keeps the method of a transformation.
    values = [getattr(value, "__self__", value) for value in vars(node).values()]
    return [value for value in values if isinstance(value, DeltaTimestamps)]


def _described(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {key: _described(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_described(value) for value in spec]
    return f"{spec.dtype} {spec.shape}"


def check_same(wanted: object, served: object, *, where: str) -> None:
    """Compares the definition that a consumer wants with that of a reader.

    Args:
      wanted, served: the definitions.
      where: names the reader.

    Raises:
      InvalidRequestError: they differ; it says in which value.
    """
    if (different := _first_difference(wanted, served, "")) is not None:
        path, one, other = different
        raise InvalidRequestError(
            f"{where} reads another dataset: {path} is {short_repr(other)} there and "
            f"{short_repr(one)} in the dataset of RemoteReaderIterDataset; start the reader with "
            "the same dataset"
        )


def _first_difference(one: Any, other: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = {str(number): pair for number, pair in enumerate(zip(one, other, strict=True))}
    else:
        return None if one == other else (path or "the definition", one, other)
    for key, (left, right) in pairs.items():
        found = _first_difference(left, right, f"{path}.{key}" if path else str(key))
        if found is not None:
            return found
    return None
