"""Parquet bytes -> columns as NumPy arrays, one row group at a time and only the columns asked for.

A parquet file ends with a footer that says where every column chunk of every row group lies. It is read once per file; then a row group
costs one read of the chunks of the projected columns, merged by the storage. lerobot's recorder writes one row group an episode; official
and converted sets have row groups of 1000 rows or one for the whole file, so nothing here knows about episodes.

Files may lie. What they can make us do is bounded before it is done: footers by the limits of the Thrift decoder, row groups by the headers
of their pages (`_parquet_pages`), which no decoder goes beyond.
"""

from __future__ import annotations

import contextlib
import io
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._errors import DatasetFormatError, shown
from lerobot_grain._parquet_pages import chunk_contents
from lerobot_grain._schema import Feature

# Holds the footers of most data files (about 150 bytes a column chunk), so that they cost one request.
_TAIL_BYTES = 16 << 10
_MAX_FOOTER_BYTES = 256 << 20
# A footer in memory is larger than in its file.
_BYTES_OF_FOOTER = 4
_MAGIC = b"PAR1"
# The Thrift decoder makes room for a list as long as it is said to be, up to 700 bytes an element, before it reads the first one (pyarrow 26:
# 6 GB for a footer of 40 bytes). So no list may be longer than the footer has room for, at so many bytes an element, nor than any needs.
_MIN_ELEMENT_BYTES, _MAX_ELEMENTS = 8, 200_000
# What is read may take so many bytes in memory, or so many times its bytes in the file, whichever is more. lerobot's data files have up to
# 100 MB; pictures do not unpack to more, numbers to a few times as much.
_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES = 256 << 20, 8
# Bytes of a value in memory by its physical type, without levels and offsets.
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
# Levels (16 bits each) and offsets of a value.
_OVERHEAD_BYTES = 8
# What pyarrow raises at damaged data; ValueError also for names and texts that are not UTF-8.
_DAMAGED = (pa.ArrowException, OSError, EOFError, ValueError)


class RangeReader(Protocol):
    """What is needed of a storage; see `Storage`."""

    @property
    def description(self) -> str: ...
    def read_ranges(self, path: str, ranges: Sequence[ByteRange]) -> list[bytes]: ...
    def read_tail(self, path: str, length: int) -> tuple[bytes, int]: ...


@dataclass(frozen=True, slots=True)
class InMemoryFile:
    """A file that is in memory, in the place of a storage; its path does not matter."""

    description: str
    data: bytes

    def read_ranges(self, path: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        del path
        return [self.data[start:stop] for start, stop in ranges]

    def read_tail(self, path: str, length: int) -> tuple[bytes, int]:
        del path
        return self.data[max(0, len(self.data) - length) :], len(self.data)


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
    # Leaf columns whose chunks were checked, and the leaf columns of row groups whose pages were: the file does not change.
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
        counts = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        return [0, *np.cumsum(counts, dtype=np.int64).tolist()]

    @cached_property
    def leaves(self) -> Mapping[str, range]:
        """Column -> the numbers of its leaf columns, which is how column chunks are counted."""
        spans, first = {}, 0
        for column in self.schema:
            count = _num_leaves(column.type)
            spans[column.name] = range(first, first + count)
            first += count
        return spans

    @property
    def is_in_memory(self) -> bool:
        """Whether the whole file is."""
        return isinstance(self.storage, InMemoryFile)

    @property
    def estimated_bytes(self) -> int:
        """What the opened table takes in memory."""
        return (self.size_bytes if self.is_in_memory else 0) + _BYTES_OF_FOOTER * int(self.metadata.serialized_size)

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
                    f"{self.where}, row group {group}: a column chunk should lie at bytes {found}, but the file has {self.size_bytes}"
                )
            ranges.append(found)
        return ranges

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Reads `columns` of a row group.

        Raises:
          DatasetFormatError: the pages are damaged.
          StorageError: the bytes could not be had.
        """
        leaves, ranges = self._leaves(columns), self.ranges(group, columns)
        payloads = self.storage.read_ranges(self.path, ranges)
        where = f"{self.where}, row group {group}"
        with _damage(where):
            rows_at_once = self._rows_at_once(group, leaves, payloads, where)
            with pq.ParquetFile(_SparseFile(ranges, payloads), metadata=self.metadata, pre_buffer=False) as file:
                if rows_at_once is None:
                    table = file.reader.read_row_group(group, column_indices=leaves, use_threads=False)
                else:
                    batches = file.reader.iter_batches(rows_at_once, row_groups=[group], column_indices=leaves, use_threads=False)
                    table = pa.Table.from_batches(_up_to(batches, _max_unpacked_bytes(payloads), where))
        expected = self.group_starts[group + 1] - self.group_starts[group]
        if table.num_rows != expected:
            raise DatasetFormatError(f"{where}: found {table.num_rows} rows; its footer says {expected}")
        return table

    def _check_chunks(self, leaves: Sequence[int]) -> None:
        """Checks what the footer says of the column chunks of leaf columns, in all row groups.

        `RowGroupMetaData.column` ends the process where that is malformed (pyarrow 26: C++ throws where Cython expects nothing). Reading is
        guarded, and looks at all chunks before it reads the first byte; so this begins to read, and stops there.
        """
        if unchecked := [leaf for leaf in leaves if leaf not in self._checked_leaves]:
            groups, unread = list(range(self.metadata.num_row_groups)), _UnreadFile(self.size_bytes)
            try:
                with pq.ParquetFile(unread, metadata=self.metadata, pre_buffer=True) as file:
                    file.reader.read_row_groups(groups, column_indices=unchecked, use_threads=False)
            except _DAMAGED as error:
                if not unread.was_asked:
                    raise DatasetFormatError(f"{self.where}: damaged parquet footer ({_first_line(error)})") from None
            self._checked_leaves.update(unchecked)

    def _rows_at_once(self, group: int, leaves: Sequence[int], payloads: Sequence[bytes], where: str) -> int | None:
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
                least += held.values * width
                most += held.values * (width + _OVERHEAD_BYTES)
        limit = _max_unpacked_bytes(payloads)
        if least > limit:
            raise DatasetFormatError(f"{where}: its {sum(map(len, payloads))} bytes unpack to {least}; {_at_most(limit)}")
        if most > limit:
            return max(1, int(row_group.num_rows) * limit // (8 * most))
        self._checked_pages.add((group, *leaves))
        return None

    def _leaves(self, columns: Sequence[str]) -> list[int]:
        missing = [name for name in columns if name not in self.leaves]
        if missing:
            raise DatasetFormatError(f"{self.where}: there is no column {missing[0]!r}; the file has {', '.join(self.leaves)[:400]}")
        return [leaf for name in columns for leaf in self.leaves[name]]


def open_table(storage: RangeReader, path: str, *, whole_up_to_bytes: int = 0) -> ParquetTable:
    """Reads the footer of a parquet file. A file that has no more than `whole_up_to_bytes` is read whole, at once, and stays in memory.

    Raises:
      DatasetFormatError: not a parquet file, or truncated.
      StorageError: the bytes could not be had.
    """
    where = f"{storage.description}, {path}"
    tail, size_bytes = storage.read_tail(path, max(_TAIL_BYTES, whole_up_to_bytes))
    if size_bytes <= whole_up_to_bytes:
        storage = InMemoryFile(storage.description, tail)
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise DatasetFormatError(
            f"{where}: not a parquet file, or truncated: its {size_bytes} bytes end with {tail[-4:]!r}; expected {_MAGIC!r}"
        )
    (length,) = struct.unpack("<I", tail[-8:-4])
    if length + 12 > size_bytes or length > _MAX_FOOTER_BYTES:
        raise DatasetFormatError(f"{where}: the footer says that it has {length} bytes, in a file of {size_bytes}; the file is damaged")
    if length + 8 > len(tail):
        missing = ByteRange(size_bytes - 8 - length, size_bytes - len(tail))
        tail = storage.read_ranges(path, [missing])[0] + tail
    try:
        # pyarrow wants the magic in front of a footer; offsets inside it are not followed here.
        metadata = pq.ParquetFile(
            pa.BufferReader(_MAGIC + tail[-8 - length :]),
            thrift_string_size_limit=length,
            thrift_container_size_limit=min(length // _MIN_ELEMENT_BYTES + 1, _MAX_ELEMENTS),
        ).metadata
        names = metadata.schema.to_arrow_schema().names
    except _DAMAGED as error:
        raise DatasetFormatError(f"{where}: damaged parquet footer ({_first_line(error)})") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetFormatError(f"{where}: there are {names.count(twice)} columns {twice!r}; expected one")
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise DatasetFormatError(
            f"{where}: the footer says {metadata.num_rows} rows, but its {len(counts)} row groups have {sum(counts)}; the file is damaged"
        )
    return ParquetTable(storage, path, size_bytes, metadata)


def read_columns(table: ParquetTable, columns: Sequence[str] | None) -> dict[str, npt.NDArray[Any]]:
    """Reads whole columns of flat values, of those that the file has; `None` reads all of them."""
    names = [name for name in (table.leaves if columns is None else columns) if name in table.leaves]
    groups, held = [], 0
    for group in range(table.metadata.num_row_groups):
        groups.append(table.read_group(group, names))
        held += groups[-1].nbytes
        if held > (limit := max(_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES * table.size_bytes)):
            raise DatasetFormatError(f"{table.where}: its {table.size_bytes} bytes unpack to more than {limit}, which are not read")
    if not groups:
        return {}
    with _damage(table.where):
        joined = pa.concat_tables(groups)
        return {name: joined.column(name).to_numpy() for name in names}


def to_numpy(column: pa.ChunkedArray, feature: Feature, *, where: str) -> npt.NDArray[Any]:
    """Returns the values of a low-dimensional feature, `(rows, *shape)`, `(rows,)` for a scalar, of its declared dtype.

    Raises:
      DatasetFormatError: a value is missing, has another shape than declared, or does not fit the declared dtype.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    rows, shape = len(values), () if feature.is_scalar else feature.shape
    if feature.is_scalar and _is_list(values.type):
        shape = (1,)
    for axis, length in enumerate(shape):
        values = _flatten(values, length, f"{where}: feature {feature.key!r}", axis)
    if _is_list(values.type):
        raise DatasetFormatError(f"{where}: feature {feature.key!r} has more dimensions than its declared shape {feature.shape}")
    if values.null_count:
        raise DatasetFormatError(f"{where}: feature {feature.key!r} has {values.null_count} missing values; every row needs one")
    with _damage(f"{where}: feature {feature.key!r}"):
        array = np.asarray(values.to_numpy(zero_copy_only=False))
    cast = _cast(array, feature, where)
    return np.ascontiguousarray(cast.reshape((rows,) if feature.is_scalar else (rows, *feature.shape)))


def to_strings(column: pa.ChunkedArray, feature: Feature, *, where: str) -> list[str]:
    """Returns the values of a string feature."""
    with _damage(f"{where}: feature {feature.key!r}"):
        values: list[str] = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DatasetFormatError(f"{where}: feature {feature.key!r} has {shown(value)} in row {row} of its group; expected a string")
    return values


def to_encoded_images(column: pa.ChunkedArray, feature: Feature, *, where: str) -> list[bytes]:
    """Returns the encoded pictures of an image feature: a struct with the field `bytes` (as lerobot embeds them), or plain binary."""
    values = column.combine_chunks()
    if pa.types.is_struct(values.type):
        if values.type.get_field_index("bytes") < 0:
            raise DatasetFormatError(f"{where}: image {feature.key!r} is a {values.type}; expected a struct with a field bytes")
        values = values.field("bytes")
    with _damage(f"{where}: image {feature.key!r}"):
        images: list[bytes] = values.to_pylist()
    for row, image in enumerate(images):
        if not isinstance(image, bytes) or not image:
            raise DatasetFormatError(
                f"{where}: image {feature.key!r} has no bytes in row {row} of its group; pictures outside the table are not read"
            )
    return images


def _flatten(values: pa.Array, length: int, subject: str, axis: int) -> pa.Array:
    """Returns the elements of lists that must all have `length` elements."""
    if not _is_list(values.type):
        raise DatasetFormatError(f"{subject} has values of type {values.type} at axis {axis}; expected lists of {length}")
    if values.null_count:
        raise DatasetFormatError(f"{subject} has {values.null_count} missing values; every row needs one")
    if pa.types.is_fixed_size_list(values.type):
        lengths = np.array([values.type.list_size])
    else:
        lengths = np.unique(np.diff(values.offsets.to_numpy()))
    if len(values) and (odd := lengths[lengths != length]).size:
        raise DatasetFormatError(f"{subject} has {odd[0]} values at axis {axis} in some row; expected {length} everywhere")
    return values.flatten()


def _cast(array: npt.NDArray[Any], feature: Feature, where: str) -> npt.NDArray[Any]:
    dtype = np.dtype(feature.dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise DatasetFormatError(f"{where}: feature {feature.key!r} is stored as {array.dtype}; its declared dtype is {dtype}")
    if array.dtype.kind in "iu" and dtype.kind in "iu" and len(array):
        limits = np.iinfo(dtype)
        # A cast back would bring a wrapped negative number home again.
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DatasetFormatError(
                f"{where}: feature {feature.key!r} is stored as {array.dtype} with values that its declared dtype {dtype} cannot hold"
            )
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
        # Floating point may lose digits, as a declared float32 of stored doubles does in lerobot; an integer or a bool must stay what it
        # is.
        exact = dtype.kind == "f" or bool((cast.astype(array.dtype) == array).all())
    if not exact:
        raise DatasetFormatError(
            f"{where}: feature {feature.key!r} is stored as {array.dtype} with values that its declared dtype {dtype} cannot hold"
        )
    return cast


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _num_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        return 1
    return sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:400] if str(error).strip() else type(error).__name__


def _max_unpacked_bytes(payloads: Sequence[bytes]) -> int:
    """Returns how many bytes in memory may come out of the bytes of a file."""
    return max(_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES * sum(map(len, payloads)))


def _at_most(limit: int) -> str:
    return f"at most {limit} are read, write the file again with smaller row groups"


def _up_to(batches: Iterable[pa.RecordBatch], max_bytes: int, where: str) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a row group.

    Raises:
      DatasetFormatError: they have more than `max_bytes` together.
    """
    held = 0
    for batch in batches:
        held += batch.nbytes
        if held > max_bytes:
            raise DatasetFormatError(f"{where}: it unpacks to more than {max_bytes} bytes; {_at_most(max_bytes)}")
        yield batch


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what pyarrow raises at damaged data into the format error."""
    try:
        yield
    except _DAMAGED as error:
        raise DatasetFormatError(f"{where}: damaged parquet data ({_first_line(error)})") from None


class _UnreadFile(io.RawIOBase):
    """A file of some size of which no byte can be had; `was_asked` tells whether one was wanted."""

    def __init__(self, size_bytes: int) -> None:
        self.was_asked = False
        self._size = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        # Not an error: pyarrow 26 never lets go of one that is raised in its threads, nor of what its traceback refers to.
        del size
        self.was_asked = True
        return b""


class _SparseFile(_UnreadFile):
    """A file of which only some ranges are known; reading anything else is an error (the footer lied)."""

    def __init__(self, ranges: Sequence[ByteRange], payloads: Sequence[bytes]) -> None:
        super().__init__(max((piece.stop for piece in ranges), default=0))
        pieces = sorted(zip(ranges, payloads, strict=True), key=lambda piece: piece[0])
        self._starts = [piece[0].start for piece in pieces]
        self._pieces = [piece[1] for piece in pieces]

    def read(self, size: int = -1) -> bytes:
        number = bisect_right(self._starts, self._position) - 1
        start = self._position - self._starts[number] if number >= 0 else 0
        data = self._pieces[number][start : start + size] if number >= 0 and size >= 0 else b""
        if len(data) != size:
            raise EOFError(f"bytes [{self._position}, {self._position + size}) are not those of the column chunks")
        self._position += size
        return data
