"""The contents of the two caches on disk, and deleting them: coded bytes (video, rows, indices)
and decoded frames. Returns values; prints nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._reading.frame_cache.contents import KeptFrames, delete_frames, kept_frames
from lerobot_grain._storage.disk.contents import (
    KeptIndices,
    KeptPieces,
    delete_indices,
    delete_pieces,
    kept_indices,
    kept_pieces,
)
from lerobot_grain._storage.hub.address import disk_cache_directory, frame_cache_directory

_COMMIT = re.compile(r"@[0-9a-f]{12}")
# Datasets that a message names.
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheContents:
    """Everything that lies in the caches on disk.

    Attributes:
      directory: of coded bytes.
      pieces: video and rows, by dataset.
      indices: of the files of all datasets together.
      frame_directory: of decoded frames.
      frames: by dataset, camera and size.
    """

    directory: str
    pieces: tuple[KeptPieces, ...]
    indices: KeptIndices
    frame_directory: str
    frames: tuple[KeptFrames, ...]

    @property
    def coded_bytes(self) -> int:
        """Bytes of the disk that video, rows and indices take."""
        return sum(each.num_bytes for each in self.pieces) + self.indices.num_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of all files of frames."""
        return sum(each.num_bytes for each in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearedCaches:
    """The sizes of what was deleted.

    Attributes:
      coded_bytes: of video, rows and indices.
      frame_bytes: of files of frames.
    """

    coded_bytes: int
    frame_bytes: int


def cache_contents(frame_directory: str | None = None) -> CacheContents:
    """Lists what lies in the caches. Reads the names of all files, and the start of some.

    Args:
      frame_directory: of decoded frames; `None`: the default of `ReadOptions`.
    """
    directory = disk_cache_directory()
    frames = os.path.abspath(frame_directory or frame_cache_directory())
    return CacheContents(
        directory=directory,
        pieces=tuple(kept_pieces(directory)),
        indices=kept_indices(directory),
        frame_directory=frames,
        frames=tuple(kept_frames(frames)),
    )


def clear_caches(name: str | None, frame_directory: str | None = None) -> ClearedCaches:
    """Deletes what lies in the caches. A stream that reads meanwhile fetches and decodes again.

    Args:
      name: of a dataset, with `@` and its commit or without (then all commits are meant); `None`:
        everything. The indices of one dataset are not known by its name, so they stay; they are
        small, and those used longest ago go first.
      frame_directory: as for `cache_contents`.

    Raises:
      InvalidRequestError: nothing of a dataset of that name is kept.
    """
    if name == "":
        raise InvalidRequestError(
            "the name of a dataset is empty; leave it out to clear everything"
        )
    contents = cache_contents(frame_directory)
    is_meant = _always if name is None else _named(name)
    if name is not None:
        names = [each.dataset for each in contents.pieces]
        known = dict.fromkeys(names + [each.dataset for each in contents.frames])
        if not any(map(is_meant, known)):
            there = ", ".join(filter(None, list(known)[:_NAMED])) or "nothing else"
            more = ", ..." if len(known) > _NAMED else ""
            raise InvalidRequestError(
                f"nothing of {name!r} is kept in {contents.directory} or "
                f"{contents.frame_directory}; there is {there}{more}"
            )
    coded = delete_pieces(contents.directory, is_meant)
    if name is None:
        coded += delete_indices(contents.directory)
    return ClearedCaches(
        coded_bytes=coded, frame_bytes=delete_frames(contents.frame_directory, is_meant)
    )


def _always(dataset: str) -> bool:
    del dataset
    return True


def _named(name: str) -> Callable[[str], bool]:
    def is_meant(dataset: str) -> bool:
        rest = dataset.removeprefix(name) if dataset.startswith(name) else None
        return rest is not None and (not rest or _COMMIT.fullmatch(rest) is not None)

    return is_meant
