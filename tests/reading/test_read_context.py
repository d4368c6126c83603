"""Streams that share memory and threads (`ReadOptions.shared_by`), and the budget of one."""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._reading.daemon_pool import DaemonPool, PoolShare
from lerobot_grain._reading.options import MemoryBudget
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain.testing import Fault, LoopbackHub
from tests.support.streams import write_small

# Threads: connections, decoders, and as many that copy.
CONNECTIONS = 3
DECODERS = 2
STORAGE = lg.StorageOptions(num_connections=CONNECTIONS)
SHARED = lg.ReadOptions(shared_by=3, num_decode_threads=DECODERS, storage=STORAGE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("shared") / "data")


def opened(path: Any, seed: int, options: lg.ReadOptions, **arguments: Any) -> Any:
    dataset = lg.LeRobotIterDataset(
        path,
        shuffle=lg.Shuffle(seed=seed, num_parts=2, buffer_size=8),
        delta_timestamps={"top": [-0.1, 0.0]},
        read_options=options,
        **arguments,
    )
    return iter(dataset)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def our_threads() -> set[threading.Thread]:
    return {
        each
        for each in threading.enumerate()
        if each.name.startswith(tuple(f"lerobot_grain {pool}" for pool in POOLS))
    }


POOLS = ("fetch", "decode", "copy")


def test_streams_that_share_threads_read_what_each_reads_alone(small: Path) -> None:
    before = our_threads()
    alone = [list(opened(small, seed, lg.ReadOptions(), num_epochs=2)) for seed in range(3)]
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(contextlib.closing(opened(small, seed, SHARED, num_epochs=2)))
            for seed in range(3)
        ]
        for expected in zip(*alone, strict=True):
            for stream, one in zip(streams, expected, strict=True):
                found = next(stream)
                assert found.keys() == one.keys()
                assert all(np.array_equal(found[key], one[key]) for key in one)
            # Those of one stream, however many there are.
            assert len(our_threads() - before) <= CONNECTIONS + 2 * DECODERS
        assert all(next(stream, None) is None for stream in streams)


def test_a_stream_goes_on_when_another_one_is_closed(small: Path) -> None:
    expected = [int(example["index"]) for example in opened(small, 1, SHARED, num_epochs=1)]
    with contextlib.closing(opened(small, 1, SHARED, num_epochs=1)) as stream:
        found = [int(next(stream)["index"])]
        for _ in expected[1:]:
            with contextlib.closing(opened(small, 0, SHARED)) as other:
                next(other)
            found.append(int(next(stream)["index"]))
    assert found == expected


def test_the_threads_end_with_the_last_stream(small: Path) -> None:
    before = our_threads()
    first = opened(small, 0, SHARED)
    second = opened(small, 1, SHARED)
    next(first)
    next(second)
    shared = our_threads() - before
    assert shared
    first.close()
    assert all(thread.is_alive() for thread in shared)
    second.close()
    for thread in shared:
        thread.join(timeout=30)
    assert not our_threads() & shared


def test_close_ends_the_requests_of_its_stream_alone(
    hub: LoopbackHub, small: Path, tmp_path: Path
) -> None:
    hub.add_repository("shared/stalled", small, tags=["v3.0"])
    # A request that stalls would be waited for a minute.
    storage = replace(STORAGE, read_timeout_seconds=60, deadline_seconds=120)
    options = replace(SHARED, storage=storage)
    arguments = {"endpoint": hub.endpoint, "cache_dir": str(tmp_path / "cache")}
    stalled = opened("shared/stalled", 0, options, **arguments)
    with contextlib.closing(opened(small, 1, options)) as stream, ThreadPoolExecutor(1) as pool:
        next(stream)
        hub.clear_requests()  # those of other tests, which may have met a fault
        hub.add_fault(Fault(origin="cdn", path_regex="^videos/", times=None, stall_at=0))
        try:
            reading = pool.submit(next, stalled)
            wait_for(lambda: any(record.faulted for record in hub.requests()))
            begun = time.monotonic()
            stalled.end_reading()
            with pytest.raises(lg.StorageError):
                reading.result(timeout=30)
            stalled.close()
            assert time.monotonic() - begun < 30
        finally:
            hub.clear_faults()
        for _ in range(40):
            next(stream)


def test_each_stream_has_its_part_of_the_memory() -> None:
    for shared_by, part in ((1, 1 << 30), (2, 1 << 29), (3, (1 << 30) // 3)):
        context = ReadContext(
            lg.ReadOptions(memory_budget_bytes=1 << 30, shared_by=shared_by), num_cameras=2
        )
        context.close()
        assert context.budget == MemoryBudget.of(part, num_cameras=2)


def test_a_budget_that_is_too_small_is_said_with_that_of_all_streams(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = ReadContext(
        lg.ReadOptions(memory_budget_bytes=200 << 20, num_decode_threads=64, shared_by=2),
        num_cameras=1,
    )
    for _ in range(100):
        context.note_shortage(70 << 20)
    context.close()
    (said,) = (record.getMessage() for record in caplog.records)
    assert "the memory budget of 200 MiB does not keep 64 decode threads busy" in said
    assert "memory_budget_bytes=384 << 20" in said


def test_the_budget_that_an_error_asks_for_is_enough(small: Path) -> None:
    with (
        contextlib.closing(
            opened(small, 0, lg.ReadOptions(memory_budget_bytes=3000, shared_by=3))
        ) as stream,
        pytest.raises(lg.InvalidRequestError, match=r"memory_budget_bytes=3000") as raised,
    ):
        next(stream)
    least = int(str(raised.value).rpartition(" ")[2])
    options = lg.ReadOptions(memory_budget_bytes=least, shared_by=3)
    with contextlib.closing(opened(small, 0, options)) as stream:
        next(stream)


def test_a_share_is_closed_in_its_own_thread_and_waits_for_what_waits_for_a_result() -> None:
    pool = DaemonPool(1, "lerobot_grain test")
    share = PoolShare(pool, lambda: None)
    assert share.submit(share.shutdown).result(timeout=30) is None
    other = PoolShare(pool, lambda: None)
    begun = threading.Event()
    may_end = threading.Event()
    called: list[int] = []

    def run() -> None:
        begun.set()
        may_end.wait(30)

    def be_called(_: object) -> None:
        time.sleep(0.2)
        called.append(1)

    other.submit(run).add_done_callback(be_called)
    waiting = other.submit(list, [0])
    begun.wait(30)
    threading.Timer(0.1, may_end.set).start()
    other.shutdown(wait=True, cancel_futures=True)
    assert waiting.cancelled()
    assert called == [1]
    with pytest.raises(lg.StorageError, match="closed while it was in use"):
        other.submit(list)
    pool.shutdown()


def test_options_that_are_shared_pickle() -> None:
    assert pickle.loads(pickle.dumps(SHARED)) == SHARED


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_number_of_streams_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(lg.InvalidRequestError, match="shared_by"):
        lg.ReadOptions(shared_by=value)
