"""Datasets on disk: read whole, and changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import lerobot_grain as lg
from lerobot_grain._format.info import DatasetInfo, Feature, PathTemplate

INFO = "meta/info.json"


def make_info(*features: Feature) -> DatasetInfo:
    """Returns what info.json of a v3.0 dataset with 10 frames a second declares."""
    return DatasetInfo(
        codebase_version="v3.0",
        fps=10.0,
        features={feature.key: feature for feature in features},
        total_episodes=None,
        total_frames=None,
        data_path=PathTemplate("data/{chunk_index}-{file_index}"),
        video_path=PathTemplate("videos/{video_key}/{chunk_index}-{file_index}"),
        robot_type=None,
        splits={},
    )


def examples_of(repository: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Returns all examples, in order unless the arguments say otherwise."""
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(repository, **{"shuffle": None, "num_epochs": 1} | arguments))
    ) as examples:
        return list(examples)


def change_info(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Writes info.json again, after `change` has changed it."""
    info = json.loads((directory / INFO).read_text())
    change(info)
    (directory / INFO).write_text(json.dumps(info))


def change_table(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Writes a parquet file again, as `change` returns it."""
    pq.write_table(change(pq.read_table(path)), path, **options)


def add_language(directory: Path, key: str, *, row_group_size: int) -> None:
    """Adds a language feature to a dataset of one data file: of 0, 1, 2, 0, ... messages a row."""

    def add(table: pa.Table) -> pa.Table:
        messages = [
            [{"role": "user", "content": f"{row}"}] * (row % 3) for row in range(len(table))
        ]
        return table.append_column(key, pa.array(messages))

    change_table(directory / "data/chunk-000/file-000.parquet", add, row_group_size=row_group_size)
    entry = {"dtype": "language", "shape": [1], "names": None}
    change_info(directory, lambda info: info["features"].update({key: entry}))
