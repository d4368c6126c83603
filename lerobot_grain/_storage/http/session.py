"""The requests of one process to one dataset."""

from __future__ import annotations

import weakref

from lerobot_grain._storage.http.client import HttpClient
from lerobot_grain._storage.options import StorageOptions, StorageStatistics


class Session:
    """A client that is closed with it. Base class of the sessions of the Hub and of object stores.

    Args:
      options: how bytes are read.
    """

    def __init__(self, options: StorageOptions) -> None:
        self._client = HttpClient(options)
        # A session that is simply forgotten closes its sockets too. Not at exit, where a forked
        # child would run what its parent set up.
        self._finalizer = weakref.finalize(self, self._client.close)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Ends its requests and closes its connections."""
        self._finalizer()

    def statistics(self) -> StorageStatistics:
        """Returns what it has read so far."""
        return self._client.counters.snapshot()
