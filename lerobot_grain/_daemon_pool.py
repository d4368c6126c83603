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

    There is no lock: an exception of a signal handler that strikes while one is released would leave it locked for ever.

    Args:
      max_threads: at most so many.
      name: of the threads.
      start_thread: what each begins with.
    """

    def __init__(self, max_threads: int, name: str, start_thread: Callable[[], None] | None = None) -> None:
        self._name, self._start_thread = name, start_thread
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # One for each thread that waits for a task, and the numbers of those that may still be started.
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._unstarted: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(max_threads):
            self._unstarted.put(number)
        self._threads: list[threading.Thread] = []
        self._is_shut = False
        # A pool that is forgotten ends its threads.
        self._finalizer = weakref.finalize(self, self._tasks.put, None)
        self._finalizer.atexit = False

    def submit(self, call: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[_T] = Future()
        self._tasks.put(_Task(future, lambda: call(*args, **kwargs)))
        try:
            self._idle.get_nowait()
        except queue.Empty:
            with contextlib.suppress(queue.Empty):
                self._start(self._unstarted.get_nowait())
        if self._is_shut:  # by another thread, which may not have seen the task
            future.cancel()
        return future

    def _start(self, number: int) -> None:
        arguments = (self._tasks, self._idle, self._start_thread)
        thread = threading.Thread(target=_work, args=arguments, daemon=True, name=f"{self._name}_{number}")
        thread.start()
        self._threads.append(thread)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    if (task := self._tasks.get_nowait()) is not None:
                        task.future.cancel()
        self._finalizer.detach()
        self._tasks.put(None)
        if wait:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()


def _work(tasks: queue.SimpleQueue[_Task | None], idle: queue.SimpleQueue[None], start_thread: Callable[[], None] | None) -> None:
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
        idle.put(None)
    tasks.put(None)  # for the next thread


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
