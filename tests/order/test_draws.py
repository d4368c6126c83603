"""Draws of frames: against the definition written a second time, golden ones, and the
distributions that they are to have.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain import GeometricDraw, InvalidRequestError, LastFrame, UniformDraw
from lerobot_grain._order.draws import Draw, frame_draw, geometric_thresholds, words_of
from tests.support.draws import draw_frame, word


def drawn(draw: Draw, counts: Any, *, name: str, seed: int, longest: int = 10_000) -> Any:
    """Returns the draws at positions 0, 1, ..., as numbers among `counts` frames."""
    counts = np.asarray(counts)
    compiled = frame_draw(
        draw, subject="windows['goal']", fps=10.0, tolerance_seconds=1e-4, longest=longest
    )
    return compiled.drawn(words_of(name, np.arange(len(counts)), seed=seed), counts)


@pytest.mark.parametrize(
    ("name", "seed", "positions", "expected"),
    [
        (
            "goal",
            0,
            [0, 1, 2, 2**40],
            [
                16758878388255958064,
                5703540909025801793,
                8101738907831068676,
                4733701214434837013,
            ],
        ),
        ("goal", 2**64 - 1, [7], [10516101339919738961]),
        ("Ziel \N{GREEK SMALL LETTER ALPHA}", 3, [5], [13185145062942195933]),
    ],
)
def test_golden_words(name: str, seed: int, positions: list[int], expected: list[int]) -> None:
    assert words_of(name, np.array(positions), seed=seed).tolist() == expected


def test_the_words_are_those_of_the_definition() -> None:
    for name, seed in (("goal", 0), ("near.goal", 2**64 - 1), ("\u00e4", 5)):
        found = words_of(name, np.arange(40), seed=seed).tolist()
        assert found == [word(name, seed, position) for position in range(40)]


GOLDEN_DRAWS: list[tuple[Draw, list[int]]] = [
    (UniformDraw(0.5, 2.0), [2, 12, 7, 7, 15, 10, 5, 11]),
    (GeometricDraw(1.0), [1, 14, 5, 5, 15, 9, 4, 11]),
    (LastFrame(), [15, 15, 15, 15, 15, 15, 15, 15]),
]


@pytest.mark.parametrize(("draw", "expected"), GOLDEN_DRAWS, ids=str)
def test_golden_draws(draw: Draw, expected: list[int]) -> None:
    assert drawn(draw, [16] * 8, name="goal", seed=1).tolist() == expected


DRAWS = st.one_of(
    st.builds(
        lambda first, more: UniformDraw(first / 10, (first + more) / 10),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    st.builds(GeometricDraw, st.floats(0.1, 50)),
    st.just(LastFrame()),
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(
    draw=DRAWS,
    drawn_word=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**64 - 1])),
    length=st.integers(1, 80),
    data=st.data(),
)
def test_a_draw_is_that_of_the_definition(
    draw: Draw, drawn_word: int, length: int, data: st.DataObject
) -> None:
    frame = data.draw(st.integers(0, length - 1))
    compiled = frame_draw(draw, subject="", fps=10.0, tolerance_seconds=1e-4, longest=length)
    last = length - 1 if compiled.last is None else min(length - 1, frame + compiled.last)
    count = last + 1 - frame - compiled.first
    expected, is_pad = draw_frame(draw, drawn_word, frame, length, fps=10.0)
    assert is_pad == (count <= 0)
    if count > 0:
        found = compiled.drawn(np.array([drawn_word], np.uint64), np.array([count]))
        assert frame + compiled.first + found.item() == expected


# --- distributions -------------------------------------------------------------------------------

COUNT = 100_000


def chi_squared(found: Any, probabilities: Any) -> float:
    """Returns how far the chi-squared statistic is from its mean, in its standard deviations."""
    expected = COUNT * np.asarray(probabilities)
    assert expected.min() > 5
    counts = np.bincount(found, minlength=len(expected))
    assert len(counts) == len(expected)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
@pytest.mark.parametrize("name", ["goal", "other"])
def test_uniform_draws_are_uniform(name: str, seed: int) -> None:
    found = drawn(UniformDraw(0.5, 2.0), np.full(COUNT, 16), name=name, seed=seed)
    assert abs(chi_squared(found, np.full(16, 1 / 16))) < 4


@pytest.mark.parametrize("seed", [0, 1, 2**63])
@pytest.mark.parametrize("mean_frames", [1.5, 4.0, 20.0])
def test_geometric_draws_are_geometric(seed: int, mean_frames: float) -> None:
    size = 9
    found = drawn(GeometricDraw(mean_frames / 10), np.full(COUNT, size), name="goal", seed=seed)
    keep = 1 - 1 / mean_frames
    probabilities = [keep**n / mean_frames for n in range(size - 1)]
    # The rest is the last frame.
    assert abs(chi_squared(found, [*probabilities, keep ** (size - 1)])) < 4


def test_windows_of_other_names_and_seeds_are_drawn_independently() -> None:
    one, other, third = (
        drawn(UniformDraw(0, 0.3), np.full(COUNT, 4), name=name, seed=seed)
        for name, seed in (("goal", 0), ("goal2", 0), ("goal", 1))
    )
    for found in (one * 4 + other, one * 4 + third, one[:-1] * 4 + one[1:]):
        counts = np.bincount(found, minlength=16)
        expected = len(found) / 16
        assert ((counts - expected) ** 2 / expected).sum() < 15 + 4 * math.sqrt(30)


def test_the_mean_of_a_geometric_draw() -> None:
    found = drawn(GeometricDraw(2.0), np.full(COUNT, 9_000), name="goal", seed=0)
    assert abs((found + 1).mean() - 20) < 4 * math.sqrt(20 * 19 / COUNT)


# --- tables --------------------------------------------------------------------------------------


def test_thresholds_are_right_to_the_last_bit() -> None:
    mean = Fraction(100, 3)
    found = geometric_thresholds(mean, 2_000).tolist()
    for n, threshold in enumerate(found, 1):
        exact = 2**64 * (1 - (1 - 1 / mean) ** n)
        assert threshold == min(2**64 - 1, math.floor(exact))


def test_a_mean_of_one_frame_is_the_next_one() -> None:
    # 1 / 30 s is a little less than a frame in floats, and counts as one.
    compiled = frame_draw(
        GeometricDraw(1 / 30), subject="", fps=30.0, tolerance_seconds=1e-4, longest=50
    )
    words = np.array([0, 2**63, 2**64 - 2], np.uint64)
    assert compiled.drawn(words, np.array([49, 49, 49])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mean_seconds", [1e6, 1e300, 5e-324 + 1e5])
def test_large_means_are_the_last_frame_nearly_always(mean_seconds: float) -> None:
    found = drawn(GeometricDraw(mean_seconds), [5] * 50, name="goal", seed=0, longest=100)
    assert found.tolist() == [4] * 50


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: UniformDraw(-0.1, 1), "UniformDraw(from_seconds=-0.1): expected a finite number"),
        (lambda: UniformDraw(0, math.inf), "UniformDraw(to_seconds=inf): expected a finite"),
        (lambda: UniformDraw(0, math.nan), "UniformDraw(to_seconds=nan): expected a finite"),
        (lambda: UniformDraw("1", 2), "UniformDraw(from_seconds='1'): expected a finite number"),
        (lambda: UniformDraw(True, 2), "UniformDraw(from_seconds=True): expected a finite number"),
        (lambda: UniformDraw(2, 1), "UniformDraw(2, 1): from_seconds is after to_seconds"),
        (lambda: GeometricDraw(0), "GeometricDraw(mean_seconds=0): expected a finite number"),
        (lambda: GeometricDraw(-1), "GeometricDraw(mean_seconds=-1): expected a finite number"),
        (lambda: GeometricDraw(math.nan), "GeometricDraw(mean_seconds=nan): expected a finite"),
        (
            lambda: drawn(UniformDraw(0.55, 1), [1], name="goal", seed=0),
            "windows['goal']: UniformDraw: 0.55 s is 5.5 frames at 10 fps; expected a whole number",
        ),
        (
            lambda: drawn(GeometricDraw(0.05), [1], name="goal", seed=0),
            "windows['goal']: GeometricDraw(mean_seconds=0.05) is 0.5 frames at 10 fps; expected "
            "at least one frame, 0.1 s",
        ),
    ],
)
def test_draws_that_are_none(make: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert str(caught.value).startswith(text)
