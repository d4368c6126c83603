"""What is listed and deleted of the caches on disk, against the files that lie there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._inspection.cache_contents import cache_contents, clear_caches
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, Layout
from lerobot_grain._storage.disk import dataset_cache, piece_cache
from lerobot_grain._storage.disk.dataset_cache import DatasetCache

ONE, TWO = "org/one@0123456789ab", "org/two@ba9876543210"
ONE_LATER = "org/one@bbbbbbbbbbbb"
FOREIGN = (
    "pieces/readme",
    "pieces/0123456789abcdef0123456789abcdef/notes.txt",
    "ranges/mine.kept",
    "frames/mine.frames",
    "frames/notes.txt",
    "else",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits of two datasets, and files that are not ours."""
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 0)
    dataset_cache._caches.cache_clear()
    kept = tmp_path / "kept"  # what conftest.py says
    for name, count in ((ONE, 1), (ONE_LATER, 2), (TWO, 3)):
        cache = DatasetCache(str(kept), 1 << 30, (name, name.partition("@")[2]))
        for number in range(count):
            # Two pieces each: they cross the bound of a cell.
            cache.keep(f"file-{number}", (4 << 20) - 1000, bytes(5000))
            cache.put(f"file-{number}", "0-99", bytes(99))
    write_frames(kept, ONE, "top", None, 0)
    write_frames(kept, ONE, "top", (48, 64), 1)
    write_frames(kept, ONE, "top", (48, 64), 2)
    write_frames(kept, TWO, "top", None, 3)
    for path in FOREIGN:
        (kept / path).parent.mkdir(exist_ok=True, parents=True)
        (kept / path).write_bytes(b"not ours")
    return kept


def write_frames(
    kept: Path, dataset: str, camera: str, size: tuple[int, int] | None, number: int
) -> None:
    EpisodeFrames(
        str(kept / "frames" / f"{number:016x}-{number:032x}.frames"),
        Layout(num_frames=3, frame_bytes=100),
        about=f"{dataset}\n{camera}\n{size}\nepisode {number}",
    ).write([1], [np.zeros(100, np.uint8).data])


def on_disk(folder: Path) -> int:
    """The bytes that our files and directories take, in blocks, as `du` counts them."""
    own = [path for path in folder.rglob("*") if not path.is_dir() or len(path.name) == 32]
    return sum(
        4096 * -(-path.stat().st_size // 4096) if path.is_file() else 4096
        for path in own
        if path.name not in ("about", "readme", "notes.txt", "mine.kept")
        # The directory of a dataset has no block of its own there.
        and not (path.is_dir() and path.parent.name == "pieces")
    )


def test_everything_is_listed(root: Path) -> None:
    contents = cache_contents()
    assert contents.directory == str(root)
    assert contents.frame_directory == str(root / "frames")
    assert [each[:2] for each in contents.pieces] == [(ONE, 2), (ONE_LATER, 4), (TWO, 6)]
    assert all(abs(each.last_used - time.time()) < 60 for each in contents.pieces)
    assert sum(each.num_bytes for each in contents.pieces) == on_disk(root / "pieces")
    assert contents.indices == (6, on_disk(root / "ranges"))
    assert contents.coded_bytes == on_disk(root / "pieces") + on_disk(root / "ranges")
    assert [each[:5] for each in contents.frames] == [
        (ONE, "top", None, 1, 4096 + 4096 + 300),
        (ONE, "top", (48, 64), 2, 2 * (4096 + 4096 + 300)),
        (TWO, "top", None, 1, 4096 + 4096 + 300),
    ]
    assert contents.frame_bytes == 4 * 8492


def test_what_is_used_is_noted(root: Path) -> None:
    frames = next((root / "frames").glob("*3.frames"))
    pieces = next(
        path for path in (root / "pieces").rglob("about") if path.read_text() == f"{TWO}\n"
    )
    os.utime(frames, (1000, 1000))
    os.utime(pieces, (2000, 2000))
    contents = cache_contents()
    assert next(each for each in contents.pieces if each.dataset == TWO).last_used == 2000
    assert 1000 in [each.last_used for each in contents.frames]


def test_nothing_is_there(tmp_path: Path) -> None:
    contents = cache_contents()
    assert (contents.pieces, contents.frames, contents.indices) == ((), (), (0, 0))
    assert clear_caches(None).coded_bytes == 0
    assert not (tmp_path / "kept").exists()


def test_frames_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "frames").rename(tmp_path / "elsewhere")
    assert cache_contents().frames == ()
    assert len(cache_contents(str(tmp_path / "elsewhere")).frames) == 3
    assert clear_caches(None, str(tmp_path / "elsewhere")).frame_bytes == 4 * 8492


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("org/one", [TWO]),
        (ONE, [ONE_LATER, TWO]),
        (TWO, [ONE, ONE_LATER]),
        (None, []),
    ],
)
def test_what_is_named_is_deleted_and_nothing_else(
    root: Path, name: str | None, left: list[str]
) -> None:
    before = on_disk(root / "pieces")
    frames_before = cache_contents().frame_bytes
    cleared = clear_caches(name)
    contents = cache_contents()
    assert [each.dataset for each in contents.pieces if each.dataset] == left
    assert {each.dataset for each in contents.frames} == set(left) - {ONE_LATER}
    assert frames_before - cleared.frame_bytes == contents.frame_bytes
    assert contents.indices.files == (0 if name is None else 6)
    freed = 6 * 4096 if name is None else 0
    assert cleared.coded_bytes == before - on_disk(root / "pieces") + freed
    assert all((root / path).read_bytes() == b"not ours" for path in FOREIGN)
    # What is left is read as before.
    for dataset in left:
        cache = DatasetCache(str(root), 1 << 30, (dataset, dataset.partition("@")[2]))
        found = cache.read("file-0", ByteRange((4 << 20) - 1000, (4 << 20) + 4000))
        assert b"".join(part.payload for part in found) == bytes(5000)


@pytest.mark.parametrize("name", ["org/on", "one", "org/one@", "org/one@0123", "org/three", ""])
def test_a_name_that_is_not_there(root: Path, name: str) -> None:
    before = sorted(root.rglob("*"))
    message = "is empty" if not name else f"nothing of '{name}' is kept in .*; there is org/one@"
    with pytest.raises(lg.InvalidRequestError, match=message):
        clear_caches(name)
    assert sorted(root.rglob("*")) == before


def test_files_that_say_nothing(root: Path) -> None:
    for path in (root / "frames").glob("0*.frames"):
        path.write_bytes(b"\xff\xfe")
    for path in (root / "pieces").rglob("about"):
        path.unlink()
        os.mkfifo(path)
    contents = cache_contents()
    assert {each.dataset for each in contents.pieces} == {""}
    assert [each[:4] for each in contents.frames] == [("", "", None, 4)]
    cleared = clear_caches(None)
    assert cleared.frame_bytes == 8
    assert cache_contents().frames == ()


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (root / "frames" / f"{9:016x}-{9:032x}.frames").symlink_to(target)
    (root / "ranges" / f"{9:032x}-{9:032x}.kept").symlink_to(target)
    (root / "pieces" / f"{9:032x}").symlink_to(tmp_path)
    clear_caches(None)
    assert target.read_bytes() == b"precious"
