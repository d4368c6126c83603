"""A directory that is far away, as a mounted bucket is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from lerobot_grain import (
    ByteRange,
    Storage,
    StorageOptions,
    StorageStatistics,
    open_repository,
)


@dataclasses.dataclass(frozen=True)
class FarStorage(Storage):
    """A directory of which each read takes longer, and so does the first size of each file: file
    systems that are mounted keep sizes for a while.

    Attributes:
      near: the directory.
      seconds: longer.
    """

    description: str
    commit: str | None
    options: StorageOptions
    near: Storage
    seconds: float
    _known: set[str] = dataclasses.field(default_factory=set, hash=False, compare=False, repr=False)

    def list_metadata(self) -> Mapping[str, int]:
        return self.near.list_metadata()

    def size_bytes(self, path: str) -> int:
        if path not in self._known:
            time.sleep(self.seconds)
            self._known.add(path)
        return self.near.size_bytes(path)

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        time.sleep(self.seconds)
        return self.near.read_range(path, wanted)

    @property
    def statistics(self) -> StorageStatistics:
        return self.near.statistics


def far_storage(directory: str, seconds: float) -> FarStorage:
    """Returns the storage of a directory that is `seconds` away."""
    near = open_repository(directory).storage
    return FarStorage(near.description, near.commit, near.options, near, seconds)
