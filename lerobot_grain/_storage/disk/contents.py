"""Lists and deletes what the disk cache holds, for people and programs that look after a disk.

Pieces are known by dataset and commit, from the file `about` in their directory. Indices are named
by hashes only, so it is not known which dataset they belong to: they are counted together.

Rules:
* Nothing is deleted but files with our names. Others may read and write meanwhile.
* Nothing here fails: what cannot be read is not listed, what cannot be deleted is not counted as
  deleted.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lerobot_grain._storage.disk.entry_cache import delete, on_disk, opened
from lerobot_grain._storage.disk.piece_files import (
    ABOUT,
    cells_in,
    delete_cell,
    hashed_folders,
    last_use,
    remove_empty,
)

# The names of the directories of pieces and of indices; the latter is older than the former.
PIECES = "pieces"
INDICES = "ranges"
_INDEX = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}(\.[0-9a-f]{16})?\.kept")
# The name of a dataset is not longer.
_ABOUT_BYTES = 4096


class KeptPieces(NamedTuple):
    """Pieces of the files of one dataset.

    Attributes:
      dataset: name and commit, as `Repository.description` has them; empty: not known.
      pieces: so many.
      num_bytes: that they take on disk.
      last_used: seconds since 1970.
    """

    dataset: str
    pieces: int
    num_bytes: int
    last_used: float


class KeptIndices(NamedTuple):
    """Indices of the files of all datasets.

    Attributes:
      files: so many.
      num_bytes: that they take on disk.
    """

    files: int
    num_bytes: int


def kept_pieces(root: str) -> list[KeptPieces]:
    """Returns the datasets of which video or rows are kept below `root`, sorted by name."""
    found = map(_pieces_in, hashed_folders(os.path.join(root, PIECES)))
    return sorted(each for each in found if each.pieces)


def kept_indices(root: str) -> KeptIndices:
    """Returns how many indices are kept below `root`."""
    sizes = []
    for entry in _indices(root):
        with contextlib.suppress(OSError):
            sizes.append(on_disk(entry.stat(follow_symlinks=False).st_size))
    return KeptIndices(len(sizes), sum(sizes))


def delete_pieces(root: str, is_meant: Callable[[str], bool]) -> int:
    """Deletes the pieces of the datasets that are meant.

    Args:
      root: the directory of the disk cache.
      is_meant: called with `KeptPieces.dataset`.

    Returns:
      The bytes of the disk that are free now.
    """
    deleted = 0
    for folder in hashed_folders(os.path.join(root, PIECES)):
        before = _pieces_in(folder)
        if not is_meant(before.dataset):
            continue
        for cell in cells_in(folder.path):
            delete_cell(cell.path)
        left = _pieces_in(folder)
        if not left.pieces:
            delete(os.path.join(folder.path, ABOUT))
            remove_empty(folder.path)
        deleted += before.num_bytes - left.num_bytes
    return deleted


def delete_indices(root: str) -> int:
    """Deletes all indices; returns the bytes of the disk that are free now."""
    deleted = 0
    for entry in _indices(root):
        with contextlib.suppress(OSError):
            size = on_disk(entry.stat(follow_symlinks=False).st_size)
            os.unlink(entry.path)
            deleted += size
    return deleted


def _pieces_in(folder: os.DirEntry[str]) -> KeptPieces:
    pieces = 0
    num_bytes = 0
    for cell in cells_in(folder.path):
        pieces += len(cell.pieces)
        num_bytes += cell.nbytes
    used = 0.0
    with contextlib.suppress(OSError):
        used = last_use(folder.path)
    return KeptPieces(_about(folder.path), pieces, num_bytes, used)


def _about(folder: str) -> str:
    """Returns the name of a dataset, by its directory."""
    with contextlib.suppress(OSError), opened(os.path.join(folder, ABOUT)) as file:
        return file.read(_ABOUT_BYTES).decode("utf-8", "replace").removesuffix("\n")
    return ""


def _indices(root: str) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(os.path.join(root, INDICES)) as entries:
        for entry in entries:
            if _INDEX.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry
