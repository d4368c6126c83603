"""A small dataset of several files, its stream as one number, and processes of their own that
stream it.

Settings of huggingface_hub are read when it is imported, so what depends on them is tried in such a
process: `streams_in_process`.
"""

from __future__ import annotations

import hashlib
import os
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import file_download
from huggingface_hub.utils import _http

import lerobot_grain as lg
from lerobot_grain._storage.http import client
from lerobot_grain.testing import Camera, write_dataset
from tests.support.forked import call_forked

CAMERA = Camera(key="top", height=32, width=80, gop=4, codec="h264")
DATA_AND_VIDEO = [
    *(f"data/chunk-000/file-{number:03d}.parquet" for number in range(2)),
    *(f"videos/top/chunk-000/file-{number:03d}.mp4" for number in range(3)),
]


def write_small(directory: Path) -> Path:
    """Writes 36 rows in 2 data files, 3 video files and 2 files of the episode table."""
    return write_dataset(
        directory,
        episode_lengths=[8, 5, 7, 6, 10],
        fps=10,
        cameras=[CAMERA],
        tasks=("pick", "place"),
        episodes_per_data_file=3,
        episodes_per_video_file=2,
        episodes_per_metadata_file=3,
    ).directory


def digest(repository: Any, **arguments: Any) -> str:
    """Returns a hash of all examples of one shuffled epoch: their order, keys, types and values."""
    dataset = lg.LeRobotIterDataset(
        repository,
        num_epochs=1,
        shuffle=lg.Shuffle(seed=5, num_parts=2, buffer_size=8),
        delta_timestamps={"action": [0.0, 0.1]},
        **arguments,
    )
    total = hashlib.sha256()
    for example in dataset:
        for key in sorted(example):
            value = np.asarray(example[key])
            total.update(f"{key} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return total.hexdigest()


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes attempts follow each other at once, ours and those of huggingface_hub."""
    monkeypatch.setattr(client.random, "uniform", lambda *_: 0.001)
    hasty = types.SimpleNamespace(
        sleep=lambda _: None,
        time=time.time,
        monotonic=time.monotonic,
        perf_counter=time.perf_counter,
    )
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", hasty)


def digest_or_error(**arguments: Any) -> dict[str, str]:
    try:
        return {"digest": digest(**arguments)}
    except lg.LeRobotGrainError as error:
        return {"error": type(error).__name__, "text": str(error)}


def streams_in_process(
    tasks: list[dict[str, Any]], environment: dict[str, str]
) -> list[dict[str, str]]:
    """Returns what `digest_or_error` returns for the arguments in each of `tasks`, in a new process
    with `environment` added.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_")
    } | environment
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return call_forked(_stream_all, tasks, environment=environment)


def _stream_all(tasks: list[dict[str, Any]]) -> list[dict[str, str]]:
    warnings.simplefilter("error")
    return [digest_or_error(**task) for task in tasks]
