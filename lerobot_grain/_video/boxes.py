"""Boxes of MP4 files (ISO/IEC 14496-12, 4.2): finding those inside of another one, and making them.

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lerobot_grain._base.errors import DatasetFormatError

# Views, so that boxes inside of boxes do not take their memory again.
Bytes = bytes | memoryview

# Inside of another box; FFmpeg writes up to 12. A `moov` has room for millions.
_MAX_INNER_BOXES = 1000


def box_header(
    data: Bytes, offset: int, space: int, where: str, place: int
) -> tuple[str, int, int]:
    """Returns (type, bytes of the header, bytes of the box) of the box at `offset`; what holds it
    ends after `space` bytes.
    """
    size, kind = struct.unpack_from(">I4s", data, offset)
    header = 8
    if size == 1 and space >= 16:
        (size,) = struct.unpack_from(">Q", data, offset + 8)
        header = 16
    elif size == 0:
        size = space
    name = kind.decode("latin-1")
    if not header <= size <= space:
        raise DatasetFormatError(
            f"{where}: box {name!r} at byte {place} has {size} bytes, but {space} are left; the "
            "file is truncated or not an MP4 file"
        )
    return name, header, size


def boxes(data: Bytes, where: str, parent: str) -> Iterator[tuple[str, Bytes]]:
    """Yields (type, payload) of the boxes that fill `data`, which is the payload of a box
    `parent`.
    """
    offset = 0
    for _ in range(_MAX_INNER_BOXES):
        if len(data) - offset < 8:
            return
        kind, header, size = box_header(
            data, offset, len(data) - offset, f"{where}: in {parent}", offset
        )
        yield kind, data[offset + header : offset + size]
        offset += size
    raise DatasetFormatError(f"{where}: {parent} holds more than {_MAX_INNER_BOXES} boxes")


def only_box(data: Bytes, kind: str, where: str, parent: str) -> Bytes:
    """Returns the payload of the one box of a type.

    Raises:
      DatasetFormatError: there is none, or more than one.
    """
    found = [payload for name, payload in boxes(data, where, parent) if name == kind]
    if len(found) != 1:
        raise DatasetFormatError(f"{where}: {parent} holds {len(found)} boxes {kind}; expected one")
    return found[0]


def box(kind: str, payload: Bytes) -> bytes:
    """Returns a box: its size, its type and its payload."""
    return struct.pack(">I4s", 8 + len(payload), kind.encode("latin-1")) + payload
