"""Finds our streams under a Grain pipeline, whatever transformations come after them.

A pipeline is a tree of datasets, or of their iterators. The search does not look under a node that
it was looking for. Streams in other processes, those of `mp_prefetch`, are not under an iterator of
this one.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import grain

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.positions import PositionsIterDataset
from lerobot_grain._datasets.read_windows import ReadWindowsIterator
from lerobot_grain._reading.read_statistics import ReadStatistics

Node = TypeVar("Node")


def sources_under(dataset: grain.IterDataset[Any]) -> list[PositionsIterDataset]:
    """Returns all our sources of rows under a dataset, itself included."""
    return _nodes_under(dataset, PositionsIterDataset)


def only_source_under(dataset: grain.IterDataset[Any], *, asked_by: str) -> PositionsIterDataset:
    """Returns our source of rows under a dataset.

    Args:
      dataset: the last dataset of the pipeline.
      asked_by: begins the message.

    Raises:
      InvalidRequestError: there is not exactly one.
    """
    found = sources_under(dataset)
    if len(found) != 1:
        raise InvalidRequestError(
            f"{asked_by}: found {len(found)} lerobot_grain streams in {dataset}; expected one"
        )
    return found[0]


def read_statistics(iterator: grain.DatasetIterator[Any]) -> ReadStatistics:
    """Returns what the stream under any Grain iterator, such as that of `.batch(64)`, has read so
    far.

    Raises:
      InvalidRequestError: there is not exactly one stream of ours under it in this process (those
        of `mp_prefetch` are in others).
    """
    found = _nodes_under(iterator, ReadWindowsIterator)
    if len(found) != 1:
        raise InvalidRequestError(
            f"read_statistics: found {len(found)} lerobot_grain streams under {iterator}; "
            "expected one"
        )
    return found[0].statistics()


def end_reading(iterator: grain.DatasetIterator[Any]) -> None:
    """Ends what all our streams under an iterator read ahead: a `next` in another thread that waits
    for it raises `StorageError`.
    """
    for stream in _nodes_under(iterator, _EndsReading):  # type: ignore[type-abstract]
        stream.end_reading()


@runtime_checkable
class _EndsReading(Protocol):
    """An iterator of ours that reads, or has others read."""

    def end_reading(self) -> None: ...


def _nodes_under(pipeline: object, kind: type[Node]) -> list[Node]:
    """Returns the datasets or iterators of a kind in a pipeline, each subtree in the order of the
    parents.
    """
    found: list[Node] = []
    waiting = [pipeline]
    while waiting:
        current = waiting.pop(0)
        if isinstance(current, kind):
            found.append(current)
        else:
            # Datasets have a public `parents`, too; iterators do not.
            waiting[:0] = getattr(current, "_parents", ())
    return found
