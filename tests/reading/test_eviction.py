"""Which frames stay, against a slow definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lerobot_grain._reading.frames.eviction import frames_that_stay

# Few different uses, so that many are the same; sizes of three cameras.
FRAMES = st.lists(
    st.tuples(
        st.integers(0, 4) | st.just(np.iinfo(np.int64).max), st.sampled_from([1, 300, 921_600])
    ),
    max_size=20,
)


def naive(frames: list[tuple[int, int]], room: int) -> list[bool]:
    """One frame after the other, the next one that is needed first."""
    stays = [False] * len(frames)
    for _, place in sorted((next_use, place) for place, (next_use, _) in enumerate(frames)):
        room -= frames[place][1]
        if room < 0:
            break
        stays[place] = True
    return stays


def chosen(frames: list[tuple[int, int]], room: int) -> list[bool]:
    next_use, size = (
        (np.array(column, np.int64) for column in zip(*frames, strict=True))
        if frames
        else (np.zeros(0, np.int64),) * 2
    )
    found: list[bool] = frames_that_stay(next_use, size, room).tolist()
    return found


@given(FRAMES, st.integers(-5, 3000) | st.integers(0, 20_000_000))
def test_those_needed_first_stay(frames: list[tuple[int, int]], room: int) -> None:
    found = chosen(frames, room)
    assert found == naive(frames, room)
    assert sum(size for (_, size), stays in zip(frames, found, strict=True) if stays) <= max(
        0, room
    )
    # None that goes is needed before one that stays.
    uses = [
        [next_use for (next_use, _), each in zip(frames, found, strict=True) if each == stays]
        for stays in (True, False)
    ]
    assert max(uses[0], default=-1) <= min(uses[1], default=np.iinfo(np.int64).max)


def test_examples() -> None:
    # A small one is not let past a large one that is needed earlier.
    assert chosen([(3, 1), (1, 5), (2, 6)], 10) == [False, True, False]
    # Among equals, the first.
    assert chosen([(1, 5), (1, 5), (0, 5)], 10) == [True, False, True]
    assert chosen([(1, 5)], 5) == [True]
    assert chosen([(1, 5)], 4) == chosen([(1, 5)], -1) == [False]
    assert chosen([], 4) == []
