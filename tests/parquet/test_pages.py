"""Page headers: what they add up to is what pyarrow wrote, and for damaged ones ValueError and
never another error.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._parquet.pages import ChunkContents, chunk_contents

ROWS = 5000
TABLE = pa.table(
    {
        "index": pa.array(range(ROWS)),
        "state": pa.array([[row / 3, 1.0] for row in range(ROWS)], pa.list_(pa.float32())),
        "text": pa.array([f"row {row % 7}" if row % 5 else None for row in range(ROWS)]),
        "done": pa.array([row % 10 == 9 for row in range(ROWS)]),
    }
)


def chunks_of(**options: Any) -> list[tuple[bytes, Any]]:
    """Returns the bytes and pyarrow's description of every column chunk."""
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=2000, **options)
    data, found = sink.getvalue(), []
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    for group in range(metadata.num_row_groups):
        for leaf in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(leaf)
            start = (
                chunk.data_page_offset
                if chunk.dictionary_page_offset is None
                else chunk.dictionary_page_offset
            )
            found.append((data[start : start + chunk.total_compressed_size], chunk))
    return found


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("page_bytes", [100, 1 << 20])
def test_pages_add_up_to_their_chunk(version: str, compression: str, page_bytes: int) -> None:
    for chunk, description in chunks_of(
        data_page_version=version, compression=compression, data_page_size=page_bytes
    ):
        contents = chunk_contents(chunk, description.num_values)
        assert contents.values == description.num_values
        # The footer counts the headers, too.
        assert (
            0
            < contents.largest_page_bytes
            <= contents.nbytes
            <= description.total_uncompressed_size
        )
        # A header in front of a small page is longer than the page.
        assert contents.nbytes > description.total_uncompressed_size / 10


def field(delta: int, kind: int, value: bytes) -> bytes:
    return bytes([delta << 4 | kind]) + value


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def i32(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def page(
    kind: int = 0, unpacked: int = 6, packed: int = 4, values: int = 3, extra: bytes = b""
) -> bytes:
    """A page header as the specification lays it out, and the bytes of its page."""
    own = field(1, 5, i32(values)) + b"\0"
    header = field(1, 5, i32(kind)) + field(1, 5, i32(unpacked)) + field(1, 5, i32(packed)) + extra
    header += {0: field(2, 12, own), 2: field(4, 12, own), 3: field(5, 12, own)}.get(
        kind, b""
    ) + b"\0"
    return header + b"x" * max(packed, 0)


def test_pages_of_every_kind() -> None:
    chunk = page(2, 10, 5, 2) + page(0, 6, 4, 3) + page(1, 50, 7) + page(3, 7, 4, 4)
    assert chunk_contents(chunk, 7) == ChunkContents(values=7, nbytes=73, largest_page_bytes=50)
    assert chunk_contents(chunk, 3) == ChunkContents(values=3, nbytes=16, largest_page_bytes=10), (
        "what follows is not looked at"
    )
    assert chunk_contents(b"", 0) == ChunkContents(0, 0, 0)


def test_fields_are_read_as_pyarrow_reads_them() -> None:
    # Field 2 again: as another type it does not count, as the same the last one does. Ids may be
    # given in full, and numbers are of 32 bits.
    again = field(0, 6, i32(2) + i32(1))
    assert chunk_contents(page(extra=again + field(1, 8, varint(2) + b"ab")), 3).nbytes == 6
    again = field(0, 5, i32(2) + i32(999)) + field(0, 5, i32(3) + i32(4))
    assert chunk_contents(page(extra=again), 3).nbytes == 999
    assert (
        chunk_contents(
            page(extra=field(0, 5, i32(2) + i32((1 << 32) + 8)) + field(0, 5, i32(3) + i32(4))), 3
        ).nbytes
        == 8
    )
    skipped = [
        *(
            field(0, kind, i32(90) + value)
            for kind, value in (
                (1, b""),
                (2, b""),
                (3, b"\0"),
                (4, i32(-9)),
                (6, i32(1 << 40)),
                (7, bytes(8)),
            )
        ),
        *(
            field(0, kind, i32(90) + value)
            for kind, value in ((8, b"\x02ab"), (9, b"\x35" + i32(1) * 3), (10, b"\xf8\x01\x01a"))
        ),
        *(
            field(0, kind, i32(90) + value)
            for kind, value in (
                (11, b"\0"),
                (11, b"\x01\x85\x01a\x02"),
                (12, field(1, 1, b"") + b"\0"),
            )
        ),
    ]
    for value in skipped:
        # The ids go on from 90: back to that of the last field before.
        assert chunk_contents(page(extra=value + field(0, 5, i32(3) + i32(4))), 3) == ChunkContents(
            3, 6, 6
        )


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (b"\x15", "the chunk ends inside of the page header at its byte 0"),
        (page()[:9], "the chunk ends inside of the page header at its byte 0"),
        (page() + page(values=9)[:7], "the chunk ends inside of the page header at its byte 15"),
        (page(unpacked=-1), "the page at byte 0 of 15 is said to have 4 bytes, and -1 unpacked"),
        (page(packed=-1), "the page at byte 0 of 11 is said to have -1 bytes, and 6 unpacked"),
        (page()[:-1], "the page at byte 0 of 14 is said to have 4 bytes, and 6 unpacked"),
        (page(values=-3), "the page at byte 0 is said to have -3 values"),
        (b"\0", "the page at byte 0 of 1 is said to have None bytes, and None unpacked"),
        (
            field(1, 5, i32(0)) + field(1, 5, i32(6)) + field(1, 5, i32(0)) + b"\0",
            "the page at byte 0 is said to have None values",
        ),
        (field(1, 13, b"") + b"\0", "a page header has a field of the unknown type 13"),
        (field(1, 12, b"") * 100, "a page header is nested too deeply"),
        (field(1, 9, b"\x19") * 3 + b"\x19" * 100, "a page header is nested too deeply"),
        (
            field(1, 9, b"\xf3" + varint(1 << 40)),
            "a page header has a list of 1099511627776 elements with 0 bytes left",
        ),
        (field(1, 5, b"\xff" * 20), "a page header has an integer of more than 64 bits"),
    ],
)
def test_malformed_headers(chunk: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        chunk_contents(chunk, 100)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 20))
def test_any_bytes(chunk: bytes, num_values: int) -> None:
    try:
        contents = chunk_contents(chunk, num_values)
    except ValueError:
        return
    assert contents.values >= num_values or contents.nbytes >= 0


def test_flipped_bytes() -> None:
    chunks = [
        (chunk, description.num_values) for chunk, description in chunks_of(data_page_size=200)
    ]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        chunk, num_values = chunks[rng.integers(len(chunks))]
        damaged = bytearray(chunk)
        damaged[rng.integers(0, min(len(chunk), 60))] = rng.integers(256)
        try:
            chunk_contents(bytes(damaged), num_values)
        except ValueError:
            refused += 1
    assert 100 < refused < 1900
