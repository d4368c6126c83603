"""Writes small LeRobotDataset datasets, for tests, demos and benchmarks, without lerobot.

The dataset has the layout, the schemas and the video files that lerobot 0.6.1's recorder produces
(v3.0; on request v2.1 or v2.0), and every value in it is known: `WrittenDataset` tells what a
reader must return for each row, and a barcode on each frame says which one it is.

Rules:
* The same arguments write the same values. Video bytes are the same with the same encoder
  libraries.
* The ends of files are given in episodes, not in megabytes as the recorder does it, so that tests
  can place a boundary.
* The directory must be new or empty.

Not here: the default values (`_writer/rows`) and frames (`_writer/pictures`), encoding
(`_writer/video`), `meta/` (`_writer/metadata`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer import metadata as meta
from lerobot_grain.testing._writer import metadata_v2 as meta_v2
from lerobot_grain.testing._writer.depth import Pictures
from lerobot_grain.testing._writer.recording import FrameContent, Studio
from lerobot_grain.testing._writer.rows import (
    Feature,
    RowValues,
    WrittenDataset,
    declared_columns,
    episode_rows,
    shown_points,
)
from lerobot_grain.testing._writer.video import Camera


def write_dataset(
    directory: str | os.PathLike[str],
    *,
    episode_lengths: Sequence[int],
    version: str = "v3.0",
    fps: int = 30,
    cameras: Sequence[Camera] = (Camera(),),
    state_size: int = 7,
    action_size: int = 7,
    features: Mapping[str, Feature] = {},
    tasks: Sequence[str] = ("pick the cube",),
    seed: int = 0,
    episodes_per_data_file: int | None = None,
    episodes_per_video_file: int | Mapping[str, int] | None = None,
    episodes_per_metadata_file: int | None = None,
    rows_per_row_group: int | None = None,
    chunks_size: int = 1000,
    row_values: RowValues | None = None,
    frame_content: FrameContent | None = None,
    barcodes: bool = True,
    noise: float = 0.0,
    statistics: bool = True,
) -> WrittenDataset:
    """Writes a dataset.

    Args:
      directory: new or empty.
      episode_lengths: frames per episode, each at least 1.
      version: of the format: `v3.0`, or `v2.1` or `v2.0`, where every episode has files of its own.
      fps: frames per second, a whole number.
      cameras: empty for a dataset without frames.
      state_size: elements of `observation.state`, float32; 0 leaves it out.
      action_size: elements of `action`, float32; 0 leaves it out.
      features: more columns, for example `EXTRA_FEATURES`.
      tasks: texts; episode e has task `e % len(tasks)`, unless `row_values` returns `task_index`.
      seed: of values and frames.
      episodes_per_data_file: None puts all episodes into one file, in v2.x each into its own. Here
        and below; v2.x allows None and 1.
      episodes_per_video_file: for all cameras, or by camera key; cameras that are left out get one
        file.
      episodes_per_metadata_file: for `meta/episodes`.
      rows_per_row_group: of the data files. None: one row group per episode, like the recorder.
      chunks_size: files per chunk directory, for every kind of file.
      row_values: `(episode_index, length) -> {feature: (length, *shape)}` instead of the default
        formulas (`_writer/rows`). May return `timestamp` and `task_index`, too.
      frame_content: `(episode_index, frame_index, camera_index) -> uint8 (height, width, 3)`
        instead of the default frames; for a depth camera uint16 (height, width, 1), millimeters.
        Barcodes are drawn over it.
      barcodes: at most 1024 episodes, 1024 frames per episode and 4 cameras have room in a barcode,
        and frames must be 16 high and 72 wide (embedded images: 24). Turn them off beyond.
      noise: 0 to 1, how noisy the default frames are. At 0.1, 480x640 AV1 takes 10.4 kB per
        frame; that of a real arm's camera with the same settings took 10.0 kB.
      statistics: whether per-episode statistics and `meta/stats.json` are written.

    Returns:
      The written values.

    Raises:
      InvalidRequestError: an argument is out of range, or an encoder refuses a camera's size.
      ImportError: a camera is a video and PyAV is missing.
    """
    job = _Job(
        directory=Path(directory),
        lengths=np.array(episode_lengths, np.int64),
        version=version,
        fps=fps,
        cameras=tuple(cameras),
        columns=declared_columns(state_size, action_size, features),
        tasks=tuple(tasks),
        chunks_size=chunks_size,
    )
    _check(job, rows_per_row_group=rows_per_row_group, noise=noise)
    studio = Studio(
        cameras=job.cameras,
        fps=fps,
        seed=seed,
        noise=noise,
        barcodes=barcodes,
        frame_content=frame_content,
    )
    studio.check_room(job.lengths)
    video_files = _video_files(job, episodes_per_video_file)
    data_files = job.file_of_episode(episodes_per_data_file)
    metadata_files = job.file_of_episode(episodes_per_metadata_file)
    meta.claim_directory(job.directory)
    episodes = _episodes(job, seed=seed, row_values=row_values)
    points = [shown_points(rows, seed=seed, fps=fps) for rows in episodes]
    recorded = _record(job, studio, points, video_files)
    _write_data(job, episodes, recorded.images, data_files, rows_per_row_group)
    located = _located(job, data_files, recorded.spans)
    summaries = (
        meta.episodes_statistics(job.columns, job.cameras, episodes, recorded.samples)
        if statistics
        else []
    )
    _write_meta(job, episodes, located, summaries, metadata_files)
    return _written(job, episodes, located)


def _written(
    job: _Job,
    episodes: Sequence[Mapping[str, npt.NDArray[Any]]],
    located: Mapping[str, npt.NDArray[Any]],
) -> WrittenDataset:
    rows = {
        name: _read_only(np.concatenate([rows[name] for rows in episodes])) for name in job.columns
    }
    return WrittenDataset(
        directory=job.directory,
        fps=job.fps,
        cameras=job.cameras,
        tasks=job.tasks,
        episode_lengths=_read_only(job.lengths),
        rows=MappingProxyType(rows),
        episodes=MappingProxyType({name: _read_only(column) for name, column in located.items()}),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The facts that every step of the writing needs."""

    directory: Path
    lengths: npt.NDArray[np.int64]
    version: str
    fps: int
    cameras: tuple[Camera, ...]
    columns: Mapping[str, Feature]
    tasks: tuple[str, ...]
    chunks_size: int

    @property
    def video_keys(self) -> tuple[str, ...]:
        return tuple(camera.key for camera in self.cameras if camera.kind == "video")

    @property
    def has_file_per_episode(self) -> bool:
        return self.version != "v3.0"

    def file_of_episode(self, episodes_per_file: int | None) -> npt.NDArray[np.int64]:
        """Returns the number of the file that holds each episode, counted over all chunks."""
        if episodes_per_file is not None and episodes_per_file < 1:
            raise InvalidRequestError(
                f"episodes per file must be at least 1, not {episodes_per_file}"
            )
        if self.has_file_per_episode:
            if episodes_per_file not in (None, 1):
                raise InvalidRequestError(
                    f"{self.version} has one episode a file, not {episodes_per_file}"
                )
            return np.arange(len(self.lengths))
        return np.arange(len(self.lengths)) // (episodes_per_file or len(self.lengths))

    @property
    def templates(self) -> tuple[str, str]:
        """Paths of data and of video files."""
        if self.has_file_per_episode:
            return meta_v2.DATA_PATH, meta_v2.VIDEO_PATH
        return meta.DATA_PATH, meta.VIDEO_PATH

    def data_path(self, file: int) -> Path:
        """Returns where a data file lies, by its number counted over all chunks."""
        return self.directory / self.templates[0].format(**self._place(file))

    def video_path(self, key: str, file: int) -> Path:
        """Returns where a video file of a camera lies."""
        return self.directory / self.templates[1].format(video_key=key, **self._place(file))

    def _place(self, file: int) -> dict[str, int]:
        if self.has_file_per_episode:
            return {"episode_chunk": file // self.chunks_size, "episode_index": file}
        return {"chunk_index": file // self.chunks_size, "file_index": file % self.chunks_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """Frames of all cameras: rows of the image columns, sampled frames per episode, columns of
    the episodes table.
    """

    images: Mapping[str, list[dict[str, bytes | str]]]
    samples: Mapping[str, list[Pictures]]
    spans: Mapping[str, npt.NDArray[Any]]


def _video_files(
    job: _Job, episodes_per_file: int | Mapping[str, int] | None
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the number of the video file of each episode, by camera."""
    if not isinstance(episodes_per_file, Mapping):
        return {key: job.file_of_episode(episodes_per_file) for key in job.video_keys}
    if unknown := set(episodes_per_file) - set(job.video_keys):
        raise InvalidRequestError(
            f"episodes_per_video_file names {sorted(unknown)}; the video cameras are "
            f"{list(job.video_keys)}"
        )
    return {key: job.file_of_episode(episodes_per_file.get(key)) for key in job.video_keys}


def _check(job: _Job, *, rows_per_row_group: int | None, noise: float) -> None:
    if job.version not in meta.VERSIONS:
        raise InvalidRequestError(
            f"version {job.version!r} must be one of {', '.join(meta.VERSIONS)}"
        )
    if job.lengths.ndim != 1 or len(job.lengths) == 0 or job.lengths.min() < 1:
        raise InvalidRequestError(
            "episode_lengths must name at least one episode, each of at least one frame"
        )
    if job.fps < 1 or job.fps != int(job.fps):
        raise InvalidRequestError(f"fps {job.fps} must be a positive whole number")
    if not job.tasks or len(set(job.tasks)) < len(job.tasks):
        raise InvalidRequestError("tasks must name at least one text, each once")
    if job.chunks_size < 1 or not 0 <= noise <= 1:
        raise InvalidRequestError(
            f"chunks_size {job.chunks_size} must be at least 1 and noise {noise} within 0 and 1"
        )
    if rows_per_row_group is not None and rows_per_row_group < 1:
        raise InvalidRequestError(
            f"rows_per_row_group {rows_per_row_group} must be at least 1, or None for one row "
            "group per episode"
        )
    keys = [camera.key for camera in job.cameras]
    if len(set(keys)) < len(keys) or set(keys) & set(job.columns):
        raise InvalidRequestError(
            f"camera keys {keys} must differ from each other and from the features "
            f"{sorted(job.columns)}"
        )


def _episodes(
    job: _Job, *, seed: int, row_values: RowValues | None
) -> list[dict[str, npt.NDArray[Any]]]:
    starts = np.cumsum(job.lengths) - job.lengths
    episodes = [
        episode_rows(
            job.columns,
            episode_index=episode,
            first_row=int(starts[episode]),
            length=int(length),
            fps=job.fps,
            seed=seed,
            num_tasks=len(job.tasks),
            row_values=row_values,
        )
        for episode, length in enumerate(job.lengths)
    ]
    used = np.unique(np.concatenate([rows["task_index"] for rows in episodes]))
    if used[0] < 0 or used[-1] >= len(job.tasks):
        raise InvalidRequestError(
            f"row_values returned task_index {used[0]} to {used[-1]}, but tasks names "
            f"{len(job.tasks)} texts"
        )
    return episodes


def _record(
    job: _Job,
    studio: Studio,
    points: Sequence[npt.NDArray[np.float64]],
    video_files: Mapping[str, npt.NDArray[np.int64]],
) -> _Recorded:
    images: dict[str, list[dict[str, bytes | str]]] = {}
    samples: dict[str, list[Pictures]] = {}
    spans: dict[str, npt.NDArray[Any]] = {}
    for index, camera in enumerate(job.cameras):
        if camera.kind == "image":
            images[camera.key], samples[camera.key] = studio.embed(index, points)
            continue
        files = video_files[camera.key]
        paths = [job.video_path(camera.key, int(file)) for file in files]
        durations, samples[camera.key] = studio.film(index, points, paths, job.directory)
        spans |= meta.video_spans(camera.key, files, durations, job.chunks_size)
    return _Recorded(images=images, samples=samples, spans=spans)


def _located(
    job: _Job, data_files: npt.NDArray[np.int64], spans: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns of the episodes table that are numbers, in the recorder's order."""
    if job.has_file_per_episode:
        return {"episode_index": np.arange(len(job.lengths)), "length": job.lengths}
    stops = np.cumsum(job.lengths)
    return {
        "episode_index": np.arange(len(job.lengths)),
        "length": job.lengths,
        "data/chunk_index": data_files // job.chunks_size,
        "data/file_index": data_files % job.chunks_size,
        "dataset_from_index": stops - job.lengths,
        "dataset_to_index": stops,
        **spans,
    }


def _write_data(
    job: _Job,
    episodes: Sequence[Mapping[str, npt.NDArray[Any]]],
    images: Mapping[str, list[dict[str, bytes | str]]],
    data_files: npt.NDArray[np.int64],
    rows_per_row_group: int | None,
) -> None:
    schema = meta.data_schema(job.columns, job.cameras)
    starts = np.cumsum(job.lengths) - job.lengths
    for file in np.unique(data_files):
        members = np.flatnonzero(data_files == file).tolist()
        first = starts[members[0]]
        stop = starts[members[-1]] + job.lengths[members[-1]]
        arrays = []
        for column in schema:
            if column.name in images:
                arrays.append(pa.array(images[column.name][first:stop], column.type))
            else:
                arrays.append(
                    meta.column_array(
                        np.concatenate([episodes[e][column.name] for e in members]), column
                    )
                )
        table = pa.Table.from_arrays(arrays, schema=schema)
        path = job.data_path(int(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=True) as writer:
            if rows_per_row_group is not None:
                writer.write_table(table, row_group_size=rows_per_row_group)
            else:
                for episode in members:
                    writer.write_table(table.slice(starts[episode] - first, job.lengths[episode]))


def _write_meta(
    job: _Job,
    episodes: Sequence[Mapping[str, npt.NDArray[Any]]],
    located: Mapping[str, npt.NDArray[Any]],
    summaries: Sequence[meta.Statistics],
    metadata_files: npt.NDArray[np.int64],
) -> None:
    meta.write_info(
        job.directory,
        version=job.version,
        templates=job.templates,
        features=job.columns,
        cameras=job.cameras,
        fps=job.fps,
        num_episodes=len(job.lengths),
        num_frames=int(job.lengths.sum()),
        num_tasks=len(job.tasks),
        chunks_size=job.chunks_size,
    )
    texts = [
        [job.tasks[index] for index in dict.fromkeys(rows["task_index"].tolist())]
        for rows in episodes
    ]
    if job.has_file_per_episode:
        meta_v2.write_metadata(
            job.directory,
            version=job.version,
            episode_lengths=job.lengths,
            tasks=job.tasks,
            tasks_of_episodes=texts,
            summaries=summaries,
        )
        return
    columns = {name: pa.array(column) for name, column in located.items()}
    columns = {
        "episode_index": columns.pop("episode_index"),
        "tasks": pa.array(texts, pa.list_(pa.string())),
        **columns,
    }
    if summaries:
        for name in summaries[0]:
            for key in meta.STATISTICS:
                stacked = np.stack([summary[name][key] for summary in summaries])
                columns[f"stats/{name}/{key}"] = meta.nested_lists(stacked)
        meta.write_statistics(job.directory, meta.aggregate_statistics(summaries))
    meta.write_episodes(
        job.directory,
        columns,
        file_of_episode=metadata_files,
        chunks_size=job.chunks_size,
        rows_per_row_group=meta.EPISODES_PER_ROW_GROUP,
        use_dictionary=True,
    )
    meta.write_tasks(job.directory, job.tasks)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
