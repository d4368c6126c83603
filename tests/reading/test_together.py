"""Neighbors in a file that are needed sooner or later come in one request: seen in the log of the
loopback Hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.video_files import open_video
from lerobot_grain.testing import Camera, Fault, LoopbackHub, read_barcodes, write_dataset
from tests.support.streams import no_pauses

LENGTHS = [10, 12, 9, 14, 8, 11, 13, 7, 10, 12, 9, 15]
CAMERA = "observation.images.top"
VIDEOS, ROWS = r"\.mp4$", r"data/.*\.parquet$"
SHUFFLE = lg.Shuffle(seed=2, clip_length=4, num_parts=2, buffer_size=8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two video files of six episodes, one data file with a row group for each episode."""
    camera = Camera(key=CAMERA, height=64, width=96, gop=2)
    written = write_dataset(
        tmp_path_factory.mktemp("together") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=[camera],
        episodes_per_video_file=6,
    )
    assert pq.read_metadata(
        written.directory / "data/chunk-000/file-000.parquet"
    ).num_row_groups == len(LENGTHS)
    return written.directory


@pytest.fixture
def arguments(
    hub: LoopbackHub, directory: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[dict[str, Any]]:
    name = f"together/{request.node.name.replace('_', '-').replace('[', '-').replace(']', '')}"
    hub.add_repository(name, directory, tags=["v3.0"])
    yield {
        "repository": name,
        "endpoint": hub.endpoint,
        "cache_dir": tmp_path,
        "shuffle": SHUFFLE,
        "num_epochs": 1,
    }
    hub.clear_faults()


def ranges_of(hub: LoopbackHub, ending: str) -> list[tuple[str, ByteRange]]:
    """The ranges that were asked for of files, but for the heads and tails that tell what
    is where.
    """
    found = []
    for request in hub.requests():
        if (
            request.kind == "cdn"
            and request.file
            and request.file.endswith(ending)
            and not request.file.startswith("meta/")
        ):
            assert request.range is not None
            start, last = map(int, request.range.removeprefix("bytes=").split("-"))
            found.append((request.file, ByteRange(start, last + 1)))
    return found


def video_ranges(hub: LoopbackHub, repository: lg.Repository) -> list[tuple[str, ByteRange]]:
    """Those of frames."""
    first_bytes = {}
    for number, path in enumerate(repository.episodes.videos[CAMERA].files.paths):
        first_bytes[path] = int(open_video(repository, CAMERA, number).table.offsets.min())
    return [
        (path, wanted)
        for path, wanted in ranges_of(hub, ".mp4")
        if wanted.start >= first_bytes[path]
    ]


def row_ranges(hub: LoopbackHub, directory: Path) -> list[ByteRange]:
    """Those of row groups."""
    path = directory / "data/chunk-000/file-000.parquet"
    footer_bytes = 8 + int.from_bytes(path.read_bytes()[-8:-4], "little")
    return [
        wanted
        for _, wanted in ranges_of(hub, ".parquet")
        if wanted.stop <= path.stat().st_size - footer_bytes
    ]


def bytes_of_episodes(repository: lg.Repository, episodes: list[int]) -> dict[str, set[int]]:
    """The bytes of the GOPs that hold frames of episodes."""
    spans = repository.episodes.videos[CAMERA].files
    found: dict[str, set[int]] = {path: set() for path in spans.paths}
    for number, path in enumerate(spans.paths):
        file = open_video(repository, CAMERA, number)
        for episode in set(episodes) & set(spans.episodes_in(number).tolist()):
            frames = file.first_frame(episode) + np.arange(LENGTHS[episode])
            for gop in set(file.gops_of(frames).tolist()):
                found[path] |= set(range(*file.byte_range(gop)))
    return found


def assert_exact(examples: list[dict[str, Any]]) -> None:
    """Each frame is that of its row, by its barcode, and so are the values of the row."""
    codes = read_barcodes(np.stack([example[CAMERA] for example in examples]))
    assert codes[:, :2].tolist() == [
        [int(example["episode_index"]), int(example["frame_index"])] for example in examples
    ]
    assert [round(float(example["timestamp"]) * 10) for example in examples] == [
        int(example["frame_index"]) for example in examples
    ]


def stream(**arguments: Any) -> list[dict[str, Any]]:
    with contextlib.closing(iter(lg.LeRobotIterDataset(**arguments))) as iterator:
        return list(iterator)


# --- requests ------------------------------------------------------------------------------------


def test_all_episodes_of_a_file_in_one_request(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path
) -> None:
    hub.clear_requests()
    examples = stream(**arguments | {"num_epochs": 2})
    assert_exact(examples)
    assert sorted(int(example["index"]) for example in examples) == sorted(
        2 * list(range(sum(LENGTHS)))
    )
    local = lg.open_repository(directory)
    asked = video_ranges(hub, local)
    assert len(asked) == len({path for path, _ in asked}) == 2
    needed = bytes_of_episodes(local, list(range(12)))
    assert sum(wanted.length for _, wanted in asked) == sum(map(len, needed.values()))
    assert len(row_ranges(hub, directory)) == 1


def test_only_what_is_selected(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path
) -> None:
    """Episodes 5 and 6 lie in two files."""
    selected = [0, 1, 3, 5, 6, 7, 8, 11]
    hub.clear_requests()
    examples = stream(**arguments, episodes=selected)
    assert_exact(examples)
    assert {int(example["episode_index"]) for example in examples} == set(selected)
    local = lg.open_repository(directory)
    asked, needed = video_ranges(hub, local), bytes_of_episodes(local, selected)
    assert len(asked) == 5
    assert all(set(range(*wanted)) <= needed[path] for path, wanted in asked)
    assert sum(wanted.length for _, wanted in asked) == sum(map(len, needed.values()))
    # Row groups of 0 and 1, 3, 5 to 8, 11.
    assert len(row_ranges(hub, directory)) == 4


@pytest.mark.parametrize("gap_bytes", [0, 10_000])
def test_pieces_are_as_large_as_a_request_costs(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path, gap_bytes: int
) -> None:
    options = lg.ReadOptions(storage=lg.StorageOptions(merge_gap_bytes=gap_bytes))
    hub.clear_requests()
    assert_exact(stream(**arguments, read_options=options))
    asked = [wanted for _, wanted in video_ranges(hub, lg.open_repository(directory))]
    assert max(wanted.length for wanted in asked) <= 20_000
    assert (
        (len(asked), len(row_ranges(hub, directory)) >= 12) == (12, True)
        if gap_bytes == 0
        else 2 < len(asked) < 12
    )


def test_shards_that_need_few_episodes_fetch_no_others(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path
) -> None:
    """Of 12 episodes with 2 to 4 clips each, a shard of 16 needs few."""
    hub.clear_requests()
    examples = stream(**arguments, shard_options=grain.sharding.ShardOptions(3, 16))
    assert_exact(examples)
    local = lg.open_repository(directory)
    needed = bytes_of_episodes(
        local, sorted({int(example["episode_index"]) for example in examples})
    )
    assert all(set(range(*wanted)) <= needed[path] for path, wanted in video_ranges(hub, local))


def test_what_comes_is_not_known_behind_a_filter(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path
) -> None:
    repository = lg.open_repository(
        arguments["repository"], endpoint=hub.endpoint, cache_dir=arguments["cache_dir"]
    )
    order = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, num_epochs=1)
    evens = order.filter(lambda row: repository.episodes.locate(row)[0] % 2 == 0)
    hub.clear_requests()
    with contextlib.closing(
        iter(lg.ReadWindowsIterDataset(evens.map(lg.DeltaTimestamps(repository)), repository))
    ) as iterator:
        examples = list(iterator)
    assert_exact(examples)
    local = lg.open_repository(directory)
    needed = bytes_of_episodes(local, list(range(0, 12, 2)))
    assert all(set(range(*wanted)) <= needed[path] for path, wanted in video_ranges(hub, local))


def test_little_memory_is_for_what_is_needed_now(
    hub: LoopbackHub, arguments: dict[str, Any], directory: Path
) -> None:
    hub.clear_requests()
    assert_exact(stream(**arguments, read_options=lg.ReadOptions(memory_budget_bytes=1 << 17)))
    assert len(video_ranges(hub, lg.open_repository(directory))) >= 12
    assert len(row_ranges(hub, directory)) >= 12


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [VIDEOS, ROWS], ids=["video", "rows"])
def test_what_failed_fails_at_the_examples_that_need_it(
    hub: LoopbackHub,
    arguments: dict[str, Any],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    """The request for the second half of the episodes fails for good, then is read again."""
    no_pauses(monkeypatch)
    # 5 is not selected: so the rows too are two requests.
    arguments |= {"shuffle": None, "episodes": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]}
    hub.clear_requests()
    expected = stream(**arguments)
    local = lg.open_repository(directory)
    asked = (
        row_ranges(hub, directory)
        if ending == ROWS
        else [r for path, r in video_ranges(hub, local) if path.endswith("1.mp4")]
    )
    last = max(asked)
    hub.add_fault(
        Fault(
            origin="cdn",
            path_regex=ending,
            range_regex=f"={last.start}-{last.stop - 1}$",
            status=503,
            times=None,
        )
    )
    options = lg.ReadOptions(storage=lg.StorageOptions(max_attempts=2, disk_cache_bytes=0))
    iterator = iter(lg.LeRobotIterDataset(**arguments, read_options=options))
    found = [next(iterator) for _ in range(sum(LENGTHS[:5]))]
    for _ in range(2):
        with pytest.raises(
            lg.StorageError, match=r"bytes \[\d+, \d+\): gave up after 2 attempt\(s\)"
        ):
            next(iterator)
    hub.clear_faults()
    found += list(iterator)
    assert_exact(found)
    assert [int(example["index"]) for example in found] == [
        int(example["index"]) for example in expected
    ]
    iterator.close()


def test_an_episode_without_frames_does_no_harm_to_its_neighbors(directory: Path) -> None:
    """Episode 5, the last one of its file, is said to begin a second late."""
    repository = lg.open_repository(directory)
    spans = repository.episodes.videos[CAMERA]
    starts = spans.from_timestamp_seconds.copy()
    starts[5] += 1
    object.__setattr__(
        repository.episodes,
        "videos",
        {CAMERA: dataclasses.replace(spans, from_timestamp_seconds=starts)},
    )
    iterator = iter(lg.LeRobotIterDataset(repository, num_epochs=1, shuffle=None))
    assert_exact([next(iterator) for _ in range(sum(LENGTHS[:5]))])
    with pytest.raises(lg.DatasetFormatError, match="episode 5, camera"):
        next(iterator)
    iterator.set_state({**iterator.get_state(), "position": sum(LENGTHS[:6])})
    assert_exact(list(iterator))
    iterator.close()
