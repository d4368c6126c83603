"""Worker processes: examples and states of one process; no hang, orphan or lost example when one is
killed, raises or loses its parent.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import grain
import jax
import numpy as np
import pytest
from absl import flags

import lerobot_grain as lg
from lerobot_grain._datasets.feed import workers as datasets_workers
from lerobot_grain.testing import Camera, WrittenDataset, write_dataset
from tests.support.forked import fork_workers

# The machine may be busy: a worker imports JAX and Grain, two seconds of one core. A worker that
# hangs in `next` hangs in `close`, too, so that an exception in the test would not end it.
pytestmark = pytest.mark.timeout(90, method="thread")
NUM_ROWS = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("workers") / "data",
        episode_lengths=[13, 6, 11, 10],
        fps=10,
        cameras=[],
    ).directory


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in 20 ms (`tests.support.forked`), where how they start makes no difference to
    what is tested.
    """
    fork_workers(monkeypatch)


def stream(directory: Path, **changes: Any) -> lg.LeRobotIterDataset:
    # More epochs than most tests read: without an end every worker would read hundreds of them
    # ahead.
    arguments: dict[str, Any] = {"features": ["index", "action"], "num_epochs": 8}
    arguments["shuffle"] = lg.Shuffle(seed=3, num_parts=2, buffer_size=8)
    return lg.LeRobotIterDataset(directory, **(arguments | changes))


def row_of(example: dict[str, Any]) -> int:
    return int(example["index"])


def take(iterator: Iterator[Any], count: int) -> list[int]:
    return [row_of(next(iterator)) for _ in range(count)]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key
        assert np.asarray(found[key]).dtype == np.asarray(value).dtype


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- the same examples, the same states ----------------------------------------------------------


# Two parts: five workers are more than there are.
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
def test_same_examples_and_states_as_without_workers(directory: Path, num_workers: int) -> None:
    assert_same_streams(
        stream(
            directory, features=None, delta_timestamps={"action": [-0.1, 0.0, 0.3]}, num_epochs=2
        ),
        num_workers,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    camera = Camera(height=96, width=128)  # 73,728 bytes for two frames: through shared memory
    where = tmp_path_factory.mktemp("frames") / "data"
    return write_dataset(where, episode_lengths=[5, 4], fps=10, cameras=[camera])


def test_same_frames_as_without_workers(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory,
        delta_timestamps={written.cameras[0].key: [-0.1, 0.0]},
        num_epochs=1,
    )
    fork_workers(monkeypatch)
    assert_same_streams(dataset, 2)


def assert_same_streams(dataset: lg.LeRobotIterDataset, num_workers: int) -> None:
    with (
        contextlib.closing(iter(dataset)) as alone,
        contextlib.closing(iter(with_workers(dataset, num_workers))) as found,
    ):
        for expected in alone:
            assert_same(next(found), expected)
            assert found.get_state() == alone.get_state()
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(found)
        assert found.get_state() == alone.get_state()


def with_workers(dataset: Any, num_workers: int) -> Any:
    return lg.WorkerPrefetchIterDataset(dataset, num_workers=num_workers)


@pytest.mark.usefixtures("forked")
def test_a_state_restores_with_any_number_of_workers_and_shards(directory: Path) -> None:
    endless = functools.partial(stream, directory, num_epochs=None)
    with contextlib.closing(iter(endless())) as alone:
        straight = take(alone, 130)
    position, state = 0, None
    # (workers, shards, examples on each): stops inside epochs, and in rounds of the workers.
    for num_workers, num_shards, steps in [(3, 1, 41), (0, 3, 11), (1, 2, 9)]:
        found = []
        for shard in range(num_shards):
            options = grain.sharding.ShardOptions(shard, num_shards)
            with contextlib.closing(
                iter(with_workers(endless(shard_options=options), num_workers))
            ) as iterator:
                if state is not None:
                    iterator.set_state(state)
                    assert iterator.get_state() == state
                found.append(take(iterator, steps))
                after = json.loads(json.dumps(iterator.get_state()))
        assert [row for step in zip(*found, strict=True) for row in step] == straight[
            position : position + num_shards * steps
        ]
        position, state = position + num_shards * steps, after
        assert state["position"] == position
    # And on a stream without workers.
    with contextlib.closing(iter(endless())) as iterator:
        iterator.set_state(state)
        assert take(iterator, 5) == straight[position : position + 5]


@pytest.mark.usefixtures("forked")
def test_one_iterator_goes_back_and_on(directory: Path) -> None:
    with contextlib.closing(
        iter(with_workers(stream(directory, num_epochs=1), 1).batch(8))
    ) as batches:
        first = [next(batches)["index"].tolist() for _ in range(2)]
        state = batches.get_state()
        rest = [batch["index"].tolist() for batch in batches]
        assert sorted(itertools.chain.from_iterable(first + rest)) == list(range(NUM_ROWS))
        batches.set_state(state)
        assert [batch["index"].tolist() for batch in batches] == rest


@pytest.mark.usefixtures("forked")
def test_a_state_of_another_stream_changes_nothing(directory: Path) -> None:
    state = iter(stream(directory, shuffle=None)).get_state()
    with contextlib.closing(iter(stream(directory))) as alone:
        straight = take(alone, 6)
    with contextlib.closing(iter(with_workers(stream(directory), 2))) as iterator:
        assert take(iterator, 3) == straight[:3]
        kept = iterator.get_state()
        with pytest.raises(lg.StateMismatchError, match="shuffled = 0, this stream has 1"):
            iterator.set_state(state)
        assert iterator.get_state() == kept
        assert take(iterator, 3) == straight[3:]


@pytest.mark.parametrize("num_workers", [1, 2], ids=["spawned", "forked"])
def test_grains_own_prefetch_with_our_worker_init(
    directory: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    # The thread that starts a worker is the parent of one that is spawned only.
    if num_workers > 1:
        fork_workers(monkeypatch)
    with contextlib.closing(iter(stream(directory))) as alone:
        straight = take(alone, 29)
    flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers, per_worker_buffer_size=1)
    with contextlib.closing(
        iter(stream(directory).mp_prefetch(options, worker_init_fn=lg.worker_init))
    ) as iterator:
        assert take(iterator, 9) == straight[:9]
        state = json.loads(json.dumps(iterator.get_state()))
        assert take(iterator, 10) == straight[9:19]
        # In the same iterator, whose workers go on: they must not have died with the thread that
        # started them.
        iterator.set_state(state)
        assert take(iterator, 20) == straight[9:29]


# --- what goes wrong -----------------------------------------------------------------------------


class FailsOnce(grain.transforms.Map):
    """Raises at one row, until a file says that it did."""

    def __init__(self, row: int, mark: Path, fail: Callable[[], None]) -> None:
        self._row, self._mark, self._fail = row, mark, fail

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        if row_of(element) == self._row and not self._mark.exists():
            self._mark.touch()
            self._fail()
        return element


class UnpicklableError(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.lock = threading.Lock()


class UnreadableError(Exception):
    """Pickles, but cannot be made again of its one argument."""

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(f"{what} {where}")


def _raise(error: BaseException) -> None:
    raise error


# The errors that the consumer sees; the first number is that of workers. With 0 it is the one
# that a worker would send.
FAILURES: dict[str, tuple[int, Callable[[], None], type[Exception], str]] = {
    "raises": (2, lambda: _raise(lg.StorageError("no answer")), lg.StorageError, "no answer"),
    "exits": (1, lambda: sys.exit(0), RuntimeError, "SystemExit in a worker process: 0"),
    "unpicklable": (
        0,
        lambda: _raise(UnpicklableError("a lock")),
        RuntimeError,
        "UnpicklableError in a worker process: a lock",
    ),
    "unreadable": (
        0,
        lambda: _raise(UnreadableError("a", where="b")),
        RuntimeError,
        "UnreadableError in a worker process: a b",
    ),
    "stops": (
        0,
        lambda: _raise(StopIteration()),
        lg.InvalidRequestError,
        "StopIteration at position 5, which is not the end of the",
    ),
}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", FAILURES)
def test_an_error_in_a_worker_loses_no_example(directory: Path, tmp_path: Path, name: str) -> None:
    num_workers, fail, error, text = FAILURES[name]
    with contextlib.closing(iter(stream(directory))) as alone:
        straight = take(alone, 20)
    dataset = stream(directory).map(FailsOnce(straight[5], tmp_path / "mark", fail))
    with contextlib.closing(iter(with_workers(dataset, num_workers))) as iterator:
        assert take(iterator, 5) == straight[:5]
        with pytest.raises(error, match=text) as caught:
            next(iterator)
        assert text in str(pickle.loads(pickle.dumps(caught.value)))
        state = iterator.get_state()
        assert state["position"] == 5
        assert take(iterator, 15) == straight[5:]
    with contextlib.closing(iter(stream(directory))) as restored:
        restored.set_state(state)
        assert take(restored, 5) == straight[5:10]


@pytest.mark.usefixtures("forked")
def test_a_worker_that_is_killed_from_outside(directory: Path) -> None:
    with contextlib.closing(iter(stream(directory))) as alone:
        straight = take(alone, 60)
    with contextlib.closing(iter(with_workers(stream(directory), 2))) as iterator:
        found = take(iterator, 9)
        victim = multiprocessing.active_children()[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="exit code -9"):
            found.extend(map(row_of, iterator))
        assert len(found) < 9 + 16, "what it held ready comes first, then the error"
        found += take(iterator, 60 - len(found))
        assert found == straight


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda dataset: dataset.filter(lambda example: row_of(example) % 7 != 2),
            "one example took 3 rows; expected one example for",
        ),
        (
            lambda dataset: dataset.batch(4),
            "one example took 4 rows; expected one example for every row: put .filter, .batch",
        ),
        (
            lambda dataset: dataset.map(lambda example: {**example, "lock": threading.Lock()}),
            "an example does not pickle (cannot pickle",
        ),
    ],
    ids=["filter", "batch", "unpicklable"],
)
def test_a_parent_that_is_not_one_to_one_is_refused(
    directory: Path, change: Callable[[Any], Any], text: str
) -> None:
    with (
        contextlib.closing(
            iter(with_workers(change(stream(directory, num_epochs=1)), 0))
        ) as iterator,
        pytest.raises(lg.InvalidRequestError) as caught,
    ):
        list(iterator)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "arguments", "text"),
    [
        (lambda dataset: dataset, {"num_workers": -1}, "num_workers=-1): expected an int >= 0"),
        (lambda dataset: dataset, {"num_workers": True}, "num_workers=True): expected an int >= 0"),
        (
            lambda dataset: dataset,
            {"num_workers": 2, "buffer_size": 0},
            "buffer_size=0): expected an int >= 1",
        ),
        (
            lambda dataset: grain.IterDataset.mix([dataset, dataset]),
            {"num_workers": 2},
            "found 2 lerobot_grain streams in Mixed",
        ),
        (
            lambda dataset: dataset.seed(1).random_map(lambda example, _: example),
            {"num_workers": 2},
            "adds something to the state",
        ),
        (
            lambda _: grain.MapDataset.range(9).to_iter_dataset(),
            {"num_workers": 2},
            "found 0 lerobot_grain streams in Prefetch",
        ),
    ],
    ids=["negative", "bool", "buffer", "mix", "random_map", "foreign"],
)
def test_arguments_that_make_no_sense(
    directory: Path, change: Callable[[Any], Any], arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.WorkerPrefetchIterDataset(change(stream(directory)), **arguments)
    assert text in str(caught.value)


@pytest.mark.usefixtures("forked")
def test_after_close_there_is_no_next(directory: Path) -> None:
    iterator = iter(with_workers(stream(directory), 1))
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


# --- the process of a worker ---------------------------------------------------------------------


def test_worker_init_pickles_and_is_for_workers_only() -> None:
    assert pickle.loads(pickle.dumps(lg.worker_init)) is lg.worker_init
    assert cloudpickle.loads(cloudpickle.dumps(lg.worker_init)) is lg.worker_init
    with pytest.raises(
        lg.InvalidRequestError, match="expected to run in a worker process; pass it to mp_prefetch"
    ):
        lg.worker_init(0, 1)


def _surroundings(example: dict[str, Any]) -> dict[str, Any]:
    ours = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("lerobot_grain-parent")
    ]
    ignores_interrupts = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return {
        **example,
        "surroundings": [
            jax.devices()[0].platform,
            os.environ["JAX_PLATFORMS"],
            flags.FLAGS.is_parsed(),
            ours,
            ignores_interrupts,
        ],
    }


def test_a_new_process_decodes_and_keeps_off_the_accelerator(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is spawned, as Grain does it: it has to import JAX and PyTorch."""
    # There is none here: JAX would raise if it looked for this one.
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1)
    with (
        contextlib.closing(iter(dataset)) as alone,
        contextlib.closing(iter(with_workers(dataset.map(_surroundings), 1))) as iterator,
    ):
        for expected in alone:
            found = next(iterator)
            assert found.pop("surroundings") == [
                "cpu",
                "cpu",
                True,
                ["lerobot_grain-parent-watch"],
                True,
            ]
            assert_same(found, expected)


_PARENT = """
import multiprocessing, os, sys, time
import lerobot_grain as lg

def slow(example):
    if sys.argv[2] == "blocked" and int(example["index"]) > 9:
        time.sleep(1000)
    return example

def main():
    dataset = lg.LeRobotIterDataset(sys.argv[1], features=["index"], shuffle=None).map(slow)
    iterator = iter(lg.WorkerPrefetchIterDataset(dataset, num_workers=1))
    for _ in range(4):
        next(iterator)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)
    # a process that holds the pipes of its parent open
    if sys.argv[3] == "forked" and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(1000)

if __name__ == "__main__":
    main()
"""


def _is_alive(pid: int) -> bool:
    try:
        # A process that has ended and that nobody has waited for is still there, as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("end", "busy", "fork"),
    [(signal.SIGTERM, "busy", ""), (signal.SIGKILL, "blocked", "forked")],
    ids=["terminated", "killed"],
)
def test_workers_end_with_their_parent(
    directory: Path, tmp_path: Path, end: int, busy: str, fork: str
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(lg.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", str(script), str(directory), busy, fork]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _is_alive(worker)
        parent.send_signal(end)
        parent.wait(timeout=20)
        try:
            assert wait_until(
                lambda: not _is_alive(worker), seconds=4 * datasets_workers._WATCH_SECONDS + 10
            )
        finally:
            if _is_alive(worker):
                os.kill(worker, signal.SIGKILL)
            parent.stdout.close()
