"""`meta/` of a dataset: the episode table, the texts of tasks and subtasks, and the statistics.

The tables of v3 are read here, the files of v2.x by `_repository/metadata_v2`, which gives the same
columns. Only the few columns that are needed are read from the episode tables: the statistics of
every episode would be a hundred times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.episodes import EpisodeTable, episode_columns, episode_table
from lerobot_grain._format.info import DatasetInfo
from lerobot_grain._format.layout import (
    EPISODES_FOLDER,
    EPISODES_PATH,
    EPISODES_PATH_V2,
    EPISODES_STATS_PATH_V2,
    STATS_PATH,
)
from lerobot_grain._format.texts import texts_of_table
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns
from lerobot_grain._repository import metadata_v2 as v2
from lerobot_grain._repository.stats_file import Statistics, parse_stats
from lerobot_grain._storage.base import Storage

# A metadata file is refused above these sizes before it is read; the largest public datasets have
# a hundredth of them.
_MAX_STATS_BYTES = 8 << 20
_MAX_TABLE_BYTES = 1 << 30
# Rows may be packed to nothing. The largest public datasets have 2 million episodes and 100,000
# tasks.
_MAX_EPISODES = 1 << 22
MAX_TASKS = 1 << 20
# Up to this size a table is fetched whole, into the Hub's cache, where it costs nothing the next
# time; above, only its projected columns are read.
_WHOLE_TABLE_BYTES = 8 << 20


def read_episodes(storage: Storage, listing: Mapping[str, int], info: DatasetInfo) -> EpisodeTable:
    """Reads the episode table, of any version.

    Raises:
      DatasetFormatError: it is missing or malformed, or has too many rows.
      StorageError: the bytes could not be read.
    """
    if info.major_version == 2:
        path = EPISODES_PATH_V2
        columns = v2.read_episode_columns(storage, listing, info, max_episodes=_MAX_EPISODES)
    else:
        path = EPISODES_FOLDER
        columns = read_episode_columns(storage, listing, episode_columns(info))
    return episode_table(columns, info=info, where=f"{storage.description}, {path}")


def read_episode_columns(
    storage: Storage, listing: Mapping[str, int], wanted: tuple[str, ...]
) -> dict[str, npt.NDArray[Any]]:
    """Returns name -> array `(episodes,)`, in the order of the files, of the columns of
    `meta/episodes` that there are.
    """
    # Only names of the format count: a real dataset holds a second copy of its table in another
    # folder under meta/episodes.
    numbered = sorted(
        (int(match[1]), int(match[2]), path)
        for path in listing
        if (match := EPISODES_PATH.fullmatch(path))
    )
    if not numbered:
        raise DatasetFormatError(
            f"{storage.description}, {EPISODES_FOLDER}: there is no episode table; expected "
            "meta/episodes/chunk-000/file-000.parquet"
        )
    pieces: list[dict[str, npt.NDArray[Any]]] = []
    left = _MAX_EPISODES
    for _, _, path in numbered:
        pieces.append(_read_table(storage, path, listing[path], wanted, max_rows=left))
        left -= max(map(len, pieces[-1].values()), default=0)
    names = [name for name in wanted if any(name in piece for piece in pieces)]
    for (_, _, path), piece in zip(numbered, pieces, strict=True):
        if missing := [name for name in names if name not in piece]:
            raise DatasetFormatError(
                f"{storage.description}, {path}: there is no column {missing[0]}, which other "
                "files of the episode table have"
            )
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def _read_table(
    storage: Storage, path: str, size_bytes: int, columns: tuple[str, ...] | None, *, max_rows: int
) -> dict[str, npt.NDArray[Any]]:
    with storage.checked(path):
        if size_bytes > _WHOLE_TABLE_BYTES:
            table = open_table(storage, path)
        else:
            table = open_table(
                InMemoryFile(
                    storage.description, storage.read_metadata(path, max_bytes=_MAX_TABLE_BYTES)
                ),
                path,
            )
        if table.num_rows > max_rows:
            raise DatasetFormatError(
                f"{table.where}: it has {table.num_rows} rows; at most {max_rows} are read"
            )
        return read_columns(table, columns)


def read_texts(
    storage: Storage, listing: Mapping[str, int], path: str, kind: str
) -> dict[int, str]:
    """Returns the texts of tasks or subtasks by their number."""
    if path not in listing:
        raise DatasetFormatError(
            f"{storage.description}: there is no {path}; expected the table of {kind} texts"
        )
    columns = _read_table(storage, path, listing[path], None, max_rows=MAX_TASKS)
    return texts_of_table(columns, kind, where=f"{storage.description}, {path}")


def read_stats(
    storage: Storage, info: DatasetInfo, episodes: EpisodeTable
) -> tuple[Statistics | None, tuple[str, ...]]:
    """Returns the statistics, and notes about them."""
    listing = storage.list_metadata()
    if info.major_version == 2 and EPISODES_STATS_PATH_V2 in listing:
        return v2.read_episodes_stats(storage, listing, info, episodes.numbers), ()
    if STATS_PATH not in listing:
        return None, ()
    with storage.checked(STATS_PATH):
        return parse_stats(
            storage.read_metadata(STATS_PATH, max_bytes=_MAX_STATS_BYTES),
            where=f"{storage.description}, {STATS_PATH}",
        )


def stats_path(info: DatasetInfo) -> str:
    """Returns where a dataset has its statistics, for messages."""
    return EPISODES_STATS_PATH_V2 if info.codebase_version == "v2.1" else STATS_PATH
