"""The storage that reads a commit of a dataset repository: from huggingface_hub's cache where it
has a file, else from the Hub.

It is a value that pickles; the session with the Hub is made when a process first reads, and belongs
to that process (`OnHub`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import warnings
from collections.abc import Mapping
from typing import Any

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import (
    LeRobotGrainError,
    LeRobotGrainWarning,
    MissingFileError,
    StorageError,
)
from lerobot_grain._format.layout import METADATA
from lerobot_grain._storage.base import check_path, text_of_folders
from lerobot_grain._storage.directory import DirectoryStorage, dataset_folders
from lerobot_grain._storage.disk.dataset_cache import DatasetCache
from lerobot_grain._storage.git_files import LfsPointer, blob_name, hash_in, hash_like, lfs_pointer
from lerobot_grain._storage.hub.address import HubAddress, ListedFile, is_offline
from lerobot_grain._storage.hub.client_cache import (
    cached_listing,
    is_as_told,
    keep_file,
    snapshot_directory,
)
from lerobot_grain._storage.hub.on_hub import OnHub
from lerobot_grain._storage.hub.opened_before import AskedName, dataset_cache, keep_opening
from lerobot_grain._storage.hub.session import HubSession
from lerobot_grain._storage.options import Counters, StorageOptions, StorageStatistics

# Copies that were changed, and the hashes that they should have, of which this process has warned.
_said: set[tuple[str, str]] = set()


@dataclasses.dataclass(frozen=True, slots=True)
class HubStorage(OnHub):
    """The files of one commit of a dataset repository on the Hub, or of one folder of it.

    A file that lies in the commit's snapshot in the cache of huggingface_hub is read there, once
    its size is that of the file on the Hub, and of a file of `meta/` its hash too; all others are
    read over the network, unless HF_HUB_OFFLINE forbids it. Which of the two is decided anew for
    each read, so that a download that is under way, or a cache that is emptied, does no harm.

    All that is fetched is kept on disk as far as `StorageOptions.disk_cache_bytes` allow, and read
    there, also with HF_HUB_OFFLINE.

    The list of `meta/` travels with it, so that other processes need not ask the Hub's API. So does
    a token that was given as a string: prefer one in the environment, which every process finds by
    itself.
    """

    description: str
    commit: str
    options: StorageOptions
    repository: HubAddress
    snapshot: DirectoryStorage = dataclasses.field(repr=False)
    metadata: tuple[ListedFile, ...] = dataclasses.field(repr=False)
    # Only in the process that opened it; not pickled.
    asked: AskedName | None = dataclasses.field(default=None, repr=False, compare=False)
    _process_state: dict[int, HubSession] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _caches: dict[int, DatasetCache] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.description,
            self.commit,
            self.options,
            self.repository,
            self.snapshot,
            self.metadata,
        )

    @property
    def folder(self) -> str:
        return self.repository.prefix.rstrip("/")

    def elsewhere(self) -> str:
        if is_offline():
            folders = dataset_folders(snapshot_directory(self.repository, self.commit))
        else:
            folders = self._session().api.folders(self.commit)
        return text_of_folders([f"{self.repository.repo_id}/{folder}" for folder in folders])

    def list_metadata(self) -> Mapping[str, int]:
        return {file.path: file.size_bytes for file in self.metadata}

    def read_as_is(self, path: str, *, max_bytes: int) -> bytes:
        check_path(self.description, path)
        file = self._listed(path)
        if file is None:
            raise MissingFileError(f"{self.description}: there is no file {path}")
        self._check_size(path, file.size_bytes, max_bytes)
        if self._cached_bytes(path) is not None:
            return self._read_copy(path, file, max_bytes)
        contents, name = self._session_for(path).read_whole(self.commit, file)
        if not name or lfs_pointer(contents) is not None:
            return contents  # what was not compared with a hash, or is no file, is kept nowhere
        try:
            keep_file(
                self.repository.cache_root,
                self.commit,
                self.repository.prefix + path,
                contents,
                name,
            )
        except OSError as error:
            where = self.repository.cache_dir
            raise StorageError(
                f"{self.description}: {path}: cannot be kept in {where}: {error.strerror}"
            ) from None
        return contents

    def _read_copy(self, path: str, file: ListedFile, max_bytes: int) -> bytes:
        """Returns the contents of the copy in the snapshot; with a warning those on the Hub, where
        the copy does not have the file's hash.

        The copy is left as it is: whoever changed it may want it back.
        """
        self._check_cached(path, self.snapshot.size_bytes(path), file.size_bytes)
        contents = self.snapshot.read_as_is(path, max_bytes=max_bytes)
        place = self._place(path)
        told = self._told_hash(file, place)
        if lfs_pointer(contents) is not None or blob_name(contents, told) is not None:
            return contents
        spoilt = self._about_spoilt(
            path, place, f"has the hash {hash_like(contents, told)}, expected {told}"
        )
        try:
            contents, _ = self._session().read_whole(self.commit, file)
        except StorageError as error:
            raise StorageError(f"{spoilt}. Reading it from the Hub failed: {error}") from None
        warnings.warn(
            f"{spoilt}. Until then it is read from the Hub each time",
            LeRobotGrainWarning,
            stacklevel=2,
        )
        return contents

    def _told_hash(self, file: ListedFile, place: str) -> str:
        # Offline there may be no list; the cache names a blob by its hash.
        return file.content_hash or hash_in(os.path.basename(place))

    def _about_spoilt(self, path: str, place: str, found: str) -> str:
        """Returns what to say of a copy that was changed.

        Raises:
          StorageError: HF_HUB_OFFLINE forbids to read the file from the Hub.
        """
        spoilt = (
            f"{self.description}: {path}: its copy {place} {found}: it was changed after it was "
            f"downloaded; delete it (rm {shlex.quote(place)}), and it will be downloaded again"
        )
        if is_offline():
            raise StorageError(f"{spoilt} (not with HF_HUB_OFFLINE=1)")
        return spoilt

    def _is_good_copy(self, path: str) -> bool:
        """Returns whether ranges of a file may be read from its copy in the snapshot; warns, once a
        process, of one that was changed.

        Only files of `meta/` have hashes that are known, and are read by ranges only where they are
        long.
        """
        file = self._listed(path)
        place = self._place(path)
        if file is None or not os.path.isfile(place):
            return True
        told = self._told_hash(file, place)
        try:
            if not told or is_as_told(place, told):
                return True
        except OSError:
            return True  # what is read of it then says why
        spoilt = self._about_spoilt(path, place, f"does not have the hash {told}")
        if (place, told) not in _said:
            _said.add((place, told))
            warnings.warn(
                f"{spoilt}. Until then it is read from the Hub", LeRobotGrainWarning, stacklevel=2
            )
        return False

    def _listed(self, path: str) -> ListedFile | None:
        """Returns what the list of `meta/` says of a file."""
        return (
            next((file for file in self.metadata if file.path == path), None)
            if path.startswith(f"{METADATA}/")
            else None
        )

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        cached = self._cached_bytes(path)
        file = self._listed(path)
        if cached is None:
            return self._size_on_hub(path) if file is None else file.size_bytes
        if file is None:
            file = (cached_listing(self.repository, self.commit) or {}).get(
                self.repository.prefix + path
            )
        expected = (
            file.size_bytes
            if file is not None
            else None
            if is_offline()
            else self._size_on_hub(path)
        )
        # Without a list and without network there is nothing to compare with; the ends of parquet
        # and MP4 files are seen by their readers.
        if expected is not None:
            self._check_cached(path, cached, expected)
        return cached

    def _size_on_hub(self, path: str) -> int:
        cache = self._cache()
        if cache is not None and (kept := cache.size_bytes(path)) is not None:
            return kept
        size = self._session_for(path).size_bytes(self.commit, path)
        if cache is not None:
            cache.keep_size(path, size)
        return size

    def _disk_cache(self, path: str) -> DatasetCache | None:
        cache = self._cache()
        return None if cache is None or self._cached_bytes(path) is not None else cache

    def _cache(self) -> DatasetCache | None:
        """Returns the disk cache of this process; None if it is switched off."""
        if (found := self._caches.get(os.getpid())) is not None:
            return found
        made = dataset_cache(self.repository, self.commit)
        return None if made is None else self._caches.setdefault(os.getpid(), made)

    def keep_opening(self) -> None:
        if not is_offline():
            keep_opening(self.asked, self.repository, self.commit, self.metadata)

    def _cached_bytes(self, path: str) -> int | None:
        """Returns the size of the file in the snapshot, None if it is not there."""
        try:
            return self.snapshot.size_bytes(path)
        except MissingFileError:
            return None
        except StorageError:
            link = os.path.join(self.snapshot.root, path)
            raise StorageError(
                f"{self.description}: {path}: its copy {link} leads to {self._place(path)}, which "
                f"is no file; delete the former (rm {shlex.quote(link)}), and it will be read "
                "from the Hub"
            ) from None

    def _check_cached(self, path: str, found: int, expected: int) -> None:
        if found != expected:
            raise StorageError(
                f"{self.description}: {path}: its copy {self._place(path)} has {found} bytes, "
                f"expected {expected}; delete that, and it will be read from the Hub again"
            )

    def _place(self, path: str) -> str:
        # The file itself: when only the link to it is deleted, huggingface_hub makes the same link
        # again.
        return os.path.realpath(os.path.join(self.snapshot.root, path))

    def _about_pointer(self, path: str, pointer: LfsPointer) -> str:
        if self._cached_bytes(path) is None:
            return super(HubStorage, self)._about_pointer(path, pointer)
        return (
            f"its copy {self._place(path)} is {pointer}; delete that, and it will be read from "
            "the Hub again"
        )

    def _malformed(self, path: str, text: str) -> str | None:
        told = super(HubStorage, self)._malformed(path, text)
        if (
            told is not None
            or is_offline()
            or self._listed(path) is not None
            or self._cached_bytes(path) is not None
        ):
            return told
        size = listed = None
        with contextlib.suppress(LeRobotGrainError):
            size = self.size_bytes(path)
            listed = self._session().api.listed_size(self.commit, path)
        if size is None or listed is None or size == listed:
            return None
        self.forget(path)
        raise StorageError(
            f"{self.description}: {path}: {self.repository.endpoint} told a length of {size} "
            f"bytes for this file, which is listed with {listed}: a mirror or proxy that tells "
            "wrong lengths; read it from the Hub itself"
        ) from None

    @property
    def statistics(self) -> StorageStatistics:
        session = self._process_state.get(os.getpid())
        total = Counters()
        total.add(self.snapshot.statistics)
        if session is not None:
            total.add(session.statistics())
        if (cache := self._caches.get(os.getpid())) is not None:
            total.add(cache.statistics)
        return total.snapshot()

    def _session_for(self, path: str) -> HubSession:
        """Returns the session of this process, to ask for a file that is not in the cache.

        Raises:
          MissingFileError: HF_HUB_OFFLINE forbids it.
        """
        if is_offline():
            raise MissingFileError(
                f"{self.description}: there is no file {path} in the cache; with HF_HUB_OFFLINE=1 "
                "it cannot be fetched, so unset that, or first run "
                f"{self.repository.download_command(self.commit)}"
            )
        return self._session()

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        if self._is_good_copy(path):
            with contextlib.suppress(MissingFileError):
                return self.snapshot.read_range(path, wanted)
        file = self._listed(path)
        session = self._session_for(path)
        try:
            return session.read_range(
                self.commit, path, wanted, file_bytes=None if file is None else file.size_bytes
            )
        except StorageError:
            # The reported size may be wrong.
            if (cache := self._cache()) is not None:
                cache.forget_size(path)
            raise
