"""Parquet: only the projected bytes, every layout of values that recorders write, and for damaged
files the format error and no other.
"""

from __future__ import annotations

import decimal
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_grain._base.byte_ranges import ByteRange, merge_ranges
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.info import Feature
from lerobot_grain._parquet.columns import to_encoded_images, to_numpy, to_strings
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import ParquetTable, open_table, read_columns

WHERE = "org/name@1a2b, data.parquet"


@dataclass
class Recorder:
    """A file in memory that remembers what is read of it."""

    data: bytes
    description: str = "org/name@1a2b"
    ranges: list[ByteRange] = field(default_factory=list)

    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]:
        del keep
        assert path == "data.parquet"
        assert all(0 <= start <= stop <= len(self.data) for start, stop in ranges)
        self.ranges += ranges
        return [self.data[start:stop] for start, stop in ranges]

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        tail = self.read_ranges(
            path, [ByteRange(max(0, len(self.data) - length), len(self.data))], keep=keep
        )[0]
        return tail, len(self.data)

    @property
    def bytes_read(self) -> int:
        return sum(r.length for r in self.ranges)


def written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def opened(data: bytes) -> tuple[ParquetTable, Recorder]:
    recorder = Recorder(data)
    return open_table(recorder, "data.parquet"), recorder


def column(values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values, kind)])


def rows_table(rows: int = 100) -> pa.Table:
    """As lerobot writes it, and a few columns that other writers add."""
    rng = np.random.default_rng(0)
    png = [b"\x89PNG" + bytes(rng.integers(0, 256, 50 + row % 7, np.uint8)) for row in range(rows)]
    return pa.table(
        {
            "state": pa.FixedSizeListArray.from_arrays(
                pa.array(rng.random(rows * 3, np.float32)), 3
            ),
            "image": pa.array(
                [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(png)]
            ),
            "matrix": pa.array(rng.random((rows, 2, 2)).tolist(), pa.list_(pa.list_(pa.float64()))),
            "events": pa.array([[{"role": "user", "content": "hi", "tools": ["a", "b"]}]] * rows),
            "text": pa.array([f"row {row}" for row in range(rows)]),
            "done": pa.array([row % 10 == 9 for row in range(rows)]),
            "index": pa.array(np.arange(rows)),
            "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        }
    )


# --- footers and row groups ----------------------------------------------------------------------


def test_row_groups() -> None:
    table, recorder = opened(written(rows_table(), row_group_size=33))
    assert table.num_rows == 100
    assert table.group_starts == [0, 33, 66, 99, 100]
    assert [table.group_of_row(row) for row in (0, 32, 33, 98, 99)] == [0, 0, 1, 2, 3]
    assert table.where == WHERE
    # One read: the footer.
    assert len(recorder.ranges) == 1
    assert recorder.bytes_read <= 16 << 10


@pytest.mark.parametrize(
    "columns",
    [
        ["state"],
        ["index", "done"],
        ["image"],
        ["events", "matrix"],
        ["kind", "text"],
        ["index", "state", "image"],
    ],
    ids=str,
)
@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_a_projection_reads_its_column_chunks_and_no_other_byte(
    columns: list[str], compression: str
) -> None:
    source = rows_table()
    data = written(source, row_group_size=33, compression=compression)
    table, recorder = opened(data)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    for group in range(4):
        chunks = [
            metadata.row_group(group).column(number) for number in range(metadata.num_columns)
        ]
        expected = set()
        for chunk in chunks:
            if chunk.path_in_schema.split(".")[0] in columns:
                start = (
                    chunk.data_page_offset
                    if chunk.dictionary_page_offset is None
                    else chunk.dictionary_page_offset
                )
                expected.add(ByteRange(start, start + chunk.total_compressed_size))
        recorder.ranges.clear()
        found = table.read_group(group, columns)
        assert recorder.ranges == merge_ranges(expected, gap_bytes=0, max_bytes=1 << 30), (
            "those side by side in one piece"
        )
        assert set(table.ranges(group, columns)) == expected
        # pyarrow returns the columns in the order of the file, whatever the order asked for.
        assert sorted(found.column_names) == sorted(columns)
        for name in columns:
            assert (
                found.column(name).to_pylist()
                == source.column(name).slice(33 * group, 33).to_pylist()
            )


def test_no_columns() -> None:
    table, recorder = opened(written(rows_table()))
    recorder.ranges.clear()
    assert table.read_group(0, []).num_rows == 100
    assert recorder.ranges == []


def test_a_long_footer_takes_one_more_range() -> None:
    source = pa.table({f"column {number:04d}": [number] for number in range(600)})
    table, recorder = opened(written(source))
    assert table.metadata.serialized_size > 16 << 10
    assert len(recorder.ranges) == 2
    assert recorder.bytes_read == table.metadata.serialized_size + 8
    assert table.read_group(0, ["column 0599"]).column(0).to_pylist() == [599]


def test_a_table_without_rows() -> None:
    table, _ = opened(written(rows_table().slice(0, 0)))
    assert table.num_rows == 0
    assert table.group_starts[-1] == 0


def test_a_missing_column() -> None:
    table, _ = opened(written(pa.table({"state": [1.0], "index": [0]})))
    with pytest.raises(DatasetFormatError) as caught:
        table.read_group(0, ["index", "action"])
    assert str(caught.value) == f"{WHERE}: there is no column 'action'; the file has state, index"


def test_real_files(shared: Path) -> None:
    for name in ("golden/av1_rolled", "golden/images", "real/pusht_rows_v30", "real/gr00t_v30"):
        path = sorted((shared / name / "data").rglob("*.parquet"))[0]
        table, recorder = opened(path.read_bytes())
        recorder.ranges.clear()
        expected = pq.read_table(path, columns=["index"])["index"].to_pylist()
        found = [
            value
            for group in range(table.metadata.num_row_groups)
            for value in table.read_group(group, ["index"])["index"].to_pylist()
        ]
        assert found == expected
        assert recorder.bytes_read < 20 * len(expected) + 300 * table.metadata.num_row_groups


def test_whole_columns() -> None:
    data = written(
        pa.table({"a": [1, 2, 3], "b": ["x", "y", None], "c": [0.5, None, 2.0]}), row_group_size=2
    )
    table, recorder = opened(data)
    recorder.ranges.clear()
    columns = read_columns(table, ["c", "a", "missing"])
    assert list(columns) == ["c", "a"]
    assert columns["a"].tolist() == [1, 2, 3]
    assert np.isnan(columns["c"]).tolist() == [False, True, False]
    assert set(recorder.ranges) == {
        r for group in range(2) for r in table.ranges(group, ["a", "c"])
    }
    everything = read_columns(table, None)
    assert everything["b"].tolist() == ["x", "y", None]
    assert list(everything) == ["a", "b", "c"]
    empty, _ = opened(written(pa.table({"a": pa.array([], pa.int64())})))
    assert {name: values.tolist() for name, values in read_columns(empty, ["a"]).items()} in (
        {},
        {"a": []},
    )


def test_a_file_in_memory() -> None:
    table = open_table(InMemoryFile("org/name@1a2b", written(rows_table())), "any path")
    assert table.read_group(0, ["index"])["index"].to_pylist() == list(range(100))
    assert table.where == "org/name@1a2b, any path"


# --- values --------------------------------------------------------------------------------------

FLOATS = [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]
MATRICES = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]]


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "shape", "expected"),
    [
        (FLOATS, pa.list_(pa.float32()), "float32", (2,), FLOATS),
        (FLOATS, pa.list_(pa.float32(), 2), "float32", (2,), FLOATS),
        (FLOATS, pa.large_list(pa.float32()), "float32", (2,), FLOATS),
        (FLOATS, pa.list_(pa.float64()), "float32", (2,), FLOATS),
        (FLOATS, pa.list_(pa.float16()), "float16", (2,), FLOATS),
        (MATRICES, pa.list_(pa.list_(pa.int16())), "int16", (3, 2), MATRICES),
        (MATRICES, pa.list_(pa.list_(pa.int64(), 2), 3), "int64", (3, 2), MATRICES),
        (MATRICES, pa.list_(pa.list_(pa.uint8(), 2)), "uint8", (3, 2), MATRICES),
        ([1, 2], pa.int64(), "int64", (1,), [1, 2]),
        ([1, 2], pa.int64(), "int64", (), [1, 2]),
        ([[1], [2]], pa.list_(pa.int64()), "int64", (1,), [1, 2]),
        ([[1], [2]], pa.list_(pa.int64(), 1), "int64", (1,), [1, 2]),
        ([[[1]], [[2]]], pa.list_(pa.list_(pa.int64())), "int64", (1, 1), [[[1]], [[2]]]),
        ([True, False], pa.bool_(), "bool", (1,), [True, False]),
        ([[True, False]], pa.list_(pa.bool_()), "bool", (2,), [[True, False]]),
        ([[], []], pa.list_(pa.float32()), "float32", (0,), [[], []]),
        ([], pa.list_(pa.float32(), 2), "float32", (2,), []),
        ([float("nan"), float("inf")], pa.float64(), "float32", (1,), [float("nan"), float("inf")]),
        # Declared and stored types that differ, but hold the same values.
        ([1.0, 2.0], pa.float64(), "int64", (1,), [1, 2]),
        ([1, 2], pa.int64(), "float32", (1,), [1.0, 2.0]),
        ([0, 255], pa.int64(), "uint8", (1,), [0, 255]),
        ([0, 1], pa.int64(), "bool", (1,), [False, True]),
        ([0.0, 1.0], pa.float32(), "bool", (1,), [False, True]),
        ([True, False], pa.bool_(), "float32", (1,), [1.0, 0.0]),
        ([2**53 + 1], pa.int64(), "int64", (1,), [2**53 + 1]),
        ([2**63 - 1], pa.uint64(), "int64", (1,), [2**63 - 1]),
        ([-0.5], pa.float64(), "float16", (1,), [-0.5]),
    ],
    ids=lambda value: str(value) if isinstance(value, str | tuple | pa.DataType) else "",
)
def test_values(
    values: Any, kind: pa.DataType, dtype: str, shape: tuple[int, ...], expected: Any
) -> None:
    kind_of = (
        pa.array(values, kind)
        if kind != pa.list_(pa.float16())
        else pa.array([np.array(row, np.float16) for row in values], kind)
    )
    array = to_numpy(column(kind_of), Feature("key", dtype, shape), where=WHERE)
    assert array.dtype == np.dtype(dtype)
    assert array.shape == ((len(values),) if shape in ((), (1,)) else (len(values), *shape))
    np.testing.assert_array_equal(array, np.array(expected, dtype).reshape(array.shape))
    assert array.flags.c_contiguous


def test_doubles_of_a_declared_float32_are_rounded() -> None:
    array = to_numpy(column([0.1, 1e-50]), Feature("key", "float32", (1,)), where=WHERE)
    assert array.tolist() == [np.float32(0.1), 0.0]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())],
    ids=str,
)
def test_slices_and_several_chunks(kind: pa.DataType) -> None:
    whole = pa.array(FLOATS, kind)
    chunks = pa.chunked_array([whole.slice(1, 1), whole.slice(2, 1), whole.slice(0, 0), whole])
    array = to_numpy(chunks, Feature("key", "float32", (2,)), where=WHERE)
    assert array.tolist() == [FLOATS[1], FLOATS[2], *FLOATS]


def test_two_dimensional_features_as_huggingface_datasets_stores_them() -> None:
    class Array2D(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.list_(pa.list_(pa.float32())), "test.Array2D")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Array2D:
            del storage_type, serialized
            return cls()

    storage = pa.array([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.float32())))
    array = to_numpy(
        column(pa.ExtensionArray.from_storage(Array2D(), storage)),
        Feature("key", "float32", (2, 2)),
        where=WHERE,
    )
    assert array.tolist() == [[[1, 2], [3, 4]]]
    data = written(
        pa.table(
            {"before": [1], "key": pa.ExtensionArray.from_storage(Array2D(), storage), "after": [2]}
        )
    )
    assert column_after_and_key(data) == [2, [[1, 2], [3, 4]]]
    # With the package `datasets` imported, pyarrow knows its types, and the column comes as one of
    # them.
    pa.register_extension_type(Array2D())
    try:
        assert column_after_and_key(data) == [2, [[1, 2], [3, 4]]]
    finally:
        pa.unregister_extension_type("test.Array2D")


def column_after_and_key(data: bytes) -> list[Any]:
    table, _ = opened(data)
    key = to_numpy(
        table.read_group(0, ["key"])["key"], Feature("key", "float32", (2, 2)), where=WHERE
    )
    return [table.read_group(0, ["after"])["after"][0].as_py(), key[0].tolist()]


LOSSY = "with values that its declared dtype"


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "shape", "text"),
    [
        (
            [[1, 2], [3]],
            pa.list_(pa.float32()),
            "float32",
            (2,),
            "has 1 values at axis 0 in some row; expected 2 everywhere",
        ),
        (
            [[1, 2, 3], [1, 2, 3]],
            pa.list_(pa.float32(), 3),
            "float32",
            (2,),
            "has 3 values at axis 0 in some row; expected 2 everywhere",
        ),
        (
            [[[1, 2], [3]]],
            pa.list_(pa.list_(pa.float32())),
            "float32",
            (2, 2),
            "has 1 values at axis 1 in some row; expected 2 everywhere",
        ),
        (
            [[1, 2, 3, 4]],
            pa.list_(pa.float32()),
            "float32",
            (2, 2),
            "has 4 values at axis 0 in some row; expected 2 everywhere",
        ),
        (
            [[[1, 2]]],
            pa.list_(pa.list_(pa.float32())),
            "float32",
            (1,),
            "has more dimensions than its declared shape (1,)",
        ),
        (
            [1.0],
            pa.float32(),
            "float32",
            (2,),
            "has values of type float at axis 0; expected lists of 2",
        ),
        (
            [[1.0, 2.0]],
            pa.list_(pa.float32()),
            "float32",
            (2, 2),
            "has values of type float at axis 1; expected lists of 2",
        ),
        ([1, None, None], pa.int64(), "int64", (1,), "has 2 missing values; every row needs one"),
        ([None], pa.null(), "int64", (1,), "has 1 missing values; every row needs one"),
        (
            [[1, None]],
            pa.list_(pa.int64()),
            "int64",
            (2,),
            "has 1 missing values; every row needs one",
        ),
        (
            [[1, 2], None],
            pa.list_(pa.int64()),
            "int64",
            (2,),
            "has 1 missing values; every row needs one",
        ),
        (
            [[1, 2], None],
            pa.list_(pa.int64(), 2),
            "int64",
            (2,),
            "has 1 missing values; every row needs one",
        ),
        (["1"], pa.string(), "float32", (1,), "is stored as object; its declared dtype is float32"),
        (
            [decimal.Decimal("1.5")],
            pa.decimal128(5, 2),
            "float32",
            (1,),
            "is stored as object; its declared dtype is float32",
        ),
        (
            [1],
            pa.timestamp("s"),
            "int64",
            (1,),
            "is stored as datetime64[s]; its declared dtype is int64",
        ),
        (
            [{"a": 1}],
            pa.struct({"a": pa.int64()}),
            "int64",
            (1,),
            "is stored as object; its declared dtype is int64",
        ),
        ([1.5], pa.float64(), "int64", (1,), f"is stored as float64 {LOSSY} int64 cannot hold"),
        (
            [float("nan")],
            pa.float64(),
            "int64",
            (1,),
            f"is stored as float64 {LOSSY} int64 cannot hold",
        ),
        ([2.0**63], pa.float64(), "int64", (1,), f"is stored as float64 {LOSSY} int64 cannot hold"),
        (
            [2.0**64],
            pa.float64(),
            "uint64",
            (1,),
            f"is stored as float64 {LOSSY} uint64 cannot hold",
        ),
        ([-1.0], pa.float64(), "uint64", (1,), f"is stored as float64 {LOSSY} uint64 cannot hold"),
        ([256], pa.int64(), "uint8", (1,), f"is stored as int64 {LOSSY} uint8 cannot hold"),
        ([2], pa.int64(), "bool", (1,), f"is stored as int64 {LOSSY} bool cannot hold"),
        (
            [float("nan")],
            pa.float32(),
            "bool",
            (1,),
            f"is stored as float32 {LOSSY} bool cannot hold",
        ),
        # Types of equal width: casting back gives the stored value again.
        ([-1], pa.int64(), "uint64", (1,), f"is stored as int64 {LOSSY} uint64 cannot hold"),
        ([2**63], pa.uint64(), "int64", (1,), f"is stored as uint64 {LOSSY} int64 cannot hold"),
        ([-1], pa.int8(), "uint8", (1,), f"is stored as int8 {LOSSY} uint8 cannot hold"),
        ([255], pa.uint8(), "int8", (1,), f"is stored as uint8 {LOSSY} int8 cannot hold"),
        (
            [[-1, 1]],
            pa.list_(pa.int32()),
            "uint32",
            (2,),
            f"is stored as int32 {LOSSY} uint32 cannot hold",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, str | pa.DataType) else "",
)
def test_values_that_are_not_what_is_declared(
    values: Any, kind: pa.DataType, dtype: str, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(DatasetFormatError) as caught:
        to_numpy(column(values, kind), Feature("key", dtype, shape), where=WHERE)
    assert str(caught.value) == f"{WHERE}: feature 'key' {text}"


def test_strings() -> None:
    feature = Feature("key", "string", (1,))
    assert to_strings(column(["a", "", "ü"]), feature, where=WHERE) == ["a", "", "ü"]
    assert to_strings(column(["a", "b"], pa.large_string()), feature, where=WHERE) == ["a", "b"]
    assert to_strings(
        column(pa.array(["a", "b", "a"]).dictionary_encode()), feature, where=WHERE
    ) == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [(["a", None], "None in row 1"), ([1, 2], "1 in row 0"), ([["a"]], "['a'] in row 0")],
    ids=str,
)
def test_values_that_are_no_strings(values: Any, shown: str) -> None:
    with pytest.raises(DatasetFormatError) as caught:
        to_strings(column(values), Feature("key", "string", (1,)), where=WHERE)
    assert (
        str(caught.value) == f"{WHERE}: feature 'key' has {shown} of its group; expected a string"
    )


def test_images() -> None:
    feature = Feature("key", "image", (4, 6, 3))
    structs = [{"bytes": b"png 1", "path": "1.png"}, {"bytes": b"png 2", "path": None}]
    assert to_encoded_images(column(structs), feature, where=WHERE) == [b"png 1", b"png 2"]
    assert to_encoded_images(column([b"png"]), feature, where=WHERE) == [b"png"]
    assert to_encoded_images(column([b"png"], pa.large_binary()), feature, where=WHERE) == [b"png"]
    sliced = pa.chunked_array([pa.array(structs).slice(1, 1), pa.array(structs)])
    assert to_encoded_images(sliced, feature, where=WHERE) == [b"png 2", b"png 1", b"png 2"]


NO_BYTES = "of its group; images outside the table are not read"
ENCODED = "expected encoded images, as bytes or as a struct with a field bytes"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            [{"bytes": b"png", "path": "1.png"}, {"bytes": None, "path": "2.png"}],
            f"has no bytes in row 1 {NO_BYTES}",
        ),
        ([{"bytes": b"", "path": "1.png"}], f"has no bytes in row 0 {NO_BYTES}"),
        ([b"png", None], f"has no bytes in row 1 {NO_BYTES}"),
        (["1.png"], f"is stored as 'string'; {ENCODED}"),
        ([[[1, 2], [3, 4]]], f"is stored as 'list<item: list<item: int64>>'; {ENCODED}"),
        ([{"bytes": b"png", "path": ""}, None], f"has no bytes in row 1 {NO_BYTES}"),
        ([{"path": "1.png"}], "is a struct<path: string>; expected a struct with a field bytes"),
    ],
    ids=str,
)
def test_images_without_bytes(values: Any, text: str) -> None:
    with pytest.raises(DatasetFormatError) as caught:
        to_encoded_images(column(values), Feature("key", "image", (4, 6, 3)), where=WHERE)
    assert str(caught.value) == f"{WHERE}: image 'key' {text}"


# --- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a parquet file, or truncated: its 0 bytes end with b''; expected b'PAR1'"),
        (
            b"PAR1",
            "not a parquet file, or truncated: its 4 bytes end with b'PAR1'; expected b'PAR1'",
        ),
        (
            b"<html>not found</html>",
            "not a parquet file, or truncated: its 22 bytes end with b'tml>'; expected b'PAR1'",
        ),
        (
            b"PAR1" + bytes(20) + b"PARE",
            "not a parquet file, or truncated: its 28 bytes end with b'PARE'; expected b'PAR1'",
        ),
        (
            b"PAR1" + struct.pack("<I", 99) + b"PAR1",
            "the footer says that it has 99 bytes, in a file of 12; the file is damaged",
        ),
        (
            b"PAR1" + b"\xff" * 4 + b"PAR1",
            "the footer says that it has 4294967295 bytes, in a file of 12; the file is damaged",
        ),
    ],
    ids=["empty", "magic", "html", "encrypted", "footer length", "huge footer"],
)
def test_files_that_are_none(data: bytes, text: str) -> None:
    with pytest.raises(DatasetFormatError) as caught:
        opened(data)
    assert str(caught.value) == f"{WHERE}: {text}"


def test_an_empty_footer() -> None:
    with pytest.raises(DatasetFormatError, match=f"^{WHERE}: damaged parquet footer \\("):
        opened(b"PAR1" + struct.pack("<I", 0) + b"PAR1")


def test_every_prefix_of_a_file_is_refused() -> None:
    data = written(rows_table(20))
    rng = np.random.default_rng(0)
    for cut in [*range(20), *rng.integers(0, len(data), 60), *range(len(data) - 40, len(data))]:
        with pytest.raises(DatasetFormatError, match="not a parquet file, or truncated"):
            opened(data[:cut])


def test_footers_with_flipped_bytes_are_read_or_refused() -> None:
    # Columns without nulls or lists: pyarrow 26 ends the process, not only the read, at level
    # histograms that do not fit the schema (ColumnChunk() throws where Cython does not expect it),
    # and only columns of that kind have none.
    fields = [
        pa.field(name, kind, nullable=False)
        for name, kind in (("index", pa.int64()), ("x", pa.float32()), ("done", pa.bool_()))
    ]
    source = pa.table(
        [pa.array(range(20)), pa.array([0.5] * 20, pa.float32()), pa.array([True] * 20)],
        schema=pa.schema(fields),
    )
    data = written(source, row_group_size=7, store_schema=False)
    table, _ = opened(data)
    start = len(data) - 8 - table.metadata.serialized_size
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(data)
        for place in rng.integers(start, len(data) - 8, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            broken = open_table(StrictStorage(Recorder(bytes(damaged))), "data.parquet")
            for group in range(broken.metadata.num_row_groups):
                for name in broken.leaves:
                    broken.read_group(group, [name])
        except DatasetFormatError:
            refused += 1
    assert 500 < refused < 1000


@dataclass
class StrictStorage:
    """Says, as storages do, that a range is the caller's mistake; the tests let only the format
    error pass.
    """

    inner: Recorder
    description: str = "org/name@1a2b"

    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]:
        for start, stop in ranges:
            if not 0 <= start <= stop:
                raise ValueError(f"[{start}, {stop}) is no range")
            if stop > len(self.inner.data):
                raise DatasetFormatError("stands for StorageError: past the end of the file")
        return self.inner.read_ranges(path, ranges, keep=keep)

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        return self.inner.read_tail(path, length, keep=keep)


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_damaged_pages_are_read_or_refused(compression: str) -> None:
    source = rows_table(40)
    data = written(source, row_group_size=20, compression=compression, write_page_checksum=False)
    table, _ = opened(data)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        name = str(rng.choice(source.column_names))
        damaged = bytearray(data)
        # The header of the first page is the most delicate place.
        start, stop = table.ranges(1, [name])[0]
        length = min(int(rng.integers(1, 30)), stop - start)
        damaged[start : start + length] = rng.bytes(length)
        broken, _ = opened(bytes(damaged))
        assert broken.read_group(0, [name]).num_rows == 20
        try:
            assert broken.read_group(1, [name]).num_rows == 20
        except DatasetFormatError:
            refused += 1
    assert refused > 50


def test_text_of_a_damaged_page() -> None:
    data = bytearray(written(rows_table(40), row_group_size=20))
    table, _ = opened(bytes(data))
    (chunk,) = table.ranges(1, ["index"])
    data[chunk.start : chunk.stop] = bytes(chunk.length)
    broken, _ = opened(bytes(data))
    with pytest.raises(
        DatasetFormatError, match=rf"^{WHERE}, row group 1: damaged parquet data \(.+\)$"
    ):
        broken.read_group(1, ["index"])


def test_a_storage_that_fails_is_not_a_damaged_file() -> None:
    class FailingStorage(Recorder):
        def read_ranges(
            self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
        ) -> list[bytes]:
            if self.ranges:
                raise ConnectionError("the network")
            return super().read_ranges(path, ranges, keep=keep)

    table = open_table(FailingStorage(written(rows_table())), "data.parquet")
    with pytest.raises(ConnectionError, match="the network"):
        table.read_group(0, ["index"])
