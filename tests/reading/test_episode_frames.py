"""One file of frames: what is read is what was written or absent, whatever lies there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lerobot_grain._reading.frame_cache import episode_frames
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, Layout, bytes_of

NUM_FRAMES = 9
LAYOUT = Layout(NUM_FRAMES, 50)
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 5, 10), np.uint8)


def opened(path: Path) -> EpisodeFrames:
    found = EpisodeFrames(str(path), LAYOUT, about="for people")
    found.load()
    return found


def write(episode: EpisodeFrames, *frames: int) -> None:
    episode.write(frames, [bytes_of(FRAMES[frame]) for frame in frames])


def read(episode: EpisodeFrames, *frames: int) -> tuple[list[int], np.ndarray]:
    """Returns the frames that are not there, and all that was read."""
    out = np.zeros((len(frames), 50), np.uint8)
    lost = episode.read(frames, [bytes_of(each) for each in out])
    return [frames[place] for place in lost], out


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.lists(st.sets(st.integers(0, NUM_FRAMES - 1), min_size=1).map(sorted), max_size=4),
    wanted=st.lists(st.integers(0, NUM_FRAMES - 1), min_size=1, max_size=12).map(sorted),
)
def test_what_was_written_is_read(
    tmp_path: Path, written: list[list[int]], wanted: list[int]
) -> None:
    path = tmp_path / "a.frames"
    path.unlink(missing_ok=True)
    for frames in written:
        write(opened(path), *frames)
    there = {frame for frames in written for frame in frames}
    lost, out = read(opened(path), *wanted)
    assert lost == [frame for frame in wanted if frame not in there]
    for frame, found in zip(wanted, out, strict=True):
        if frame in there:
            assert np.array_equal(found, FRAMES[frame].reshape(-1))


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.frames"
    write(opened(path), 0, 1, 7)
    contents = path.read_bytes()
    assert len(contents) == LAYOUT.file_bytes == 2 * 4096 + NUM_FRAMES * 50
    assert contents.startswith(b"for people\n\0")
    sums = np.frombuffer(contents, "<u8", NUM_FRAMES, 4096)
    assert sorted(np.flatnonzero(sums)) == [0, 1, 7]
    assert contents[2 * 4096 + 7 * 50 :][:50] == FRAMES[7].tobytes()


def test_many_frames_next_to_each_other(tmp_path: Path) -> None:
    layout = Layout(300, 2)
    frames = np.arange(600, dtype=np.uint16).view(np.uint8).reshape(300, 4)[:, :2].copy()
    episode = EpisodeFrames(str(tmp_path / "a.frames"), layout, about="")
    episode.write(range(300), [bytes_of(each) for each in frames])
    out = np.zeros_like(frames)
    assert episode.read(range(300), [bytes_of(each) for each in out]) == []
    assert np.array_equal(out, frames)


def test_every_bit_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.frames"
    write(opened(path), *range(NUM_FRAMES))
    whole = path.read_bytes()
    used = [*range(4096, 4096 + NUM_FRAMES * 8), *range(8192, len(whole))]
    for place in used:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        frame = (place - 8192) // 50 if place >= 8192 else (place - 4096) // 8
        lost, _ = read(opened(path), *range(NUM_FRAMES))
        assert lost == [frame], place
        # And by a reader that is made later in this process.
        assert opened(path).checksums[frame] == 0
        path.write_bytes(whole)
        write(opened(path), frame)
        assert read(opened(path), frame)[0] == []


def test_a_file_of_another_name_has_no_frame(tmp_path: Path) -> None:
    write(opened(tmp_path / "a.frames"), *range(NUM_FRAMES))
    os.rename(tmp_path / "a.frames", tmp_path / "b.frames")
    assert read(opened(tmp_path / "b.frames"), 3)[0] == [3]


@pytest.mark.parametrize("length", [0, 100, 4096 + 8, 8192, 8192 + 49, 8192 + 50, 8192 + 260])
def test_a_file_that_is_cut(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.frames"
    write(opened(path), *range(NUM_FRAMES))
    known = opened(path)
    os.truncate(path, length)
    whole = max(0, length - 8192) // 50
    assert read(known, *range(NUM_FRAMES))[0] == list(range(whole, NUM_FRAMES))
    write(known, *range(NUM_FRAMES))
    assert read(opened(path), *range(NUM_FRAMES))[0] == []


def test_a_file_that_was_made_anew_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    """Another process deletes a file and makes it again, without frames yet."""
    path = tmp_path / "a.frames"
    write(opened(path), *range(NUM_FRAMES))
    known = opened(path)
    assert read(known, 2, 3)[0] == []
    path.unlink()
    write(opened(path), 3)
    assert read(known, 2, 3)[0] == [2]


def test_a_write_that_stops_leaves_no_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.frames"
    real = os.pwritev

    def half(descriptor: int, pieces: list[memoryview], start: int) -> int:
        if start < 8192:
            return real(descriptor, pieces, start)
        return real(descriptor, [*pieces[:1], pieces[1][:20]], start)

    def fails(*_: object) -> int:
        raise OSError("full")

    monkeypatch.setattr(episode_frames.os, "pwritev", half)
    write(opened(path), 0, 1, 2)  # goes on where the system has stopped
    assert read(opened(path), 0, 1, 2)[0] == []
    path.unlink()
    monkeypatch.setattr(episode_frames.os, "pwrite", fails)
    with pytest.raises(OSError, match="full"):
        write(opened(path), 0, 1, 2)
    assert not opened(path).checksums.any()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
def test_large_frames_are_asked_for_in_pieces_that_the_system_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append((start, size)))
    monkeypatch.setattr(episode_frames, "_is_in_memory", lambda *_: False)
    monkeypatch.setattr(episode_frames, "_ASKED_BYTES", 40)
    episode = opened(tmp_path / "a.frames")
    write(episode, 0, 1, 2, 5)
    assert not episode.expect([2, 1, 5])
    first = LAYOUT.frames_start
    assert asked == [
        (first + 50, 40),
        (first + 90, 40),
        (first + 130, 20),
        (first + 250, 40),
        (first + 290, 10),
    ]


def test_when_a_file_was_used_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.frames"
    write(opened(path), 0)
    os.utime(path, (1e9, 1e9))
    opened(path)
    assert path.stat().st_mtime > 1.7e9
