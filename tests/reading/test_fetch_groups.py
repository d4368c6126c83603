"""Groups that are fetched together, against a slow definition; of real video files: test_plan; seen
in the requests: test_together.
"""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.fetch_groups import ALONE, joins, pieces_of, row_groups_fetched_together

PIECE_BYTES = 100
# For each part of a file: the gap before it, its length, and whether it may join.
PARTS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 120), st.booleans() | st.just(True)),
    min_size=1,
    max_size=15,
)


def extents_of(parts: list[tuple[int, int, bool]]) -> list[ByteRange | None]:
    found: list[ByteRange | None] = []
    cursor = 0
    for gap, length, may_join in parts:
        cursor += gap
        found.append(ByteRange(cursor, cursor + length) if may_join else None)
        cursor += length
    return found


def naive(extents: list[ByteRange | None]) -> list[list[int]]:
    """Each part, one after the other, comes with the one before it or begins a new set."""
    sets: list[list[int]] = []
    for number, extent in enumerate(extents):
        before = extents[number - 1] if number else None
        is_with_it = (
            extent is not None
            and before is not None
            and max(extent.length, before.length) <= PIECE_BYTES
            and extent.start // PIECE_BYTES == before.start // PIECE_BYTES
        )
        if is_with_it:
            sets[-1].append(number)
        else:
            sets.append([number])
    return sets


@given(PARTS)
def test_from_each_of_them_the_same_are_found(parts: list[tuple[int, int, bool]]) -> None:
    extents = extents_of(parts)
    asked: set[int] = set()

    def extent_to_join(number: int) -> ByteRange | None:
        asked.add(number)
        return extents[number]

    for members in naive(extents):
        for number in members:
            asked.clear()
            groups = row_groups_fetched_together(
                number, len(parts), extent_to_join, piece_bytes=PIECE_BYTES
            )
            assert list(groups) == members
            assert asked <= set(range(members[0] - 1, members[-1] + 2)), (
                "only of these and their neighbors"
            )


@given(PARTS)
def test_all_at_once_is_the_same(parts: list[tuple[int, int, bool]]) -> None:
    may_join = np.array([may_join for _, _, may_join in parts])
    lengths = np.array([length for _, length, _ in parts])
    starts = np.cumsum([gap for gap, _, _ in parts]) + np.cumsum([0, *lengths[:-1]])
    pieces = pieces_of(starts, lengths, may_join, piece_bytes=PIECE_BYTES)
    sets = np.split(np.arange(len(parts)), np.flatnonzero(~joins(pieces)) + 1)
    assert [members.tolist() for members in sets] == naive(extents_of(parts))
    assert all(may_join[np.array(members)].all() for members in sets if len(members) > 1)


@given(PARTS)
def test_a_request_takes_at_most_two_pieces(parts: list[tuple[int, int, bool]]) -> None:
    extents = extents_of(parts)
    for number in range(len(parts)):
        groups = row_groups_fetched_together(
            number, len(parts), extents.__getitem__, piece_bytes=PIECE_BYTES
        )
        members = [extent for each in groups if (extent := extents[each]) is not None]
        if len(groups) > 1:
            assert len(members) == len(groups)
            assert members[-1].stop <= (members[0].start // PIECE_BYTES + 2) * PIECE_BYTES
            assert all(one.stop <= other.start for one, other in itertools.pairwise(members))


def test_pieces_are_fixed() -> None:
    extents = [
        ByteRange(90, 99),
        ByteRange(100, 130),
        ByteRange(199, 290),
        ByteRange(290, 391),
        None,
        ByteRange(395, 396),
    ]
    found = [
        row_groups_fetched_together(number, 6, extents.__getitem__, piece_bytes=PIECE_BYTES)
        for number in range(6)
    ]
    assert [list(groups) for groups in found] == [[0], [1, 2], [1, 2], [3], [4], [5]]
    assert pieces_of(
        np.array([90, 290]), np.array([9, 101]), np.array([True, True]), piece_bytes=PIECE_BYTES
    ).tolist() == [0, ALONE]
