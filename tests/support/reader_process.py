"""Reader servers as processes of their own, which can be killed."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

import grain

import lerobot_grain as lg
from tests.support.forked import forking

_START_SECONDS = 60


class ReaderProcess:
    """A process with a `ReaderServer` of a dataset.

    Attributes:
      url: of the server; the same again after `start`.
    """

    def __init__(self, dataset: grain.IterDataset[Any], **arguments: Any) -> None:
        self._dataset = dataset
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Starts it, on the port that it had before."""
        ours, theirs = forking().Pipe()
        self._process = forking().Process(
            target=_serve, args=(theirs, self._dataset, self._arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        with ours:
            assert ours.poll(_START_SECONDS)
            self.url, port = ours.recv()
        self._arguments["port"] = port

    def kill(self) -> None:
        """Kills it, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _serve(test: Connection, dataset: grain.IterDataset[Any], arguments: dict[str, Any]) -> None:
    with lg.ReaderServer(dataset, **arguments) as server:
        test.send((server.url, server.port))
        server.wait()
