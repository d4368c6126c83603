"""What the server of `forked.py` does before it forks: it imports the large libraries, once, when
the first process is asked for.

It imports this module alone at its start. So a run of few tests that need none costs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import socket
from multiprocessing import reduction

_LIBRARIES = [
    *(
        "av",
        "flax.nnx",
        "grain",
        "httpx2",
        "jax.experimental.multihost_utils",
        "optax",
        "orbax.checkpoint",
        "PIL.Image",
    ),
    *("pyarrow.dataset", "pyarrow.parquet", "pytest", "torchcodec.decoders"),
    # Where it is installed; it imports much. (What cannot be imported is left out.)
    "maxtext.common.checkpointing",
    *("lerobot_grain", "lerobot_grain.testing", "tests.support.frozen"),
]


@functools.cache
def _import_libraries() -> None:
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _receive(sock: socket.socket, size: int) -> list[int]:
    """As `reduction.recvfds`, which the server calls for each process that is asked for. (A hook of
    `os.register_at_fork` comes too late: the libraries have such hooks, too.)
    """
    _import_libraries()
    return _RECEIVE(sock, size)


_RECEIVE = reduction.recvfds
reduction.recvfds = _receive
