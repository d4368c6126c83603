"""Programs that end while what they read ahead waits for the Hub: within seconds, with their own
status, whether they closed it or not.

Each is a process of its own, which ends as all programs do. They are forked from one that has
imported the package: 36 imports would take minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lerobot_grain.testing import Fault, LoopbackHub, write_dataset
from tests.support.installed import own_lines

# In which a program ends; on a machine that does other things as well it may be this much later.
EXIT_SECONDS, GRACE_SECONDS = 3.0, 8.0

PROGRAM = """
import json, os, signal, sys, threading, time
import jax
import lerobot_grain as lg

HUB, EPISODES = json.loads(sys.argv[1])
PIPELINES = {
    "examples": lambda stream: stream,
    "batches": lambda stream: stream.batch(5),
    "device feed": lambda stream: stream.batch(5).pipe(lg.DeviceIterDataset),
}

def fork_each(cases):
    # Returns a case in each child, and reports in the parent. Few at a time: how long they take is
    # measured.
    begun = {}
    while cases or begun:
        while cases and len(begun) < 3:
            case = cases.pop()
            told, telling = os.pipe()
            child = os.fork()
            if child == 0:
                os.dup2(os.open(sys.argv[3] + "/" + " ".join(case), os.O_WRONLY | os.O_CREAT), 2)
                return case, telling
            os.close(telling)
            begun[child] = case, told
        child, status = os.wait()
        case, told = begun.pop(child)
        ended = time.monotonic()
        with open(told) as told:
            text = told.read()
        seconds = ended - float(text) if text else None
        print(json.dumps([case, os.waitstatus_to_exitcode(status), seconds]), flush=True)
    sys.exit()

def run(case, telling):
    fault, pipeline, ending = case
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = lg.LeRobotIterDataset(
        **HUB, episodes=EPISODES[fault], shuffle=None, num_epochs=1, features=["index", "action"]
    )
    iterator = iter(PIPELINES[pipeline](stream))
    next(iterator)
    if ending == "Ctrl-C in next":
        threading.Timer(1.5, lambda: (tell(telling), os.kill(os.getpid(), signal.SIGINT))).start()
        for _ in iterator:
            pass
    time.sleep(0.5)
    tell(telling)
    if ending == "sys.exit":
        sys.exit(7)
    if ending == "exception":
        raise ValueError(iterator)
    if ending == "close":
        iterator.close()

def tell(telling):
    os.write(telling, str(time.monotonic()).encode())
    os.close(telling)

iterator = None
case, telling = fork_each(json.loads(sys.argv[2]))
run(case, telling)
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
    pytest.param("hub", FEW, id="few"),
    pytest.param("s3", [FEW[4], FEW[7]], id="few, s3"),
    *(
        pytest.param(
            store,
            list(itertools.product([fault], PIPELINES, STATUSES)),
            id=f"{fault}, all, {store}",
            marks=pytest.mark.long,
        )
        for fault in FAULTS
        for store in ("hub", "s3")
    ),
]


@pytest.fixture(scope="module")
def arguments(
    hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("exit")
    written = write_dataset(
        folder / "data",
        episode_lengths=[600, *[12] * (3 * len(FAULTS))],
        episodes_per_data_file=1,
    )
    hub.add_repository("exit/data", written.directory, tags=["v3.0"])
    hub.add_bucket("s3://exit-data", written.directory)
    yield {"repository": "exit/data", "endpoint": hub.endpoint, "cache_dir": str(folder / "cache")}
    hub.clear_faults()


@pytest.mark.parametrize(("store", "cases"), CASES)
def test_a_program_ends_whatever_the_hub_does(
    hub: LoopbackHub,
    arguments: dict[str, Any],
    tmp_path: Path,
    store: str,
    cases: list[tuple[str, str, str]],
) -> None:
    hub.clear_faults()
    for fault, what in FAULTS.items():
        files = "".join(map(str, EPISODES[fault][1:]))
        hub.add_fault(
            Fault(path_regex=f"^data/.*file-00[{files}]", method="GET", times=None, **what)
        )
    if store == "s3":
        of_store = {"repository": "s3://exit-data", "endpoint": hub.s3_endpoint, "token": False}
        arguments = arguments | of_store
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps([arguments, EPISODES]),
        json.dumps(cases),
        str(tmp_path),
    ]
    environment = os.environ | {
        "LEROBOT_GRAIN_CACHE": str(Path(arguments["cache_dir"]) / "kept"),
        "JAX_PLATFORMS": "cpu",
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            output, _ = program.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    found = {
        tuple(case): (status, seconds)
        for case, status, seconds in map(json.loads, output.splitlines())
    }
    for case in cases:
        status, seconds = found[case]
        print(f"{', '.join(case)}: {seconds} s")
        assert status == STATUSES[case[-1]], (tmp_path / " ".join(case)).read_text()
        assert seconds < EXIT_SECONDS + GRACE_SECONDS, case


LEFT_OPEN = """
import json, sys
import jax
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
    hub: LoopbackHub, arguments: dict[str, Any]
) -> None:
    """Python warns of sockets and files that nobody has closed."""
    hub.clear_faults()
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", LEFT_OPEN, json.dumps(arguments)]
    environment = os.environ | {
        "PYTHONMALLOC": "pymalloc",  # not that of -X dev, with which imports take twice as long
        "LEROBOT_GRAIN_CACHE": str(Path(arguments["cache_dir"]) / "kept"),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, own_lines(done.stderr)) == (0, "", "")


def test_what_has_not_begun_at_the_end_is_dropped() -> None:
    """It was begun until a second had gone by, and then Python ended threads inside of the decoder,
    which aborts the program.
    """
    code = """
import atexit, time
started = []
# The function that is registered first runs last.
atexit.register(lambda: print(len(started)))
from lerobot_grain._reading.daemon_pool import DaemonPool

def task():
    started.append(None)
    time.sleep(0.2)

pool = DaemonPool(2, "test")
for _ in range(50):
    pool.submit(task)
while len(started) < 2:
    time.sleep(0.01)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, own_lines(done.stderr)) == (0, "2\n", "")


def test_a_call_into_the_decoder_is_waited_for_however_long_it_takes() -> None:
    """On a machine that is overloaded it takes longer than everything else is waited for."""
    code = """
import atexit, time
lines = []
atexit.register(lambda: print(*lines))  # what is registered first runs last
from lerobot_grain._base.errors import StorageError
from lerobot_grain._reading import daemon_pool

daemon_pool._EXIT_SECONDS = 0.1

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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, own_lines(done.stderr)) == (0, "")
    assert done.stdout in ("begun ended the program is ending\n", "begun ended\n")


def test_a_program_that_ends_while_much_is_to_be_decoded(shared: Path) -> None:
    code = """
import sys
import lerobot_grain as lg
iterator = iter(lg.LeRobotIterDataset(sys.argv[1]))
print(next(iterator)["observation.images.top"].ndim)
"""
    command = [sys.executable, "-c", code, str(shared / "real" / "cr5_v30")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
