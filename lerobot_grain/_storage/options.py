"""The options and the counters of reading bytes: the values that a user gives to a storage and gets
from it.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import NamedTuple

from lerobot_grain._base.errors import InvalidRequestError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """Options of reading bytes.

    Attributes:
      num_connections: requests under way at the same time, for each dataset and process.
      merge_gap_bytes: two ranges of one call are read in one request when at most this many bytes
        lie between them. About latency x bandwidth of one connection; 256 KiB made a prototype 2.8
        times faster at 50 ms, for 2.8 times the bytes at worst. Small episodes and row groups that
        begin within so many bytes are fetched together, before each of them is needed.
      merge_max_bytes: no request becomes longer than this by merging.
      connect_timeout_seconds: until a connection stands.
      read_timeout_seconds: until the next bytes of an answer arrive. Less for the first attempts
        (ten times what answers usually take, then a fourth of it and a half): then it is more
        likely that a connection is dead than that a server is slow.
      deadline_seconds: for one request with all its further attempts, and once more for every 8 MiB
        of it. Catches a server that sends a byte now and then. Waiting for a connection or for the
        end of a rate limit does not count.
      max_attempts: how often one request is sent before it counts as failed.
      pause_seconds: between the first two attempts, times 0.5 to 1.5; doubled for each further one,
        up to 8 seconds.
      disk_cache_bytes: what may be kept on disk from one epoch and one run to the next, so that it
        is not fetched again: coded video, rows, and the indices of their files. For all datasets
        together, on the disk that holds the cache of huggingface_hub. If it is less than what is
        read, a fixed share is kept. 0 keeps nothing. Nothing of a directory or of a bucket of the
        Hub is kept.
    """

    num_connections: int = 32
    merge_gap_bytes: int = 256 * 1024
    merge_max_bytes: int = 4 * 1024 * 1024
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 20.0
    deadline_seconds: float = 120.0
    max_attempts: int = 6
    pause_seconds: float = 0.25
    disk_cache_bytes: int = 16 << 30

    @property
    def cost_bytes(self) -> int:
        """The cost of a request in bytes: data that is needed sooner or later is fetched together
        in pieces of this size.
        """
        return max(1, min(self.merge_gap_bytes, self.merge_max_bytes // 2))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            allowed = isinstance(value, int if whole else (int, float)) and not isinstance(
                value, bool
            )
            smallest = 0 if field.name.startswith(("merge_", "disk_")) else 1 if whole else 0.001
            if not allowed or not smallest <= value < float("inf"):
                kind = "a whole number" if whole else "a number of seconds"
                raise InvalidRequestError(
                    f"{field.name}={value!r}: expected {kind} of at least {smallest}"
                )


class StorageStatistics(NamedTuple):
    """The reads of one process so far from one storage.

    Attributes:
      requests: HTTP requests sent (for a directory: reads of a file).
      bytes_received: bytes of contents and listings that arrived, with those of failed attempts and
        of the gaps between merged ranges.
      retries: attempts after the first.
      request_seconds: time inside requests, summed over threads.
      pause_seconds: time between attempts and after rate limits, summed over threads.
      bytes_from_disk_cache: bytes that were asked for and lay in the disk cache.
    """

    requests: int = 0
    bytes_received: int = 0
    retries: int = 0
    request_seconds: float = 0.0
    pause_seconds: float = 0.0
    bytes_from_disk_cache: int = 0


class Counters:
    """Adds up a `StorageStatistics`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = StorageStatistics()

    def add(self, more: StorageStatistics) -> None:
        with self._lock:
            now = self._sum
            self._sum = StorageStatistics(
                now.requests + more.requests,
                now.bytes_received + more.bytes_received,
                now.retries + more.retries,
                now.request_seconds + more.request_seconds,
                now.pause_seconds + more.pause_seconds,
                now.bytes_from_disk_cache + more.bytes_from_disk_cache,
            )

    def snapshot(self) -> StorageStatistics:
        return self._sum
