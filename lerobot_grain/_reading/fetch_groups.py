"""Decides which bytes are fetched together: neighbors in a file, episodes of a video file or row
groups of a data file, come in one request. Pure.

A request costs as much as some hundred KiB, so the file is cut into fixed pieces of that size.
Neighbors that begin in the same piece come together, if all of them will be needed sooner or
later, and stay in memory until then. Fixed pieces, and not the surroundings of whatever is needed
first: so no small rest stays between two requests, and it does not matter which of them is needed
first. A range that begins in a piece may end in the next one, so a request takes at most two
pieces. A range longer than a piece comes alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._video.video_file import VideoFile

# In the place of a piece: of what comes alone.
ALONE = -1


def pieces_of(
    starts: Integers, lengths: Integers, may_join: npt.NDArray[np.bool_], *, piece_bytes: int
) -> Integers:
    """Returns the piece that each part of a file begins in, int64 `(n,)`, or `ALONE`.

    Args:
      starts: int64 `(n,)`: its first byte.
      lengths: int64 `(n,)`: its bytes.
      may_join: bool `(n,)`: whether it may come with others.
      piece_bytes: the file is cut into pieces of so many bytes.
    """
    return np.where(may_join & (lengths <= piece_bytes), starts // piece_bytes, ALONE)


def joins(pieces: Integers) -> npt.NDArray[np.bool_]:
    """Returns of neighbors whether each comes together with the one after it, bool `(n - 1,)`."""
    found: npt.NDArray[np.bool_] = (pieces[:-1] == pieces[1:]) & (pieces[1:] != ALONE)
    return found


def episodes_fetched_together(
    file: VideoFile, needed_every_epoch: npt.NDArray[np.bool_], *, piece_bytes: int
) -> dict[int, list[int]]:
    """Puts the episodes of a video file into sets that are fetched together, where all of an
    episode is fetched.

    Episodes are together that are needed in every epoch, begin in the same piece, and have no GOP
    between them that belongs to neither.

    Args:
      needed_every_epoch: bool `(all episodes,)`: of which something will be needed.
      piece_bytes: as of `pieces_of`.

    Returns:
      Episode of the file -> those that it is together with, itself among them, in the order of the
      file.
    """
    extents = file.episode_extents()
    may_join = needed_every_epoch[extents.episodes] & ~extents.has_problem
    pieces = pieces_of(extents.starts, extents.lengths, may_join, piece_bytes=piece_bytes)
    order = np.lexsort((extents.last_gops, extents.first_gops))
    are_neighbors = extents.first_gops[order[1:]] <= extents.last_gops[order[:-1]] + 1
    is_together = joins(pieces[order]) & are_neighbors
    sets = [
        members.tolist()
        for members in np.split(extents.episodes[order], np.flatnonzero(~is_together) + 1)
    ]
    return {episode: members for members in sets for episode in members}


def row_groups_fetched_together(
    group: int,
    num_groups: int,
    extent_to_join: Callable[[int], ByteRange | None],
    *,
    piece_bytes: int,
) -> range:
    """Returns the row groups of a data file to fetch together with one, itself among them.

    Args:
      group: which.
      num_groups: of the file.
      extent_to_join: returns the bytes of a row group that are read, from the first to the last;
        `None`: it comes alone. It is asked only for as many as are needed, for each of which it
        looks into the footer.
      piece_bytes: as of `pieces_of`.
    """

    def piece_of(number: int) -> int:
        extent = extent_to_join(number)
        return (
            ALONE if extent is None or extent.length > piece_bytes else extent.start // piece_bytes
        )

    begin = group
    end = group + 1
    if (piece := piece_of(group)) != ALONE:
        while begin > 0 and piece_of(begin - 1) == piece:
            begin -= 1
        while end < num_groups and piece_of(end) == piece:
            end += 1
    return range(begin, end)
