"""Half-open byte ranges, and merging neighboring ones into fewer requests.

A range request costs about the same up to a size of latency x bandwidth (50 ms x 20 MB/s = 1 MB),
so ranges with a small gap between them are cheaper to read as one. Pure: what reads them is in
`_storage`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class ByteRange(NamedTuple):
    """The bytes `[start, stop)` of a file; `start <= stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def cover(self, other: ByteRange) -> ByteRange:
        """Returns the range from the start of the first to the end of the last of both."""
        return ByteRange(min(self.start, other.start), max(self.stop, other.stop))

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


class Part(NamedTuple):
    """Some bytes of a file: `payload`, from its byte `start` on."""

    start: int
    payload: bytes

    @property
    def stop(self) -> int:
        return self.start + len(self.payload)

    @property
    def extent(self) -> ByteRange:
        return ByteRange(self.start, self.stop)


def merge_ranges(ranges: Iterable[ByteRange], *, gap_bytes: int, max_bytes: int) -> list[ByteRange]:
    """Returns sorted, disjoint ranges that cover `ranges`.

    Args:
      ranges: any order, may overlap; empty ranges are dropped.
      gap_bytes: two ranges are merged when at most this many bytes lie between them.
      max_bytes: no merge makes a range longer than this. Overlapping ranges are merged whatever the
        length, so that no byte is read twice.
    """
    disjoint: list[ByteRange] = []
    for current in sorted(r for r in ranges if r.length > 0):
        if disjoint and current.start < disjoint[-1].stop:
            disjoint[-1] = ByteRange(disjoint[-1].start, max(disjoint[-1].stop, current.stop))
        else:
            disjoint.append(current)
    # Gaps second: a merge over a gap must know how long the overlapping ranges after it are
    # together.
    merged = disjoint[:1]
    for current in disjoint[1:]:
        if (
            current.start - merged[-1].stop <= gap_bytes
            and current.stop - merged[-1].start <= max_bytes
        ):
            merged[-1] = ByteRange(merged[-1].start, current.stop)
        else:
            merged.append(current)
    return merged


def uncovered(wanted: Iterable[ByteRange], covered: Iterable[ByteRange]) -> list[ByteRange]:
    """Returns the parts of `wanted` that lie in none of the `covered` ranges.

    Args:
      wanted: sorted and disjoint, none empty.
      covered: any order, may overlap.
    """
    known = sorted(covered)
    missing = []
    first = 0
    for current in wanted:
        # A range that ends before this one ends before all later ones.
        while first < len(known) and known[first].stop <= current.start:
            first += 1
        position = current.start
        for place in range(first, len(known)):
            if known[place].start >= current.stop:
                break
            if known[place].start > position:
                missing.append(ByteRange(position, known[place].start))
            position = max(position, known[place].stop)
        if position < current.stop:
            missing.append(ByteRange(position, current.stop))
    return missing


def joined(parts: Sequence[Part], wanted: ByteRange) -> bytes:
    """Returns the bytes of `wanted`, all of which must lie in `parts`.

    Args:
      parts: sorted by their starts, may overlap.
      wanted: not empty.
    """
    found = []
    position = wanted.start
    for part in parts:
        stop = min(part.stop, wanted.stop)
        if part.start <= position < stop:
            found.append(part.payload[position - part.start : stop - part.start])
            position = stop
    assert position == wanted.stop, f"{wanted}: its bytes from {position} on are in no part"
    return found[0] if len(found) == 1 else b"".join(found)


def slice_from(merged: Sequence[ByteRange], payloads: Sequence[bytes], wanted: ByteRange) -> bytes:
    """Returns the bytes of `wanted`, which must lie inside one of the `merged` ranges whose
    contents are `payloads`.
    """
    if wanted.length == 0:
        return b""
    for covering, payload in zip(merged, payloads, strict=True):
        if covering.start <= wanted.start and wanted.stop <= covering.stop:
            return payload[wanted.start - covering.start : wanted.stop - covering.start]
    raise AssertionError(f"{wanted} is in none of the merged ranges")
