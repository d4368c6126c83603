"""Streams that readers elsewhere read, through Arrow Flight: order, values and states of one
process, whatever is killed, and nothing that comes over the wire is run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import lerobot_grain as lg
from lerobot_grain._datasets.feed import readers as feed_readers
from lerobot_grain._datasets.feed.batches import BatchIterDataset
from lerobot_grain._datasets.feed.packing import unchanged
from lerobot_grain._datasets.feed.remote import flight_readers, lanes, reader_server
from lerobot_grain._datasets.feed.remote.definition import definition_of
from lerobot_grain._datasets.feed.remote.lanes import LaneRequest, Lanes, LostReaderError
from lerobot_grain._datasets.feed.remote.record_batches import batch_of, record_batch_of
from lerobot_grain._datasets.feed.remote.tickets import Note, ticket_of
from lerobot_grain._datasets.feed.worker_stream import Piece
from lerobot_grain._datasets.positions import PartOfPositions
from lerobot_grain._order.windows import WindowRequest
from tests.support.forked import ForkedScript
from tests.support.mixed import NUM_ROWS, stream, write_mixed
from tests.support.reader_process import ReaderProcess

pytestmark = pytest.mark.timeout(90, method="thread")
PAGE = Path(lg.__file__).parents[1] / "docs" / "remote-readers.md"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("remote") / "data")


def cheap(directory: Path, **changes: Any) -> lg.LeRobotIterDataset:
    """Without video, which takes long to begin."""
    changes = {"features": ["index", "action", "task"], "delta_timestamps": None} | changes
    return stream(directory, **changes)


@pytest.fixture(scope="module")
def urls(directory: Path) -> Iterator[list[str]]:
    """Three servers of `stream`, each a process."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ReaderProcess(stream(directory))).url for _ in range(3)]


@contextlib.contextmanager
def served(dataset: Any, count: int = 1, **arguments: Any) -> Iterator[lg.FlightReaders]:
    """Serves a dataset in this process, some times."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(lg.ReaderServer(dataset, **arguments)) for _ in range(count)]
        yield lg.FlightReaders([server.url for server in servers], token=arguments.get("token"))


def remote(dataset: Any, urls: Any, **arguments: Any) -> lg.RemoteReaderIterDataset[Any]:
    found = urls if isinstance(urls, lg.FlightReaders) else lg.FlightReaders(urls)
    return lg.RemoteReaderIterDataset(dataset, readers=found, **arguments)


def assert_same(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        pairs = (
            zip(found[key], value, strict=True)
            if isinstance(value, list)
            else [(found[key], value)]
        )
        for each, other in pairs:
            assert type(each) is type(other), key
            if isinstance(other, np.ndarray):
                assert (each.dtype, each.shape) == (other.dtype, other.shape)
                assert each.flags.writeable
            assert np.array_equal(each, other), key


def assert_same_stream(one: Any, many: Any) -> None:
    """Compares all elements, and the states after each."""
    with contextlib.closing(iter(one)) as alone, contextlib.closing(iter(many)) as found:
        assert found.get_state() == alone.get_state()
        for expected in alone:
            assert_same(next(found), expected)
            assert found.get_state() == alone.get_state()
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(found)
        assert found.get_state() == alone.get_state()


# --- order, values, states -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_and_states_of_one_process(
    directory: Path, urls: list[str], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", {1: 5, 7: 3, 64: 32}[batch_size])
    dataset = stream(directory)
    batches = remote(dataset, urls).batch(batch_size)
    assert isinstance(batches, BatchIterDataset)
    assert_same_stream(dataset.batch(batch_size), batches)


def test_single_examples(directory: Path, urls: list[str]) -> None:
    dataset = stream(directory)
    assert_same_stream(dataset, remote(dataset, urls))


@pytest.mark.parametrize("shard", [0, 2])
def test_shards_and_a_remainder_that_is_dropped(directory: Path, shard: int) -> None:
    # The servers have the whole stream; consumers say which shard of it.
    options = grain.sharding.ShardOptions(shard, 3, drop_remainder=True)
    dataset = cheap(directory, shard_options=options)
    with served(cheap(directory), 2) as found:
        assert_same_stream(
            dataset.batch(4, drop_remainder=True),
            remote(dataset, found).batch(4, drop_remainder=True),
        )


def test_a_mixture_and_what_comes_after_it(directory: Path) -> None:
    keys = ["index", "still", "action", "task"]
    component = stream(directory, num_epochs=None, features=keys, delta_timestamps=None)

    def mixture() -> lg.MixtureIterDataset:
        return lg.MixtureIterDataset(
            {"a": component, "b": component}, {"a": 3, "b": 1}, num_examples=50
        )

    def finished(examples: Any) -> Any:
        return examples.map(dict).filter(lambda example: example["index"] % 5 != 3).batch(4)

    with served(mixture(), 2) as found:
        assert_same_stream(mixture().batch(8), remote(mixture(), found).batch(8))
        assert_same_stream(finished(mixture()), finished(remote(mixture(), found)))


def test_device_feed_elastic_state_and_specs(directory: Path) -> None:
    dataset = stream(directory, features=["index", "top"], delta_timestamps=None)
    with served(dataset, 2) as found:
        after = remote(dataset, found).batch(8, drop_remainder=True)
        assert grain.experimental.get_element_spec(after) == grain.experimental.get_element_spec(
            dataset.batch(8, drop_remainder=True)
        )
        devices = after.pipe(lg.DeviceIterDataset).pipe(lg.ElasticIterDataset)
        with contextlib.closing(iter(dataset.batch(8))) as alone:
            expected = [next(alone) for _ in range(5)]
            state = alone.get_state()
        with contextlib.closing(iter(devices)) as batches:
            for batch in expected:
                found_batch = next(batches)
                assert isinstance(found_batch["top"], jax.Array)
                assert np.array_equal(found_batch["top"], batch["top"])
            assert batches.get_state() == state


def test_the_feed_ends_while_no_reader_answers(directory: Path) -> None:
    dataset = cheap(directory)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # It takes connections, and says nothing.
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        batches = iter(remote(dataset, [url]).batch(8).pipe(lg.DeviceIterDataset))
        batches.start_prefetch()
        began = time.monotonic()
        batches.close()
        assert time.monotonic() - began < 30


def rows_of(batches: Iterator[Any], count: int) -> list[int]:
    return list(itertools.chain(*(next(batches)["index"].tolist() for _ in range(count))))


def test_a_state_restores_with_other_readers_and_without(directory: Path) -> None:
    dataset = cheap(directory, num_epochs=None)
    with contextlib.closing(iter(dataset.batch(6))) as alone:
        straight = rows_of(alone, 30)
    state: Any = None
    found: list[int] = []
    with served(dataset, 3) as three:
        two = lg.FlightReaders(three.urls[:2])
        for readers, size, count in [(three, 7, 3), (None, 4, 2), (two, 70, 1), (three, 6, 2)]:
            batches = (dataset if readers is None else remote(dataset, readers)).batch(size)
            with contextlib.closing(iter(batches)) as iterator:
                if state is not None:
                    iterator.set_state(state)
                found += rows_of(iterator, count)
                state = json.loads(json.dumps(iterator.get_state()))
                ahead = rows_of(iterator, 2)
                iterator.set_state(state)
                assert rows_of(iterator, 2) == ahead
    assert found == straight[: len(found)]
    assert state["position"] == len(found)


# --- what goes wrong -----------------------------------------------------------------------------


def killed_and_started(
    directory: Path,
    kill: Callable[[int, list[ReaderProcess]], None],
    *,
    num_batches: int,
    num_servers: int = 3,
) -> None:
    """Compares batches and states with those of one process, while `kill` is called before each."""
    dataset = stream(directory, num_epochs=None, features=["index", "top", "task"],
                     delta_timestamps=None)  # fmt: skip
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(ReaderProcess(dataset)) for _ in range(num_servers)]
        batches = remote(dataset, [process.url for process in processes]).batch(6)
        alone = stack.enter_context(contextlib.closing(iter(dataset.batch(6))))
        found = stack.enter_context(contextlib.closing(iter(batches)))
        for number in range(num_batches):
            kill(number, processes)
            assert_same(next(found), next(alone))
            assert found.get_state() == alone.get_state()


def test_a_server_that_is_killed_and_comes_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 2)
    monkeypatch.setattr(flight_readers, "_HOME_SECONDS", 0.0)

    def kill(number: int, processes: list[ReaderProcess]) -> None:
        if number in (3, 20):
            processes[1].kill()
        if number == 10:
            processes[1].start()

    killed_and_started(directory, kill, num_batches=30)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_twenty_readers_are_killed_during_a_run(
    directory: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 4)
    monkeypatch.setattr(flight_readers, "_HOME_SECONDS", 0.2)
    chosen = random.Random(seed)
    killed = sorted(chosen.sample(range(2, 300), 20))

    def kill(number: int, processes: list[ReaderProcess]) -> None:
        if number in killed:
            process = chosen.choice(processes)
            process.kill()
            process.start()

    killed_and_started(directory, kill, num_batches=320)


@pytest.mark.long
def test_three_nodes_are_lost_during_a_run_and_then_all(directory: Path) -> None:
    def kill(number: int, processes: list[ReaderProcess]) -> None:
        if number in (20, 40, 60):
            processes[number // 20].kill()
        if number == 80:
            # The last one: nobody is there for a moment.
            processes[0].kill()
            threading.Timer(1.0, processes[0].start).start()

    killed_and_started(directory, kill, num_batches=120, num_servers=4)


def test_without_readers_it_says_so_and_goes_on_later(directory: Path) -> None:
    dataset = cheap(directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    batches = remote(dataset, [f"grpc://127.0.0.1:{port}"], patience_seconds=1).batch(8)
    with (
        contextlib.closing(iter(batches)) as found,
        contextlib.closing(iter(dataset.batch(8))) as alone,
    ):
        with pytest.raises(
            lg.StorageError,
            match=rf"at grpc://127.0.0.1:{port} was lost: .*; no reader has answered for 1 s",
        ):
            next(found)
        with lg.ReaderServer(dataset, port=port):
            assert_same(next(found), next(alone))


def test_a_server_that_is_silent_and_there_is_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_readers, "_LOOK_SECONDS", 0.01)
    # Servers of gRPC end connections on which they are pinged while they send nothing.
    assert not [name for name, _ in flight_readers._OPTIONS if "keepalive" in name]
    answers: list[bool] = []
    is_enough = threading.Event()
    ask = flight_readers.OpenFlightReaders._answers

    def noted(self: Any, client: Any, seconds: float) -> bool:
        answers.append(ask(self, client, seconds))
        if len(answers) == 3:
            is_enough.set()
        return answers[-1]

    monkeypatch.setattr(flight_readers.OpenFlightReaders, "_answers", noted)
    dataset = cheap(directory)
    tickets: list[bytes] = []
    with lg.ReaderServer(dataset) as server:
        parts = server._served.parts

        def late(ticket: bytes) -> Any:
            tickets.append(ticket)
            assert is_enough.wait(60)
            return parts(ticket)

        monkeypatch.setattr(server._served, "parts", late)
        assert_same_stream(dataset.batch(8), remote(dataset, [server.url]).batch(8))
    assert all(answers)
    # Those of the batches, and of the end that comes again.
    assert len({json.loads(ticket)["state"]["position"] for ticket in tickets}) == len(tickets)


def test_a_server_that_vanishes_without_a_word(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 2)
    monkeypatch.setattr(flight_readers, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(flight_readers, "_ANSWER_SECONDS", 1.0)

    dataset = cheap(directory, num_epochs=None)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(ReaderProcess(dataset)) for _ in range(2)]
        batches = remote(dataset, [process.url for process in processes]).batch(6)
        alone = stack.enter_context(contextlib.closing(iter(dataset.batch(6))))
        found = stack.enter_context(contextlib.closing(iter(batches)))
        assert rows_of(found, 3) == rows_of(alone, 3)
        # Its connections stay, and nothing answers on them.
        processes[1].send_signal(signal.SIGSTOP)
        assert rows_of(found, 200) == rows_of(alone, 200)


def test_an_error_without_a_text_is_a_lost_reader() -> None:
    readers = lg.FlightReaders(["grpc://localhost:1"])
    found = flight_readers.OpenFlightReaders(readers, {})._lost(0, readers.urls[0], "")
    assert str(found) == "the reader at grpc://localhost:1 was lost: it did not say why"


def test_readers_are_closed_while_their_lock_is_held() -> None:
    # As by the garbage collector.
    found = flight_readers.OpenFlightReaders(lg.FlightReaders(["grpc://localhost:1"]), {})

    def collected() -> None:
        with found._lock:
            found.close()

    thread = threading.Thread(target=collected, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_no_proxy_is_asked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
    dataset = cheap(directory)
    with (
        served(dataset) as readers,
        contextlib.closing(iter(remote(dataset, readers, patience_seconds=3).batch(8))) as batches,
    ):
        next(batches)


class Asks:
    """Makes some requests wrong until a file says that they were."""

    def __init__(self, rows: tuple[int, ...], mark: Path) -> None:
        self.rows, self.mark = rows, mark

    def __call__(self, request: WindowRequest) -> WindowRequest:
        if request.row in self.rows and not self.mark.exists():
            return WindowRequest(request.row, request.episode, 10_000 + request.row, {}, {})
        return request


@pytest.mark.parametrize("rows", [(0,), (8,), (10, 11), (39,)])
def test_an_example_that_fails_comes_at_its_place(
    directory: Path, tmp_path: Path, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 3)
    mark = tmp_path / "mark"
    repository = lg.open_repository(directory)
    requests = (
        lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=2)
        .map(lg.DeltaTimestamps(repository))
        .map(Asks(rows, mark))
    )
    dataset = lg.ReadWindowsIterDataset(requests, repository, features=["index", "task"])
    with (
        served(dataset, 2) as readers,
        contextlib.closing(iter(remote(dataset, readers).batch(4))) as batches,
    ):
        found: list[list[int]] = []
        with pytest.raises(lg.InvalidRequestError, match=rf"frame is \[{10_000 + rows[0]}\]"):
            found.extend(batch["index"].tolist() for batch in batches)
        assert found == [list(range(start, start + 4)) for start in range(0, rows[0] - 3, 4)]
        with pytest.raises(lg.InvalidRequestError, match=f"{10_000 + rows[0]}"):
            next(batches)
        assert batches.get_state()["position"] == 4 * len(found)
        mark.touch()
        found += [batch["index"].tolist() for batch in batches]
    assert list(itertools.chain(*found)) == [*range(NUM_ROWS)] * 2


class Widens:
    """Makes windows of two frames of some requests, which have none."""

    def __init__(self, rows: range) -> None:
        self.rows = rows

    def __call__(self, request: WindowRequest) -> WindowRequest:
        if request.row not in self.rows:
            return request
        frames = {"action": np.array([request.frame, request.frame])}
        return WindowRequest(
            request.row, request.episode, request.frame, frames, {"action": np.zeros(2, bool)}
        )


@pytest.mark.parametrize("batch_size", [1, 5])
def test_examples_of_other_shapes_in_the_middle_of_a_piece(
    directory: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_readers, "_MIN_PIECE", 8)
    repository = lg.open_repository(directory)
    requests = (
        lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=1)
        .map(lg.DeltaTimestamps(repository))
        .map(Widens(range(10, 30)))
    )
    dataset = lg.ReadWindowsIterDataset(requests, repository, features=["index", "action"])
    with served(dataset, 2) as readers:
        assert_same_stream(dataset.batch(batch_size), remote(dataset, readers).batch(batch_size))


def test_shapes_of_equally_many_bytes_are_told_apart(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(2, 3), (3, 2), (3, 2)]
    pieces = (
        Piece(number, (unchanged({"grid": np.zeros((1, *shape), np.uint8)}),), None)
        for number, shape in enumerate(shapes)
    )
    served = reader_server._Served(cheap(directory))
    monkeypatch.setattr(served, "_open", lambda _: pieces)
    # The first stream ends before the piece that has another shape; the consumer asks again.
    assert [part.note for part in served.parts(b"")] == [Note(first=0)]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"features": ["index", "task"]}, lg.InvalidRequestError,
         r"streams.stream.elements.action is 'float32 \(7,\)' there and None in"),
        ({"num_epochs": 3}, lg.InvalidRequestError, "num_positions is 80 there and 120 in"),
        ({"delta_timestamps": {"action": [0.1]}}, lg.InvalidRequestError, "elements.action"),
        ({"shuffle": lg.Shuffle(seed=4, num_parts=2, buffer_size=8)}, lg.StateMismatchError,
         "the state was taken with seed = 4, this stream has 3"),
        ({"episodes": [0, 1]}, lg.InvalidRequestError, "num_positions is 80 there and 38 in"),
    ],
)  # fmt: skip
def test_another_dataset_is_refused(
    directory: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with served(cheap(directory)) as readers:
        batches = iter(remote(cheap(directory, **changes), readers).batch(4))
        with contextlib.closing(batches), pytest.raises(error, match=text):
            next(batches)


def test_windows_of_equal_length_and_other_seconds_are_refused(directory: Path) -> None:
    with served(cheap(directory, delta_timestamps={"action": [0.0, 0.1]})) as readers:
        other = cheap(directory, delta_timestamps={"action": [0.0, 0.2]})
        batches = iter(remote(other, readers).batch(4))
        with (
            contextlib.closing(batches),
            pytest.raises(
                lg.InvalidRequestError, match=r"delta_timestamps.action.1 is 1 there and"
            ),
        ):
            next(batches)


def test_named_windows_and_valid_rows_are_part_of_the_definition(directory: Path) -> None:
    def definition(**changes: Any) -> Any:
        return definition_of(cheap(directory, **changes), asked_by="test")

    def goal(frames: Any) -> Any:
        return {"windows": {"goal": lg.Window("action", frames)}}

    draws = [lg.UniformDraw(0.1, 0.3), lg.UniformDraw(0.1, 0.4), lg.LastFrame()]
    geometric = [lg.GeometricDraw(0.3), lg.GeometricDraw(0.4)]
    rows = [lg.ValidRows(np.arange(NUM_ROWS) % n != 1, pad_windows=True) for n in (7, 8)]
    window = {"delta_timestamps": {"action": [0.0, 0.1]}}
    changes: list[Any] = [{}, *map(goal, [*draws, *geometric])]
    changes += [{"valid_rows": each, **window} for each in rows]
    found = [definition(**each) for each in changes]
    assert found == [definition(**each) for each in changes]
    assert len({json.dumps(each) for each in found}) == len(found)


def test_what_readers_cannot_read_is_refused(directory: Path) -> None:
    dataset = cheap(directory)
    readers = lg.FlightReaders(["grpc://127.0.0.1:1"])
    for wrong in (dataset.map(dict), lg.WorkerPrefetchIterDataset(dataset, num_workers=1)):
        with pytest.raises(lg.InvalidRequestError, match=r"put .map, .filter and .batch after the"):
            lg.RemoteReaderIterDataset(wrong, readers=readers)
        with pytest.raises(lg.InvalidRequestError, match=r"^ReaderServer: found"):
            lg.ReaderServer(wrong)
    with pytest.raises(lg.InvalidRequestError, match=r"pieces_ahead=0\): expected an int >= 1"):
        lg.RemoteReaderIterDataset(dataset, readers=readers, pieces_ahead=0)


# --- back-pressure -------------------------------------------------------------------------------


class Endless:
    """Counts the pieces that it yields."""

    def __init__(self) -> None:
        self.count = 0

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Any]:
        del lane
        while True:
            self.count += 1
            batch = record_batch_of({"index": np.arange(request.piece_size)})
            yield lanes.Piece(request.first, (flight_readers.unchanged(batch_of(batch)),), None)
            request = request.after(request.piece_size)

    def close(self) -> None: ...


def settled(count: Callable[[], int]) -> int:
    """Returns a count once it has stayed the same for half a second."""
    value, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.02)
        if (now := count()) != value:
            value, since = now, time.monotonic()
    return value


def test_a_lane_reads_so_many_pieces_ahead_and_no_more() -> None:
    part = PartOfPositions.of_shard(None, grain.sharding.NoSharding())
    source = Endless()
    found = Lanes(
        source, [LaneRequest({"position": 0}, part, 4)], pieces_ahead=3, patience_seconds=1
    )
    # One more is in the hands of the thread, which waits for room.
    assert settled(lambda: source.count) == 4
    assert [next(found).first for _ in range(2)] == [0, 4]
    assert settled(lambda: source.count) == 6
    found.close()
    assert not any(thread.name.startswith("lerobot_grain lane") for thread in threading.enumerate())


class Stuck:
    """Readers whose lanes do not notice that they are closed."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Any]:
        del lane, request
        self.is_over.wait()
        return iter(())

    def close(self) -> None: ...


def test_all_lanes_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    clock = itertools.count()
    part = PartOfPositions.of_shard(None, grain.sharding.NoSharding())
    request = LaneRequest({"position": 0}, part, 4)
    source = Stuck()
    found = Lanes(source, [request] * 8, pieces_ahead=1, patience_seconds=1)
    for lane in found._lanes:
        monkeypatch.setattr(lane.thread, "join", lambda seconds: waits.append(seconds))
    monkeypatch.setattr(lanes.time, "monotonic", lambda: float(next(clock)))
    found.close()
    monkeypatch.undo()
    source.is_over.set()
    assert waits == [4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]


class Lost:
    """Readers none of which answers."""

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Any]:
        del lane, request
        raise LostReaderError("nobody answers")

    def close(self) -> None: ...


@pytest.mark.parametrize("source", [Lost(), Endless()], ids=["pause", "no room"])
def test_the_garbage_collector_may_end_lanes_in_a_thread_that_waits(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartOfPositions.of_shard(None, grain.sharding.NoSharding())
    request = LaneRequest({"position": 0}, part, 4)
    wait = threading.Condition.wait
    made = threading.RLock()

    def ends_all(self: threading.Condition, timeout: float | None = None) -> bool:
        """Stands for a collection in the middle of a wait, when its lock is held."""
        if threading.current_thread().name.startswith("lerobot_grain lane"):
            with made:
                found.close()
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", ends_all)
    with made:
        found = Lanes(source, [request] * 2, pieces_ahead=1, patience_seconds=60)
    time.sleep(0.3)  # with a lock, the lanes would hang by now
    closing = threading.Thread(target=found.close, daemon=True)
    closing.start()
    for thread in (closing, *(lane.thread for lane in found._lanes)):
        thread.join(10)
        assert not thread.is_alive()


def counted(parts: Iterator[Any], sent: list[int]) -> Iterator[Any]:
    with contextlib.closing(parts):  # type: ignore[type-var]
        for part in parts:
            sent.append(1)
            yield part


def test_a_server_waits_for_its_consumer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stream(directory, features=["top"], delta_timestamps=None, num_epochs=None,
                     image_size=(480, 640))  # fmt: skip
    sent: list[int] = []
    with lg.ReaderServer(dataset) as server:
        parts = server._served.parts
        monkeypatch.setattr(
            server._served,
            "parts",
            lambda ticket: counted(parts(ticket), sent),
        )
        with contextlib.closing(iter(remote(dataset, [server.url]).batch(4))) as batches:
            next(batches)
            # 29 MB a second would go on for ever; a piece is 8 MB.
            assert settled(lambda: len(sent)) < 16


# --- security ------------------------------------------------------------------------------------


def test_a_token_is_asked_for(directory: Path) -> None:
    dataset = cheap(directory)
    with served(dataset, token="right") as readers:
        with contextlib.closing(iter(remote(dataset, readers).batch(4))) as batches:
            next(batches)
        for token in (None, "wrong", "righ"):
            other = lg.FlightReaders(readers.urls, token=token)
            with (
                contextlib.closing(iter(remote(dataset, other).batch(4))) as batches,
                pytest.raises(lg.StorageError, match="refuses the token; expected the one") as seen,
            ):
                next(batches)
            assert "right" not in str(seen.value)
        assert "right" not in repr(readers)


@pytest.mark.parametrize("token", ["", "s3cr3t\n", " s3cr3t", "s3cr3t\x00", "s3cr3t-ü", b"s3cr3t"])
def test_tokens_that_cannot_be_sent(directory: Path, token: Any) -> None:
    for make in (
        lambda: lg.FlightReaders(["grpc://localhost:1"], token=token),
        lambda: lg.ReaderServer(cheap(directory), token=token),
    ):
        with pytest.raises(
            lg.InvalidRequestError, match="expected a str of printable ASCII"
        ) as seen:
            make()
        assert "s3cr3t" not in str(seen.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost`, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout key.pem -out cert.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_tls_beyond_this_machine(directory: Path, certificate: tuple[Path, Path]) -> None:
    dataset = cheap(directory)
    cert, key = certificate
    for arguments in ({}, {"token": "t"}, {"certificate": cert, "private_key": key}):
        with pytest.raises(lg.InvalidRequestError, match="listen beyond this machine without"):
            lg.ReaderServer(dataset, host="0.0.0.0", **arguments)
    with pytest.raises(lg.InvalidRequestError, match="found one of certificate and private_key"):
        lg.ReaderServer(dataset, certificate=cert)
    with lg.ReaderServer(
        dataset, host="0.0.0.0", token="t", certificate=cert, private_key=key
    ) as server:
        url = f"grpc+tls://localhost:{server.port}"
        readers = lg.FlightReaders([url], token="t", root_certificates=cert)
        assert_same_stream(dataset.batch(8), remote(dataset, readers).batch(8))
        # Another authority, and no TLS.
        for urls, root in (([url], None), ([f"grpc://localhost:{server.port}"], cert)):
            wrong = lg.FlightReaders(urls, token="t", root_certificates=root)
            batches = iter(remote(dataset, wrong, patience_seconds=1).batch(8))
            with contextlib.closing(batches), pytest.raises(lg.StorageError, match="was lost"):
                next(batches)


def test_the_programs_of_the_page_run(
    small_dataset: Path,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {
        "8815": str(port),
        "reader-0": "localhost",
        "reader-1": "localhost",
        "0.0.0.0": "127.0.0.1",
        "server.pem": str(certificate[0]),
        "server.key": str(certificate[1]),
        "ca.pem": str(certificate[0]),
        "lerobot/pusht": str(small_dataset),
    }
    for block in PAGE.read_text().split("```python\n")[1:]:
        code = block.partition("```")[0]
        first, _, _ = code.partition("\n")
        for name, value in names.items():
            code = code.replace(name, value)
        if first.startswith("# "):
            (tmp_path / first.removeprefix("# ")).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("READER_TOKEN", "secret")
    with ForkedScript([sys.executable, str(tmp_path / "reader.py")], env=os.environ) as server:
        try:
            state = runpy.run_path(str(tmp_path / "train.py"))["state"]
        finally:
            server.kill()
            sys.modules.pop("stream", None)
    assert state["position"] == 6400
    assert capsys.readouterr().out == "(64, 16, 7)\n" * 100


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        ([], "expected a list of at least one URL"),
        ("grpc://a:1", "expected a list of at least one URL"),
        (["http://localhost:1"], "expected grpc://host:port"),
        (["grpc://localhost"], "expected grpc://host:port"),
        ([None], r"urls\[0\] is None; expected grpc://host:port"),
        (["grpc://localhost:99999"], "expected grpc://host:port"),
        (["grpc://user:secret@localhost:1"], "the token goes into token="),
        (["grpc://reader-0:8815"], "leads to another machine without TLS"),
    ],
)
def test_urls_that_are_refused(urls: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.FlightReaders(urls)


@pytest.mark.parametrize(
    "url",
    [
        "grpc+tls://:s3cr3t@h:88",
        "grpc+tls://s3cr3t@h:88",
        "grpc+tls://h:88?token=s3cr3t",
        "grpc+tls://h:88/#s3cr3t",
        "grpc+tls://h:88?token=s3@cr3t",
        "grpc+tls://s3?cr3t@h:88",
    ],
)
def test_secrets_in_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=r"urls\[0\] holds one of @ \? #") as seen:
        lg.FlightReaders([url])
    assert "cr3t" not in str(seen.value)
    with pytest.raises(lg.InvalidRequestError, match="urls is a str; expected a list") as seen:
        lg.FlightReaders(url)
    assert "cr3t" not in str(seen.value)


def test_files_that_are_missing_and_ports_that_are_taken(directory: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(lg.StorageError, match="expected a PEM file"):
        lg.FlightReaders(["grpc+tls://reader:1"], root_certificates=absent)
    with pytest.raises(lg.StorageError, match="PEM files that can be read"):
        lg.ReaderServer(cheap(directory), certificate=absent, private_key=absent)


def _ticket(directory: Path, **changes: Any) -> bytes:
    dataset = cheap(directory)
    part = PartOfPositions.of_shard(None, grain.sharding.NoSharding())
    request = LaneRequest(iter(dataset).get_state(), part, 4)
    found = json.loads(ticket_of(request, definition_of(dataset, asked_by="test")))
    return json.dumps(found | changes).encode()


def first_chunk(client: Any, ticket: bytes) -> Any:
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(ticket))
    with contextlib.suppress(OSError):
        writer.begin(pa.schema([]))
        writer.done_writing()
    return reader.read_chunk()


@pytest.mark.parametrize(
    ("ticket", "text"),
    [
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "no JSON object with a definition"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"definition": []}', "no JSON object"),
        (b'{"definition": {}}', "wire_version is 1 there and None in"),
        ({"shard": [3, 3, 0]}, "expected shard index < shard count"),
        ({"shard": "all"}, "expected shard index < shard count"),
        ({"step": 0}, "step >= 1"),
        ({"start": -1}, "expected shard index"),
        ({"start": 1 << 70}, "expected shard index"),
        ({"piece_size": 1 << 17}, "1 <= piece_size <= 65536"),
        ({"piece_size": True}, "1 <= piece_size <= 65536"),
        ({"state": None}, "this is not a state of a lerobot_grain stream"),
        ({"state": {"format": 1}}, "the state has no 'position'"),
    ],
)  # fmt: skip
def test_tickets_of_anybody_are_answered_with_an_error(
    directory: Path, ticket: Any, text: str
) -> None:
    sent = ticket if isinstance(ticket, bytes) else _ticket(directory, **ticket)
    with (
        lg.ReaderServer(cheap(directory)) as server,
        flight.FlightClient(server.url) as client,
    ):
        chunk = first_chunk(client, sent)
        error = Note.of(chunk.app_metadata.to_pybytes()).error
        assert isinstance(error, lg.InvalidRequestError)
        assert text in str(error)
        # And it serves on.
        chunk = first_chunk(client, _ticket(directory))
        assert chunk.data.num_rows == 4


# --- the wire ------------------------------------------------------------------------------------


def test_record_batches_share_memory_and_come_back_equal() -> None:
    language = np.empty((2, 2), object)
    for place in np.ndindex(2, 2):
        language[place] = [{"role": "user", "tool_calls": None, "n": place[0]}] * place[1]
    batch = {
        "frames": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
        "depth": np.array([[0.5], [np.nan]], np.float32),
        "flag": np.array([True, False]),
        "half": np.zeros((2, 1), np.float16),
        "task": ["größer", ""],
        "notes": [["a", "b"], ["c", "d"]],
        "said": language,
    }
    sent = record_batch_of(batch)
    assert sent.column("frames").buffers()[1].address == batch["frames"].ctypes.data
    found = batch_of(sent)
    assert np.shares_memory(found["frames"], batch["frames"])
    assert list(found) == list(batch)
    for key, value in batch.items():
        if isinstance(value, list):
            assert found[key] == value
        elif key == "said":
            assert found[key].shape == (2, 2)
            assert found[key].tolist() == value.tolist()
        else:
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert np.array_equal(found[key], value, equal_nan=key == "depth")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 0)), "of 1 byte to 2 GiB"),
        (np.array(["a", "b"]), "expected bool, int or float"),
        (np.array([[b"a"], None], object), "JSON has no form for"),
    ],
)
def test_values_that_cannot_be_sent(value: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        record_batch_of({"key": value})


@pytest.mark.parametrize(
    "description",
    [
        '["object", []]',
        '["<U4", []]',
        '["|V1", [1]]',
        f'["|u1", [{1 << 70}]]',
        f'["object", [{1 << 70}]]',
        "7",
        "[]",
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_record_batches_of_something_else(description: str) -> None:
    fields = [pa.field("key", pa.binary(1), metadata={"array": description})]
    other = pa.RecordBatch.from_arrays([pa.array([b"a"], pa.binary(1))], schema=pa.schema(fields))
    with pytest.raises(lg.StorageError, match="use the same version of lerobot_grain"):
        batch_of(other)


@pytest.mark.parametrize(
    ("column", "description"),
    [
        (pa.array([["1", "2"]]), '["object", [1]]'),
        (pa.array([["1"]]), '["object", [2]]'),
        (pa.array([["1"]]), f'["object", [{1 << 44}]]'),
        (pa.array(["a"]), '["|u1", [1]]'),
        (pa.array([["a"]]), '["|u1", [1]]'),
        (pa.array([None]), '["object", [1]]'),
    ],
)
def test_columns_of_something_else(column: Any, description: str) -> None:
    schema = pa.schema([pa.field("key", column.type, metadata={"array": description})])
    other = pa.RecordBatch.from_arrays([column], schema=schema)
    with pytest.raises(lg.StorageError, match="use the same version of lerobot_grain"):
        batch_of(other)


def test_lost_readers_are_an_error_of_storage() -> None:
    assert issubclass(LostReaderError, lg.StorageError)
