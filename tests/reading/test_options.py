"""The parts of the memory budget: the figures of docs/architecture/reading.md.

Wrong options: test_dataset.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lerobot_grain as lg
from lerobot_grain._reading.options import MemoryBudget, default_budget_bytes

MIB = 1 << 20
CASES = {
    "by default, two cameras": (
        3 << 29,
        2,
        (
            192 * MIB,
            384 * MIB,
            1344 * MIB,
            192 * MIB,
            84 * MIB,
            336 * MIB,
            84 * MIB,
            11010048,
            672 * MIB,
            168 * MIB,
            336 * MIB,
        ),
    ),
    "by default, no video": (
        3 << 29,
        0,
        (
            768 * MIB,
            1536 * MIB,
            768 * MIB,
            192 * MIB,
            48 * MIB,
            192 * MIB,
            96 * MIB,
            6 * MIB,
            384 * MIB,
            96 * MIB,
            384 * MIB,
        ),
    ),
    "large": (
        1 << 34,
        1,
        (
            2048 * MIB,
            4096 * MIB,
            14336 * MIB,
            2048 * MIB,
            96 * MIB,
            2048 * MIB,
            1792 * MIB,
            112 * MIB,
            7168 * MIB,
            1792 * MIB,
            7168 * MIB,
        ),
    ),
    "tiny": (1000, 3, (125, 16 * MIB, 875, 125, 54, 218, 36, 6, 437, 109, 145)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_shares(name: str) -> None:
    total, num_cameras, shares = CASES[name]
    assert dataclasses.astuple(MemoryBudget.of(total, num_cameras=num_cameras)) == (total, *shares)


@pytest.mark.parametrize(
    ("cores", "memory", "expected"),
    [
        (1, None, 1536 * MIB),
        (4, 32 << 30, 1536 * MIB),
        (16, 64 << 30, 2304 * MIB),
        (64, 512 << 30, 5376 * MIB),
        (64, 8 << 30, 2048 * MIB),
        (2, 1 << 30, 256 * MIB),
        (1, 3, 1),
    ],
)
def test_the_default_grows_with_the_cores_up_to_a_quarter_of_the_memory(
    cores: int, memory: int | None, expected: int
) -> None:
    assert default_budget_bytes(cores, memory) == expected


def test_the_default_is_not_chosen_before_a_stream_is_begun() -> None:
    assert lg.ReadOptions().memory_budget_bytes is None


def test_slots_for_twice_the_frames_and_one_more() -> None:
    budget = MemoryBudget.of(8000, num_cameras=1)
    assert [budget.num_slots(size) for size in (7001, 7000, 3500, 3499)] == [1, 3, 5, 5]


@given(st.integers(1, 1 << 40))
def test_the_least_budget_that_has_so_many_bytes_for_frames(frames: int) -> None:
    least = MemoryBudget.total_for(frames)
    assert MemoryBudget.of(least, num_cameras=1).frames >= frames
    assert MemoryBudget.of(least - 2, num_cameras=1).frames < frames


def test_row_groups_are_kept_up_to_twice_their_share() -> None:
    budget = MemoryBudget.of(100 * MIB, num_cameras=0)
    assert (budget.rows, budget.large_rows) == (50 * MIB, 100 * MIB)
    assert budget.kept_rows([]) == budget.kept_rows([20 * MIB, 30 * MIB]) == 50 * MIB
    assert budget.kept_rows([60 * MIB, 40 * MIB]) == 100 * MIB
    assert budget.kept_rows([60 * MIB, 40 * MIB + 1]) is None


def test_a_block_has_as_many_examples_as_fit() -> None:
    budget = MemoryBudget.of(8000 * 16, num_cameras=1)
    assert budget.block == 7000
    sizes = (0, 7, 700, 7000, 7001)
    assert [budget.examples_of_block(size, at_most=256) for size in sizes] == [256, 256, 10, 1, 1]


def test_as_many_large_row_groups_at_once_as_fit_into_the_share_of_rows() -> None:
    budget = MemoryBudget.of(100 * MIB, num_cameras=0)
    for size, at_once in ((1 * MIB, 8), (20 * MIB, 2), (50 * MIB, 1), (60 * MIB, 1)):
        assert budget.large_groups_at_once([MIB, size], at_most=8) == at_once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_cache_bytes": -1}, r"frame_cache_bytes=-1\): expected an int >= 0"),
        ({"frame_cache_bytes": True}, r"frame_cache_bytes=True\): expected an int >= 0"),
        ({"frame_cache_bytes": 1e9}, r"frame_cache_bytes=1000000000.0\): expected an int >= 0"),
        ({"frame_cache_directory": ""}, "frame_cache_directory=''\\): expected the path of a dir"),
        ({"frame_cache_directory": b"x"}, "frame_cache_directory=b'x'\\): expected the path"),
    ],
)
def test_wrong_options_of_the_frame_cache(options: dict[str, object], message: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=message):
        lg.ReadOptions(**options)
