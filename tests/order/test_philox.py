"""Words of many streams at once are those of NumPy's generator, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._order import philox
from lerobot_grain._order.philox import (
    Stream,
    below,
    first_of_permutation,
    permutation,
    stable_order,
    words,
    words_at,
)

MODEST = settings(max_examples=100, derandomize=True, deadline=None)
WORD = st.integers(0, 2**64 - 1)
NUMBER = st.one_of(st.integers(0, 9), st.integers(0, 2**62))


@MODEST
@given(st.lists(st.tuples(st.integers(0, 20), NUMBER, NUMBER), max_size=9), WORD, WORD)
def test_single_words_are_those_of_whole_streams(
    wanted: list[tuple[int, int, int]], seed: int, epoch: int
) -> None:
    places, blocks, parts = np.array(wanted, np.int64).reshape(-1, 3).T
    found = words_at(places, Stream.DRAW, seed=seed, epoch=epoch, blocks=blocks, parts=parts)
    assert found.tolist() == [
        words(place + 1, Stream.DRAW, seed=seed, epoch=epoch, block=block, part=part)[-1]
        for place, block, part in wanted
    ]


def test_many_single_words_are_made_in_pieces() -> None:
    count = 2 * philox._WORDS_AT_A_TIME + 5
    parts = np.arange(count) // 1000
    found = words_at(np.arange(count), Stream.DRAW, seed=3, blocks=1, parts=parts)
    whole = [words(count, Stream.DRAW, seed=3, block=1, part=part) for part in range(parts[-1] + 1)]
    assert found.tolist() == np.stack(whole)[parts, np.arange(count)].tolist()


@MODEST
@given(st.lists(st.tuples(WORD, st.integers(1, 2**62)), max_size=9))
def test_numbers_below_a_limit_are_exact(drawn: list[tuple[int, int]]) -> None:
    found = below(
        np.array([word for word, _ in drawn], np.uint64),
        np.array([limit for _, limit in drawn], np.int64),
    )
    assert found.tolist() == [word * limit >> 64 for word, limit in drawn]


@pytest.mark.parametrize("count", [1, 2, 17, 99, 100, 200])
def test_the_first_elements_of_a_permutation(count: int) -> None:
    key = {"seed": 5, "epoch": 2, "block": 3, "part": 1}
    whole = permutation(100, Stream.DRAW, **key)
    found = first_of_permutation(100, count, Stream.DRAW, **key)
    assert found.tolist() == whole[:count].tolist()


def test_equal_words_keep_their_order() -> None:
    found = np.array([5, 3] * 500, np.uint64)
    assert stable_order(found).tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


@pytest.mark.parametrize("distinct_bits", [64, 20, 12, 8])
@pytest.mark.parametrize("count", [512, 513, 1023, 1024, 5000])
def test_words_that_differ_in_their_lowest_bits_only(count: int, distinct_bits: int) -> None:
    generator = np.random.default_rng(count)
    found = generator.integers(0, 2**64, count, np.uint64, endpoint=False)
    # All words are in few groups whose uppermost bits are equal.
    found &= np.uint64(2**64 - 1 >> 64 - distinct_bits)
    found[::7] |= np.uint64(2**64 - 2**distinct_bits)
    expected = sorted(range(count), key=lambda place: (found.item(place), place))
    assert stable_order(found).tolist() == expected
