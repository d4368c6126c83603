"""Strides: golden orders that can never change, and the slow second implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._order.sampling.strided_rows import Stride
from lerobot_grain._order.shuffle import FrameOrder, Shuffle
from tests.support.orders import SMALL_SHUFFLES, clips_of, naive_order, naive_strided

MODEST = settings(max_examples=150, derandomize=True, deadline=None)

# As in test_shuffle.py; the episodes are numbers 0, 1, 3 and 4.
FIRST_ROWS, LENGTHS, DATA_FILES = [0, 9, 26, 33], [9, 7, 7, 14], [0, 0, 1, 2]
NUMBERS = [0, 1, 3, 4]
Table = tuple[list[int], list[int], list[int]]
TABLE: Table = (FIRST_ROWS, LENGTHS, DATA_FILES)


def strided_order(
    table: Table, numbers: list[int], shuffle: Shuffle | None, step: int, first_frame: int
) -> FrameOrder:
    first_rows, lengths, data_files = (np.array(values, np.int64) for values in table)
    stride = Stride.of(
        step,
        np.array(numbers, np.int64),
        first_frame=first_frame,
        seed=None if shuffle is None else shuffle.seed,
    )
    return FrameOrder(
        first_rows=first_rows,
        lengths=lengths,
        data_files=data_files,
        shuffle=shuffle,
        weights=None,
        stride=stride,
    )


def epoch_rows(order: FrameOrder, epoch: int) -> list[int]:
    count = order.start_of(epoch + 1) - order.start_of(epoch)
    return order.epoch(epoch).rows(np.arange(count)).tolist()


def naive_epoch(
    table: Table, numbers: list[int], shuffle: Shuffle, step: int, first_frame: int, epoch: int
) -> list[int]:
    rows = [list(range(first, first + length)) for first, length in zip(*table[:2], strict=True)]
    frames = [[first_frame + place for place in range(len(its))] for its in rows]
    kept = naive_strided(rows, frames, numbers, step, shuffle.seed)[epoch % step]
    clips = [
        (file, [row for row in its if row in kept])
        for file, its in clips_of(*table, shuffle.clip_length)
    ]
    return naive_order([clip for clip in clips if clip[1]], shuffle, epoch)


# --- golden orders -------------------------------------------------------------------------------

# fmt: off
GOLDEN: dict[str, tuple[Shuffle, int, list[list[int]]]] = {
    "every third frame": (Shuffle(seed=7, buffer_size=12, clip_length=4, num_parts=4), 3, [
        [14, 11, 8, 43, 40, 5, 34, 46, 37, 30, 27, 2],
        [45, 36, 32, 42, 4, 33, 26, 1, 13, 10, 29, 39, 7],
        [41, 0, 3, 15, 38, 44, 6, 9, 35, 28, 31, 12],
        [43, 34, 30, 14, 27, 11, 37, 5, 8, 2, 40, 46],
    ]),
    "every fifth frame, open files": (
        Shuffle(seed=1, buffer_size=8, clip_length=4, num_parts=4, open_files=1), 5, [
        [12, 8, 3, 42, 37, 26, 31],
        [7, 11, 2, 36, 46, 41, 30],
        [29, 1, 15, 6, 10, 35, 40, 45],
        [14, 5, 9, 0, 44, 34, 39, 28],
        [27, 32, 13, 4, 38, 43, 33],
        [37, 42, 26, 31, 12, 3, 8],
    ]),
}
# fmt: on


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_order(name: str) -> None:
    # People hold checkpoints: when this fails, the order is wrong and not the numbers.
    shuffle, step, epochs = GOLDEN[name]
    order = strided_order(TABLE, NUMBERS, shuffle, step, 0)
    assert [epoch_rows(order, epoch) for epoch in range(step + 1)] == epochs


# --- the definition ------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, list[int]]:
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    gaps = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    files = draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    first_rows = list(
        itertools.accumulate(map(sum, zip(gaps[1:], lengths, strict=False)), initial=gaps[0])
    )
    numbers = draw(st.sets(st.integers(0, 2**40), min_size=len(lengths), max_size=len(lengths)))
    return (first_rows, lengths, files), sorted(numbers)


EPOCHS = st.one_of(st.integers(0, 9), st.integers(0, 2**30))


@MODEST
@given(tables(), SMALL_SHUFFLES, st.integers(1, 30), st.integers(0, 9), EPOCHS)
def test_it_is_the_order_of_the_definition(
    given_tables: tuple[Table, list[int]],
    shuffle: Shuffle,
    step: int,
    first_frame: int,
    epoch: int,
) -> None:
    table, numbers = given_tables
    step = min(step, max(table[1]))
    order = strided_order(table, numbers, shuffle, step, first_frame)
    expected = naive_epoch(table, numbers, shuffle, step, first_frame, epoch)
    assert epoch_rows(order, epoch) == expected
    # The positions of an epoch, and those of its neighbors.
    start = order.start_of(epoch)
    positions = np.arange(max(0, start - 1), start + len(expected) + 1)
    epochs, elements = order.places_of(positions)
    inside = (positions >= start) & (positions < start + len(expected))
    assert ((epochs == epoch) == inside).all()
    assert elements[inside].tolist() == list(range(len(expected)))


@MODEST
@given(tables(), SMALL_SHUFFLES, st.integers(1, 30), st.integers(0, 3))
def test_a_cycle_holds_every_row_once(
    given_tables: tuple[Table, list[int]], shuffle: Shuffle, step: int, cycle: int
) -> None:
    table, numbers = given_tables
    step = min(step, max(table[1]))
    order = strided_order(table, numbers, shuffle, step, 0)
    found = [epoch_rows(order, epoch) for epoch in range(cycle * step, (cycle + 1) * step)]
    selected = [row for _, rows in clips_of(*table, 10**6) for row in rows]
    assert sorted(itertools.chain.from_iterable(found)) == selected
    assert order.num_rows == len(selected)
    # As many in each epoch, but for one an episode.
    counts = [len(rows) for rows in found]
    assert max(counts) - min(counts) <= len(table[1])


@pytest.mark.parametrize("step", [1, 2, 3, 9])
def test_the_sequential_order_begins_at_the_first_frame(step: int) -> None:
    order = strided_order(TABLE, NUMBERS, None, step, 0)
    expected = [
        row
        for first, length in zip(FIRST_ROWS, LENGTHS, strict=True)
        for row in range(first, first + length, step)
    ]
    assert epoch_rows(order, 0) == epoch_rows(order, step) == expected


def test_the_phases_of_episodes_are_drawn_by_their_numbers() -> None:
    some = Stride.of(5, np.arange(1000), first_frame=0, seed=3)
    counts = np.bincount(some.phases, minlength=5)
    assert counts.min() > 150
    # Another selection of episodes leaves those of the others.
    others = Stride.of(5, np.arange(500, 900), first_frame=0, seed=3)
    assert others.phases.tolist() == some.phases[500:900].tolist()
    assert (Stride.of(5, np.arange(1000), first_frame=0, seed=4).phases != some.phases).any()
