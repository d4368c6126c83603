"""Writes the files under `meta/` of LeRobotDataset v2.0 and v2.1 that differ from those of v3:
lines of JSON instead of parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain.testing._writer.metadata import (
    Statistics,
    aggregate_statistics,
    write_statistics,
)

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
# lerobot 0.1 to 0.3, which wrote these versions, had no quantiles.
_STATISTICS = ("min", "max", "mean", "std", "count")


def write_metadata(
    directory: Path,
    *,
    version: str,
    episode_lengths: npt.NDArray[np.int64],
    tasks: Sequence[str],
    tasks_of_episodes: Sequence[Sequence[str]],
    summaries: Sequence[Statistics],
) -> None:
    """Writes everything but `info.json`.

    Args:
      directory: of the dataset.
      version: v2.0 has statistics of the dataset, v2.1 of each episode.
      episode_lengths: int64 (episodes,).
      tasks: texts by task index.
      tasks_of_episodes: the texts of each episode.
      summaries: statistics of each episode; none are written if empty.
    """
    meta = directory / "meta"
    _write_lines(
        meta / "episodes.jsonl",
        (
            {"episode_index": index, "tasks": list(texts), "length": length}
            for index, (texts, length) in enumerate(
                zip(tasks_of_episodes, episode_lengths.tolist(), strict=True)
            )
        ),
    )
    _write_lines(
        meta / "tasks.jsonl",
        ({"task_index": index, "task": text} for index, text in enumerate(tasks)),
    )
    if summaries and version == "v2.0":
        total = aggregate_statistics(summaries)
        write_statistics(
            directory,
            {key: {name: entry[name] for name in _STATISTICS} for key, entry in total.items()},
        )
    elif summaries:
        _write_lines(
            meta / "episodes_stats.jsonl",
            (
                {
                    "episode_index": index,
                    "stats": {
                        key: {name: entry[name].tolist() for name in _STATISTICS}
                        for key, entry in summary.items()
                    },
                }
                for index, summary in enumerate(summaries)
            ),
        )


def _write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8"
    )
