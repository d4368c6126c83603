"""Many datasets in one process: connections and threads are counted for the process, and no
iterator disturbs another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain._reading import daemon_pool
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._storage.http.connections import Connection
from lerobot_grain.testing import LoopbackHub, write_dataset
from tests.support.forked import ForkedScript

NUM_ROWS = 8 * 24


@pytest.fixture(scope="module")
def arguments(
    hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("many")
    written = write_dataset(folder / "data", episode_lengths=[24] * 8, episodes_per_data_file=1)
    hub.add_repository("many/data", written.directory, tags=["v3.0"])
    yield {"repository": "many/data", "endpoint": hub.endpoint, "cache_dir": str(folder / "cache")}
    hub.set_latency(0)


PROGRAM = """
import json, os, resource, sys, threading, time
import lerobot_grain as lg
from lerobot_grain._storage.http import connections
from lerobot_grain._reading import daemon_pool

hub, count, num_files, part = json.loads(sys.argv[2]), *map(int, sys.argv[3:])
resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
connections._MAX_CONNECTIONS //= part
daemon_pool._MAX_SHARED //= part
most_files = most_threads = 0

def watch():
    global most_files, most_threads
    while True:
        most_files = max(most_files, len(os.listdir("/proc/self/fd")))
        most_threads = max(most_threads, threading.active_count())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
storage = lg.StorageOptions(num_connections=32 // part, disk_cache_bytes=0)
options = lg.ReadOptions(storage=storage, num_decode_threads=1)
shuffles = [lg.Shuffle(seed=seed, clip_length=2) for seed in range(count)]
streams = [lg.LeRobotIterDataset(**hub, shuffle=each, read_options=options) for each in shuffles]
iterators = [iter(stream.batch(4)) for stream in streams]
for iterator in iterators:
    iterator.start_prefetch()
firsts = []
def read(each):
    firsts.append(len(next(each)["index"]))
readers = [threading.Thread(target=read, args=[each]) for each in iterators]
for reader in readers:
    reader.start()
for reader in readers:
    reader.join()
with open(sys.argv[1], "w") as found:
    json.dump([firsts, most_files, most_threads - count], found)
"""


@pytest.mark.parametrize(
    ("count", "num_files", "part"),
    [(12, 120, 8), pytest.param(60, 1024, 1, marks=pytest.mark.long)],
    ids=["12", "60"],
)
def test_each_of_many_datasets_gives_its_first_batch(
    hub: LoopbackHub,
    arguments: dict[str, Any],
    tmp_path: Path,
    count: int,
    num_files: int,
    part: int,
) -> None:
    """All at once, with few files that may be open: the usual 1,024 for 60, and for 12 an eighth of
    it, as of the limits.
    """
    hub.set_latency(0.2 / count)
    program, found = tmp_path / "program.py", tmp_path / "found.json"
    program.write_text(PROGRAM)
    numbers = map(str, (count, num_files, part))
    command = [sys.executable, str(program), str(found), json.dumps(arguments), *numbers]
    with ForkedScript(command, env=os.environ) as done:
        pass
    assert done.returncode == 0
    firsts, files, threads = json.loads(found.read_text())
    print(f"{count} datasets: {files} files and sockets, {threads} threads")
    assert firsts == [4] * count
    assert files <= 128 // part + 32
    # One thread of each of two pools, those that all share, and the few of the program.
    assert threads <= 2 * count + 128 // part + 8


def test_closing_iterators_disturbs_no_other_one(
    hub: LoopbackHub, arguments: dict[str, Any]
) -> None:
    """Although a failed attempt would be the end of it."""
    options = lg.ReadOptions(storage=lg.StorageOptions(max_attempts=1, disk_cache_bytes=0))
    repository = lg.open_repository(**arguments, storage_options=options.storage)
    dataset = lg.LeRobotIterDataset(repository, shuffle=None, num_epochs=1, read_options=options)

    def look(number: int) -> None:
        short = iter(
            lg.LeRobotIterDataset(
                repository, shuffle=lg.Shuffle(seed=number), num_epochs=1, read_options=options
            )
        )
        first = others.submit(next, short)
        time.sleep(0.01 * number % 0.1)
        short.close()
        with contextlib.suppress(lg.StorageError, ValueError):  # of Grain: closed before it began
            first.result()

    # Longer than a look lasts.
    hub.set_latency(0.3)
    with (
        ThreadPoolExecutor(1) as pool,
        ThreadPoolExecutor(25) as others,
        ThreadPoolExecutor(5) as lookers,
    ):
        stream = pool.submit(lambda: [int(example["index"]) for example in dataset])
        list(lookers.map(look, range(25)))
        assert stream.result(timeout=30) == list(range(NUM_ROWS))


# --- threads -------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads without a task end at once, and of all pools together there are three besides the
    first of each.
    """
    shared: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(3):
        shared.put(None)
    monkeypatch.setattr(daemon_pool, "_IDLE_SECONDS", 0.001)
    monkeypatch.setattr(daemon_pool, "_shared", lambda: shared)


def num_threads(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def comes_to(number: int) -> bool:
    """Waits until there are so many threads of pools."""
    ends_at = time.monotonic() + 10
    while num_threads("pool ") != number and time.monotonic() < ends_at:
        time.sleep(0.01)
    return num_threads("pool ") == number


@pytest.mark.usefixtures("soon")
def test_all_pools_together_have_few_threads_which_end_when_there_is_nothing_to_do() -> None:
    pools = [DaemonPool(4, f"pool {number}") for number in range(3)]
    wait = threading.Barrier(7)
    # The first pool takes the three threads that all share; the others have their own one.
    futures = [
        pool.submit(wait.wait, 10) for pool in pools for _ in range(4 if pool is pools[0] else 1)
    ]
    late = [pool.submit(num_threads, "pool ") for pool in pools[1:]]
    # A thread that has just ended is still listed for a moment.
    assert comes_to(6)
    assert wait.wait(10) is not None
    for future in futures:
        future.result(10)
    assert [future.result(10) for future in late]
    assert comes_to(3)
    for pool in pools:
        pool.shutdown()
    assert num_threads("pool ") == 0


@pytest.mark.usefixtures("soon")
def test_no_task_is_lost_while_threads_end_and_start() -> None:
    pools = [DaemonPool(3, f"pool {number}") for number in range(3)]
    done: list[Future[int]] = []
    for number in range(3000):
        done.append(pools[number % 3].submit(lambda number=number: number))
        if number % 7 == 0:
            time.sleep(0.0005)
    assert [future.result(10) for future in done] == list(range(3000))
    for pool in pools:
        pool.shutdown()


def test_a_connection_is_broken_in_its_own_thread() -> None:
    """By the garbage collector, which may end a reader while the connection notes a socket."""
    connection = Connection((), ssl.create_default_context())
    near, far = socket.socketpair()

    class Stream:
        def get_extra_info(self, name: str) -> socket.socket:
            assert name == "socket"
            connection.break_off()
            return near

    noting = threading.Thread(
        target=connection.note,
        args=("connection.connect_tcp.complete", {"return_value": Stream()}),
        daemon=True,
    )
    noting.start()
    noting.join(10)
    assert not noting.is_alive()
    connection.break_off()
    assert far.recv(1) == b""
    for each in (connection.client, near, far):
        each.close()
