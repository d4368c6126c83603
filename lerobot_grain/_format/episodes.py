"""The episode table: what `meta/episodes` says, as arrays.

Row <-> (episode, frame), and where each episode lies in its files.

Structs of read-only arrays, one element an episode, in the order of their rows: 130,000 episodes of
three cameras are 20 MB. Everything about files follows the chunk and file indices of the table;
nothing is found by listing (one real dataset holds a second copy of its table under a name that a
glob would match).

An episode has a number, by which users, files and messages know it, and a position in the table, by
which everything here counts. They are the same but where numbers have gaps, as in some datasets of
v2.x, which have the number in the name of every file. The positions are in the order of the
numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers, read_only
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._format.info import DatasetInfo, PathTemplate

Seconds = npt.NDArray[np.float64]

# Names that other recorders give to columns.
_OTHER_NAMES = {"data/chunk_index": "data_chunk_index", "data/file_index": "data_file_index"}

# Files are counted far below this.
_MAX_INTEGER = 1 << 40
# 40,000 hours at 30 fps. The order of an epoch takes memory for them all.
_MAX_ROWS = 1 << 32
# 30 years in one file; ticks of it, of any timescale, fit into 63 bits.
_MAX_SECONDS = 1e9

_MAX_SHOWN = 6


@dataclass(frozen=True, slots=True)
class FileSpans:
    """In which file each episode lies.

    Attributes:
      paths: the distinct files.
      file_of_episode: int64 `(episodes,)`, number of the file in `paths`.
      first_of_file: int64 `(files + 1,)`: the episodes of file f, in the order of their rows, are
        `by_file[first_of_file[f]:first_of_file[f + 1]]`.
      by_file: int64 `(episodes,)`.
    """

    paths: tuple[str, ...]
    file_of_episode: Integers
    first_of_file: Integers
    by_file: Integers

    def episodes_in(self, file: int) -> Integers:
        """Returns the positions in the table of the episodes in a file, in the order of
        their rows.
        """
        return self.by_file[self.first_of_file[file] : self.first_of_file[file + 1]]


@dataclass(frozen=True, slots=True)
class VideoSpans:
    """The place of each episode in the video of one camera.

    Attributes:
      files: in which file.
      from_timestamp_seconds: float64 `(episodes,)`, counted from the start of its file.
    """

    files: FileSpans
    from_timestamp_seconds: Seconds


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """All episodes of a dataset, in the order of their numbers.

    Attributes:
      first_rows: int64 `(episodes,)`, row of frame 0.
      lengths: int64 `(episodes,)`, frames, > 0.
      data: in which data file.
      data_offsets: int64 `(episodes,)`, place of frame 0 in its data file, in rows: the rows of a
        file are those of its episodes in order.
      videos: camera key -> where in its video. A declared camera that the table says nothing about
        is absent.
      notes: what was repaired and does not change what is read.
      own_numbers: int64 `(episodes,)`, ascending: the numbers of the episodes, where they have
        gaps; `None`: they are 0, 1, 2, ...
    """

    first_rows: Integers
    lengths: Integers
    data: FileSpans
    data_offsets: Integers
    videos: Mapping[str, VideoSpans]
    notes: tuple[str, ...] = ()
    own_numbers: Integers | None = None

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def numbers(self) -> Integers:
        """The numbers of all episodes, int64 `(episodes,)`, ascending."""
        return np.arange(self.num_episodes) if self.own_numbers is None else self.own_numbers

    def number_of(self, position: int) -> int:
        """Returns the number of an episode by its position in the table."""
        return int(position) if self.own_numbers is None else self.own_numbers.item(position)

    def numbers_of(self, positions: Integers) -> Integers:
        """Returns int64 `(n,)`: the numbers of episodes by their positions."""
        return positions if self.own_numbers is None else self.own_numbers[positions]

    @property
    def num_rows(self) -> int:
        return int(self.first_rows[-1] + self.lengths[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """Returns (number of the episode, frame) of a row.

        Raises:
          InvalidRequestError: there is no such row.
        """
        position, frame = self.place_of(row)
        return self.number_of(position), frame

    def place_of(self, row: int) -> tuple[int, int]:
        """Returns (position of the episode, frame) of a row; raises as `locate`."""
        if not 0 <= row < self.num_rows:
            raise InvalidRequestError(f"row {row}: expected 0 <= row < {self.num_rows}")
        position = int(self.first_rows.searchsorted(row, side="right")) - 1
        return position, row - self.first_rows.item(position)

    def locate_all(self, rows: Integers) -> tuple[Integers, Integers]:
        """Returns (positions of episodes, frames), each int64 `(n,)`, of rows that exist."""
        episodes = self.first_rows.searchsorted(rows, side="right") - 1
        return episodes, rows - self.first_rows[episodes]

    def positions_of(self, numbers: Integers) -> Integers:
        """Returns int64 `(n,)`: the positions of episodes by their numbers; -1 where there
        is none.
        """
        if self.own_numbers is None:
            return np.where((numbers >= 0) & (numbers < self.num_episodes), numbers, -1)
        positions = np.minimum(np.searchsorted(self.own_numbers, numbers), self.num_episodes - 1)
        return np.where(self.own_numbers[positions] == numbers, positions, -1)

    @property
    def shown_numbers(self) -> str:
        """Which episodes there are, for messages: `0 to 9`, or `10, 20, 30, ..., 90`."""
        if self.own_numbers is None:
            return f"0 to {self.num_episodes - 1}"
        head = ", ".join(map(str, self.own_numbers[:_MAX_SHOWN].tolist()))
        return f"{head}, ..., {self.own_numbers[-1]}" if self.num_episodes > _MAX_SHOWN else head


def episode_table(
    columns: Mapping[str, npt.NDArray[Any]], *, info: DatasetInfo, where: str
) -> EpisodeTable:
    """Checks the columns of `meta/episodes` and makes the table of them.

    Args:
      columns: name -> array `(episodes,)` of the columns that `episode_columns` names, of all files
        of the table, one after the other. Those that no file has are absent.
      info: of the same dataset.
      where: names the table in messages.

    Raises:
      DatasetFormatError: a column is missing or contradicts another one.
    """
    episodes = _integers(columns, "episode_index", where)
    if len(episodes) == 0:
        raise DatasetFormatError(f"{where}: the table has no episode")
    order = np.argsort(episodes, kind="stable")
    # If a number is in the name of the file, it is plain which file belongs to it.
    may_have_gaps = info.major_version == 2 and "{episode_index" in info.data_path.text
    numbers = _checked_numbers(episodes[order], where, may_have_gaps=may_have_gaps)
    notes: list[str] = []
    columns = _with_usual_names(
        {name: values[order] for name, values in columns.items()}, notes
    ) | {"episode_index": numbers}
    lengths = _checked_lengths(columns, where)
    first_rows = np.cumsum(lengths) - lengths
    _check_row_bounds(columns, first_rows, lengths, where)
    data = _spans(
        columns,
        "data",
        where,
        lambda chunk, file: info.data_path.path(chunk_index=chunk, file_index=file),
    )
    return EpisodeTable(
        first_rows=read_only(first_rows),
        lengths=read_only(lengths),
        data=data,
        data_offsets=read_only(_offsets_in_files(data, lengths)),
        videos=_video_spans(columns, info, where, notes),
        notes=tuple(notes),
        own_numbers=None
        if np.array_equal(numbers, np.arange(len(numbers)))
        else read_only(numbers),
    )


def _checked_numbers(numbers: Integers, where: str, *, may_have_gaps: bool) -> Integers:
    """Returns the sorted numbers of the episodes."""
    if may_have_gaps:
        if numbers[0] < 0:
            raise DatasetFormatError(
                f"{where}: episode_index is {numbers[0]}; expected integers >= 0"
            )
        if (again := np.flatnonzero(numbers[1:] == numbers[:-1])).size:
            raise DatasetFormatError(
                f"{where}: episode_index {numbers[again[0]]} is there more than once; expected "
                "every episode once"
            )
    elif (odd := np.flatnonzero(numbers != np.arange(len(numbers)))).size:
        raise DatasetFormatError(
            f"{where}: episode_index should be 0, 1, 2, ... once each; found {numbers[odd[0]]} "
            f"where {odd[0]} was expected"
        )
    return numbers


def _checked_lengths(columns: Mapping[str, npt.NDArray[Any]], where: str) -> Integers:
    """Returns int64 `(episodes,)`: the frames of each episode."""
    lengths = _integers(columns, "length", where)
    if (bad := np.flatnonzero(lengths <= 0)).size:
        raise DatasetFormatError(
            f"{where}: episode {columns['episode_index'][bad[0]]} has length {lengths[bad[0]]}; "
            "expected at least 1 frame"
        )
    if lengths.sum(dtype=np.float64) > _MAX_ROWS:
        raise DatasetFormatError(
            f"{where}: the lengths add up to more than {_MAX_ROWS} frames, which no dataset holds"
        )
    return lengths


def _check_row_bounds(
    columns: Mapping[str, npt.NDArray[Any]], first_rows: Integers, lengths: Integers, where: str
) -> None:
    """Checks the columns that say where the rows of an episode begin and end, if they are there."""
    for name, expected in (
        ("dataset_from_index", first_rows),
        ("dataset_to_index", first_rows + lengths),
    ):
        if name not in columns:
            continue
        found = _integers(columns, name, where)
        if (bad := np.flatnonzero(found != expected)).size:
            i = bad[0]
            raise DatasetFormatError(
                f"{where}: episode {columns['episode_index'][i]} has {name} {found[i]}; expected "
                f"{expected[i]}, since the lengths of the episodes before it add up to "
                f"{first_rows[i]} and its own is {lengths[i]}"
            )


def episode_columns(info: DatasetInfo) -> tuple[str, ...]:
    """Returns the columns of `meta/episodes` that the table is made of.

    The many `stats/...` columns are not among them.
    """
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index", *_OTHER_NAMES]
    for key in _video_keys(info):
        names += [
            f"videos/{key}/{field}" for field in ("chunk_index", "file_index", "from_timestamp")
        ]
    return (*names, *_OTHER_NAMES.values())


def _video_keys(info: DatasetInfo) -> Sequence[str]:
    return [key for key, feature in info.features.items() if feature.is_video]


def _with_usual_names(
    columns: dict[str, npt.NDArray[Any]], notes: list[str]
) -> dict[str, npt.NDArray[Any]]:
    for usual, other in _OTHER_NAMES.items():
        if usual not in columns and other in columns:
            columns[usual] = columns[other]
            notes.append(f"there is no column {usual}; {other} is read in its place")
    return columns


def _video_spans(
    columns: Mapping[str, npt.NDArray[Any]], info: DatasetInfo, where: str, notes: list[str]
) -> dict[str, VideoSpans]:
    videos = {}
    for key in _video_keys(info):
        if info.video_path is None or not any(
            name.startswith(f"videos/{key}/") for name in columns
        ):
            # a camera without video: it raises where it is selected, and only there
            continue
        path = functools.partial(_video_path, info.video_path, key)
        spans = _spans(columns, f"videos/{key}", where, path)
        name = f"videos/{key}/from_timestamp"
        if name not in columns and len(spans.paths) == len(spans.by_file):
            found = np.zeros(len(spans.by_file))
            notes.append(
                f"there is no column {name}; every episode has a video file of its own, and "
                "begins with it"
            )
        elif name not in columns:
            raise DatasetFormatError(
                f"{where}: there is no column {name}; expected the seconds at which each episode "
                "starts in its video"
            )
        else:
            found = columns[name]
        if found.dtype.kind not in "fiu":
            raise DatasetFormatError(
                f"{where}: column {name} has values of type {found.dtype}; expected seconds"
            )
        starts = np.asarray(found, np.float64)
        if (bad := np.flatnonzero(~((starts >= 0) & (starts < _MAX_SECONDS)))).size:
            number = columns["episode_index"][bad[0]]
            raise DatasetFormatError(
                f"{where}: episode {number} has {name} {starts[bad[0]]}; expected seconds >= 0 "
                f"and < {_MAX_SECONDS:g}"
            )
        videos[key] = VideoSpans(spans, read_only(starts))
    return videos


def _video_path(template: PathTemplate, key: str, chunk: int, file: int) -> str:
    return template.path(video_key=key, chunk_index=chunk, file_index=file)


def _spans(
    columns: Mapping[str, npt.NDArray[Any]],
    prefix: str,
    where: str,
    path: Callable[[int, int], str],
) -> FileSpans:
    chunks = _integers(columns, f"{prefix}/chunk_index", where)
    files = _integers(columns, f"{prefix}/file_index", where)
    if (bad := np.flatnonzero((chunks < 0) | (files < 0))).size:
        raise DatasetFormatError(
            f"{where}: episode {columns['episode_index'][bad[0]]} has {prefix}/chunk_index "
            f"{chunks[bad[0]]} and file_index {files[bad[0]]}; expected both >= 0"
        )
    distinct, file_of_episode = np.unique(np.stack((chunks, files)), axis=1, return_inverse=True)
    file_of_episode = file_of_episode.reshape(-1).astype(np.int64)
    by_file = np.argsort(file_of_episode, kind="stable")
    first_of_file = np.searchsorted(file_of_episode[by_file], np.arange(distinct.shape[1] + 1))
    paths = tuple(path(int(chunk), int(file)) for chunk, file in distinct.T)
    return FileSpans(
        paths, read_only(file_of_episode), read_only(first_of_file), read_only(by_file)
    )


def _offsets_in_files(spans: FileSpans, lengths: Integers) -> Integers:
    """Returns the number of rows before each episode in its file."""
    ordered = lengths[spans.by_file]
    before = np.cumsum(ordered) - ordered
    offsets = np.empty(len(lengths), np.int64)
    offsets[spans.by_file] = (
        before - before[spans.first_of_file[spans.file_of_episode[spans.by_file]]]
    )
    return offsets


def _integers(columns: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> Integers:
    if name not in columns:
        raise DatasetFormatError(
            f"{where}: there is no column {name}; the table has "
            f"{', '.join(columns)[:400] or 'none of the columns that are needed'}"
        )
    values = columns[name]
    if values.dtype == np.float16:
        values = values.astype(np.float64)  # half a float does not hold the limit below
    # Other recorders write integers as doubles; a missing value arrives as NaN.
    if values.dtype.kind not in "fiu" or not (
        np.isfinite(values).all() and (values == np.floor(values)).all()
    ):
        raise DatasetFormatError(
            f"{where}: column {name} has values of type {values.dtype} that are not all integers"
        )
    if len(values) and (values.max() > _MAX_INTEGER or values.min() < -_MAX_INTEGER):
        raise DatasetFormatError(
            f"{where}: column {name} has values above {_MAX_INTEGER}, which no dataset holds"
        )
    return values.astype(np.int64)
