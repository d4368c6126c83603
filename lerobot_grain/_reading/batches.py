"""Batches of examples: dicts of feature key -> array `(examples, ...)`; strings are lists of str,
or lists of lists. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lerobot_grain._base.errors import InvalidRequestError

Batch = dict[str, Any]
Example = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# Values up to this size may share the memory of the batch that they were cut from; larger ones,
# kept by somebody, would keep it all.
_MAX_SHARED_BYTES = 1024


def num_examples(batch: Batch) -> int:
    """Returns the number of examples of a batch."""
    return len(next(iter(batch.values())))


def join(batches: Sequence[Batch]) -> Batch:
    """Returns batches as one.

    Raises:
      InvalidRequestError: their examples have windows of different features or lengths.
    """
    if len(batches) == 1:
        return batches[0]
    first = shapes_of(batches[0])
    for other in batches[1:]:
        check_same_shapes(first, shapes_of(other))
    return {key: _joined([batch[key] for batch in batches]) for key in batches[0]}


def shapes_of(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each value of one example."""
    return {
        key: value.shape[1:] if isinstance(value, np.ndarray) else np.shape(value[0])
        for key, value in batch.items()
    }


def check_same_shapes(first: Shapes, other: Shapes) -> None:
    """Checks that examples with these shapes fit into one batch.

    Raises:
      InvalidRequestError: they have windows of different features or lengths.
    """
    if different := [key for key in {**first, **other} if first.get(key) != other.get(key)]:
        key = different[0]
        raise InvalidRequestError(
            f"a batch: {key!r} has shape {first.get(key, 'none')} in one example and "
            f"{other.get(key, 'none')} in another; expected windows of the same features and "
            "lengths in all examples of a batch"
        )


def _joined(values: list[Any]) -> Any:
    return (
        np.concatenate(values)
        if isinstance(values[0], np.ndarray)
        else list(itertools.chain.from_iterable(values))
    )


def part_of(batch: Batch, examples: slice) -> Batch:
    """Returns some examples of a batch, in memory of their own."""
    return {key: value[examples].copy() for key, value in batch.items()}


def split(batch: Batch) -> list[Example]:
    """Returns the examples of a batch. None of their arrays overlap."""
    count = num_examples(batch)
    return [
        {key: _cut(value, index, is_only=count == 1) for key, value in batch.items()}
        for index in range(count)
    ]


def _cut(value: Any, index: int, *, is_only: bool) -> Any:
    found = value[index]
    return (
        found.copy()
        if isinstance(found, np.ndarray) and found.nbytes > _MAX_SHARED_BYTES and not is_only
        else found
    )


def with_arrays_of_strings(batch: Batch) -> Batch:
    """Returns a batch as Grain stacks examples: str become one array of them, lists of str a list
    of arrays.
    """
    return {
        key: value if isinstance(value, np.ndarray) else _stacked(value)
        for key, value in batch.items()
    }


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [np.array(column) for column in zip(*values, strict=True)]
    return np.array(values)


def has_window(example: Mapping[str, Any], key: str) -> bool:
    """Returns whether a feature was read with delta timestamps, and so has a time axis: a feature
    may be called `{key}_is_pad` too.
    """
    return f"{key}_is_pad" in example and is_mask_of(example[f"{key}_is_pad"], example[key])


def is_mask_of(mask: Any, values: Any) -> bool:
    """Returns whether an array can be the mask of a window: bools in the shape of the first axes of
    its values.
    """
    found = np.asarray(mask)
    shape = np.shape(values)
    return found.dtype == np.bool_ and found.ndim >= 1 and found.shape == shape[: found.ndim]
