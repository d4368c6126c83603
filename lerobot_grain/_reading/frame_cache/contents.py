"""Lists and deletes the files of frames in a directory, for people and programs that look after a
disk. Which dataset, camera and size a file is of is read from the text at its start.

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

from lerobot_grain._reading.frame_cache.episode_frames import about_in

_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.frames")
_SIZE = re.compile(r"\((\d+), (\d+)\)", re.ASCII)


class KeptFrames(NamedTuple):
    """Frames of one camera of a dataset, in one size.

    Attributes:
      dataset: as `Repository.description` has it; empty: not known.
      camera: its key; empty: not known.
      image_size: (height, width) that they were resized to; `None`: as they were recorded.
      files: so many, one an episode.
      num_bytes: of the files, as `ReadOptions.frame_cache_bytes` counts them. A file has its full
        size from the beginning, so the disk may hold less.
      last_used: seconds since 1970, within a day.
    """

    dataset: str
    camera: str
    image_size: tuple[int, int] | None
    files: int
    num_bytes: int
    last_used: float


def kept_frames(directory: str) -> list[KeptFrames]:
    """Returns what a directory holds, sorted by dataset, camera and size."""
    found: dict[tuple[str, str, tuple[int, int] | None], KeptFrames] = {}
    for entry in _files(directory):
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            about = _parsed(about_in(entry.path))
            before = found.get(about, KeptFrames(*about, 0, 0, 0.0))
            found[about] = before._replace(
                files=before.files + 1,
                num_bytes=before.num_bytes + status.st_size,
                last_used=max(before.last_used, status.st_mtime),
            )
    return sorted(found.values(), key=lambda each: (*each[:2], each.image_size or (0, 0)))


def delete_frames(directory: str, is_meant: Callable[[str], bool]) -> int:
    """Deletes the files of the datasets that are meant.

    Args:
      directory: of the files.
      is_meant: called with `KeptFrames.dataset`.

    Returns:
      The bytes of the files that are gone, counted as `KeptFrames.num_bytes`.
    """
    deleted = 0
    for entry in _files(directory):
        with contextlib.suppress(OSError):
            size = entry.stat(follow_symlinks=False).st_size
            if is_meant(_parsed(about_in(entry.path))[0]):
                os.unlink(entry.path)
                deleted += size
    return deleted


def _files(directory: str) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry


def _parsed(about: str) -> tuple[str, str, tuple[int, int] | None]:
    """Returns dataset, camera and size of the text at the start of a file."""
    # The path of a directory may have several lines; the other parts have one.
    parts = about.rsplit("\n", 3)
    if len(parts) != 4:
        return "", "", None
    dataset, camera, size, _ = parts
    resized = _SIZE.fullmatch(size)
    return dataset, camera, None if resized is None else (int(resized[1]), int(resized[2]))
