"""The part of the disk cache that belongs to one dataset, for one process: indices (`entry_cache`),
video and rows (`piece_cache`), the sizes of files, and how many bytes came from there.
"""

from __future__ import annotations

import functools
import os

from lerobot_grain._base.byte_ranges import ByteRange, Part
from lerobot_grain._storage.disk.contents import INDICES, PIECES
from lerobot_grain._storage.disk.entry_cache import EntryCache
from lerobot_grain._storage.disk.piece_cache import PieceCache
from lerobot_grain._storage.options import Counters, StorageStatistics

# The share of the limit that indices may take: those that were used longest ago go. 10,000 hours of
# video have 2 GB of them.
_INDEX_SHARE = 4


class DatasetCache:
    """Keeps bytes of one dataset on disk. Thread-safe; each process has its own.

    Args:
      root: the directory of all that is kept.
      max_bytes: that may be kept, of all datasets together; not 0.
      dataset: its name and commit.
    """

    def __init__(self, root: str, max_bytes: int, dataset: tuple[str, str]) -> None:
        self._entries, self._pieces = _caches(root, max_bytes, os.getpid())
        self._dataset = dataset
        self._sizes: dict[str, int] = {}
        self._counters = Counters()

    @property
    def statistics(self) -> StorageStatistics:
        return self._counters.snapshot()

    def get(self, path: str, part: str) -> bytes | None:
        """Returns what was put for a part of a file, or None."""
        found = self._entries.get((*self._dataset, path), part)
        if found is not None:
            self._count(len(found))
        return found

    def put(self, path: str, part: str, payload: bytes) -> None:
        self._entries.put((*self._dataset, path), part, payload)

    def size_bytes(self, path: str) -> int | None:
        """Returns the size of a file, if it is known."""
        if (known := self._sizes.get(path)) is not None:
            return known
        kept = self._entries.get((*self._dataset, path), "size")
        # Not a 0, which mirrors tell of every file.
        if kept is None or not any(kept):
            return None
        self._sizes[path] = size = int.from_bytes(kept)
        return size

    def keep_size(self, path: str, size_bytes: int) -> None:
        if size_bytes:
            self._sizes[path] = size_bytes
            self._entries.put((*self._dataset, path), "size", size_bytes.to_bytes(8))

    def forget_size(self, path: str) -> None:
        self._sizes.pop(path, None)
        self._entries.forget((*self._dataset, path), "size")

    def read(self, path: str, wanted: ByteRange) -> list[Part]:
        """Returns what lies on disk of a range of a file, sorted and disjoint."""
        found = self._pieces.get((*self._dataset, path), wanted)
        self._count(sum(len(part.payload) for part in found))
        return found

    def keep(self, path: str, start: int, payload: bytes) -> None:
        """Keeps bytes of a file, if they belong to the share that is kept."""
        self._pieces.put((*self._dataset, path), start, payload)

    def would_keep(self, path: str, wanted: ByteRange) -> bool:
        """Returns whether some of a range belongs to the share that is kept."""
        return self._pieces.would_keep((*self._dataset, path), wanted)

    def forget(self, path: str) -> None:
        """Deletes all of a file: it is malformed, or was sent wrongly."""
        if (size := self.size_bytes(path)) is not None:
            self._pieces.forget((*self._dataset, path), size)
        self._sizes.pop(path, None)
        self._entries.forget((*self._dataset, path))

    def _count(self, num_bytes: int) -> None:
        if num_bytes:
            self._counters.add(StorageStatistics(bytes_from_disk_cache=num_bytes))


# One for each directory and process, so that the datasets of a process look through it together.
@functools.lru_cache(maxsize=16)
def _caches(root: str, max_bytes: int, process_id: int) -> tuple[EntryCache, PieceCache]:
    del process_id
    entries = EntryCache(os.path.join(root, INDICES), max_bytes // _INDEX_SHARE)
    return entries, PieceCache(os.path.join(root, PIECES), max_bytes, entries)
