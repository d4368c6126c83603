"""Page headers of a parquet column chunk: how much its pages hold, told before anything is
unpacked.

The sizes in a footer are claims that nothing checks: a few KB of pages may unpack to gigabytes. The
header before each page is what the decoder itself goes by, so what it says bounds the memory
that decoding takes.

Headers are Thrift structs in the compact protocol (`PageHeader` in parquet.thrift; the protocol:
thrift-compact-protocol.md of Apache Thrift). They are read here as pyarrow reads them: fields of
another type than expected are passed over, of two equal ones the last counts, and pages after the
last expected value are not looked at.
"""

from __future__ import annotations

from typing import NamedTuple

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
# Types of pages, and the fields of their own headers.
_DATA_PAGE = 0
_DATA_PAGE_V2 = 3
_DATA_HEADER_FIELD = {_DATA_PAGE: 5, _DATA_PAGE_V2: 8}
# Page headers are two structs deep; their statistics are one more.
_MAX_DEPTH = 8

_Struct = dict[int, "int | _Struct"]


class ChunkContents(NamedTuple):
    """The contents of the pages of a column chunk.

    Attributes:
      values: of all data pages, nulls and empty lists included.
      nbytes: of all pages, unpacked.
      largest_page_bytes: unpacked. No value is larger: it comes out of one page.
    """

    values: int
    nbytes: int
    largest_page_bytes: int


def chunk_contents(chunk: bytes | memoryview, num_values: int) -> ChunkContents:
    """Adds up the headers of a column chunk up to its last page.

    Args:
      chunk: its bytes.
      num_values: of the chunk, as the footer says.

    Raises:
      ValueError: a header is malformed, or a page is not inside of the chunk.
    """
    at = 0
    values = 0
    nbytes = 0
    largest = 0
    while values < num_values and at < len(chunk):
        start = at
        try:
            header, at = _read_struct(chunk, at, 0)
        except IndexError:
            raise ValueError(
                f"the chunk ends inside of the page header at its byte {start}"
            ) from None
        unpacked = header.get(2)
        packed = header.get(3)
        if (
            not isinstance(unpacked, int)
            or not isinstance(packed, int)
            or unpacked < 0
            or not 0 <= packed <= len(chunk) - at
        ):
            raise ValueError(
                f"the page at byte {start} of {len(chunk)} is said to have {packed} bytes, and "
                f"{unpacked} unpacked"
            )
        at += packed
        nbytes += unpacked
        largest = max(largest, unpacked)
        kind = header.get(1)
        if isinstance(kind, int) and kind in _DATA_HEADER_FIELD:
            data = header.get(_DATA_HEADER_FIELD[kind])
            found = data.get(1) if isinstance(data, dict) else None
            if not isinstance(found, int) or found < 0:
                raise ValueError(f"the page at byte {start} is said to have {found} values")
            values += found
    return ChunkContents(values, nbytes, largest)


def _read_struct(data: bytes | memoryview, at: int, depth: int) -> tuple[_Struct, int]:
    """Returns the 32-bit integers and structs of a struct by their field ids, and where it ends."""
    _check_depth(depth)
    found: _Struct = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 0xF
        if head >> 4:
            field += head >> 4
        else:
            field, at = _read_integer(data, at)
        # Field ids are 16 bits wide.
        field = (field + 0x8000 & 0xFFFF) - 0x8000
        if kind == _I32:
            value, at = _read_integer(data, at)
            found[field] = (value + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        elif kind == _STRUCT:
            found[field], at = _read_struct(data, at, depth + 1)
        elif kind not in (_TRUE, _FALSE):  # whose type is their value
            at = _skip(data, at, kind, depth)
    return found, at + 1


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("a page header is nested too deeply")


def _skip(data: bytes | memoryview, at: int, kind: int, depth: int) -> int:
    """Returns where a value ends."""
    _check_depth(depth)
    if kind in (_BYTE, _TRUE, _FALSE):  # one byte each inside of lists and maps
        return at + 1
    if kind in (_I16, _I32, _I64):
        return _read_varint(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return at + length
    if kind == _STRUCT:
        return _read_struct(data, at, depth + 1)[1]
    if kind in (_LIST, _SET):
        head = data[at]
        at = at + 1
        length = head >> 4
        kinds = [head & 0xF]
        if length == 0xF:
            length, at = _read_varint(data, at)
    elif kind == _MAP:
        length, at = _read_varint(data, at)
        kinds = []
        if length:
            kinds = [data[at] >> 4, data[at] & 0xF]
            at = at + 1
    else:
        raise ValueError(f"a page header has a field of the unknown type {kind}")
    if length > len(data) - at:
        raise ValueError(
            f"a page header has a list of {length} elements with {len(data) - at} bytes left"
        )
    for _ in range(length):
        for element in kinds:
            at = _skip(data, at, element, depth + 1)
    return at


def _read_integer(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Returns a signed integer (zigzag), and where it ends."""
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = 0
    shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a page header has an integer of more than 64 bits")
