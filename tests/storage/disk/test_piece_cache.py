"""Pieces on disk under damage, disturbance and limits: what is read of them is right or absent."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._storage.disk import entry_cache, piece_cache, piece_files
from lerobot_grain._storage.disk.entry_cache import EntryCache
from lerobot_grain._storage.disk.piece_cache import PieceCache
from tests.support.bare_package import BARE_PACKAGE, SOURCE

FILE = ("org/name@1a2b", "1a2b3c", "videos/a.mp4")
CELL = 4 << 20
LIMIT = 1 << 30


@pytest.fixture(autouse=True)
def _first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_cache, "_FAILURES", itertools.count())
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 0)  # whatever the disk of the tests has


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "pieces"


def opened(folder: Path, limit: int = LIMIT) -> PieceCache:
    return PieceCache(str(folder), limit, EntryCache(str(folder.parent / "ranges"), limit // 4))


def contents(file: tuple[str, ...], wanted: ByteRange) -> bytes:
    """Bytes of a file that is told from others, and each place from all others nearby."""
    seed = sum(map(ord, "".join(file)))
    return bytes(
        (position * 2654435761 + (position >> 8) * 40503 + seed) >> 7 & 255
        for position in range(wanted.start, wanted.stop)
    )


def put(cache: PieceCache, file: tuple[str, ...], start: int, length: int) -> None:
    cache.put(file, start, contents(file, ByteRange(start, start + length)))


def found(cache: PieceCache, file: tuple[str, ...], start: int, stop: int) -> set[int]:
    """Returns the positions that are on disk; checks the bytes, and that parts are sorted."""
    positions: list[int] = []
    for part in cache.get(file, ByteRange(start, stop)):
        assert part.payload == contents(file, part.extent)
        positions += range(part.start, part.stop)
    assert positions == sorted(set(positions))
    assert not positions or start <= positions[0] <= positions[-1] < stop
    return set(positions)


def pieces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*/*") if path.is_file())


def disk_bytes(folder: Path) -> int:
    total = 0
    for directory, folders, files in os.walk(folder):
        total += 4096 * len(folders)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += -(-os.stat(os.path.join(directory, name)).st_size // 4096) * 4096
    return total


# --- pieces --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    puts=st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 150_000)), max_size=6),
    gets=st.lists(st.tuples(st.integers(0, 450_000), st.integers(1, 300_000)), max_size=6),
    base=st.sampled_from([0, CELL - 200_000, 7 * CELL]),
)
def test_all_that_was_put_is_found_by_another_object_by_any_range(
    tmp_path_factory: pytest.TempPathFactory,
    puts: list[tuple[int, int]],
    gets: list[tuple[int, int]],
    base: int,
) -> None:
    folder = tmp_path_factory.mktemp("pieces") / "pieces"
    there: set[int] = set()
    for start, length in puts:
        put(opened(folder), FILE, base + start, length)
        there.update(range(base + start, base + start + length))
    for start, length in gets:
        wanted = range(base + start, base + start + length)
        assert found(opened(folder), FILE, wanted.start, wanted.stop) == there & set(wanted)
    shutil.rmtree(folder, ignore_errors=True)


def test_another_file_commit_or_dataset_has_other_bytes(folder: Path) -> None:
    put(opened(folder), FILE, 10, 100)
    for place in range(3):
        other = (*FILE[:place], FILE[place] + "x", *FILE[place + 1 :])
        assert found(opened(folder), other, 0, 1000) == set()
    assert found(opened(folder), ("".join(FILE[:2]), "", FILE[2]), 0, 1000) == set()
    # Names do not tell which files there are.
    assert not [path for path in folder.rglob("*") if "mp4" in path.name or "org" in path.name]
    (about,) = folder.glob("*/about")
    assert about.read_text() == "org/name@1a2b\n"


def test_pieces_of_another_version_are_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(piece_files, "_VERSION", "0")
        put(opened(folder), FILE, 0, 100)
        assert found(opened(folder), FILE, 0, 100) == set(range(100))
    assert found(opened(folder), FILE, 0, 100) == set()


def test_a_file_is_forgotten_and_no_other(folder: Path) -> None:
    cache = opened(folder)
    other = (*FILE[:2], "videos/b.mp4")
    for file in (FILE, other):
        put(cache, file, 0, 1000)
        put(cache, file, CELL - 500, 1000)
    cache.forget(FILE, CELL + 500)
    assert found(cache, FILE, 0, 2 * CELL) == set()
    assert len(found(cache, other, 0, 2 * CELL)) == 2000


def test_switched_off_nothing_is_kept_or_found(folder: Path) -> None:
    put(opened(folder, 0), FILE, 0, 100)
    assert not folder.exists()
    put(opened(folder), FILE, 0, 100)
    assert found(opened(folder, 0), FILE, 0, 100) == set()


# --- damage --------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off in the bytes": lambda data: data[:70_000],
    "cut off in the checksums": lambda data: data[:-20],
    "last byte missing": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "zeros after a crash": lambda data: bytes(len(data)),
    "the first block after the second": lambda data: (
        data[65536:131072] + data[:65536] + data[131072:]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_piece_is_deleted_and_can_be_put_again(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = opened(folder)
    put(cache, FILE, 5, 150_000)
    (path,) = pieces(folder)
    path.write_bytes(damage(path.read_bytes()))
    assert found(cache, FILE, 0, 10) == set()
    assert not path.exists()
    put(cache, FILE, 5, 150_000)
    assert len(found(cache, FILE, 0, 200_000)) == 150_000


def test_a_piece_under_the_name_of_another_is_absent(folder: Path) -> None:
    cache = opened(folder)
    for start in (0, 1000, CELL):
        put(cache, FILE, start, 100)
    first = next(path for path in pieces(folder) if path.name == "0-100")
    for other in ("1000-1100", f"{CELL}-{CELL + 100}"):
        shutil.copy(first, next(path for path in pieces(folder) if path.name == other))
    assert found(cache, FILE, 0, 2 * CELL) == set(range(100))


def test_flipped_bits_are_all_found(folder: Path) -> None:
    """500, each in one of 40 pieces, in bytes and checksums; what comes is right, and without the
    block that differs.
    """
    cache = opened(folder)
    starts = [number * 300_000 for number in range(40)]
    for start in starts:
        put(cache, FILE, start, 2000 if start % 7 else 70_000)
    paths = pieces(folder)
    whole = {path: path.read_bytes() for path in paths}
    draw = random.Random(0)
    for _ in range(500):
        path = draw.choice(paths)
        data = bytearray(whole[path])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        start, stop = map(int, path.name.split("-"))
        assert found(cache, FILE, start, stop) == set()
        assert not path.exists()
        path.write_bytes(whole[path])
    assert len(found(cache, FILE, 0, 40 * 300_000)) == sum(
        len(data) - 16 * -(-len(data) // 65552) for data in whole.values()
    )


def test_a_bit_in_one_block_does_not_matter_to_a_read_of_another(folder: Path) -> None:
    cache = opened(folder)
    put(cache, FILE, 0, 200_000)
    (path,) = pieces(folder)
    data = bytearray(path.read_bytes())
    data[150_000] ^= 1
    path.write_bytes(data)
    assert found(cache, FILE, 1000, 2000) == set(range(1000, 2000))
    assert found(cache, FILE, 149_000, 151_000) == set()


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a directory": Path.mkdir,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
def test_what_is_no_file_is_absent_and_never_waited_for(
    folder: Path, special: Callable[[Path], None]
) -> None:
    cache = opened(folder)
    put(cache, FILE, 0, 100)
    (path,) = pieces(folder)
    path.unlink()
    special(path)
    assert found(cache, FILE, 0, 100) == set()
    put(cache, FILE, 0, 100)
    cache.forget(FILE, 100)
    assert Path("/dev/zero").exists()


# --- the disk ------------------------------------------------------------------------------------


class FullDisk:
    """Opens files for writing of which only the first `room` bytes of all can be written."""

    room = 0

    def __init__(self, path: str, mode: str) -> None:
        self.file: Any = open(path, mode)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def writelines(self, payload: Iterator[bytes]) -> None:
        for data in payload:
            self.file.write(data[: max(0, FullDisk.room)])
            FullDisk.room -= len(data)
            if FullDisk.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, data: str) -> None:
        self.writelines(iter([data.encode()]))


@pytest.mark.parametrize("room", [0, 50, 100, 116, 150])
def test_a_full_disk_is_harmless_and_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    cache = opened(folder)
    put(cache, FILE, 5000, 100)
    with monkeypatch.context() as patch:
        patch.setattr(piece_files, "open", FullDisk, raising=False)
        patch.setattr(FullDisk, "room", room)
        for start in (0, 1000, 2000):
            put(cache, FILE, start, 100)
        expected = set(range(100)) if room >= 116 else set()
        assert found(cache, FILE, 0, 5000) == expected
    assert len(pieces(folder)) == 1 + bool(expected), "nothing half written stays"
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing can be kept in {folder} (No space left on device), so what was read will be "
        "fetched again"
    ]
    put(cache, FILE, 0, 100)
    assert found(cache, FILE, 0, 100) == set(range(100)), "once there is room again"


def test_a_part_of_the_disk_stays_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(piece_cache, "_FREE_SHARE", 1)
    cache = opened(folder)
    folder.mkdir(parents=True)
    put(cache, FILE, 0, 100)
    put(cache, FILE, 100, 100)
    assert found(cache, FILE, 0, 200) == set()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "GB of the disk stay free)" in record.getMessage()


def test_a_read_only_directory_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(opened(folder), FILE, 0, 100)
    put(opened(folder), FILE, 300, 100)
    spoilt = next(path for path in pieces(folder) if path.name == "300-400")
    spoilt.write_bytes(bytes(116))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions would not hold back root, who runs tests in containers.
    for name in ("replace", "utime", "unlink", "rmdir"):
        monkeypatch.setattr(piece_files.os, name, refuse)
    cache = opened(folder)
    put(cache, FILE, 1000, 100)
    put(cache, FILE, 2000, 100)
    cache.forget(FILE, 100)
    assert found(cache, FILE, 0, 5000) == set(range(100))
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing can be kept in {folder} (Read-only file system), so what was read will be "
        "fetched again"
    ]


def test_a_directory_that_vanishes_at_any_step_is_no_trouble(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(folder)
    for name in ("replace", "makedirs", "listdir", "scandir", "statvfs", "pread", "rmdir"):
        original = getattr(os, name)

        def after_deleting(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            shutil.rmtree(folder, ignore_errors=True)
            return original(*args, **kwargs)

        put(cache, FILE, 0, 100)
        with monkeypatch.context() as patch:
            # `shutil.rmtree` uses some of these itself, by descriptors.
            if name in ("scandir", "rmdir", "listdir"):
                patch.setattr(shutil, "rmtree", rename_away)
            patch.setattr(piece_files.os, name, after_deleting)
            put(cache, FILE, 1000, 100)
            found(cache, FILE, 0, 5000)
            cache._look()
            cache.forget(FILE, 100)
    put(cache, FILE, 0, 100)
    assert found(cache, FILE, 0, 100) == set(range(100))
    assert not caplog.records


def rename_away(folder: Path, ignore_errors: bool) -> None:
    assert ignore_errors
    if folder.exists():
        folder.rename(folder.with_name(f"gone {time.monotonic_ns()}"))


# --- the limit -----------------------------------------------------------------------------------


def epoch(folder: Path, limit: int, *, seed: int, files: int = 40) -> set[tuple[int, int]]:
    """Reads all pieces in an order of its own, and puts what is not there; returns what was."""
    cache = opened(folder, limit)
    order = [(number, start) for number in range(files) for start in range(0, 400_000, 50_000)]
    random.Random(seed).shuffle(order)
    there = set()
    for number, start in order:
        file = (*FILE[:2], f"{number}")
        if len(found_fast(cache, file, start)) == 50_000:
            there.add((number, start))
        else:
            cache.put(file, start, payload_of(file, start))
        assert disk_bytes(folder) <= limit if start == 0 and number % 8 == 0 else True
    return there


def payload_of(file: tuple[str, ...], start: int) -> bytes:
    return random.Random(f"{file} {start}").randbytes(50_000)


def found_fast(cache: PieceCache, file: tuple[str, ...], start: int) -> bytes:
    parts = cache.get(file, ByteRange(start, start + 50_000))
    payload = b"".join(part.payload for part in parts)
    assert payload in (b"", payload_of(file, start)) or len(parts) > 1 or len(payload) < 50_000
    return payload


def test_a_fixed_share_is_kept_and_a_larger_limit_keeps_a_superset(tmp_path: Path) -> None:
    """An epoch of 16 MB. What was used longest ago would be needed next, and nothing be found."""
    kept = {}
    for limit in (4_000_000, 8_000_000, 12_000_000):
        folder = tmp_path / str(limit) / "pieces"
        assert epoch(folder, limit, seed=0) == set()
        first = epoch(folder, limit, seed=1)
        assert 0.75 * limit < 50_000 * len(first) < limit
        second = epoch(folder, limit, seed=2)
        # What is written within the last 1/64 of the limit may differ.
        assert len(first ^ second) * 50_000 <= limit / 16
        kept[limit] = first & second
    assert len(kept[4_000_000] - kept[8_000_000]) <= 1
    assert len(kept[8_000_000] - kept[12_000_000]) <= 1
    # And all, where all fits.
    folder = tmp_path / "all" / "pieces"
    epoch(folder, 24_000_000, seed=0)
    assert len(epoch(folder, 24_000_000, seed=1)) == 40 * 8


def test_indices_count(folder: Path) -> None:
    limit = 4_000_000
    indices = EntryCache(str(folder.parent / "ranges"), limit // 4)
    for number in range(20):
        indices.put(FILE, str(number), bytes(45_000))
    epoch(folder, limit, seed=0)
    assert disk_bytes(folder) + disk_bytes(folder.parent / "ranges") <= limit
    assert all(indices.get(FILE, str(number)) is not None for number in range(20))


def test_a_dataset_that_nobody_reads_goes_first(folder: Path) -> None:
    limit = 8_000_000
    old, older, used = ((f"org/{name}@1", "1") for name in ("old", "older", "used"))
    for dataset in (old, older, used):
        cache = opened(folder, limit)
        for start in range(0, 2_000_000, 50_000):
            file = (*dataset, "a")
            cache.put(file, start, payload_of(file, start))
    for about in folder.glob("*/about"):
        days = {"org/old@1": 20, "org/older@1": 30, "org/used@1": 13}[about.read_text().strip()]
        os.utime(about, (time.time() - days * 86400,) * 2)
    cache = opened(folder, limit)
    for start in range(0, 2_000_000, 50_000):
        file = ("org/new@1", "1", "a")
        cache.put(file, start, payload_of(file, start))
    left = {
        name: len(opened(folder, limit).get((f"org/{name}@1", "1", "a"), ByteRange(0, 2_000_000)))
        for name in ("old", "older", "used", "new")
    }
    assert left == {"old": 40, "older": 0, "used": 40, "new": 40}
    assert len(list(folder.iterdir())) == 3
    # Reading counts as use.
    about = next(path for path in folder.glob("*/about") if "used" in path.read_text())
    assert about.stat().st_mtime > time.time() - 60


def test_unfinished_files_count_and_go_when_they_are_old(folder: Path) -> None:
    cache = opened(folder, 1_000_000)
    put(cache, FILE, 0, 100)
    cell = pieces(folder)[0].parent
    new, old = (cell / f"0-200000.{digit * 16}.part" for digit in "01")
    for path in (new, old, cell / "notes", folder / "notes"):
        path.write_bytes(bytes(200_000))
    os.utime(old, (0, 0))
    by_set, _ = cache._count()
    assert not old.exists()
    assert 200_000 <= sum(by_set) < 250_000
    for number in range(40):
        file = (*FILE[:2], str(number))
        cache.put(file, 0, payload_of(file, 0))
    assert (cell / "notes").exists(), "not ours"
    assert (folder / "notes").exists()


def test_what_another_process_writes_in_the_last_cell_keeps_nothing_out(folder: Path) -> None:
    cell = folder / ("0" * 32) / ("f" * 32)
    cell.mkdir(parents=True)
    (cell / f"0-3000000.{'0' * 16}.part").write_bytes(bytes(3_000_000))
    cache = opened(folder, 2_000_000)
    put(cache, FILE, 0, 1000)
    assert found(cache, FILE, 0, 1000) == set(range(1000))


def test_memory_does_not_grow_with_the_cache(folder: Path) -> None:
    """What reading, writing and looking through the directory take at their most."""
    peaks = []
    for files in (100, 2000):
        cache = opened(folder)
        for number in range(files):
            cache.put((*FILE[:2], str(number)), 0, b"x" * 100)
            cache.put((*FILE[:2], str(number)), 200, b"x" * 100)
        tracemalloc.start()
        cache = opened(folder)
        cache._look()
        tight = opened(folder, 4096 * 3 * files // 2)
        tight.put(FILE, 0, b"x")
        for number in range(files):
            cache.get((*FILE[:2], str(number)), ByteRange(0, 100))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 3,800 pieces more; nothing of them is held.
    assert peaks[1] - peaks[0] < 3800 * 8, peaks


# --- several processes ---------------------------------------------------------------------------

_IMPORT = (
    BARE_PACKAGE
    + """
import random
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._storage.disk import piece_cache
from lerobot_grain._storage.disk.entry_cache import EntryCache
piece_cache._FREE_BYTES = 0
folder, limit, draw = sys.argv[2], int(sys.argv[3]), random.Random(int(sys.argv[4]))
cache = piece_cache.PieceCache(
    folder, limit, EntryCache(folder.removesuffix("pieces") + "ranges", limit // 4))
print("ready", flush=True)

def step():
    number, start = draw.randrange(60), draw.randrange(20) * 40000
    file = ("org/%d@1" % (number % 3), "1", str(number))
    whole = random.Random(f"{file}").randbytes(1_000_000)
    length = draw.choice([10, 5000, 150_000])
    for part in cache.get(file, ByteRange(start, start + length)):
        assert part.payload == whole[part.start : part.stop], (file, part.start)
    cache.put(file, start, whole[start : start + length])
    if draw.random() < 0.01:
        cache.forget(file, 1_000_000)
"""
)
_FOREVER = _IMPORT + "while True: step()\n"
_SOME = _IMPORT + "for _ in range(400): step()\n"


def start_worker(code: str, folder: Path, limit: int, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    worker = subprocess.Popen(
        [*command, SOURCE, str(folder), str(limit), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    return worker


def check_all(folder: Path, limit: int) -> int:
    """Checks each byte that is found; returns how many there are."""
    cache = opened(folder, limit)
    total = 0
    for number in range(60):
        file = (f"org/{number % 3}@1", "1", str(number))
        whole = random.Random(f"{file}").randbytes(1_000_000)
        for part in cache.get(file, ByteRange(0, 1_000_000)):
            assert part.payload == whole[part.start : part.stop]
            total += len(part.payload)
    return total


@pytest.mark.timeout(60)
def test_four_processes_keep_to_the_limit(folder: Path) -> None:
    limit = 16_000_000
    workers = [start_worker(_SOME, folder, limit, seed) for seed in range(4)]
    most = 0
    while any(worker.poll() is None for worker in workers):
        most = max(most, disk_bytes(folder))
        time.sleep(0.005)  # the core is theirs
    for worker in workers:
        _, errors = worker.communicate()
        assert (worker.returncode, errors) == (0, b"")
    assert 0.8 * limit < most <= limit
    assert check_all(folder, limit) > 0.5 * limit
    assert not list(folder.rglob("*.part"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "moments", [8, pytest.param(100, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_after_kills_at_random_moments_every_byte_is_right_or_absent(
    folder: Path, moments: int
) -> None:
    limit = 12_000_000
    draw = random.Random(0)
    workers = [start_worker(_FOREVER, folder, limit, seed) for seed in range(4)]
    try:
        for moment in range(moments):
            # Not to wait for anything: to meet the worker at any step.
            time.sleep(draw.random() * 0.1)
            victim = draw.randrange(4)
            assert workers[victim].poll() is None, workers[victim].communicate()[1].decode()
            workers[victim].kill()
            workers[victim].communicate()
            assert workers[victim].returncode == -signal.SIGKILL
            workers[victim] = start_worker(_FOREVER, folder, limit, 100 + moment)
            if moment % 10 == 0:
                check_all(folder, limit)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert check_all(folder, limit) > 0.3 * limit
    # A process after them takes away what they left.
    for path in folder.rglob("*.part"):
        os.utime(path, (0, 0))
    opened(folder, limit)._look()
    assert not list(folder.rglob("*.part"))
    assert disk_bytes(folder) <= limit
