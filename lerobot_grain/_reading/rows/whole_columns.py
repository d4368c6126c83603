"""Reads one column of all rows of a dataset, for what is decided before a stream is begun."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.features import Feature
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.rows.data_files import fetch_row_groups, load_group, open_data_file
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import FeatureSelection

# Files that are read at a time.
_THREADS = 4


def read_whole_column(
    repository: Repository, feature: Feature, *, selected: Integers
) -> npt.NDArray[np.generic]:
    """Returns the values of a feature with one number a row, `(rows of the dataset,)`.

    Args:
      selected: int64 `(n,)`, positions of episodes; the rows of others are 0.

    Raises:
      DatasetFormatError: a value is missing, or a file is not what the metadata says.
      StorageError: the bytes could not be read.
    """
    episodes = repository.episodes
    values = np.zeros(episodes.num_rows, np.dtype(feature.dtype))
    numbers = np.unique(episodes.data.file_of_episode[selected]).tolist()
    is_selected = np.zeros(episodes.num_episodes, np.bool_)
    is_selected[selected] = True

    def read(number: int) -> None:
        there = episodes.data.episodes_in(number)
        held = there[is_selected[there]]
        of_file = _read_file(repository, number, feature, held)
        for episode in held.tolist():
            length = episodes.lengths.item(episode)
            first = episodes.first_rows.item(episode)
            begin = episodes.data_offsets.item(episode)
            values[first : first + length] = of_file[begin : begin + length]

    with DaemonPool(_THREADS, "lerobot_grain column") as pool:
        for made in [pool.submit(read, number) for number in numbers]:
            made.result()
    return values


def _read_file(
    repository: Repository, number: int, feature: Feature, held: Integers
) -> npt.NDArray[np.generic]:
    """Returns the values of a data file, `(rows of the file,)`; those of episodes that are not in
    `held` may be 0.
    """
    file = open_data_file(repository, number)
    episodes = repository.episodes
    selection = FeatureSelection((feature,), (), ())
    begins = episodes.data_offsets[held]
    stops = begins + episodes.lengths[held]
    groups = [
        group
        for group, (start, stop) in enumerate(itertools.pairwise(file.table.group_starts))
        if ((begins < stop) & (stops > start)).any()
    ]
    values = np.zeros(file.table.num_rows, np.dtype(feature.dtype))
    with repository.storage.checked(file.table.path):
        fetched = fetch_row_groups(repository, file, groups, selection)
        for group in groups:
            loaded = load_group(repository, fetched, group, selection)
            column = loaded.columns[feature.key]
            values[loaded.first_row : loaded.first_row + len(column)] = column
    return values
