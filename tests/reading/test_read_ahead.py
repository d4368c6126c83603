"""The reader under disorder: tasks that end in any order, small budgets, errors in the middle, and
what is left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.frames import frame_reader, gop_decoder, gop_fetcher
from lerobot_grain._reading.frames.decoding import LongGopDecoder
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._storage.base import Storage
from lerobot_grain.testing import Camera, WrittenDataset, read_barcodes, write_dataset

AV1, H264, LONG, HEVC = (f"observation.images.{name}" for name in ("av1", "h264", "long", "hevc"))
LENGTHS = [40, 7, 1, 33, 24]
NUM_ROWS = sum(LENGTHS)
WINDOWS = {AV1: [-0.5, 0.0, 0.1], H264: [0.0, 3.0], HEVC: [-1.0, 0.0], "action": [0.0, 0.1]}
SHUFFLE = lg.Shuffle(seed=3, clip_length=4, num_parts=8, buffer_size=32)
# An example of all cameras with these windows takes 138 kB, and 158 kB of budget; everything is
# decoded again and again.
SMALL_BYTES = 1 << 18
BUDGETS = {"large": 3 << 29, "medium": 16 << 20, "small": SMALL_BYTES}
# Of their combinations with numbers of threads, these always run.
ALWAYS = [(1, "large"), (2, "medium"), (2, "small"), (8, "small")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=AV1, height=64, width=96, gop=2),
        Camera(key=H264, height=64, width=80, codec="h264", gop=30, b_frames=2),
        Camera(key=LONG, height=64, width=80, codec="h264", gop=250),
        Camera(key=HEVC, height=64, width=96, codec="hevc", gop=8, b_frames=3, open_gop=True),
    )
    return write_dataset(
        tmp_path_factory.mktemp("reading") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        episodes_per_video_file={AV1: 2, H264: 3, LONG: 5, HEVC: 1},
        episodes_per_data_file=2,
        rows_per_row_group=16,
    )


@pytest.fixture(scope="module")
def straight(written: WrittenDataset) -> list[dict[str, Any]]:
    """The undisturbed stream of two epochs."""
    return list(
        lg.LeRobotIterDataset(
            written.directory, shuffle=SHUFFLE, num_epochs=2, delta_timestamps=WINDOWS
        )
    )


def read(directory: Path, **arguments: Any) -> lg.LeRobotIterDataset:
    chosen: dict[str, Any] = {
        "shuffle": SHUFFLE,
        "num_epochs": 2,
        "delta_timestamps": WINDOWS,
    } | arguments
    return lg.LeRobotIterDataset(directory, **chosen)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key


def assert_same_batch(batch: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    assert set(batch) == set(examples[0])
    for key, values in batch.items():
        assert np.array_equal(values, np.stack([example[key] for example in examples])), key


class Delays:
    """Every fetch and every decode ends 0 to 5 ms late, so that they end in any order;
    counts them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self._random, self._lock = random.Random(1), threading.Lock()
        monkeypatch.setattr(Storage, "read_ranges", self._late("fetch", Storage.read_ranges))
        monkeypatch.setattr(
            gop_decoder, "decode_jobs", self._late("group", gop_decoder.decode_jobs)
        )
        monkeypatch.setattr(LongGopDecoder, "decode", self._late("piece", LongGopDecoder.decode))

    def _late(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def late(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
                seconds = self._random.uniform(0, 0.005)
            time.sleep(seconds)
            return function(*arguments, **options)

        return late


# --- order ---------------------------------------------------------------------------------------


def test_the_undisturbed_stream_has_every_row_and_its_frames(
    straight: list[dict[str, Any]],
) -> None:
    for epoch in (straight[:NUM_ROWS], straight[NUM_ROWS:]):
        assert sorted(int(example["index"]) for example in epoch) == list(range(NUM_ROWS))
    for example in straight:
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        for number, key in enumerate((AV1, H264, LONG, HEVC)):
            wanted = [
                min(max(frame + round(10 * delta), 0), LENGTHS[episode] - 1)
                for delta in WINDOWS.get(key, [0.0])
            ]
            frames = example[key] if key in WINDOWS else example[key][None]
            assert read_barcodes(frames).tolist() == [[episode, f, number] for f in wanted]


@pytest.mark.parametrize(
    ("num_threads", "budget_bytes"),
    [
        pytest.param(
            num_threads,
            budget_bytes,
            marks=() if (num_threads, size) in ALWAYS else pytest.mark.long,
            id=f"{num_threads}-{size}",
        )
        for num_threads in (1, 2, 8)
        for size, budget_bytes in BUDGETS.items()
    ],
)
def test_the_order_in_which_tasks_end_does_not_matter(
    written: WrittenDataset,
    straight: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    num_threads: int,
    budget_bytes: int,
) -> None:
    """Whole GOPs in groups, long ones in pieces, and with hardly any budget all of them again and
    again.
    """
    delays = Delays(monkeypatch)
    options = lg.ReadOptions(memory_budget_bytes=budget_bytes, num_decode_threads=num_threads)
    dataset = read(written.directory, read_options=options)
    is_small = budget_bytes == SMALL_BYTES
    expected = straight[:48] if is_small else straight
    iterator, batches = iter(dataset), iter(dataset.batch(24))
    for example in expected:
        assert_same(next(iterator), example)
    statistics = lg.read_statistics(iterator)
    assert (statistics.gops_decoded_again > statistics.gops_decoded // 2) == is_small, (
        "the small budget is to be too small for all"
    )
    assert delays.calls["fetch"] > 0
    assert delays.calls["group"] > 0
    assert (delays.calls["piece"] > 0) == (budget_bytes < 3 << 29)
    for number in range(0, len(expected), 24):
        assert_same_batch(next(batches), expected[number : number + 24])
    for rest in () if is_small else (iterator, batches):
        with pytest.raises(StopIteration):
            next(rest)
    iterator.close()
    batches.close()


@pytest.mark.parametrize("budget_bytes", [3 << 29, SMALL_BYTES], ids=["large", "small"])
def test_seeking_drops_what_was_begun_and_goes_on_exactly(
    written: WrittenDataset,
    straight: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    budget_bytes: int,
) -> None:
    dataset = read(written.directory, read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes))
    iterator, batches = iter(dataset), iter(dataset.batch(7))
    begin = iterator.get_state()
    Delays(monkeypatch)
    for position in (100, 3, 2 * NUM_ROWS - 9, 101, 0, NUM_ROWS - 4, NUM_ROWS):
        state = {**begin, "position": position}
        iterator.set_state(state)
        assert iterator.get_state() == state
        for number in range(position, position + 5):
            assert_same(next(iterator), straight[number])
            assert iterator.get_state() == {**begin, "position": number + 1}
        batches.set_state(state)
        assert_same_batch(next(batches), straight[position : position + 7])
        assert batches.get_state() == {**begin, "position": position + 7}
    iterator.set_state({**begin, "position": 2 * NUM_ROWS})
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.set_state(begin)
    assert_same(next(iterator), straight[0])
    iterator.close()
    batches.close()


# --- bytes ---------------------------------------------------------------------------------------


def test_small_video_is_fetched_once_for_all_epochs(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one request for each file, or for each episode where a request is said to cost nothing;
    with a budget that does not hold it, in
    one for each clip and epoch.

    The last file of one camera has one episode: it is read whole when it is opened.
    """
    ranges: list[tuple[str, ByteRange]] = []
    read_range = gop_fetcher._read_range

    def record(storage: Storage, path: str, wanted: ByteRange) -> bytes:
        ranges.append((path, wanted))
        return read_range(storage, path, wanted)

    monkeypatch.setattr(gop_fetcher, "_read_range", record)
    counts = []
    for budget_bytes, gap_bytes in ((3 << 29, 256 << 10), (3 << 29, 0), (1 << 18, 256 << 10)):
        storage = lg.StorageOptions(merge_gap_bytes=gap_bytes)
        dataset = read(
            written.directory,
            num_epochs=3,
            features=["index", AV1, H264],
            delta_timestamps=None,
            read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes, storage=storage),
        )
        assert sum(1 for _ in dataset) == 3 * NUM_ROWS
        counts.append((len(ranges), len(set(ranges))))
        ranges.clear()
    assert counts[:2] == [(4, 4), (2 * len(LENGTHS) - 1, 2 * len(LENGTHS) - 1)]
    assert counts[2][0] > 2 * counts[1][0]


# --- errors --------------------------------------------------------------------------------------


def overwrite(path: Path, start: int, stop: int) -> None:
    data = bytearray(path.read_bytes())
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def video_path(repository: lg.Repository, camera: str, episode: int) -> str:
    files = repository.episodes.videos[camera].files
    return str(files.paths[files.file_of_episode.item(episode)])


def damage_gop(
    repository: lg.Repository, directory: Path, camera: str, episode: int, frame: int
) -> set[int]:
    """Damages the GOP of a frame of the first episode of a video file; returns the frames of the
    episode that are lost.
    """
    path = video_path(repository, camera, episode)
    table = sample_table(repository.storage, path)
    gop = int(np.searchsorted(table.key_samples, frame, side="right")) - 1
    bounds = [*table.key_samples.tolist(), table.num_frames]
    for sample in range(bounds[gop], bounds[gop + 1]):
        overwrite(
            directory / path,
            int(table.offsets[sample]),
            int(table.offsets[sample] + table.sizes[sample]),
        )
    return set(range(bounds[gop], bounds[gop + 1]))


def damage_row_group(repository: lg.Repository, directory: Path, file: int, group: int) -> range:
    """Damages a row group of a data file; returns the rows of the file that are lost."""
    path = directory / repository.episodes.data.paths[file]
    metadata = pq.ParquetFile(path).metadata
    column = metadata.row_group(group).column(metadata.schema.names.index("timestamp"))
    start = column.dictionary_page_offset or column.data_page_offset
    overwrite(path, start, start + column.total_compressed_size)
    first = sum(metadata.row_group(number).num_rows for number in range(group))
    return range(first, first + metadata.row_group(group).num_rows)


ERRORS = {
    "GOP": (
        lg.DatasetFormatError,
        r"videos/observation.images.av1/chunk-000/file-001.mp4: episode 3, camera "
        r"observation.images.av1, GOP \d+",
    ),
    "long GOP": (
        lg.DatasetFormatError,
        r"videos/observation.images.h264/chunk-000/file-001.mp4: episode 3, camera "
        r"observation.images.h264, GOP 0",
    ),
    "missing video": (
        lg.MissingFileError,
        r"there is no file videos/observation.images.hevc/chunk-000/file-003.mp4",
    ),
    "data file": (lg.DatasetFormatError, r"data/chunk-000/file-001.parquet"),
    "missing data file": (lg.MissingFileError, r"there is no file data/chunk-000/file-001.parquet"),
    "row group": (lg.DatasetFormatError, r"data/chunk-000/file-001.parquet, row group 1"),
    "two row groups": (
        lg.DatasetFormatError,
        r"data/chunk-000/file-00[01].parquet, row group [12]",
    ),
}


def break_something(
    repository: lg.Repository, directory: Path, name: str
) -> Callable[[dict[str, Any]], bool]:
    """Damages a copy of the dataset; returns whether an example needs what is lost.

    Episode 3 is in each of the damaged files.
    """
    starts = np.cumsum(LENGTHS) - LENGTHS

    def needs_row(example: dict[str, Any], rows: range) -> bool:
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        window = {min(frame + offset, LENGTHS[episode] - 1) for offset in (0, 1)}  # of the action
        return any(int(starts[episode] - starts[2]) + f in rows for f in window) and episode in (
            2,
            3,
        )

    if name == "GOP":
        # The file has episodes 2 (one frame) and 3; an even frame of the file begins a GOP of 3.
        lost = damage_gop(repository, directory, AV1, 3, 17)
        return lambda example: (
            example["episode_index"] == 3
            and any(min(max(example["frame_index"] + d, 0), 32) + 1 in lost for d in (-5, 0, 1))
        )
    if name == "long GOP":
        damage_gop(repository, directory, H264, 3, 0)
        return lambda example: example["episode_index"] == 3 and example["frame_index"] < 30
    if name == "missing video":
        (directory / video_path(repository, HEVC, 3)).unlink()
        return lambda example: bool(example["episode_index"] == 3)
    path = directory / repository.episodes.data.paths[1]
    if name == "row group":
        rows = damage_row_group(repository, directory, 1, 1)
        return lambda example: needs_row(example, rows)
    if name == "two row groups":
        rows = damage_row_group(repository, directory, 1, 1)
        others = damage_row_group(repository, directory, 0, 2)
        return lambda example: (
            needs_row(example, rows)
            or (
                example["episode_index"] < 2
                and any(
                    min(example["index"] + k, 39 if example["index"] < 40 else 46) in others
                    for k in (0, 1)
                )
            )
        )
    if name == "missing data file":
        path.unlink()
    else:
        path.write_bytes(b"PAR1 nothing of use PAR1")
    return lambda example: example["episode_index"] in (2, 3)


# With hardly any budget, one kind of a video's and one of a table's always; the whole table is
# `long`.
ALWAYS_SMALL = ("GOP", "row group")


@pytest.mark.parametrize(
    ("name", "budget_bytes"),
    [
        *(pytest.param(name, BUDGETS["large"], id=f"{name}-large") for name in ERRORS),
        *(
            pytest.param(
                name,
                SMALL_BYTES,
                marks=() if name in ALWAYS_SMALL else pytest.mark.long,
                id=f"{name}-small",
            )
            for name in ERRORS
        ),
    ],
)
def test_an_error_comes_behind_the_examples_that_do_not_need_what_failed(
    written: WrittenDataset,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    name: str,
    budget_bytes: int,
) -> None:
    directory = tmp_path / "data"
    shutil.copytree(written.directory, directory)
    repository = lg.open_repository(directory)
    needs = break_something(repository, directory, name)
    first = next(number for number, example in enumerate(straight) if needs(example))
    assert first > 0
    error, text = ERRORS[name]
    threads_before = own_threads()
    dataset = read(repository, read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes))
    begin = iter(dataset).get_state()

    single = iter(dataset)
    for example in straight[:first]:
        assert_same(next(single), example)
    batch_size = 3
    whole = first // batch_size * batch_size
    batched = iter(dataset.batch(batch_size))
    for number in range(0, whole, batch_size):
        assert_same_batch(next(batched), straight[number : number + batch_size])
    assert own_threads() - threads_before
    files = num_open_files()
    for iterator, position in ((single, first), (batched, whole)):
        for _ in range(2):  # it stays an error
            with pytest.raises(error, match=text):
                next(iterator)
            assert iterator.get_state() == {**begin, "position": position}
    assert own_threads() <= threads_before
    assert num_open_files() <= files

    shutil.rmtree(directory)
    shutil.copytree(written.directory, directory)
    restored = iter(read(directory))
    restored.set_state(single.get_state())
    for iterator in (single, restored):
        for example in straight[first : first + 5]:
            assert_same(next(iterator), example)
        iterator.close()
    assert_same_batch(next(batched), straight[whole : whole + batch_size])
    batched.close()


def test_a_budget_that_does_not_hold_one_example_says_what_is_needed(
    written: WrittenDataset, straight: list[dict[str, Any]]
) -> None:
    def read_first(budget_bytes: int, batch_size: int | None) -> Any:
        dataset = read(
            written.directory, read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes)
        )
        iterator = iter(dataset if batch_size is None else dataset.batch(batch_size))
        try:
            return next(iterator)
        finally:
            iterator.close()

    for batch_size in (None, 4):
        with pytest.raises(lg.InvalidRequestError) as caught:
            read_first(1000, batch_size)
        pattern = (
            r"ReadOptions\(memory_budget_bytes=1000\): the camera frames of one example "
            r"take (\d+) bytes; expected at least (\d+)"
        )
        match = re.fullmatch(pattern, str(caught.value))
        assert match is not None
        frame_bytes, needed = map(int, match.groups())
        assert frame_bytes == sum(straight[0][key].nbytes for key in (AV1, H264, LONG, HEVC))
        with pytest.raises(lg.InvalidRequestError, match=f"expected at least {needed}"):
            read_first(needed - 2, batch_size)  # 1 less may do, by rounding
    assert_same(read_first(needed, None), straight[0])
    assert_same_batch(read_first(needed, 4), straight[:4])


# --- what is left behind -------------------------------------------------------------------------


def own_threads() -> set[threading.Thread]:
    """Returns the threads of all readers; other tests may have left some to the garbage
    collector.
    """
    return {thread for thread in threading.enumerate() if thread.name.startswith("lerobot_grain")}


def num_open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        pytest.skip("open files cannot be counted on this system")


@pytest.mark.parametrize("budget_bytes", [3 << 29, SMALL_BYTES], ids=["large", "small"])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_closing_in_the_middle_leaves_no_thread_and_no_file(
    written: WrittenDataset,
    monkeypatch: pytest.MonkeyPatch,
    budget_bytes: int,
    batch_size: int | None,
) -> None:
    Delays(monkeypatch)
    threads_before, files_before = own_threads(), num_open_files()
    for num_taken in (1, 2, 5):
        dataset = read(
            written.directory, read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes)
        )
        iterator = iter(dataset if batch_size is None else dataset.batch(batch_size))
        for _ in range(num_taken):
            next(iterator)
        assert own_threads() - threads_before
        iterator.close()
        assert own_threads() <= threads_before
        assert num_open_files() <= files_before
        with pytest.raises(ValueError, match="closed"):
            next(iterator)


@pytest.mark.parametrize(
    ("batch_size", "budget_bytes"),
    [
        pytest.param(None, 3 << 29, id="None-large"),
        pytest.param(None, 1 << 20, id="None-medium", marks=pytest.mark.long),
        pytest.param(None, SMALL_BYTES, id="None-small"),
        pytest.param(10, 3 << 29, id="10-large", marks=pytest.mark.long),
        pytest.param(10, 1 << 20, id="10-medium"),
        pytest.param(10, SMALL_BYTES, id="10-small", marks=pytest.mark.long),
    ],
)
def test_everything_is_given_back_at_the_end_of_the_stream(
    written: WrittenDataset, budget_bytes: int, batch_size: int | None
) -> None:
    dataset = read(
        written.directory,
        num_epochs=1,
        read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
    )
    single = iterator = iter(dataset)
    if batch_size is not None:
        iterator = iter(dataset.batch(batch_size))
        single = iterator._parent
    for _ in range(-(-NUM_ROWS // (batch_size or 1))):
        next(iterator)
    ahead = single._stream._ahead
    assert ahead.is_empty
    assert (ahead._num_pending, ahead._num_fetched, ahead._num_decoded) == (0, 0, 0)
    frames = ahead._frames
    assert frames.coded_bytes == 0
    assert frames.used_bytes == frames._files.total + sum(
        camera._fetcher.kept_bytes for camera in frames._cameras.values()
    )
    for camera in frames._cameras.values():
        assert (camera.coded_bytes, camera._gops.decoders.used_bytes, camera.store.num_used) == (
            0,
            0,
            0,
        )
        assert (
            camera.demand._pages,
            camera._gops.decoders._by_gop,
            camera._problems_of_entries,
            camera.decoder._problems,
        ) == ({}, {}, {}, {})
        assert all(coded.run.is_kept for coded in camera._fetcher.gops.values())
        assert bool(camera._fetcher.gops) == (camera._fetcher.kept_bytes > 0)
        assert camera._fetcher.kept_bytes == 0 or budget_bytes > SMALL_BYTES
        # Small files of one episode are kept as files.
        has_others = (
            len(camera._episodes.videos[camera._camera].files.paths) < camera._episodes.num_episodes
        )
        assert camera._fetcher.kept_bytes > 0 or not has_others or budget_bytes < 3 << 29
        assert all(task.decoded.done() for task in camera.decoder._tasks.values())
        assert camera.decoder._tasks == {}
        assert sorted(camera.store._free.tolist()) == list(range(len(camera.store.frames)))
    assert len(single._stream._pulled) == 1
    iterator.close()


# --- many threads --------------------------------------------------------------------------------


def test_frames_that_are_needed_first_are_decoded_first_of_all_cameras(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of all cameras are started in the order of their first use."""
    started: list[tuple[int, int]] = []  # block, first use
    original = frame_reader.FrameReader.decode

    def decode(self: Any, *given_to_it: Any, **arguments: Any) -> Any:
        block = len(started)

        def note(task: Any) -> Any:
            def start() -> Any:
                started.append((block, task.first_use))
                return task.start()

            return task._replace(start=start)

        tasks_of = gop_decoder.GopDecoder.tasks

        def tasks(decoder: Any, wanted: Any, **given: Any) -> list[Any]:
            return [note(task) for task in tasks_of(decoder, wanted, **given)]

        with monkeypatch.context() as patch:
            patch.setattr(gop_decoder.GopDecoder, "tasks", tasks)
            return original(self, *given_to_it, **arguments)

    monkeypatch.setattr(frame_reader.FrameReader, "decode", decode)
    # Small tasks: the more threads, the more of them.
    options = lg.ReadOptions(num_decode_threads=64)
    monkeypatch.setattr(gop_decoder, "_SECONDS_PER_PIXEL", 1.0)
    with contextlib.closing(iter(read(written.directory, read_options=options))) as stream:
        next(stream)
    assert len({first_use for _, first_use in started}) > 8
    assert started == sorted(started)


def test_tasks_are_sized_by_time(written: WrittenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower frames are, the fewer are decoded in a task, but never none."""
    sizes: list[int] = []
    original = gop_decoder.decode_groups

    def decode_groups(gops: Any, *, max_pictures: int) -> Any:
        sizes.append(max_pictures)
        return original(gops, max_pictures=max_pictures)

    monkeypatch.setattr(gop_decoder, "decode_groups", decode_groups)
    found = []
    for seconds in (1e-9, 1e-6, 1.0):
        sizes.clear()
        monkeypatch.setattr(gop_decoder, "_SECONDS_PER_PIXEL", seconds)
        monkeypatch.setattr(gop_decoder, "_NEWEST_PART", 0.0)
        options = lg.ReadOptions(num_decode_threads=64)
        with contextlib.closing(iter(read(written.directory, read_options=options))) as stream:
            next(stream)
        found.append(max(sizes))
    assert found[0] > 64 > found[1] >= found[2] >= 1


def test_a_budget_that_is_too_small_for_the_threads_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = lg.ReadOptions(memory_budget_bytes=100 << 20, num_decode_threads=64)
    context = ReadContext(options, num_cameras=1)
    try:
        for _ in range(100):
            context.note_shortage(70 << 20)
    finally:
        context.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the memory budget of 100 MiB does not keep 64 decode threads busy; "
        "ReadOptions(memory_budget_bytes=192 << 20) would, or fewer threads with "
        "num_decode_threads="
    ]
