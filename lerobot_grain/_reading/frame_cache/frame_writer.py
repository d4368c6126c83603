"""Writes decoded frames to disk in threads of its own, from the memory in which they wait to be
handed out.

Rules:
* Frames of a number of bytes may wait to be written. Whoever has decoded more waits for the disk,
  at most as long as it has decoded: so an epoch that fills the cache takes at most twice as long,
  and nearly all is there after it, if the disk takes more than half of what is decoded. The frames
  that it does not take in that time are decoded again in the next epoch, and kept then.
* A disk that does not answer is waited for once.
* Memory that is being read is held: `is_held` says so to the thread that would give it to others.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import StorageError
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.frame_cache.cache_directory import CacheDirectory
from lerobot_grain._reading.frame_cache.episode_frames import EpisodeFrames, bytes_of
from lerobot_grain._video.decoder import Frames

# More threads would not be faster than memory.
_MAX_WRITERS = 4
# Frames up to this size are written by one thread for so many that decode: with more they would
# wait for Python's lock. Larger ones wait for memory and the disk, and not for it.
_SMALL_BYTES = 256 << 10
_DECODERS_PER_WRITER = 4
# So long decoding waits for each second that it takes.
_WAITED_PART = 1.0
# Seconds that may be saved up for a wait, by all threads together: disks take bursts, and pause
# for their journals.
_MAX_SAVED_SECONDS = 10.0
# A disk to which nothing could be written for so long is not waited for.
_STALLED_SECONDS = 5.0
# Between two looks whether there is room. There is nothing that wakes who waits: it would need a
# lock, which an exception of a signal handler might leave locked.
_LOOK_SECONDS = 0.002
# When a reader is closed, frames that wait to be written may be for so long.
_CLOSING_SECONDS = 1.0


class HeldFrames(NamedTuple):
    """Memory for frames of one size.

    Attributes:
      pixels: slot -> the bytes of its frame, not copied.
      is_held: bool `(slots,)`: whether a frame is to be written yet.
      frame_bytes: of one frame.
    """

    pixels: Callable[[int], memoryview]
    is_held: npt.NDArray[np.bool_]
    frame_bytes: int

    @classmethod
    def of(cls, frames: Frames, is_held: npt.NDArray[np.bool_]) -> HeldFrames:
        """Returns `(slots, height, width, channels)` as such."""
        memory = bytes_of(frames)
        size = frames[:1].nbytes
        return cls(lambda slot: memory[slot * size : (slot + 1) * size], is_held, size)


class DecodedFrames(NamedTuple):
    """Frames of an episode that are decoded.

    Attributes:
      episode: where they are kept.
      frames: int64 `(n,)`, ascending: their numbers in the episode.
      slots: int64 `(n,)`: where they are.
    """

    episode: EpisodeFrames
    frames: Integers
    slots: Integers

    def only(self, which: npt.NDArray[np.bool_] | slice) -> DecodedFrames:
        """Returns this for a part of the frames."""
        return self._replace(frames=self.frames[which], slots=self.slots[which])

    def without(self, slots: Collection[int]) -> DecodedFrames:
        """Returns this without the frames in some slots."""
        return self.only(~np.isin(self.slots, list(slots))) if slots else self


class FrameWriter:
    """Writes frames of one reader. `offer` is for any thread.

    Args:
      directory: which decides what is kept.
      max_bytes: of frames that wait.
      num_threads: that decode.
    """

    def __init__(self, directory: CacheDirectory, *, max_bytes: int, num_threads: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._pool = DaemonPool(min(_MAX_WRITERS, num_threads), "lerobot_grain cache")
        num_writers = min(_MAX_WRITERS, math.ceil(num_threads / _DECODERS_PER_WRITER))
        self._small_pool = DaemonPool(num_writers, "lerobot_grain cache of small frames")
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._saved_seconds = 0.0
        self._written_at = time.monotonic()
        self._ends_at = float("inf")

    def offer(
        self, memory: HeldFrames, decoded: Sequence[DecodedFrames], *, decode_seconds: float
    ) -> None:
        """Keeps frames that are not there, if that is possible; may wait for the disk.

        Args:
          memory: where they are.
          decoded: which they are.
          decode_seconds: that this thread took for them.
        """
        missing = [
            each.only(~each.episode.will_have(each.frames))
            for each in _by_episode(decoded)
            if self._directory.may_keep(each.episode.name)
        ]
        if count := sum(len(each.frames) for each in missing):
            self._wait_for_room(count * memory.frame_bytes, decode_seconds)
        wanted = [
            each.only(slice(claimed))
            for each in missing
            if (claimed := self._claimed(len(each.frames), memory.frame_bytes))
        ]
        if wanted:
            _mark(memory, wanted, is_waiting=True)
            try:
                is_small = memory.frame_bytes <= _SMALL_BYTES
                pool = self._small_pool if is_small else self._pool
                pool.submit(self._write, memory, wanted)
            except StorageError:  # closed
                _mark(memory, wanted, is_waiting=False)

    def end_waits(self) -> None:
        """Nobody waits for the disk from now on, and what waits to be written may do so for a
        while: for a reader that is closed.
        """
        self._ends_at = time.monotonic() + _CLOSING_SECONDS

    def close(self) -> None:
        """Ends the threads, after what waits was written, if that is soon."""
        self.end_waits()
        self._pool.shutdown(wait=True)
        self._small_pool.shutdown(wait=True)

    def _wait_for_room(self, num_bytes: int, decode_seconds: float) -> None:
        """Waits until so much more may wait to be written, or for as long as is allowed."""
        room_for = max(0, self._max_bytes - num_bytes)
        started = time.monotonic()
        with self._lock:
            saved = min(_MAX_SAVED_SECONDS, self._saved_seconds + _WAITED_PART * decode_seconds)
            self._saved_seconds = saved
        while (
            self._waiting_bytes > room_for
            and time.monotonic() < min(started + saved, self._written_at + _STALLED_SECONDS)
            and self._ends_at == float("inf")
        ):
            time.sleep(_LOOK_SECONDS)
        with self._lock:
            self._saved_seconds -= time.monotonic() - started

    def _claimed(self, count: int, frame_bytes: int) -> int:
        """Returns how many of some frames may wait to be written, and counts them."""
        with self._lock:
            room = max(0, self._max_bytes - self._waiting_bytes) // frame_bytes
            claimed = min(count, room)
            if not self._waiting_bytes:
                self._written_at = time.monotonic()  # the disk was not asked for anything
            self._waiting_bytes += claimed * frame_bytes
        return claimed

    def _write(self, memory: HeldFrames, wanted: Sequence[DecodedFrames]) -> None:
        for each in wanted:
            try:
                self._write_episode(memory, each)
            except OSError as error:
                self._directory.note(error)
            finally:
                _mark(memory, [each], is_waiting=False)
                with self._lock:
                    self._waiting_bytes -= len(each.slots) * memory.frame_bytes
                    self._written_at = time.monotonic()

    def _write_episode(self, memory: HeldFrames, frames: DecodedFrames) -> None:
        name = frames.episode.name
        size = frames.episode.layout.file_bytes
        if (
            time.monotonic() < self._ends_at
            and self._directory.may_keep(name)
            and self._directory.keep(name, size)
        ):
            pixels = list(map(memory.pixels, frames.slots.tolist()))
            frames.episode.write(frames.frames.tolist(), pixels)
            self._directory.settle(name, size)


def _mark(memory: HeldFrames, decoded: Sequence[DecodedFrames], *, is_waiting: bool) -> None:
    """Notes whether frames wait to be written, and their memory is to stay as it is."""
    for each in decoded:
        memory.is_held[each.slots] = is_waiting
        each.episode.is_waiting[each.frames] = is_waiting


def _by_episode(decoded: Sequence[DecodedFrames]) -> list[DecodedFrames]:
    """Returns the same, each episode once, and its frames in ascending order."""
    found: dict[EpisodeFrames, list[DecodedFrames]] = {}
    for each in decoded:
        found.setdefault(each.episode, []).append(each)
    together = []
    for episode, parts in found.items():
        frames = np.concatenate([each.frames for each in parts])
        order = np.argsort(frames, kind="stable")
        slots = np.concatenate([each.slots for each in parts])
        together.append(DecodedFrames(episode, frames[order], slots[order]))
    return together
