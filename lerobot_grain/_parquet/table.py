"""Parquet bytes -> Arrow columns, one row group at a time and only the columns asked for.

A parquet file ends with a footer that says where every column chunk of every row group lies. It is
read once per file; then a row group costs one read of the chunks of the projected columns, merged
by the storage. lerobot's recorder writes one row group an episode; official and converted sets have
row groups of 1000 rows or one for the whole file, so nothing here knows about episodes.

Files may lie. Their cost is bounded before it arises: footers by the limits of the Thrift decoder,
row groups by the headers of their pages (`_parquet/pages`), which no decoder goes beyond.
"""

from __future__ import annotations

import itertools
import operator
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_grain._base.byte_ranges import ByteRange, merge_ranges
from lerobot_grain._base.errors import DatasetFormatError, short_repr
from lerobot_grain._parquet.columns import DAMAGED, as_format_error, first_line, flat_values
from lerobot_grain._parquet.files import InMemoryFile, RangeReader, SparseFile, UnreadFile
from lerobot_grain._parquet.pages import chunk_contents

# Holds the footers of most data files (about 150 bytes a column chunk), so that they cost one
# request.
_TAIL_BYTES = 16 << 10
_MAX_FOOTER_BYTES = 256 << 20
# Column chunks that lie side by side are asked for as one range up to this size, which holds a
# whole data file of lerobot (100 MB). The storage cuts what is too long for one request, which
# makes fewer than a request for every chunk above its own limit for merging.
_MAX_REQUEST_BYTES = 128 << 20
# A footer in memory is larger than in its file.
_BYTES_OF_FOOTER = 4
_MAGIC = b"PAR1"
# The Thrift decoder makes room for a list as long as it is said to be, 700 bytes an element, before
# it reads the first one (pyarrow 26: 6 GB for 40 bytes). So no list may be longer than the footer
# has room for at so many bytes an element, nor than any needs.
_MIN_ELEMENT_BYTES = 8
_MAX_ELEMENTS = 200_000
# Columns that are read may take this many bytes in memory, or this many times their bytes in the
# file, whichever is more. lerobot's data files have up to 100 MB; images do not unpack to more,
# numbers to a few times as much.
_MAX_UNPACKED_BYTES = 256 << 20
_MAX_UNPACKED_TIMES = 8
# Bytes of a value in memory by its physical type, without levels and offsets.
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
# The offset of a list.
_LIST_BYTES = 4
# Levels (16 bits each) and offsets of a value.
_OVERHEAD_BYTES = 8


@dataclass(frozen=True)
class ParquetTable:
    """The footer of one parquet file.

    Attributes:
      storage, path: where the file is.
      size_bytes: of the file.
      metadata: pyarrow's.
    """

    storage: RangeReader
    path: str
    size_bytes: int
    metadata: pq.FileMetaData
    # Leaf columns whose chunks were checked, and the leaf columns of row groups whose pages were:
    # the file does not change.
    _checked_leaves: set[int] = field(default_factory=set, repr=False, compare=False)
    _checked_pages: set[tuple[int, ...]] = field(default_factory=set, repr=False, compare=False)

    @property
    def where(self) -> str:
        return f"{self.storage.description}, {self.path}"

    @property
    def num_rows(self) -> int:
        return int(self.metadata.num_rows)

    @cached_property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()

    @cached_property
    def group_starts(self) -> list[int]:
        """First row in the file of every row group, then the number of rows."""
        counts = [
            self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)
        ]
        return [0, *np.cumsum(counts, dtype=np.int64).tolist()]

    @cached_property
    def leaves(self) -> Mapping[str, range]:
        """Column -> the numbers of its leaf columns, which is how column chunks are counted."""
        spans = {}
        first = 0
        for column in self.schema:
            count = _num_leaves(column.type)
            spans[column.name] = range(first, first + count)
            first += count
        return spans

    @cached_property
    def _widthless(self) -> Mapping[str, list[int]]:
        """Column of lists of a fixed length of 0 -> the lengths of the lists on each axis, down to
        that one.

        There is nothing in them, and Arrow does not read what it writes of them (pyarrow 26:
        "Expected all lists to be of size=0").
        """
        lengths = {column.name: _fixed_lengths(column.type) for column in self.schema}
        return {name: found for name, found in lengths.items() if 0 in found}

    @property
    def is_in_memory(self) -> bool:
        """Whether the whole file is."""
        return isinstance(self.storage, InMemoryFile)

    @property
    def estimated_bytes(self) -> int:
        """Memory that the opened table takes."""
        return (self.size_bytes if self.is_in_memory else 0) + _BYTES_OF_FOOTER * int(
            self.metadata.serialized_size
        )

    def group_of_row(self, row: int) -> int:
        """Returns the row group that holds row `row` of the file."""
        return bisect_right(self.group_starts, row) - 1

    def ranges(self, group: int, columns: Sequence[str]) -> list[ByteRange]:
        """Returns the bytes of the column chunks of `columns` in a row group."""
        leaves = self._leaves(columns)
        self._check_chunks(leaves)
        row_group = self.metadata.row_group(group)
        ranges = []
        for leaf in leaves:
            chunk = row_group.column(leaf)
            # A dictionary page, where there is one, comes first (parquet.thrift, ColumnMetaData).
            start = (
                chunk.data_page_offset
                if chunk.dictionary_page_offset is None
                else min(chunk.dictionary_page_offset, chunk.data_page_offset)
            )
            found = ByteRange(start, start + chunk.total_compressed_size)
            if not 0 <= found.start < found.stop <= self.size_bytes:
                raise DatasetFormatError(
                    f"{self.where}, row group {group}: a column chunk should lie at bytes "
                    f"{found}, but the file has {self.size_bytes}"
                )
            ranges.append(found)
        return ranges

    def unpacked_bytes(self, group: int, columns: Sequence[str]) -> int:
        """Returns about how many bytes `columns` of a row group take in memory, as the footer has
        it.
        """
        leaves = self._leaves(columns)
        self._check_chunks(leaves)
        row_group = self.metadata.row_group(group)
        total = 0
        for leaf in leaves:
            chunk = row_group.column(leaf)
            width = _WIDTHS.get(chunk.physical_type)
            total += max(
                0, chunk.total_uncompressed_size if width is None else chunk.num_values * width
            )
        return total

    def read_group(self, group: int, columns: Sequence[str], *, keep: bool = False) -> pa.Table:
        """Reads `columns` of a row group; `keep` as for `Storage.read_ranges`.

        Raises:
          DatasetFormatError: the pages are damaged.
          StorageError: the bytes could not be read.
        """
        leaves = self._leaves(columns)
        ranges = self.ranges(group, columns)
        merged = merge_ranges(ranges, gap_bytes=0, max_bytes=_MAX_REQUEST_BYTES)
        held = SparseFile(merged, self.storage.read_ranges(self.path, merged, keep=keep))
        payloads = [held.view(chunk) for chunk in ranges]
        where = f"{self.where}, row group {group}"
        with as_format_error(where):
            rows_at_once = self._rows_at_once(group, leaves, payloads, where)
            # Checksums of pages are optional; where a writer has made them, a flipped byte is
            # noticed.
            with pq.ParquetFile(
                held, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True
            ) as file:
                if rows_at_once is None:
                    table = file.reader.read_row_group(
                        group, column_indices=leaves, use_threads=False
                    )
                else:
                    batches = file.reader.iter_batches(
                        rows_at_once, row_groups=[group], column_indices=leaves, use_threads=False
                    )
                    table = pa.Table.from_batches(
                        _up_to(batches, _max_unpacked_bytes(payloads), where)
                    )
        expected = self.group_starts[group + 1] - self.group_starts[group]
        if table.num_rows != expected:
            raise DatasetFormatError(
                f"{where}: found {table.num_rows} rows; its footer says {expected}"
            )
        for name in columns:
            if name in self._widthless:
                lists = _empty_lists(expected, self._widthless[name], f"{where}: column {name!r}")
                table = table.append_column(name, lists)
        return table

    def _check_chunks(self, leaves: Sequence[int]) -> None:
        """Checks what the footer says of the column chunks of leaf columns, in all row groups.

        `RowGroupMetaData.column` ends the process where that is malformed (pyarrow 26: C++ throws
        where Cython expects nothing). Reading is guarded, and looks at all chunks before it reads
        the first byte; so this begins to read, and stops there.
        """
        if unchecked := [leaf for leaf in leaves if leaf not in self._checked_leaves]:
            groups = list(range(self.metadata.num_row_groups))
            unread = UnreadFile(self.size_bytes)
            try:
                with pq.ParquetFile(unread, metadata=self.metadata, pre_buffer=True) as file:
                    file.reader.read_row_groups(groups, column_indices=unchecked, use_threads=False)
            except DAMAGED as error:
                if not unread.was_asked:
                    raise DatasetFormatError(
                        f"{self.where}: damaged parquet footer ({first_line(error)})"
                    ) from None
            self._checked_leaves.update(unchecked)

    def _rows_at_once(
        self, group: int, leaves: Sequence[int], payloads: Sequence[memoryview], where: str
    ) -> int | None:
        """Returns how many rows of a row group may be unpacked at a time; `None` for all.

        Raises:
          ValueError: a page header is malformed.
          DatasetFormatError: the row group is too large in any case.
        """
        if (group, *leaves) in self._checked_pages:
            return None
        row_group = self.metadata.row_group(group)
        least = most = 0
        for leaf, payload in zip(leaves, payloads, strict=True):
            chunk = row_group.column(leaf)
            held = chunk_contents(payload, chunk.num_values)
            if chunk.physical_type == "BYTE_ARRAY":
                least += held.nbytes
                # Each value may be the same long one of the dictionary.
                most += held.values * (held.largest_page_bytes + _OVERHEAD_BYTES)
            else:
                width = _WIDTHS.get(chunk.physical_type) or self.metadata.schema.column(leaf).length
                least += max(held.nbytes, held.values * width)
                most += max(held.nbytes, held.values * (width + _OVERHEAD_BYTES))
        limit = _max_unpacked_bytes(payloads)
        if least > limit:
            raise DatasetFormatError(
                f"{where}: its {sum(map(len, payloads))} bytes unpack to {least}; {_at_most(limit)}"
            )
        if most > limit:
            return max(1, int(row_group.num_rows) * limit // (8 * most))
        self._checked_pages.add((group, *leaves))
        return None

    def _leaves(self, columns: Sequence[str]) -> list[int]:
        missing = [name for name in columns if name not in self.leaves]
        if missing:
            raise DatasetFormatError(
                f"{self.where}: there is no column {missing[0]!r}; the file has "
                f"{', '.join(self.leaves)[:400]}"
            )
        return [
            leaf for name in columns if name not in self._widthless for leaf in self.leaves[name]
        ]


def open_table(storage: RangeReader, path: str, *, whole_up_to_bytes: int = 0) -> ParquetTable:
    """Reads the footer of a parquet file.

    A file that has no more than `whole_up_to_bytes` is read whole, at once, and stays in memory.

    Raises:
      DatasetFormatError: not a parquet file, or truncated.
      StorageError: the bytes could not be read.
    """
    where = f"{storage.description}, {path}"
    tail, size_bytes = storage.read_tail(path, max(_TAIL_BYTES, whole_up_to_bytes), keep=True)
    if size_bytes <= whole_up_to_bytes:
        storage = InMemoryFile(storage.description, tail)
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise DatasetFormatError(
            f"{where}: not a parquet file, or truncated: its {size_bytes} bytes end with "
            f"{tail[-4:]!r}; expected {_MAGIC!r}"
        )
    (length,) = struct.unpack("<I", tail[-8:-4])
    if length + 12 > size_bytes or length > _MAX_FOOTER_BYTES:
        raise DatasetFormatError(
            f"{where}: the footer says that it has {length} bytes, in a file of {size_bytes}; the "
            "file is damaged"
        )
    if length + 8 > len(tail):
        missing = ByteRange(size_bytes - 8 - length, size_bytes - len(tail))
        tail = storage.read_ranges(path, [missing], keep=True)[0] + tail
    try:
        # pyarrow wants the magic before a footer; offsets inside it are not followed here.
        metadata = pq.ParquetFile(
            pa.BufferReader(_MAGIC + tail[-8 - length :]),
            thrift_string_size_limit=length,
            thrift_container_size_limit=min(length // _MIN_ELEMENT_BYTES + 1, _MAX_ELEMENTS),
        ).metadata
        names = metadata.schema.to_arrow_schema().names
    except DAMAGED as error:
        raise DatasetFormatError(f"{where}: damaged parquet footer ({first_line(error)})") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetFormatError(
            f"{where}: there are {names.count(twice)} columns {short_repr(twice)}; expected one"
        )
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise DatasetFormatError(
            f"{where}: the footer says {metadata.num_rows} rows, but its {len(counts)} row groups "
            f"have {sum(counts)}; the file is damaged"
        )
    return ParquetTable(storage, path, size_bytes, metadata)


def read_columns(table: ParquetTable, columns: Sequence[str] | None) -> dict[str, npt.NDArray[Any]]:
    """Reads whole columns of flat values, of those that the file has; `None` reads all of them."""
    names = [
        name for name in (table.leaves if columns is None else columns) if name in table.leaves
    ]
    groups = []
    held = 0
    for group in range(table.metadata.num_row_groups):
        groups.append(table.read_group(group, names, keep=True))
        held += groups[-1].nbytes
        if held > (limit := max(_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES * table.size_bytes)):
            raise DatasetFormatError(
                f"{table.where}: its {table.size_bytes} bytes unpack to more than {limit}, which "
                "are not read"
            )
    if not groups:
        return {}
    with as_format_error(table.where):
        joined = pa.concat_tables(groups)
        return {name: flat_values(joined.column(name).combine_chunks()) for name in names}


def _num_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        return 1
    return (
        sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields))
        if kind.num_fields
        else 1
    )


def _fixed_lengths(kind: pa.DataType) -> list[int]:
    """Returns the lengths of nested lists of fixed length, from the outer to the inner ones, at
    most down to one of 0.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not pa.types.is_fixed_size_list(kind):
        return []
    return [kind.list_size, *(_fixed_lengths(kind.value_type) if kind.list_size else [])]


def _empty_lists(rows: int, lengths: Sequence[int], where: str) -> pa.Array:
    """Returns nested lists of so many elements on each axis, the innermost of none.

    Raises:
      DatasetFormatError: they are too many: their number is what the footer says, not bytes that
        are there.
    """
    counts = list(itertools.accumulate([rows, *lengths[:-1]], operator.mul))
    if _LIST_BYTES * sum(counts) > _MAX_UNPACKED_BYTES:
        raise DatasetFormatError(
            f"{where} holds {sum(counts)} lists without a value; at most {_MAX_UNPACKED_BYTES} "
            "bytes of them are read"
        )
    values = pa.nulls(0)
    for count, length in zip(reversed(counts), reversed(lengths), strict=True):
        values = pa.ListArray.from_arrays(
            pa.array(np.arange(count + 1, dtype=np.int32) * length), values
        )
    return values


def _max_unpacked_bytes(payloads: Sequence[memoryview]) -> int:
    """Returns how many bytes in memory may come out of the bytes of a file."""
    return max(_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES * sum(map(len, payloads)))


def _at_most(limit: int) -> str:
    return f"at most {limit} are read, write the file again with smaller row groups"


def _up_to(
    batches: Iterable[pa.RecordBatch], max_bytes: int, where: str
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a row group.

    Raises:
      DatasetFormatError: they have more than `max_bytes` together.
    """
    held = 0
    for batch in batches:
        held += batch.nbytes
        if held > max_bytes:
            raise DatasetFormatError(
                f"{where}: it unpacks to more than {max_bytes} bytes; {_at_most(max_bytes)}"
            )
        yield batch
