"""Windows that hold valid rows only, against a loop from row to row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._order.valid_windows import ValidRuns
from lerobot_grain._order.windows import WindowOffsets


def naive_window(
    valid: list[bool], first_row: int, length: int, anchor: int, offsets: list[int]
) -> tuple[list[int], list[bool]]:
    frames, is_pad = [], []
    for offset in offsets:
        frame = anchor + offset
        padded = False
        while frame != anchor and not (0 <= frame < length and valid[first_row + frame]):
            frame += 1 if frame < anchor else -1
            padded = True
        frames.append(frame)
        is_pad.append(padded or not valid[first_row + frame])
    return frames, is_pad


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).flatmap(
        lambda lengths: st.tuples(
            st.just(lengths),
            st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)),
        )
    ),
    st.lists(st.integers(-8, 8), min_size=1, max_size=6),
)
def test_windows_are_those_of_the_definition(
    rows: tuple[list[int], list[bool]], offsets: list[int]
) -> None:
    lengths, valid = rows
    firsts = (np.cumsum(lengths) - lengths).tolist()
    of_rows = [
        (first, length, anchor)
        for first, length in zip(firsts, lengths, strict=True)
        for anchor in range(length)
    ]
    block = WindowOffsets({"a": np.array(offsets), "b": np.array(offsets)}).block(
        episodes=np.zeros(len(of_rows), np.int64),
        frames=np.array([anchor for _, _, anchor in of_rows]),
        lengths=np.array([length for _, length, _ in of_rows]),
    )
    found = ValidRuns(np.array(valid)).padded(block, np.array([first for first, _, _ in of_rows]))
    # Features with equal windows share them still: they are read once.
    assert found.frames["a"] is found.frames["b"]
    for place, (first, length, anchor) in enumerate(of_rows):
        expected = naive_window(valid, first, length, anchor, offsets)
        assert found.frames["a"][place].tolist() == expected[0]
        assert found.is_pad["a"][place].tolist() == expected[1]


@pytest.mark.parametrize("value", [True, False])
def test_rows_that_are_all_the_same(value: bool) -> None:
    block = WindowOffsets({"a": np.array([-1, 0, 1])}).block(
        episodes=np.array([0]), frames=np.array([2]), lengths=np.array([5])
    )
    found = ValidRuns(np.full(5, value)).padded(block, np.array([0]))
    assert found.frames["a"].tolist() == ([[1, 2, 3]] if value else [[2, 2, 2]])
    assert found.is_pad["a"].tolist() == [[not value] * 3]
