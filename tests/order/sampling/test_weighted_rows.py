"""Rounds of weighted rows: golden orders that can never change, the slow second implementation, and
how often rows come.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._order.sampling import rounds, weighted_clips
from lerobot_grain._order.sampling.weights import UNIT, scaled_weights
from lerobot_grain._order.shuffle import FrameOrder, Shuffle
from tests.support.orders import (
    DRAW,
    SMALL_SHUFFLES,
    Clip,
    clips_of,
    naive_copies,
    naive_order,
    naive_weights,
    philox_order,
    philox_words,
)

MODEST = settings(max_examples=150, derandomize=True, deadline=None)

# As in test_shuffle.py.
FIRST_ROWS, LENGTHS, DATA_FILES = [0, 9, 26, 33], [9, 7, 7, 14], [0, 0, 1, 2]
Table = tuple[list[int], list[int], list[int]]
TABLE: Table = (FIRST_ROWS, LENGTHS, DATA_FILES)


def selected_rows(table: Table) -> list[int]:
    first_rows, lengths, _ = table
    return [
        row
        for first, length in zip(first_rows, lengths, strict=True)
        for row in range(first, first + length)
    ]


def weighted_order(table: Table, shuffle: Shuffle | None, weights: list[float]) -> FrameOrder:
    first_rows, lengths, data_files = (np.array(values, np.int64) for values in table)
    ones = np.ones(len(weights), np.int64)
    return FrameOrder(
        first_rows=first_rows,
        lengths=lengths,
        data_files=data_files,
        shuffle=shuffle,
        weights=scaled_weights(np.array(weights, np.float64), ones),
        stride=None,
    )


def round_rows(order: FrameOrder, number: int) -> list[int]:
    return order.epoch(number).rows(np.arange(order.num_rows)).tolist()


def naive_round(
    table: Table, shuffle: Shuffle, weights: list[float], number: int
) -> tuple[list[int], list[tuple[int, int, Clip]]]:
    assert shuffle.clip_length is not None
    clips = clips_of(*table, shuffle.clip_length)
    scaled = dict(zip(selected_rows(table), naive_weights(weights), strict=True))
    copies = naive_copies(clips, scaled, shuffle.seed, number)
    return naive_order([clip for _, _, clip in copies], shuffle, number), copies


# --- golden orders -------------------------------------------------------------------------------

BY_EPISODE = [1.0] * 9 + [0.0] * 7 + [0.25] * 7 + [3.0] * 14
BY_ROW = [float(row % 5) + 0.5 * (row % 3) for row in range(37)]
MASK = [float(row % 7 < 4) for row in range(37)]

# fmt: off
GOLDEN: dict[str, tuple[Shuffle, list[float], list[list[int]]]] = {
    "by episode": (Shuffle(clip_length=4), BY_EPISODE, [
        [
            28, 8, 41, 44, 29, 37, 39, 41, 27, 38, 35, 43, 1, 46, 33, 42, 26, 45, 40,
            43, 3, 37, 36, 42, 0, 39, 34, 44, 2, 38,
        ],
        [
            40, 34, 39, 41, 33, 43, 8, 3, 35, 42, 40, 42, 39, 45, 38, 43, 36, 33, 36, 2,
            37, 41, 37, 1, 34, 35, 0, 44, 38, 44,
        ],
    ]),
    "by row": (Shuffle(seed=7, buffer_size=12, clip_length=3, num_parts=4), BY_ROW, [
        [
            42, 9, 44, 14, 31, 27, 33, 39, 29, 28, 34, 29, 13, 8, 27, 30, 44, 7, 28, 38,
            14, 37, 12, 37, 4, 42, 39, 32, 26, 38, 13, 2, 3, 43,
        ],
        [
            34, 29, 14, 1, 35, 8, 3, 2, 33, 31, 9, 38, 43, 34, 4, 36, 36, 33, 11, 14,
            44, 3, 28, 12, 39, 12, 9, 29, 32, 13, 27, 31, 38, 4,
        ],
    ]),
    "by row, open files": (
        Shuffle(seed=1, buffer_size=8, clip_length=2, num_parts=4, open_files=1), BY_ROW, [
        [
            7, 14, 2, 9, 8, 13, 14, 4, 4, 9, 3, 8, 37, 36, 33, 43, 38, 44, 41, 44, 39,
            34, 34, 39, 43, 33, 42, 30, 26, 32, 29, 31, 27, 28,
        ],
        [
            9, 7, 9, 5, 1, 8, 4, 3, 6, 14, 14, 2, 8, 13, 44, 44, 38, 33, 43, 43, 39, 41,
            34, 39, 36, 34, 33, 37, 42, 42, 27, 32, 29, 28,
        ],
    ]),
    "mask": (Shuffle(seed=2**64 - 1, buffer_size=8, clip_length=5, num_parts=2), MASK, [
        [
            1, 27, 46, 9, 45, 34, 0, 14, 38, 10, 39, 33, 3, 7, 2, 31, 40, 8, 41, 15, 26,
            32,
        ],
        [
            15, 26, 45, 32, 46, 27, 14, 2, 40, 1, 41, 0, 38, 3, 39, 34, 10, 7, 9, 33,
            31, 8,
        ],
    ]),
}
# fmt: on


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_order(name: str) -> None:
    # People hold checkpoints: when this fails, the order is wrong and not the numbers.
    shuffle, weights, rounds = GOLDEN[name]
    order = weighted_order(TABLE, shuffle, weights)
    assert [round_rows(order, number) for number in range(2)] == rounds


# --- the definition ------------------------------------------------------------------------------


@st.composite
def weighted_tables(draw: st.DrawFn) -> tuple[Table, list[float]]:
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    gaps = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    files = draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    first_rows = list(
        itertools.accumulate(map(sum, zip(gaps[1:], lengths, strict=False)), initial=gaps[0])
    )
    some = st.one_of(
        st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.1, 10.0, 1e-9, 1000.0]), st.floats(0, 5)
    )
    kind = draw(st.sampled_from(["episodes", "rows", "mask"]))
    if kind == "episodes":
        its = draw(st.lists(some, min_size=len(lengths), max_size=len(lengths)))
        weights = np.repeat(its, lengths).tolist()
    else:
        each = some if kind == "rows" else st.sampled_from([0.0, 1.0])
        count = sum(lengths)
        weights = draw(st.lists(each, min_size=count, max_size=count))
    if not any(weights):
        weights[draw(st.integers(0, len(weights) - 1))] = 1.0
    return (first_rows, lengths, files), weights


ROUNDS = st.one_of(st.integers(0, 3), st.integers(0, 2**40))


# Whether words are made one by one, and whether the walk that fills a round up is put in order as
# far as it is needed, changes only what it costs.
@pytest.mark.parametrize(("cheap_words", "safe_factor"), [(100, 4), (0, 1), (10**9, 1)])
@MODEST
@given(weighted_tables(), SMALL_SHUFFLES, ROUNDS)
def test_it_is_the_order_of_the_definition(
    cheap_words: int,
    safe_factor: int,
    weighted: tuple[Table, list[float]],
    shuffle: Shuffle,
    number: int,
) -> None:
    table, weights = weighted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_CHEAP_WORDS", cheap_words)
        patch.setattr(rounds, "_SAFE_FACTOR", safe_factor)
        order = weighted_order(table, shuffle, weights)
        found = round_rows(order, number)
    if len(set(naive_weights(weights))) == 1:
        assert found == naive_order(clips_of(*table, shuffle.clip_length), shuffle, number)
        return
    expected, copies = naive_round(table, shuffle, weights, number)
    assert found == expected
    assert order.num_rows == len(found) == sum(weight > 0 for weight in weights)
    check_counts(table, shuffle, weights, copies)


def check_counts(
    table: Table, shuffle: Shuffle, weights: list[float], copies: list[tuple[int, int, Clip]]
) -> None:
    """Checks that no row of weight 0 comes, and that of the clips that come in a walk all but the
    one at its end, where the cut falls, come floor or ceil of their weight times.
    """
    clips = clips_of(*table, shuffle.clip_length)
    scaled = dict(zip(selected_rows(table), naive_weights(weights), strict=True))
    assert not any(scaled[row] == 0 for _, _, (_, rows) in copies for row in rows)
    cut = Counter[int]()
    for (clip, draw), count in Counter((clip, draw) for clip, draw, _ in copies).items():
        weight = max(scaled[row] for row in clips[clip][1])
        assert count <= -(-weight // UNIT)
        cut[draw] += count < weight // UNIT
    assert all(count <= 1 for count in cut.values())


def test_equal_weights_are_the_order_without_weights() -> None:
    shuffle = Shuffle(seed=3, clip_length=4)
    assert round_rows(weighted_order(TABLE, shuffle, [3.7] * 37), 2) == naive_order(
        clips_of(*TABLE, 4), shuffle, 2
    )


def test_equal_weights_give_every_clip_once_in_order() -> None:
    # What a weight of 1 means, where it is not left out as having no effect.
    shuffle = Shuffle(seed=3, clip_length=4)
    scaled = dict.fromkeys(selected_rows(TABLE), UNIT)
    for number in range(5):
        copies = naive_copies(clips_of(*TABLE, 4), scaled, shuffle.seed, number)
        assert [clip for _, _, clip in copies] == clips_of(*TABLE, 4)


@MODEST
@given(weighted_tables(), SMALL_SHUFFLES, ROUNDS)
def test_a_mask_gives_each_row_once(
    weighted: tuple[Table, list[float]], shuffle: Shuffle, number: int
) -> None:
    table, weights = weighted
    mask = [float(weight > 0) for weight in weights]
    expected = [row for row, kept in zip(selected_rows(table), mask, strict=True) if kept]
    assert sorted(round_rows(weighted_order(table, shuffle, mask), number)) == expected
    # And the sequential order the rows that are left.
    assert round_rows(weighted_order(table, None, mask), number) == expected


@MODEST
@given(weighted_tables(), SMALL_SHUFFLES, ROUNDS, st.lists(st.integers(0, 10**6), max_size=30))
def test_positions_can_be_asked_for_in_any_order(
    weighted: tuple[Table, list[float]], shuffle: Shuffle, number: int, asked: list[int]
) -> None:
    order = weighted_order(weighted[0], shuffle, weighted[1])
    whole = round_rows(order, number)
    elements = [place % order.num_rows for place in asked]
    assert order.epoch(number).rows(np.array(elements, np.int64)).tolist() == [
        whole[place] for place in elements
    ]
    first = number * order.num_rows
    assert order.start_of(number) == first
    epochs, places = order.places_of(np.array([first, first + order.num_rows - 1]))
    assert (epochs.tolist(), places.tolist()) == ([number] * 2, [0, order.num_rows - 1])


# --- how often rows come -------------------------------------------------------------------------


def many_episodes(count: int) -> tuple[Table, npt.NDArray[np.float64]]:
    """Returns episodes of 20 to 40 rows with weights from 0.1 to 10."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 41, count)
    weights = 10 ** generator.uniform(-1, 1, count)
    table = ((np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), [0] * count)
    return table, weights


def rows_of_deciles(
    num_rounds: int,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns of the rows in rounds of 1,000 episodes: how many are of each decile of weight, how
    many are expected, and the standard error of it: float64 `(10,)` each.
    """
    table, weights = many_episodes(1000)
    starts, lengths = np.array(table[0]), np.array(table[1])
    by_row = np.repeat(weights, lengths)
    order = weighted_order(table, Shuffle(clip_length=16), by_row.tolist())
    decile = np.argsort(np.argsort(weights)) * 10 // len(weights)
    found = np.zeros(10, np.float64)
    for number in range(num_rounds):
        rows = order.epoch(number).rows(np.arange(order.num_rows))
        assert len(rows) == order.num_rows == lengths.sum()
        found += np.bincount(decile[np.searchsorted(starts, rows, side="right") - 1], minlength=10)
    scaled = weights * len(by_row) / by_row.sum()
    expected = num_rounds * np.bincount(decile, weights=scaled * lengths)
    # All rows of a clip come, or none, and whether it is floor or ceil times is the only chance.
    squares = np.array(
        [sum(len(rows) ** 2 for _, rows in clips_of([0], [n], [0], 16)) for n in lengths]
    )
    chance = scaled % 1 * (1 - scaled % 1)
    variance = num_rounds * np.bincount(decile, weights=chance * squares)
    return found, expected, np.sqrt(variance)


def test_each_decile_of_weight_comes_as_often_as_it_is_to() -> None:
    found, expected, error = rows_of_deciles(20)
    assert (np.abs(found - expected) <= 4 * error).all()


@pytest.mark.long
def test_over_many_rounds_each_decile_comes_within_some_percent() -> None:
    found, expected, _ = rows_of_deciles(60)
    assert np.abs(found / expected - 1).max() < 0.04


@pytest.mark.long
@pytest.mark.timeout(900)
def test_over_2000_rounds_each_decile_comes_within_one_percent() -> None:
    found, expected, _ = rows_of_deciles(2000)
    assert np.abs(found / expected - 1).max() < 0.01


def naive_walk(largest: list[int], seed: int, number: int, draw: int) -> list[tuple[int, int]]:
    """Returns the clips of a walk that is not cut, and how often each comes, in the order of the
    walk.
    """
    running = philox_words(1, seed, number, draw, 1, DRAW)[0] >> 32
    found = []
    for clip in philox_order(len(largest), seed, number, draw, 0, DRAW):
        before, running = running, running + largest[clip]
        found.append((clip, (running >> 32) - (before >> 32)))
    return found


def test_clips_come_floor_or_ceil_of_their_weight_but_at_the_end_of_a_round() -> None:
    """What docs/sampling.md says of the cut, against the walks themselves."""
    table, weights = many_episodes(300)
    by_row = np.repeat(weights, np.array(table[1])).tolist()
    order = weighted_order(table, Shuffle(clip_length=16), by_row)
    clips = [rows for _, rows in clips_of(*table, 16)]
    scaled = naive_weights(by_row)
    largest = [scaled[rows[0]] for rows in clips]
    unequal = []
    kinds = set()
    for number in range(40):
        rows = np.array(round_rows(order, number))
        # The first row of a clip is kept by each copy.
        found = np.bincount(rows, minlength=order.num_rows)[[rows[0] for rows in clips]].tolist()
        left = order.num_rows
        expected = [0] * len(clips)
        draw = 0
        at_an_end = set()
        while left > 0:
            for clip, count in naive_walk(largest, 0, number, draw):
                if left > 0:
                    assert count in (largest[clip] // UNIT, -(-largest[clip] // UNIT))
                    came = min(count, -(-left // len(clips[clip])))
                    expected[clip] += came
                    left -= count * len(clips[clip])
                    if draw or came < count:
                        at_an_end.add(clip)
                else:
                    at_an_end.add(clip)
            draw += 1
        assert found == expected
        kinds.add(draw)
        outside = {
            clip
            for clip, count in enumerate(found)
            if not largest[clip] // UNIT <= count <= -(-largest[clip] // UNIT)
        }
        # Only where the round is full, or another walk fills it up.
        assert outside <= at_an_end
        unequal.append(len(outside))
    assert kinds == {1, 2}
    assert len(clips) > 600
    assert np.mean(unequal) < 0.01 * len(clips)
    assert max(unequal) < 0.03 * len(clips)


@MODEST
@given(st.lists(st.tuples(st.integers(1, 2**62 - 1), st.integers(1, 2**62 - 1)), min_size=1))
def test_quotients_are_exact(pairs: list[tuple[int, int]]) -> None:
    pairs += [(1, 2**62 - 1), (2**62 - 2, 2**62 - 1), (1, 2), (1, 3), (2**61, 2**62 - 2)]
    ordered = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    numerators, denominators = np.array(ordered, np.int64).T
    found = weighted_clips._quotients(numerators, denominators)
    # The largest whole number below the quotient.
    assert found.tolist() == [
        -(-(numerator << 64) // denominator) - 1 for numerator, denominator in ordered
    ]


def test_single_rows_come_as_often_as_their_weight() -> None:
    generator = np.random.default_rng(1)
    table: Table = ([0, 50], [50, 37], [0, 0])
    weights = generator.uniform(0, 3, 87)
    weights[generator.uniform(size=87) < 0.2] = 0
    order = weighted_order(table, Shuffle(clip_length=8), weights.tolist())
    num_rounds = 2000
    found = np.zeros(87)
    for number in range(num_rounds):
        found += np.bincount(round_rows(order, number), minlength=87)
    expected = np.array(naive_weights(weights.tolist())) / UNIT * num_rounds
    assert (found[weights == 0] == 0).all()
    assert (np.abs(found - expected) <= 4 * np.sqrt(num_rounds) / 2 + 0.01 * expected).all()
