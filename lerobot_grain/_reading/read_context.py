"""Everything that the parts of one stream's reader share: the dataset and what is read of it, the
memory budget, the threads, and the counts.

Each stream has a context of its own, so closing one stream does not affect the others.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import numpy.typing as npt

from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._reading.options import MemoryBudget, ReadOptions
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import FeatureSelection
from lerobot_grain._storage.http.cancellation import CancelScope


class ReadContext:
    """The shared parts of one stream's reader. The pools are made and closed here.

    Args:
      repository: the dataset.
      selection: what is read of it.
      image_size: (height, width) that pictures are resized to, or `None`.
      options: memory and threads.
      needed_every_epoch: bool `(episodes,)`: of which episodes something is needed in every epoch,
        as far as is known. Small ones that lie side by side are fetched together.

    Attributes:
      budget: of memory.
      meter: counts.
      requests: the requests of this stream.
      fetchers: where reading runs.
      decoders: where decoding runs, of videos and embedded images.
      large_fetchers: where large row groups are read, once there are any.
    """

    # Here, since at the end of a process the names of a module may be gone before its objects.
    _is_finalizing = staticmethod(sys.is_finalizing)

    def __init__(
        self,
        repository: Repository,
        selection: FeatureSelection,
        *,
        image_size: tuple[int, int] | None,
        options: ReadOptions,
        needed_every_epoch: npt.NDArray[np.bool_],
    ) -> None:
        self.repository = repository
        self.selection = selection
        self.image_size = image_size
        self.needed_every_epoch = needed_every_epoch
        self.budget = MemoryBudget.of(
            options.memory_budget_bytes, num_cameras=len(selection.videos)
        )
        self.meter = Meter(repository.storage)
        self.requests = CancelScope()
        self.fetchers = DaemonPool(
            options.storage.num_connections, "lerobot_grain fetch", self.requests.enter
        )
        # They seldom send a request: for what tells the order of rows in the row groups around one.
        self.decoders = DaemonPool(
            options.num_decode_threads or _num_cores(), "lerobot_grain decode", self.requests.enter
        )
        self.large_fetchers: DaemonPool | None = None

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
        pools = [self.fetchers, self.decoders]
        if self.large_fetchers is not None:
            pools.append(self.large_fetchers)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # A thread that is still connecting ends by itself, and cannot do anything more.
        has_ended = self.requests.end()
        for pool in pools:
            pool.shutdown(wait=has_ended)


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
