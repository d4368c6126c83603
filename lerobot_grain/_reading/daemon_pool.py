"""Threads that do not keep a program from ending.

`concurrent.futures.ThreadPoolExecutor` waits for all its threads at the end of the program, also
for one that waits for a server, or in the pause of a rate limit. The threads here are daemons: the
program ends with its own status, whatever a server does.

With 60 datasets in one process there are 180 pools, of which few have much to do at a time. So each
keeps one thread, and all others are counted together, and end when they have nothing to do.

The garbage collector may close an iterator in any thread, also in the middle of a task that holds
the lock of a cache on disk, for which other tasks wait. So a thread of a pool waits for none that
ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from lerobot_grain._base.errors import StorageError
from lerobot_grain._base.per_process import PerProcess
from lerobot_grain._base.permits import permits
from lerobot_grain._storage.http.cancellation import end_all

_T = TypeVar("_T")

# Tasks that run at the end of the program may end, for this long. Tasks that have not begun by then
# are dropped.
_EXIT_SECONDS = 2.0
# The same for calls into C++ (`holding_off_exit`). Each takes tenths of a second, but more on a
# machine that is overloaded.
_EXIT_SECONDS_IN_CPP = 60.0

# Threads of the process besides one of each pool: as many as there may be connections, or more
# where one pool is allowed more.
_MAX_SHARED = 128
# After this time without a task a thread ends. To start one takes a tenth of a millisecond.
_IDLE_SECONDS = 5.0

# Of threads that this process may still start.
_shared = PerProcess(lambda: permits(_MAX_SHARED))
# Has `is_of_pool` in the threads of pools.
_THREAD = threading.local()


class _PoolFuture(Future[_T]):
    """The result of a call, and what is to be known of its end: a thread also runs what waits for
    the result (`add_done_callback`), after that is there.

    Args:
      members: what it leaves when it has ended.

    Attributes:
      ended: gets an entry when the thread has nothing more to do with it.
      held: call, arguments and keyword arguments of a `PoolShare`, until it runs or is cancelled.
    """

    def __init__(self, members: set[_PoolFuture[Any]] | None = None) -> None:
        super().__init__()
        self._members = members
        self.ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.held: list[Any] = []

    def end(self) -> None:
        """Notes that it has ended."""
        if self._members is not None:
            self._members.discard(self)
        self.ended.put(None)


class _Task(NamedTuple):
    future: _PoolFuture[Any]
    call: Callable[[], Any]


class DaemonPool(Executor):
    """Runs calls in threads, which are started when they are needed.

    There is no lock: an exception of a signal handler that strikes while one is released would
    leave it locked forever. A task submitted after `shutdown`, by another thread than the one that
    closed, raises `StorageError`. As a context manager it waits for all tasks; where an exception
    leaves the block, those that have not begun are dropped.

    Args:
      max_threads: at most so many, and where other pools are busy fewer, but at least one.
      name: of the threads.
      start_thread: what each begins with.
    """

    def __init__(
        self, max_threads: int, name: str, start_thread: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._start_thread = start_thread
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # One for each thread that waits for a task, and the numbers of those that may still be
        # started.
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
        future: _PoolFuture[_T] = _PoolFuture()
        self.start(future, lambda: call(*args, **kwargs))
        return future

    def start(self, future: _PoolFuture[_T], call: Callable[[], _T]) -> None:
        """Runs a call for a future that was made for it.

        Raises:
          StorageError: this is shut.
        """
        if self._is_shut:
            raise StorageError("the reader was closed while it was in use")
        self._tasks.put(_Task(future, call))
        try:
            self._idle.get_nowait()
        except queue.Empty:
            self._start_another()
        if self._is_shut:  # by another thread, which may not have seen the task
            future.cancel()

    def _start_another(self) -> None:
        number = _claim(self._unstarted)
        if number is not None:
            arguments = (number, self._tasks, self._idle, self._unstarted, self._start_thread)
            thread = threading.Thread(
                target=_run, args=arguments, daemon=True, name=f"{self._name}_{number}"
            )
            thread.start()
            self._threads = [*(each for each in self._threads if each.is_alive()), thread]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    if (task := self._tasks.get_nowait()) is not None:
                        task.future.cancel()
        self._finalizer.detach()
        self._tasks.put(None)
        if wait and not _is_of_pool():
            for thread in self._threads:
                thread.join()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.shutdown(cancel_futures=exc_type is not None)


class PoolShare(Executor):
    """A stream's part of a pool that other streams use, too. `shutdown` ends the tasks of this
    stream and no thread.

    Args:
      pool: of all of them.
      start_task: what each task begins with.
    """

    def __init__(self, pool: DaemonPool, start_task: Callable[[], None]) -> None:
        self._pool: DaemonPool | None = pool  # until `shutdown`
        self._start_task = start_task
        self._futures: set[_PoolFuture[Any]] = set()

    def submit(self, call: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        pool = self._pool
        if pool is None:
            raise StorageError("the reader was closed while it was in use")
        future: _PoolFuture[_T] = _PoolFuture(self._futures)
        future.held = [call, args, kwargs]
        self._futures.add(future)
        pool.start(future, functools.partial(self._run, future.held))
        if self._pool is None:  # by another thread, which may not have seen the task
            future.cancel()
        return future

    def _run(self, held: list[Any]) -> Any:
        call, args, kwargs = held
        held.clear()
        self._start_task()
        return call(*args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool = None
        futures = list(self._futures)
        if cancel_futures:
            for future in [each for each in futures if each.cancel()]:
                # It lies in the queue of all streams, but what it holds goes now.
                future.held.clear()
                self._futures.discard(future)
                futures.remove(future)
        if wait and not _is_of_pool():
            for future in futures:
                future.ended.get()


def _is_of_pool() -> bool:
    """Returns whether this is a thread of a pool."""
    return getattr(_THREAD, "is_of_pool", False)


def _is_shared(number: int) -> bool:
    return 0 < number < _MAX_SHARED


def _claim(unstarted: queue.SimpleQueue[int]) -> int | None:
    """Returns the number of a thread that may be started; None where there may be no other one."""
    try:
        number = unstarted.get_nowait()
        if _is_shared(number):
            try:
                _shared().get_nowait()
            except queue.Empty:
                unstarted.put(number)
                return None
    except queue.Empty:
        return None
    return number


def _release(number: int, unstarted: queue.SimpleQueue[int]) -> None:
    if _is_shared(number):
        _shared().put(None)
    unstarted.put(number)


def _run(
    first_number: int,
    tasks: queue.SimpleQueue[_Task | None],
    idle: queue.SimpleQueue[None],
    unstarted: queue.SimpleQueue[int],
    start_thread: Callable[[], None] | None,
) -> None:
    """A thread of a pool.

    The first one of each stays, so that no task is ever left; another one ends when none comes for
    a while.
    """
    _THREAD.is_of_pool = True
    if start_thread is not None:
        start_thread()
    number: int | None = first_number
    while number is not None:
        try:
            task = tasks.get(timeout=_IDLE_SECONDS if number else None)
        except queue.Empty:
            with contextlib.suppress(queue.Empty):
                # else a task is coming that was put for this thread
                idle.get_nowait()
                _release(number, unstarted)
                # For a task that came meanwhile and found no thread.
                number = None if tasks.empty() else _claim(unstarted)
            continue
        if task is None:
            tasks.put(None)  # for the next thread
            _release(number, unstarted)
            return
        _work(task)
        del task
        idle.put(None)


def _work(task: _Task) -> None:
    _busy.add(task)  # first, so that at the end of the program it is either waited for or not begun
    try:
        if _is_ending.is_set():
            task.future.cancel()
        elif task.future.set_running_or_notify_cancel():
            try:
                result = task.call()
            except BaseException as error:
                task.future.set_exception(error)
            else:
                task.future.set_result(result)
    finally:
        _busy.discard(task)
        task.future.end()


# Tasks that are run now, in all pools; calls into C++ among them; and whether the program ends, so
# that none of either is begun.
_busy: set[_Task] = set()
_in_cpp: set[object] = set()
_is_ending = threading.Event()


@contextlib.contextmanager
def holding_off_exit() -> Iterator[None]:
    """The program does not end inside of this block: for calls into C++.

    Python ends a daemon thread at the moment when it comes back from such a call. In C++ that is an
    exception, which the decoder does not let through: the program is aborted. So what computes, and
    waits for no server, is waited for.

    Raises:
      StorageError: the program is ending; the block is not begun.
    """
    call = object()
    # first, so that at the end of the program it is either waited for or not begun
    _in_cpp.add(call)
    try:
        if _is_ending.is_set():
            raise StorageError("the program is ending")
        yield
    finally:
        _in_cpp.discard(call)


def _let_tasks_end() -> None:
    _is_ending.set()
    end_all()
    gives_up_at = time.monotonic() + _EXIT_SECONDS
    while _busy and time.monotonic() < gives_up_at:
        time.sleep(0.01)
    gives_up_at += _EXIT_SECONDS_IN_CPP
    while _in_cpp and time.monotonic() < gives_up_at:
        time.sleep(0.01)


atexit.register(_let_tasks_end)
# Before threads of others are waited for, in which an iterator of ours may be read: as
# concurrent.futures does it, where that is there.
getattr(threading, "_register_atexit", atexit.register)(end_all)
