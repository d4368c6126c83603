"""Checkpoints of one file: saved by 2 JAX processes, restored by 1 and by 4, through the checkpoint
code of Orbax v1, MaxText and Grain; and which pipelines are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp_v0
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.elastic_worker import SAVED_AT, main
from tests.support.jax_processes import run_processes

# Orbax 0.11 has another v1, or none.
v1: Any = getattr(ocp_v0, "v1", None)
needs_v1 = pytest.mark.skipif(
    not hasattr(v1, "load"), reason="this Orbax has no v1 with these functions"
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
        assert rows == straight[process::2]


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
            assert rows == straight[begin + process : end : num_processes], way


# --- one process ---------------------------------------------------------------------------------


def test_it_is_what_checkpoint_code_asks_for(repository: lg.Repository) -> None:
    with contextlib.closing(elastic(repository)) as batches:
        assert isinstance(batches, grain.experimental.ElasticIterator)
        assert isinstance(batches, grain.DatasetIterator)
        assert batches.base_iterator is batches
        if v1 is not None:
            assert isinstance(batches, v1.StatefulCheckpointable)
    with contextlib.closing(iter(stream(repository))) as plain:
        assert not isinstance(plain, grain.experimental.ElasticIterator)


def test_batches_states_and_statistics_are_those_of_the_parent(repository: lg.Repository) -> None:
    with (
        contextlib.closing(elastic(repository)) as batches,
        contextlib.closing(iter(stream(repository).batch(4))) as plain,
    ):
        for _ in range(3):
            assert next(batches)["index"].tolist() == next(plain)["index"].tolist()
        assert batches.get_state() == plain.get_state()
        assert lg.read_statistics(batches).examples == 12
        # With the wrapper or without it.
        next(plain)
        batches.set_state(plain.get_state())
        plain.set_state(batches.get_state())
        assert next(batches)["index"].tolist() == next(plain)["index"].tolist()
    with pytest.raises(ValueError, match="closed iterator"):
        next(batches)


def add_noise(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**example, "noise": rng.normal()}


Pipeline = Callable[[Any], Any]
TAKEN: dict[str, Pipeline] = {
    "single examples": lambda s: s,
    "maps": lambda s: s.map(dict).batch(2).map(dict),
    "random map": lambda s: s.seed(0).random_map(add_noise).batch(2),
    "thread": lambda s: grain.experimental.ThreadPrefetchIterDataset(
        s.batch(2), prefetch_buffer_size=1
    ),
    "options": lambda s: grain.experimental.WithOptionsIterDataset(
        s.batch(2), grain.experimental.DatasetOptions()
    ),
    "device": lambda s: s.batch(2).pipe(lg.DeviceIterDataset),
    "workers": lambda s: s.pipe(lg.WorkerPrefetchIterDataset, num_workers=0).batch(2),
    "mixture": lambda s: lg.MixtureIterDataset({"a": s.map(dict), "b": s}).batch(2),
    "limit of batches": lambda s: grain.experimental.LimitIterDataset(s.batch(2), count=9),
    "numbers of batches": lambda s: s.batch(2).map_with_index(lambda _, batch: batch),
    "itself": lambda s: s.pipe(lg.ElasticIterDataset).batch(2),
}


@pytest.mark.parametrize("name", TAKEN)
def test_pipelines_whose_state_is_one_position(repository: lg.Repository, name: str) -> None:
    dataset = TAKEN[name](stream(repository))
    with contextlib.closing(iter(dataset.pipe(lg.ElasticIterDataset))) as batches:
        next(batches)
        state = json.loads(json.dumps(batches.get_state()))
        expected = rows_of(next(batches))
        batches.set_state(state)
        assert rows_of(next(batches)) == expected


class Own(grain.IterDataset[Any]):
    """A dataset of the user."""

    def __iter__(self) -> grain.DatasetIterator[Any]:
        return self._parent.__iter__()


REFUSED: dict[str, tuple[Pipeline, str]] = {
    "filter": (
        lambda s: s.filter(bool).batch(2),
        "the pipeline has FilterIterDataset, after which the state of one process is not that of "
        "another number of processes; expected datasets of lerobot_grain, .map, .random_map, "
        ".batch and ThreadPrefetchIterDataset; select rows with episodes= or valid_rows= of the "
        "stream",
    ),
    "window shuffle": (
        lambda s: grain.experimental.WindowShuffleIterDataset(s, window_size=4, seed=0).batch(2),
        "has WindowShuffleIterDataset, .*; leave it out, the stream is shuffled already",
    ),
    "mp_prefetch": (
        lambda s: s.mp_prefetch(grain.MultiprocessingOptions(num_workers=2)).batch(2),
        "has InterleaveIterDataset, .*; use WorkerPrefetchIterDataset in place of mp_prefetch",
    ),
    "mix": (
        lambda s: grain.IterDataset.mix([s, s.map(dict)]).batch(2),
        "has MixedIterDataset, .*; use MixtureIterDataset in place of mix",
    ),
    "limit of examples": (
        lambda s: grain.experimental.LimitIterDataset(s, count=20).batch(2),
        "has LimitIterDataset, .*; put it after .batch",
    ),
    "numbers of examples": (
        lambda s: s.map_with_index(lambda _, example: example).batch(2),
        "has MapWithIndexIterDataset, .*; put it after .batch",
    ),
    "repeat": (
        lambda s: grain.experimental.RepeatIterDataset(s, num_epochs=2),
        "has RepeatIterDataset, .*; write it as a .map, or save the state of what stands before",
    ),
    "own": (lambda s: Own(s), "has Own, "),
    "no stream": (
        lambda _: grain.MapDataset.range(4).to_iter_dataset().map(int),
        "has PrefetchIterDataset, ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pipelines_are_refused(repository: lg.Repository, name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises(lg.InvalidRequestError, match=f"^ElasticIterDataset: .*{text}"):
        make(stream(repository)).pipe(lg.ElasticIterDataset)


def rows_of(batch: dict[str, Any]) -> list[int]:
    found: list[int] = np.atleast_1d(batch["index"]).tolist()
    return found


# --- files ---------------------------------------------------------------------------------------


def load(directory: Path, batches: Any) -> None:
    async def loaded() -> None:
        await (await batches.load(directory))

    asyncio.run(loaded())


class Created:
    """What Orbax gives `save`: a directory that is awaited."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def await_creation(self) -> Path:
        return self._path


@pytest.mark.parametrize("process", [0, 1])
def test_only_process_0_writes(
    repository: lg.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: int
) -> None:
    """All processes save the same file; a second writer could tear what the first has written."""

    async def save(batches: Any) -> None:
        await (await batches.save(Created(tmp_path)))

    monkeypatch.setattr(jax, "process_index", lambda: process)
    with contextlib.closing(elastic(repository)) as batches:
        next(batches)
        asyncio.run(save(batches))
        written = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
        states = {0: batches.get_state()} if process == 0 else {}
        assert written == {f"process_{shard}.json": state for shard, state in states.items()}
        assert batches.get_shard_states() == states


def write_states(directory: Path, positions: list[int], state: dict[str, Any]) -> None:
    """Writes what Grain's iterators write in so many processes."""
    for process, position in enumerate(positions):
        text = json.dumps({**state, "position": position})
        (directory / f"process_{process}-of-{len(positions)}.json").write_text(text)


def test_files_of_grains_iterators_are_read(repository: lg.Repository, tmp_path: Path) -> None:
    with contextlib.closing(elastic(repository)) as batches:
        write_states(tmp_path, [20, 20, 20], batches.get_state())
        load(tmp_path, batches)
        assert rows_of(next(batches)) == straight_rows(repository, 24)[20:]


@needs_v1
def test_a_state_that_orbax_v0_has_saved_as_json_is_read(
    repository: lg.Repository, tmp_path: Path
) -> None:
    with contextlib.closing(elastic(repository)) as batches:
        next(batches)
        with ocp_v0.CheckpointManager(tmp_path, item_names=("state", "data")) as checkpoints:
            data = ocp_v0.args.JsonSave(batches.get_state())
            state = ocp_v0.args.StandardSave(WEIGHTS)
            checkpoints.save(1, args=ocp_v0.args.Composite(state=state, data=data))
        expected = rows_of(next(batches))
        loaded = v1.load_checkpointables(tmp_path / "1", {"state": WEIGHTS, "data": batches})
        assert np.array_equal(loaded["state"]["w"], WEIGHTS["w"])
        assert rows_of(next(batches)) == expected


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (
            [20, 16],
            r"found 2 states that differ, such as position 20 and position 16; expected "
            "the same state of every process; restore each in its own process, on the same number",
        ),
        ([], r"process_0\.json or process_\*-of-\*\.json: found none; expected the state that"),
    ],
)
def test_states_that_are_not_one(
    repository: lg.Repository, tmp_path: Path, positions: list[int], text: str
) -> None:
    with contextlib.closing(elastic(repository)) as batches:
        next(batches)
        write_states(tmp_path, positions, batches.get_state())
        with pytest.raises(lg.StateMismatchError, match=text):
            load(tmp_path, batches)
        assert batches.get_state()["position"] == 4
        with pytest.raises(lg.StateMismatchError, match="shards: found"):
            batches.set_shard_states(dict(enumerate(positions)))
        assert batches.get_state()["position"] == 4


def test_a_file_that_is_cut(repository: lg.Repository, tmp_path: Path) -> None:
    (tmp_path / "process_0.json").write_text('{"format": 1, ')
    with (
        contextlib.closing(elastic(repository)) as batches,
        pytest.raises(lg.StateMismatchError, match=r"process_0\.json: not JSON \(.*older"),
    ):
        load(tmp_path, batches)


# --- Orbax v1 ------------------------------------------------------------------------------------


@needs_v1
# Orbax leaves the rest of a load that failed as it is.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_refused_state_comes_out_as_it_is(repository: lg.Repository, tmp_path: Path) -> None:
    with (
        contextlib.closing(elastic(repository)) as batches,
        contextlib.closing(elastic(repository, shuffle=lg.Shuffle(seed=4))) as other,
        contextlib.closing(v1.training.Checkpointer(tmp_path / "checkpoints")) as checkpoints,
    ):
        next(batches)
        next(other)
        assert checkpoints.save_checkpointables(1, {"state": WEIGHTS, "data": batches})
        with pytest.raises(lg.StateMismatchError, match=r"seed = 3, this stream has 4"):
            checkpoints.load_checkpointables(1, {"state": WEIGHTS, "data": other})
        assert other.get_state()["position"] == 4
        # Without the wrapper Orbax has an error of its own; documented.
        plain = iter(stream(repository, shuffle=lg.Shuffle(seed=4)).batch(4))
        checkpoints.save_checkpointables(2, {"data": iter(stream(repository).batch(4))})
        with pytest.raises(KeyError, match="incompatible handler") as caught:
            checkpoints.load_checkpointables(2, {"data": plain})
        assert isinstance(caught.value.__cause__, lg.StateMismatchError)
        plain.close()


class Slow:
    """A checkpointable that is being saved until it is told."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    async def save(self, directory: Any) -> Any:
        async def write() -> None:
            path = await directory.await_creation()
            await asyncio.to_thread(self.may_end.wait, 30)
            (path / "slow").write_text("")

        return write()

    async def load(self, directory: Any) -> Any:
        raise NotImplementedError


@needs_v1
def test_a_save_while_another_one_runs(repository: lg.Repository, tmp_path: Path) -> None:
    """The state is that of the call; and which saves the policies of Orbax skip."""
    slow = Slow()
    policies = v1.training.save_decision_policies
    with (
        contextlib.closing(elastic(repository)) as batches,
        contextlib.closing(v1.training.Checkpointer(tmp_path / "default")) as checkpoints,
    ):
        next(batches)
        running = checkpoints.save_checkpointables_async(1, {"data": batches, "slow": slow})
        next(batches)
        # The default policy: skipped, without a word.
        assert checkpoints.save_checkpointables_async(2, {"data": batches}) is None
        assert checkpoints.save_checkpointables(2, {"data": batches}) is False
        slow.may_end.set()
        assert running.result()
        assert [checkpoint.step for checkpoint in checkpoints.checkpoints] == [1]
        checkpoints.load_checkpointables(1, {"data": batches})
        assert batches.get_state()["position"] == 4
    slow = Slow()
    interval = policies.FixedIntervalPolicy(1)
    with (
        contextlib.closing(elastic(repository)) as batches,
        contextlib.closing(
            v1.training.Checkpointer(tmp_path / "fixed", save_decision_policy=interval)
        ) as checkpoints,
    ):
        checkpoints.save_checkpointables_async(1, {"data": batches, "slow": slow})
        next(batches)
        timer = threading.Timer(0.1, slow.may_end.set)
        timer.start()
        assert checkpoints.save_checkpointables(2, {"data": batches})
        assert slow.may_end.is_set(), "the second save has waited for the first"
        assert [checkpoint.step for checkpoint in checkpoints.checkpoints] == [1, 2]
        timer.join()
