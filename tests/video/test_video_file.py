"""The plan: which frame of a file belongs to which row, files with too few frames, and which GOPs
are decoded together.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.episodes import EpisodeTable, episode_table
from lerobot_grain._format.info import Feature
from lerobot_grain._reading.fetch_groups import episodes_fetched_together
from lerobot_grain._reading.frames.decoding import GopFrames, decode_groups
from lerobot_grain._video.mp4 import SampleTable
from lerobot_grain._video.small_mp4 import unit_of_frames
from lerobot_grain._video.video_file import VideoFile
from tests.support.datasets import make_info
from tests.support.helpers import encoded, read_table

INFO = make_info(Feature("top", "video", (64, 96, 3)))
WHERE = "org/name@1a2b, videos/top/0-0"


def episodes_of(
    lengths: list[int], starts: list[float], files: list[int] | None = None
) -> EpisodeTable:
    nothing = [0] * len(lengths)
    columns = {
        "episode_index": list(range(len(lengths))),
        "length": lengths,
        "data/chunk_index": nothing,
        "data/file_index": nothing,
        "videos/top/chunk_index": nothing,
        "videos/top/file_index": files or nothing,
        "videos/top/from_timestamp": starts,
    }
    return episode_table(
        {name: np.array(values) for name, values in columns.items()}, info=INFO, where="table"
    )


def table_of(codec: str = "h264", **options: Any) -> SampleTable:
    return read_table(encoded(codec, **{"b_frames": 2, **options}))


def video_file(
    lengths: list[int],
    starts: list[float],
    *,
    table: SampleTable | None = None,
    fps: float = 10.0,
    files: list[int] | None = None,
) -> VideoFile:
    table = table_of() if table is None else table
    return VideoFile.linked(
        table,
        path="videos/top/0-0",
        camera="top",
        number=0,
        episodes=episodes_of(lengths, starts, files),
        fps=fps,
        read_timestamps=lambda chosen: [np.arange(lengths[episode]) / fps for episode in chosen],
        where=WHERE,
    )


def problem(file: VideoFile, episode: int) -> str:
    with pytest.raises(DatasetFormatError) as caught:
        file.check(episode)
    prefix = f"{WHERE}: episode {episode}, camera top: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


# --- rows and frames -----------------------------------------------------------------------------


def test_an_episode_starts_at_the_frame_nearest_to_its_time() -> None:
    file = video_file([9, 8, 13], [0.0, 0.9, 1.7])
    assert [file.first_frame(episode) for episode in range(3)] == [0, 9, 17]
    # As rounded to microseconds, off by less than half a frame, and in the order of another
    # recorder.
    assert video_file([9, 8, 13], [0.0, 0.899999, 1.700001]).first_frame(2) == 17
    assert [
        video_file([9, 8, 13], [0.04, 0.86, 1.74]).first_frame(episode) for episode in range(3)
    ] == [0, 9, 17]
    assert [
        video_file([13, 9, 8], [1.7, 0.0, 0.9]).first_frame(episode) for episode in range(3)
    ] == [17, 0, 9]


def test_only_the_episodes_of_the_file_count() -> None:
    file = video_file([9, 30, 8, 13], [0.0, 0.0, 0.9, 1.7], files=[0, 1, 0, 0])
    assert [file.first_frame(episode) for episode in (0, 2, 3)] == [0, 9, 17]


def test_more_frames_than_rows_are_no_problem() -> None:
    file = video_file([7, 8, 10], [0.0, 0.9, 1.7])
    assert [file.first_frame(episode) for episode in range(3)] == [0, 9, 17]


def test_an_episode_that_is_longer_than_the_rest_of_the_file() -> None:
    file = video_file([9, 8, 14], [0.0, 0.9, 1.7])
    assert [file.first_frame(episode) for episode in range(2)] == [0, 9]
    assert problem(file, 2) == (
        "it has 14 rows, but only 13 frames from 1.700000 s until the file ends; which frame "
        "belongs to which row is not known"
    )


def test_an_episode_that_runs_into_the_next_one() -> None:
    file = video_file([10, 8, 13], [0.0, 0.9, 1.7])
    assert problem(file, 0) == (
        "it has 10 rows, but only 9 frames from 0.000000 s until the next episode starts; which "
        "frame belongs to which row is not known"
    )
    assert [file.first_frame(episode) for episode in (1, 2)] == [9, 17]


def test_two_episodes_at_one_place() -> None:
    file = video_file([9, 9, 12], [0.0, 0.0, 0.9])
    assert problem(file, 0).startswith(
        "it has 9 rows, but only 0 frames from 0.000000 s until the next episode starts"
    )
    assert (file.first_frame(1), file.first_frame(2)) == (0, 9)


def test_an_episode_that_starts_behind_the_end_of_the_file() -> None:
    file = video_file([9, 8, 1], [0.0, 0.9, 3.5])
    assert (
        problem(file, 2)
        == "it should start at 3.500000 s, but the nearest of the 30 frames is at 2.900000 s and "
        "the last one at 2.900000 s"
    )
    assert [file.first_frame(episode) for episode in (0, 1)] == [0, 9]


def test_an_episode_that_starts_where_there_is_no_frame() -> None:
    # Half-way between two frames, seen from a dataset of twice the rate; and in a file of a fourth
    # of it.
    assert problem(video_file([5, 5], [0.0, 0.75], fps=20.0), 1) == (
        "it should start at 0.750000 s, but the nearest of the 30 frames is at 0.700000 s and the "
        "last one at 2.900000 s; the frames of the file come at 10 a second, info.json says fps "
        "20"
    )
    table = dataclasses.replace(table_of(), pts=table_of().pts * 4)
    assert problem(video_file([5, 5], [0.0, 0.5], table=table), 1) == (
        "it should start at 0.500000 s, but the nearest of the 30 frames is at 0.400000 s and the "
        "last one at 11.600000 s; the frames of the file come at 2.5 a second, info.json says fps "
        "10"
    )


def test_timestamps_are_counted_without_drift_in_a_long_file() -> None:
    # 29.97 fps for an hour: from_timestamp in seconds, frames in ticks.
    count = 108_000
    pts = np.arange(count, dtype=np.int64) * 1001
    one = np.ones(count, np.int64)
    table = dataclasses.replace(
        table_of(),
        timescale=30_000,
        offsets=np.arange(count),
        sizes=one,
        pts=pts,
        presentation=np.arange(count),
        key_samples=np.arange(0, count, 2),
    )
    lengths = [999, 1000, 1001] * 36
    firsts = np.cumsum(lengths) - lengths
    file = video_file(lengths, (firsts * 1001 / 30_000).round(6).tolist(), table=table, fps=29.97)
    assert [file.first_frame(episode) for episode in range(len(lengths))] == firsts.tolist()


# --- frames and GOPs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "h264"},
        {"codec": "av1", "gop": 2},
        {"codec": "hevc", "b_frames": 3, "open_gop": True},
        {"codec": "hevc", "b_frames": 3},
    ],
    ids=["h264", "av1", "hevc open GOPs", "hevc"],
)
def test_every_frame_lies_in_the_gop_that_it_is_decoded_from(options: dict[str, Any]) -> None:
    table = table_of(**options)
    file = video_file([30], [0.0], table=table)
    gops = table.gop_of_frame(np.arange(30)).tolist()
    assert file.gops_of(np.arange(30)).tolist() == gops
    assert [
        frame for gop in range(len(table.key_samples)) for frame in file.frames_of(gop)
    ] == list(range(30))
    for gop in range(len(table.key_samples)):
        frames = file.frames_of(gop)
        assert isinstance(frames, range)
        assert {gops[frame] for frame in frames} == {gop}
        assert file.byte_range(gop) == unit_of_frames(table, gop, np.array(frames)).byte_range
        unit = file.unit(gop, list(frames)[:2])
        assert (
            unit.samples.tolist()
            == unit_of_frames(table, gop, np.array(frames[:2])).samples.tolist()
        )
        assert file.num_pictures(gop, list(frames)[:2]) == len(unit.samples)
        # The bytes read for a GOP cover those that are decoded of it, whichever frames are wanted.
        assert file.byte_range(gop).start <= unit.byte_range.start
        assert unit.byte_range.stop <= file.byte_range(gop).stop


@pytest.mark.parametrize("num_frames", [30, 33], ids=["30 frames", "a last GOP of one frame"])
@pytest.mark.parametrize(
    "options",
    [
        {"codec": "av1", "gop": 2},
        {"codec": "h264", "b_frames": 2},
        {"codec": "hevc", "b_frames": 3, "open_gop": True},
    ],
    ids=["av1", "h264", "hevc open GOPs"],
)
def test_the_bytes_of_gops_are_those_of_each(options: dict[str, Any], num_frames: int) -> None:
    """Also where a GOP, for the leading pictures of the next one, needs bytes after all of
    that.
    """
    file = video_file([num_frames], [0.0], table=table_of(num_frames=num_frames, **options))
    num_gops = len(file.gop_starts) - 1
    for begin in range(num_gops):
        for end in range(begin + 1, num_gops + 1):
            ranges = [file.byte_range(gop) for gop in range(begin, end)]
            assert file.byte_range_of(range(begin, end)) == (
                min(r.start for r in ranges),
                max(r.stop for r in ranges),
            )


def test_the_memory_that_a_file_takes() -> None:
    file = video_file([30], [0.0])
    assert 30 * 4 * 8 < file.nbytes < 30 * 4 * 8 + 1000


# --- episodes that are fetched together ----------------------------------------------------------


# 30 frames of GOPs of 2, of about 200 bytes each.
TOGETHER: dict[str, tuple[list[int], list[float], list[int], list[list[int]]]] = {
    "all": ([9, 8, 13], [0.0, 0.9, 1.7], [], [[0, 1, 2]]),
    "in the order of the file": ([13, 9, 8], [1.7, 0.0, 0.9], [], [[1, 2, 0]]),
    "one is not expected": ([9, 8, 13], [0.0, 0.9, 1.7], [1], [[0], [1], [2]]),
    "the last is not expected": ([9, 8, 13], [0.0, 0.9, 1.7], [2], [[0, 1], [2]]),
    "a frame between them": ([8, 8, 13], [0.0, 0.9, 1.7], [], [[0, 1, 2]]),
    "a GOP between them": ([6, 8, 13], [0.0, 0.8, 1.7], [], [[0], [1, 2]]),
    "one runs into the next": ([10, 8, 13], [0.0, 0.9, 1.7], [], [[0], [1, 2]]),
    "one is longer than the file": ([9, 8, 14], [0.0, 0.9, 1.7], [], [[0, 1], [2]]),
    "two at one place": ([9, 9, 11], [0.0, 0.0, 0.9], [], [[0], [1, 2]]),
    "one past the end": ([9, 8, 1], [0.0, 0.9, 3.5], [], [[0, 1], [2]]),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_episodes_that_are_fetched_together(name: str) -> None:
    lengths, starts, unexpected, expected = TOGETHER[name]
    file = video_file(lengths, starts, table=table_of("av1", gop=2))
    needed_every_epoch = ~np.isin(np.arange(len(lengths)), unexpected)
    assert episodes_fetched_together(file, needed_every_epoch, piece_bytes=1 << 30) == {
        episode: members for members in expected for episode in members
    }


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "av1", "gop": 2},
        {"codec": "h264", "gop": 5, "b_frames": 2},
        {"codec": "hevc", "b_frames": 3, "open_gop": True},
    ],
    ids=["av1", "h264", "hevc open GOPs"],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000, 3000, 10_000])
def test_no_set_is_longer_than_two_pieces(options: dict[str, Any], piece_bytes: int) -> None:
    lengths = [1, 4, 2, 3, 7, 1, 5, 6, 1]
    starts = np.cumsum([0, *lengths[:-1]]) / 10
    file = video_file(lengths, starts.tolist(), table=table_of(**options))
    together = episodes_fetched_together(
        file, np.ones(len(lengths), np.bool_), piece_bytes=piece_bytes
    )
    assert sorted(together) == list(range(len(lengths)))
    for episode, members in together.items():
        assert episode in members
        assert members == list(range(members[0], members[-1] + 1))
        assert all(together[member] == members for member in members)
        first, last = file.gops_of_episodes(np.array(members))
        frames = np.cumsum([0, *lengths])
        assert file.gops_of(frames[members]).tolist() == first.tolist()
        assert file.gops_of(frames[np.array(members) + 1] - 1).tolist() == last.tolist()
        # One picture before it, and what an open GOP needs after it.
        size = file.byte_range_of(range(first.item(0), last.item(-1) + 1)).length
        assert len(members) == 1 or size <= 2 * piece_bytes + file.byte_range(last.item(-1)).length


# --- groups --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> list[VideoFile]:
    """Two files with equal sample descriptions, and one with another."""
    tables = [table_of("h264", seed=0), table_of("h264", seed=1), table_of("hevc", b_frames=0)]
    return [video_file([30], [0.0], table=table) for table in tables]


def gops_of(files: list[VideoFile], wanted: list[tuple[int, int, int]]) -> list[GopFrames]:
    """Makes wanted GOPs of (file, GOP, number of frames)."""
    return [
        GopFrames(files[file], 0, gop, np.array(files[file].frames_of(gop))[:count])
        for file, gop, count in wanted
    ]


@pytest.mark.parametrize(
    ("wanted", "max_pictures", "expected"),
    [
        ([], 8, []),
        ([(0, 0, 3)], 8, [[0]]),
        ([(0, 0, 3), (1, 1, 3), (0, 2, 2)], 8, [[0, 1, 2]]),
        ([(0, 0, 3), (2, 0, 3), (1, 1, 3), (2, 1, 2)], 8, [[0, 2], [1, 3]]),
        ([(0, 0, 8), (0, 1, 8)], 8, [[0], [1]]),
        ([(0, 0, 8), (0, 1, 8)], 1, [[0], [1]]),
        ([(0, 0, 8), (0, 1, 8), (0, 2, 8)], 10_000, [[0, 1, 2]]),
    ],
    ids=["none", "one", "two files", "two encodings", "full", "a GOP that is too long", "no limit"],
)
def test_groups(
    files: list[VideoFile],
    wanted: list[tuple[int, int, int]],
    max_pictures: int,
    expected: list[list[int]],
) -> None:
    assert decode_groups(gops_of(files, wanted), max_pictures=max_pictures) == expected


def test_every_gop_is_in_one_group_and_the_groups_are_in_order_of_first_use(
    files: list[VideoFile],
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        gops = gops_of(
            files,
            [
                (int(rng.integers(3)), int(rng.integers(3)), int(rng.integers(1, 8)))
                for _ in range(rng.integers(1, 30))
            ],
        )
        limit = int(rng.integers(1, 40))
        groups = decode_groups(gops, max_pictures=limit)
        assert sorted(number for group in groups for number in group) == list(range(len(gops)))
        assert all(group == sorted(group) for group in groups)
        assert [group[0] for group in groups] == sorted(group[0] for group in groups)
        for group in groups:
            assert len({gops[number].file.table.format for number in group}) == 1
            assert len(group) == 1 or sum(len(gops[number].frames) for number in group) <= limit
