"""Metadata files of one JSON object a line (`.jsonl`), read line by line: memory is bounded by a
piece of the file, not by the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError, short_repr
from lerobot_grain._storage.base import Storage

# A file up to this size is fetched whole, into the Hub's cache, where it costs nothing the next
# time; a larger one in pieces of this size.
_PIECE_BYTES = 8 << 20
# JSON takes up to 40 times its size in memory. The statistics of an episode, the longest lines
# there are, take a few KB.
_MAX_LINE_BYTES = 4 << 20


def pieces_of(storage: Storage, path: str, size_bytes: int) -> Iterator[bytes]:
    """Yields the contents of a metadata file from its start to its end.

    Raises:
      StorageError: the bytes could not be read.
    """
    if size_bytes <= _PIECE_BYTES:
        yield storage.read_as_is(path, max_bytes=_PIECE_BYTES)
        return
    for start in range(0, size_bytes, _PIECE_BYTES):
        yield storage.read_ranges(path, [ByteRange(start, min(start + _PIECE_BYTES, size_bytes))])[
            0
        ]


def json_lines(
    storage: Storage, path: str, size_bytes: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name of the line in messages, its object) of every line that is not blank.

    Raises:
      DatasetFormatError: a line is not one JSON object; the file and the line are named.
      StorageError: the bytes could not be read.
    """
    with storage.checked(path):
        yield from _objects(
            _lines(pieces_of(storage, path, size_bytes)), f"{storage.description}, {path}"
        )


def _objects(lines: Iterator[bytes], file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        if len(line) > _MAX_LINE_BYTES:
            raise DatasetFormatError(
                f"{where}: it has more than {_MAX_LINE_BYTES} bytes; expected one JSON object of "
                "a few"
            )
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetFormatError(
                f"{where}: not valid JSON ({error.msg} at character {error.pos}); expected one "
                "object a line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DatasetFormatError(
                f"{where}: not valid JSON ({error}); expected one object a line"
            ) from None
        if not isinstance(value, dict):
            raise DatasetFormatError(f"{where}: found {short_repr(value)}; expected a JSON object")
        yield where, value


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            break  # the caller refuses the line
    yield rest
