"""Statistics as in `meta/stats.json`: of the rows of a dataset, and of whatever a stream of
batches holds.

Low-dimensional features are read straight from the data files: only their columns, neighboring row
groups in one request, no video. Frames are those of some examples, in the shuffled order, thinned
out as lerobot does.

Rules:
* Statistics are of rows (or of the numbers of batches that are not padding), each counted once.
  lerobot's quantiles are not: it averages those of the episodes, so that its q01 and q99 lie too
  close to the middle; docs/normalization.md.
* Threads read, one thread counts, in the order of the rows: the result is the same every time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arguments import check_int, check_opened
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._reading.batches import is_mask_of
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.rows.data_files import (
    DataFile,
    columns_to_read,
    fetch_row_groups,
    load_group,
    open_data_file,
    place_of_row,
)
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import (
    EpisodeSelection,
    FeatureSelection,
    select_episodes,
    select_features,
)
from lerobot_grain._training.running_statistics import RunningStats

Stats = dict[str, dict[str, npt.NDArray[np.float64]]]
Given = TypeVar("Given")
Made = TypeVar("Made")

# Small row groups are read together up to so many coded bytes, the size of a good request; so many
# runs are read at a time.
_RUN_BYTES = 4 << 20
_THREADS = 4
# As lerobot: frames with a side of at least 300 pixels are thinned out to about 150.
_MAX_PICTURE_SIDE = 300
_THIN_PICTURE_SIDE = 150


def compute_stats(
    repository: Repository,
    *,
    features: Iterable[str] | None = None,
    episodes: EpisodeSelection = None,
    camera_frames: int = 512,
) -> Stats:
    """Returns statistics of rows, as `meta/stats.json` has them; for datasets without, or for some
    of their episodes.

    Args:
      repository: the opened dataset.
      features: keys of low-dimensional features and cameras; `None`: all low-dimensional ones.
      episodes: as for `LeRobotIterDataset`; `None`: all.
      camera_frames: of how many frames the statistics of a camera are, spread over the selected
        episodes; all, if there are fewer.

    Returns:
      Feature key -> statistic -> float64 array. `min`, `max`, `mean`, `std`, `q01`, `q10`, `q50`,
      `q90`, `q99`, in the units of the data, of shape `(size,)` of the last axis, `(1,)` for
      scalars; axes before the last are counted as more rows, as lerobot does. For cameras
      `(channels, 1, 1)`, scaled to [0, 1]; depth keeps its unit. `count`, `(1,)`: the numbers that
      each is made of. All exact, but for quantiles of more than 64 MiB of values of a feature,
      which are off by at most 1/2048 of max - min.

    Raises:
      InvalidRequestError: a feature does not exist or has no numbers; an episode does not exist.
      DatasetFormatError: a value is not finite, or a file is not what the metadata says.
      StorageError: the bytes could not be read.
    """
    check_opened(repository, of="compute_stats")
    check_int("camera_frames", camera_frames, least=1)
    declared = repository.features
    selection = _with_statistics(repository, features)
    selected = select_episodes(repository, episodes)
    stats = _of_rows(
        repository,
        FeatureSelection(tuple(f for f in selection.columns if not f.is_camera), (), ()),
        selected,
    )
    if cameras := [key for key in selection.keys if declared[key].is_camera]:
        stats |= _of_cameras(repository, cameras, selected, camera_frames)
    return {key: stats[key] for key in selection.keys}


def _with_statistics(repository: Repository, features: Iterable[str] | None) -> FeatureSelection:
    """Selects features, all of which have statistics; `None`: all that are arrays."""
    declared = repository.features
    keys = (
        [key for key, feature in declared.items() if feature.is_array]
        if features is None
        else features
    )
    selection = select_features(repository, keys)
    if odd := [
        key
        for key in selection.keys
        if key not in declared or not (declared[key].is_camera or declared[key].is_array)
    ]:
        raise InvalidRequestError(
            f"{repository.description}: {odd[0]!r} is text, which has no statistics; leave it out "
            "of features"
        )
    return selection


def _of_cameras(
    repository: Repository,
    cameras: Sequence[str],
    selected: npt.NDArray[np.int64],
    num_frames: int,
) -> Stats:
    """Returns statistics of some frames of each camera, spread over the selected episodes."""
    examples = iter(
        LeRobotIterDataset(repository, episodes=selected, features=cameras, num_epochs=1)
    )
    try:
        thinned = ({key: _thinned(example[key])[None] for key in cameras} for example in examples)
        stats = stats_of(thinned, keys=cameras, num_batches=num_frames)
    finally:
        examples.close()
    features = repository.features
    return {
        key: _of_pictures(found, scale=1) if features[key].is_depth else found
        for key, found in stats.items()
    }


def stats_of(
    batches: Iterable[Mapping[str, Any]],
    *,
    keys: Sequence[str],
    num_batches: int | None = None,
    pad_keys: Mapping[str, str | None] | None = None,
) -> Stats:
    """Returns statistics of what a stream holds, for what is made of rows on the way, such as
    actions relative to the state.

        chunks = LeRobotIterDataset(repository, delta_timestamps=..., num_epochs=1)
        chunks = chunks.map(to_relative_actions)
        stats = stats_of(chunks.batch(256), keys=["action"], num_batches=2_000)

    Args:
      batches: dicts of arrays with the examples, and windows, on the first axes. If there is a mask
        `{key}_is_pad`, the values that it marks are left out.
      keys: whose statistics.
      num_batches: how many of the batches, from the first on; `None`: all.
      pad_keys: key -> key of its mask, where that is not `{key}_is_pad`; as for
        `LeRobotIterDataset`. `None`: there is no mask, and `{key}_is_pad` is a feature of the
        dataset.

    Returns:
      As `compute_stats`: of the last axis of arrays of at least two axes, else `(1,)`. Arrays of
        uint8 with at least four axes are frames
      `(..., height, width, channels)`.

    Raises:
      InvalidRequestError: there is no batch, or one does not have a key, has another size of the
        last axis than the first, or a number that is not finite.
    """
    running: dict[str, RunningStats] = {}
    pictures: set[str] = set()
    for number, batch in enumerate(itertools.islice(batches, num_batches)):
        for key in keys:
            values = _values_of(batch, key, number)
            if values.dtype == np.uint8 and values.ndim >= 4:
                pictures.add(key)
            rows = _rows(values, _mask_of(batch, key, pad_keys or {}))
            stats = running.setdefault(key, RunningStats(rows.shape[1]))
            if rows.shape[1] != stats.size:
                raise InvalidRequestError(
                    f"batch {number}: {key!r} has {rows.shape[1]} numbers on the last axis; "
                    f"expected {stats.size}"
                )
            stats.update(rows)
    if empty := [key for key in keys if key not in running or running[key].count == 0]:
        raise InvalidRequestError(
            f"stats_of: there is not one number of {empty[0]!r}; expected at least one batch that "
            "is not all padding"
        )
    found = {key: stats.result() for key, stats in running.items()}
    return {
        key: _of_pictures(values, scale=255) if key in pictures else values
        for key, values in found.items()
    }


def _values_of(batch: Mapping[str, Any], key: str, number: int) -> npt.NDArray[Any]:
    """Returns an array of a batch, all of which are finite numbers; the batch has a number in
    messages.
    """
    if key not in batch:
        raise InvalidRequestError(
            f"batch {number} has no key {key!r}; it has {', '.join(map(str, batch))}"
        )
    values = np.asarray(batch[key])
    if values.dtype.kind not in "biuf":
        raise InvalidRequestError(
            f"batch {number}: {key!r} is of dtype {values.dtype}, which has no statistics"
        )
    if not np.isfinite(values).all():
        place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise InvalidRequestError(
            f"batch {number}: {key!r} is {values[place]} at {list(place)}; expected finite numbers"
        )
    return values


def _mask_of(batch: Mapping[str, Any], key: str, pad_keys: Mapping[str, str | None]) -> Any:
    name = pad_keys.get(key, f"{key}_is_pad")
    if name is None or name not in batch:
        return None
    # A key that is named here is a mask; one that only has such a name may be a feature.
    return batch[name] if key in pad_keys or is_mask_of(batch[name], batch[key]) else None


def _rows(values: npt.NDArray[Any], is_pad: Any) -> npt.NDArray[Any]:
    """Returns `(n, size)`: the last axes of an array that are not padding."""
    if is_pad is not None:
        values = values[~np.asarray(is_pad, bool)]
    if values.ndim < 2:
        return values.reshape(-1, 1)
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _of_pictures(
    stats: Mapping[str, npt.NDArray[np.float64]], *, scale: float
) -> dict[str, npt.NDArray[np.float64]]:
    return {
        name: value if name == "count" else (value / scale).reshape(-1, 1, 1)
        for name, value in stats.items()
    }


def _thinned(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns every n-th pixel of `(height, width, channels)`: means of pixels would have a smaller
    deviation.
    """
    side = max(picture.shape[:2])
    step = 1 if side < _MAX_PICTURE_SIDE else side // _THIN_PICTURE_SIDE
    return picture[::step, ::step]


# Rows


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """Neighboring row groups of a data file, which are read together, and which rows of the file
    are wanted.
    """

    file: DataFile
    groups: list[int]
    wanted: npt.NDArray[np.bool_]


def _of_rows(
    repository: Repository, selection: FeatureSelection, selected: npt.NDArray[np.int64]
) -> Stats:
    if not selection.columns:
        return {}
    running: dict[str, RunningStats] = {}
    numbers = np.unique(repository.episodes.data.file_of_episode[selected]).tolist()
    with DaemonPool(_THREADS, "lerobot_grain stats") as pool:
        planned = _ahead(
            pool, lambda number: _runs(repository, number, selection, selected), numbers
        )
        runs = itertools.chain.from_iterable(planned)
        for columns in _ahead(pool, lambda run: _load(repository, run, selection), runs):
            for key, values in columns.items():
                rows = _rows(values, None)
                running.setdefault(key, RunningStats(rows.shape[1])).update(rows)
    return {key: stats.result() for key, stats in running.items()}


def _ahead(pool: Executor, make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """Yields `make` of each, in order, while the next ones are made."""
    waiting: deque[Future[Made]] = deque()
    for one in given:
        waiting.append(pool.submit(make, one))
        if len(waiting) > _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _runs(
    repository: Repository,
    number: int,
    selection: FeatureSelection,
    selected: npt.NDArray[np.int64],
) -> list[_Run]:
    """Opens a data file, and returns what is to be read of it."""
    file = open_data_file(repository, number)
    held = repository.episodes.data.episodes_in(number)
    wanted = np.repeat(np.isin(held, selected), repository.episodes.lengths[held])
    runs: list[_Run] = []
    size = 0
    with repository.storage.checked(file.table.path):
        for group, (start, stop) in enumerate(itertools.pairwise(file.table.group_starts)):
            if not wanted[start:stop].any():
                continue
            nbytes = sum(
                chunk.length
                for chunk in file.table.ranges(
                    group, columns_to_read(repository, file, group, selection)
                )
            )
            if not runs or size + nbytes > _RUN_BYTES:
                runs.append(_Run(file, [], wanted))
                size = 0
            runs[-1].groups.append(group)
            size += nbytes
    return runs


def _load(
    repository: Repository, run: _Run, selection: FeatureSelection
) -> dict[str, npt.NDArray[Any]]:
    """Returns feature key -> the wanted rows of a run, `(rows, *shape)`.

    Raises:
      DatasetFormatError: one of them is not finite, or see `load_group`.
    """
    file = (
        run.file
        if len(run.groups) == 1
        else fetch_row_groups(repository, run.file, run.groups, selection)
    )
    found: dict[str, list[npt.NDArray[Any]]] = {feature.key: [] for feature in selection.columns}
    for group in run.groups:
        loaded = load_group(repository, file, group, selection)
        for key, values in loaded.columns.items():
            assert isinstance(values, np.ndarray)
            wanted = run.wanted[loaded.first_row : loaded.first_row + len(values)]
            found[key].append(values if wanted.all() else values[wanted])
            if not np.isfinite(found[key][-1]).all():
                bad = np.flatnonzero(
                    wanted & ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
                )[0]
                raise _not_finite(
                    repository, run.file, key, loaded.first_row + int(bad), values[bad]
                )
    return {key: np.concatenate(values) for key, values in found.items()}


def _not_finite(
    repository: Repository, file: DataFile, key: str, row_in_file: int, value: npt.NDArray[Any]
) -> DatasetFormatError:
    row, episode, frame = place_of_row(repository, file, row_in_file)
    return DatasetFormatError(
        f"{file.table.where}: feature {key!r} is {value} in row {row} (episode {episode}, frame "
        f"{frame}); expected finite numbers. Leave the episode out with episodes=[...], or the "
        "feature with features=[...]"
    )
