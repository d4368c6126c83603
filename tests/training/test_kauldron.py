"""Kauldron's pipeline: through its real Trainer where it is installed, and through a stand-in."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support import kauldron_stand_in

PAGE = Path(__file__).parents[2] / "docs" / "trainers" / "kauldron.md"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """50 rows in 3 episodes."""
    directory = tmp_path_factory.mktemp("kauldron") / "data"
    return lg.open_repository(
        write_dataset(directory, episode_lengths=[13, 6, 31], fps=10, cameras=()).directory
    )


@pytest.fixture(scope="module")
def pipeline_of() -> Iterator[Any]:
    with kauldron_stand_in.importable():
        yield importlib.import_module("lerobot_grain.kauldron").KauldronPipeline


def stream(repository: lg.Repository, *more: str) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        repository,
        features=["observation.state", "index", *more],
        shuffle=lg.Shuffle(seed=3, num_parts=4, buffer_size=16),
    )


def batched(repository: lg.Repository) -> grain.IterDataset[Any]:
    return stream(repository).batch(4, drop_remainder=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The streams that were opened."""
    seen: list[Any] = []
    original = lg.LeRobotIterDataset.__iter__

    def counted(self: Any) -> Any:
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(lg.LeRobotIterDataset, "__iter__", counted)
    return seen


# --- the real Trainer ----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(500)
@pytest.mark.skipif(not kauldron_stand_in.IS_INSTALLED, reason="Kauldron is not installed")
def test_the_real_trainer_stopped_and_resumed_has_the_same_losses(
    repository: lg.Repository, tmp_path: Path
) -> None:
    """50 steps and one more, as Kauldron counts; saved after 20, stopped after 25."""
    command = [sys.executable, "-m", "tests.support.kauldron_training"]
    output = subprocess.run(
        [*command, repository.description, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    lives: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for line in output.splitlines():
        life = json.loads(line)
        lives[life["feed"], life["name"]].append(life)
    for feed in ("host", "device"):
        (straight,), (stopped, resumed) = lives[feed, "straight"], lives[feed, "stopped"]
        assert list(map(int, straight["losses"])) == list(range(51))
        assert list(map(int, stopped["losses"])) == list(range(25))
        assert list(map(int, resumed["losses"])) == list(range(20, 51))
        assert stopped["losses"].items() <= straight["losses"].items()
        assert resumed["losses"].items() <= straight["losses"].items()
        assert resumed["parameters"] == straight["parameters"]
    assert lives["host", "straight"][0]["losses"] == lives["device", "straight"][0]["losses"]


# --- the loop of the stand-in --------------------------------------------------------------------


def rename(example: dict[str, Any]) -> dict[str, Any]:
    return {"state": example["observation.state"], "index": example["index"]}


Change = Callable[[Any], Any]
FEEDS: dict[str, Change] = {
    "host": lambda batches: batches,
    "device": lambda batches: batches.pipe(lg.DeviceIterDataset),
    "a map that declares no spec": lambda batches: batches.map(rename),
}


@pytest.mark.parametrize("feed", FEEDS)
def test_a_loop_that_is_stopped_takes_the_batches_of_a_straight_one(
    repository: lg.Repository, pipeline_of: Any, opened: list[Any], tmp_path: Path, feed: str
) -> None:
    rows: dict[str, list[Any]] = defaultdict(list)

    def life(name: str, num_steps: int) -> None:
        def step(state: dict[str, Any], batch: Any) -> dict[str, Any]:
            rows[name].append(np.asarray(batch["index"]).tolist())
            return {"sum": state["sum"] + np.asarray(batch["index"]).sum()}

        train_ds = pipeline_of(batches=FEEDS[feed](batched(repository)))
        state = {"sum": np.zeros(1, np.int64)}
        opened.clear()
        kauldron_stand_in.train(train_ds, step, state, tmp_path / name, num_steps=num_steps)
        # Its spec has opened no other one.
        assert len(opened) == 1

    life("straight", 9)
    life("stopped", 5)  # the last checkpoint is that of step 3
    life("stopped", 9)
    order = iter(lg.FrameOrderIterDataset(repository, shuffle=stream(repository).shuffle))
    assert rows["straight"] == [[next(order) for _ in range(4)] for _ in range(9)]
    assert rows["stopped"] == rows["straight"][:5] + rows["straight"][3:]


def test_the_spec_needs_no_stream(
    repository: lg.Repository, pipeline_of: Any, opened: list[Any]
) -> None:
    spec = pipeline_of(batches=batched(repository)).element_spec
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in spec.items()} == {
        "observation.state": ((4, 7), np.float32),
        "index": ((4,), np.int64),
    }
    assert opened == []


def test_every_iterator_begins_at_the_beginning(
    repository: lg.Repository, pipeline_of: Any
) -> None:
    train_ds = pipeline_of(batches=batched(repository).map(rename))
    firsts = []
    for _ in range(2):
        iterator = iter(train_ds)
        with contextlib.closing(iterator.iter):
            firsts.append(next(iterator)["index"].tolist())
    assert firsts[0] == firsts[1]


# --- refusals ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[lg.Repository], Any], str]] = {
    "texts": (
        lambda repository: stream(repository, "task").batch(4, drop_remainder=True),
        r"^KauldronPipeline: \['task'\] of a batch is <U0, which no device takes; expected numbers "
        r"and bools; leave it out of features=, or make numbers of it in a \.map, such as tokens$",
    ),
    "texts after a map": (
        lambda repository: stream(repository, "task").batch(4).map(dict),
        r"^KauldronPipeline: \['task'\] of a batch is .*, which no device takes",
    ),
    "an open size": (
        lambda repository: stream(repository).batch(4),
        r"^KauldronPipeline: \['.*'\] of a batch has the shape \(None.*write \.batch\(\.\.\., "
        r"drop_remainder=True\)$",
    ),
    "no batch": (
        lambda repository: (
            lg.LeRobotIterDataset(repository, features=["index"], num_epochs=1)
            .batch(64, drop_remainder=True)
            .map(dict)
        ),
        "^KauldronPipeline: the stream ends before its first batch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_batches_that_kauldron_cannot_take(
    repository: lg.Repository, pipeline_of: Any, name: str
) -> None:
    make, text = REFUSED[name]
    with pytest.raises(lg.InvalidRequestError, match=text):
        iter(pipeline_of(batches=make(repository)))


def test_arrays_of_all_processes_are_refused(
    repository: lg.Repository, pipeline_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = types.SimpleNamespace(is_fully_addressable=False)
    spec = types.SimpleNamespace(shape=(8, 7), dtype=np.dtype(np.float32), sharding=elsewhere)
    monkeypatch.setattr(pipeline_of, "_declared_spec", lambda _: {"action": spec})
    text = r"^KauldronPipeline: \['action'\] of a batch is an array of all processes; .*leave Devi"
    with pytest.raises(lg.InvalidRequestError, match=text):
        _ = pipeline_of(batches=batched(repository)).element_spec


def test_other_datasets_are_refused(repository: lg.Repository, pipeline_of: Any) -> None:
    with pytest.raises(lg.InvalidRequestError, match=r"^KauldronPipeline: batches is a list; "):
        pipeline_of(batches=[])
    with pytest.raises(lg.InvalidRequestError, match="the pipeline has FilterIterDataset"):
        pipeline_of(batches=batched(repository).filter(bool))


# --- the documentation ---------------------------------------------------------------------------


def test_the_code_of_the_page_runs(repository: lg.Repository, pipeline_of: Any) -> None:
    ours, theirs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"repository": repository, "global_batch_size": 8}
    exec(ours, names)
    assert isinstance(names["train_ds"], pipeline_of)
    iterator = iter(names["train_ds"])
    with contextlib.closing(iterator.iter):
        assert next(iterator)["action"].shape == (8, 4, 7)
    # The names of Kauldron are those of the real training, tests/support/kauldron_training.py.
    trainers: list[dict[str, Any]] = []

    def trainer(**fields: Any) -> Any:
        trainers.append(fields)
        return types.SimpleNamespace(train=lambda: None)

    kd = types.SimpleNamespace(
        train=types.SimpleNamespace(Trainer=trainer),
        losses=types.SimpleNamespace(L2=dict),
        ckpts=types.SimpleNamespace(Checkpointer=dict),
    )
    optax = types.SimpleNamespace(adam=float)
    exec(theirs, names | {"kd": kd, "Policy": dict, "optax": optax, "num_steps": 1, "workdir": ""})
    assert trainers[0]["train_ds"] is names["train_ds"]
