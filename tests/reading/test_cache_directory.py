"""Which files a directory keeps, against sorted lists."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lerobot_grain._reading.frame_cache import cache_directory
from lerobot_grain._reading.frame_cache.cache_directory import CacheDirectory, directory_of


def add(directory: CacheDirectory, name: str, size: int) -> bool:
    """Adds a file as writing frames does."""
    if not directory.may_keep(name) or not directory.keep(name, size):
        return False
    with open(os.path.join(directory.path, name), "ab") as file:
        file.truncate(size)
    return True


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def lowest(sizes: dict[str, int], limit: int) -> list[str]:
    """Returns the files in the order of their names, until one does not fit."""
    kept: list[str] = []
    for name in sorted(sizes):
        if sum(sizes[each] for each in kept) + sizes[name] > limit:
            break
        kept.append(name)
    return kept


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    limit=st.integers(30, 200),
    seed=st.integers(0, 99),
)
def test_after_two_epochs_in_any_order_the_lowest_ranks_are_kept(
    tmp_path: Path, sizes: list[int], limit: int, seed: int
) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    files = {f"{number:02}.frames": size for number, size in enumerate(sizes)}
    directory = CacheDirectory(str(tmp_path), limit)
    chosen = random.Random(seed)
    for _ in range(2):
        for name in chosen.sample(sorted(files), len(files)):
            add(directory, name, files[name])
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert names(tmp_path) == lowest(files, limit)


def test_more_bytes_keep_the_same_files_and_others(tmp_path: Path) -> None:
    files = {f"{number:02}.frames": 1 + number * 7 % 5 for number in range(40)}
    before: set[str] = set()
    for limit in range(10, 130, 7):
        path = tmp_path / str(limit)
        path.mkdir()
        directory = CacheDirectory(str(path), limit)
        for name in [*reversed(files), *files]:
            add(directory, name, files[name])
        assert before <= set(names(path))
        before = set(names(path))
    assert len(before) == 40


def test_a_file_that_is_larger_than_all_is_left_out(tmp_path: Path) -> None:
    directory = CacheDirectory(str(tmp_path), 10)
    assert not add(directory, "0.frames", 11)
    assert add(directory, "1.frames", 10)


def test_what_others_write_and_delete_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_directory, "_LOOK_SECONDS", 0.0)
    one, other = (CacheDirectory(str(tmp_path), 20) for _ in range(2))
    assert add(one, "5.frames", 10)
    assert add(other, "6.frames", 10)
    assert add(one, "3.frames", 10)
    assert names(tmp_path) == ["3.frames", "5.frames"]
    assert add(other, "4.frames", 10)
    assert names(tmp_path) == ["3.frames", "4.frames"]
    assert {"6.frames"} <= one.deleted
    assert not add(one, "5.frames", 10)
    assert "5.frames" in one.deleted
    (tmp_path / "3.frames").unlink()
    assert add(one, "4.frames", 10)  # looks, and finds room
    assert add(one, "5.frames", 10)


def test_a_file_that_is_written_after_it_had_to_go_does_not_stay(tmp_path: Path) -> None:
    directory = CacheDirectory(str(tmp_path), 15)
    assert directory.keep("5.frames", 10)
    assert directory.keep("4.frames", 10)  # by another thread, before the first was written
    for name in ("4.frames", "5.frames"):
        (tmp_path / name).write_bytes(bytes(10))
        directory.settle(name, 10)
    assert names(tmp_path) == ["4.frames"]
    assert "5.frames" in directory.deleted


def test_files_that_nobody_uses_go_first_and_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("1.frames", "2.frames", "mine.txt"):
        (tmp_path / name).write_bytes(bytes(10))
    old = time.time() - 30 * 86_400
    os.utime(tmp_path / "1.frames", (old, old))
    os.utime(tmp_path / "mine.txt", (old, old))
    directory = CacheDirectory(str(tmp_path), 20)
    assert add(directory, "9.frames", 10)
    assert names(tmp_path) == ["2.frames", "9.frames", "mine.txt"]


def test_a_lower_limit_deletes(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.frames").write_bytes(bytes(10))
    assert not add(CacheDirectory(str(tmp_path), 20), "9.frames", 10)
    assert names(tmp_path) == ["0.frames", "1.frames"]


def test_a_failure_is_said_once_and_writing_pauses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = directory_of(str(tmp_path), 100)
    assert directory is directory_of(str(tmp_path), 100)
    assert directory.may_keep("a")
    for _ in range(3):
        directory.note(OSError(28, "No space left on device"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{tmp_path} (No space left on device)" in caplog.text
    assert not directory.may_keep("a")
    now = time.monotonic()
    monkeypatch.setattr(cache_directory.time, "monotonic", lambda: now + 31)
    assert directory.may_keep("a")
