"""Row groups of data files -> the low-dimensional values, encoded images and task of single rows and windows.

A data file holds the rows of its episodes in the order of the episode table. That link is checked when a file is opened (number of rows)
and when a row group is read (`episode_index` of every row), so a file that belongs to another table is an error and never a wrong row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._parquet import ParquetTable, open_table, to_encoded_images, to_numpy, to_strings
from lerobot_grain._repository import Repository
from lerobot_grain._schema import Feature

TASK_KEY = "task"
_EPISODE_INDEX = "episode_index"
_TASK_INDEX = "task_index"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which features are read.

    Attributes:
      columns: features that are columns of the data files: low-dimensional ones and embedded images.
      videos: features that are video files.
      with_task: whether examples have the text of the task.
    """

    columns: tuple[Feature, ...]
    videos: tuple[Feature, ...]
    with_task: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that select this."""
        return (*(feature.key for feature in self.columns + self.videos), *([TASK_KEY] if self.with_task else []))


@dataclass(frozen=True, slots=True)
class DataFile:
    """An opened data file: its footer, and `number` among the data files."""

    table: ParquetTable
    number: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The selected columns of one row group.

    Attributes:
      first_row: row in the file of its first row.
      columns: feature key -> array `(rows, *shape)`, or a list of str or (images) bytes.
      tasks: task text of every row; empty if not selected.
      nbytes: bytes held.
    """

    first_row: int
    columns: Mapping[str, npt.NDArray[Any] | list[str] | list[bytes]]
    tasks: Sequence[str]
    nbytes: int
    _records: dict[tuple[str, ...], Records] = field(default_factory=dict)

    def records(self, keys: tuple[str, ...]) -> Records:
        """Returns the values of columns that are arrays, row by row: single rows are then had in one piece."""
        found = self._records.get(keys)
        if found is None:
            arrays = {key: column for key in keys if isinstance(column := self.columns[key], np.ndarray)}
            table = np.empty(len(next(iter(arrays.values()))), [(key, array.dtype, array.shape[1:]) for key, array in arrays.items()])
            for key, array in arrays.items():
                table[key] = array
            found = self._records[keys] = Records(table.view(np.uint8).data, table.dtype)
        return found


class Records(NamedTuple):
    """Rows as bytes, one after the other, each of a structured dtype with the columns as fields."""

    rows: memoryview
    dtype: np.dtype[Any]


def select_features(repository: Repository, features: Iterable[str] | None) -> Selection:
    """Returns what `features=` selects.

    Raises:
      InvalidRequestError: a key does not exist, is given twice, or is of a kind that is not supported.
      DatasetFormatError: a selected camera has no video.
    """
    declared = repository.features
    if isinstance(features, str):
        raise InvalidRequestError(f"features={features!r}: expected a list of keys")
    keys = [*declared, TASK_KEY] if features is None else list(features)
    if unknown := [key for key in keys if key not in declared and key != TASK_KEY]:
        raise InvalidRequestError(
            f"{repository.description}: there is no feature {unknown[0]!r}; there are {', '.join([*declared, TASK_KEY])}"
        )
    if len(set(keys)) < len(keys):
        raise InvalidRequestError(f"features={keys!r}: a key is given twice")
    if not keys:
        raise InvalidRequestError("features=[]: expected at least one key, or None for all")
    chosen = [declared[key] for key in keys if key in declared]
    for feature in chosen:
        if feature.is_video and feature.key not in repository.episodes.videos:
            raise DatasetFormatError(
                f"{repository.description}: camera {feature.key!r} has no video: info.json has no video_path, or the episode table has no "
                f"columns videos/{feature.key}/...; name the other features in features=[...]"
            )
        if feature.dtype == "language":
            raise InvalidRequestError(
                f"{repository.description}: feature {feature.key!r} is of dtype language, which is not supported yet; "
                "name the other features in features=[...]"
            )
    return Selection(
        columns=tuple(feature for feature in chosen if not feature.is_video),
        videos=tuple(feature for feature in chosen if feature.is_video),
        with_task=TASK_KEY in keys,
    )


def open_data_file(repository: Repository, number: int) -> DataFile:
    """Opens a data file and checks that it has the rows that the episode table puts into it.

    Raises:
      DatasetFormatError: it has not, or is not a parquet file.
      StorageError: its footer could not be had.
    """
    spans = repository.episodes.data
    table = open_table(repository.storage, spans.paths[number])
    expected = int(repository.episodes.lengths[spans.episodes_in(number)].sum())
    if table.num_rows != expected:
        raise DatasetFormatError(f"{table.where}: it has {table.num_rows} rows; the episode table puts {expected} into it")
    return DataFile(table, number)


def columns_to_read(file: DataFile, selection: Selection) -> list[str]:
    """Returns the columns that are read of a data file: the selected ones, and those that check and name what is read."""
    names = [feature.key for feature in selection.columns]
    extra = [_EPISODE_INDEX, *([_TASK_INDEX] if selection.with_task else [])]
    return names + [name for name in extra if name in file.table.leaves and name not in names]


def load_group(repository: Repository, file: DataFile, group: int, selection: Selection) -> RowGroup:
    """Reads the selected columns of a row group.

    Raises:
      DatasetFormatError: a column is missing, damaged or not what info.json declares, or the rows are not those of the episode table.
      StorageError: the bytes could not be had.
    """
    table = file.table
    where = f"{table.where}, row group {group}"
    first_row, stop_row = table.group_starts[group], table.group_starts[group + 1]
    found = table.read_group(group, columns_to_read(file, selection))
    if _EPISODE_INDEX in table.leaves:
        stored = to_numpy(found.column(_EPISODE_INDEX), _integer(_EPISODE_INDEX), where=where)
        _check_episodes(repository, file.number, first_row, stored, where)
    columns: dict[str, npt.NDArray[Any] | list[str] | list[bytes]] = {}
    for feature in selection.columns:
        column = found.column(feature.key)
        if feature.is_camera:
            columns[feature.key] = to_encoded_images(column, feature, where=where)
        elif feature.dtype == "string":
            columns[feature.key] = to_strings(column, feature, where=where)
        else:
            columns[feature.key] = to_numpy(column, feature, where=where)
    tasks: list[str] = []
    if selection.with_task:
        if _TASK_INDEX not in table.leaves:
            raise DatasetFormatError(
                f"{where}: there is no column {_TASK_INDEX}, which the text of the task needs; leave 'task' out of features"
            )
        tasks = _tasks(repository, to_numpy(found.column(_TASK_INDEX), _integer(_TASK_INDEX), where=where), where)
    assert found.num_rows == stop_row - first_row
    return RowGroup(first_row, columns, tasks, int(found.nbytes))


def _check_episodes(repository: Repository, file: int, first_row: int, stored: npt.NDArray[np.int64], where: str) -> None:
    held = repository.episodes.data.episodes_in(file)
    starts = repository.episodes.data_offsets[held]
    expected: npt.NDArray[np.int64] = held[np.searchsorted(starts, np.arange(first_row, first_row + len(stored)), side="right") - 1]
    if (bad := np.flatnonzero(stored != expected)).size:
        raise DatasetFormatError(
            f"{where}: row {first_row + bad[0]} of the file has episode_index {stored[bad[0]]}; "
            f"the episode table expects episode {expected[bad[0]]} there"
        )


def _tasks(repository: Repository, numbers: npt.NDArray[np.int64], where: str) -> list[str]:
    texts = {}
    for number in np.unique(numbers).tolist():
        if number not in repository.tasks:
            raise DatasetFormatError(
                f"{where}: task_index {number} is not in the table of tasks, which has 0 to {len(repository.tasks) - 1}"
            )
        texts[number] = repository.tasks[number]
    return [texts[number] for number in numbers.tolist()]


def _integer(key: str) -> Feature:
    return Feature(key, "int64", (1,))
