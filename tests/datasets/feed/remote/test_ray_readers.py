"""Readers that are actors of Ray: order and states of one process, on a cluster of three machines
(processes of this one, Ray's own test cluster), whatever is killed. Skipped where Ray is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._datasets.feed import readers as feed_readers

pytestmark = [
    pytest.mark.timeout(380, method="thread"),
    # Ray's own, and sockets that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(lg.InvalidRequestError, match=r"pip install 'lerobot_grain\[ray\]'"):
        lg.RayReaders(2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_readers": 0}, r"RayReaders\(num_readers=0\): expected an int >= 1"),
        ({"num_readers": 1, "num_cpus": -1}, "num_cpus is -1; expected a number of at least 0"),
        ({"num_readers": 1, "resources": {"gpu": "1"}}, "gpu is '1'; expected a number"),
    ],
)
def test_arguments_out_of_their_range(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.RayReaders(**arguments)


# Of a node, and of what waits for it: Ray's own limits of 30 and 60 s are too short on a machine
# that has other work.
_START_SECONDS = 240
# The least that Ray takes.
_STORE_BYTES = 75 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and three nodes with two of them."""
    ray = pytest.importorskip("ray")
    from ray._private import services
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # A node waits for itself for 30 s, which no option changes.
        patch.setattr(services, "get_node", functools.partial(wait_for, services.get_node))
        patch.setenv("RAY_worker_register_timeout_seconds", str(_START_SECONDS))
        # Each would start Python twice on each node, and few of these processes are used.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            found.nodes_with_readers = [add_node(found) for _ in range(3)]
            found.wait_for_nodes(_START_SECONDS)
            ray.init(address=found.address, logging_level="ERROR", log_to_driver=False)
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


def wait_for(get: Callable[..., Any], *arguments: Any) -> Any:
    """Asks again until what is asked for is there."""
    ends = time.monotonic() + _START_SECONDS
    while True:
        try:
            return get(*arguments)
        except RuntimeError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


def add_node(cluster: Any) -> Any:
    """Starts a node with two cores, and does not wait for it."""
    return cluster.add_node(wait=False, num_cpus=2, object_store_memory=_STORE_BYTES)


def stream(directory: Path) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        directory, shuffle=lg.Shuffle(seed=5, num_parts=2, buffer_size=8), image_size=(24, 32)
    )


def assert_same_stream(
    directory: Path, kill: Callable[[int], None], *, num_batches: int, num_readers: int
) -> None:
    """Compares batches and states with those of one process, while `kill` is called before each."""
    dataset = stream(directory)
    remote = lg.RemoteReaderIterDataset(dataset, readers=lg.RayReaders(num_readers))
    with (
        contextlib.closing(iter(dataset.batch(6))) as alone,
        contextlib.closing(iter(remote.batch(6))) as found,
    ):
        for number in range(num_batches):
            kill(number)
            expected, batch = next(alone), next(found)
            assert list(batch) == list(expected)
            assert all(np.array_equal(batch[key], expected[key]) for key in expected)
            assert found.get_state() == alone.get_state()


def kill_a_reader(chosen: random.Random) -> None:
    """Kills the process of an actor, one of this cluster."""
    # Ray's own list of actors is a part of its dashboard.
    while not (readers := [each for each in children_of(os.getpid()) if is_reader(each)]):
        time.sleep(0.1)
    os.kill(chosen.choice(sorted(readers)), signal.SIGKILL)


def is_reader(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Reader")
    return False


def children_of(process: int) -> set[int]:
    """Returns the processes that a process has started, and these have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = {process}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


@pytest.mark.long
def test_twenty_readers_are_killed_during_a_run(
    cluster: Any, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.nodes_with_readers
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 2)
    chosen = random.Random(1)
    killed = chosen.sample(range(2, 130), 20)
    assert_same_stream(
        small_dataset,
        lambda number: kill_a_reader(chosen) if number in killed else None,
        num_batches=140,
        num_readers=3,
    )


@pytest.mark.long
def test_three_nodes_are_lost_during_a_run(
    cluster: Any, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 2)

    def kill(number: int) -> None:
        if number in (10, 30, 50):
            cluster.remove_node(cluster.nodes_with_readers.pop(0), allow_graceful=False)
            cluster.nodes_with_readers.append(add_node(cluster))

    assert_same_stream(small_dataset, kill, num_batches=70, num_readers=3)


@pytest.mark.long
def test_errors_come_at_their_place_and_an_end_is_an_end(cluster: Any, small_dataset: Path) -> None:
    assert cluster.nodes_with_readers
    dataset = lg.LeRobotIterDataset(small_dataset, num_epochs=1, features=["index", "task"])
    remote = lg.RemoteReaderIterDataset(dataset, readers=lg.RayReaders(2))
    with contextlib.closing(iter(remote)) as found, contextlib.closing(iter(dataset)) as alone:
        assert [example["index"] for example in found] == [example["index"] for example in alone]
        assert found.get_state() == alone.get_state()
