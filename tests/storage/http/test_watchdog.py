"""Time in which the process stands still counts for no deadline; all other time does.

By a clock of the tests, and once by SIGSTOP.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain._base.errors import StorageError
from lerobot_grain._storage.http import calls, client, connections
from lerobot_grain._storage.http.calls import Call, Deadline
from lerobot_grain._storage.http.client import HttpClient, UnreachableError
from lerobot_grain._storage.http.connections import Connections
from lerobot_grain._storage.http.responses import RangeSource
from lerobot_grain._storage.http.watchdog import AwakeClock, Watch
from lerobot_grain._storage.opening import open_storage
from lerobot_grain._storage.options import StorageOptions
from lerobot_grain.testing import Fault, LoopbackHub
from tests.support.raw_server import ANSWER, CONTENTS, WANTED, Script, serving

HOUR = 3600.0


class Time:
    """Seconds that the test lets go by."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class JumpingTime:
    """Seconds that go by, and some that are left out at once."""

    def __init__(self) -> None:
        self.left_out = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.left_out


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> JumpingTime:
    """The time of all deadlines."""
    found, watch = JumpingTime(), Watch()
    watch.clock = AwakeClock(found)
    monkeypatch.setattr(calls, "watch", lambda: watch)
    monkeypatch.setattr(client, "watch", lambda: watch)
    return found


def read(transport: HttpClient, url: str, seconds: float) -> bytes:
    source, pieces = RangeSource(url, {}, len(CONTENTS)), []
    return transport.retry(
        "file",
        seconds,
        lambda each: transport.read_range(source, WANTED, pieces, subject="file", deadline=each),
    )


def test_the_clock_leaves_out_a_standstill_and_nothing_else() -> None:
    monotonic = Time()
    clock = AwakeClock(monotonic)
    began = clock()
    for step in (0.25, 4.0, 5.0, 0.0):
        monotonic.now += step
        clock()
    assert clock() - began == 9.25
    monotonic.now += HOUR
    assert clock() - began == 9.5
    monotonic.now += 1
    assert clock() - began == 10.5


def test_a_deadline_that_passed_while_the_process_stood_still_is_none(jumping: JumpingTime) -> None:
    """The connection broke meanwhile: there is another attempt, although only one second was
    allowed.
    """

    def answers(number: int) -> Script:
        if number == 0:
            jumping.left_out += HOUR
            raise OSError  # ends the connection
        return [ANSWER]

    with (
        serving(answers) as server,
        contextlib.closing(HttpClient(StorageOptions(pause_seconds=0.01))) as transport,
    ):
        assert read(transport, server.url, 1.0) == CONTENTS
        assert server.num_requests == 2


@pytest.mark.parametrize("wait", ["a pause", "a rate limit"])
def test_waiting_is_no_standstill(monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    """Nobody else looks at the clock then.

    A pause counts for the deadline, and a rate limit moves it by its length, not by twice that.
    """
    monotonic, watch = Time(), Watch()
    watch.clock = AwakeClock(monotonic)
    monkeypatch.setattr(calls, "watch", lambda: watch)
    monkeypatch.setattr(client, "watch", lambda: watch)
    monkeypatch.setattr(client, "time", FakeTime(monotonic))
    transport = HttpClient(StorageOptions(pause_seconds=8, max_attempts=6))
    deadline = Deadline(20)
    if wait == "a pause":
        transport._sleep(12, "file")
        assert deadline.remaining_seconds() == pytest.approx(8, abs=0.2)
        return
    monkeypatch.setattr(transport._rate_limiter, "reserve", lambda _: 100.0)
    monkeypatch.setattr(
        transport,
        "_on_connection",
        lambda *_, **__: pytest.fail("the deadline is looked at before"),
    )
    monkeypatch.setattr(
        deadline, "check", lambda: (_ for _ in ()).throw(KeyError(deadline.remaining_seconds()))
    )
    call = Call(
        "GET", "http://localhost/", {}, subject="file", deadline=deadline, accept=lambda _: None
    )
    with pytest.raises(KeyError) as caught:
        transport.exchange(call, [])
    assert caught.value.args[0] == pytest.approx(20, abs=0.2)


class FakeTime:
    """Stands in the place of the module `time`: sleeping lets time go by."""

    def __init__(self, now: Time) -> None:
        self.monotonic = now

    def sleep(self, seconds: float) -> None:
        self.monotonic.now += seconds


def test_a_server_that_is_gone_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pauses that are longer than what the clock takes for a standstill."""
    monotonic, watch = Time(), Watch()
    watch.clock = AwakeClock(monotonic)
    monkeypatch.setattr(calls, "watch", lambda: watch)
    monkeypatch.setattr(client, "watch", lambda: watch)
    monkeypatch.setattr(client, "time", FakeTime(monotonic))

    def attempt(_: Deadline) -> bytes:
        raise UnreachableError("ConnectError at localhost: refused")

    began = monotonic.now
    with pytest.raises(
        StorageError,
        match=r"^file: gave up after \d+ attempt\(s\), the last one failed with: ConnectError at "
        r"localhost",
    ):
        HttpClient(StorageOptions()).retry("file", 120, attempt)
    assert 100 < monotonic.now - began <= 120


def test_waiting_for_a_connection_of_the_process_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six datasets, one connection: the last one waits for twice its deadline."""
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 1)
    alone = Connections()
    monkeypatch.setattr(client, "connections", lambda: alone)

    def late(_: int) -> Script:
        time.sleep(0.2)
        return [ANSWER]

    options = StorageOptions(num_connections=1, max_attempts=1)
    with serving(late) as server, ThreadPoolExecutor(6) as pool, contextlib.ExitStack() as stack:
        transports = [
            stack.enter_context(contextlib.closing(HttpClient(options))) for _ in range(6)
        ]
        assert (
            list(pool.map(lambda each: read(each, server.url, 0.6), transports)) == [CONTENTS] * 6
        )
        assert server.num_connections == 1


# Without the package's __init__, which takes two seconds to import what reading a file does not
# need. A step of the clock of half a second is a standstill here.
PROGRAM = """
import os, pickle, signal, sys, threading, types
sys.modules["lerobot_grain"] = types.ModuleType("lerobot_grain")
sys.modules["lerobot_grain"].__path__ = [sys.argv[1]]
from lerobot_grain._storage.http import watchdog
watchdog._STEP_SECONDS, watchdog._STANDSTILL_SECONDS = 0.05, 0.5
from lerobot_grain._base.byte_ranges import ByteRange
storage = pickle.load(sys.stdin.buffer)
assert storage.read_ranges("a", [ByteRange(0, 1)])
threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGSTOP]).start()
sys.stdout.buffer.write(storage.read_ranges("a", [ByteRange(10, 20)])[0])
"""


def test_a_process_that_was_stopped_asks_again_also_for_links_that_have_expired(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """SIGSTOP while a request stalls, for longer than its deadline."""
    contents = bytes(range(100))
    for name, data in (("meta/info.json", b"{}"), ("a", contents)):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    hub.add_repository("awake/stopped", tmp_path / "data", tags=["v3.0"])
    options = StorageOptions(
        deadline_seconds=1.0, read_timeout_seconds=60, pause_seconds=0.01, disk_cache_bytes=0
    )
    arguments = {
        "revision": None,
        "endpoint": hub.endpoint,
        "token": None,
        "cache_dir": tmp_path / "cache",
    }
    storage = open_storage("awake/stopped", options=options, **arguments)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", PROGRAM, os.path.dirname(lg.__file__)]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        hub.add_fault(Fault(origin="cdn", path_regex="^a$", skip=1, latency_seconds=1000))
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdin.write(pickle.dumps(storage))
        program.stdin.close()
        _, status = os.waitpid(program.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert any(record.faulted for record in hub.requests())
        hub.clear_faults()
        hub.expire_urls()
        hub.clear_requests()
        time.sleep(1.1)
        program.send_signal(signal.SIGCONT)
        rest, errors = program.stdout.read(), program.stderr.read()
    assert (rest, program.returncode) == (contents[10:20], 0), errors.decode()
    assert [record.status for record in hub.requests() if record.file == "a"] == [403, 302, 206]
