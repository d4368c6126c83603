"""Batches of worker processes: those of one process, whatever the number of workers, the size of
the batches and of the pieces, and whatever goes wrong in the middle of one.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.memory import ArrayPool
from lerobot_grain._datasets.feed import readers
from lerobot_grain._datasets.feed.batches import BatchIterDataset
from lerobot_grain._datasets.feed.packing import MIN_SHARED_BYTES, packed, unpacked
from lerobot_grain._datasets.feed.rounds import Rounds
from lerobot_grain._datasets.feed.worker_stream import Piece
from lerobot_grain._order.windows import WindowRequest
from lerobot_grain._reading.batches import num_examples
from tests.datasets.feed.test_workers import wait_until
from tests.support.forked import SHARED_MEMORY_PREFIX, fork_workers
from tests.support.mixed import NUM_ROWS, stream, write_mixed
from tests.support.tables import table

pytestmark = pytest.mark.timeout(90, method="thread")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("workers") / "data")


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _shared_memory()
    yield
    assert multiprocessing.active_children() == []
    # What a killed worker was about to send goes at the end of the program.
    if "killed" not in request.node.name and not _shared_memory() <= before:
        # The error that ends a stream refers to itself in Grain's frames, which hold a piece of
        # each worker; and threads of Grain's hold some of them longer, and unlink what was let go.
        assert wait_until(lambda: gc.collect() >= 0 and _shared_memory() <= before, seconds=20)


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    # Other tests and other users of the machine have shared memory, too.
    monkeypatch.setenv(SHARED_MEMORY_PREFIX, f"/{OURS}")


OURS = f"p{os.getpid():x}_"


def _shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob(f"{OURS}*")} if folder.is_dir() else set()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, list):
            assert len(found[key]) == len(value)
        for each, other in zip(
            *((found[key], value) if isinstance(value, list) else ([found[key]], [value])),
            strict=True,
        ):
            assert type(each) is np.ndarray
            assert each.dtype == other.dtype
            assert each.flags.writeable
            assert each.flags.c_contiguous
            assert np.array_equal(each, other), key


def assert_same_batches(
    dataset: grain.IterDataset[Any], batch_size: int, num_workers: int, **arguments: Any
) -> None:
    """Compares all batches, and the states after each."""
    parallel = lg.WorkerPrefetchIterDataset(dataset, num_workers=num_workers)
    batches = parallel.batch(batch_size, **arguments)
    assert isinstance(batches, BatchIterDataset)
    alone = dataset.batch(batch_size, **arguments)
    with (
        contextlib.closing(iter(alone)) as one,
        contextlib.closing(iter(batches)) as many,
    ):
        for expected in one:
            assert_same(next(many), expected)
            assert many.get_state() == one.get_state()
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(many)
        assert many.get_state() == one.get_state()


# Each number of processes and each size of batches; the whole table is `long`.
ALWAYS = {(1, 64), (2, 1), (2, 40), (3, 7), (3, 100), (5, 40)}


@pytest.mark.parametrize(
    ("num_workers", "batch_size"),
    table(
        itertools.product((0, 1, 2, 3, 5), (1, 7, 40, 64, 100)),
        lambda case: case[0] == 0 or case in ALWAYS,
    ),
)
def test_same_batches_and_states_as_without_workers(
    directory: Path, num_workers: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces that are smaller and larger than a batch's part, and of one example.
    least = {1: 5, 7: 3, 40: 1, 64: 32, 100: 1}[batch_size]
    monkeypatch.setattr(readers, "_MIN_PIECE", least)
    if batch_size == 100:
        monkeypatch.setattr(readers, "_MAX_PIECE_BYTES", 1)
    cheap = {} if num_workers in (0, 3) else {"features": ["index", "action", "task", "said"]}
    windows = {} if not cheap else {"delta_timestamps": {"action": [-0.1, 0.0, 0.3]}}
    assert_same_batches(stream(directory, **cheap, **windows), batch_size, num_workers)


@pytest.mark.parametrize("shard", [0, 2])
def test_shards_and_a_remainder_that_is_dropped(directory: Path, shard: int) -> None:
    options = grain.sharding.ShardOptions(shard, 3, drop_remainder=True)
    dataset = stream(directory, features=["index"], delta_timestamps=None, shard_options=options)
    assert_same_batches(dataset, 4, 2, drop_remainder=True)


def test_a_mixture(directory: Path) -> None:
    # Language has another number of messages in each example, which a mixture refuses.
    keys = ["index", "top", "still", "observation.note", "action", "task"]
    component = stream(directory, num_epochs=None, features=keys)
    mixture = lg.MixtureIterDataset(
        {"a": component, "b": component}, {"a": 3, "b": 1}, num_examples=50
    )
    assert_same_batches(mixture, 8, 3)


def test_a_mixture_with_maps_stays_by_example(directory: Path) -> None:
    component = stream(directory, features=["index", "task"], delta_timestamps=None)
    mixture = lg.MixtureIterDataset(
        {
            name: lg.LeRobotIterDataset(component.repository, features=["index"]).map(dict)
            for name in "ab"
        },
        num_examples=20,
    )
    batches = lg.WorkerPrefetchIterDataset(mixture, num_workers=2).batch(8)
    assert not isinstance(batches, BatchIterDataset)
    with contextlib.closing(iter(batches)) as found, contextlib.closing(iter(mixture)) as alone:
        rows = [int(example["index"]) for example in alone]
        assert [row for batch in found for row in batch["index"].tolist()] == rows


def rows_of(batches: Iterator[Any], count: int) -> list[list[int]]:
    return [next(batches)["index"].tolist() for _ in range(count)]


def test_a_state_after_any_batch_restores_with_any_number_of_workers(directory: Path) -> None:
    dataset = stream(directory, features=["index"], delta_timestamps=None, num_epochs=None)
    with contextlib.closing(iter(dataset.batch(6))) as alone:
        straight = list(itertools.chain(*rows_of(alone, 30)))
    state: Any = None
    found: list[int] = []
    # (workers, batch size, batches)
    for num_workers, batch_size, count in [(2, 7, 3), (3, 5, 4), (0, 4, 2), (1, 70, 1), (5, 6, 5)]:
        batches = lg.WorkerPrefetchIterDataset(dataset, num_workers=num_workers).batch(batch_size)
        with contextlib.closing(iter(batches)) as iterator:
            if state is not None:
                iterator.set_state(state)
                assert iterator.get_state() == state
            found += list(itertools.chain(*rows_of(iterator, count)))
            state = json.loads(json.dumps(iterator.get_state()))
            # One that goes on, and back.
            ahead = rows_of(iterator, 2)
            iterator.set_state(state)
            assert rows_of(iterator, 2) == ahead
    assert found == straight[: len(found)]
    assert state["position"] == len(found)
    # A state of single examples, and back.
    singles = lg.WorkerPrefetchIterDataset(dataset, num_workers=2)
    with contextlib.closing(iter(singles)) as iterator:
        iterator.set_state(state)
        assert int(next(iterator)["index"]) == straight[len(found)]
        state = iterator.get_state()
    with contextlib.closing(iter(singles.batch(3))) as iterator:
        iterator.set_state(state)
        assert rows_of(iterator, 1) == [straight[len(found) + 1 :][:3]]


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_worker_that_is_killed_in_the_middle(directory: Path) -> None:
    dataset = stream(directory, num_epochs=None)
    with contextlib.closing(iter(dataset.batch(6))) as alone:
        straight = rows_of(alone, 30)
    batches = lg.WorkerPrefetchIterDataset(dataset, num_workers=2).batch(6)
    with contextlib.closing(iter(batches)) as iterator:
        found = rows_of(iterator, 2)
        victim = multiprocessing.active_children()[1]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="exit code -9"):
            found.extend(batch["index"].tolist() for batch in iterator)
        assert len(found) < 2 + 2 * 6 * 32 // 6 + 1, "what it held ready comes first"
        assert iterator.get_state()["position"] == 6 * len(found)
        found += rows_of(iterator, 30 - len(found)) if len(found) < 30 else []
        assert found[:30] == straight


class Asks:
    """Makes some requests wrong: until a file says that they were, or always."""

    def __init__(self, rows: tuple[int, ...], mark: Path | None) -> None:
        self.rows, self.mark = rows, mark

    def __call__(self, request: WindowRequest) -> WindowRequest:
        if request.row in self.rows and not (self.mark and self.mark.exists()):
            return WindowRequest(request.row, request.episode, 10_000 + request.row, {}, {})
        return request


def failing(
    directory: Path, rows: tuple[int, ...], mark: Path | None, num_workers: int
) -> lg.WorkerPrefetchIterDataset[Any]:
    repository = lg.open_repository(directory)
    requests = (
        lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=2)
        .map(lg.DeltaTimestamps(repository))
        .map(Asks(rows, mark))
    )
    read = lg.ReadWindowsIterDataset(requests, repository, features=["index", "task"])
    return lg.WorkerPrefetchIterDataset(read, num_workers=num_workers)


# Without workers the first one, the last of a batch, in the middle of one, two of them, and the
# last of an epoch; with workers some of them; the whole table is `long`.
ALWAYS_FAILING = {(2, (0,)), (2, (10, 11)), (3, (39,))}


@pytest.mark.parametrize(
    ("num_workers", "rows"),
    table(
        itertools.product((0, 2, 3), ((0,), (7,), (8,), (9,), (10, 11), (11, 14), (39,))),
        lambda case: case[0] == 0 or case in ALWAYS_FAILING,
    ),
)
def test_an_example_that_fails_in_the_middle_of_a_batch(
    directory: Path,
    tmp_path: Path,
    num_workers: int,
    rows: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "_MIN_PIECE", 3)
    mark = tmp_path / "mark"
    with contextlib.closing(iter(failing(directory, rows, mark, num_workers).batch(4))) as batches:
        found: list[list[int]] = []
        with pytest.raises(lg.InvalidRequestError, match=rf"frame is \[{10_000 + rows[0]}\]"):
            found.extend(batch["index"].tolist() for batch in batches)
        assert found == [list(range(start, start + 4)) for start in range(0, rows[0] - 3, 4)]
        # Again and again, and nothing is lost.
        with pytest.raises(lg.InvalidRequestError, match=f"{10_000 + rows[0]}"):
            next(batches)
        assert batches.get_state()["position"] == 4 * len(found)
        mark.touch()
        found += [batch["index"].tolist() for batch in batches]
    assert list(itertools.chain(*found)) == [*range(NUM_ROWS)] * 2


def test_rows_that_are_dropped_are_refused(directory: Path) -> None:
    repository = lg.open_repository(directory)
    requests = (
        lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=1)
        .map(lg.DeltaTimestamps(repository))
        .filter(lambda request: request.row % 7 != 3)
    )
    read = lg.ReadWindowsIterDataset(requests, repository, features=["index"])
    batches = lg.WorkerPrefetchIterDataset(read, num_workers=0).batch(4)
    with (
        contextlib.closing(iter(batches)) as iterator,
        pytest.raises(lg.InvalidRequestError, match=r"took 2 rows; expected one example for"),
    ):
        list(iterator)


def test_examples_after_a_row_that_was_dropped_are_not_handed_out_in_its_place(
    directory: Path,
) -> None:
    repository = lg.open_repository(directory)
    requests = (
        lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=1)
        .map(lg.DeltaTimestamps(repository))
        .filter(lambda request: request.row != 3)
    )
    read = lg.ReadWindowsIterDataset(requests, repository, features=["index"])
    batches = lg.WorkerPrefetchIterDataset(read, num_workers=0).batch(3)
    with contextlib.closing(iter(batches)) as iterator:
        assert next(iterator)["index"].tolist() == [0, 1, 2]
        with pytest.raises(lg.InvalidRequestError, match=r"took 2 rows; expected one example for"):
            next(iterator)


def test_a_map_stays_by_example(directory: Path) -> None:
    dataset = stream(directory, features=["index"], delta_timestamps=None).map(dict)
    batches = lg.WorkerPrefetchIterDataset(dataset, num_workers=2).batch(8)
    assert not isinstance(batches, BatchIterDataset)
    with contextlib.closing(iter(batches)) as found, contextlib.closing(iter(dataset)) as alone:
        rows = [int(example["index"]) for example in alone]
        assert [row for batch in found for row in batch["index"].tolist()] == rows
    whole = lg.WorkerPrefetchIterDataset(stream(directory), num_workers=2)
    assert not isinstance(whole.batch(8, batch_fn=list), BatchIterDataset)
    with pytest.raises(lg.InvalidRequestError, match=r"batch\(batch_size=0\): expected an int >="):
        whole.batch(0)


# --- memory --------------------------------------------------------------------------------------


def test_pieces_of_large_examples_are_small(directory: Path) -> None:
    for size, batch_size, expected in [
        ((8, 8), 64, 32),
        ((8, 8), 200, 100),
        ((480, 640), 64, 4),
        ((2000, 2000), 64, 1),
    ]:
        dataset = stream(directory, image_size=size)
        with contextlib.closing(
            iter(lg.WorkerPrefetchIterDataset(dataset, num_workers=2))
        ) as iterator:
            assert iterator._piece_size(batch_size) == expected


def test_a_round_is_let_go_before_the_next_one() -> None:
    sent: list[weakref.ref[Any]] = []

    def pieces() -> Iterator[Piece]:
        for number in range(12):
            rows = number % 2 + 2 * np.arange(4) + 8 * (number // 2)
            piece = Piece(int(rows[0]), (packed({"index": rows}),), None)
            assert sum(memory() is not None for memory in sent) <= 1, "those of this round only"
            sent.append(weakref.ref(piece.parts[0].small))
            yield piece
            del piece

    rounds = Rounds(pieces(), num_workers=2, first=0, step=1, arrays=ArrayPool())
    found = [rounds.take(5)["index"].tolist() for _ in range(9)]
    assert list(itertools.chain(*found)) == list(range(45))


def test_what_goes_through_the_pipe_is_small() -> None:
    batch = {
        "task": ["pick"] * 32,
        **{f"{number}": np.full((32, 50, 7), number, np.float32) for number in range(20)},
        "empty": np.zeros((32, 0)),
        "top": np.zeros((32, 32, 80, 3), np.uint8),
        "said": np.array([["a"], ["b", "c"]] * 16, object),
        "mask": np.ones((32, 3), np.bool_),
    }
    found = packed(batch)
    assert list(found.values) == ["task", "top", "said"]
    in_pipe = [
        value
        for value in (*found.values.values(), found.small)
        if not (isinstance(value, np.ndarray) and value.nbytes >= MIN_SHARED_BYTES)
    ]
    assert len(pickle.dumps(in_pipe)) < 1000
    again = unpacked(pickle.loads(pickle.dumps(found)))
    assert list(again) == list(batch)
    for key, value in batch.items():
        assert type(again[key]) is type(value)
        assert np.array_equal(again[key], value)
        assert getattr(again[key], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("length", [0, 1, 7, 12, 13, 24, 25])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_rounds_are_the_order_of_one_process(num_workers: int, length: int, count: int) -> None:
    """Against the definition: example k is that of worker k % n."""
    own = [list(range(worker, length, num_workers)) for worker in range(num_workers)]
    pieces = [
        Piece(each[start], (packed({"index": np.array(each[start : start + 4])}),), None)
        for start in range(0, length, 4)
        for each in own
        if each[start : start + 4]
    ]
    rounds = Rounds(iter(pieces), num_workers=num_workers, first=0, step=1, arrays=ArrayPool())
    found: list[int] = []
    with contextlib.suppress(StopIteration):
        while True:
            batch = rounds.take(count)
            assert num_examples(batch) == min(count, length - len(found))
            found += batch["index"].tolist()
    assert found == list(range(length))


def _fails(at: int, length: int, num_workers: int) -> Callable[[], Iterator[Piece]]:
    def pieces() -> Iterator[Piece]:
        for start in range(0, length, 4):
            for worker in range(num_workers):
                each = list(range(worker, length, num_workers))[start : start + 4]
                if at not in each:
                    yield Piece(each[0], (packed({"index": np.array(each)}),), None)
                    continue
                error = lg.StorageError(f"at {at}")
                if each[0] == at:
                    raise error
                before = each[: each.index(at)]
                yield Piece(each[0], (packed({"index": np.array(before)}),), error)

    return pieces


@pytest.mark.parametrize("at", range(16))
def test_an_error_comes_at_its_example(at: int) -> None:
    rounds = Rounds(_fails(at, 24, 3)(), num_workers=3, first=0, step=1, arrays=ArrayPool())
    found: list[int] = []
    with pytest.raises(lg.StorageError, match=f"at {at}"):
        found.extend(rounds.take(1)["index"].item() for _ in range(24))
    assert found == list(range(at))
