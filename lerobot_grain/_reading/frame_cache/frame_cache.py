"""The frame cache of one reader: a directory, and the threads that write there."""

from __future__ import annotations

import os
from concurrent.futures import Executor

from lerobot_grain._reading.frame_cache.cache_directory import directory_of
from lerobot_grain._reading.frame_cache.frame_writer import FrameWriter
from lerobot_grain._reading.options import MemoryBudget, ReadOptions
from lerobot_grain._storage.hub.address import frame_cache_directory


class FrameCache:
    """Shared by all cameras of a reader.

    Args:
      options: with `frame_cache_bytes` > 0.
      budget: of memory.
      fetchers: threads that wait for disks.
      num_decoders: threads that decode.

    Attributes:
      directory: of the files.
      fetchers: as given.
      writer: of frames.
    """

    def __init__(
        self,
        options: ReadOptions,
        budget: MemoryBudget,
        *,
        fetchers: Executor,
        num_decoders: int,
    ) -> None:
        self.fetchers = fetchers
        path = options.frame_cache_directory or frame_cache_directory()
        self.directory = directory_of(os.fspath(path), options.frame_cache_bytes)
        self.writer = FrameWriter(
            self.directory, max_bytes=budget.unwritten_frames, num_threads=num_decoders
        )

    def close(self) -> None:
        """Ends the threads that write."""
        self.writer.close()
