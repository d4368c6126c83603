"""Several JAX processes on this machine: each streams its shard, the device feed makes global
batches, a jitted step runs on all devices.

Processes stand for hosts: they share nothing but the coordinator on the loopback interface and the
collectives of the jitted steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import WrittenDataset, write_dataset
from tests.support.jax_processes import run_processes
from tests.support.multihost_worker import main

# Rows of one global batch, over all processes: one row a device with four processes.
BATCH_SIZE = 8
NUM_STEPS = 10
# The stream is stopped there: in an epoch whose 37 rows neither the processes nor the batches
# divide.
STOPPED_AT = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("multihost") / "data",
        episode_lengths=[13, 9, 15],
        fps=10,
        cameras=(),
        tasks=("a", "b"),
    )


def run(
    written: WrittenDataset,
    directory: Path,
    num_processes: int,
    *,
    num_steps: int,
    state: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Runs a task in so many processes, and returns what each saw."""
    task = {"directory": str(written.directory), "batch_size": BATCH_SIZE}
    task |= {"num_steps": num_steps, "state": state}
    return run_processes(main, task, num_processes, directory)


@pytest.fixture(scope="module")
def expected(written: WrittenDataset) -> list[dict[str, np.ndarray]]:
    """The global batches, as one process without JAX's devices reads them."""
    dataset = lg.LeRobotIterDataset(
        written.directory, features=["index", "action"], shuffle=lg.Shuffle(seed=3)
    ).batch(BATCH_SIZE)
    with contextlib.closing(iter(dataset)) as batches:
        return [next(batches) for _ in range(NUM_STEPS)]


@pytest.fixture(scope="module")
def straight(
    written: WrittenDataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[dict[str, Any]]]:
    """What 2 and 4 processes see without an interruption."""
    return {
        number: run(written, tmp_path_factory.mktemp("straight"), number, num_steps=NUM_STEPS)
        for number in (2, 4)
    }


def assert_same_sets(
    steps: Sequence[dict[str, Any]], expected: Sequence[dict[str, np.ndarray]]
) -> None:
    assert len(steps) == len(expected)
    for step, batch in zip(steps, expected, strict=True):
        assert sorted(step["index"]) == sorted(batch["index"].tolist())
        assert step["count"] == BATCH_SIZE
        np.testing.assert_allclose(step["sum"], batch["action"].sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_stream_one_global_batch(
    straight: dict[int, list[dict[str, Any]]],
    expected: list[dict[str, np.ndarray]],
    num_processes: int,
) -> None:
    seen = straight[num_processes]
    assert all(process["steps"] == seen[0]["steps"] for process in seen)
    assert_same_sets(seen[0]["steps"], expected)
    # The state is the same on every process, and counts the rows of all of them.
    assert all(process["states"] == seen[0]["states"] for process in seen)
    assert [state["position"] for state in seen[0]["states"]] == [
        BATCH_SIZE * step for step in range(1, NUM_STEPS + 1)
    ]
    # The rows of process i are those of shard i, one after the other.
    per_process = BATCH_SIZE // num_processes
    for step, batch in zip(seen[0]["steps"], expected, strict=True):
        rows = batch["index"].reshape(per_process, num_processes).T
        assert step["index"] == rows.ravel().tolist()


# The same number, fewer and more.
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((2, 2), (4, 1), (2, 4)),
        *(pytest.param(4, number, marks=pytest.mark.long) for number in (4, 2)),
    ],
)
def test_restored_with_any_number_of_processes(
    written: WrittenDataset,
    straight: dict[int, list[dict[str, Any]]],
    expected: list[dict[str, np.ndarray]],
    before: int,
    after: int,
    tmp_path: Path,
) -> None:
    state = straight[before][0]["states"][STOPPED_AT - 1]
    seen = run(written, tmp_path, after, num_steps=NUM_STEPS - STOPPED_AT, state=state)
    assert all(
        process["steps"] == seen[0]["steps"] and process["states"] == seen[0]["states"]
        for process in seen
    )
    assert_same_sets(seen[0]["steps"], expected[STOPPED_AT:])
    assert seen[0]["states"] == straight[before][0]["states"][STOPPED_AT:]
    if after == before:
        assert seen[0]["steps"] == straight[before][0]["steps"][STOPPED_AT:], (
            "the same number of processes: also the same order"
        )


@pytest.mark.parametrize("num_processes", [2, 4])
def test_a_finite_stream_ends_everywhere_at_once(
    straight: dict[int, list[dict[str, Any]]], num_processes: int
) -> None:
    # 37 rows: 18 or 9 for each process, of which its whole batches are taken.
    per_process = BATCH_SIZE // num_processes
    rows = straight[num_processes][0]["rows_of_an_epoch"]
    assert len(rows) == 37 // num_processes // per_process * BATCH_SIZE
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_streams_that_would_differ_or_hang_are_refused(
    straight: dict[int, list[dict[str, Any]]], num_processes: int
) -> None:
    for number, process in enumerate(straight[num_processes]):
        uneven, replicated, halves = process["refused"]
        assert uneven == (
            f"num_epochs=1: {num_processes} shards may end at different steps, on which all "
            "processes wait for each other; use "
            "shard_options=grain.sharding.ShardByJaxProcess(drop_remainder=True)"
        )
        assert f"the stream is shard {number} of {num_processes}, but the sharding" in replicated
        assert "cuts the batch into 1 for the processes" in replicated
        assert (
            "use shard_options=grain.sharding.ShardOptions(0, 1, drop_remainder=True) on this "
            "process" in replicated
        )
        if num_processes == 2:
            assert halves is None
        else:
            assert "cuts the batch into 2 for the processes" in halves
            assert (
                f"use shard_options=grain.sharding.ShardOptions({number // 2}, 2, "
                "drop_remainder=True) on this process" in halves
            )


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_that_share_rows(
    straight: dict[int, list[dict[str, Any]]],
    expected: list[dict[str, np.ndarray]],
    num_processes: int,
) -> None:
    wanted = [batch["index"].reshape(-1, 2).T.ravel().tolist() for batch in expected[:2]]
    assert [process["steps_of_halves"] for process in straight[num_processes]] == [
        wanted
    ] * num_processes
