"""The cache on disk: entries under every kind of damage and disturbance, and second starts from
the loopback Hub.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.rows.data_files import open_data_file
from lerobot_grain._repository import metadata
from lerobot_grain._storage.disk import entry_cache
from lerobot_grain._storage.disk.entry_cache import EntryCache
from lerobot_grain._storage.hub.address import disk_cache_directory
from lerobot_grain.testing import Camera, Fault, LoopbackHub, RequestRecord, write_dataset
from tests.support.bare_package import BARE_PACKAGE, SOURCE

FILE = ("org/name@1a2b", "1a2b3c", "videos/a.mp4")
PART = "[0, 100)"
PAYLOAD = bytes(range(256)) * 40
LIMIT = 16 * 64 * 1024
TOP, FRONT = "observation.images.top", "observation.images.front"
# Size of the states of `converted`.
ROWS_BYTES = 1200 * 300 * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b"


@pytest.fixture(autouse=True)
def _first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_cache, "_FAILURES", itertools.count())


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD], ids=len)
def test_what_was_put_is_found_by_another_object(folder: Path, payload: bytes) -> None:
    cache = EntryCache(str(folder), LIMIT)
    assert cache.get(FILE, PART) is None
    cache.put(FILE, PART, payload)
    cache.put(FILE, "size", b"other")
    assert EntryCache(str(folder), LIMIT).get(FILE, PART) == payload
    assert cache.get(FILE, "size") == b"other"
    assert cache.get(FILE, "[0, 101)") is None
    assert cache.get((*FILE[:2], "videos/b.mp4"), PART) is None
    assert cache.get((FILE[0], "another commit", FILE[2]), PART) is None
    # Names tell nothing, not even to what they belong.
    assert all(
        path.name.endswith(".kept") and not {"mp4", "org"} & set(path.name.split("."))
        for path in entries(folder)
    )


def test_texts_of_a_key_do_not_run_together(folder: Path) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(("ab", "c"), PART, PAYLOAD)
    assert cache.get(("a", "bc"), PART) is None


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "within the checksum": lambda data: data[:9],
    "without payload": lambda data: data[:16],
    "last byte missing": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "flipped in the checksum": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "flipped in the middle": lambda data: data[:5000] + bytes([data[5000] ^ 128]) + data[5001:],
    "zeros after a crash": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_absent_and_can_be_put_again(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(FILE, PART, PAYLOAD)
    (path,) = entries(folder)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(FILE, PART) is None
    cache.put(FILE, PART, PAYLOAD)
    assert cache.get(FILE, PART) == PAYLOAD


def test_an_entry_under_the_name_of_another_is_absent(folder: Path) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(FILE, PART, PAYLOAD)
    (path,) = entries(folder)
    cache.put(FILE, "size", b"12345678")
    shutil.copy(path, next(other for other in entries(folder) if other != path))
    assert cache.get(FILE, "size") is None


def test_an_entry_of_another_version_is_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EntryCache(str(folder), LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(entry_cache, "_VERSION", "0")
        cache.put(FILE, PART, PAYLOAD)
        assert cache.get(FILE, PART) == PAYLOAD
    assert cache.get(FILE, PART) is None


def test_a_directory_in_place_of_an_entry_is_harmless(folder: Path) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(FILE, PART, PAYLOAD)
    (path,) = entries(folder)
    path.unlink()
    path.mkdir()
    cache.put(FILE, PART, PAYLOAD)
    cache.forget(FILE)
    assert cache.get(FILE, PART) is None


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # By a relative name, since these have at most 108 bytes.
        made.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
def test_what_is_no_file_is_absent_and_replaced(
    folder: Path, special: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(FILE, PART, PAYLOAD)
    (path,) = entries(folder)
    path.unlink()
    monkeypatch.chdir(folder)
    special(path)
    assert cache.get(FILE, PART) is None
    cache.put(FILE, PART, PAYLOAD)
    assert cache.get(FILE, PART) == PAYLOAD
    assert Path("/dev/zero").exists()


def test_forgetting_a_file_forgets_all_its_parts_and_no_other(folder: Path) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.forget(FILE)
    other = (*FILE[:2], "videos/b.mp4")
    for file, part in [(FILE, PART), (FILE, "size"), (other, PART)]:
        cache.put(file, part, PAYLOAD)
    cache.forget(FILE)
    assert cache.get(FILE, PART) is cache.get(FILE, "size") is None
    assert cache.get(other, PART) == PAYLOAD


def test_switched_off_nothing_is_kept_or_found(folder: Path) -> None:
    off = EntryCache(str(folder), 0)
    off.put(FILE, PART, b"")
    assert not folder.exists()
    EntryCache(str(folder), LIMIT).put(FILE, PART, b"")
    assert off.get(FILE, PART) is None


# --- the limit -----------------------------------------------------------------------------------


def test_an_entry_of_more_than_a_sixteenth_is_not_kept(folder: Path) -> None:
    cache = EntryCache(str(folder), LIMIT)
    cache.put(FILE, "fits", bytes(LIMIT // 16))
    cache.put(FILE, "too large", bytes(LIMIT // 16 + 1))
    assert cache.get(FILE, "fits") == bytes(LIMIT // 16)
    assert cache.get(FILE, "too large") is None


def test_those_used_longest_ago_go(folder: Path) -> None:
    size = 24 * 1024
    writer = EntryCache(str(folder), LIMIT)
    for number in range(60):
        writer.put(FILE, str(number), bytes([number]) * size)
        assert sum(path.stat().st_size for path in entries(folder)) <= LIMIT
        writer.get(FILE, "7")
        # The clock of files is too coarse for a test.
        for path in entries(folder):
            if path.stat().st_mtime > 1e9:
                os.utime(path, (number, number))
    left = [number for number in range(60) if writer.get(FILE, str(number)) is not None]
    assert left[0] == 7
    assert left[1:] == list(range(60 - len(left) + 1, 60))
    assert len(left) > 0.7 * LIMIT / size


def test_the_limit_counts_blocks_and_files_left_by_killed_processes(folder: Path) -> None:
    folder.mkdir(parents=True)
    killed = folder / f"{'0' * 32}-{'1' * 32}.{'2' * 16}.kept"
    killed.write_bytes(b"half")
    os.utime(killed, (0, 0))
    notes = folder / "notes.txt"
    notes.write_bytes(bytes(LIMIT))
    os.utime(notes, (0, 0))
    cache = EntryCache(str(folder), LIMIT)
    for number in range(LIMIT // 4096 + 20):
        cache.put(FILE, str(number), b"tiny")
    assert not killed.exists()
    assert notes.exists(), "not ours"
    assert (15 * LIMIT) // (16 * 4096) - 20 <= len(entries(folder)) - 1 <= LIMIT // 4096


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_harmless_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for cache in [EntryCache(str(tmp_path / "file" / "kept"), LIMIT)] * 2 + [
        EntryCache(str(tmp_path / "file"), LIMIT)
    ]:
        cache.put(FILE, PART, PAYLOAD)
        assert cache.get(FILE, PART) is None
        cache.forget(FILE)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"nothing can be kept in {tmp_path}/file/kept (Not a directory), so what was read will be "
        "fetched again"
    )


class FullDisk:
    """Opens files for writing of which only some bytes can be written."""

    def __init__(self, path: str, mode: str) -> None:
        self.file: Any = open(path, mode)  # noqa: SIM115 (closed by __exit__)
        self.left = 1000 if "x" in mode else 0

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        return bytes(self.file.read(size))

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.left])
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_harmless_and_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EntryCache(str(folder), LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(entry_cache, "open", FullDisk, raising=False)
        cache.put(FILE, "small", b"fits")
        cache.put(FILE, PART, PAYLOAD)
        cache.put(FILE, PART, PAYLOAD)
        assert cache.get(FILE, PART) is None
        assert cache.get(FILE, "small") == b"fits"
    assert len(entries(folder)) == 1, "nothing half written stays"
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing can be kept in {folder} (No space left on device), so what was read will be "
        "fetched again"
    ]
    cache.put(FILE, PART, PAYLOAD)
    assert cache.get(FILE, PART) == PAYLOAD, "once there is room again"


def test_a_read_only_directory_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    EntryCache(str(folder), LIMIT).put(FILE, PART, PAYLOAD)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions would not hold back root, who runs tests in containers.
    for name in ("replace", "utime", "unlink"):
        monkeypatch.setattr(entry_cache.os, name, refuse)
    cache = EntryCache(str(folder), LIMIT)
    assert cache.get(FILE, PART) == PAYLOAD
    cache.put(FILE, "size", b"12345678")
    cache.put(FILE, "size", b"12345678")
    assert cache.get(FILE, "size") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing can be kept in {folder} (Read-only file system), so what was read will be "
        "fetched again"
    ]


def test_a_directory_that_is_deleted_at_that_moment_is_no_trouble(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace = os.replace

    def after_deleting(source: str, target: str) -> None:
        shutil.rmtree(folder)
        replace(source, target)

    cache = EntryCache(str(folder), LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(entry_cache.os, "replace", after_deleting)
        cache.put(FILE, PART, PAYLOAD)
    assert cache.get(FILE, PART) is None
    cache.put(FILE, PART, PAYLOAD)
    assert cache.get(FILE, PART) == PAYLOAD
    assert not caplog.records


_WORKER = (
    BARE_PACKAGE
    + """
import random
from lerobot_grain._storage.disk.entry_cache import EntryCache
cache, seed = EntryCache(sys.argv[2], 1 << 18), int(sys.argv[3])
draw, found = random.Random(seed), 0
for _ in range(1500):
    number = draw.randrange(40)
    payload = b"%d" % number * draw.choice([5000]) if number % 2 else b"%d" % number
    kept = cache.get(("file", str(number % 5)), str(number))
    if kept is None:
        cache.put(("file", str(number % 5)), str(number), payload)
    else:
        assert kept == payload
        found += 1
    if draw.random() < 0.02:
        cache.forget(("file", str(number % 5)))
print(found)
"""
)


@pytest.mark.timeout(60)
def test_several_processes_share_a_directory(folder: Path) -> None:
    command = [
        sys.executable,
        "-I",
        "-W",
        "error",
        "-c",
        _WORKER,
        SOURCE,
        str(folder),
    ]
    workers = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for seed in range(3)
    ]
    while any(worker.poll() is None for worker in workers):
        for path in folder.glob("*0.kept"):
            path.unlink(missing_ok=True)
    for worker in workers:
        output, errors = worker.communicate()
        assert (worker.returncode, errors) == (0, b"")
        assert int(output) > 100
    assert all(path.name.count(".") == 1 for path in entries(folder)), "no unfinished entry is left"


# --- where it is ---------------------------------------------------------------------------------


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", "/home/me/hf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/home/me/hf/hub")
    monkeypatch.delenv("LEROBOT_GRAIN_CACHE")
    assert disk_cache_directory("/home/me/hf/hub") == "/home/me/hf/lerobot_grain"
    assert disk_cache_directory("/scratch/mine") == "/scratch/mine/lerobot_grain"
    monkeypatch.setenv("LEROBOT_GRAIN_CACHE", "")
    assert disk_cache_directory("/home/me/hf/hub") == "/home/me/hf/lerobot_grain"
    monkeypatch.setenv("LEROBOT_GRAIN_CACHE", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disk_cache_directory("/scratch/mine") == f"{tmp_path}/kept"


# --- second starts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, `moov` at the end and at the start, in several files; small row groups."""
    cameras = (
        Camera(key=TOP, height=64, width=96, codec="h264", gop=4),
        Camera(key=FRONT, height=64, width=96, codec="h264", gop=4, moov="start"),
    )
    written = write_dataset(
        tmp_path_factory.mktemp("videos") / "data",
        episode_lengths=[12, 9, 14],
        fps=10,
        cameras=cameras,
        episodes_per_video_file=1,
        episodes_per_data_file=2,
    )
    return written.directory


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One large row group a file, as converted datasets have."""
    return write_dataset(
        tmp_path_factory.mktemp("converted") / "data",
        episode_lengths=[100] * 12,
        cameras=(),
        state_size=300,
        episodes_per_data_file=1,
        row_values=lambda episode, length: {
            "observation.state": np.random.default_rng(episode)
            .standard_normal((length, 300))
            .astype(np.float32)
        },
    ).directory


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"  # what conftest.py says


@pytest.fixture
def start(
    hub: LoopbackHub, tmp_path: Path
) -> Iterator[Callable[..., tuple[list[Any], list[RequestRecord]]]]:
    """Opens a dataset as a new process would, and reads one epoch; gives the examples, and the
    requests for data and video files.
    """

    def run(
        name: str, *, disk_cache_bytes: int = 1 << 30, **arguments: Any
    ) -> tuple[list[Any], list[RequestRecord]]:
        hub.clear_requests()
        repository = lg.open_repository(
            name,
            endpoint=hub.endpoint,
            token="hf_secretsecret",
            cache_dir=tmp_path / "hub",
            storage_options=lg.StorageOptions(disk_cache_bytes=disk_cache_bytes, merge_gap_bytes=0),
        )
        try:
            examples = list(lg.LeRobotIterDataset(repository, num_epochs=1, **arguments))
        finally:
            repository.close()
        return examples, [r for r in hub.requests() if r.file and not r.file.startswith("meta/")]

    hub.add_token("hf_secretsecret")
    yield run
    hub.clear_faults()


def index_requests(requests: list[RequestRecord], directory: Path) -> list[str]:
    """Returns the files of those requests that fetch a byte of a `moov` box or of a footer."""
    found = []
    for request in requests:
        if request.range:
            assert request.file
            data = (directory / request.file).read_bytes()
            begin = data.index(b"moov") - 4 if request.file.endswith(".mp4") else len(data) - 8
            end = (
                begin + int.from_bytes(data[begin : begin + 4])
                if request.file.endswith(".mp4")
                else len(data)
            )
            first, last = map(int, request.range.removeprefix("bytes=").split("-"))
            if first < end and begin <= last:
                found.append(request.file)
    return found


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_second_start_fetches_no_moov_and_no_footer(
    hub: LoopbackHub, directory: Path, start: Any, kept: Path
) -> None:
    hub.add_repository("disk/second", directory, tags=("v3.0",))
    examples, first = start("disk/second")
    assert set(index_requests(first, directory)) == {r.file for r in first}
    again, second = start("disk/second")
    assert_equal(again, examples)
    assert_equal(again, list(lg.LeRobotIterDataset(directory, num_epochs=1)))
    assert index_requests(second, directory) == []
    # Files that are too large to be read whole are still asked for once, because their rows or
    # frames are fetched, and nothing but those.
    assert (
        sum(r.kind == "resolver" for r in second)
        == len({r.file for r in second})
        < len({r.file for r in first})
    )
    assert sum(r.kind == "cdn" for r in first) - sum(r.kind == "cdn" for r in second) >= 8
    for path in entries(kept):
        assert b"hf_secretsecret" not in path.read_bytes()
        assert hub.endpoint.encode() not in path.read_bytes()
        assert "Signature" not in path.name


def test_opening_and_sizes_cost_no_request_on_a_second_start(
    hub: LoopbackHub, directory: Path, start: Any, tmp_path: Path
) -> None:
    hub.add_repository("disk/opening", directory, tags=("v3.0",))
    start("disk/opening")
    hub.clear_requests()
    repository = lg.open_repository(
        "disk/opening", endpoint=hub.endpoint, cache_dir=tmp_path / "hub"
    )
    assert repository.gop_length() == 4
    for path in (*repository.episodes.data.paths, *repository.episodes.videos[TOP].files.paths):
        assert repository.storage.size_bytes(path) == (directory / path).stat().st_size
    repository.close()
    assert {r.kind for r in hub.requests()} == {"api"}


def test_long_footers_and_tables_read_in_ranges_are_kept(
    hub: LoopbackHub, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_dataset(
        tmp_path / "long", episode_lengths=[40, 40], cameras=(), rows_per_row_group=1
    )
    hub.add_repository("disk/long", written.directory)
    monkeypatch.setattr(metadata, "_WHOLE_TABLE_BYTES", 0)
    _, first = start("disk/long")
    assert len(index_requests(first, written.directory)) == 1
    assert [
        r.file for r in hub.requests() if r.kind == "cdn" and r.file and r.file.startswith("meta/")
    ]
    hub.clear_requests()
    repository = lg.open_repository("disk/long", endpoint=hub.endpoint, cache_dir=tmp_path / "hub")
    assert open_data_file(repository, 0).table.metadata.serialized_size > 16 << 10
    repository.close()
    assert {r.kind for r in hub.requests()} == {"api"}


def test_kept_ranges_are_those_asked_for(hub: LoopbackHub, directory: Path, tmp_path: Path) -> None:
    hub.add_repository("disk/ranges", directory)
    path = "data/chunk-000/file-000.parquet"
    data = (directory / path).read_bytes()
    ranges = [
        ByteRange(50, 90),
        ByteRange(0, 7),
        ByteRange(60, 60),
        ByteRange(5, 70),
        ByteRange(0, len(data)),
    ]
    storages = [
        lg.open_repository("disk/ranges", endpoint=hub.endpoint, cache_dir=tmp_path / "hub").storage
        for _ in range(2)
    ]
    for storage in storages:
        hub.clear_requests()
        assert storage.read_ranges(path, ranges, keep=True) == [
            data[r.start : r.stop] for r in ranges
        ]
        with pytest.raises(lg.StorageError, match="the file has only"):
            storage.read_ranges(path, [ByteRange(0, len(data) + 1)], keep=True)
    assert hub.requests() == []
    # An entry that is whole, but not what was asked for.
    kept = storages[0]._disk_cache(path)
    assert kept is not None
    kept.put(path, "[0, 10)", b"too short")
    assert storages[0].read_ranges(path, [ByteRange(0, 10)], keep=True) == [data[:10]]
    for storage in storages:
        storage.close()


def test_another_commit_finds_nothing_of_the_first(
    hub: LoopbackHub, directory: Path, start: Any, tmp_path: Path
) -> None:
    hub.add_repository("disk/moving", directory)
    examples, _ = start("disk/moving")
    other = write_dataset(
        tmp_path / "other",
        episode_lengths=[9, 12, 14],
        fps=10,
        cameras=(
            Camera(key=TOP, height=64, width=96, codec="h264", gop=2),
            Camera(key=FRONT, height=64, width=96, codec="h264", gop=2),
        ),
        episodes_per_video_file=1,
        episodes_per_data_file=2,
        seed=1,
    )
    old = lg.open_repository(
        "disk/moving", endpoint=hub.endpoint, cache_dir=tmp_path / "hub"
    ).commit
    hub.add_commit("disk/moving", other.directory)
    moved, requests = start("disk/moving")
    assert set(index_requests(requests, other.directory)) == {r.file for r in requests}
    assert_equal(moved, list(lg.LeRobotIterDataset(other.directory, num_epochs=1)))
    repository = lg.open_repository(
        "disk/moving", revision=old, endpoint=hub.endpoint, cache_dir=tmp_path / "hub"
    )
    assert_equal(list(lg.LeRobotIterDataset(repository, num_epochs=1)), examples)
    repository.close()


@pytest.mark.parametrize("damage", ["flipped", "cut off", "deleted"])
def test_damaged_entries_change_nothing(
    hub: LoopbackHub, directory: Path, start: Any, kept: Path, damage: str
) -> None:
    name = f"disk/{damage.replace(' ', '-')}"
    hub.add_repository(name, directory)
    examples, first = start(name)
    for path in entries(kept):
        data = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if damage == "flipped" else b""))
    again, second = start(name)
    assert_equal(again, examples)
    assert sorted(index_requests(second, directory)) == sorted(index_requests(first, directory))
    _, third = start(name)
    assert index_requests(third, directory) == []


# The type of the first box of an MP4 file, the last byte of parquet files, the first byte of a row
# group (and of the end of the file that is read for its footer, where it does not matter).
@pytest.mark.parametrize(
    ("file", "offset"),
    [
        (f"videos/{TOP}/chunk-000/file-000.mp4", 5),
        ("meta/tasks.parquet", -1),
        ("data/chunk-000/file-000.parquet", -1),
        ("data/chunk-000/file-001.parquet", 0),
    ],
    ids=["moov", "table", "footer", "rows"],
)
def test_what_was_sent_wrongly_is_fetched_again(
    hub: LoopbackHub,
    converted: Path,
    directory: Path,
    start: Any,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    offset: int,
) -> None:
    monkeypatch.setattr(metadata, "_WHOLE_TABLE_BYTES", 0)
    source = directory if "videos" in file else converted
    name = f"disk/wrong-{file.replace('/', '-')}"
    hub.add_repository(name, source)
    tail_bytes = min((source / file).stat().st_size, 16 << 10)
    hub.add_fault(
        Fault(origin="cdn", path_regex=f"^{file}$", corrupt_at=offset % tail_bytes, times=None)
    )
    with pytest.raises(lg.DatasetFormatError):
        start(name)
    hub.clear_faults()
    again, _ = start(name)
    assert_equal(again, list(lg.LeRobotIterDataset(source, num_epochs=1)))


def test_switched_off_everything_is_fetched_again(
    hub: LoopbackHub, directory: Path, start: Any, kept: Path
) -> None:
    hub.add_repository("disk/off", directory)
    _, first = start("disk/off", disk_cache_bytes=0)
    assert not kept.exists()
    start("disk/off")
    _, again = start("disk/off", disk_cache_bytes=0)
    assert sorted(index_requests(again, directory)) == sorted(index_requests(first, directory))


def test_of_a_directory_nothing_is_kept(converted: Path, kept: Path) -> None:
    assert len(list(lg.LeRobotIterDataset(converted, num_epochs=1))) == 1200
    assert not kept.exists()


def test_of_what_huggingface_hub_has_downloaded_nothing_is_kept(
    hub: LoopbackHub, directory: Path, start: Any, kept: Path, tmp_path: Path
) -> None:
    hub.add_repository("disk/downloaded", directory, tags=("v3.0",))
    huggingface_hub.snapshot_download(
        "disk/downloaded",
        repo_type="dataset",
        revision="v3.0",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "hub",
        token=False,
    )
    examples, requests = start("disk/downloaded")
    assert_equal(examples, list(lg.LeRobotIterDataset(directory, num_epochs=1)))
    assert not [r for r in requests if r.kind == "cdn"]
    assert not (kept / "pieces").exists()
    # Sizes, and what was asked for at opening.
    assert not [path for path in entries(kept) if path.stat().st_size > 2000]


def test_large_row_groups_are_kept(hub: LoopbackHub, converted: Path, start: Any) -> None:
    hub.add_repository("disk/converted", converted)
    examples, first = start("disk/converted")
    assert sum(r.body_bytes_sent for r in first) > ROWS_BYTES
    again, second = start("disk/converted")
    assert second == []
    assert_equal(again, examples)
    # Another selection of columns is other ranges, which are covered.
    fewer, third = start("disk/converted", features=["observation.state"])
    assert third == []
    assert np.array_equal(fewer[0]["observation.state"], examples[0]["observation.state"])


def test_embedded_images_are_kept(hub: LoopbackHub, start: Any, tmp_path: Path) -> None:
    camera = Camera(key=TOP, height=64, width=96, kind="image")
    written = write_dataset(tmp_path / "images", episode_lengths=[30], cameras=(camera,), noise=1.0)
    hub.add_repository("disk/images", written.directory)
    examples, first = start("disk/images")
    assert sum(r.body_bytes_sent for r in first) > 200_000
    again, second = start("disk/images")
    assert second == []
    assert_equal(again, examples)
