"""Streams from the loopback Hub with what was fetched kept on disk: the second epoch, the next run,
no network, other ranges, several datasets, and every kind of damage.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._storage.disk import dataset_cache, entry_cache, piece_cache, piece_files
from lerobot_grain.testing import Camera, Fault, LoopbackHub, RequestRecord, write_dataset
from tests.support.small_disk import mounted
from tests.support.streams import digest, streams_in_process, write_small

TOP, FRONT = "observation.images.top", "observation.images.front"
LENGTHS = [7, 5, 8, 6, 4]
NUM_ROWS = sum(LENGTHS)
# So little that no coded video is kept in memory from one epoch to the next.
BUDGET = 1 << 18
Start = Callable[..., "Run"]


class Run:
    """One opening and some epochs, as a new process would do it.

    Attributes:
      examples: all of them.
      requests: for data and video files, by epoch.
      opening: requests until the first example is asked for.
      statistics: of the whole.
    """

    examples: list[Any]
    requests: list[list[RequestRecord]]
    opening: list[RequestRecord]
    statistics: lg.ReadStatistics

    def paths(self, epoch: int = 0) -> set[str]:
        return {str(record.file) for record in self.requests[epoch]}


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_cache, "_FAILURES", itertools.count())
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 0)  # whatever the disk of the tests has


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = tuple(
        Camera(key=key, height=64, width=96, codec="h264", gop=2) for key in (TOP, FRONT)
    )
    return write_dataset(
        tmp_path_factory.mktemp("cached") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        noise=1.0,
        episodes_per_video_file=3,
        episodes_per_data_file=3,
        rows_per_row_group=5,
    ).directory


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[Any]:
    return list(stream(directory))


@pytest.fixture(scope="module")
def two_epochs(directory: Path) -> list[Any]:
    return list(stream(directory, epochs=2))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"  # what conftest.py says


def stream(repository: Any, *, epochs: int = 1, **arguments: Any) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        repository,
        num_epochs=epochs,
        read_options=lg.ReadOptions(memory_budget_bytes=BUDGET, num_decode_threads=1),
        **({"delta_timestamps": {TOP: [-0.2, 0.0], "action": [0.0, 0.1]}} | arguments),
    )


@pytest.fixture
def start(hub: LoopbackHub, tmp_path: Path) -> Iterator[Start]:
    def run(
        name: str,
        *,
        epochs: int = 1,
        limit: int = 1 << 30,
        gap: int = 0,
        num_rows: int = NUM_ROWS,
        **arguments: Any,
    ) -> Run:
        dataset_cache._caches.cache_clear()  # a new process knows nothing
        hub.clear_requests()
        repository = lg.open_repository(
            name,
            endpoint=hub.endpoint,
            cache_dir=tmp_path / "hub",
            token=arguments.pop("token", None),
            storage_options=lg.StorageOptions(disk_cache_bytes=limit, merge_gap_bytes=gap),
        )
        iterator = iter(stream(repository, epochs=epochs, **arguments))
        done = Run()
        done.opening = hub.requests()
        done.examples, done.requests = [], []
        try:
            for _ in range(epochs):
                hub.clear_requests()
                done.examples += itertools.islice(iterator, num_rows)
                done.requests.append([r for r in hub.requests() if not is_meta(r)])
            done.statistics = lg.read_statistics(iterator)
        finally:
            iterator.close()
            repository.close()
        return done

    yield run
    hub.clear_faults()


def is_meta(record: RequestRecord) -> bool:
    return not record.file or record.file.startswith("meta/")


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def pieces(kept: Path) -> list[Path]:
    return sorted(path for path in kept.glob("pieces/*/*/*") if path.is_file())


# --- what is fetched once ------------------------------------------------------------------------


def test_the_second_epoch_fetches_nothing(
    hub: LoopbackHub, directory: Path, two_epochs: list[Any], start: Start
) -> None:
    hub.add_repository("cached/epochs", directory, tags=("v3.0",))
    run = start("cached/epochs", epochs=2)
    assert_equal(run.examples, two_epochs)
    assert run.requests[0]
    assert run.requests[1] == []
    assert run.statistics.bytes_fetched > 150_000
    assert run.statistics.bytes_from_disk_cache > 100_000
    # Without the cache it does: the memory budget is too small for all.
    off = start("cached/epochs", epochs=2, limit=0)
    assert any(path.endswith(".mp4") for path in off.paths(1))
    assert off.statistics.bytes_from_disk_cache == 0


def test_the_second_run_asks_for_the_commit_only(
    hub: LoopbackHub, directory: Path, expected: list[Any], start: Start
) -> None:
    hub.add_repository("cached/runs", directory, tags=("v3.0",))
    first = start("cached/runs")
    second = start("cached/runs")
    assert_equal(second.examples, expected)
    assert second.requests == [[]]
    assert [record.kind for record in second.opening] == ["api", "api"]
    assert "tree" not in "".join(record.path for record in second.opening)
    assert second.statistics.requests == second.statistics.bytes_fetched == 0
    assert second.statistics.bytes_from_disk_cache > first.statistics.bytes_fetched


def test_other_ranges_are_served_from_the_pieces_that_cover_them(
    hub: LoopbackHub, directory: Path, start: Start
) -> None:
    """Other windows, order, selection, merging of ranges, and whole files."""
    hub.add_repository("cached/ranges", directory)
    start("cached/ranges")
    for arguments in (
        {"shuffle": lg.Shuffle(seed=9, clip_length=3), "gap": 1 << 18},
        {"shuffle": None, "delta_timestamps": {FRONT: [0.0, 0.3]}},
        {"features": [TOP], "delta_timestamps": None, "gap": 1 << 20},
        {"features": ["action"], "delta_timestamps": None},
    ):
        run = start("cached/ranges", **arguments)
        arguments.pop("gap", None)
        assert run.requests == [[]], arguments
        assert_equal(run.examples, list(stream(directory, **arguments)))


def test_only_what_is_missing_is_fetched(hub: LoopbackHub, directory: Path, tmp_path: Path) -> None:
    hub.add_repository("cached/missing", directory)
    path = f"videos/{TOP}/chunk-000/file-000.mp4"
    data = (directory / path).read_bytes()
    storage = lg.open_repository(
        "cached/missing",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "hub",
        storage_options=lg.StorageOptions(merge_gap_bytes=100),
    ).storage

    def read(*ranges: tuple[int, int]) -> list[str]:
        hub.clear_requests()
        found = storage.read_ranges(path, [ByteRange(*each) for each in ranges])
        assert found == [data[start:stop] for start, stop in ranges]
        return [str(r.range) for r in hub.requests() if r.kind == "cdn"]

    assert read((1000, 2000), (5000, 6000)) == ["bytes=1000-1999", "bytes=5000-5999"]
    assert read((1500, 1600), (1000, 2000), (5999, 6000), (7, 7)) == []
    assert read((1900, 2300)) == ["bytes=2000-2299"]
    assert read((500, 7000)) == ["bytes=500-999", "bytes=2300-4999", "bytes=6000-6999"]
    assert read((0, 9000)) == ["bytes=0-499", "bytes=7000-8999"]
    # Over a short gap in one request; what was there is not written again.
    assert read((10_000, 10_010), (10_050, 10_060)) == ["bytes=10000-10059"]
    assert read((9_990, 10_090)) == ["bytes=9990-10089"]
    assert read((9_990, 10_090)) == []
    assert (
        sum(part.stop - part.start for part in map(named, pieces(tmp_path / "kept"))) == 9000 + 100
    )
    storage.close()


def test_depth_video_is_kept_too(hub: LoopbackHub, start: Start, tmp_path: Path) -> None:
    """Depth among color, with windows of both: its coded bytes are found like any others."""
    pytest.importorskip("av")
    depth = "observation.images.depth"
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(
            Camera(key=TOP, height=64, width=96, codec="h264", gop=2),
            Camera(key=depth, height=64, width=80, depth=True, gop=4, b_frames=3, open_gop=True),
        ),
        noise=1.0,
        episodes_per_video_file={TOP: 3, depth: 2},
    ).directory
    hub.add_repository("cached/depth", directory, tags=["v3.0"])
    windows = {TOP: [-0.2, 0.0], depth: [-1.0, 0.0, 0.3]}
    expected = list(stream(directory, delta_timestamps=windows))
    first = start("cached/depth", epochs=2, delta_timestamps=windows)
    assert_equal(first.examples[:NUM_ROWS], expected)
    assert any(depth in path for path in first.paths())
    assert first.requests[1] == []
    second = start("cached/depth", delta_timestamps=windows)
    assert_equal(second.examples, expected)
    assert second.requests == [[]]
    assert second.statistics.bytes_fetched == 0
    # The pieces of depth are needed, and are fetched again where they are damaged.
    for path in pieces(tmp_path / "kept"):
        path.write_bytes(bytes(path.stat().st_size))
    third = start("cached/depth", delta_timestamps=windows)
    assert_equal(third.examples, expected)
    assert any(depth in path for path in third.paths())


def named(path: Path) -> range:
    return range(*map(int, path.name.split("-")))


def test_small_files_of_v21_are_kept(hub: LoopbackHub, start: Start, tmp_path: Path) -> None:
    cameras = (Camera(key=TOP, height=64, width=96, codec="h264"),)
    directory = write_dataset(
        tmp_path / "v21",
        version="v2.1",
        episode_lengths=[30, 24],
        fps=10,
        cameras=cameras,
        noise=1.0,
    ).directory
    hub.add_repository("cached/v21", directory, tags=("v2.1",))
    start("cached/v21", num_rows=30 + 24)
    assert pieces(tmp_path / "kept"), "more than 64 KiB"
    again = start("cached/v21", num_rows=30 + 24)
    assert again.requests == [[]]
    assert [record.kind for record in again.opening] == ["api", "api"]
    assert_equal(again.examples, list(stream(directory)))


# --- without network -----------------------------------------------------------------------------


def test_offline_a_run_whose_bytes_are_there_needs_no_network(
    directory: Path, expected: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "hub"}
    with LoopbackHub() as hub:
        hub.add_repository("cached/offline", directory, tags=("v3.0",))
        arguments["endpoint"] = hub.endpoint
        repository = lg.open_repository("cached/offline", **arguments)
        assert_equal(list(stream(repository)), expected)
        lg.open_repository("cached/offline", revision="main", **arguments).close()
        commit = repository.commit
        repository.close()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "v3.0", "main", commit):
        if revision == "v3.0":
            # It was never asked for by that name.
            with pytest.raises(lg.StorageError, match=r"v3\.0: HF_HUB_OFFLINE=1 and no such snap"):
                lg.open_repository("cached/offline", revision=revision, **arguments)
            continue
        repository = lg.open_repository("cached/offline", revision=revision, **arguments)
        assert repository.commit == commit
        assert_equal(list(stream(repository)), expected)
        # Also in another process.
        assert_equal(list(stream(pickle.loads(pickle.dumps(repository)))), expected)
        repository.close()


def test_offline_what_is_missing_is_named(
    hub: LoopbackHub, directory: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repository("cached/part", directory)
    start("cached/part", episodes=[0, 1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(start("cached/part", episodes=[0, 1]).examples) == sum(LENGTHS[:2])
    with pytest.raises(
        lg.MissingFileError,
        match=r"cached/part@\w{12}: there is no file (data|videos)/\S+ in the cache; with "
        r"HF_HUB_OFFLINE=1 it cannot be fetched, so unset that, or first run hf download",
    ):
        start("cached/part")


def test_offline_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As users set it: in the environment."""
    directory = write_small(tmp_path / "small")
    with LoopbackHub() as hub:
        hub.add_repository("cached/process", directory, tags=("v3.0",))
        arguments = {"endpoint": hub.endpoint, "cache_dir": str(tmp_path / "hub")}
        whole = digest("cached/process", **arguments)
    task = {"repository": "cached/process"} | arguments
    (found,) = streams_in_process([task], {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert found == {"digest": whole}


# --- who may read --------------------------------------------------------------------------------


def test_what_is_kept_of_a_private_dataset_does_not_open_it(
    hub: LoopbackHub, directory: Path, expected: list[Any], start: Start
) -> None:
    hub.add_repository("cached/private", directory, private=True, token="hf_secretsecret")
    start("cached/private", token="hf_secretsecret")
    with pytest.raises(lg.StorageError, match="there is no dataset cached/private"):
        start("cached/private", token=False)
    assert_equal(start("cached/private", token="hf_secretsecret").examples, expected)


# --- another version -----------------------------------------------------------------------------


def test_of_another_commit_nothing_is_used(
    hub: LoopbackHub, directory: Path, start: Start, tmp_path: Path
) -> None:
    hub.add_repository("cached/moving", directory)
    start("cached/moving")
    other = write_dataset(
        tmp_path / "other",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=[Camera(key=key, height=64, width=96, codec="h264", gop=2) for key in (TOP, FRONT)],
        noise=1.0,
        seed=1,
    ).directory
    hub.add_commit("cached/moving", other)
    moved = start("cached/moving")
    assert moved.requests[0]
    assert_equal(moved.examples, list(stream(other)))


# --- damage --------------------------------------------------------------------------------------


def test_flipped_bits_are_found_and_fetched_again(
    hub: LoopbackHub, directory: Path, expected: list[Any], start: Start, kept: Path
) -> None:
    hub.add_repository("cached/flipped", directory)
    first = start("cached/flipped")
    draw = random.Random(0)
    for path in [path for path in kept.rglob("*") if path.is_file() and path.name != "about"]:
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    again = start("cached/flipped")
    assert_equal(again.examples, expected)
    assert again.paths() == first.paths()
    assert start("cached/flipped").requests == [[]]


@pytest.mark.parametrize("where", ["video", "rows"])
def test_what_was_sent_wrongly_and_fails_is_fetched_again(
    hub: LoopbackHub,
    directory: Path,
    expected: list[Any],
    start: Start,
    where: str,
) -> None:
    """Every range is sent with its first byte changed; indices excepted."""
    name = f"cached/sent-{where}"
    hub.add_repository(name, directory)
    # Only what opens the files: their indices are right.
    start(name, features=["action"] if where == "video" else [TOP], delta_timestamps=None)
    hub.add_fault(
        Fault(
            origin="cdn",
            path_regex=r"\.mp4$" if where == "video" else "^data/",
            corrupt_at=2 if where == "video" else 0,
            times=None,
            skip=2,
        )
    )
    with pytest.raises(lg.DatasetFormatError):
        start(name)
    hub.clear_faults()
    # The file that failed is forgotten. Others were sent wrongly, too, and fail at their turn.
    for _ in range(6):
        try:
            again = start(name)
        except lg.DatasetFormatError:
            continue
        break
    assert_equal(again.examples, expected)


class Disk:
    """Stands for `open` and `os.replace` of the caches: of all writes, those from `first` on fail
    with ENOSPC.
    """

    def __init__(self, first: int) -> None:
        self.left = first

    def open(self, path: str, mode: str) -> Any:
        file = builtins.open(path, mode)  # noqa: SIM115 (closed by `_Written`)
        return file if "r" in mode else _Written(self, file)

    def write(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Written:
    def __init__(self, disk: Disk, file: Any) -> None:
        self.disk, self.file = disk, file

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> None:
        self.disk.write()
        self.file.write(data)

    def writelines(self, payload: Any) -> None:
        for data in payload:
            self.write(data)


@pytest.mark.parametrize(
    "first",
    [0, 34, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3, 5, 8, 13, 21, 55))],
)
def test_a_disk_that_fills_up_at_any_write_changes_nothing(
    hub: LoopbackHub,
    directory: Path,
    expected: list[Any],
    two_epochs: list[Any],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    first: int,
) -> None:
    name = f"cached/full-{first}"
    hub.add_repository(name, directory)
    disk = Disk(first)
    with monkeypatch.context() as patch:
        patch.setattr(piece_files, "open", disk.open, raising=False)
        patch.setattr(entry_cache, "open", disk.open, raising=False)
        run = start(name, epochs=2)
    assert disk.left < 0
    assert_equal(run.examples, two_epochs)
    said = [record for record in caplog.records if record.name.startswith("lerobot_grain")]
    assert [record.getMessage().partition("(")[2] for record in said] == [
        "No space left on device), so what was read will be fetched again"
    ]
    assert_equal(start(name).examples, expected)
    assert start(name).requests == [[]]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 9 MiB, more than the disk holds."""
    directory = write_dataset(
        tmp_path_factory.mktemp("large") / "data",
        episode_lengths=[12, 16, 20],
        cameras=(Camera(key=TOP, height=240, width=320, kind="image"),),
        noise=1.0,
        episodes_per_data_file=1,
        rows_per_row_group=2,
    ).directory
    assert sum(path.stat().st_size for path in (directory / "data").rglob("*.parquet")) > 9 << 20
    return directory


@pytest.mark.filterwarnings("ignore:.*row groups that:lerobot_grain.LeRobotGrainWarning")
@pytest.mark.parametrize("free_bytes", [0, 4 << 30], ids=["to the last byte", "a part stays free"])
def test_a_small_disk_that_fills_up(
    hub: LoopbackHub,
    large: Path,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free_bytes: int,
) -> None:
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", free_bytes)
    whole = lg.LeRobotIterDataset(large, num_epochs=2)
    name = f"cached/small-{free_bytes}"
    hub.add_repository(name, large)
    with mounted(tmp_path / "disk", num_bytes=8 << 20) as disk:
        monkeypatch.setenv("LEROBOT_GRAIN_CACHE", str(disk))
        run = start(name, epochs=2, num_rows=48, delta_timestamps=None)
        assert_equal(run.examples, list(whole))
        said = [record for record in caplog.records if record.name.startswith("lerobot_grain")]
        assert len(said) == 1
        assert "so what was read will be fetched again" in said[0].getMessage()
        # What was kept is used.
        again = start(name, num_rows=48, delta_timestamps=None)
        assert_equal(again.examples, run.examples[:48])
        assert again.statistics.bytes_from_disk_cache > 4 << 20


# --- several datasets, and the limit -------------------------------------------------------------


def test_several_datasets_share_a_limit_that_does_not_hold_them(
    hub: LoopbackHub, start: Start, kept: Path, tmp_path: Path
) -> None:
    # Several times what the folders themselves take.
    directory = write_dataset(
        tmp_path / "large",
        episode_lengths=LENGTHS,
        cameras=(Camera(key=TOP, height=144, width=192, codec="h264", gop=2),),
        noise=1.0,
        episodes_per_video_file=3,
    ).directory
    expected = list(stream(directory, delta_timestamps=None))
    names = [f"cached/several-{number}" for number in range(3)]
    for name in names:
        hub.add_repository(name, directory)
    whole = start(names[0], delta_timestamps=None)
    once = sum(record.body_bytes_sent for record in whole.requests[0])
    limit = 2 * once
    for _ in range(3):
        fetched = 0
        for name in names:
            run = start(name, limit=limit, delta_timestamps=None)
            assert_equal(run.examples, expected)
            fetched += sum(record.body_bytes_sent for record in run.requests[0])
            assert bytes_under(kept) <= limit
    # A share of half or more is found, and not nothing.
    assert 0.1 * once < fetched < 2.0 * once


def bytes_under(folder: Path) -> int:
    total = 0
    for directory, folders, files in os.walk(folder):
        total += 4096 * len(folders)
        for name in files:
            total += -(-os.stat(os.path.join(directory, name)).st_size // 4096) * 4096
    return total
