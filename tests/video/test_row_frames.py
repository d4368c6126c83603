"""Which frame belongs to which row, from times alone: a link where there is one way to make it,
else a problem that says what is odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.mp4 import SampleTable
from lerobot_grain._video.row_frames import RowFrames, link_rows


def table_at(times: npt.ArrayLike) -> SampleTable:
    """A file whose frames, all key frames, are presented at these seconds."""
    pts = np.rint(np.asarray(times, np.float64) * 90_000).astype(np.int64)
    numbers = np.arange(len(pts))
    return SampleTable(
        VideoFormat("h264", 96, 64, b""), 90_000, numbers, numbers, pts, numbers, numbers, True
    )


def at_rate(rate: float, count: int) -> SampleTable:
    return table_at(np.arange(count) / rate)


def link(
    table: SampleTable,
    lengths: Sequence[int],
    starts: Sequence[float],
    *,
    fps: float = 10.0,
    timestamps: dict[int, Any] | None = None,
    must_not_ask: bool = False,
) -> RowFrames:
    """Links rows; `timestamps` of episodes where they are not 0, 1, 2, ... / fps."""

    def read(episodes: npt.NDArray[np.int64]) -> list[Any]:
        assert not must_not_ask
        return [
            (timestamps or {}).get(episode, (np.arange(lengths[episode]) / fps).astype(np.float32))
            for episode in episodes.tolist()
        ]

    return link_rows(
        table,
        episodes=np.arange(len(lengths)),
        starts=np.array(starts, np.float64),
        lengths=np.array(lengths),
        fps=fps,
        read_timestamps=read,
    )


def frames_of(found: RowFrames, lengths: Sequence[int]) -> list[list[int]]:
    """Returns of each episode without a problem the samples of its rows: here those are the frames
    of the file.
    """
    return [
        [] if i in found.problems else found.table.presentation[first : first + length].tolist()
        for i, (first, length) in enumerate(zip(found.first_frames.tolist(), lengths, strict=True))
    ]


def consecutive(firsts: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    return [
        list(range(first, first + length)) for first, length in zip(firsts, lengths, strict=True)
    ]


# --- one frame for each row ----------------------------------------------------------------------


HUNDREDS = [100] * 16
COUNTED: dict[str, tuple[SampleTable, list[int], Any, float]] = {
    "29.97 under 30": (at_rate(30000 / 1001, 1600), HUNDREDS, np.arange(16) * 100 / 30, 30.0),
    "59.94 under 60": (at_rate(60000 / 1001, 1600), HUNDREDS, np.arange(16) * 100 / 60, 60.0),
    "23.976 under 24": (at_rate(24000 / 1001, 1600), HUNDREDS, np.arange(16) * 100 / 24, 24.0),
    "30 under 29.97": (at_rate(30, 1600), HUNDREDS, np.arange(16) * 100 / 29.97, 29.97),
    "15 under 30": (at_rate(15, 1600), HUNDREDS, np.arange(16) * 100 / 30, 30.0),
    "60 under 30": (at_rate(60, 1600), HUNDREDS, np.arange(16) * 100 / 30, 30.0),
    "15 under 30, starts of the file": (
        at_rate(15, 1600),
        HUNDREDS,
        np.arange(16) * 100 / 15,
        30.0,
    ),
    "durations rounded, each 7 ms too long": (
        at_rate(30, 1600),
        HUNDREDS,
        np.arange(16) * (100 / 30 + 0.007),
        30.0,
    ),
    "another order": (at_rate(30000 / 1001, 300), [100, 80, 120], [200 / 30, 0, 80 / 30], 30.0),
    "another order, starts of the file": (
        at_rate(15, 300),
        [100, 80, 120],
        [200 / 15, 0, 80 / 15],
        30.0,
    ),
    "times of a clock": (
        table_at(np.sort(np.random.default_rng(0).uniform(0, 60, 1600))),
        HUNDREDS,
        np.arange(16) * 100 / 30,
        30.0,
    ),
    "all right": (at_rate(30, 1600), HUNDREDS, np.arange(16) * 100 / 30, 30.0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_file_with_one_frame_for_each_row_is_counted(name: str) -> None:
    table, lengths, starts, fps = COUNTED[name]
    found = link(table, lengths, list(starts), fps=fps, must_not_ask=True)
    order = np.argsort(starts)
    firsts = np.zeros(len(lengths), np.int64)
    firsts[order] = np.cumsum(np.array(lengths)[order]) - np.array(lengths)[order]
    assert found.problems == {}
    assert frames_of(found, lengths) == consecutive(firsts.tolist(), lengths)


def test_times_that_are_right_and_contradict_the_count() -> None:
    """Every start is that of a frame, and the rate is that of the rows: so a frame is missing in
    episode 1, and one too many in 0.
    """
    found = link(at_rate(10, 20), [10, 10], [0.0, 1.1])
    assert found.problems == {
        1: "it has 10 rows, but only 9 frames from 1.100000 s until the file ends; which frame "
        "belongs to which row is not known"
    }
    assert frames_of(found, [10, 10])[0] == list(range(10))


@pytest.mark.parametrize("start", [1e6, 1.64, 1.34])
def test_one_start_that_is_wrong_does_not_put_the_others_into_another_order(start: float) -> None:
    """Episode 1 starts at 0.6 s, and its table says later than episode 2, which is right."""
    found = link(at_rate(10, 18), [6, 7, 5], [0.0, start, 1.3])
    assert found.problems[1].startswith(f"it should start at {start:.6f} s, but the nearest of")
    right = consecutive([0, 6, 13], [6, 7, 5])
    frames = frames_of(found, [6, 7, 5])
    assert all(frames[i] == ([] if i in found.problems else right[i]) for i in range(3))


# --- not one for each row ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", [30000 / 1001, 15.0, 25.0, 30.3], ids=["29.97", "15", "25", "30.3"]
)
@pytest.mark.parametrize("more", [1, -1, 40])
def test_starts_of_another_rate_are_refused(rate: float, more: int) -> None:
    """Also those that happen to fall upon a frame: 3,000 rows at 30 fps are 100 s, where frame
    2,997 of 29.97 fps is.
    """
    lengths = [100] * 40
    found = link(at_rate(rate, 4000 + more), lengths, [i * 100 / 30 for i in range(40)], fps=30.0)
    assert sorted(found.problems) == list(range(40))
    text = f"; the frames of the file come at {rate:.6g} a second, info.json says fps 30"
    assert all(problem.endswith(text) for problem in found.problems.values())
    if rate == 25.0:
        assert found.problems[1].startswith("it should start at 3.333333 s, but the nearest of the")


def test_one_start_that_is_wrong_is_nothing_to_the_others() -> None:
    found = link(at_rate(10, 31), [10, 10, 10], [0.0, 1.04, 2.0])
    assert sorted(found.problems) == [1]
    assert found.problems[1] == (
        "it should start at 1.040000 s, but the nearest of the 31 frames is at 1.000000 s and the "
        "last one at 3.000000 s"
    )
    assert frames_of(found, [10, 10, 10]) == consecutive([0, 0, 20], [10, 0, 10])


@pytest.mark.parametrize("off", [0.0009, -0.0009, 0.00009])
def test_starts_that_are_rounded_to_milliseconds(off: float) -> None:
    found = link(at_rate(10, 31), [10, 10, 10], [0.0, 1.0 + off, 2.0 - off])
    assert frames_of(found, [10, 10, 10]) == consecutive([0, 10, 20], [10, 10, 10])


# --- more frames than rows -----------------------------------------------------------------------


def f32(numbers: Any, fps: float = 10.0) -> npt.NDArray[np.float32]:
    return (np.asarray(numbers) / fps).astype(np.float32)


NAMED = {
    "none was dropped": (f32(range(8)), list(range(8))),
    "in the middle": (f32([0, 1, 2, 5, 6, 7, 8, 9]), [0, 1, 2, 5, 6, 7, 8, 9]),
    "the first ones": (f32(range(3, 11)), list(range(3, 11))),
    "every third": (f32([0, 1, 3, 4, 6, 7, 9, 10]), [0, 1, 3, 4, 6, 7, 9, 10]),
    "as written to milliseconds": (
        np.round([0, 1 / 10.0, 0.2, 0.5004, 0.5996, 0.7, 0.8, 0.9], 3),
        [0, 1, 2, 5, 6, 7, 8, 9],
    ),
    "of a clock": (
        f32(range(8)) + np.float32(0.013) * np.arange(8, dtype=np.float32),
        list(range(8)),
    ),
    "of a clock that began long ago": (np.float32(1234.567) + f32(range(8)), list(range(8))),
    "seconds since 1970": (1.7e9 + np.arange(8) / 10, list(range(8))),
    "seconds since 1970, float32": ((1.7e9 + np.arange(8) / 10).astype(np.float32), list(range(8))),
    "counted on from far away": (f32(range(1000, 1008)), list(range(8))),
}


@pytest.mark.parametrize("name", NAMED)
def test_timestamps_that_are_multiples_name_the_frames(name: str) -> None:
    timestamps, expected = NAMED[name]
    # Twelve frames, eight rows; before it an episode of which nothing was dropped, after it
    # another one.
    lengths = [6, 8, 5]
    found = link(at_rate(10, 23), lengths, [0.0, 0.6, 1.8], timestamps={1: timestamps})
    assert found.problems == {}
    assert frames_of(found, lengths) == [
        list(range(6)),
        [6 + number for number in expected],
        list(range(18, 23)),
    ]
    assert found.named.tolist() == ([1] if expected != list(range(8)) else [])


UNTOLD = {
    "twice the same": (f32([0, 1, 1, 2, 3, 4, 5, 6]), "that of row 2 is frame 1 after frame 1"),
    "backwards": (f32([0, 1, 2, 4, 3, 5, 6, 7]), "that of row 4 is frame 3 after frame 4"),
    "before the first": (f32(range(-1, 7)), "that of row 0 is frame -1"),
    "after the last": (
        f32([0, 1, 2, 3, 4, 5, 6, 12]),
        "the timestamp of its last row names frame 12",
    ),
    "counted through all episodes": (
        f32(range(6, 14)),
        "the timestamp of its last row names frame 13",
    ),
    "not a number": (f32([0, 1, np.nan, 5, 6, 7, 8, 9]), "that of row 2 is nan"),
    "infinite": (f32([0, 1, 2, 5, 6, 7, 8, np.inf]), "that of row 7 is inf"),
    "of a clock with a gap of as many frames": (
        f32([0, 1, 2, 7, 8, 9, 10, 11]) + np.float32(0.03),
        "have gaps of as many frames",
    ),
    "no column": (None, "no timestamps that would say which frame belongs to which row"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_timestamps_that_do_not_tell(name: str) -> None:
    timestamps, text = UNTOLD[name]
    lengths = [6, 8, 5]
    found = link(at_rate(10, 23), lengths, [0.0, 0.6, 1.8], timestamps={1: timestamps})
    assert sorted(found.problems) == [1]
    assert found.problems[1].startswith("it has 8 rows and 12 frames from 0.600000 s on, ")
    assert text in found.problems[1]
    assert frames_of(found, lengths) == [list(range(6)), [], list(range(18, 23))]


@pytest.mark.parametrize("name", ["29.97 under 30", "a variable rate"])
def test_timestamps_that_are_the_times_of_frames_name_these(name: str) -> None:
    """As for lerobot, which takes the frame at `from_timestamp + timestamp`."""
    times = np.arange(40) / (30000 / 1001)
    if name == "a variable rate":
        times = times + np.random.default_rng(0).uniform(0, 0.02, 40).cumsum()
    kept = [*range(10), *range(15, 35)]
    found = link(
        table_at(times),
        [30],
        [times[0]],
        fps=30.0,
        timestamps={0: (times[kept] - times[0]).astype(np.float32)},
    )
    assert found.problems == {}
    assert frames_of(found, [30]) == [kept]


def test_timestamps_that_cannot_be_read_concern_the_episodes_that_need_them() -> None:
    """The first of three episodes has a frame for each row."""

    def read(episodes: npt.NDArray[np.int64]) -> list[Any]:
        if 1 in episodes:
            raise DatasetFormatError("a value is missing")
        return [f32([0, 1, 3]) for _ in episodes.tolist()]

    found = link_rows(
        at_rate(10, 14),
        episodes=np.arange(3),
        starts=np.array([0.0, 0.4, 0.9]),
        lengths=np.array([4, 3, 3]),
        fps=10.0,
        read_timestamps=read,
    )
    assert sorted(found.problems) == [1]
    assert found.problems[1].endswith("cannot be read: a value is missing")
    assert frames_of(found, [4, 3, 3]) == [[0, 1, 2, 3], [], [9, 10, 12]]


def test_starts_that_were_computed_from_rows_although_rows_were_dropped() -> None:
    """Episode 0 has eight of its ten frames left: the next one should start at 1 s, not at
    0.8 s.
    """
    found = link(
        at_rate(10, 20), [8, 10], [0.0, 0.8], timestamps={0: f32([0, 1, 2, 5, 6, 7, 8, 9])}
    )
    assert sorted(found.problems) == [0, 1]
    assert all(
        "the timestamp of its last row names frame 9" in problem
        for problem in found.problems.values()
    )


def test_two_episodes_that_start_at_one_frame() -> None:
    found = link(at_rate(10, 20), [10, 10], [0.0, 0.0])
    assert sorted(found.problems) == [0, 1]


def test_long_timestamps_are_as_exact_as_float32() -> None:
    """An hour at 50 fps: neighbors of float32 are 0.00024 s apart there."""
    numbers = np.delete(np.arange(180_000), [100, 101, 90_000])
    found = link(
        at_rate(50, 180_000), [len(numbers)], [0.0], fps=50.0, timestamps={0: f32(numbers, 50.0)}
    )
    assert found.problems == {}
    assert found.table.presentation.tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("rate", "step"), [(60.0, 2), (90.0, 3)], ids=["60 under 30", "90 under 30"]
)
def test_frames_of_a_multiple_of_the_rate(rate: float, step: int) -> None:
    """As lerobot, which takes the frame at the time of the row."""
    lengths = [7, 9]
    found = link(at_rate(rate, 16 * step), lengths, [0.0, 7 / 30], fps=30.0)
    assert found.problems == {}
    assert frames_of(found, lengths) == [
        list(range(0, 7 * step, step)),
        list(range(7 * step, 16 * step, step)),
    ]
    # Without whole timestamps, nothing says that a row is not the next frame.
    clock = np.arange(9) / 30 + 0.013 * np.arange(9)
    assert sorted(
        link(
            at_rate(rate, 16 * step), lengths, [0.0, 7 / 30], fps=30.0, timestamps={1: clock}
        ).problems
    ) == [1]


def test_more_frames_at_a_rate_that_is_no_multiple() -> None:
    """A file of one episode at 29.97: counting and times agree for 500 frames, then no more."""
    short = link(at_rate(30000 / 1001, 401), [400], [0.0], fps=30.0)
    assert frames_of(short, [400]) == [list(range(400))]
    assert link(at_rate(30000 / 1001, 1601), [1600], [0.0], fps=30.0).problems == {
        0: "it has 1600 rows and 1601 frames from 0.000000 s on, which frame belongs to which row "
        "is not known; the frames of the file come at 29.97 a second, info.json says fps 30"
    }


def test_every_link_is_the_one_that_was_made() -> None:
    """Episodes with rows dropped at random, and frames at their end that are nobody's."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(2, 30, rng.integers(1, 6)).tolist()
        kept = [
            np.sort(rng.choice(count, rng.integers(1, count + 1), replace=False))
            for count in counts
        ]
        firsts = np.cumsum([0, *counts[:-1]])
        fps = float(rng.choice([10, 15, 29.97, 30, 50, 60]))
        lengths = [len(each) for each in kept]
        found = link(
            at_rate(fps, sum(counts)),
            lengths,
            (firsts / fps).tolist(),
            fps=fps,
            timestamps={i: f32(each, fps) for i, each in enumerate(kept)},
        )
        assert found.problems == {}
        assert frames_of(found, lengths) == [
            (first + each).tolist() for first, each in zip(firsts, kept, strict=True)
        ]
