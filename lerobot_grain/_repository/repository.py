"""One pinned revision of a dataset as a value: what it holds, and where.

`_repository/opening` makes it.

Rules:
* A repository is a value that pickles; opening one again in another process costs nothing.
* The versions of the format differ in `meta/` and in nothing else that is seen here: v2.x
  (`_repository/metadata_v2`) gives the same tables as v3 (`_repository/metadata`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError, MissingFileError
from lerobot_grain._format.episodes import EpisodeTable
from lerobot_grain._format.info import DatasetInfo, Feature
from lerobot_grain._format.row_order import RowOrders, RowTimestamps
from lerobot_grain._repository import metadata_v2 as v2
from lerobot_grain._repository.metadata import read_episode_columns, read_stats
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._repository.stats_file import KnownStatistics, Statistics
from lerobot_grain._storage.base import Storage


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """One revision of a LeRobotDataset.

    Attributes:
      storage: reads its files.
      commit: 40 hexadecimal digits: the commit on the Hub, a hash of the list of files for a
        bucket, or of `meta/` for a directory.
      info: what `meta/info.json` says.
      episodes: the episode table.
      tasks: task texts by `task_index`.
      subtasks: texts by `subtask_index`; `None` where there is no `meta/subtasks.parquet`.
      notes: what in the files is odd or was repaired, and does not change what is read; one text
        each. Opening issues each as a `LeRobotGrainWarning`.
      known_stats: what `stats` returns, once it was read.
      known_gop_lengths: what `gop_length` returns, once it was found; else empty.
      row_orders: in which row groups of data files the rows lie in order, as far as this process
        has read them.
      row_timestamps: of row groups, as far as this process has read them to link rows to frames.
      folder: of the repository on the Hub that the dataset lies in; empty: it is the whole
        repository, a bucket or a directory.
    """

    storage: Storage
    commit: str
    info: DatasetInfo
    episodes: EpisodeTable
    tasks: Mapping[int, str]
    subtasks: Mapping[int, str] | None = None
    notes: tuple[str, ...] = ()
    folder: str = ""
    known_stats: KnownStatistics = dataclasses.field(
        default_factory=KnownStatistics, init=False, repr=False, compare=False
    )
    known_gop_lengths: list[int | None] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )
    row_orders: RowOrders = dataclasses.field(
        default_factory=RowOrders, init=False, repr=False, compare=False
    )
    row_timestamps: RowTimestamps = dataclasses.field(
        default_factory=RowTimestamps, init=False, repr=False, compare=False
    )

    @property
    def stats(self) -> Statistics | None:
        """Feature key -> statistic (`mean`, `std`, `min`, `max`, `count`, quantiles) -> float64
        array; `None` where there are none.

        As `meta/stats.json` has them; entries that are no numbers are left out, and `notes` name
        them. In v2.1, which has them for each episode, the first use adds those up: that reads up
        to 10 KB an episode.

        Raises:
          DatasetFormatError: they are malformed. `compute_stats` makes new ones.
          StorageError: the bytes could not be read.
        """
        if not self.known_stats.are_read:
            self.known_stats.keep(read_stats(self.storage, self.info, self.episodes)[0])
        return self.known_stats.stats

    @property
    def description(self) -> str:
        """Names the dataset in messages: `org/name@1a2b3c4d5e6f`, `org/name/folder@1a2b3c4d5e6f`, a
        bucket, or its directory.
        """
        return self.storage.description

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.info.features

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of all cameras, those with video and those with embedded images."""
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    def close(self) -> None:
        """Closes the connections of this process; a later read opens new ones."""
        self.storage.close()

    def episode_column(self, name: str) -> npt.NDArray[Any]:
        """Reads one column of `meta/episodes`, any of those that the file has, such as `tasks`.

        Returns:
          `(episodes,)`, in the order of `episodes`: numbers as numbers, texts as str, lists as
          arrays.

        Raises:
          InvalidRequestError: there is no such column.
          StorageError: the bytes could not be read.
        """
        listing = self.storage.list_metadata()
        if self.info.major_version == 2:
            columns = v2.read_column(self.storage, listing, name)
        else:
            columns = read_episode_columns(
                self.storage, listing, tuple(dict.fromkeys(("episode_index", name)))
            )
        if name not in columns:
            raise InvalidRequestError(
                f"{self.description}: the episode table has no column {name!r}"
            )
        return columns[name][np.argsort(columns["episode_index"], kind="stable")]

    def gop_length(self) -> int | None:
        """Returns the frames from key frame to key frame: the most common number in one file of
        each camera, the largest of all cameras.

        Reads one or two small ranges of one file per camera, the first time. If a camera has no
        video file, `video.g` of info.json counts; `None` if nothing is known.

        Raises:
          DatasetFormatError: a file is not one that can be read.
          StorageError: the bytes could not be read.
        """
        if not self.known_gop_lengths:
            self.known_gop_lengths.append(self._find_gop_length())
        return self.known_gop_lengths[0]

    def _find_gop_length(self) -> int | None:
        lengths = []
        for key, spans in self.episodes.videos.items():
            try:
                is_one_episode = len(spans.files.episodes_in(0)) == 1
                counts = np.bincount(
                    sample_table(
                        self.storage, spans.files.paths[0], is_moov_last=is_one_episode
                    ).gop_lengths()
                )
            except MissingFileError:
                lengths.append(self.features[key].gop_length)
            else:
                # Among equally common ones the longest: a short last GOP of an episode must not win
                # in a file of two.
                lengths.append(int(len(counts) - 1 - np.argmax(counts[::-1])))
        return max((length for length in lengths if length is not None), default=None)
