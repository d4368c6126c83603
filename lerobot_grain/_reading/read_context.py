"""The parts that everything in a reader shares: memory, threads, requests (`ReadContext`), and for
each dataset the things that are read of it (`ReadSource`).

A stream has a context of its own, so closing one stream does not affect the others; the threads in
it may be those of several streams (`ReadOptions.shared_by`). A mixture has one context and a source
for each of its components.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.machine import memory_bytes, num_cores
from lerobot_grain._base.per_process import PerProcess
from lerobot_grain._reading.daemon_pool import DaemonPool, PoolShare
from lerobot_grain._reading.frame_cache.frame_cache import FrameCache
from lerobot_grain._reading.options import MemoryBudget, ReadOptions, default_budget_bytes
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import FeatureSelection
from lerobot_grain._storage.http.cancellation import CancelScope

_LOGGER = logging.getLogger("lerobot_grain")

# Threads that copy frames into batches: more would not be faster than memory.
_MAX_COPIERS = 4
# Up to so many threads, four blocks in large tasks are work enough for all.
_FEW_DECODERS = 4
# After so many times that threads had nothing to decode, since there was no memory for it, it is
# said that the budget is too small: once or twice happens at the start.
_TIMES_SHORT = 16
# Sizes that are proposed are multiples of this.
_PROPOSED_BYTES = 64 << 20


# Pools of several streams that are in use in this process, by name and number of threads.
_shared_pools = PerProcess[weakref.WeakValueDictionary[tuple[str, int], DaemonPool]](
    weakref.WeakValueDictionary
)


class ReadContext:
    """Memory, threads and requests of one stream. The pools are made and closed here.

    Args:
      options: memory and threads.
      num_cameras: of which videos are read, of all sources.

    Attributes:
      budget: of memory.
      requests: the requests of this stream.
      fetchers: where reading runs.
      decoders: where decoding runs, of videos and embedded images.
      num_decoders: threads of these.
      copiers: where frames are copied into batches.
      large_fetchers: where large row groups are read, once there are any.
      frame_cache: decoded frames on disk, where they are kept.
    """

    # Here, since at the end of a process the names of a module may be gone before its objects.
    _is_finalizing = staticmethod(sys.is_finalizing)

    def __init__(self, options: ReadOptions, *, num_cameras: int) -> None:
        self._options = options
        self.num_decoders = options.num_decode_threads or num_cores()
        own_bytes = max(1, self.shared_bytes // options.shared_by)
        self.budget = MemoryBudget.of(own_bytes, num_cameras=num_cameras)
        self.requests = CancelScope()
        self.fetchers = self._pool("fetch", options.storage.num_connections)
        # They seldom send a request: for what tells the order of rows in the row groups around one.
        self.decoders = self._pool("decode", self.num_decoders)
        self.copiers = self._pool("copy", min(_MAX_COPIERS, self.num_decoders))
        self.large_fetchers: DaemonPool | None = None
        self.frame_cache: FrameCache | None = None
        if options.frame_cache_bytes:
            self.frame_cache = FrameCache(
                options, self.budget, fetchers=self.fetchers, num_decoders=self.num_decoders
            )
        self._times_short = 0

    @property
    def shared_bytes(self) -> int:
        """The memory budget of all streams that have one together."""
        chosen = self._options.memory_budget_bytes
        return default_budget_bytes(self.num_decoders, memory_bytes()) if chosen is None else chosen

    def shared_bytes_for(self, frame_bytes: int) -> int:
        """Returns the least memory budget of which so many bytes are for camera frames of this
        stream.
        """
        return MemoryBudget.total_for(frame_bytes) * self._options.shared_by

    def _pool(self, name: str, num_threads: int) -> Executor:
        """Makes a pool, or takes part in that of other streams."""
        name = f"lerobot_grain {name}"
        if self._options.shared_by == 1:
            return DaemonPool(num_threads, name, self.requests.enter)
        pool = _shared_pools().setdefault((name, num_threads), DaemonPool(num_threads, name))
        return PoolShare(pool, self.requests.enter)

    @property
    def has_many_decoders(self) -> bool:
        """Whether there are so many that work has to be cut and queued for them."""
        return self.num_decoders > _FEW_DECODERS

    def note_shortage(self, missing_bytes: int) -> None:
        """Notes that some of the decode threads had nothing to do, for lack of memory; says so in
        the log when that happens again and again.

        Args:
          missing_bytes: of frames, with which all of them would have had work.
        """
        self._times_short += 1
        if self._times_short == _TIMES_SHORT:
            wanted = self.budget.total + MemoryBudget.total_for(missing_bytes)
            wanted *= self._options.shared_by
            _LOGGER.warning(
                "the memory budget of %d MiB does not keep %d decode threads busy; "
                "ReadOptions(memory_budget_bytes=%d << 20) would, or fewer threads with "
                "num_decode_threads=",
                self.shared_bytes >> 20,
                self.num_decoders,
                -(-wanted // _PROPOSED_BYTES) * _PROPOSED_BYTES >> 20,
            )

    def start_large_fetchers(self, num_threads: int) -> None:
        """Makes the pool for large row groups."""
        self.large_fetchers = DaemonPool(num_threads, "lerobot_grain rows", self.requests.enter)

    def close(self) -> None:
        """Stops all threads.

        Tasks that have not begun are dropped, requests are ended; what is being decoded is waited
        for.
        """
        if self._is_finalizing():
            return  # Python has ended the threads
        pools: list[Executor] = [self.fetchers, self.decoders, self.copiers]
        if self.large_fetchers is not None:
            pools.append(self.large_fetchers)
        if self.frame_cache is not None:
            self.frame_cache.writer.end_waits()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # A thread that is still connecting ends on its own, and cannot do anything more.
        has_ended = self.requests.end()
        for pool in pools:
            pool.shutdown(wait=has_ended)
        if self.frame_cache is not None:
            self.frame_cache.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadSource:
    """A dataset, and the things that are read of it.

    Attributes:
      number: among the sources of the stream.
      repository: the dataset.
      selection: what is read of it.
      image_size: (height, width) that frames are resized to, or `None`.
      needed_every_epoch: bool `(episodes,)`: of which episodes something is needed in every epoch,
        as far as is known. Small ones that lie side by side are fetched together.
      pad_keys: feature key -> key of the mask of its window in examples, where that is not
        `{key}_is_pad`.
      meter: counts what is read.
    """

    number: int
    repository: Repository
    selection: FeatureSelection
    image_size: tuple[int, int] | None
    needed_every_epoch: npt.NDArray[np.bool_]
    pad_keys: Mapping[str, str]
    meter: Meter
