"""Pools of daemon threads; their end with the program: `tests/promises/test_exit`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from lerobot_grain._reading.daemon_pool import DaemonPool, PoolShare


@pytest.mark.parametrize("fails", [True, False])
def test_an_error_drops_the_tasks_that_wait(fails: bool) -> None:
    """An error of the first of a thousand files comes at once, and not after all the others."""
    are_submitted = threading.Event()
    last: list[Future[Any]] = []
    ran: list[str] = []

    def first() -> None:
        are_submitted.wait()
        if fails:
            raise ZeroDivisionError

    def second() -> None:
        gives_up_at = time.monotonic() + 5
        while fails and not last[0].cancelled() and time.monotonic() < gives_up_at:
            time.sleep(0.001)

    def use() -> None:
        with DaemonPool(1, "test") as pool:
            tasks = [pool.submit(first), pool.submit(second)]
            last.append(pool.submit(ran.append, "last"))
            are_submitted.set()
            for task in tasks:
                task.result()

    if fails:
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()
    assert ran == ([] if fails else ["last"])


@pytest.mark.parametrize("shared", [False, True])
def test_a_task_that_ends_a_pool_waits_for_no_other_task(shared: bool) -> None:
    """As the garbage collector does, where it closes an iterator in the middle of a task that holds
    the lock of a cache on disk.
    """
    lock = threading.Lock()
    is_waiting = threading.Event()
    ending = DaemonPool(1, "test ended")
    other: Executor = PoolShare(ending, lambda: None) if shared else ending

    def wait_for_the_lock() -> None:
        is_waiting.set()
        with lock:
            pass

    def end_the_other() -> None:
        with lock:
            waits = other.submit(wait_for_the_lock)
            assert is_waiting.wait(20)
            other.shutdown(wait=True)
            assert not waits.done()

    pool = DaemonPool(1, "test")
    pool.submit(end_the_other).result(10)
    for each in (pool, ending):
        each.shutdown()
