"""Weights as integers: against fractions, and what they do not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.sampling.weights import MAX_ROWS, UNIT, RowWeights, scaled_weights
from tests.support.orders import naive_weights

MODEST = settings(max_examples=150, derandomize=True, deadline=None)

ANY_WEIGHT = st.one_of(
    st.sampled_from([0.0, 1.0, 0.1, 5e-324, 1.7e308]),
    st.floats(0, 10),
    st.floats(0, allow_infinity=False),
)


def scaled(weights: list[float], lengths: list[int]) -> RowWeights | None:
    return scaled_weights(np.array(weights, np.float64), np.array(lengths, np.int64))


def by_row(found: RowWeights) -> list[int]:
    return np.repeat(found.values, found.lengths).tolist()


@MODEST
@given(st.lists(st.tuples(ANY_WEIGHT, st.integers(1, 9)), min_size=1, max_size=12))
def test_they_are_those_of_the_definition(runs: list[tuple[float, int]]) -> None:
    weights = [weight for weight, _ in runs]
    if not any(weights):
        weights[0] = 2.5
    lengths = [length for _, length in runs]
    expected = naive_weights(np.repeat(weights, lengths).tolist())
    found = scaled(weights, lengths)
    if found is None:
        assert set(expected) == {UNIT}
        return
    assert by_row(found) == expected
    # As few runs as there can be, so that the hash is one of the weights alone.
    assert (np.diff(found.values) != 0).all()
    assert found.num_rows == sum(weight > 0 for weight in expected)


def test_equal_weights_are_none() -> None:
    assert scaled([3.7], [9]) is None
    assert scaled([3.7, 3.7, 3.7], [2, 3, 1]) is None
    # Different, but not in units of 2**-32.
    assert scaled([1.0, math.nextafter(1.0, 2.0)], [5, 5]) is None
    assert scaled([1.0, 1.0, 0.0], [2, 3, 1]) is not None


def test_a_mask_has_weights_of_exactly_one() -> None:
    found = scaled([1.0, 0.0, 1.0], [4, 2, 3])
    assert found is not None
    assert found.is_mask
    assert by_row(found) == [UNIT] * 4 + [0] * 2 + [UNIT] * 3
    other = scaled([1.0, 0.5, 1.0], [4, 2, 3])
    assert other is not None
    assert not other.is_mask


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # 3 / 2**33 of the mean weight is one and a half units: to the even one.
        ([3.0, 2.0**34 - 3], [2, 2 * UNIT - 2]),
        ([1.0, 2.0**34 - 1], [1, 2 * UNIT]),  # half a unit: to 0, but it is not 0
        ([5e-324, 1.0], [1, 2 * UNIT]),
    ],
)
def test_rounding(weights: list[float], expected: list[int]) -> None:
    found = scaled(weights, [1] * len(weights))
    assert found is not None
    assert by_row(found) == expected == naive_weights(weights)


def test_the_hash_is_one_of_the_weights_of_rows() -> None:
    # Written down once: it stands in checkpoints.
    found = scaled([1.0, 3.0], [2, 2])
    assert found is not None
    assert found.digest == "3e6c1edcb052d6b0"
    same = [scaled([0.5, 1.5], [2, 2]), scaled([1.0, 1.0, 3.0], [1, 1, 2])]
    assert {each.digest for each in same if each is not None} == {found.digest}
    others = [scaled([1.0, 3.0], [1, 3]), scaled([3.0, 1.0], [2, 2]), scaled([1.0, 2.0], [2, 2])]
    assert len({each.digest for each in others if each is not None} | {found.digest}) == 4


def test_sums_that_no_int64_holds_are_refused() -> None:
    assert scaled([1.0, 2.0], [1, MAX_ROWS - 1]) is not None
    with pytest.raises(InvalidRequestError, match=r"1073741824 rows; expected at most 1073741823"):
        scaled([1.0, 2.0], [1, MAX_ROWS])
