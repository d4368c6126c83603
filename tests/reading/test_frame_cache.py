"""Streams with decoded frames on disk against streams without: whole shuffled epochs, resumes,
several processes that are killed, full and vanishing disks, damaged and foreign files.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._reading.batches import split
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.frame_cache import (
    episode_frames,
    frame_key,
    frame_writer,
)
from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames
from lerobot_grain._reading.frame_cache.frame_cache import FrameCache
from lerobot_grain._reading.frames import gop_decoder, gop_fetcher
from lerobot_grain._reading.frames.decoding import LongGopDecoder
from lerobot_grain._reading.options import MemoryBudget
from lerobot_grain._reading.rows import pictures
from lerobot_grain.testing import Camera, write_dataset
from tests.support.forked import forking
from tests.support.small_disk import mounted

AV1, H264, LONG, DEPTH = (f"observation.images.{name}" for name in ("av1", "h264", "long", "depth"))
LENGTHS = [40, 7, 1, 33, 24]
NUM_ROWS = sum(LENGTHS)
WINDOWS = {AV1: [-0.5, 0.0, 0.1], H264: [0.0, 3.0], DEPTH: [-1.0, 0.0], "action": [0.0, 0.1]}
FRAMES_OF_EXAMPLE = 3 + 2 + 1 + 2
SHUFFLE = lg.Shuffle(seed=3, clip_length=4, num_parts=8, buffer_size=32)
# Far too little for the frames: they are dropped and needed again.
SMALL_BYTES = 1 << 19
ALL_BYTES = 1 << 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = (
        Camera(key=AV1, height=64, width=96, gop=2),
        Camera(key=H264, height=64, width=80, codec="h264", gop=30, b_frames=2),
        Camera(key=LONG, height=64, width=80, codec="h264", gop=250),
        Camera(key=DEPTH, height=64, width=80, depth=True, gop=4, b_frames=3, open_gop=True),
    )
    return write_dataset(
        tmp_path_factory.mktemp("cache") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        episodes_per_video_file={AV1: 2, H264: 3, LONG: 5, DEPTH: 1},
        episodes_per_data_file=2,
    ).directory


def stream(
    directory: Path, cache: Path | None, *, cache_bytes: int = ALL_BYTES, **arguments: Any
) -> lg.LeRobotIterDataset:
    """Returns one shuffled epoch, unless the arguments say otherwise."""
    memory = arguments.pop("memory_bytes", None)
    options = lg.ReadOptions(
        memory_budget_bytes=memory,
        frame_cache_bytes=0 if cache is None else cache_bytes,
        frame_cache_directory=cache,
    )
    chosen = {"shuffle": SHUFFLE, "num_epochs": 1, "delta_timestamps": WINDOWS} | arguments
    return lg.LeRobotIterDataset(directory, read_options=options, **chosen)


def read(dataset: Any) -> tuple[list[dict[str, Any]], lg.ReadStatistics]:
    iterator = iter(dataset)
    return list(iterator), lg.read_statistics(iterator)


@pytest.fixture(scope="module")
def straight(directory: Path) -> list[dict[str, Any]]:
    """One epoch without the cache."""
    return read(stream(directory, None))[0]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for key, value in other.items():
            assert np.array_equal(one[key], value), key


def files_of(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*{frame_key.SUFFIX}"))


# --- the same frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_size": (40, 56)},
        # All is decoded again and again.
        {"memory_bytes": SMALL_BYTES, "num_epochs": 1},
        {"delta_timestamps": None},
    ],
    ids=["windows", "resized", "little memory", "no windows"],
)
def test_whole_epochs_are_the_same(
    directory: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    arguments = {"num_epochs": 2} | arguments
    expected, _ = read(stream(directory, None, **arguments))
    found, first = read(stream(directory, tmp_path, **arguments))
    assert_same(found, expected)
    batches = stream(directory, tmp_path, **arguments).batch(8)
    assert_same([each for batch in batches for each in split(dict(batch))], expected)
    assert first.frames_from_cache < first.frames_handed_out
    # Another reader, and what was left out because it had to wait: two rounds at most.
    for _ in range(2):
        found, again = read(stream(directory, tmp_path, **arguments))
        assert_same(found, expected)
    assert again.frames_from_cache == again.frames_handed_out
    assert again.pictures_decoded == again.gops_decoded == 0


def test_nothing_is_decoded_or_fetched_again(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read(stream(directory, tmp_path))

    def refuse(*_: Any) -> Any:
        raise AssertionError("of what is on disk nothing is decoded and no coded video is read")

    monkeypatch.setattr(gop_decoder, "decode_jobs", refuse)
    monkeypatch.setattr(LongGopDecoder, "decode", refuse)
    monkeypatch.setattr(gop_fetcher, "_read_range", refuse)
    found, statistics = read(stream(directory, tmp_path))
    assert_same(found, straight)
    assert statistics.frames_from_cache == NUM_ROWS * FRAMES_OF_EXAMPLE
    assert statistics.budget_peak_bytes < 1 << 20, "no frame of the cache has memory of its own"


def test_what_is_on_disk_is_not_decoded_with_its_neighbors(tmp_path: Path) -> None:
    # Of an episode its second half is missing. Few frames are planned at a time.
    directory = write_dataset(
        tmp_path / "data", episode_lengths=[40] * 16, cameras=[Camera(height=64, width=96, gop=2)]
    ).directory
    arguments = {"delta_timestamps": None, "num_epochs": 1}
    cache = tmp_path / "cache"
    read(stream(directory, cache, drop_last_frames=20, **arguments | {"shuffle": None}))
    _, rest = read(
        stream(directory, cache, memory_bytes=1 << 23, **arguments | {"shuffle": lg.Shuffle()})
    )
    assert rest.pictures_decoded == rest.frames_from_cache == 16 * 20


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
def test_frames_are_asked_for_ahead_unless_they_come_from_memory(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"features": [LONG], "delta_timestamps": None}
    read(stream(directory, tmp_path, **only))
    asked: list[int] = []
    looked: list[int] = []
    found: dict[tuple[bool, bool], int] = {}
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments[2]))
    read_now = episode_frames._read_now
    num_bytes = NUM_ROWS * 64 * 80 * 3
    # Whether frames are in memory when they are asked for, and when they are read.
    for is_there, is_read in ((False, True), (True, True), (True, False)):
        asked.clear()
        looked.clear()

        def look(_: int, place: int, *, is_there: bool = is_there) -> bool:
            looked.append(place)
            return is_there

        monkeypatch.setattr(episode_frames, "_is_in_memory", look)
        monkeypatch.setattr(episode_frames, "_read_now", read_now if is_read else lambda *_: 0)
        read(stream(directory, tmp_path, memory_bytes=SMALL_BYTES, num_epochs=3, **only))
        assert sum(asked) % (64 * 80 * 3) == 0
        if is_there:
            assert asked == []
        else:
            # Reading is fast because it was asked for: it goes on. Another thread asks, and may be
            # late for the last ones.
            assert 1.5 * num_bytes < sum(asked) <= 3 * num_bytes
        found[is_there, is_read] = len(looked)
    # In memory, only the first ones are looked for, until one was not there when it was read.
    assert 3 * found[True, True] < found[True, False]


def test_frames_that_are_not_in_memory_are_known(directory: Path, tmp_path: Path) -> None:
    """Against pages that were dropped, on disks that can; `False` where the system does not say."""
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("the system does not say")
    read(stream(directory, tmp_path, features=[LONG], delta_timestamps=None))
    path = files_of(tmp_path)[0]
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
        os.pread(descriptor, size, 0)
        try:
            os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("this file system does not say")
        assert episode_frames._is_in_memory(descriptor, size - 1)
        assert not episode_frames._is_in_memory(descriptor, size), "past the end"
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        is_there = episode_frames._is_in_memory(descriptor, size - 1)
    finally:
        os.close(descriptor)
    if is_there:
        pytest.skip("the pages of this file system cannot be dropped")


def test_batches_and_resumes_are_the_same(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path
) -> None:
    state: Any = None
    found: list[dict[str, Any]] = []
    while len(found) < NUM_ROWS:
        iterator = iter(stream(directory, tmp_path).batch(7))
        if state is not None:
            iterator.set_state(state)
        for batch in itertools.islice(iterator, 2):
            found += [
                {key: value[place] for key, value in batch.items()}
                for place in range(len(batch["index"]))
            ]
        state = iterator.get_state() if len(found) < NUM_ROWS else None
        iterator.close()
    assert_same(found, straight)


@pytest.mark.parametrize("size", [None, (20, 24)], ids=["whole", "resized"])
def test_embedded_images_are_the_same(
    tmp_path: Path, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras = (
        Camera(key="rgb", height=32, width=48, kind="image"),
        Camera(key="depth", height=32, width=48, depth=True, kind="image"),
    )
    data = write_dataset(
        tmp_path / "data", episode_lengths=LENGTHS, fps=10, cameras=cameras, rows_per_row_group=16
    ).directory
    chosen = {"delta_timestamps": {"rgb": [-0.1, 0.0, 0.3]}, "image_size": size}
    expected, _ = read(stream(data, None, num_epochs=2, **chosen))
    cache = tmp_path / "frames"
    assert_same(read(stream(data, cache, num_epochs=2, **chosen))[0], expected)
    kept = files_of(cache)
    assert len(kept) == 2 * len(LENGTHS)
    flip(kept[0], (kept[0].stat().st_size - 1) * 8)
    found, statistics = read(stream(data, cache, num_epochs=2, **chosen))
    assert_same(found, expected)
    # The damaged one was decoded, and written, perhaps before it was needed once more. It is the
    # last one of an episode, which five windows of an epoch hold.
    lost = statistics.frames_handed_out - statistics.frames_from_cache
    assert 1 <= lost <= 2 * 5
    monkeypatch.setattr(pictures, "decode_image", None)
    monkeypatch.setattr(pictures, "decode_depth_image", None)
    found, statistics = read(stream(data, cache, num_epochs=2, **chosen))
    assert_same(found, expected)
    assert statistics.frames_from_cache == statistics.frames_handed_out == 2 * NUM_ROWS * 4


def test_a_mixture_reads_from_the_cache(directory: Path, tmp_path: Path) -> None:
    def mixture(cache: Path | None) -> lg.MixtureIterDataset:
        components = {
            name: stream(
                directory,
                cache,
                num_epochs=None,
                features=[AV1, "index"],
                delta_timestamps={AV1: [0.0, 0.1]},
            )
            for name in ("one", "two")
        }
        options = lg.ReadOptions(
            frame_cache_bytes=0 if cache is None else ALL_BYTES, frame_cache_directory=cache
        )
        return lg.MixtureIterDataset(
            components, weights={"one": 2, "two": 1}, num_examples=300, read_options=options
        )

    expected, _ = read(mixture(None))
    read(mixture(tmp_path))
    found, statistics = read(mixture(tmp_path))
    assert_same(found, expected)
    assert statistics.frames_from_cache == statistics.frames_handed_out


def test_off_makes_no_directory_and_no_thread(directory: Path, tmp_path: Path) -> None:
    iterator = iter(stream(directory, tmp_path / "frames", cache_bytes=0))
    next(iterator)
    assert "lerobot_grain cache" not in " ".join(each.name for each in threading.enumerate())
    iterator.close()
    assert list(tmp_path.iterdir()) == []


def test_the_default_directory_is_beside_the_pieces_of_files(
    directory: Path, tmp_path: Path
) -> None:
    options = lg.ReadOptions(frame_cache_bytes=ALL_BYTES)
    read(lg.LeRobotIterDataset(directory, num_epochs=1, read_options=options))
    # LEROBOT_GRAIN_CACHE of the tests.
    assert len(files_of(tmp_path / "kept" / "frames")) == len(LENGTHS) * 4


# --- not enough room -----------------------------------------------------------------------------


def test_a_part_of_the_episodes_is_kept_in_the_order_of_their_ranks(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path
) -> None:
    read(stream(directory, tmp_path / "all"))
    sizes = {path.name: path.stat().st_size for path in files_of(tmp_path / "all")}
    for share in (0.25, 0.5, 0.75):
        cache = tmp_path / str(share)
        limit = int(sum(sizes.values()) * share)
        for _ in range(2):
            found, statistics = read(stream(directory, cache, cache_bytes=limit))
            assert_same(found, straight)
        expected = []
        for name in sorted(sizes):
            if sum(map(sizes.__getitem__, expected)) + sizes[name] > limit:
                break
            expected.append(name)
        assert [path.name for path in files_of(cache)] == expected
        assert sum(path.stat().st_size for path in files_of(cache)) <= limit
        assert 0 < statistics.frames_from_cache < statistics.frames_handed_out


def test_a_smaller_limit_deletes_what_is_too_much(directory: Path, tmp_path: Path) -> None:
    read(stream(directory, tmp_path))
    whole = [path.name for path in files_of(tmp_path)]
    # A stream that has something to write: other sizes of frames.
    read(stream(directory, tmp_path, cache_bytes=1 << 21, image_size=(32, 40)))
    left = files_of(tmp_path)
    assert sum(path.stat().st_size for path in left) <= 1 << 21
    assert {path.name[:16] for path in left} <= {name[:16] for name in whole}


# --- what is not used ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "camera"),
    [
        ("FORMAT", AV1),
        ("processor", AV1),
        ("decoder_version", AV1),
        ("depth_decoder_version", DEPTH),
    ],
)
def test_frames_of_another_version_are_not_used(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, camera: str
) -> None:
    only = {"features": [camera], "delta_timestamps": None}
    read(stream(directory, tmp_path, **only))
    other: Any = "another" if what == "FORMAT" else lambda: "another"
    monkeypatch.setattr(frame_key, what, other)
    _, statistics = read(stream(directory, tmp_path, **only))
    assert statistics.frames_from_cache == 0


@pytest.mark.parametrize("change", ["time", "size", "inode", "row data"])
def test_frames_of_a_file_that_was_changed_in_place_are_not_used(
    directory: Path, tmp_path: Path, change: str
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(directory, copy)
    only = {"features": [LONG], "delta_timestamps": None}
    cache = tmp_path / "frames"
    read(stream(copy, cache, **only))
    assert read(stream(copy, cache, **only))[1].frames_from_cache == NUM_ROWS
    folder = "data" if change == "row data" else "videos"
    for path in [path for path in (copy / folder).rglob("*.*") if path.is_file()]:
        status = path.stat()
        if change == "inode":
            shutil.copy(path, tmp_path / "another")
            os.replace(tmp_path / "another", path)
        if change == "size":
            with path.open("ab") as file:
                file.write((8).to_bytes(4, "big") + b"free")  # a box that holds nothing
        later = 1 if change in ("time", "row data") else 0
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later))
    _, statistics = read(stream(copy, cache, **only))
    assert statistics.frames_from_cache == 0


def test_streams_of_other_sizes_share_a_directory(directory: Path, tmp_path: Path) -> None:
    for size in (None, (40, 56), (56, 40)):
        expected, _ = read(stream(directory, None, image_size=size))
        for _ in range(2):
            assert_same(read(stream(directory, tmp_path, image_size=size))[0], expected)
    assert len(files_of(tmp_path)) == 3 * 4 * len(LENGTHS)


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.long)])
def test_flipped_bits_are_all_found(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path, count: int
) -> None:
    """Each in another frame: in its bytes, or one in ten in its checksum."""
    sizes: list[dict[str, Any]] = [{}, {"image_size": RESIZED}]
    for size in sizes:
        read(stream(directory, tmp_path, **size))
    kept = files_of(tmp_path)
    chosen = random.Random(7)
    flipped = set()
    while len(flipped) < count:
        path = chosen.choice(kept)
        frames = LENGTHS_OF[path.stat().st_size]
        size_bytes = (path.stat().st_size - 8192) // frames
        frame = chosen.randrange(frames)
        if (path, frame) not in flipped:
            flipped.add((path, frame))
            start, length = (
                (4096 + frame * 8, 8)
                if chosen.random() < 0.1
                else (8192 + frame * size_bytes, size_bytes)
            )
            flip(path, (start + chosen.randrange(length)) * 8 + chosen.randrange(8))
    distinct = {"shuffle": None, "delta_timestamps": None}
    num_lost = 0
    for size in sizes:
        expected, _ = read(stream(directory, None, **distinct, **size))
        found, statistics = read(stream(directory, tmp_path, **distinct, **size))
        assert_same(found, expected)
        num_lost += statistics.frames_handed_out - statistics.frames_from_cache
    assert num_lost == len(flipped)
    # They were written again.
    found, statistics = read(stream(directory, tmp_path))
    assert_same(found, straight)
    assert statistics.frames_from_cache == statistics.frames_handed_out


RESIZED = (40, 56)
# Sizes of the files of the test dataset -> frames.
LENGTHS_OF = {
    8192 + length * size: length
    for length in LENGTHS
    for size in (64 * 96 * 3, 64 * 80 * 3, 64 * 80 * 4, 40 * 56 * 3, 40 * 56 * 4)
}


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        old = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([old ^ 1 << bit % 8]))


@pytest.mark.parametrize("what", ["cut", "empty", "noise", "zeros", "directory", "pipe", "swapped"])
def test_anything_in_the_place_of_a_file(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path, what: str
) -> None:
    read(stream(directory, tmp_path))
    kept = files_of(tmp_path)
    by_size: dict[int, list[Path]] = {}
    for number, path in enumerate(kept):
        size = path.stat().st_size
        by_size.setdefault(size, []).append(path)
        if what == "cut":
            os.truncate(path, size * (number + 1) // (len(kept) + 1))
        elif what == "empty":
            path.write_bytes(b"")
        elif what == "noise":
            path.write_bytes(random.Random(number).randbytes(size))
        elif what == "zeros":
            path.write_bytes(bytes(size))
        elif what in ("directory", "pipe"):
            path.unlink()
            path.mkdir() if what == "directory" else os.mkfifo(path)
    if what == "swapped":
        pairs = [paths for paths in by_size.values() if len(paths) > 1]
        assert pairs
        for paths in pairs:
            contents = [path.read_bytes() for path in paths]
            for path, other in zip(paths, contents[1:] + contents[:1], strict=True):
                path.write_bytes(other)
    assert_same(read(stream(directory, tmp_path))[0], straight)
    found, statistics = read(stream(directory, tmp_path))
    assert_same(found, straight)
    if what not in ("directory", "pipe"):
        assert statistics.frames_from_cache > statistics.frames_handed_out * 0.9


def test_a_damaged_frame_that_cannot_be_decoded_is_an_error_at_its_example(
    directory: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(directory, copy)
    cache = tmp_path / "frames"
    # So small that many are taken together, also those before the bad one.
    arguments = {
        "features": [AV1, "index"],
        "delta_timestamps": None,
        "shuffle": None,
        "image_size": (16, 24),
    }
    expected, _ = read(stream(copy, cache, **arguments))
    kept = next(path for path in files_of(cache) if path.stat().st_size == 8192 + 33 * 16 * 24 * 3)
    flip(kept, (8192 + 5 * 16 * 24 * 3) * 8)
    # Its coded bytes are gone, in a file that looks the same.
    video = copy / "videos" / AV1 / "chunk-000" / "file-001.mp4"
    status = video.stat()
    whole = video.read_bytes()
    start = whole.index(b"mdat") + 4
    stop = start + int.from_bytes(whole[start - 8 : start - 4]) - 8
    video.write_bytes(whole[:start] + bytes(stop - start) + whole[stop:])
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    bad = sum(LENGTHS[:3]) + 5
    iterator = iter(stream(copy, cache, **arguments))
    found = []
    errors = 0
    while errors < 5:
        try:
            found.append(next(iterator))
        except lg.LeRobotGrainError:
            errors += 1
    assert_same(found, expected[:bad])
    video.write_bytes(whole)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_same([*found, *iterator], expected)


# --- disks that fail -----------------------------------------------------------------------------


class FullDisk:
    """Every write from the n-th on raises ENOSPC; the one before it writes a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = 0
        self.room = 1 << 30
        for name in ("pwrite", "pwritev", "ftruncate"):
            monkeypatch.setattr(os, name, self._limited(name, getattr(os, name)))

    def _limited(self, name: str, function: Any) -> Any:
        def limited(descriptor: int, data: Any, *rest: Any) -> Any:
            self.writes += 1
            if self.writes > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.writes == self.room and name == "pwritev":
                data = [data[0][: len(data[0]) // 2]]
            return function(descriptor, data, *rest)

        return limited


@pytest.mark.parametrize("step", [25, pytest.param(9, marks=pytest.mark.long)])
def test_a_disk_that_is_full_at_every_write(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: int,
) -> None:
    disk = FullDisk(monkeypatch)
    read(stream(directory, tmp_path / "all"))
    total = disk.writes
    assert total > 50
    for room in range(0, total, step):
        cache = tmp_path / str(room)
        disk.writes, disk.room = 0, room
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found, _ = read(stream(directory, cache))
        assert_same(found, straight)
        assert len(caplog.records) == 1
        assert str(cache) in caplog.text
        assert os.strerror(errno.ENOSPC) in caplog.text
        # What was written is good.
        disk.room = 1 << 30
        found, again = read(stream(directory, cache))
        assert_same(found, straight)
        assert room < 10 or again.frames_from_cache > 0
        shutil.rmtree(cache, ignore_errors=True)


def test_a_small_disk_that_fills_up(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # All frames take 26 MB.
    large = {"image_size": (120, 160)}
    expected, _ = read(stream(directory, None, num_epochs=2, **large))
    with mounted(tmp_path / "disk", num_bytes=20 << 20) as disk:
        with caplog.at_level(logging.INFO):
            found, _ = read(stream(directory, disk / "frames", num_epochs=2, **large))
        assert_same(found, expected)
        assert len(caplog.records) == 1
        assert os.strerror(errno.ENOSPC) in caplog.text
        found, statistics = read(stream(directory, disk / "frames", num_epochs=2, **large))
        assert_same(found, expected)
        assert 0 < statistics.frames_from_cache < statistics.frames_handed_out


def test_a_directory_that_cannot_be_made(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        found, statistics = read(stream(directory, tmp_path / "file" / "frames", num_epochs=2))
    assert_same(found[:NUM_ROWS], straight)
    assert statistics.frames_from_cache == 0
    assert len(caplog.records) == 1


def test_a_directory_that_cannot_be_written_is_read(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read(stream(directory, tmp_path))
    kept = files_of(tmp_path)
    kept[0].unlink()
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    found, statistics = read(stream(directory, tmp_path))
    assert_same(found, straight)
    assert 0 < statistics.frames_from_cache < statistics.frames_handed_out
    assert files_of(tmp_path) == kept[1:]


def test_a_directory_that_vanishes_while_it_is_read(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path
) -> None:
    cache = tmp_path / "frames"
    read(stream(directory, cache))
    iterator = iter(stream(directory, cache, num_epochs=3))
    found = [next(iterator) for _ in range(10)]
    shutil.rmtree(cache)
    found += list(iterator)
    assert_same(found[:NUM_ROWS], straight)
    assert len(found) == 3 * NUM_ROWS


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, the disk does not answer."""
    event = threading.Event()
    write = EpisodeFrames.write

    def wait_and_write(*arguments: Any) -> None:
        event.wait()
        write(*arguments)

    monkeypatch.setattr(EpisodeFrames, "write", wait_and_write)
    return event


def test_frames_that_have_to_wait_too_long_are_not_kept(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    release: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that never answers holds up nobody."""
    monkeypatch.setattr(frame_writer, "_CLOSING_SECONDS", 0.0)
    iterator = iter(stream(directory, tmp_path, num_epochs=2))
    found = [next(iterator) for _ in range(2 * NUM_ROWS)]
    release.set()
    iterator.close()
    assert_same(found[:NUM_ROWS], straight)


def test_what_waits_to_be_written_is_not_overwritten(
    directory: Path,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    release: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory for frames is used again and again, but not that of frames that are not written."""
    monkeypatch.setattr(frame_writer, "_CLOSING_SECONDS", 60.0)
    # The first ones can wait, the others are decoded into the memory that is left.
    iterator = iter(stream(directory, tmp_path, memory_bytes=4 << 20))
    found = [next(iterator) for _ in range(NUM_ROWS)]
    release.set()
    iterator.close()
    assert_same(found, straight)
    found, statistics = read(stream(directory, tmp_path))
    assert_same(found, straight)
    assert 0 < statistics.frames_from_cache < statistics.frames_handed_out


# --- several processes ---------------------------------------------------------------------------


def read_on_and_on(pipe: Connection, directory: Path, cache: Path, seed: int, limit: int) -> None:
    """Another process: reads until it is killed."""
    dataset = stream(
        directory,
        cache,
        cache_bytes=limit,
        num_epochs=None,
        shuffle=lg.Shuffle(seed=seed, clip_length=4, num_parts=8, buffer_size=32),
    )
    for number, _ in enumerate(dataset):
        if number == 0:
            pipe.send("reading")


def kill_at_random_moments(
    directory: Path, straight: list[dict[str, Any]], cache: Path, moments: range
) -> None:
    for moment in moments:
        chosen = random.Random(moment)
        # Every other time there is not room for all, so that files are deleted, too.
        limit = ALL_BYTES if moment % 2 else 3 << 20
        if moment % 3 == 0:
            shutil.rmtree(cache, ignore_errors=True)
        started = []
        for seed in range(4):
            ours, theirs = forking().Pipe()
            process = forking().Process(
                target=read_on_and_on, args=(theirs, directory, cache, seed, limit), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        for _, ours in started[:1]:
            assert ours.poll(60)
        time.sleep(chosen.uniform(0, 0.3))  # the random moment
        for process, ours in started:
            process.kill()
            process.join()
            ours.close()
        assert_same(read(stream(directory, cache, cache_bytes=limit))[0], straight)
        # And as the others left it, with nothing that this process knows.
        assert all(path.name.endswith(frame_key.SUFFIX) for path in cache.iterdir())


def test_processes_that_are_killed_leave_good_frames_or_none(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path
) -> None:
    kill_at_random_moments(directory, straight, tmp_path / "frames", range(4))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(4, 104, 25))
def test_processes_that_are_killed_at_100_moments(
    directory: Path, straight: list[dict[str, Any]], tmp_path: Path, first: int
) -> None:
    kill_at_random_moments(directory, straight, tmp_path / "frames", range(first, first + 25))


def test_frames_of_another_process_are_found_while_reading(directory: Path, tmp_path: Path) -> None:
    repository = lg.open_repository(directory)
    pool = DaemonPool(1, "test")
    options = lg.ReadOptions(frame_cache_bytes=ALL_BYTES, frame_cache_directory=tmp_path)
    cache = FrameCache(
        options, MemoryBudget.of(1 << 30, num_cameras=1), fetchers=pool, num_decoders=1
    )
    frames = CameraFrames(
        cache, repository, repository.features[LONG], image_size=None, frame_bytes=64 * 80 * 3
    )
    episodes, numbers = repository.episodes.locate_all(np.arange(NUM_ROWS))
    assert not frames.find(episodes, numbers).any()
    read(stream(directory, tmp_path, features=[LONG], delta_timestamps=None))
    assert not frames.find(episodes, numbers).any(), "a moment ago there was none"
    for episode in range(len(LENGTHS)):
        frames.episode(episode).loaded_at -= 10
    assert frames.find(episodes, numbers).all()
    assert frames.has_all_of(episodes)
    cache.close()
    pool.shutdown()
