"""Trainings that are killed with SIGKILL and resumed: the losses of one process, and the rows of
several, on changing numbers of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import random
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import grain
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.forked import ForkedScript, forking
from tests.support.resume_worker import BATCH_SIZE, WEIGHTS, dataset_of, stream_rows

pytest.importorskip("flax", minversion="0.11")
for name in ("optax", "orbax.checkpoint", "tqdm"):
    pytest.importorskip(name)

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kill_and_compare = loaded("kill_and_compare")
Line = kill_and_compare.Line


# --- one process: the losses ---------------------------------------------------------------------


@pytest.mark.timeout(200)  # four starts of a training
def test_losses_after_two_kills_are_those_of_a_straight_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All are forked, which spares 25 s of imports; test_examples.py starts an example as by hand.
    monkeypatch.setattr(kill_and_compare, "subprocess", types.SimpleNamespace(Popen=ForkedScript))
    # What the first one has compiled, which takes longer than all steps.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    picture = tmp_path / "curves.png"
    # The seed kills after steps 7 and 13 or a little later, so that even a slow machine is not done
    # before.
    result = kill_and_compare.main(
        [
            "--steps",
            "30",
            "--kills",
            "2",
            "--save-every",
            "5",
            "--seed",
            "30",
            "--plot",
            str(picture),
        ]
    )
    assert [line.step for line in result["straight"]] == [*range(1, 31)]
    assert len({line.batch for line in result["straight"]}) == 30
    # Two processes were killed, after they had trained, and the two after them went on from a
    # checkpoint.
    assert len(result["killed"]) == 2
    assert min(result["killed"]) > 0
    starts = [
        line.step
        for before, line in itertools.pairwise(result["lives"])
        if line.step != before.step + 1
    ]
    assert all(step % 5 == 1 for step in starts)
    assert max(starts) > 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert any((tmp_path / "compiled").iterdir())
    assert "all {} losses and batches equal".format(len(result["lives"])) in capfd.readouterr().out


STRAIGHT = [Line(1, (0.5).hex(), "a"), Line(2, (0.25).hex(), "b")]


@pytest.mark.parametrize(
    ("lives", "text"),
    [
        (
            [STRAIGHT[0], Line(2, (0.25 + 2**-54).hex(), "b")],
            r"^1 of 2 lines differ; the first is .*step=2, loss='0x1.0000000000001p-2'.*expected",
        ),
        (
            [*STRAIGHT, Line(2, (0.25).hex(), "c")],
            r"^1 of 3 lines differ; the first is .*batch='c'.*expected .*batch='b'",
        ),
        (STRAIGHT[:1], r"^1 of 2 steps were not trained; the first is 2"),
    ],
    ids=["loss", "batch", "missing"],
)
def test_one_bit_of_difference_is_found(lives: list[Any], text: str) -> None:
    kill_and_compare.compare(STRAIGHT, [*STRAIGHT, STRAIGHT[1]])
    with pytest.raises(SystemExit, match=text):
        kill_and_compare.compare(STRAIGHT, lives)


def test_a_training_is_not_begun_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)  # as where the script is run
    (tmp_path / "losses.txt").write_text("1 0x1p-1 a\n")
    with pytest.raises(SystemExit, match="holds a training already; go on with --resume"):
        loaded("resume_after_kill").main(["--repository", "org/name", "--directory", str(tmp_path)])


# --- several processes: the rows -----------------------------------------------------------------


class Life(NamedTuple):
    """The processes of one start, up to their death: the step they began after, and of each its
    rows of step after step.
    """

    first_step: int
    rows: list[list[list[Any]]]


def live_and_die(
    repository: Path,
    directory: Path,
    *,
    num_shards: int,
    steps: int,
    save_every: int,
    chance: random.Random,
) -> Life:
    """Starts processes, lets them train some steps, and kills all of them at some moment of the
    next one.
    """
    processes, connections = [], []
    for shard in range(num_shards):
        ours, theirs = forking().Pipe()
        arguments = (theirs, str(repository), str(directory), shard, num_shards, save_every)
        processes.append(forking().Process(target=stream_rows, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        connections.append(ours)
    found: list[list[tuple[int, list[Any]]]] = [[] for _ in processes]
    try:
        for _ in range(steps):
            for connection, told in zip(connections, found, strict=True):
                assert connection.poll(60)
                told.append(connection.recv())
            for connection in connections:
                connection.send(True)
        time.sleep(chance.uniform(0.0, 0.02))
    finally:
        for process in chance.sample(processes, num_shards):
            process.kill()
    for process, connection, told in zip(processes, connections, found, strict=True):
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
        # A process that was killed while it wrote may leave a part of a message.
        with connection, contextlib.suppress(EOFError, OSError):
            while True:
                told.append(connection.recv())
    (first_step,) = {told[0][0] for told in found}
    assert all(
        [step for step, _ in told] == [*range(first_step, first_step + len(told))] for told in found
    )
    return Life(first_step, [[rows for _, rows in told[1:]] for told in found])


def check_lives(repository: Path, lives: list[Life]) -> int:
    """Compares the rows of all lives with those of one process that is never killed.

    Returns the number of batches compared.
    """
    last = max(life.first_step + len(rows) for life in lives for rows in life.rows)
    dataset = dataset_of(repository, grain.sharding.NoSharding())
    (requests,) = dataset.parents
    # The rows of a stream, or the components and rows of a mixture.
    order = iter(requests if isinstance(dataset, lg.MixtureIterDataset) else requests.order)
    straight = [[next(order) for _ in range(BATCH_SIZE)] for _ in range(last)]
    compared = 0
    for life in lives:
        num_shards = len(life.rows)
        for shard, batches in enumerate(life.rows):
            for step, rows in enumerate(batches, start=life.first_step):
                # All shards of a step together: the rows of that step. For a given number also in a
                # given order.
                assert rows == straight[step][shard::num_shards], (step, shard, num_shards)
                compared += 1
    return compared


def one_dataset(directory: Path) -> Path:
    return write_dataset(directory, episode_lengths=[13, 6, 11, 17], fps=10, cameras=()).directory


def mixture_of_datasets(directory: Path) -> Path:
    for number, name in enumerate(WEIGHTS):
        write_dataset(
            directory / name, episode_lengths=[13 - 4 * number, 6], cameras=(), tasks=[name]
        )
    return directory


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("write", "numbers"),
    [
        pytest.param(one_dataset, [2, 2, 1, 4, 2], id="one dataset"),
        pytest.param(mixture_of_datasets, [2, 1, 4], id="mixture"),
        pytest.param(
            mixture_of_datasets,
            [1, 2, 4, 2, 1, 4, 4, 1, 2, 2],
            id="mixture, ten times",
            marks=pytest.mark.long,
        ),
    ],
)
def test_processes_are_killed_and_other_numbers_of_them_go_on(
    tmp_path: Path, write: Callable[[Path], Path], numbers: list[int]
) -> None:
    repository = write(tmp_path / "data")
    chance = random.Random(0)
    lives = []
    for num_shards in numbers:
        # Nine steps begin, so two checkpoints: the second waits for the first, which is thus
        # complete in every life.
        life = live_and_die(
            repository,
            tmp_path / "saved",
            num_shards=num_shards,
            steps=9,
            save_every=3,
            chance=chance,
        )
        assert len(life.rows) == num_shards
        lives.append(life)
    assert check_lives(repository, lives) >= 8 * sum(numbers)
    starts = [life.first_step for life in lives]
    # Every start but the first is from a newer checkpoint, and no step is left out between two
    # lives.
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    for before, after in itertools.pairwise(lives):
        assert after.first_step % 3 == 0
        assert after.first_step <= before.first_step + min(len(rows) for rows in before.rows)
