"""Row groups of data files -> the low-dimensional values, encoded images and texts of single rows
and windows.

A data file holds the rows of its episodes, each row group those that the episode table puts there.
That link is checked when a file is opened (number of rows) and when a row group is read
(`episode_index` of every row), so a file that belongs to another table is an error and never a
wrong row. Inside a row group the rows may lie in any order (`_format/row_order`). The column that
tells it is read with the others until the order of the row group is known in this process; after
that only where it is selected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.byte_ranges import ByteRange, merge_ranges, slice_from
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.row_order import GroupOrder, check_episodes, order_column
from lerobot_grain._format.texts import numbers_shown
from lerobot_grain._parquet.columns import (
    LanguageColumn,
    reordered,
    to_encoded_images,
    to_numpy,
    to_strings,
)
from lerobot_grain._parquet.table import ParquetTable, open_table
from lerobot_grain._reading.rows.order_reader import OrderReader, integer
from lerobot_grain._reading.rows.row_groups import RowGroup
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import INDEX_OF, FeatureSelection, texts_of

_EPISODE_INDEX = "episode_index"

# A file of one episode without embedded images is hardly larger; so one request reads it whole.
_WHOLE_FILE_BYTES = 64 << 10


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


def open_data_file(repository: Repository, number: int) -> DataFile:
    """Opens a data file and checks that it has the rows that the episode table puts into it.

    Raises:
      DatasetFormatError: it has not, or is not a parquet file.
      StorageError: its footer could not be read.
    """
    spans = repository.episodes.data
    held = spans.episodes_in(number)
    expected = int(repository.episodes.lengths[held].sum())
    storage = repository.storage
    path = spans.paths[number]
    with storage.checked(path):
        is_small = len(held) == 1 and storage.size_bytes(path) <= _WHOLE_FILE_BYTES
        table = open_table(storage, path, whole_up_to_bytes=_WHOLE_FILE_BYTES if is_small else 0)
        if table.num_rows != expected:
            raise DatasetFormatError(
                f"{table.where}: it has {table.num_rows} rows; the episode table puts {expected} "
                "into it"
            )
    return DataFile(table, number)


def selected_columns(file: DataFile, selection: FeatureSelection) -> list[str]:
    """Returns the columns of a data file that are selected, and those that check and name what is
    read.
    """
    names = [feature.key for feature in selection.columns]
    extra = [_EPISODE_INDEX, *(INDEX_OF[key] for key in selection.texts)]
    return names + [name for name in extra if name in file.table.leaves and name not in names]


def columns_to_read(
    repository: Repository, file: DataFile, group: int, selection: FeatureSelection
) -> list[str]:
    """Returns the columns that are read of a row group: the selected ones, and the one that orders
    rows unless their order is known.
    """
    known = repository.row_orders.get((file.number, group))
    names = selected_columns(file, selection)
    if known is not None and known.is_placed:
        return names
    order = order_column(file.table.leaves)
    return names if order is None or order in names else [*names, order]


def load_group(
    repository: Repository, file: DataFile, group: int, selection: FeatureSelection
) -> RowGroup:
    """Reads the selected columns of a row group.

    Raises:
      DatasetFormatError: a column is missing, damaged or not what info.json declares, or the rows
        are not those of the episode table.
      StorageError: the bytes could not be read.
    """
    with repository.storage.checked(file.table.path):
        return _load_group(repository, file, group, selection)


def _load_group(
    repository: Repository, file: DataFile, group: int, selection: FeatureSelection
) -> RowGroup:
    table = file.table
    where = f"{table.where}, row group {group}"
    first_row = table.group_starts[group]
    stop_row = table.group_starts[group + 1]
    names = columns_to_read(repository, file, group, selection)
    found = table.read_group(group, names)
    assert found.num_rows == stop_row - first_row
    order = _order(repository, file, group, found)
    found = found.select(selected_columns(file, selection))
    if order.places is not None:
        found = reordered(found, order.places)
    columns: dict[str, npt.NDArray[Any] | Sequence[Any]] = {}
    problems: dict[int, str] = {}
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
        index = INDEX_OF[key]
        if index not in table.leaves:
            raise DatasetFormatError(
                f"{where}: there is no column {index}, which the text of the {key} needs; leave "
                f"{key!r} out of features"
            )
        numbers = to_numpy(found.column(index), integer(index), where=where)
        known = texts_of(repository, key)
        columns[key] = [known.get(number, "") for number in numbers.tolist()]
        problems |= _missing_texts(
            known, key, numbers, first_row, lambda row: _name_of_row(repository, file, row)
        )
    return RowGroup(first_row, columns, int(found.nbytes), problems)


def _order(repository: Repository, file: DataFile, group: int, found: Any) -> GroupOrder:
    """Returns the order of the rows of a row group, checked against the other parts of the episodes
    that it holds a part of.

    Args:
      found: the Arrow table of the row group, with `columns_to_read`.
    """
    table = file.table
    where = f"{table.where}, row group {group}"
    known = repository.row_orders.get((file.number, group))
    if known is not None and _EPISODE_INDEX in table.leaves:
        # These bytes were read anew.
        stored = to_numpy(found.column(_EPISODE_INDEX), integer(_EPISODE_INDEX), where=where)
        check_episodes(
            stored if known.places is None else stored[known.places],
            _orders_of(repository, file).expected(group),
            where=where,
        )
    order = known or _orders_of(repository, file).learn(group, found)
    if order.is_placed:
        return order
    order = repository.row_orders[file.number, group] = _placed(
        repository, file, group, found, order
    )
    return order


def _placed(
    repository: Repository, file: DataFile, group: int, found: Any, order: GroupOrder
) -> GroupOrder:
    """Returns the order of a row group, compared with those of the other row groups that hold rows
    of the same episodes.
    """
    orders = _orders_of(repository, file)
    for part in order.unusual:
        others = orders.groups_of(part.episode)
        others.remove(group)
        _learn_orders(repository, file, others)
        if not orders.is_in_place(group, order, part, others):
            return orders.placed_by_index(group, order, found)
    return replace(order, is_placed=True)


def _learn_orders(repository: Repository, file: DataFile, groups: Sequence[int]) -> None:
    """Reads what orders the rows of row groups of a file, of those where it is not known yet, at
    once.
    """
    with repository.row_orders.comparing(file.number):
        unknown = [group for group in groups if (file.number, group) not in repository.row_orders]
        if not unknown:
            return
        nothing = FeatureSelection((), (), ())
        if not file.table.is_in_memory:
            # The file at hand may hold other row groups only.
            whole = replace(file, table=replace(file.table, storage=repository.storage))
            file = fetch_row_groups(repository, whole, unknown, nothing)
        for group in unknown:
            found = file.table.read_group(group, columns_to_read(repository, file, group, nothing))
            _orders_of(repository, file).learn(group, found)


def extents_to_join(
    repository: Repository,
    file: DataFile,
    selection: FeatureSelection,
    needed_every_epoch: npt.NDArray[np.bool_],
) -> Callable[[int], ByteRange | None]:
    """Returns a function that tells where the bytes of a row group lie, if it may come with others
    (`_reading/fetch_groups`).

    That is one with rows of an episode that is needed. Bytes between its columns count too, since
    they are fetched with them.

    Args:
      needed_every_epoch: bool `(episodes,)`: of which something will be needed.
    """
    table = file.table
    held = repository.episodes.data.episodes_in(file.number)
    stops = np.cumsum(repository.episodes.lengths[held])
    bounds = np.array(table.group_starts)

    def extent_of(number: int) -> ByteRange | None:
        first, last = np.searchsorted(
            stops, bounds[number : number + 2] - (0, 1), side="right"
        ).tolist()
        if not needed_every_epoch[held[first : last + 1]].any():
            return None
        try:
            chunks = table.ranges(number, columns_to_read(repository, file, number, selection))
        except DatasetFormatError:
            return None  # a defect that does not affect the others
        if not chunks:
            return None
        return ByteRange(min(chunk.start for chunk in chunks), max(chunk.stop for chunk in chunks))

    return extent_of


def fetch_row_groups(
    repository: Repository, file: DataFile, groups: Sequence[int], selection: FeatureSelection
) -> DataFile:
    """Reads the bytes of some row groups, in one request where they are neighbors; returns their
    file, with these in memory.

    Raises:
      StorageError: the bytes could not be read.
    """
    table = file.table
    chunks = [
        chunk
        for group in groups
        for chunk in table.ranges(group, columns_to_read(repository, file, group, selection))
    ]
    # Without a limit, so that none ends inside of what is read together of a row group.
    ranges = merge_ranges(chunks, gap_bytes=0, max_bytes=table.size_bytes)
    payloads = table.storage.read_ranges(table.path, ranges)
    in_memory = replace(table, storage=FetchedRanges(table.storage.description, ranges, payloads))
    return DataFile(in_memory, file.number, nbytes=sum(map(len, payloads)))


@dataclass(frozen=True, slots=True)
class FetchedRanges:
    """Bytes of a file that are in memory, in the place of a storage."""

    description: str
    ranges: Sequence[ByteRange]
    payloads: Sequence[bytes]

    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]:
        del path, keep
        return [slice_from(self.ranges, self.payloads, wanted) for wanted in ranges]

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        raise AssertionError(
            f"{path}: its footer, of {length} bytes or less ({keep=}), is known already"
        )


def load_rows(
    repository: Repository,
    file: DataFile,
    group: int,
    selection: FeatureSelection,
    rows: npt.NDArray[np.int64],
) -> RowGroup:
    """Reads a row group for some of its rows, as `load_group` does; they become rows 0, 1,
    2, ...
    """
    return load_group(repository, file, group, selection).only(rows)


def _missing_texts(
    known: Mapping[int, str],
    key: str,
    numbers: npt.NDArray[np.int64],
    first_row: int,
    name_of_row: Callable[[int], str],
) -> dict[int, str]:
    """Returns row of the file -> what is wrong with it, for the rows that name a text that is not
    there.
    """
    missing = [number for number in np.unique(numbers).tolist() if number not in known]
    if not missing:
        return {}
    rest = (
        f"is not in the table of {key}s, which has {numbers_shown(known)}; leave {key!r} out "
        "of features=[...] to read the row without"
    )
    return {
        row: f"{name_of_row(row)}: {INDEX_OF[key]} {numbers.item(row - first_row)} {rest}"
        for row in (first_row + np.flatnonzero(np.isin(numbers, missing))).tolist()
    }


def _name_of_row(repository: Repository, file: DataFile, row: int) -> str:
    """Returns what a row of a data file is called in messages."""
    row, episode, frame = place_of_row(repository, file, row)
    return f"{file.table.where}: row {row} of the dataset (episode {episode}, frame {frame})"


def place_of_row(repository: Repository, file: DataFile, row: int) -> tuple[int, int, int]:
    """Returns (row of the dataset, number of its episode, frame in it) of a row of a data file."""
    episodes = repository.episodes
    held = episodes.data.episodes_in(file.number)
    episode = held.item(np.searchsorted(episodes.data_offsets[held], row, side="right") - 1)
    frame = row - episodes.data_offsets.item(episode)
    return episodes.first_rows.item(episode) + frame, episodes.number_of(episode), frame


def _orders_of(repository: Repository, file: DataFile) -> OrderReader:
    return OrderReader(repository, file.table, file.number)
