"""Merging byte ranges: what must hold for any ranges, and the few numbers that show where the
borders lie.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_grain._base.byte_ranges import ByteRange, merge_ranges, slice_from

FILE_BYTES = 400
RANGES = st.lists(
    st.tuples(st.integers(0, FILE_BYTES), st.integers(0, 80)).map(
        lambda r: ByteRange(r[0], min(r[0] + r[1], FILE_BYTES))
    ),
    max_size=12,
)
GAPS = st.integers(0, 50)
LENGTHS = st.integers(0, 120)


def covered(ranges):
    return {position for r in ranges for position in range(r.start, r.stop)}


@given(RANGES, GAPS, LENGTHS)
def test_merged_ranges_cover_what_was_asked_for_and_only_gaps_besides(ranges, gap_bytes, max_bytes):
    merged = merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes)
    wanted = covered(ranges)
    assert wanted <= covered(merged)
    for r in merged:
        assert r.start in wanted
        assert r.stop - 1 in wanted
        missed = 0
        for position in range(r.start, r.stop):
            missed = 0 if position in wanted else missed + 1
            assert missed <= gap_bytes


@given(RANGES, GAPS, LENGTHS)
def test_merged_ranges_are_sorted_disjoint_and_not_empty(ranges, gap_bytes, max_bytes):
    merged = merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes)
    assert all(r.length > 0 for r in merged)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(merged))


@given(RANGES, GAPS, LENGTHS)
def test_nothing_longer_than_max_bytes_unless_overlaps_force_it(ranges, gap_bytes, max_bytes):
    for r in merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes):
        inside = sorted(
            other for other in ranges if other.length > 0 and r.start <= other.start < r.stop
        )
        overlap = any(
            b.start < stop
            for stop, b in zip(
                itertools.accumulate((a.stop for a in inside), max), inside[1:], strict=False
            )
        )
        assert r.length <= max_bytes or len(inside) == 1 or overlap


@given(RANGES, GAPS)
def test_without_a_limit_no_gap_that_may_be_closed_stays(ranges, gap_bytes):
    merged = merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=FILE_BYTES)
    assert all(b.start - a.stop > gap_bytes for a, b in itertools.pairwise(merged))


@given(RANGES, GAPS, LENGTHS, st.randoms())
def test_order_does_not_matter_and_merging_again_changes_nothing(
    ranges, gap_bytes, max_bytes, random
):
    merged = merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes)
    shuffled = random.sample(ranges, len(ranges))
    assert merge_ranges(shuffled, gap_bytes=gap_bytes, max_bytes=max_bytes) == merged
    assert merge_ranges(merged, gap_bytes=gap_bytes, max_bytes=max_bytes) == merged


@given(RANGES, GAPS, LENGTHS)
def test_every_range_is_found_again_in_the_payloads(ranges, gap_bytes, max_bytes):
    contents = bytes(i % 251 for i in range(FILE_BYTES))
    merged = merge_ranges(ranges, gap_bytes=gap_bytes, max_bytes=max_bytes)
    payloads = [contents[r.start : r.stop] for r in merged]
    assert [slice_from(merged, payloads, r) for r in ranges] == [
        contents[r.start : r.stop] for r in ranges
    ]


@pytest.mark.parametrize(
    ("ranges", "gap_bytes", "max_bytes", "expected"),
    [
        pytest.param([], 10, 100, [], id="none"),
        pytest.param([(5, 5)], 10, 100, [], id="empty"),
        pytest.param([(0, 10), (10, 20)], 0, 100, [(0, 20)], id="touching, no gap allowed"),
        pytest.param(
            [(0, 10), (11, 20)], 0, 100, [(0, 10), (11, 20)], id="one byte between, no gap allowed"
        ),
        pytest.param([(0, 10), (20, 30)], 10, 100, [(0, 30)], id="gap as large as allowed"),
        pytest.param(
            [(0, 10), (21, 30)], 10, 100, [(0, 10), (21, 30)], id="gap one byte too large"
        ),
        pytest.param([(0, 10), (10, 20)], 0, 20, [(0, 20)], id="as long as allowed"),
        pytest.param([(0, 10), (10, 21)], 0, 20, [(0, 10), (10, 21)], id="one byte too long"),
        pytest.param([(0, 15), (14, 30)], 0, 20, [(0, 30)], id="overlap beats the length"),
        pytest.param([(0, 30), (5, 10)], 0, 20, [(0, 30)], id="inside"),
        pytest.param([(20, 30), (0, 10)], 0, 100, [(0, 10), (20, 30)], id="unsorted"),
    ],
)
def test_where_the_borders_lie(ranges, gap_bytes, max_bytes, expected):
    assert (
        merge_ranges([ByteRange(*r) for r in ranges], gap_bytes=gap_bytes, max_bytes=max_bytes)
        == expected
    )


def test_a_range_that_was_not_read_is_a_bug():
    with pytest.raises(AssertionError, match=r"\[5, 12\) is in none"):
        slice_from([ByteRange(0, 10)], [bytes(10)], ByteRange(5, 12))


def test_texts_and_lengths():
    assert str(ByteRange(3, 10)) == "[3, 10)"
    assert ByteRange(3, 10).length == 7
