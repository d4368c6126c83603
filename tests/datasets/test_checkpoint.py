"""Checkpoints through Orbax: saved by n processes and restored by m, and Grain's own handler for an
unchanged number.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.jax_processes import run_processes

ITEMS = ("state", "data")
WEIGHTS = {"w": np.arange(6.0)}  # beside the stream, as a model would be
SHUFFLE = lg.Shuffle(seed=3, num_parts=4, buffer_size=16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows in 3 episodes."""
    return write_dataset(
        tmp_path_factory.mktemp("checkpoint") / "data",
        episode_lengths=[13, 6, 11],
        fps=10,
        cameras=(),
    ).directory


@pytest.fixture(scope="module")
def repository(directory: Path) -> lg.Repository:
    return lg.open_repository(directory)


@pytest.fixture(scope="module")
def other_repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """23 rows in 3 episodes."""
    directory = tmp_path_factory.mktemp("checkpoint") / "other"
    return lg.open_repository(
        write_dataset(directory, episode_lengths=[9, 3, 11], fps=10, cameras=(), seed=1).directory
    )


def stream(
    repository: lg.Repository, shard: int = 0, num_shards: int = 1, *, num_epochs: int | None = None
) -> lg.LeRobotIterDataset:
    options = grain.sharding.ShardOptions(shard, num_shards)
    return lg.LeRobotIterDataset(
        repository,
        features=["index"],
        shuffle=SHUFFLE,
        shard_options=options,
        num_epochs=num_epochs,
    )


def straight_rows(repository: lg.Repository, count: int) -> list[int]:
    iterator = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE))
    return [next(iterator) for _ in range(count)]


def rows_of(example: dict[str, Any]) -> list[int]:
    return np.atleast_1d(example["index"]).tolist()


Make = Callable[[int, int], grain.IterDataset[Any]]


def run(
    make: Make, num_shards: int, steps: int, state: dict[str, Any] | None
) -> tuple[list[list[list[int]]], list[dict[str, Any]]]:
    """Returns the rows of each step and shard, and the state of each shard after the last step."""
    rows: list[list[list[int]]] = [[] for _ in range(steps)]
    states = []
    for shard in range(num_shards):
        iterator = iter(make(shard, num_shards))
        if state is not None:
            iterator.set_state(state)
        for step in range(steps):
            rows[step].append(rows_of(next(iterator)))
        states.append(iterator.get_state())
        iterator.close()
    return rows, states


def through_orbax(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Saves a state as the documentation says, and reads it with another manager, as another
    process would.
    """
    with ocp.CheckpointManager(directory, item_names=ITEMS) as checkpoints:
        checkpoints.save(
            7,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(WEIGHTS), data=ocp.args.JsonSave(state)
            ),
        )
    with ocp.CheckpointManager(directory, item_names=ITEMS) as checkpoints:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(WEIGHTS), data=ocp.args.JsonRestore()
        )
        restored = checkpoints.restore(checkpoints.latest_step(), args=arguments)
    assert np.array_equal(restored["state"]["w"], WEIGHTS["w"])
    assert restored["data"] == state
    return dict(restored["data"])


# Steps end in the middle of epochs of 30 rows; in the last case there are more shards than rows.
@pytest.mark.parametrize(
    ("saved_by", "restored_by", "batch_size"),
    [(2, 1, 12), (2, 4, 12), (4, 3, 12), (1, 2, 12), (3, 3, 12), (7, 40, 280)],
)
def test_saved_by_n_processes_and_restored_by_m(
    repository: lg.Repository, tmp_path: Path, saved_by: int, restored_by: int, batch_size: int
) -> None:
    def make(shard: int, num_shards: int) -> grain.IterDataset[Any]:
        return stream(repository, shard, num_shards, num_epochs=num_epochs).batch(
            batch_size // num_shards
        )

    # More epochs than are read. Without an end, each of 40 shards would read 600 epochs ahead, as
    # few rows as it has of each.
    num_epochs = None if restored_by < 40 else 100
    straight = straight_rows(repository, 9 * batch_size)
    assert len(straight) < 100 * 30
    before, states = run(make, saved_by, 4, None)
    assert all(state == states[0] for state in states)
    after, _ = run(make, restored_by, 5, through_orbax(tmp_path, states[0]))
    for step, shards in enumerate([*before, *after]):
        num_shards = len(shards)
        for shard, rows in enumerate(shards):
            # The set of the global batch is always the same, and with an unchanged number each
            # shard's batch, in its order.
            assert (
                rows == straight[step * batch_size + shard : (step + 1) * batch_size : num_shards]
            )


def save_both(task: dict[str, Any]) -> None:
    """What each of two processes does: saves the state in both ways, and restores it."""
    jax.distributed.initialize(
        task["coordinator"], num_processes=task["num_processes"], process_id=task["process"]
    )
    dataset = lg.LeRobotIterDataset(
        task["repository"],
        features=["index"],
        shuffle=SHUFFLE,
        shard_options=grain.sharding.ShardByJaxProcess(),
    )
    with (
        contextlib.closing(iter(dataset.batch(4))) as batches,
        ocp.CheckpointManager(task["directory"], item_names=("elastic", "grain")) as checkpoints,
    ):
        for _ in range(5):
            next(batches)
        # The check that the documentation gives: the states of all processes are equal; and that
        # it finds what is not.
        assert difference(batches.get_state()) == ""
        found = difference({**batches.get_state(), "position": task["process"]})
        # JAX before 0.7 says so in the processes that differ from the first.
        assert "the states of the processes differ" in found or task["process"] == 0, found
        elastic = ocp.args.JsonSave(batches.get_state())
        ordinary = grain.checkpoint.CheckpointSave(batches)
        checkpoints.save(5, args=ocp.args.Composite(elastic=elastic, grain=ordinary))
        checkpoints.wait_until_finished()
        expected = next(batches)["index"].tolist()
        # An unchanged number of processes: both ways.
        restores = {
            "elastic": ocp.args.JsonRestore(),
            "grain": grain.checkpoint.CheckpointRestore(batches),
        }
        for item, arguments in restores.items():
            restored = checkpoints.restore(5, args=ocp.args.Composite(**{item: arguments}))[item]
            if item == "elastic":
                batches.set_state(restored)
            assert next(batches)["index"].tolist() == expected, item


def difference(state: dict[str, Any]) -> str:
    """Returns how the states of all processes differ, nothing where they are equal."""
    sums = np.uint32(zlib.crc32(json.dumps(state).encode()))
    try:
        multihost_utils.assert_equal(sums, "the states of the processes differ")
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.timeout(120)
def test_two_jax_processes_save_and_one_restores(
    directory: Path, repository: lg.Repository, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    task = {"repository": str(directory), "directory": str(tmp_path / "saved")}
    run_processes(save_both, task, 2, tmp_path / "output")
    with (
        ocp.CheckpointManager(tmp_path / "saved", item_names=("elastic", "grain")) as checkpoints,
        contextlib.closing(iter(stream(repository).batch(8))) as batches,
    ):
        with pytest.raises(ValueError, match=r"process_0-of-1\.json does not exist"):
            checkpoints.restore(
                5, args=ocp.args.Composite(grain=grain.checkpoint.CheckpointRestore(batches))
            )
        batches.set_state(
            checkpoints.restore(5, args=ocp.args.Composite(elastic=ocp.args.JsonRestore()))[
                "elastic"
            ]
        )
        assert rows_of(next(batches)) == straight_rows(repository, 48)[40:]


def test_grains_own_handler_restores_an_unchanged_number(
    repository: lg.Repository, tmp_path: Path
) -> None:
    """As in the README, with one process."""
    batches, restored = iter(stream(repository).batch(8)), iter(stream(repository).batch(8))
    for _ in range(5):
        next(batches)
    with ocp.CheckpointManager(tmp_path, item_names=ITEMS) as checkpoints:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(WEIGHTS), data=grain.checkpoint.CheckpointSave(batches)
        )
        checkpoints.save(5, args=arguments)
        next(batches)  # what is saved is the state when `save` was called
    with ocp.CheckpointManager(tmp_path, item_names=ITEMS) as checkpoints:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(WEIGHTS),
            data=grain.checkpoint.CheckpointRestore(restored),
        )
        assert checkpoints.restore(5, args=arguments)["data"] is restored
    assert rows_of(next(restored)) == straight_rows(repository, 48)[40:]
    batches.close()
    restored.close()


def test_the_saved_state_is_that_of_the_call(repository: lg.Repository, tmp_path: Path) -> None:
    """Orbax writes in the background, while the consumer goes on."""
    batches = iter(
        grain.experimental.ThreadPrefetchIterDataset(
            stream(repository).batch(8), prefetch_buffer_size=2
        )
    )
    with ocp.CheckpointManager(tmp_path, item_names=ITEMS) as checkpoints:
        for step in range(1, 6):
            next(batches)
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave(WEIGHTS), data=ocp.args.JsonSave(batches.get_state())
            )
            checkpoints.save(step, args=arguments)
        checkpoints.wait_until_finished()
        positions = [
            checkpoints.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"][
                "position"
            ]
            for step in range(1, 6)
        ]
    batches.close()
    assert positions == [8, 16, 24, 32, 40]


def add_noise(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**example, "noise": rng.normal()}


def window_shuffled(dataset: Any) -> Any:
    return grain.experimental.WindowShuffleIterDataset(dataset, window_size=6, seed=0)


# Transformations after the stream on each process, for 2 shards that become 3: whether a state of
# one process is that of all.
ELASTIC: dict[str, Callable[[Any], Any]] = {
    "map": lambda dataset: dataset.map(dict),
    "batch": lambda dataset: dataset.batch(2),
    "thread_prefetch": lambda dataset: grain.experimental.ThreadPrefetchIterDataset(
        dataset.batch(2), prefetch_buffer_size=3
    ),
    "limit": lambda dataset: grain.experimental.LimitIterDataset(dataset, count=20),
    "random_map": lambda dataset: dataset.seed(0).random_map(add_noise),
}


@pytest.mark.parametrize("name", ELASTIC)
def test_behind_what_another_number_of_processes_resumes_exactly(
    repository: lg.Repository, name: str
) -> None:
    def make(shard: int, num_shards: int) -> grain.IterDataset[Any]:
        return ELASTIC[name](stream(repository, shard, num_shards))

    before, states = run(make, 2, 7, None)
    assert states[0] == states[1]
    after, _ = run(make, 3, 5, states[0])
    rows = [row for step in [*before, *after] for shard in step for row in shard]
    assert sorted(rows) == sorted(straight_rows(repository, len(rows)))


def test_behind_a_filter_every_process_has_its_own_state(repository: lg.Repository) -> None:
    def make(shard: int, num_shards: int) -> grain.IterDataset[Any]:
        return stream(repository, shard, num_shards).filter(
            lambda example: example["index"] % 3 != 1
        )

    _, states = run(make, 2, 7, None)
    assert states[0] != states[1]
    # The same number of processes, each with its own state, goes on exactly.
    for shard, state in enumerate(states):
        straight = iter(make(shard, 2))
        rows = [rows_of(next(straight)) for _ in range(12)]
        restored = iter(make(shard, 2))
        restored.set_state(state)
        assert [rows_of(next(restored)) for _ in range(5)] == rows[7:]


def test_behind_a_window_shuffle_another_number_of_processes_is_not_exact(
    repository: lg.Repository,
) -> None:
    """Known, and documented: its state counts inside of windows whose rows depend on the number of
    shards.
    """

    def make(shard: int, num_shards: int) -> grain.IterDataset[Any]:
        return window_shuffled(stream(repository, shard, num_shards))

    before, states = run(make, 2, 8, None)
    after, _ = run(make, 1, 44, states[0])  # to the end of the second epoch, if all were well
    rows = [row for step in [*before, *after] for shard in step for row in shard]
    assert sorted(rows) != sorted(straight_rows(repository, 60))


def test_a_mixture_is_restored_on_another_number_of_processes(
    repository: lg.Repository, other_repository: lg.Repository, tmp_path: Path
) -> None:
    """Every row of each dataset comes once, and the proportions stay; which dataset comes at
    which step depends on the number.
    """

    def make(shard: int, num_shards: int) -> grain.IterDataset[Any]:
        parts = {
            "first": stream(repository, shard, num_shards).map(
                lambda example: {"index": example["index"]}
            ),
            "second": stream(other_repository, shard, num_shards).map(
                lambda example: {"index": example["index"] + 100}
            ),
        }
        return grain.IterDataset.mix(parts, {"first": 2, "second": 1}).batch(24 // num_shards)

    before, states = run(make, 2, 3, None)
    assert states[0] == states[1]
    middle, states = run(make, 4, 2, through_orbax(tmp_path / "a", states[0]))
    after, _ = run(make, 1, 3, through_orbax(tmp_path / "b", states[0]))
    rows = [row for step in [*before, *middle, *after] for shard in step for row in shard]
    assert len(rows) == 8 * 24
    for source, shift, count in ((repository, 0, 128), (other_repository, 100, 64)):
        found = sorted(row - shift for row in rows if (row >= 100) == (shift == 100))
        assert found == sorted(straight_rows(source, count))


def test_the_code_of_the_documentation_runs(repository: lg.Repository, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    orbax_v1, orbax_v0, ordinary, afterwards, without_orbax, _, check = re.findall(
        r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    has_v1 = hasattr(getattr(ocp, "v1", None), "load")  # of Orbax 0.12
    names: dict[str, Any] = {"repository": repository}
    straight = iter(lg.LeRobotIterDataset(repository, features=["index"]).batch(64))
    expected = [rows_of(next(straight)) for _ in range(250)]
    straight.close()
    runs = [("v0", orbax_v0, 0, 150), ("v0", orbax_v0, 100, 200)]
    if has_v1:
        # The last one goes on after an update of Orbax.
        runs += [("v1", orbax_v1, 0, 150), ("v1", orbax_v1, 100, 200), ("v0", orbax_v1, 200, 250)]
    for directory, code, begin, num_steps in runs:
        taken: list[list[int]] = []

        def train_step(state: Any, batch: dict[str, Any], taken: list[list[int]] = taken) -> Any:
            taken.append(rows_of(batch))
            return {"w": state["w"] + 1}

        names |= {"num_steps": num_steps, "train_step": train_step, "state": WEIGHTS}
        names["directory"] = tmp_path / directory
        exec(code, names)
        assert names["state"]["w"][0] == num_steps
        assert taken == expected[begin:num_steps]
    batches = iter(lg.LeRobotIterDataset(repository).batch(4))
    next(batches)
    names |= {
        "ocp": ocp,
        "batches": batches,
        "directory": tmp_path / "ordinary",
        "path": tmp_path / "state.json",
        "step": 1,
    }
    for code in (ordinary, without_orbax, check):
        exec(code, names)
        assert batches.get_state()["position"] == 4
    batches.close()
    if has_v1:
        exec(afterwards, names)
        assert names["batches"].get_state()["position"] == 4
        names["batches"].close()
