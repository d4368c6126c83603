"""Row groups of data files -> the low-dimensional values, encoded images and texts of single rows and windows.

A data file holds the rows of its episodes in the order of the episode table. That link is checked when a file is opened (number of rows)
and when a row group is read (`episode_index` of every row), so a file that belongs to another table is an error and never a wrong row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._byte_ranges import ByteRange, merge_ranges, slice_from
from lerobot_grain._columns import LanguageColumn, to_encoded_images, to_numpy, to_strings
from lerobot_grain._errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._parquet import ParquetTable, open_table
from lerobot_grain._repository import Repository
from lerobot_grain._schema import TASK_KEY, Feature

SUBTASK_KEY = "subtask"
_EPISODE_INDEX = "episode_index"
# Keys of texts that are looked up in a table of meta/ -> columns that number them.
_INDEX_OF = {TASK_KEY: "task_index", SUBTASK_KEY: "subtask_index"}

# Smaller row groups cost a request and hardly a byte, and there may be one for every episode: too many files for what they save.
_MIN_KEPT_GROUP_BYTES = 64 << 10

# A file of one episode without embedded images is hardly larger; so one request reads it whole.
_WHOLE_FILE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Selection:
    """Which features are read.

    Attributes:
      columns: features that are columns of the data files: low-dimensional ones and embedded images.
      videos: features that are video files.
      texts: `task`, `subtask` or both: which texts examples have.
    """

    columns: tuple[Feature, ...]
    videos: tuple[Feature, ...]
    texts: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that select this."""
        return (*(feature.key for feature in self.columns + self.videos), *self.texts)


@dataclass(frozen=True, slots=True)
class DataFile:
    """An opened data file.

    Attributes:
      table: its footer.
      number: among the data files.
      nbytes: of row groups that are in memory.
    """

    table: ParquetTable
    number: int
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The selected columns of one row group.

    Attributes:
      first_row: row in the file of its first row.
      columns: feature key -> array `(rows, *shape)`, or a sequence of str, (images) bytes or (language) lists; and the texts.
      nbytes: bytes held.
    """

    first_row: int
    columns: dict[str, npt.NDArray[Any] | Sequence[Any]]
    nbytes: int
    _records: dict[tuple[str, ...], Records] = field(default_factory=dict)

    def only(self, rows: npt.NDArray[np.int64]) -> RowGroup:
        """Returns some of its rows, as rows 0, 1, 2, ...; nothing of the others is held."""
        chosen = rows - self.first_row
        columns: dict[str, npt.NDArray[Any] | Sequence[Any]] = {
            key: column[chosen] if isinstance(column, np.ndarray) else [column[row] for row in chosen.tolist()]
            for key, column in self.columns.items()
        }
        return RowGroup(0, columns, nbytes=0)

    def records(self, keys: tuple[str, ...]) -> Records:
        """Returns the values of columns that are arrays, row by row: single rows are then had in one piece."""
        found = self._records.get(keys)
        if found is None:
            arrays = {key: column for key in keys if isinstance(column := self.columns[key], np.ndarray)}
            table = np.empty(len(next(iter(arrays.values()))), [(key, array.dtype, array.shape[1:]) for key, array in arrays.items()])
            for key, array in arrays.items():
                table[key] = array
                self.columns[key] = table[key]  # so that nothing is held twice
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
    has_subtasks = repository.subtasks is not None and _INDEX_OF[SUBTASK_KEY] in declared and SUBTASK_KEY not in declared
    known = [*declared, TASK_KEY, *([SUBTASK_KEY] if has_subtasks else [])]
    keys = known if features is None else list(features)
    if unknown := [key for key in keys if key not in known]:
        raise InvalidRequestError(f"{repository.description}: there is no feature {unknown[0]!r}; there are {', '.join(known)}")
    if len(set(keys)) < len(keys):
        raise InvalidRequestError(f"features={keys!r}: a key is given twice")
    if not keys:
        raise InvalidRequestError("features=[]: expected at least one key, or None for all")
    chosen = [declared[key] for key in keys if key in declared]
    for feature in chosen:
        if feature.is_video and feature.key not in repository.episodes.videos:
            raise DatasetFormatError(
                f"{repository.description}: camera {feature.key!r} has no video: the episode table has no columns "
                f"videos/{feature.key}/...; name the other features in features=[...]"
            )
    return Selection(
        columns=tuple(feature for feature in chosen if not feature.is_video),
        videos=tuple(feature for feature in chosen if feature.is_video),
        texts=tuple(key for key in keys if key not in declared),
    )


def open_data_file(repository: Repository, number: int) -> DataFile:
    """Opens a data file and checks that it has the rows that the episode table puts into it.

    Raises:
      DatasetFormatError: it has not, or is not a parquet file.
      StorageError: its footer could not be had.
    """
    spans = repository.episodes.data
    held = spans.episodes_in(number)
    expected = int(repository.episodes.lengths[held].sum())
    storage, path = repository.storage, spans.paths[number]
    with storage.checked(path):
        is_small = len(held) == 1 and storage.size_bytes(path) <= _WHOLE_FILE_BYTES
        table = open_table(storage, path, whole_up_to_bytes=_WHOLE_FILE_BYTES if is_small else 0)
        if table.num_rows != expected:
            raise DatasetFormatError(f"{table.where}: it has {table.num_rows} rows; the episode table puts {expected} into it")
    return DataFile(table, number)


def columns_to_read(file: DataFile, selection: Selection) -> list[str]:
    """Returns the columns that are read of a data file: the selected ones, and those that check and name what is read."""
    names = [feature.key for feature in selection.columns]
    extra = [_EPISODE_INDEX, *(_INDEX_OF[key] for key in selection.texts)]
    return names + [name for name in extra if name in file.table.leaves and name not in names]


def load_group(repository: Repository, file: DataFile, group: int, selection: Selection) -> RowGroup:
    """Reads the selected columns of a row group.

    Raises:
      DatasetFormatError: a column is missing, damaged or not what info.json declares, or the rows are not those of the episode table.
      StorageError: the bytes could not be had.
    """
    with repository.storage.checked(file.table.path):
        return _load_group(repository, file, group, selection)


def _load_group(repository: Repository, file: DataFile, group: int, selection: Selection) -> RowGroup:
    table = file.table
    where = f"{table.where}, row group {group}"
    first_row, stop_row = table.group_starts[group], table.group_starts[group + 1]
    names = columns_to_read(file, selection)
    found = table.read_group(group, names, keep=_is_to_be_kept(repository, table, group, names, selection))
    if _EPISODE_INDEX in table.leaves:
        stored = to_numpy(found.column(_EPISODE_INDEX), _integer(_EPISODE_INDEX), where=where)
        _check_episodes(repository, file.number, first_row, stored, where)
    columns: dict[str, npt.NDArray[Any] | Sequence[Any]] = {}
    for feature in selection.columns:
        column = found.column(feature.key)
        if feature.is_camera:
            columns[feature.key] = to_encoded_images(column, feature, where=where)
        elif feature.dtype == "string":
            columns[feature.key] = to_strings(column, feature, where=where)
        elif feature.dtype == "language":
            columns[feature.key] = LanguageColumn(column, feature, where=where)
        else:
            columns[feature.key] = to_numpy(column, feature, where=where)
    for key in selection.texts:
        index = _INDEX_OF[key]
        if index not in table.leaves:
            raise DatasetFormatError(
                f"{where}: there is no column {index}, which the text of the {key} needs; leave {key!r} out of features"
            )
        known = repository.tasks if key == TASK_KEY else repository.subtasks
        assert known is not None
        columns[key] = _texts(known, key, to_numpy(found.column(index), _integer(index), where=where), where)
    assert found.num_rows == stop_row - first_row
    return RowGroup(first_row, columns, int(found.nbytes))


def neighbours_of(repository: Repository, file: DataFile, group: int, selection: Selection, is_expected: npt.NDArray[np.bool_]) -> range:
    """Returns the row groups to fetch together with one, itself among them, where all of them are kept in memory.

    Those next to it that have rows of expected episodes and begin in the same piece of the file: so it does not matter which of them is
    needed first. What lies between their columns is fetched too. One that is longer than a piece, or kept on disk, is alone.

    Args:
      is_expected: bool `(episodes,)`: of which something will be needed.
    """
    piece_bytes = repository.storage.options.cost_bytes
    table, names = file.table, columns_to_read(file, selection)
    held = repository.episodes.data.episodes_in(file.number)
    stops = np.cumsum(repository.episodes.lengths[held])
    bounds = np.array(table.group_starts)

    def piece_of(number: int) -> int | None:
        first, last = np.searchsorted(stops, bounds[number : number + 2] - (0, 1), side="right").tolist()
        if not is_expected[held[first : last + 1]].any():
            return None
        try:
            chunks = table.ranges(number, names)
        except DatasetFormatError:
            return None  # which is nothing to the others
        if not chunks or _is_to_be_kept(repository, table, number, names, selection):
            return None
        start, stop = min(chunk.start for chunk in chunks), max(chunk.stop for chunk in chunks)
        return start // piece_bytes if stop - start <= piece_bytes else None

    begin, end = group, group + 1
    if (piece := piece_of(group)) is not None:
        while begin > 0 and piece_of(begin - 1) == piece:
            begin -= 1
        while end < len(bounds) - 1 and piece_of(end) == piece:
            end += 1
    return range(begin, end)


def fetch_groups(file: DataFile, groups: Sequence[int], selection: Selection) -> DataFile:
    """Reads the bytes of some row groups, in one request where they are neighbours; returns their file, with these in memory.

    Raises:
      StorageError: the bytes could not be had.
    """
    table, names = file.table, columns_to_read(file, selection)
    chunks = [chunk for group in groups for chunk in table.ranges(group, names)]
    # Without a limit, so that none ends inside of what is read together of a row group.
    ranges = merge_ranges(chunks, gap_bytes=0, max_bytes=table.size_bytes)
    payloads = table.storage.read_ranges(table.path, ranges)
    in_memory = replace(table, storage=_Fetched(table.storage.description, ranges, payloads))
    return DataFile(in_memory, file.number, nbytes=sum(map(len, payloads)))


@dataclass(frozen=True, slots=True)
class _Fetched:
    """Bytes of a file that are in memory, in the place of a storage."""

    description: str
    ranges: Sequence[ByteRange]
    payloads: Sequence[bytes]

    def read_ranges(self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False) -> list[bytes]:
        del path, keep
        return [slice_from(self.ranges, self.payloads, wanted) for wanted in ranges]

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        raise AssertionError(f"{path}: its footer, of {length} bytes or less ({keep=}), is known already")


def load_rows(repository: Repository, file: DataFile, group: int, selection: Selection, rows: npt.NDArray[np.int64]) -> RowGroup:
    """Reads a row group for some of its rows, as `load_group` does; they become rows 0, 1, 2, ..."""
    return load_group(repository, file, group, selection).only(rows)


def _is_to_be_kept(repository: Repository, table: ParquetTable, group: int, names: Sequence[str], selection: Selection) -> bool:
    """Returns whether a row group is kept on disk: numbers and texts, not pictures, of which many rows come for each that is wanted.

    Only where those of the whole data set, if all its row groups are like this one, take less than half of what may be kept. Otherwise the
    groups of each epoch would push out those of the same epoch, and the indices with them.
    """
    if any(feature.is_camera for feature in selection.columns):
        return False
    size = sum(chunk.length for chunk in table.ranges(group, names))
    rows = table.group_starts[group + 1] - table.group_starts[group]
    fits = 2 * size * repository.episodes.num_rows <= repository.storage.options.disk_cache_bytes * rows
    return fits and size >= _MIN_KEPT_GROUP_BYTES


def _check_episodes(repository: Repository, file: int, first_row: int, stored: npt.NDArray[np.int64], where: str) -> None:
    held = repository.episodes.data.episodes_in(file)
    starts = repository.episodes.data_offsets[held]
    expected: npt.NDArray[np.int64] = held[np.searchsorted(starts, np.arange(first_row, first_row + len(stored)), side="right") - 1]
    if (bad := np.flatnonzero(stored != expected)).size:
        raise DatasetFormatError(
            f"{where}: row {first_row + bad[0]} of the file has episode_index {stored[bad[0]]}; "
            f"the episode table expects episode {expected[bad[0]]} there"
        )


def _texts(known: Mapping[int, str], key: str, numbers: npt.NDArray[np.int64], where: str) -> list[str]:
    if odd := [number for number in np.unique(numbers).tolist() if number not in known]:
        raise DatasetFormatError(f"{where}: {_INDEX_OF[key]} {odd[0]} is not in the table of {key}s, which has 0 to {len(known) - 1}")
    return [known[number] for number in numbers.tolist()]


def _integer(key: str) -> Feature:
    return Feature(key, "int64", (1,))
