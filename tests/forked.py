"""Processes that are forked from one which has imported everything, for the tests that start many.

A new interpreter takes 1.5 s of a core to import JAX and Grain and 5 s with PyTorch, and that is the same at every start. A process forked
here takes 20 ms. It has nothing else of the test's process: no thread, no connection, no open data set; what it is to do is pickled for it,
as for one that is spawned; its environment is that of the test.

What it does not show: imports in a new process, variables that are read at an import, and another seed of `hash` in every process (it is
the server's in all of them, which is not the test's). Where that matters, processes are started as usual.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from multiprocessing import context
from typing import Any

# `torchcodec.decoders` last: the others alone are enough for most, but a server imports only once.
_IMPORTED_BEFORE_FORKING = ["grain", "jax.experimental.multihost_utils", "lerobot_grain.testing", "orbax.checkpoint", "torchcodec.decoders"]


class _Process(context.ForkServerProcess):
    """Has the environment that its parent has when it makes the process, as one that is spawned; otherwise it were the server's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(context.ForkServerContext):
    Process = _Process


@functools.cache
def forking() -> _Context:
    """Returns what starts processes, as `multiprocessing.get_context` does. Its server ends with this process."""
    made = _Context()
    made.set_forkserver_preload(_IMPORTED_BEFORE_FORKING)
    return made


class ForkingMultiprocessing:
    """What Grain is to see in the place of the module `multiprocessing`: its workers are forked, not spawned."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str) -> _Context:
        assert method == "spawn"
        return forking()
