"""Video and rows on disk: what was fetched stays, in the pieces in which it was fetched.

The idea: what lies on disk is found by listing the directories of the cells (`piece_files`) of a
range, one or two mostly. So other runs may ask for other ranges, and nothing is held in memory.

When the limit does not hold all, cells are kept in ascending order of their hash. An epoch asks
for everything once, so what was used longest ago is what is needed next: to delete that would keep
nothing of an epoch that is longer than the cache. The hash keeps the same share in every epoch and
process, and a larger limit keeps a superset.

Rules:
* As in `entry_cache`: nothing here fails, nothing is locked, a piece is written under another name
  and then moved into place, and nothing is deleted but files with our names.
* Nobody keeps the sum of all pieces, which kills would make wrong: each process looks through the
  directory at its first write, and again whenever it has written a 128th of the limit. It then
  deletes what is above 15/16 of the limit, so four processes may write at the same time.
* A dataset of which nothing was read for 14 days goes before anything else.
* A part of the disk stays free (`_FREE_BYTES`), for the checkpoints of the training.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from array import array

from lerobot_grain._base.byte_ranges import ByteRange, Part
from lerobot_grain._storage.disk.entry_cache import EntryCache, delete, on_disk, say_unwritable
from lerobot_grain._storage.disk.piece_files import (
    ABOUT,
    CELL_BYTES,
    DIRECTORY_BYTES,
    cells_in,
    cells_of,
    checksums_of,
    delete_cell,
    file_bytes,
    hash_of,
    hashed_folders,
    last_use,
    piece_path,
    read_cell,
    remove_empty,
    write_piece,
)

# Shares of the limit: what stays free for other writers, and what is written (or, more rarely, not
# admitted) before the directory is looked through again. No piece is longer than the latter.
_RESERVE = 16
_STEP = 128
_REFUSED_STEPS = 16
# How many sets the cells are counted in, by the beginnings of their hashes: only one of these sets
# is sorted, so memory does not grow with the cache.
_SETS = 4096
_SET_DIGITS = 3
_UNUSED_SECONDS = 14 * 86400.0
_TOUCH_SECONDS = 3600.0
# A sixteenth of a disk stays free, and at most so much.
_FREE_SHARE = 16
_FREE_BYTES = 4 << 30


class PieceCache:
    """Bytes of files by their place, in one directory. Thread-safe.

    Args:
      directory: need not exist, may be read-only, may be shared.
      max_bytes: that all files take, those of `entries` included. With 0 nothing is kept and
        nothing found.
      entries: the indices, which share the limit.
    """

    def __init__(self, directory: str, max_bytes: int, entries: EntryCache) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._entries = entries
        self._step = max_bytes // _STEP
        self._piece_bytes = max(DIRECTORY_BYTES, min(CELL_BYTES, self._step))
        # Held while something is written or looked for, so that this process never exceeds its
        # share of the limit, however many threads it has.
        self._lock = threading.Lock()
        # So much that the first `put` looks what there is.
        self._written = max(1, self._step)
        # The first piece that is not admitted, as (hash of its cell, start); None: all are.
        self._bound: tuple[str, int] | None = None
        self._touched: dict[str, float] = {}

    def get(self, file: tuple[str, ...], wanted: ByteRange) -> list[Part]:
        """Returns what lies on disk of a range of a file, sorted and disjoint.

        Args:
          file: dataset, commit and path.
          wanted: of its bytes.
        """
        if not self._max_bytes:
            return []
        dataset = self._dataset(file)
        found: list[Part] = []
        for cell, extent in cells_of(file, wanted):
            found += read_cell(os.path.join(dataset, cell), extent)
        if found:
            self._touch(dataset)
        return found

    def put(self, file: tuple[str, ...], start: int, payload: bytes) -> None:
        """Keeps bytes of a file, as far as they can be written and belong to the share."""
        if not self._max_bytes or not payload:
            return
        dataset = self._dataset(file)
        view = memoryview(payload)
        try:
            for cell, extent in cells_of(file, ByteRange(start, start + len(payload))):
                for begin in range(extent.start, extent.stop, self._piece_bytes):
                    piece = ByteRange(begin, min(begin + self._piece_bytes, extent.stop))
                    contents = view[piece.start - start : piece.stop - start]
                    with self._lock:
                        self._look_if_due()
                        is_above = self._is_above(cell, piece)
                        if is_above:
                            self._written += piece.length // _REFUSED_STEPS
                    if is_above:
                        continue
                    sealed = (contents, checksums_of(cell, piece, contents))
                    with self._lock:
                        self._look_if_due()
                        self._written += on_disk(file_bytes(piece)) + DIRECTORY_BYTES
                        self._check_free()
                        write_piece(dataset, cell, piece, sealed, about=file[0])
        except FileNotFoundError:
            return  # somebody empties the directory at this moment
        except OSError as error:
            say_unwritable(self._directory, error.strerror)

    def would_keep(self, file: tuple[str, ...], wanted: ByteRange) -> bool:
        """Returns whether some of a range of a file belongs to the share that is kept, as far as is
        known now.
        """
        if not self._max_bytes:
            return False
        with self._lock:
            self._look_if_due()
        return any(not self._is_above(cell, extent) for cell, extent in cells_of(file, wanted))

    def forget(self, file: tuple[str, ...], size_bytes: int) -> None:
        """Deletes all pieces of a file of `size_bytes`."""
        dataset = self._dataset(file)
        for cell, _ in cells_of(file, ByteRange(0, size_bytes)):
            delete_cell(os.path.join(dataset, cell))

    def _dataset(self, file: tuple[str, ...]) -> str:
        return os.path.join(self._directory, hash_of(*file[:-1]))

    def _touch(self, dataset: str) -> None:
        """Marks a dataset as used now, once an hour."""
        now = time.monotonic()
        if now - self._touched.get(dataset, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[dataset] = now
            with contextlib.suppress(OSError):
                os.utime(os.path.join(dataset, ABOUT))

    # Writing. The lock is held.

    def _look_if_due(self) -> None:
        if self._written >= self._step:
            self._look()
            self._written = 0

    def _is_above(self, cell: str, piece: ByteRange) -> bool:
        """Returns whether a piece does not belong to the share that is kept."""
        return self._bound is not None and (cell, piece.start) >= self._bound

    def _check_free(self) -> None:
        """Raises:
        OSError: what must stay free of the disk is all that is free.
        """
        if not hasattr(os, "statvfs"):
            return
        with contextlib.suppress(FileNotFoundError):
            status = os.statvfs(self._directory)
            kept_free = min(status.f_blocks * status.f_frsize // _FREE_SHARE, _FREE_BYTES)
            if status.f_bavail * status.f_frsize < kept_free:
                raise OSError(errno.ENOSPC, f"{kept_free / 1e9:.2g} GB of the disk stay free")

    # The limit. The lock is held.

    def _look(self) -> None:
        """Looks through the directory, deletes what is above the limit, and finds the bound."""
        allowed = self._max_bytes - self._max_bytes // _RESERVE - self._entries.total_bytes()
        by_set, highest = self._count()
        if sum(by_set) > allowed and self._delete_unused(sum(by_set) - allowed):
            by_set, highest = self._count()
        total = sum(by_set)
        if total > allowed:
            self._bound = self._delete_above(by_set, total - max(0, allowed))
        else:
            # Almost full counts as full: what is admitted above the share would be deleted soon.
            is_full = total > allowed - 2 * self._step
            self._bound = (highest, 1 << 63) if is_full else None

    def _count(self) -> tuple[array[int], str]:
        """Returns the bytes of each set of cells, and the highest hash of a cell."""
        by_set = array("q", bytes(8 * _SETS))
        highest = ""
        for dataset in hashed_folders(self._directory):
            for cell in cells_in(dataset.path):
                by_set[_set_of(cell.name)] += cell.nbytes
                highest = max(highest, cell.name)
        return by_set, highest

    def _delete_unused(self, excess: int) -> bool:
        """Deletes datasets that were not used for long, those used longest ago first, until
        `excess` bytes are gone; returns whether there were any.
        """
        unused = []
        for dataset in hashed_folders(self._directory):
            with contextlib.suppress(OSError):
                used = last_use(dataset.path)
                if used < time.time() - _UNUSED_SECONDS:
                    unused.append((used, dataset.path))
        for _, path in sorted(unused):
            for cell in cells_in(path):
                delete_cell(cell.path)
                excess -= cell.nbytes
            delete(os.path.join(path, ABOUT))
            remove_empty(path)
            if excess <= 0:
                break
        return bool(unused)

    def _delete_above(self, by_set: array[int], excess: int) -> tuple[str, int]:
        """Deletes the pieces with the highest hashes, `excess` bytes of them or a little more;
        returns the first that is not kept.
        """
        split = _SETS - 1  # the set of which only a part is deleted
        while split > 0 and by_set[split] <= excess:
            excess -= by_set[split]
            split -= 1
        pieces: list[tuple[str, ByteRange, str]] = []
        for dataset in hashed_folders(self._directory):
            for cell in cells_in(dataset.path):
                if _set_of(cell.name) > split:
                    delete_cell(cell.path)
                elif _set_of(cell.name) == split:
                    pieces += [(cell.name, piece, cell.path) for piece in cell.pieces]
        # "g" comes after all hexadecimal digits.
        bound = (f"{split + 1:0{_SET_DIGITS}x}" if split + 1 < _SETS else "g", 0)
        for name, piece, folder in sorted(pieces, reverse=True):
            if excess <= 0:
                break
            delete(piece_path(folder, piece))
            remove_empty(folder)
            excess -= on_disk(file_bytes(piece))
            bound = (name, piece.start)
        return bound


def _set_of(cell: str) -> int:
    return int(cell[:_SET_DIGITS], 16)
