"""Caches that are filled ahead, against what streams then ask the loopback Hub for and decode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._inspection import fill_cache as filling
from lerobot_grain._reading.frame_cache.frame_writer import FrameWriter
from lerobot_grain._storage.disk import dataset_cache, piece_cache, piece_files
from lerobot_grain.testing import Camera, Fault, LoopbackHub, RequestRecord, write_dataset

TOP, FRONT, STILL = (f"observation.images.{name}" for name in ("top", "front", "still"))
LENGTHS = [7, 5, 8, 6, 4]
NUM_ROWS = sum(LENGTHS)
# So little that no coded video is kept in memory.
MEMORY = 1 << 18
ALL = 1 << 30
Open = Callable[..., lg.Repository]


@pytest.fixture(autouse=True)
def _any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 0)  # whatever the disk of the tests has


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = (
        Camera(key=TOP, height=64, width=96, codec="h264", gop=2),
        Camera(key=FRONT, height=64, width=96, codec="h264", gop=30, b_frames=2),
        Camera(key=STILL, height=32, width=40, kind="image"),
    )
    return write_dataset(
        tmp_path_factory.mktemp("fill") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        noise=1.0,
        episodes_per_video_file={TOP: 3, FRONT: 1},
        episodes_per_data_file=3,
        rows_per_row_group=5,
    ).directory


@pytest.fixture
def open_as_new(hub: LoopbackHub, tmp_path: Path) -> Open:
    def open_(name: str, *, limit: int = ALL, gap: int = 0) -> lg.Repository:
        dataset_cache._caches.cache_clear()  # a new process knows nothing
        return lg.open_repository(
            name,
            endpoint=hub.endpoint,
            cache_dir=tmp_path / "hub",
            storage_options=lg.StorageOptions(disk_cache_bytes=limit, merge_gap_bytes=gap),
        )

    return open_


def options(frames: int = 0) -> lg.ReadOptions:
    return lg.ReadOptions(
        memory_budget_bytes=MEMORY, num_decode_threads=1, frame_cache_bytes=frames
    )


def epoch(
    repository: Any, *, frames: int = 0, **arguments: Any
) -> tuple[list[Any], lg.ReadStatistics]:
    windows = {"delta_timestamps": {TOP: [-0.2, 0.0], "action": [0.0, 0.1]}}
    dataset = lg.LeRobotIterDataset(
        repository, num_epochs=1, read_options=options(frames), **(windows | arguments)
    )
    iterator = iter(dataset)
    return list(iterator), lg.read_statistics(iterator)


def of_files(hub: LoopbackHub) -> list[RequestRecord]:
    """The requests for data and video files."""
    return [r for r in hub.requests() if r.file and not r.file.startswith("meta/")]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in other)


SHUFFLES = {"default": lg.Shuffle(seed=4), "3": lg.Shuffle(clip_length=3), "none": None}


# Each order and each gap once always.
@pytest.mark.parametrize(
    ("shuffle", "gap"),
    [
        pytest.param(
            *(shuffle, gap),
            id=f"{name}-{gap}",
            marks=[] if (gap == 0) == (name == "3") else [pytest.mark.long],
        )
        for name, shuffle in SHUFFLES.items()
        for gap in (0, 1 << 18)
    ],
)
def test_a_stream_fetches_nothing_after(
    hub: LoopbackHub,
    directory: Path,
    open_as_new: Open,
    tmp_path: Path,
    shuffle: lg.Shuffle | None,
    gap: int,
) -> None:
    name = f"fill/{tmp_path.name}"
    hub.add_repository(name, directory)
    filled = lg.fill_cache(open_as_new(name))
    assert filled.num_episodes == len(LENGTHS)
    assert filled.bytes_fetched > filled.bytes_selected > 100_000
    assert filled.bytes_above_limit == filled.frames_selected == filled.frames_there == 0
    hub.clear_requests()
    examples, statistics = epoch(open_as_new(name, gap=gap), shuffle=shuffle)
    assert of_files(hub) == []
    assert statistics.bytes_fetched == 0
    assert_equal(examples, epoch(directory, shuffle=shuffle)[0])


def test_a_selection_is_fetched_and_nothing_else(
    hub: LoopbackHub, directory: Path, open_as_new: Open
) -> None:
    hub.add_repository("fill/some", directory)
    selection: dict[str, Any] = {"episodes": [0, 4], "features": [TOP, "action"]}
    hub.clear_requests()
    filled = lg.fill_cache(open_as_new("fill/some"), **selection)
    assert filled.num_episodes == 2
    # One, for the length of the GOPs, which the default order asks for.
    assert len({r.file for r in of_files(hub) if FRONT in str(r.file)}) == 1
    everything = lg.fill_cache(open_as_new("fill/some", limit=2 * ALL)).bytes_selected
    assert filled.bytes_selected < everything / 2
    hub.clear_requests()
    windows = {"delta_timestamps": {TOP: [-0.2, 0.0]}}
    examples, _ = epoch(open_as_new("fill/some"), **selection, **windows)
    assert of_files(hub) == []
    assert_equal(examples, epoch(directory, **selection, **windows)[0])


def test_what_is_there_is_not_fetched_again(
    hub: LoopbackHub, directory: Path, open_as_new: Open
) -> None:
    hub.add_repository("fill/again", directory)
    first = lg.fill_cache(open_as_new("fill/again"), episodes=slice(0, 2))
    second = lg.fill_cache(open_as_new("fill/again"))
    hub.clear_requests()
    third = lg.fill_cache(open_as_new("fill/again"))
    assert of_files(hub) == []
    assert third.bytes_fetched == 0
    assert third.bytes_selected == second.bytes_selected
    assert first.bytes_fetched + second.bytes_fetched < 1.1 * second.bytes_selected + 200_000


def test_an_interrupted_one_is_continued(
    hub: LoopbackHub, directory: Path, open_as_new: Open, tmp_path: Path
) -> None:
    hub.add_repository("fill/interrupted", directory)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "rows and video" and 2 * done > total:
            raise KeyboardInterrupt

    repository = open_as_new("fill/interrupted")
    with pytest.raises(KeyboardInterrupt):
        lg.fill_cache(repository, on_progress=interrupt)
    repository.close()
    there = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert there
    assert not [path for path in there if path.suffix == ".part"]
    hub.clear_requests()
    lg.fill_cache(open_as_new("fill/interrupted"))
    hub.clear_requests()
    examples, _ = epoch(open_as_new("fill/interrupted"))
    assert of_files(hub) == []
    assert_equal(examples, epoch(directory)[0])


def test_what_would_not_be_kept_is_not_fetched(
    hub: LoopbackHub, directory: Path, open_as_new: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the dataset has many cells.
    for module, name in (
        (piece_files, "CELL_BYTES"),
        (piece_cache, "CELL_BYTES"),
        (filling, "MAX_FETCH_BYTES"),
    ):
        monkeypatch.setattr(module, name, 1 << 13)
    hub.add_repository("fill/share", directory)

    def fill(limit: int) -> tuple[lg.FilledCache, int]:
        """Returns the bytes, too, that were fetched of files whose indices are small."""
        hub.clear_requests()
        filled = lg.fill_cache(open_as_new("fill/share", limit=limit))
        return filled, sum(r.body_bytes_sent for r in of_files(hub) if TOP in str(r.file))

    whole, all_bytes = fill(ALL)
    limit = whole.bytes_selected // 2
    fill(limit)  # deletes what is above
    filled, fetched_again = fill(limit)
    assert filled.bytes_selected == whole.bytes_selected
    assert 0.3 < filled.bytes_above_limit / whole.bytes_selected < 0.9
    assert fetched_again < 0.3 * all_bytes
    with pytest.raises(lg.InvalidRequestError, match=r"disk_cache_bytes=0\)"):
        lg.fill_cache(open_as_new("fill/share", limit=0))


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [None, (40, 56)])
def test_a_stream_decodes_nothing_after(
    hub: LoopbackHub,
    directory: Path,
    open_as_new: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_size: tuple[int, int] | None,
) -> None:
    name = f"fill/{tmp_path.name}"
    hub.add_repository(name, directory)
    progress: list[tuple[str, int, int]] = []
    filled = lg.fill_cache(
        open_as_new(name),
        image_size=image_size,
        read_options=options(ALL),
        on_progress=lambda *each: progress.append(each),
    )
    assert filled.frames_selected == filled.frames_decoded == filled.frames_there == 3 * NUM_ROWS
    assert {what for what, _, _ in progress} == {
        "files",
        "rows and video",
        *(f"frames of {camera}" for camera in (TOP, FRONT, STILL)),
    }
    assert all(0 < done <= total for _, done, total in progress)
    hub.clear_requests()
    examples, statistics = epoch(open_as_new(name), frames=ALL, image_size=image_size)
    assert of_files(hub) == []
    assert statistics.pictures_decoded == statistics.gops_decoded == 0
    assert statistics.frames_from_cache == statistics.frames_handed_out > 3 * NUM_ROWS
    assert_equal(examples, epoch(directory, image_size=image_size)[0])
    again = lg.fill_cache(open_as_new(name), image_size=image_size, read_options=options(ALL))
    assert (again.frames_decoded, again.frames_there) == (0, 3 * NUM_ROWS)
    assert again.bytes_fetched == 0
    # Nor is a network needed, though no video was kept.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear_requests()
    assert_equal(epoch(open_as_new(name), frames=ALL, image_size=image_size)[0], examples)
    assert hub.requests() == []


def test_frames_that_the_disk_was_too_slow_for_are_decoded_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = FrameWriter._claimed
    monkeypatch.setattr(
        FrameWriter,
        "_claimed",
        lambda self, count, size: claimed(self, -(-count // 2), size),
    )
    filled = lg.fill_cache(lg.open_repository(directory), read_options=options(ALL))
    assert filled.frames_there == 3 * NUM_ROWS


def test_a_directory_has_frames_only(directory: Path, tmp_path: Path) -> None:
    repository = lg.open_repository(directory)
    with pytest.raises(lg.InvalidRequestError, match="nothing of it would be kept on disk"):
        lg.fill_cache(repository)
    assert lg.fill_cache(repository, read_options=options(ALL)).frames_there == 3 * NUM_ROWS
    assert not (tmp_path / "kept" / "pieces").exists()


def test_a_share_of_the_frames(directory: Path, tmp_path: Path) -> None:
    whole = lg.fill_cache(lg.open_repository(directory), read_options=options(ALL))
    sizes = [path.stat().st_size for path in (tmp_path / "kept" / "frames").iterdir()]
    for path in (tmp_path / "kept" / "frames").iterdir():
        path.unlink()
    limit = sum(sizes) // 2
    half = lg.fill_cache(lg.open_repository(directory), read_options=options(limit))
    files = list((tmp_path / "kept" / "frames").iterdir())
    assert sum(path.stat().st_size for path in files) <= limit
    assert 0 < half.frames_there < whole.frames_there
    # Only what is kept is decoded.
    assert half.frames_decoded == half.frames_there
    assert half.frames_selected == whole.frames_selected


def test_a_full_frame_cache_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    once = filling._Filling._decode_once

    def counted(self: Any, camera: str, positions: list[int], on_progress: Any) -> None:
        passes.append(camera)
        once(self, camera, positions, on_progress)

    monkeypatch.setattr(filling._Filling, "_decode_once", counted)
    monkeypatch.setattr(FrameWriter, "_claimed", lambda self, count, size: 0)  # noqa: ARG005
    filled = lg.fill_cache(lg.open_repository(directory), read_options=options(ALL))
    assert passes == [STILL, TOP, FRONT]
    assert filled.frames_there == filled.frames_decoded == 0


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["nope"]}, "nope"),
        ({"episodes": [99]}, "99"),
        ({"image_size": (0, 5)}, r"image_size=\(0, 5\): expected"),
        ({"image_size": 96}, "image_size=96: expected"),
    ],
)
def test_wrong_arguments(directory: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=message):
        lg.fill_cache(lg.open_repository(directory), read_options=options(ALL), **arguments)


def test_a_file_that_is_missing(hub: LoopbackHub, directory: Path, open_as_new: Open) -> None:
    hub.add_repository("fill/missing", directory)
    repository = open_as_new("fill/missing")
    hub.add_fault(Fault(status=404, path_regex=FRONT, times=None))
    try:
        with pytest.raises(lg.StorageError, match=FRONT):
            lg.fill_cache(repository)
    finally:
        hub.clear_faults()
