"""Which files of frames a directory keeps, so that they take no more than a number of bytes.

The idea: an epoch is longer than a cache that does not hold it all, and comes in another order each
time. The frame that was used last is then needed last, so keeping such frames keeps nothing. A
fixed part of the episodes is kept instead: those that come first in the order of a hash, the rank
that their names begin with. Nobody has to know which streams share a directory. Whoever adds a file
deletes those of a higher rank where there is no room; where there is none even so, the file is not
kept, and none of a higher rank. So the first epoch ends with the episodes of the lowest ranks, and
more bytes would keep these and others.

Rules:
* Nothing here fails. A file that cannot be written is not kept; the log says so once a process.
* Nothing is locked. Each process counts for itself, and looks what others have written when it
  writes, at most every 10 seconds. So there may be more than the limit for so long, by what other
  processes write.
* Nothing is deleted but files with our names. Files that nobody has asked for in two weeks, such as
  those of an older decoder, go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from bisect import insort

from lerobot_grain._base.per_process import PerProcess
from lerobot_grain._reading.frame_cache.frame_key import SUFFIX

_LOG = logging.getLogger(__name__)

# Between two looks at what there is, and after a failure until writing is tried again.
_LOOK_SECONDS = 10.0
_PAUSE_SECONDS = 30.0
_UNUSED_SECONDS = 14 * 86_400.0


class CacheDirectory:
    """The files of frames in a directory. Thread-safe; what touches the disk is for the threads
    that write.

    Args:
      path: need not exist, may be read-only, may be shared.
      max_bytes: that files may take.

    Attributes:
      deleted: names of files that were there, and are not any more.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path = path
        self.deleted: set[str] = set()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._total = 0
        # Whether it is unused, and the name: what is deleted first comes last.
        self._ranked: list[tuple[bool, str]] = []
        self._looked_at = -_LOOK_SECONDS
        # The lowest one that found no room, and its size.
        self._refused: tuple[str, int] | None = None
        self._paused_until = 0.0

    def may_keep(self, name: str) -> bool:
        """Returns whether `keep` may say yes. For any thread, does not touch the disk."""
        refused = self._refused
        return (refused is None or name < refused[0]) and time.monotonic() >= self._paused_until

    def keep(self, name: str, size: int) -> bool:
        """Returns whether a file may be written; makes room for it."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                self._look()
            if self._sizes.get(name, 0) >= size:
                return True
            if size > self._max_bytes or (self._refused is not None and name >= self._refused[0]):
                return False
            self._leave_out(name)
            while self._total + size > self._max_bytes and self._ranked[-1:] > [(False, name)]:
                self._delete_last()
            if self._total + size > self._max_bytes:
                self._refused = name, size
                return False
            self._sizes[name] = size
            self._total += size
            insort(self._ranked, (False, name))
            self.deleted.discard(name)
            return True

    def settle(self, name: str, size: int) -> None:
        """Deletes a file that was written, if it was to go since `keep` was asked."""
        if not self.keep(name, size):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, name))
            self.deleted.add(name)

    def note(self, error: OSError) -> None:
        """Notes that a file could not be written: for a while none is."""
        with self._lock:
            is_first = not self._paused_until
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
        if is_first:
            _LOG.warning(
                "decoded frames cannot be kept in %s (%s), so they will be decoded again",
                self.path,
                error.strerror or error,
            )

    def _look(self) -> None:
        """Looks what there is, and deletes what is too much."""
        self._looked_at = time.monotonic()
        before = set(self._sizes)
        now = time.time()
        self._sizes = {}
        ranked = []
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    self._sizes[entry.name] = status.st_size
                    ranked.append((now - status.st_mtime > _UNUSED_SECONDS, entry.name))
        self._ranked = sorted(ranked)
        self._total = sum(self._sizes.values())
        self.deleted |= before - set(self._sizes)
        while self._total > self._max_bytes:
            self._delete_last()
        if self._refused is not None and self._total + self._refused[1] <= self._max_bytes:
            self._refused = None

    def _delete_last(self) -> None:
        """Deletes the file that comes last."""
        _, name = self._ranked.pop()
        self._total -= self._sizes.pop(name)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, name))
        self.deleted.add(name)

    def _leave_out(self, name: str) -> None:
        """Counts a file no more that is shorter than it should be."""
        if name in self._sizes:
            self._total -= self._sizes.pop(name)
            self._ranked = [each for each in self._ranked if each[1] != name]


def directory_of(path: str, max_bytes: int) -> CacheDirectory:
    """Returns the directory with that path and limit, of which this process has one."""
    key = os.path.abspath(path), max_bytes
    return _directories().setdefault(key, CacheDirectory(*key))


def _no_directories() -> dict[tuple[str, int], CacheDirectory]:
    return {}


_directories = PerProcess(_no_directories)
