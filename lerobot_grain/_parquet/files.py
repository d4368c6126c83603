"""The bytes that parquet is read from: a reader of ranges, and bytes in memory that stand for a
file.

A `RangeReader` gives ranges of the files of a dataset; storages are readers. `InMemoryFile` takes
the place of a reader where a whole file is in memory. pyarrow reads from a file object:
`SparseFile` is one of which some ranges are known, `UnreadFile` one of which none is.

Nothing here opens a file or knows parquet.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lerobot_grain._base.byte_ranges import ByteRange


class RangeReader(Protocol):
    """The part of a storage that is needed here; see `Storage`."""

    @property
    def description(self) -> str: ...
    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]: ...
    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]: ...


@dataclass(frozen=True, slots=True)
class InMemoryFile:
    """A file that is in memory, in the place of a storage; its path does not matter."""

    description: str
    data: bytes

    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]:
        del path, keep
        return [self.data[start:stop] for start, stop in ranges]

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        del path, keep
        return self.data[max(0, len(self.data) - length) :], len(self.data)


class UnreadFile(io.RawIOBase):
    """A file of some size whose bytes cannot be read; `was_asked`: whether one was wanted."""

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
        # Not an error: pyarrow 26 never lets go of one that is raised in its threads, nor of what
        # its traceback refers to.
        del size
        self.was_asked = True
        return b""


class SparseFile(UnreadFile):
    """A file of which only some ranges are known; reading anything else is an error (the footer
    lied).
    """

    def __init__(self, ranges: Sequence[ByteRange], payloads: Sequence[bytes]) -> None:
        super().__init__(max((piece.stop for piece in ranges), default=0))
        pieces = sorted(zip(ranges, payloads, strict=True), key=lambda piece: piece[0])
        self._starts = [piece[0].start for piece in pieces]
        self._pieces = [memoryview(piece[1]) for piece in pieces]

    def view(self, wanted: ByteRange) -> memoryview:
        """Returns the bytes of a range, or what is known of it."""
        number = bisect_right(self._starts, wanted.start) - 1
        if number < 0:
            return memoryview(b"")
        start = wanted.start - self._starts[number]
        return self._pieces[number][start : start + wanted.length]

    def read(self, size: int = -1) -> bytes:
        data = bytes(self.view(ByteRange(self._position, self._position + max(0, size))))
        if len(data) != size:
            raise EOFError(
                f"bytes [{self._position}, {self._position + size}) are not those of the column "
                "chunks"
            )
        self._position += size
        return data
