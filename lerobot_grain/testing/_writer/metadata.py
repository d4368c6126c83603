"""Writes the files under `meta/` and describes the columns of the data files, as lerobot 0.6.1 lays
them out.

Rules:
* Column order, Arrow types, row groups and schema metadata are those of the recorder; golden files
  hold the tests to that.
* Statistics have the recorder's shapes and keys. Its quantiles come from histograms and are
  approximate; these are exact per episode. Across episodes both take the mean of the quantiles,
  weighted by count.

Not here: where episodes lie (`_writer`, `_writer/large_metadata` fill the episodes table).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer.depth import Pictures
from lerobot_grain.testing._writer.rows import DEFAULT_FEATURES, Feature
from lerobot_grain.testing._writer.video import Camera

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

VERSIONS = ("v3.0", "v2.1", "v2.0")
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# The recorder buffers this many episodes and writes them as one row group.
EPISODES_PER_ROW_GROUP = 10

Statistics = Mapping[str, Mapping[str, npt.NDArray[Any]]]
"""`{feature: {statistic: array}}`; float64 arrays, and int64 of shape (1,) for `count`."""


def claim_directory(directory: Path) -> Path:
    """Makes the directory of a dataset and returns it.

    Raises:
      InvalidRequestError: it holds something already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise InvalidRequestError(
            f"{directory} is not empty; files of another dataset would be mixed in, so name a "
            "new directory"
        )
    return directory


def data_schema(features: Mapping[str, Feature], cameras: Sequence[Camera]) -> pa.Schema:
    """Returns the schema of the data files, with the metadata by which Hugging Face `datasets`
    knows the types.
    """
    fields = []
    described = {}
    for name in feature_order(features, cameras):
        feature = features.get(name)
        if feature is not None:
            field, described[name] = _field(name, feature)
            fields.append(field)
        elif any(camera.key == name and camera.kind == "image" for camera in cameras):
            fields.append(
                pa.field(name, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            )
            described[name] = {"_type": "Image"}
    text = json.dumps({"info": {"features": described}})
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = json.dumps({"info": {"features": described}, "fingerprint": fingerprint})
    return pa.schema(fields, metadata={"huggingface": metadata})


def feature_order(features: Mapping[str, Feature], cameras: Sequence[Camera]) -> list[str]:
    """Returns the names in the order of `info.json`: the user's features, the cameras, the five
    columns of every dataset.
    """
    own = [name for name in features if name not in DEFAULT_FEATURES]
    return [*own, *(camera.key for camera in cameras), *DEFAULT_FEATURES]


def column_array(values: npt.NDArray[Any], field: pa.Field) -> pa.Array:
    """Returns (rows, *shape) values as the Arrow array of a data column."""
    if values.ndim == 1:
        return pa.array(values, field.type)
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type)
    return nested_lists(values)


def episode_statistics(
    rows: Mapping[str, npt.NDArray[Any]],
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Returns the statistics of one episode's values, without those that have none (strings).

    Like the recorder's, they keep only the last axis: those of a (2, 3) matrix have shape (3,),
    those of a scalar (1,).
    """
    return {
        name: _statistics(
            values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).astype(np.float64),
            count=len(values),
        )
        for name, values in rows.items()
        if values.dtype != object
    }


def picture_statistics(sampled: Pictures, *, kind: str) -> dict[str, npt.NDArray[Any]]:
    """Returns the statistics of some frames of one camera.

    Args:
      sampled: uint8 (frames, height, width, 3), or depth in millimeters, uint16 (frames, height,
        width, 1).
      kind: `"video"` or `"image"`. The recorder counts pixels for the first and frames for the
        second.

    Returns:
      Arrays of shape (3, 1, 1), gray levels scaled to [0, 1], or (1, 1, 1) in millimeters, and
      `count` of shape (1,).
    """
    count = len(sampled) if kind == "image" else sampled[..., 0].size
    channels = sampled.shape[-1]
    scale = 255 if sampled.dtype == np.uint8 else 1
    raw = _statistics(sampled.reshape(-1, channels).astype(np.float32), count=count)
    return {
        name: value if name == "count" else (value / scale).reshape(channels, 1, 1)
        for name, value in raw.items()
    }


def episodes_statistics(
    columns: Mapping[str, Feature],
    cameras: Sequence[Camera],
    episodes: Sequence[Mapping[str, npt.NDArray[Any]]],
    samples: Mapping[str, list[Pictures]],
) -> list[dict[str, dict[str, npt.NDArray[Any]]]]:
    """Returns the statistics of each episode, features in the recorder's order: videos last,
    embedded images where they are declared.
    """
    videos = [camera.key for camera in cameras if camera.kind == "video"]
    order = [name for name in feature_order(columns, cameras) if name not in videos] + videos
    kinds = {camera.key: camera.kind for camera in cameras}
    summaries = []
    for index, rows in enumerate(episodes):
        pictures = {
            key: picture_statistics(sampled[index], kind=kinds[key])
            for key, sampled in samples.items()
        }
        known = episode_statistics(rows) | pictures
        summaries.append({name: known[name] for name in order if name in known})
    return summaries


def aggregate_statistics(episodes: Sequence[Statistics]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Returns the statistics of the whole dataset from those of its episodes, as lerobot's
    `aggregate_stats` combines them.
    """
    total = {}
    for name in episodes[0]:
        stacked = {
            key: np.stack([episode[name][key] for episode in episodes]) for key in STATISTICS
        }
        weights = (
            stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / stacked["count"].sum()
        )
        mean = (stacked["mean"] * weights).sum(0)
        variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * weights).sum(0)
        total[name] = {
            "min": stacked["min"].min(0),
            "max": stacked["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": stacked["count"].sum(0),
            **{key: (stacked[key] * weights).sum(0) for key in _QUANTILES},
        }
    return total


def nested_lists(values: npt.NDArray[Any]) -> pa.Array:
    """Returns (rows, ...) values as a column of nested lists; each axis after the first is one
    level.
    """
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        size = values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * size, pa.int32()), array)
    return array


def video_spans(
    key: str, files: npt.NDArray[np.int64], durations: npt.NDArray[np.float64], chunks_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Returns the four columns of a camera in the episodes table; times restart in every file.

    Args:
      key: of the camera.
      files: int64 (episodes,), number of the file counted over all chunks, ascending.
      durations: float64 (episodes,), seconds.
      chunks_size: files per chunk.
    """
    # `to` is `from` + duration and also the next `from`, added up one by one in float64: the
    # recorder's values to the last bit.
    stops = np.concatenate([np.cumsum(durations[files == file]) for file in np.unique(files)])
    starts = np.where(np.diff(files, prepend=-1) > 0, 0.0, np.roll(stops, 1))
    return {
        f"videos/{key}/chunk_index": files // chunks_size,
        f"videos/{key}/file_index": files % chunks_size,
        f"videos/{key}/from_timestamp": starts,
        f"videos/{key}/to_timestamp": stops,
    }


def write_episodes(
    directory: Path,
    columns: Mapping[str, pa.Array],
    *,
    file_of_episode: npt.NDArray[np.int64],
    chunks_size: int,
    rows_per_row_group: int,
    use_dictionary: bool,
) -> None:
    """Writes `meta/episodes/**`, one row per episode.

    Args:
      directory: of the dataset.
      columns: everything but where the row itself lies, which is appended.
      file_of_episode: int64 (episodes,), number of the file counted over all chunks, ascending.
      chunks_size: files per chunk.
      rows_per_row_group: as it says.
      use_dictionary: whether Parquet looks for repeated values, which takes time.
    """
    table = pa.table(dict(columns))
    table = table.append_column(
        "meta/episodes/chunk_index", pa.array(file_of_episode // chunks_size)
    )
    table = table.append_column("meta/episodes/file_index", pa.array(file_of_episode % chunks_size))
    starts = np.flatnonzero(np.diff(file_of_episode, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], table.num_rows], strict=True):
        chunk, file = divmod(int(file_of_episode[start]), chunks_size)
        path = directory / EPISODES_PATH.format(chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = table.slice(start, stop - start)
        pq.write_table(
            part,
            path,
            row_group_size=rows_per_row_group,
            compression="snappy",
            use_dictionary=use_dictionary,
        )


def write_tasks(directory: Path, tasks: Sequence[str]) -> None:
    """Writes `meta/tasks.parquet`: a pandas frame whose index, named `task`, holds the texts."""
    described = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": "task",
            "field_name": "task",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ]
    index = {
        "name": None,
        "field_name": None,
        "pandas_type": "unicode",
        "numpy_type": "object",
        "metadata": {"encoding": "UTF-8"},
    }
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [index],
        "columns": described,
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)}
    )
    (directory / "meta").mkdir(parents=True, exist_ok=True)
    columns = {
        "task_index": pa.array(range(len(tasks)), pa.int64()),
        "task": pa.array(tasks, pa.string()),
    }
    pq.write_table(
        pa.table(columns, schema=schema), directory / "meta/tasks.parquet", compression="snappy"
    )


def write_info(
    directory: Path,
    *,
    version: str,
    templates: tuple[str, str],
    features: Mapping[str, Feature],
    cameras: Sequence[Camera],
    fps: int,
    num_episodes: int,
    num_frames: int,
    num_tasks: int,
    chunks_size: int,
) -> None:
    """Writes `meta/info.json`; `templates` are the paths of data and of video files."""
    described: dict[str, Any] = {}
    by_key = {camera.key: camera for camera in cameras}
    for name in feature_order(features, cameras):
        if camera := by_key.get(name):
            shape = [camera.height, camera.width, camera.num_channels]
            described[name] = {
                "dtype": camera.kind,
                "shape": shape,
                "names": ["height", "width", "channels"],
            }
            if info := camera.info(fps):
                described[name][
                    "video_info" if version == "v2.0" and camera.kind == "video" else "info"
                ] = info
        else:
            feature = features[name]
            described[name] = {
                "dtype": feature.dtype,
                "shape": list(feature.shape),
                "names": None if feature.names is None else list(feature.names),
            }
    num_videos = sum(camera.kind == "video" for camera in cameras)
    sizes = {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    if version != VERSIONS[0]:
        sizes = {
            "total_videos": num_videos * num_episodes,
            "total_chunks": -(-num_episodes // chunks_size),
        }
    info = {
        "codebase_version": version,
        "fps": fps,
        "features": described,
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": num_tasks,
        "chunks_size": chunks_size,
        **sizes,
        "data_path": templates[0],
        "video_path": templates[1] if num_videos else None,
        "robot_type": "synthetic",
        "splits": {"train": f"0:{num_episodes}"},
    }
    _write_json(directory / "meta/info.json", info)


def write_statistics(directory: Path, statistics: Statistics) -> None:
    """Writes `meta/stats.json`."""
    lists = {
        name: {key: value.tolist() for key, value in entry.items()}
        for name, entry in statistics.items()
    }
    _write_json(directory / "meta/stats.json", lists)


def _field(name: str, feature: Feature) -> tuple[pa.Field, dict[str, Any]]:
    """Returns the Arrow field of a low-dimensional feature, and its description for `datasets`."""
    if feature.dtype == "string":
        return pa.field(name, pa.string()), {"dtype": "string", "_type": "Value"}
    value = pa.from_numpy_dtype(feature.numpy_dtype)
    described: dict[str, Any] = {"dtype": feature.dtype, "_type": "Value"}
    if feature.row_shape == ():
        return pa.field(name, value), described
    if len(feature.shape) == 1:
        return pa.field(name, pa.list_(value, feature.shape[0])), {
            "feature": described,
            "length": feature.shape[0],
            "_type": "List",
        }
    dimensions = len(feature.shape)
    nested = value
    for _ in feature.shape:
        nested = pa.list_(nested)
    # The extension type of `datasets`, by its name: readers without that package see the nested
    # lists below it.
    extension = {
        "ARROW:extension:name": f"datasets.features.features.Array{dimensions}DExtensionType",
        "ARROW:extension:metadata": json.dumps([list(feature.shape), feature.dtype]),
    }
    array = {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{dimensions}D"}
    return pa.field(name, nested, metadata=extension), array


def _statistics(values: npt.NDArray[np.floating], *, count: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the statistics over the first axis of (values, size), each float64 (size,)."""
    quantiles = np.quantile(values, list(_QUANTILES.values()), axis=0).astype(np.float64)
    return {
        "min": values.min(0).astype(np.float64),
        "max": values.max(0).astype(np.float64),
        "mean": values.mean(0, dtype=np.float64),
        "std": values.std(0, dtype=np.float64),
        "count": np.array([count]),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")
