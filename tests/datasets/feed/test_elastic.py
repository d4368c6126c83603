"""Checkpoints of one file: saved by 2 JAX processes, restored by 1 and by 4, through the checkpoint
code of Orbax v1, MaxText and Grain; and which pipelines are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import orbax.checkpoint as ocp_v0
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.elastic_worker import SAVED_AT, main
from tests.support.jax_processes import run_processes

# Orbax before 0.12.4 has another v1, or none.
v1 = getattr(ocp_v0, "v1", None)
needs_v1 = pytest.mark.skipif(
    not hasattr(v1, "load_checkpointables"), reason="this Orbax has no v1 with these functions"
)
SHUFFLE = lg.Shuffle(seed=3, num_parts=4, buffer_size=16)
WEIGHTS = {"w": np.arange(6.0)}
BATCH_SIZE = 8  # of all processes together
NUM_STEPS = 4  # after a checkpoint


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """30 rows in 3 episodes."""
    directory = tmp_path_factory.mktemp("elastic") / "data"
    return lg.open_repository(
        write_dataset(directory, episode_lengths=[13, 6, 11], fps=10, cameras=()).directory
    )


def stream(repository: lg.Repository, *, shuffle: lg.Shuffle = SHUFFLE) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(repository, features=["index"], shuffle=shuffle)


def elastic(repository: lg.Repository, *, shuffle: lg.Shuffle = SHUFFLE) -> Any:
    return iter(stream(repository, shuffle=shuffle).batch(4).pipe(lg.ElasticIterDataset))


def straight_rows(repository: lg.Repository, count: int) -> list[int]:
    iterator = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE))
    return [next(iterator) for _ in range(count)]


# --- several processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(repository: lg.Repository, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training of 2 processes, with a checkpoint of each kind, and the rows that they took."""
    directory = tmp_path_factory.mktemp("saved")
    task = {
        "directory": repository.description,
        "checkpoints": str(directory / "checkpoints"),
        "batch_size": BATCH_SIZE,
        "num_steps": NUM_STEPS,
    }
    (directory / "checkpoints").mkdir()
    seen = run_processes(main, {**task, "restore": False}, 2, directory)
    return {"task": task, "rows": [process["all"] for process in seen]}


@needs_v1
def test_two_processes_write_one_file(saved: dict[str, Any], repository: lg.Repository) -> None:
    checkpoints = Path(saved["task"]["checkpoints"])
    names = {
        way: sorted(path.name for path in (checkpoints / way).rglob("*.json"))
        for way in ("orbax", "maxtext", "shards")
    }
    assert names == {
        "orbax": ["process_0.json"],
        "maxtext": ["process_0.json"],
        "shards": ["shard_state_0.json"],
    }
    # The files hold the state at the time of the call; the rows taken since are not counted.
    (file,) = (checkpoints / "orbax").rglob("*.json")
    assert json.loads(file.read_text())["position"] == SAVED_AT["orbax"] * BATCH_SIZE
    straight = straight_rows(repository, 8 * BATCH_SIZE)
    for process, rows in enumerate(saved["rows"]):
        assert sum(rows, []) == straight[process::2]


@needs_v1
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_another_number_of_processes_goes_on(
    saved: dict[str, Any], repository: lg.Repository, tmp_path: Path, num_processes: int
) -> None:
    seen = run_processes(main, {**saved["task"], "restore": True}, num_processes, tmp_path)
    straight = straight_rows(repository, 20 * BATCH_SIZE)
    for process, found in enumerate(seen):
        assert found.keys() == SAVED_AT.keys()
        for way, rows in found.items():
            begin = SAVED_AT[way] * BATCH_SIZE
            end = begin + NUM_STEPS * BATCH_SIZE
            assert sum(rows, []) == straight[begin + process : end : num_processes], way
