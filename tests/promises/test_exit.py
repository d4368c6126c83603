"""Programs that end while what they read ahead waits for the Hub: within seconds, with their own
status, whether they closed it or not.

Each is a process of its own, which ends as all programs do (`tests.support.endings`).
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lerobot_grain.testing import Fault, LoopbackHub, write_dataset
from tests.support.endings import Program, Programs
from tests.support.installed import own_lines

# In which a program ends; on a machine that does other things as well it may be this much later.
EXIT_SECONDS, GRACE_SECONDS = 3.0, 8.0

PROGRAM = """
import json, os, signal, sys, threading, time
import lerobot_grain as lg

STREAM, pipeline, ending = map(json.loads, sys.argv[1:])
PIPELINES = {
    "examples": lambda stream: stream,
    "batches": lambda stream: stream.batch(5),
    "device feed": lambda stream: stream.batch(5).pipe(lg.DeviceIterDataset),
}

def tell():
    print(time.monotonic(), flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
stream = lg.LeRobotIterDataset(
    **STREAM, shuffle=None, num_epochs=1, features=["index", "action"]
)
iterator = iter(PIPELINES[pipeline](stream))
next(iterator)
if ending == "Ctrl-C in next":
    threading.Timer(1.5, lambda: (tell(), os.kill(os.getpid(), signal.SIGINT))).start()
    for _ in iterator:
        pass
time.sleep(0.5)
tell()
if ending == "sys.exit":
    sys.exit(7)
if ending == "exception":
    raise ValueError(iterator)
if ending == "close":
    iterator.close()
"""
STATUSES = {"sys.exit": 7, "exception": 1, "close": 0, "Ctrl-C in next": -signal.SIGINT}
FAULTS = {
    "a pause": {"status": 503, "headers": {"Retry-After": "300"}},
    "a stall": {"stall_at": 10},
    "no answer": {"latency_seconds": 1000},
}
# The first file is whole; of each fault are three more, which a stream of these episodes comes to.
EPISODES = {fault: [0, *range(3 * n + 1, 3 * n + 4)] for n, fault in enumerate(FAULTS)}
PIPELINES = ("examples", "batches", "device feed")
# Each pipeline with two endings or three, each ending twice.
FEW = [
    ("a pause", "examples", "exception"),
    ("a pause", "batches", "Ctrl-C in next"),
    ("a pause", "device feed", "sys.exit"),
    ("a pause", "device feed", "close"),
    ("a stall", "examples", "Ctrl-C in next"),
    ("a stall", "batches", "sys.exit"),
    ("a stall", "device feed", "exception"),
    ("a stall", "batches", "close"),
]
CASES = [
    pytest.param(
        [*(("hub", *case) for case in FEW), ("s3", *FEW[4]), ("s3", *FEW[7])],
        id="few",
    ),
    *(
        pytest.param(
            list(itertools.product([store], [fault], PIPELINES, STATUSES)),
            id=f"{fault}, all, {store}",
            marks=pytest.mark.long,
        )
        for fault in FAULTS
        for store in ("hub", "s3")
    ),
]


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as running:
        yield running


@pytest.fixture(scope="module")
def stores(
    hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Any]]]:
    """The arguments of a stream, for each store."""
    folder = tmp_path_factory.mktemp("exit")
    written = write_dataset(
        folder / "data",
        episode_lengths=[600, *[12] * (3 * len(FAULTS))],
        episodes_per_data_file=1,
    )
    hub.add_repository("exit/data", written.directory, tags=["v3.0"])
    hub.add_bucket("s3://exit-data", written.directory)
    of_hub = {
        "repository": "exit/data",
        "endpoint": hub.endpoint,
        "cache_dir": str(folder / "cache"),
    }
    of_s3 = {"repository": "s3://exit-data", "endpoint": hub.s3_endpoint, "token": False}
    yield {"hub": of_hub, "s3": of_hub | of_s3}
    hub.clear_faults()


@pytest.mark.parametrize("cases", CASES)
def test_a_program_ends_whatever_the_hub_does(
    hub: LoopbackHub,
    stores: dict[str, dict[str, Any]],
    programs: Programs,
    tmp_path: Path,
    cases: list[tuple[str, str, str, str]],
) -> None:
    hub.clear_faults()
    for fault, what in FAULTS.items():
        files = "".join(map(str, EPISODES[fault][1:]))
        hub.add_fault(
            Fault(path_regex=f"^data/.*file-00[{files}]", method="GET", times=None, **what)
        )
    environment = {"LEROBOT_GRAIN_CACHE": str(tmp_path / "kept")}
    ended = programs.run(
        [
            Program(
                PROGRAM,
                [
                    json.dumps(each)
                    for each in (
                        {**stores[store], "episodes": EPISODES[fault]},
                        pipeline,
                        ending,
                    )
                ],
                environment,
            )
            for store, fault, pipeline, ending in cases
        ],
        tmp_path,
    )
    for case, found in zip(cases, ended, strict=True):
        assert found.status == STATUSES[case[-1]], (case, found.errors)
        seconds = found.seconds - float(found.output)
        print(f"{', '.join(case)}: {seconds:.2f} s")
        assert seconds < EXIT_SECONDS + GRACE_SECONDS, case


LEFT_OPEN = """
import json, sys
import lerobot_grain as lg

hub = json.loads(sys.argv[1])
streams = [lg.LeRobotIterDataset(**hub, features=["index", "action"]) for _ in range(3)]
fed = streams[2].batch(5).pipe(lg.DeviceIterDataset)
iterators = [iter(streams[0]), iter(streams[1].batch(5)), iter(fed)]
for iterator in iterators:
    for _ in range(3):
        next(iterator)
"""


def test_a_program_that_closes_nothing_ends_without_a_word(
    hub: LoopbackHub, stores: dict[str, dict[str, Any]], programs: Programs, tmp_path: Path
) -> None:
    """Python warns of sockets and files that nobody has closed."""
    hub.clear_faults()
    environment = {"LEROBOT_GRAIN_CACHE": str(tmp_path / "kept")}
    (ended,) = programs.run(
        [Program(LEFT_OPEN, [json.dumps(stores["hub"])], environment)], tmp_path
    )
    assert (ended.status, ended.output, own_lines(ended.errors)) == (0, "", "")


def test_what_has_not_begun_at_the_end_is_dropped(programs: Programs, tmp_path: Path) -> None:
    """It was begun until a second had gone by, and then Python ended threads inside of the decoder,
    which aborts the program.
    """
    code = """
import time
from lerobot_grain._reading.daemon_pool import DaemonPool

started = []
at_the_end.append(lambda: print(len(started)))

def task():
    started.append(None)
    time.sleep(0.2)

pool = DaemonPool(2, "test")
for _ in range(50):
    pool.submit(task)
while len(started) < 2:
    time.sleep(0.01)
"""
    (ended,) = programs.run([Program(code)], tmp_path)
    assert (ended.status, ended.output, own_lines(ended.errors)) == (0, "2\n", "")


def test_a_call_into_the_decoder_is_waited_for_however_long_it_takes(
    programs: Programs, tmp_path: Path
) -> None:
    """On a machine that is overloaded it takes longer than everything else is waited for."""
    code = """
import time
from lerobot_grain._base.errors import StorageError
from lerobot_grain._reading import daemon_pool

daemon_pool._EXIT_SECONDS = 0.1
lines = []
at_the_end.append(lambda: print(*lines))

def task():
    with daemon_pool.holding_off_exit():
        lines.append("begun")
        time.sleep(1)
        lines.append("ended")
    try:
        with daemon_pool.holding_off_exit():
            lines.append("begun again")
    except StorageError as error:
        lines.append(str(error))

pool = daemon_pool.DaemonPool(1, "test")
pool.submit(task)
while not lines:
    time.sleep(0.01)
"""
    (ended,) = programs.run([Program(code)], tmp_path)
    assert (ended.status, own_lines(ended.errors)) == (0, "")
    assert ended.output in ("begun ended the program is ending\n", "begun ended\n")


def test_a_program_that_ends_while_much_is_to_be_decoded(
    shared: Path, programs: Programs, tmp_path: Path
) -> None:
    code = """
import sys
import lerobot_grain as lg
iterator = iter(lg.LeRobotIterDataset(sys.argv[1]))
print(next(iterator)["observation.images.top"].ndim)
"""
    (ended,) = programs.run([Program(code, [str(shared / "real" / "cr5_v30")])], tmp_path)
    assert (ended.status, ended.output) == (0, "3\n"), ended.errors
