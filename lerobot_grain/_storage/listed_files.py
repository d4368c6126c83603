"""The common part of storages without versions: buckets of the Hub, and object stores.

The idea: files are overwritten in place there. So they are listed once, when the dataset is opened,
and each is pinned by what the store tells of its contents. A hash of that list stands for the
commit.

Rules:
* Only `meta/`, `data/` and `videos/` are listed and read: what else lies there (checkpoints of the
  training that reads it) may be many files, and may change.
* A file that is not in the list does not exist. One that was changed or deleted since is an error,
  never other bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

from lerobot_grain._base.errors import MissingFileError
from lerobot_grain._format.layout import METADATA
from lerobot_grain._storage.base import check_path

# Ends the messages about a file that is not the one that was pinned.
CHANGED = (
    "the bucket was changed after it was opened: open it again and begin a new stream; "
    "to be safe from changes, read a copy of it, or a dataset repository, which has commits"
)


class Listed(Protocol):
    """A file of a list."""

    @property
    def size_bytes(self) -> int:
        """Its size."""


def commit_of_files(files: Iterable[tuple[str, int, str]]) -> str:
    """Returns 40 hexadecimal digits that change with the name, size or contents of any of the
    files.

    Args:
      files: path, size in bytes, and what tells contents from others; in order of paths.
    """
    digest = hashlib.sha256()
    for path, size_bytes, contents in files:
        digest.update(f"{path} {size_bytes} {contents}\n".encode())
    return digest.hexdigest()[:40]


def listed_metadata(files: Mapping[str, Listed]) -> dict[str, int]:
    """Returns path -> size in bytes of the files of `meta/`."""
    return {
        path: file.size_bytes for path, file in files.items() if path.startswith(f"{METADATA}/")
    }


def listed_size(description: str, files: Mapping[str, Listed], path: str) -> int:
    """Returns the size in bytes of a file.

    Raises:
      DatasetFormatError: see `check_path`.
      MissingFileError: it is not in the list.
    """
    check_path(description, path)
    if (file := files.get(path)) is None:
        raise MissingFileError(
            f"{description}: there is no file {path} (nor any outside of meta/, data/ and videos/)"
        )
    return file.size_bytes
