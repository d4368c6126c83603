"""Threads that do not keep a program from ending.

`concurrent.futures.ThreadPoolExecutor` waits for all its threads at the end of the program, also for one that waits for a server, or in the
pause of a rate limit. The threads here are daemons: the program ends with its own status, whatever a server does.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeVar

from lerobot_grain._request_scope import end_all

_T = TypeVar("_T")

# What is being computed at the end of the program, such as a few frames that are decoded, may end. It takes tenths of a second.
_EXIT_SECONDS = 1.0


class _Task(NamedTuple):
    future: Future[Any]
    call: Callable[[], Any]


class DaemonPool(Executor):
    """Runs calls in threads, which are started when they are needed.

    Args:
      max_threads: at most so many.
      name: of the threads.
      start_thread: what each begins with.
    """

    def __init__(self, max_threads: int, name: str, start_thread: Callable[[], None] | None = None) -> None:
        self._max_threads, self._name, self._start_thread = max_threads, name, start_thread
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._is_shut = False
        # A pool that is forgotten ends its threads.
        self._finalizer = weakref.finalize(self, _dismiss, self._tasks, self._threads)
        self._finalizer.atexit = False

    def submit(self, call: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        future: Future[_T] = Future()
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.put(_Task(future, lambda: call(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_threads:
                arguments = (self._tasks, self._idle, self._start_thread)
                thread = threading.Thread(target=_work, args=arguments, daemon=True, name=f"{self._name}_{len(self._threads)}")
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            was_shut, self._is_shut = self._is_shut, True
            if cancel_futures:
                with contextlib.suppress(queue.Empty):
                    while True:
                        if (task := self._tasks.get_nowait()) is not None:
                            task.future.cancel()
            if not was_shut or cancel_futures:
                self._finalizer.detach()
                _dismiss(self._tasks, self._threads)
        if wait:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()


def _dismiss(tasks: queue.SimpleQueue[_Task | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)


def _work(tasks: queue.SimpleQueue[_Task | None], idle: threading.Semaphore, start_thread: Callable[[], None] | None) -> None:
    if start_thread is not None:
        start_thread()
    while (task := tasks.get()) is not None:
        if task.future.set_running_or_notify_cancel():
            _busy.add(task)
            try:
                result = task.call()
            except BaseException as error:
                task.future.set_exception(error)
            else:
                task.future.set_result(result)
                del result
            finally:
                _busy.discard(task)
        del task
        idle.release()


# Tasks that are run now, in all pools.
_busy: set[_Task] = set()


def _let_tasks_end() -> None:
    end_all()
    gives_up_at = time.monotonic() + _EXIT_SECONDS
    while _busy and time.monotonic() < gives_up_at:
        time.sleep(0.01)


atexit.register(_let_tasks_end)
# Before threads of others are waited for, in which an iterator of ours may be read: as concurrent.futures does it, where that is there.
getattr(threading, "_register_atexit", atexit.register)(end_all)
