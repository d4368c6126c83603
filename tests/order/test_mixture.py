"""The order of mixtures: golden numbers that can never change, a slow second implementation of the
definition, shares, and how the examples of a component are spread.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.mixture import TURN, MixtureOrder, shares_of

MIXTURE = 2**32

# --- the definition, a second time ---------------------------------------------------------------


def naive_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Quotas below 1 become 1 and leave, one round after the other; then the largest remainders."""
    names = sorted(weights)
    exact = {name: Fraction(weights[name]) for name in names}
    taken: dict[str, int] = {}
    while True:
        rest = [name for name in names if name not in taken]
        slots = 65536 - sum(taken.values())
        quota = {name: slots * exact[name] / sum(exact[other] for other in rest) for name in rest}
        below = [name for name in rest if quota[name] < 1]
        if not below:
            break
        for name in below:
            taken[name] = 1
    for name in rest:
        taken[name] = math.floor(quota[name])
    while sum(taken.values()) < 65536:
        best = max(
            rest, key=lambda name: (quota[name] - math.floor(quota[name]), -names.index(name))
        )
        taken[best] += 1
        rest = [name for name in rest if name != best]
    return {name: taken[name] for name in names}


def naive_turn(shares: list[int], *, seed: int, turn: int, begin: int) -> list[int]:
    """The component of each slot of a turn."""
    slots = [number for number, share in enumerate(shares) for _ in range(share)]
    counter = begin * 2**64 + MIXTURE * 2**192
    words = np.random.Philox(key=seed + turn * 2**64, counter=counter).random_raw(65536).tolist()
    return [slots[place] for _, place in sorted(zip(words, range(65536), strict=True))]


def naive_places(
    shares: list[int], starts: list[int], *, seed: int, begin: int, stop: int
) -> list[tuple[int, int]]:
    """(component, own position) of the positions from `begin` to `stop`."""
    own = list(starts)
    found = []
    arranged: list[int] = []
    for position in range(begin, stop):
        turn, slot = divmod(position - begin, 65536)
        if slot == 0:
            arranged = naive_turn(shares, seed=seed, turn=turn, begin=begin)
        component = arranged[slot]
        found.append((component, own[component]))
        own[component] += 1
    return found


@settings(max_examples=30)
@given(
    weights=st.lists(
        st.one_of(
            st.floats(1e-12, 1e12),
            st.integers(1, 10**6),
            st.fractions(min_value=Fraction(1, 10**9), max_value=10**9),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_shares_are_those_of_the_definition(weights: list[float]) -> None:
    named = {f"{number * 7919 % 101:03}": weight for number, weight in enumerate(weights)}
    shares = shares_of(named)
    assert shares == naive_shares(named)
    assert list(shares) == sorted(named)
    assert sum(shares.values()) == TURN
    # Within a slot of the weight, or 1, or what those that have 1 leave.
    total = sum(map(Fraction, named.values()))
    for name, share in shares.items():
        quota = TURN * Fraction(named[name]) / total
        assert share >= 1
        assert abs(share - quota) <= len(named)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"b": 1, "a": 1}, {"a": 32768, "b": 32768}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 21846, "b": 21845, "c": 21845}),
        ({"a": 1e-30, "b": 3, "c": 1e-30}, {"a": 1, "b": 65534, "c": 1}),
        # The share of the small ones puts another one below 1.
        ({"a": 1, "b": 1e-9, "c": 1 / 65535.5}, {"a": 65534, "b": 1, "c": 1}),
        ({"a": np.float32(0.25), "b": np.int64(1)}, {"a": 13107, "b": 52429}),
    ],
)
def test_shares(weights: dict[str, float], expected: dict[str, int]) -> None:
    assert shares_of(weights) == expected


def test_the_most_components() -> None:
    assert set(shares_of(dict.fromkeys(map(str, range(4096)), 2.5)).values()) == {16}
    with pytest.raises(InvalidRequestError, match="a mixture of 4097 components: expected 1 to"):
        shares_of(dict.fromkeys(map(str, range(4097)), 1))
    with pytest.raises(InvalidRequestError, match="a mixture of 0 components"):
        shares_of({})


@pytest.mark.parametrize(
    "weight", [0, -1, math.nan, math.inf, True, "1", None, np.float64("nan"), [1]]
)
def test_weights_that_are_none(weight: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"the weight of 'b' is .*; expected a finite"):
        shares_of({"a": 1, "b": weight})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("seed", "begin", "weights"),
    [(0, 0, [1, 2, 3]), (2**64 - 1, 12_345, [5, 1]), (7, 2**40, [1]), (3, 1, [1e-9, 1, 1])],
)
def test_it_is_the_order_of_the_definition(seed: int, begin: int, weights: list[float]) -> None:
    shares = list(shares_of(dict(zip("abc", weights, strict=False))).values())
    starts = [10**6 * number + 5 for number in range(len(shares))]
    stop = begin + 2 * TURN + 100
    expected = naive_places(shares, starts, seed=seed, begin=begin, stop=stop)
    order = MixtureOrder(seed=seed, begin=begin, shares=shares, starts=starts)
    components, own = order.places(np.arange(begin, stop))
    assert list(zip(components.tolist(), own.tolist(), strict=True)) == expected
    # In any pieces, back and forth, and where each component stands.
    random = np.random.default_rng(seed % 2**32)
    for _ in range(10):
        positions = random.integers(begin, stop, 50)
        found = zip(*(each.tolist() for each in order.places(positions)), strict=True)
        assert list(found) == [expected[position - begin] for position in positions.tolist()]
    for position in (begin, begin + 1, begin + TURN - 1, begin + TURN, stop - 1):
        before = [component for component, _ in expected[: position - begin]]
        counts = np.bincount(before, minlength=len(shares))
        assert order.own_positions(position).tolist() == (np.array(starts) + counts).tolist()


GOLDEN = {
    "two": (
        (0, 0, {"arm": 3, "hand": 1}),
        "b3792353eaebc00c",
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0],
    ),
    "many, from a position on": (
        (5, 1000, {f"{n:02}": n + 1 for n in range(64)}),
        "f1dd6bc644bced83",
        [
            9,
            44,
            55,
            40,
            49,
            60,
            50,
            62,
            41,
            19,
            53,
            58,
            60,
            44,
            27,
            32,
            61,
            61,
            53,
            28,
            32,
            35,
            52,
            38,
        ],
    ),
}


def order_of(seed: int, begin: int, weights: Mapping[str, float]) -> MixtureOrder:
    shares = list(shares_of(weights).values())
    return MixtureOrder(seed=seed, begin=begin, shares=shares, starts=[0] * len(shares))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_order(name: str) -> None:
    arguments, digest, first = GOLDEN[name]
    begin = arguments[1]
    components, own = order_of(*arguments).places(np.arange(begin, begin + TURN + 5000))
    assert components[:24].tolist() == first
    numbers = np.stack([components, own]).astype("<i8").tobytes()
    assert hashlib.sha256(numbers).hexdigest()[:16] == digest


# --- what a mixture promises ---------------------------------------------------------------------


def test_a_turn_has_exactly_the_shares() -> None:
    weights = {"a": 0.7, "b": 0.2, "c": 0.1}
    shares = list(shares_of(weights).values())
    components, _ = order_of(0, 0, weights).places(np.arange(3 * TURN))
    for turn in range(3):
        counts = np.bincount(components[turn * TURN : (turn + 1) * TURN])
        assert counts.tolist() == shares


def test_gaps_between_examples_of_a_component_are_those_of_a_random_draw() -> None:
    """Geometric, by a chi-squared test at a fixed seed, for rare and for frequent components."""
    weights = {"rare": 1, "some": 9, "most": 90}
    components, _ = order_of(11, 0, weights).places(np.arange(8 * TURN))
    for number, name in enumerate(sorted(weights)):
        probability = shares_of(weights)[name] / TURN
        gaps = np.diff(np.flatnonzero(components == number))
        # Ten classes of about equal probability.
        edges = np.unique(
            np.ceil(np.log1p(-np.arange(1, 10) / 10) / np.log1p(-probability)).astype(int)
        )
        survival = np.concatenate([[1], (1 - probability) ** edges, [0]])
        expected = -np.diff(survival) * len(gaps)
        observed = np.bincount(np.searchsorted(edges, gaps, side="left"), minlength=len(expected))
        statistic = float(((observed - expected) ** 2 / expected).sum())
        degrees = len(expected) - 1
        # Above this, one in ten thousand of random draws.
        assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 8, (name, statistic, degrees)
