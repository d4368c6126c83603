"""Pools of daemon threads; their end with the program: `tests/promises/test_exit`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from lerobot_grain._reading.daemon_pool import DaemonPool


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
