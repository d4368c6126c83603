"""Writes only the `meta/` directory of a large dataset, to measure how a reader opens one.

The defaults have the size of DROID: 130,000 episodes, about 26 million frames, three cameras. The
episodes table carries the per-episode statistics that fill most of the real ones (over a hundred
columns), so a reader that does not project columns pays for it.

Rules:
* Everything is computed for all episodes at once; nothing loops over episodes.
* Spans are consistent: a reader may check that rows, files and times add up. The statistics are
  plausible noise, rounded to 1/256.

Not here: data and video files. None are written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer import metadata as meta
from lerobot_grain.testing._writer.rows import DEFAULT_FEATURES, Feature
from lerobot_grain.testing._writer.video import Camera


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenMetadata:
    """The written values.

    Attributes:
      directory: of the dataset.
      fps: frames per second.
      cameras: all of the same size.
      tasks: texts by task index; episode e has task `e % len(tasks)`.
      episode_lengths: int64 (episodes,). Read-only.
      episodes: the columns of `meta/episodes` but `tasks` and statistics, (episodes,) each.
        Read-only.
    """

    directory: Path
    fps: int
    cameras: tuple[Camera, ...]
    tasks: tuple[str, ...]
    episode_lengths: npt.NDArray[np.int64]
    episodes: Mapping[str, npt.NDArray[Any]]

    @property
    def total_frames(self) -> int:
        return int(self.episode_lengths.sum())


def write_synthetic_metadata(
    directory: str | os.PathLike[str],
    *,
    num_episodes: int = 130_000,
    mean_length: int = 200,
    num_cameras: int = 3,
    num_tasks: int = 1000,
    fps: int = 15,
    seed: int = 0,
    rows_per_data_file: int = 300_000,
    episodes_per_video_file: int = 100,
    episodes_per_metadata_file: int = 10_000,
    rows_per_row_group: int = 1000,
    chunks_size: int = 1000,
    statistics: bool = True,
) -> WrittenMetadata:
    """Writes `meta/` of a dataset without data and videos.

    Args:
      directory: new or empty.
      num_episodes, num_tasks, episodes_per_metadata_file: as they say.
      mean_length: of an episode in frames; lengths are spread evenly from half to one and a half
        times that.
      num_cameras: 320x180 AV1 each, `observation.images.camera_0` and so on.
      fps: frames per second.
      seed: of lengths and statistics.
      rows_per_data_file: a data file ends with the episode that reaches this many rows.
      episodes_per_video_file: on average; every camera rolls over at different episodes.
      rows_per_row_group: of the episodes table. Datasets of this size were converted and not
        recorded, and the converter writes 1000.
      chunks_size: files per chunk directory.
      statistics: whether the per-episode statistics and `meta/stats.json` are written.

    Raises:
      InvalidRequestError: a number is out of range, or the directory is not empty.
    """
    _check(num_episodes=num_episodes, mean_length=mean_length, num_cameras=num_cameras)
    _check(num_tasks=num_tasks, fps=fps)
    sizes = _Sizes(
        rows_per_data_file=rows_per_data_file,
        episodes_per_video_file=episodes_per_video_file,
        episodes_per_metadata_file=episodes_per_metadata_file,
        rows_per_row_group=rows_per_row_group,
        chunks_size=chunks_size,
    )
    root = meta.claim_directory(Path(directory))
    rng = np.random.default_rng(seed)
    longest = mean_length + mean_length // 2
    lengths = rng.integers(mean_length // 2, longest, num_episodes, endpoint=True)
    written = _written(root, lengths, num_cameras, num_tasks, fps, sizes)
    summaries = _noisy_statistics(rng, lengths, written.cameras) if statistics else {}
    _write(written, summaries, sizes)
    return written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Sizes of files and folders, as `write_synthetic_metadata` is given them."""

    rows_per_data_file: int
    episodes_per_video_file: int
    episodes_per_metadata_file: int
    rows_per_row_group: int
    chunks_size: int

    def __post_init__(self) -> None:
        _check(**asdict(self))


def _written(
    root: Path,
    lengths: npt.NDArray[np.int64],
    num_cameras: int,
    num_tasks: int,
    fps: int,
    sizes: _Sizes,
) -> WrittenMetadata:
    """Returns what is to be written."""
    cameras = tuple(
        Camera(key=f"observation.images.camera_{index}", height=180, width=320)
        for index in range(num_cameras)
    )
    located = _located(lengths, cameras, fps, sizes)
    for array in (lengths, *located.values()):
        array.flags.writeable = False
    return WrittenMetadata(
        directory=root,
        fps=fps,
        cameras=cameras,
        tasks=tuple(f"put object {index} into the bin" for index in range(num_tasks)),
        episode_lengths=lengths,
        episodes=MappingProxyType(located),
    )


def _write(
    written: WrittenMetadata,
    summaries: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    sizes: _Sizes,
) -> None:
    columns = _columns(written.episodes, written.tasks)
    if summaries:
        columns |= {
            f"stats/{name}/{key}": meta.nested_lists(values)
            for name, entry in summaries.items()
            for key, values in entry.items()
        }
        # Good enough for a set without frames, and at once: the statistics of the first episode
        # stand for all.
        meta.write_statistics(
            written.directory,
            {
                name: {key: values[0] for key, values in entry.items()}
                for name, entry in summaries.items()
            },
        )
    num_episodes = len(written.episode_lengths)
    meta.write_episodes(
        written.directory,
        columns,
        file_of_episode=np.arange(num_episodes) // sizes.episodes_per_metadata_file,
        chunks_size=sizes.chunks_size,
        rows_per_row_group=sizes.rows_per_row_group,
        use_dictionary=True,
    )
    meta.write_tasks(written.directory, written.tasks)
    meta.write_info(
        written.directory,
        version="v3.0",
        templates=(meta.DATA_PATH, meta.VIDEO_PATH),
        features=_FEATURES,
        cameras=written.cameras,
        fps=written.fps,
        num_episodes=num_episodes,
        num_frames=written.total_frames,
        num_tasks=len(written.tasks),
        chunks_size=sizes.chunks_size,
    )


_FEATURES = {
    "observation.state": Feature(
        dtype="float32", shape=(7,), names=tuple(f"s{index}" for index in range(7))
    ),
    "action": Feature(dtype="float32", shape=(7,), names=tuple(f"a{index}" for index in range(7))),
    **DEFAULT_FEATURES,
}


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        least = {"num_cameras": 0, "mean_length": 2}.get(name, 1)
        if value < least:
            raise InvalidRequestError(f"{name} {value} must be at least {least}")


def _columns(
    located: Mapping[str, npt.NDArray[Any]], tasks: tuple[str, ...]
) -> dict[str, pa.Array]:
    """Returns the columns of the episodes table up to the statistics."""
    columns = {name: pa.array(column) for name, column in located.items()}
    episode = located["episode_index"]
    texts = pa.DictionaryArray.from_arrays(
        pa.array(episode % len(tasks)), pa.array(tasks)
    ).dictionary_decode()
    lists = pa.ListArray.from_arrays(pa.array(np.arange(len(episode) + 1), pa.int32()), texts)
    return {"episode_index": columns.pop("episode_index"), "tasks": lists, **columns}


def _located(
    lengths: npt.NDArray[np.int64],
    cameras: tuple[Camera, ...],
    fps: int,
    sizes: _Sizes,
) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns of the episodes table that are numbers, in the recorder's order."""
    episode = np.arange(len(lengths))
    stops = np.cumsum(lengths)
    # Renumbered without gaps: an episode longer than a file would skip a number.
    data_files = np.unique((stops - lengths) // sizes.rows_per_data_file, return_inverse=True)[1]
    located = {
        "episode_index": episode,
        "length": lengths,
        "data/chunk_index": data_files // sizes.chunks_size,
        "data/file_index": data_files % sizes.chunks_size,
        "dataset_from_index": stops - lengths,
        "dataset_to_index": stops,
    }
    for index, camera in enumerate(cameras):
        files = episode // max(1, sizes.episodes_per_video_file + 7 * (index - len(cameras) // 2))
        # Times count frames from the start of the file, so a time in a file is never a difference
        # of two large times.
        first = np.searchsorted(files, files)
        located |= {
            f"videos/{camera.key}/chunk_index": files // sizes.chunks_size,
            f"videos/{camera.key}/file_index": files % sizes.chunks_size,
            f"videos/{camera.key}/from_timestamp": (stops - lengths - (stops - lengths)[first])
            / fps,
            f"videos/{camera.key}/to_timestamp": (stops - (stops - lengths)[first]) / fps,
        }
    return located


def _noisy_statistics(
    rng: np.random.Generator, lengths: npt.NDArray[np.int64], cameras: tuple[Camera, ...]
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Returns `{feature: {statistic: (episodes, ...)}}` in the recorder's order and shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        name: feature.shape for name, feature in _FEATURES.items()
    }
    shapes |= {camera.key: (3, 1, 1) for camera in cameras}
    result = {}
    for name, shape in shapes.items():
        drawn = {
            key: rng.integers(0, 256, (len(lengths), *shape), np.uint8) / 256
            for key in meta.STATISTICS
            if key != "count"
        }
        result[name] = {key: drawn.get(key, lengths[:, None]) for key in meta.STATISTICS}
    return result
