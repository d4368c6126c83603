"""Frames that wait to be written: decoding waits for a disk that is slower, and not for one that
does not answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lerobot_grain._reading.frame_cache import episode_frames, frame_writer
from lerobot_grain._reading.frame_cache.cache_directory import CacheDirectory
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, Layout
from lerobot_grain._reading.frame_cache.frame_writer import DecodedFrames, FrameWriter, HeldFrames

NUM_FRAMES = 12
FRAME_SHAPE = (4, 5, 3)
FRAME_BYTES = 60
# So many frames may wait to be written.
ROOM = 3
FOREVER = 1e9


class Disk:
    """Answers when it is told to.

    Attributes:
      answers: until it is set, every write waits.
      is_waited_for: set when somebody looks again whether there is room.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.is_waited_for = threading.Event()
        write = EpisodeFrames.write

        def answer(*arguments: Any) -> None:
            self.answers.wait()
            write(*arguments)

        def sleep(seconds: float) -> None:
            self.is_waited_for.set()
            time.sleep(seconds)

        monkeypatch.setattr(EpisodeFrames, "write", answer)
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
        monkeypatch.setattr(frame_writer, "time", clock)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(frame_writer, "_MAX_SAVED_SECONDS", FOREVER)
    monkeypatch.setattr(frame_writer, "_STALLED_SECONDS", FOREVER)
    found = Disk(monkeypatch)
    yield found
    found.answers.set()


@pytest.fixture
def episode(tmp_path: Path) -> EpisodeFrames:
    layout = Layout(NUM_FRAMES, FRAME_BYTES)
    return EpisodeFrames(str(tmp_path / "0-0.frames"), layout, about="an episode")


class Decoder:
    """Offers the frames of an episode, one after the other, as a thread that decodes does."""

    def __init__(self, episode: EpisodeFrames) -> None:
        self.episode = episode
        self.pixels = np.random.default_rng(0).integers(
            256, size=(NUM_FRAMES, *FRAME_SHAPE), dtype=np.uint8
        )
        self.is_held = np.zeros(NUM_FRAMES, np.bool_)
        directory = CacheDirectory(str(Path(episode.path).parent), 1 << 20)
        self.writer = FrameWriter(directory, max_bytes=ROOM * FRAME_BYTES, num_threads=1)

    def offer(self, frames: range, *, decode_seconds: float = 0.0) -> None:
        numbers = np.array(frames)
        self.writer.offer(
            HeldFrames.of(self.pixels, self.is_held),
            [DecodedFrames(self.episode, numbers, numbers)],
            decode_seconds=decode_seconds,
        )

    def kept(self) -> list[int]:
        """Returns which frames are there in the end."""
        self.writer.close()
        self.episode.load()
        return np.flatnonzero(self.episode.checksums).tolist()


def test_decoding_waits_for_a_slower_disk(disk: Disk, episode: EpisodeFrames) -> None:
    decoder = Decoder(episode)

    def decode() -> None:
        for frame in range(NUM_FRAMES):
            decoder.offer(range(frame, frame + 1), decode_seconds=FOREVER)

    thread = threading.Thread(target=decode)
    thread.start()
    assert disk.is_waited_for.wait(60)
    assert decoder.is_held.sum() == ROOM
    disk.answers.set()
    thread.join(60)
    assert decoder.kept() == list(range(NUM_FRAMES))
    assert not decoder.is_held.any()


def test_it_waits_no_longer_than_it_decodes(disk: Disk, episode: EpisodeFrames) -> None:
    decoder = Decoder(episode)
    started = time.monotonic()
    for frame in range(NUM_FRAMES):
        decoder.offer(range(frame, frame + 1), decode_seconds=0.01)
    assert time.monotonic() - started >= (NUM_FRAMES - 1) * 0.01
    disk.answers.set()
    assert decoder.kept() == list(range(ROOM))


def test_nobody_waits_where_all_fits(disk: Disk, episode: EpisodeFrames) -> None:
    decoder = Decoder(episode)
    decoder.offer(range(ROOM), decode_seconds=FOREVER)
    assert not disk.is_waited_for.is_set()


def test_more_than_may_wait_is_kept_in_part(disk: Disk, episode: EpisodeFrames) -> None:
    """Nobody waits for room that there never is."""
    decoder = Decoder(episode)
    decoder.offer(range(NUM_FRAMES), decode_seconds=FOREVER)
    assert not disk.is_waited_for.is_set()
    disk.answers.set()
    assert decoder.kept() == list(range(ROOM))


def test_a_disk_that_does_not_answer_is_waited_for_once(
    disk: Disk, episode: EpisodeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_writer, "_STALLED_SECONDS", 0.02)
    decoder = Decoder(episode)
    decoder.offer(range(ROOM), decode_seconds=FOREVER)
    decoder.offer(range(ROOM, ROOM + 1), decode_seconds=FOREVER)
    assert disk.is_waited_for.is_set()
    disk.is_waited_for.clear()
    for frame in range(ROOM + 1, NUM_FRAMES):
        decoder.offer(range(frame, frame + 1), decode_seconds=FOREVER)
    assert not disk.is_waited_for.is_set()


def test_closing_ends_all_waits(disk: Disk, episode: EpisodeFrames) -> None:
    decoder = Decoder(episode)
    decoder.offer(range(ROOM))
    thread = threading.Thread(
        target=decoder.offer, args=(range(ROOM, NUM_FRAMES),), kwargs={"decode_seconds": FOREVER}
    )
    thread.start()
    assert disk.is_waited_for.wait(60)
    decoder.writer.end_waits()
    thread.join(60)
    assert not thread.is_alive()


def test_frames_that_wait_are_found_and_read_when_they_are_written(
    disk: Disk, episode: EpisodeFrames
) -> None:
    decoder = Decoder(episode)
    decoder.offer(range(ROOM))
    assert episode.will_have(np.arange(ROOM + 1)).tolist() == [True] * ROOM + [False]
    out = np.zeros((ROOM + 1, FRAME_BYTES), np.uint8)
    lost: list[int] = []
    thread = threading.Thread(
        target=lambda: lost.extend(episode.read(range(ROOM + 1), [each.data for each in out]))
    )
    thread.start()
    disk.answers.set()
    thread.join(60)
    assert lost == [ROOM]
    assert np.array_equal(out[:ROOM], decoder.pixels[:ROOM].reshape(ROOM, -1))


def test_frames_that_are_not_written_are_not_waited_for_again(
    disk: Disk, episode: EpisodeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_frames, "_WRITING_SECONDS", 0.01)
    decoder = Decoder(episode)
    decoder.offer(range(ROOM))
    out = np.zeros((ROOM, FRAME_BYTES), np.uint8)
    assert episode.read(range(ROOM), [each.data for each in out]) == [0, 1, 2]
    assert not episode.will_have(np.arange(ROOM)).any()
    # They are not taken for damaged, and found once they are there.
    disk.answers.set()
    assert decoder.kept() == [0, 1, 2]
    assert episode.read(range(ROOM), [each.data for each in out]) == []
