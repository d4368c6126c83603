"""A few rows of a dataset, by their numbers: for debugging, plots and tests of a policy.

They go the way of a stream (`DeltaTimestamps`, `ReadWindowsIterDataset`), so an example is the
same here and there. Nothing stays open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from lerobot_grain._base.arguments import check_opened
from lerobot_grain._base.errors import InvalidRequestError, short_repr
from lerobot_grain._datasets.delta_timestamps import DeltaTimestamps
from lerobot_grain._datasets.lerobot_dataset import check_are_read
from lerobot_grain._datasets.read_windows import ReadWindowsIterDataset
from lerobot_grain._order.seconds import TOLERANCE_SECONDS
from lerobot_grain._reading.batches import Example
from lerobot_grain._reading.options import ReadOptions
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import select_features


def read_rows(
    repository: Repository,
    rows: int | Iterable[int],
    *,
    features: Iterable[str] | None = None,
    delta_timestamps: Mapping[str, Sequence[float]] | None = None,
    pad_keys: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    read_options: ReadOptions = ReadOptions(),  # noqa: B008 (a frozen value)
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> list[Example]:
    """Returns the examples at a few rows: what a stream with the same arguments gives for them.

        example, = read_rows(repository, 4711)
        first_frames = read_rows(repository, repository.episodes.first_rows)

    It opens the files that it needs and closes them. To read many rows, or all, make a stream: this
    one returns when it has read everything, and holds all of it.

    Args:
      repository: the opened dataset; it stays open.
      rows: one or more numbers of rows, 0 <= row < `repository.episodes.num_rows` (the `index`
        column): an int, a list of them, or an array of NumPy or JAX. In any order; a row that is
        given twice comes twice.
      features, delta_timestamps, pad_keys, image_size, read_options, tolerance_seconds: as of
        `LeRobotIterDataset`.

    Returns:
      One example for each row, in the order given; for one int, a list of one.

    Raises:
      InvalidRequestError: there is no such row, or an argument is out of its range.
      DatasetFormatError: a file is not what the metadata says, or a selected feature cannot be
        read.
      StorageError: the bytes could not be read.
    """
    check_opened(repository, of="read_rows")
    numbers = _checked_rows(repository, rows)
    selection = select_features(repository, features)
    windows = delta_timestamps or {}
    check_are_read(windows, {}, repository, selection)
    transformation = DeltaTimestamps(repository, windows, tolerance_seconds=tolerance_seconds)
    dataset = ReadWindowsIterDataset(
        _RowsIterDataset(numbers).map(transformation),
        repository,
        features=selection.keys,
        image_size=image_size,
        read_options=read_options,
        pad_keys=pad_keys,
    )
    with contextlib.closing(dataset.__iter__()) as examples:
        return list(examples)


def _checked_rows(repository: Repository, rows: int | Iterable[int]) -> list[int]:
    """Returns the numbers of rows, all of which exist."""
    count = repository.episodes.num_rows
    expected = f"expected ints, 0 <= row < {count}, the rows of {repository.description}"
    if hasattr(rows, "__array__"):  # of NumPy or JAX, or a Series of pandas
        rows = np.asarray(rows).tolist()  # an int, where it has no axis
    given = list(rows) if isinstance(rows, Iterable) else [rows]
    for row in given:
        if isinstance(row, bool) or not isinstance(row, int | np.integer):
            raise InvalidRequestError(f"read_rows: a row is {short_repr(row)}; {expected}")
        if not 0 <= row < count:
            raise InvalidRequestError(f"read_rows: there is no row {row}; {expected}")
    return [int(row) for row in given]


class _RowsIterDataset(grain.IterDataset[int]):
    """Rows, in the order given, once."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self._rows = rows

    def __iter__(self) -> grain.DatasetIterator[int]:
        return _RowsIterator(self._rows)

    def __str__(self) -> str:
        return f"rows {short_repr(self._rows)}"


class _RowsIterator(grain.DatasetIterator[int]):
    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self._rows = rows
        self._num_taken = 0

    def __next__(self) -> int:
        if self._num_taken == len(self._rows):
            raise StopIteration
        self._num_taken += 1
        return self._rows[self._num_taken - 1]

    def get_state(self) -> dict[str, Any]:
        return {"taken": self._num_taken}

    def set_state(self, state: dict[str, Any]) -> None:
        self._num_taken = state["taken"]
