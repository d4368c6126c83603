"""The column `timestamp` of episodes, for video files that have more frames than rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lerobot_grain._format.info import Feature
from lerobot_grain._reading.rows.data_files import (
    DataFile,
    fetch_row_groups,
    load_group,
    open_data_file,
)
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import FeatureSelection

_TIMESTAMP = "timestamp"


def episode_timestamps(
    repository: Repository, episodes: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.float64] | None]:
    """Reads the `timestamp` column of some episodes: of the row groups that hold them, that column
    and those that check and order rows.

    Args:
      repository: the dataset.
      episodes: int64 `(n,)`, positions in the episode table, in any order and of any data files.

    Returns:
      Of each episode float64 `(length,)`, seconds, in the order of its rows; `None` where its data
      file has no such column.

    Raises:
      DatasetFormatError: as `load_group`.
      StorageError: the bytes could not be read.
    """
    table = repository.episodes
    files = table.data.file_of_episode[episodes]
    found: list[npt.NDArray[np.float64] | None] = [None] * len(episodes)
    selection = FeatureSelection((Feature(_TIMESTAMP, "float64", (1,)),), (), ())
    for number in np.unique(files).tolist():
        file = open_data_file(repository, number)
        if _TIMESTAMP not in file.table.leaves:
            continue
        wanted = np.flatnonzero(files == number)
        starts = table.data_offsets[episodes[wanted]]
        stops = starts + table.lengths[episodes[wanted]]
        times = _timestamps_of_rows(repository, file, selection, starts, stops)
        for place, start, stop in zip(
            wanted.tolist(), starts.tolist(), stops.tolist(), strict=True
        ):
            found[place] = np.concatenate(
                [values[max(0, start - first) : max(0, stop - first)] for first, values in times]
            )
    return found


def _timestamps_of_rows(
    repository: Repository,
    file: DataFile,
    selection: FeatureSelection,
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """Returns the timestamps of the row groups that hold rows `[start, stop)` of the file: the
    first row of each, and its values.
    """
    bounds = np.array(file.table.group_starts)
    is_needed = np.zeros(len(bounds) - 1, np.bool_)
    for first, last in zip(
        np.searchsorted(bounds, starts, "right") - 1,
        np.searchsorted(bounds, stops, "left"),
        strict=True,
    ):
        is_needed[first:last] = True
    groups = np.flatnonzero(is_needed).tolist()
    known = repository.row_timestamps
    with known.reading(file.number):
        found = {group: known.get(file.number, group) for group in groups}
        if missing := [group for group, values in found.items() if values is None]:
            with repository.storage.checked(file.table.path):
                held = (
                    file
                    if file.table.is_in_memory or len(missing) < 2
                    else fetch_row_groups(repository, file, missing, selection)
                )
            for group in missing:
                values = np.asarray(
                    load_group(repository, held, group, selection).columns[_TIMESTAMP], np.float64
                )
                found[group] = values
                known.keep(file.number, group, values)
    return [
        (file.table.group_starts[group], values)
        for group, values in found.items()
        if values is not None
    ]
