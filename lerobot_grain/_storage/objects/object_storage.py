"""Reading a dataset in an object store: `s3://bucket/prefix`, `gs://bucket/prefix`.

As a bucket of the Hub (`_storage/listed_files`). Besides, what was read is kept on disk: a range of
a version that was listed never changes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._storage.base import is_readable_path, text_of_folders
from lerobot_grain._storage.disk.dataset_cache import DatasetCache
from lerobot_grain._storage.http.responses import cut
from lerobot_grain._storage.listed_files import commit_of_files, listed_metadata, listed_size
from lerobot_grain._storage.objects.address import ListedObject, StoreAddress
from lerobot_grain._storage.objects.session import StoreSession
from lerobot_grain._storage.options import Counters, StorageOptions, StorageStatistics
from lerobot_grain._storage.session_storage import SessionStorage


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectStorage(SessionStorage[StoreSession]):
    """The files that lay below a prefix of a bucket when it was opened, each pinned.

    Their list travels with it, so that all processes read the same. Credentials do not: each
    process finds its own.
    """

    description: str
    commit: str
    options: StorageOptions
    address: StoreAddress
    files: Mapping[str, ListedObject] = dataclasses.field(repr=False, hash=False)
    _process_state: dict[int, StoreSession] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _caches: dict[int, DatasetCache] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.commit, self.options, self.address, self.files)

    def list_metadata(self) -> Mapping[str, int]:
        return listed_metadata(self.files)

    def elsewhere(self) -> str:
        try:
            folders = self._session().folders()
        except LeRobotGrainError:
            return ""
        if not self.files and not folders:
            return f"; nothing in the {self.address.place} has a name that begins with " + repr(
                self.address.prefix
            )
        return text_of_folders([f"{self.description}/{folder}" for folder in folders])

    def size_bytes(self, path: str) -> int:
        return listed_size(self.description, self.files, path)

    @property
    def statistics(self) -> StorageStatistics:
        total = Counters()
        total.add(super(ObjectStorage, self).statistics)
        if (cache := self._caches.get(os.getpid())) is not None:
            total.add(cache.statistics)
        return total.snapshot()

    def _disk_cache(self, path: str) -> DatasetCache | None:  # noqa: ARG002 (of all files)
        if (found := self._caches.get(os.getpid())) is not None:
            return found
        if not self.options.disk_cache_bytes:
            return None
        made = DatasetCache(
            self.address.cache_root,
            self.options.disk_cache_bytes,
            (self.description, self.commit),
        )
        return self._caches.setdefault(os.getpid(), made)

    def _make_session(self) -> StoreSession:
        return StoreSession(self.address)

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        return self._session().read_range(self.files[path], wanted)


def open_objects(address: StoreAddress) -> ObjectStorage:
    """Lists the files of a dataset in a bucket, and pins them.

    Raises:
      InvalidRequestError: the prefix is none.
      StorageError: the bucket does not exist, or is not accessible.
    """
    if address.prefix and not is_readable_path(address.prefix[:-1]):
        raise InvalidRequestError(
            f"{cut(address.name)}: {address.prefix[:-1]!r} is no folder of a bucket that is read; "
            "expected names between single slashes, none of them '.' or '..', without '\\\\', '?', "
            "'#', '://' and characters that are not printed"
        )
    session = StoreSession(address)
    try:
        files = [file for file in session.list_files() if is_readable_path(file.path)]
    except BaseException:
        session.close()
        raise
    storage = ObjectStorage(
        address.name,
        commit_of_files((file.path, file.size_bytes, file.contents) for file in files),
        address.options,
        session.address,
        {file.path: file for file in files},
    )
    storage.use(session)
    return storage
