"""Processes that are forked from one which has imported the large libraries, for the tests that
start many.

A new interpreter takes 1.5 s of a core to import JAX and Grain, 5 s with PyTorch, and that is the
same at every start. A process forked here is there after 20 ms, with all of them and our package
imported. It has nothing else of the test's process: no thread, no connection, no open dataset. Its
task is pickled for it, as for one that is spawned; its environment is the test's, and
huggingface_hub reads its settings in it again.

It does not show how the large libraries behave when they are imported in a new process, nor
another seed of `hash` in every process (it is the server's in all of them, which is not the
test's). If that matters, processes are started as usual.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import context, forkserver, resource_tracker, shared_memory
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import jax
import pytest
from grain._src.python.dataset.transformations import process_prefetch
from huggingface_hub import constants

_T = TypeVar("_T")

# Where the server of this run of pytest listens.
_SERVER = "LEROBOT_GRAIN_TESTS_FORK_SERVER"
# The names of shared memory that a forked process makes begin with the value of this variable.
SHARED_MEMORY_PREFIX = "LEROBOT_GRAIN_TESTS_SHARED_MEMORY"
# A call of `call_forked` that takes longer hangs.
_CALL_SECONDS = 100.0
_WHAT_TO_DO = ("_target", "_args", "_kwargs")


class _Process(context.ForkServerProcess):
    """Has the environment that is given, or that of its parent, as one that is spawned; otherwise
    it were the server's.
    """

    def __init__(
        self, *args: Any, environment: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ if environment is None else environment)

    def __getstate__(self) -> dict[str, Any]:
        # A pickle inside of the pickle: to read it imports modules, which may ask for the
        # environment.
        what_to_do = {name: vars(self)[name] for name in _WHAT_TO_DO}
        return {
            **vars(self),
            **dict.fromkeys(_WHAT_TO_DO),
            "_packed": bytes(ForkingPickler.dumps(what_to_do)),
        }

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        # The server read the settings of its own environment.
        importlib.reload(constants)
        if compiled := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", compiled)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if prefix := os.environ.get(SHARED_MEMORY_PREFIX):
            vars(shared_memory)["_SHM_NAME_PREFIX"] = prefix
        vars(self).update(ForkingPickler.loads(vars(self).pop("_packed")))
        super().run()


class _Context(context.ForkServerContext):
    Process = _Process


@functools.cache
def forking() -> _Context:
    """Returns what starts processes, as `multiprocessing.get_context` does.

    Its server ends with this process, unless it is one that `offer_forking` has started.
    """
    made = _Context()
    made.set_forkserver_preload(["tests.support.fork_server"])
    if address := os.environ.get(_SERVER):
        server: Any = forkserver._forkserver
        server._forkserver_address = address
        # The server of another process is not to be kept running by this one, nor started again.
        server._forkserver_alive_fd, _ = os.pipe()
        server.ensure_running = resource_tracker.ensure_running
    return made


def offer_forking() -> None:
    """Starts a server for this process and all that it starts, so that the libraries are imported
    once for all processes of pytest-xdist: 6 s of a core.

    From Python 3.14 on a server wants a key that only the process has that started it, so there
    each of pytest's processes starts its own.
    """
    if sys.version_info >= (3, 14):
        return
    forking()
    forkserver.ensure_running()
    server: Any = forkserver._forkserver
    os.environ[_SERVER] = server._forkserver_address


def call_forked(
    call: Callable[..., _T], *arguments: Any, environment: Mapping[str, str] | None = None
) -> _T:
    """Returns what a function of a module returns in a forked process, which has ended then.

    Args:
      call: gets `arguments`, which are pickled for it.
      environment: of the process, in place of this one's.
    """
    ours, theirs = forking().Pipe()
    process = forking().Process(
        target=_send, args=(theirs, call, arguments), environment=environment, daemon=True
    )
    process.start()
    theirs.close()
    with ours:
        assert ours.poll(_CALL_SECONDS), "the process gave no answer"
        found: _T = ours.recv()
    process.join(timeout=30)
    assert process.exitcode == 0
    return found


def _send(test: Connection, call: Callable[..., Any], arguments: Sequence[Any]) -> None:
    test.send(call(*arguments))


class ForkingMultiprocessing:
    """Stands in the place of the module `multiprocessing` where that is asked for processes that
    are spawned.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str) -> _Context:
        assert method == "spawn"
        return forking()


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grain's workers are forked from now on, not spawned."""
    monkeypatch.setattr(process_prefetch, "mp", ForkingMultiprocessing())


class ForkedScript:
    """A Python script in a forked process, in the place of `subprocess.Popen([sys.executable,
    script, *arguments], env=environment)`.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str]) -> None:
        assert command[0] == sys.executable
        self._process = forking().Process(
            target=_run_script, args=(list(command[1:]),), environment=env, daemon=True
        )
        self._process.start()

    def __enter__(self) -> ForkedScript:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run_script(argv: list[str]) -> None:
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")
