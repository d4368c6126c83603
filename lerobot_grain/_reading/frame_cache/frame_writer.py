"""Writes decoded frames to disk in threads of its own, from the memory in which they wait to be
handed out.

Rules:
* Nobody waits for the disk. While frames of more than a number of bytes wait to be written, further
  ones are not kept: they are decoded again in the next epoch, and kept then.
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

    def without(self, slots: Collection[int]) -> DecodedFrames:
        """Returns this without the frames in some slots."""
        if not slots:
            return self
        is_good = ~np.isin(self.slots, list(slots))
        return self._replace(frames=self.frames[is_good], slots=self.slots[is_good])


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
        self._ends_at = float("inf")

    def offer(self, memory: HeldFrames, decoded: Sequence[DecodedFrames]) -> None:
        """Keeps frames that are not there, if that is possible."""
        wanted = []
        for each in _by_episode(decoded):
            if self._directory.may_keep(each.episode.name):
                missing = each.episode.checksums[each.frames] == 0
                claimed = self._claimed(int(missing.sum()), memory.frame_bytes)
                if claimed:
                    frames = each.frames[missing][:claimed]
                    wanted.append(
                        DecodedFrames(each.episode, frames, each.slots[missing][:claimed])
                    )
        if wanted:
            slots = np.concatenate([each.slots for each in wanted])
            memory.is_held[slots] = True
            try:
                is_small = memory.frame_bytes <= _SMALL_BYTES
                pool = self._small_pool if is_small else self._pool
                pool.submit(self._write, memory, wanted, slots)
            except StorageError:  # closed
                memory.is_held[slots] = False

    def close(self) -> None:
        """Ends the threads, after what waits was written, if that is soon."""
        self._ends_at = time.monotonic() + _CLOSING_SECONDS
        self._pool.shutdown(wait=True)
        self._small_pool.shutdown(wait=True)

    def _claimed(self, count: int, frame_bytes: int) -> int:
        """Returns how many of some frames may wait to be written, and counts them."""
        with self._lock:
            room = max(0, self._max_bytes - self._waiting_bytes) // frame_bytes
            claimed = min(count, room)
            self._waiting_bytes += claimed * frame_bytes
        return claimed

    def _write(self, memory: HeldFrames, wanted: Sequence[DecodedFrames], slots: Integers) -> None:
        try:
            for episode, frames, places in wanted:
                name = episode.name
                size = episode.layout.file_bytes
                if time.monotonic() < self._ends_at and self._directory.keep(name, size):
                    episode.write(frames.tolist(), list(map(memory.pixels, places.tolist())))
                    self._directory.settle(name, size)
        except OSError as error:
            self._directory.note(error)
        finally:
            memory.is_held[slots] = False
            with self._lock:
                self._waiting_bytes -= len(slots) * memory.frame_bytes


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
