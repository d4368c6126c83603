"""`meta/` of LeRobotDataset v2.0 and v2.1 -> what the episode table, the tasks and the statistics
of v3 are made of.

In v2.x every episode has a parquet file and a video file of each camera of its own, named by its
number; `meta/` holds lines of JSON:

    meta/episodes.jsonl        {"episode_index": 0, "tasks": [...], "length": 197}
    meta/tasks.jsonl           {"task_index": 0, "task": "pick the cube"}
    meta/stats.json            (v2.0) of the dataset, as in v3
    meta/episodes_stats.jsonl  (v2.1) {"episode_index": 0, "stats": {"action": {"min": [...], "max",
                               "mean", "std", "count"}}}

So an episode begins at row 0 of its data file and at 0 s of its video files, and its number divided
by `chunks_size` is its folder's. The format is the one of lerobot 0.1 to 0.3; nothing above
`_repository` knows it.
"""

from __future__ import annotations

import re
import warnings
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainWarning, short_repr
from lerobot_grain._format.info import DatasetInfo
from lerobot_grain._format.layout import EPISODES_PATH_V2, EPISODES_STATS_PATH_V2, TASKS_PATH_V2
from lerobot_grain._repository.json_lines import json_lines
from lerobot_grain._repository.stats_file import numbers_of
from lerobot_grain._storage.base import Storage

Values = npt.NDArray[np.float64]

# Far above all that is real; sums and products of them stay in 63 bits.
_MAX_NUMBER = 1 << 40
_QUANTILE = re.compile(r"q\d{1,3}")
_REMEDY = "compute_stats(repository) makes others"


def read_episode_columns(
    storage: Storage, listing: Mapping[str, int], info: DatasetInfo, *, max_episodes: int
) -> dict[str, npt.NDArray[Any]]:
    """Reads `meta/episodes.jsonl` as the columns that `meta/episodes` of a v3 dataset would have,
    int64 or float64 `(episodes,)`.

    Raises:
      DatasetFormatError: it is missing or malformed, or has more than `max_episodes`.
      StorageError: the bytes could not be read.
    """
    numbers = array("q")
    lengths = array("q")
    for where, line in json_lines(
        storage, EPISODES_PATH_V2, _size_of(EPISODES_PATH_V2, storage, listing)
    ):
        if len(numbers) == max_episodes:
            raise DatasetFormatError(f"{where}: at most {max_episodes} episodes are read")
        numbers.append(_number(line, "episode_index", where))
        lengths.append(_number(line, "length", where))
    episodes = np.array(numbers, np.int64)
    chunks = episodes // info.chunks_size
    starts = np.zeros(len(episodes))
    columns: dict[str, npt.NDArray[Any]] = {
        "episode_index": episodes,
        "length": np.array(lengths, np.int64),
        "data/chunk_index": chunks,
        "data/file_index": episodes,
    }
    for key, feature in info.features.items():
        if feature.is_video:
            columns |= {
                f"videos/{key}/chunk_index": chunks,
                f"videos/{key}/file_index": episodes,
                f"videos/{key}/from_timestamp": starts,
            }
    return columns


def read_column(
    storage: Storage, listing: Mapping[str, int], name: str
) -> dict[str, npt.NDArray[Any]]:
    """Reads a field of the lines of `meta/episodes.jsonl`, such as `tasks`: with `episode_index`,
    `(episodes,)` each, objects or integers.

    Raises:
      DatasetFormatError: a line is malformed, or has no such field where others have it.
      StorageError: the bytes could not be read.
    """
    numbers = array("q")
    values = []
    for where, line in json_lines(
        storage, EPISODES_PATH_V2, _size_of(EPISODES_PATH_V2, storage, listing)
    ):
        numbers.append(_number(line, "episode_index", where))
        if name in line:
            values.append(line[name])
        elif values:
            raise DatasetFormatError(f"{where}: there is no {name}, which lines before it have")
    columns = {"episode_index": np.array(numbers, np.int64)}
    if len(values) == len(numbers) and name not in columns:
        columns[name] = np.array([*values, None], object)[:-1]  # one more, so that lists stay lists
    return columns


def read_tasks(storage: Storage, listing: Mapping[str, int], *, max_tasks: int) -> dict[int, str]:
    """Reads `meta/tasks.jsonl`: task texts by `task_index`.

    Raises:
      DatasetFormatError: it is missing or malformed, or has more than `max_tasks`.
      StorageError: the bytes could not be read.
    """
    tasks: dict[int, str] = {}
    for where, line in json_lines(
        storage, TASKS_PATH_V2, _size_of(TASKS_PATH_V2, storage, listing)
    ):
        if len(tasks) == max_tasks:
            raise DatasetFormatError(f"{where}: at most {max_tasks} tasks are read")
        number = _number(line, "task_index", where, least=-_MAX_NUMBER)
        text = line.get("task")
        if not isinstance(text, str):
            raise DatasetFormatError(f"{where}: task is {short_repr(text)}; expected a text")
        if tasks.setdefault(number, text) != text:
            raise DatasetFormatError(
                f"{where}: task_index {number} is {short_repr(text)}, but "
                f"{short_repr(tasks[number])} in a line before it"
            )
    return tasks


def read_episodes_stats(
    storage: Storage, listing: Mapping[str, int], info: DatasetInfo, episodes: npt.NDArray[np.int64]
) -> dict[str, dict[str, Values]]:
    """Reads `meta/episodes_stats.jsonl` and adds the episodes up to statistics of the dataset, as
    lerobot does when it converts to v3.

    `min` and `max` are those of all episodes, `count` their sum; `mean` and quantiles are weighted
    by `count`, `std` follows from them. The file has up to 10 KB an episode; one piece of it is in
    memory at a time. Statistics that some recorders write for texts, and for features that
    info.json does not declare, are left out with a warning if they cannot be added up; so is a
    quantile that only some episodes have.

    Args:
      storage, listing, info: of the dataset.
      episodes: int64 `(episodes,)`: the numbers of all its episodes; each has one line.

    Raises:
      DatasetFormatError: it is malformed, does not have one line for each episode, or the
        statistics of a feature of numbers or frames are those of some episodes only.
      StorageError: the bytes could not be read.
    """
    totals: dict[str, _Total] = {}
    left_out: dict[str, str] = {}
    missing = set(episodes.tolist())
    with np.errstate(over="ignore", invalid="ignore"):
        for where, line in json_lines(
            storage, EPISODES_STATS_PATH_V2, _size_of(EPISODES_STATS_PATH_V2, storage, listing)
        ):
            is_first = len(missing) == len(episodes)
            _add_line(totals, left_out, _stats_of(line, where), info, where, is_first=is_first)
            missing.remove(_missing_number(line, missing, episodes, where))
    place = f"{storage.description}, {EPISODES_STATS_PATH_V2}"
    if missing:
        raise DatasetFormatError(
            f"{place}: there is no line for episode {min(missing)} (and {len(missing) - 1} "
            f"others); expected one for each of the {len(episodes)} episodes; {_REMEDY}"
        )
    totals = {key: total for key, total in totals.items() if key not in left_out}
    for text in (*left_out.values(), *_partial_quantiles(totals, place)):
        warnings.warn(text, LeRobotGrainWarning, stacklevel=4)
    return {key: total.statistics() for key, total in totals.items()}


def _stats_of(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    stats = line.get("stats")
    if not isinstance(stats, dict):
        raise DatasetFormatError(
            f"{where}: stats is {short_repr(stats)}; expected feature -> statistic -> numbers"
        )
    return stats


def _add_line(
    totals: dict[str, _Total],
    left_out: dict[str, str],
    stats: Mapping[str, Any],
    info: DatasetInfo,
    where: str,
    *,
    is_first: bool,
) -> None:
    """Adds the statistics of one episode to `totals`, and to `left_out` what cannot be added up and
    need not be.
    """
    for key in {**stats, **totals}:
        if key in left_out:
            continue
        place = f"{where}, feature {short_repr(key)}"
        try:
            _add(totals, key, stats, place, is_first=is_first)
        except DatasetFormatError as error:
            feature = info.features.get(key)
            if feature is not None and (feature.is_array or feature.is_camera):
                raise
            left_out[key] = f"{error}; it has no statistics"


def _missing_number(
    line: Mapping[str, Any], missing: set[int], episodes: npt.NDArray[np.int64], where: str
) -> int:
    """Returns the number of the episode of a line, which is the only one of that episode so far."""
    number = _number(line, "episode_index", where)
    if number not in missing:
        problem = "has a line before it" if number in episodes else f"is not in {EPISODES_PATH_V2}"
        raise DatasetFormatError(
            f"{where}: episode {number} {problem}; expected one line for each episode; {_REMEDY}"
        )
    return number


def _partial_quantiles(totals: Mapping[str, _Total], place: str) -> list[str]:
    """Returns a text about each feature with quantiles that only some episodes have."""
    return [
        f"{place}: {', '.join(sorted(total.dropped))} of feature {short_repr(key)} is left out: "
        "only some episodes have it"
        for key, total in totals.items()
        if total.dropped
    ]


def _add(
    totals: dict[str, _Total], key: str, stats: Mapping[str, Any], place: str, *, is_first: bool
) -> None:
    """Adds the statistics of one feature in one line."""
    if key not in stats:
        raise DatasetFormatError(
            f"{place}: it has no statistics, which it has in the lines before; {_REMEDY}"
        )
    found = _arrays(stats[key], place)
    if key in totals:
        totals[key].add(found, place)
    elif is_first:
        totals[key] = _Total(found)
    else:
        raise DatasetFormatError(
            f"{place}: found statistics, which it has not in the lines before; {_REMEDY}"
        )


class _Total:
    """The statistics of one feature over the episodes so far.

    Attributes:
      dropped: the quantiles that some of them lack.
    """

    def __init__(self, first: Mapping[str, Values]) -> None:
        self._values = dict(first)
        self.dropped: set[str] = set()
        # Sum of squared distances from the mean: added up in this form, no digits are lost where
        # the mean is far larger than `std`.
        self._squares = first["std"] ** 2 * first["count"]

    def add(self, more: Mapping[str, Values], where: str) -> None:
        mine = self._values
        # Both have all others.
        self.dropped |= mine.keys() ^ more.keys()
        for name in self.dropped & mine.keys():
            del mine[name]
        if odd := [name for name in mine if mine[name].shape != more[name].shape]:
            raise DatasetFormatError(
                f"{where}: found {_described(more, odd[0])}; the episodes before it have "
                f"{_described(mine, odd[0])}"
            )
        count = mine["count"] + more["count"]
        share = more["count"] / count
        distance = more["mean"] - mine["mean"]
        self._squares = (
            self._squares + more["std"] ** 2 * more["count"] + distance**2 * (mine["count"] * share)
        )
        for name in mine:
            if name == "min":
                mine[name] = np.minimum(mine[name], more[name])
            elif name == "max":
                mine[name] = np.maximum(mine[name], more[name])
            elif name == "count":
                mine[name] = count
            elif name != "std":
                mine[name] = mine[name] + (more[name] - mine[name]) * share

    def statistics(self) -> dict[str, Values]:
        return {
            name: np.sqrt(self._squares / self._values["count"]) if name == "std" else value
            for name, value in self._values.items()
        }


def _arrays(statistics: object, where: str) -> dict[str, Values]:
    """Returns the statistics of a feature in one episode: those that can be added up, `count` so
    that it divides the others.
    """
    if not isinstance(statistics, dict):
        raise DatasetFormatError(
            f"{where}: found {short_repr(statistics)}; expected statistic -> numbers"
        )
    found = {}
    for name in (
        "min",
        "max",
        "mean",
        "std",
        "count",
        *(name for name in statistics if _QUANTILE.fullmatch(name)),
    ):
        if name not in statistics:
            raise DatasetFormatError(
                f"{where}: there is no {name}; found {short_repr(list(statistics))}"
            )
        if (numbers := numbers_of(statistics[name])) is None:
            raise DatasetFormatError(
                f"{where}: {name} is {short_repr(statistics[name])}; expected numbers (in lists "
                "of one length)"
            )
        found[name] = numbers
    if found["count"].size != 1 or not 1 <= found["count"].item() <= _MAX_NUMBER:
        raise DatasetFormatError(
            f"{where}: count is {short_repr(statistics['count'])}; expected one number >= 1"
        )
    if odd := [
        name for name in found if name != "count" and found[name].shape != found["mean"].shape
    ]:
        raise DatasetFormatError(
            f"{where}: {odd[0]} has shape {found[odd[0]].shape}, but mean {found['mean'].shape}"
        )
    return found


def _described(statistics: Mapping[str, Values], name: str) -> str:
    return f"{name} of shape {statistics[name].shape}"


def _number(line: Mapping[str, Any], field: str, where: str, *, least: int = 0) -> int:
    value = line.get(field)
    # Other recorders write integers as doubles.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not least <= value <= _MAX_NUMBER
        or value != int(value)
    ):
        raise DatasetFormatError(
            f"{where}: {field} is {short_repr(value)}; expected an "
            f"integer{' >= 0' if least == 0 else ''}"
        )
    return int(value)


def _size_of(path: str, storage: Storage, listing: Mapping[str, int]) -> int:
    if path not in listing:
        raise DatasetFormatError(
            f"{storage.description}: there is no {path}, which a LeRobotDataset v2.x has"
        )
    return listing[path]
