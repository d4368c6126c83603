"""Reading byte ranges of a pinned data set, from the Hugging Face Hub, a bucket on it, or a directory.

The idea: a `Storage` is a value. It names an unchanging tree of files (a commit, the list of a bucket's files with their hashes, or a
directory nobody writes to) and travels to other processes by pickle; clients, locks and links are made when a process first reads, and
belong to that process.

Rules:
* Files are listed once, when the storage is opened: `meta/`, and of a bucket `data/` and `videos/` too. Other files are known by the paths
  that `meta/` gives, and those are not trusted: `check_path`.
* Ranges are `[start, stop)`. A range that is not completely inside of its file is an error, never a shorter result.
* Threads are the caller's: `read_ranges` works through its ranges one by one, and any number of threads may call it.
* Every error message begins with `description` and names the path and the range.

It does not parse or check contents. What `keep` asks for stays on disk, where the storage has a disk cache.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lerobot_grain._bucket_storage import BUCKET_SCHEME, CHANGED, HubBucket, commit_of_files, list_bucket, name_bucket
from lerobot_grain._byte_ranges import ByteRange, merge_ranges, slice_from
from lerobot_grain._disk_cache import DiskCache
from lerobot_grain._errors import DatasetFormatError, InvalidRequestError, MissingFileError, StorageError
from lerobot_grain._hub_cache import cached_commit, cached_listing, snapshot_directory
from lerobot_grain._hub_repository import HubRepository, is_offline, name_repository
from lerobot_grain._hub_storage import HubSession, ListedFile
from lerobot_grain._request_scope import RequestScope
from lerobot_grain._storage_options import Counters, StorageOptions, StorageStatistics

__all__ = [
    "BucketStorage",
    "DirectoryStorage",
    "HubStorage",
    "RequestScope",
    "Storage",
    "StorageOptions",
    "StorageStatistics",
    "check_path",
    "open_storage",
]

# The longest path that Linux opens.
_MAX_PATH_LENGTH = 4096
_METADATA = "meta"
_HUB_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(.+))?")

# Guards the making of what belongs to a process. One for all, so that a storage holds no lock, which could not be pickled.
_PROCESS_STATE_LOCK = threading.Lock()


def check_path(description: str, path: str) -> None:
    """Checks that `path` names a file inside of the data set and nothing else, wherever it is put into a URL or a directory.

    Metadata decides what is read. With `..` in it, a Hub client would fetch files of other repositories, with the user's token.

    Raises:
      DatasetFormatError: it is absolute, has an empty, `.` or `..` part, a backslash, a control character, `?`, `#` or `://`.
    """
    parts = path.split("/")
    forbidden = any(c in "\\?#" or not c.isprintable() for c in path) or "://" in path or len(path) > _MAX_PATH_LENGTH
    if forbidden or any(part in ("", ".", "..") for part in parts):
        raise DatasetFormatError(f"{description}: {path[:200]!r} is not the path of a file of a data set")


class Storage(abc.ABC):
    """A pinned tree of files that can only be read.

    An immutable value that pickles; what is needed to read is made anew in each process.

    Attributes:
      description: begins every error message: `org/name@1a2b3c4d5e6f`, `hf://buckets/org/name/folder`, or a directory.
      commit: 40 hexadecimal digits; of a bucket a hash of the list of its files; None for a directory, which has none.
      options: how it is read.
    """

    __slots__ = ("__weakref__",)

    description: str
    commit: str | None
    options: StorageOptions

    @abc.abstractmethod
    def list_metadata(self) -> Mapping[str, int]:
        """Returns path -> size in bytes of all files under `meta/`, in order of paths, without those that `check_path` refuses."""

    @abc.abstractmethod
    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        """Returns a whole file of those listed by `list_metadata`.

        Raises:
          DatasetFormatError: it is listed as longer than `max_bytes`; nothing is read.
          MissingFileError: there is no such file.
          StorageError: it cannot be read, or it has another size than listed.
        """

    @abc.abstractmethod
    def size_bytes(self, path: str) -> int:
        """Returns the size of a file.

        Raises:
          DatasetFormatError: see `check_path`.
          MissingFileError: there is no such file.
          StorageError: it cannot be asked for.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connections of this process. A later call makes new ones; a call that is under way in another thread fails at once.

        To end the calls of some threads only, such as those of one reader, there is `RequestScope`.
        """

    @property
    @abc.abstractmethod
    def statistics(self) -> StorageStatistics:
        """What this process has read so far, without what `read_metadata` downloads into the cache of huggingface_hub."""

    @abc.abstractmethod
    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        """Returns the bytes of a range that is not empty, inside of the file and need not be merged."""

    @abc.abstractmethod
    def _disk_cache(self, path: str) -> DiskCache | None:
        """Returns where `read_ranges` keeps bytes of a file; None where it is on disk anyway, or may change."""

    def read_ranges(self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False) -> list[bytes]:
        """Returns the bytes of each range, in the order asked.

        Ranges may overlap; empty ones give `b""`. Neighbours are read in one request, as `options` say.

        Args:
          path: of the file.
          ranges: of its bytes.
          keep: whether the next process that asks for the same ranges should find them on disk. For what is small and costs requests; to
            be used inside of `checked`.

        Raises:
          InvalidRequestError: a range starts before 0 or stops before it starts.
          DatasetFormatError: see `check_path`.
          StorageError: a range goes past the end of the file, or its bytes could not be had.
        """
        check_path(self.description, path)
        if backwards := [r for r in ranges if not 0 <= r.start <= r.stop]:
            raise InvalidRequestError(f"{self.description}: {path} bytes {backwards[0]}: expected 0 <= start <= stop")
        cache = self._disk_cache(path) if keep else None
        if cache is None:
            return self._read_ranges(path, ranges)
        file, part = self._file(path), " ".join(map(str, ranges))
        kept = cache.get(file, part)
        if kept is None or len(kept) != sum(r.length for r in ranges):
            payloads = self._read_ranges(path, ranges)
            cache.put(file, part, b"".join(payloads))
            return payloads
        stops = itertools.accumulate(r.length for r in ranges)
        return [kept[stop - r.length : stop] for r, stop in zip(ranges, stops, strict=True)]

    @contextlib.contextmanager
    def checked(self, path: str) -> Iterator[None]:
        """Around code that parses a file. If it is malformed, the next try fetches all of it again: it may have been sent wrongly."""
        try:
            yield
        except DatasetFormatError:
            if (cache := self._disk_cache(path)) is not None:
                cache.forget(self._file(path))
            raise

    def _file(self, path: str) -> tuple[str, ...]:
        return (self.description, str(self.commit), path)

    def _read_ranges(self, path: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        merged = merge_ranges(ranges, gap_bytes=self.options.merge_gap_bytes, max_bytes=self.options.merge_max_bytes)
        if merged and merged[-1].stop > (size := self.size_bytes(path)):
            raise StorageError(f"{self.description}: {path} bytes {merged[-1]}: the file has only {size} bytes")
        payloads = [self._read_range(path, r) for r in merged]
        return [slice_from(merged, payloads, r) for r in ranges]

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        """Returns the last `length` bytes of a file, or all if it has fewer, and the size of the file. For footers; `keep` as above.

        Raises:
          InvalidRequestError: `length` is negative.
          DatasetFormatError, StorageError: as `read_ranges`.
        """
        if length < 0:
            raise InvalidRequestError(f"{self.description}: {path}: the last {length} bytes cannot be read")
        size = self.size_bytes(path)
        return self.read_ranges(path, [ByteRange(max(0, size - length), size)], keep=keep)[0], size

    def _check_size(self, path: str, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise DatasetFormatError(f"{self.description}: {path} has {size} bytes, expected at most {max_bytes}")


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryStorage(Storage):
    """The files under a directory, which nobody may change while they are read.

    Symbolic links are followed, also those that lead out of the directory: the snapshots of huggingface_hub's cache consist of them. A file
    is opened for each range: that takes 1 microsecond of a local disk, 3 with the 64 KiB read (2026-11), and leaves nothing to close.

    Attributes:
      root: the absolute path of the directory.
    """

    description: str
    root: str
    options: StorageOptions
    commit: str | None = None
    _process_state: dict[int, Counters] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.root, self.options, self.commit)

    def list_metadata(self) -> Mapping[str, int]:
        def fail(error: OSError) -> None:
            raise self._failure(os.path.relpath(error.filename, self.root), error)

        sizes: dict[str, int] = {}
        top = os.path.join(self.root, _METADATA)
        if not os.path.isdir(top):
            return sizes
        for directory, _, names in os.walk(top, onerror=fail, followlinks=True):
            for name in names:
                path = os.path.relpath(os.path.join(directory, name), self.root).replace(os.sep, "/")
                if _is_readable_path(path):
                    sizes[path] = self.size_bytes(path)
        return dict(sorted(sizes.items()))

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        size = self.size_bytes(path)
        self._check_size(path, size, max_bytes)
        return self._read_range(path, ByteRange(0, size)) if size else b""

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        try:
            return os.stat(os.path.join(self.root, path)).st_size
        except OSError as error:
            raise self._failure(path, error) from None

    def close(self) -> None:
        return None

    def _disk_cache(self, path: str) -> None:  # noqa: ARG002 (never)
        return None

    @property
    def statistics(self) -> StorageStatistics:
        return self._counters().snapshot()

    def _counters(self) -> Counters:
        if (counters := self._process_state.get(os.getpid())) is not None:
            return counters
        with _PROCESS_STATE_LOCK:
            return self._process_state.setdefault(os.getpid(), Counters())

    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        started = time.perf_counter()
        data = b""
        try:
            descriptor = os.open(os.path.join(self.root, path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                # Again until nothing comes: one read returns at most 2 GiB.
                while len(data) < wanted.length and (more := os.pread(descriptor, wanted.length - len(data), wanted.start + len(data))):
                    data = data + more if data else more
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure(path, error) from None
        self._counters().add(StorageStatistics(1, len(data), request_seconds=time.perf_counter() - started))
        if len(data) < wanted.length:
            raise StorageError(
                f"{self.description}: {path} bytes {wanted}: the file ended after {len(data)} of {wanted.length} bytes; was it changed?"
            )
        return data

    def _failure(self, path: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingFileError(f"{self.description}: there is no file {path}")
        return StorageError(f"{self.description}: {path} cannot be read: {error.strerror}")


class _OnHub(Storage):
    """The session of this process: what reading a data set of the Hub and a bucket have in common."""

    __slots__ = ()

    repository: HubRepository
    _process_state: dict[int, HubSession]

    def close(self) -> None:
        with _PROCESS_STATE_LOCK:
            session = self._process_state.pop(os.getpid(), None)
        if session is not None:
            session.close()

    @property
    def statistics(self) -> StorageStatistics:
        session = self._process_state.get(os.getpid())
        return session.statistics() if session is not None else StorageStatistics()

    def _session(self) -> HubSession:
        # By process, since a connection must not be shared with a forked child. The parent's is left alone there: closing it could wait for
        # a lock for ever.
        if (session := self._process_state.get(os.getpid())) is not None:
            return session
        with _PROCESS_STATE_LOCK:
            if (session := self._process_state.get(os.getpid())) is None:
                session = self._process_state[os.getpid()] = HubSession(self.repository)
            return session


@dataclasses.dataclass(frozen=True, slots=True)
class HubStorage(_OnHub):
    """The files of one commit of a data set repository on the Hub.

    A file that lies in the commit's snapshot in the cache of huggingface_hub is read there, once its size is that of the file on the Hub;
    all others are read over the network, unless HF_HUB_OFFLINE forbids it. Which of the two is decided anew for each read, so that a
    download that is under way, or a cache that is emptied, does no harm.

    The list of `meta/` travels with it, so that other processes need not ask the Hub's API. So does a token that was given as a string:
    prefer one in the environment, which every process finds by itself.
    """

    description: str
    commit: str
    options: StorageOptions
    repository: HubRepository
    snapshot: DirectoryStorage = dataclasses.field(repr=False)
    metadata_sizes: tuple[tuple[str, int], ...] = dataclasses.field(repr=False)
    _process_state: dict[int, HubSession] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.commit, self.options, self.repository, self.snapshot, self.metadata_sizes)

    def list_metadata(self) -> Mapping[str, int]:
        return dict(self.metadata_sizes)

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        check_path(self.description, path)
        size = self.list_metadata().get(path)
        if size is None:
            raise MissingFileError(f"{self.description}: there is no file {path}")
        self._check_size(path, size, max_bytes)
        if self._cached_bytes(path) is None:
            self._session_for(path).download(self.commit, path)
        self._check_cached(path, self.snapshot.size_bytes(path), size)
        return self.snapshot.read_metadata(path, max_bytes=max_bytes)

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        cached = self._cached_bytes(path)
        if cached is None:
            return self._size_on_hub(path)
        expected = (cached_listing(self.repository, self.commit) or {}).get(path)
        if expected is None and not is_offline():
            expected = self._size_on_hub(path)
        # Without a list and without network there is nothing to compare with; the ends of parquet and MP4 files are seen by their readers.
        if expected is not None:
            self._check_cached(path, cached, expected)
        return cached

    def _size_on_hub(self, path: str) -> int:
        session = self._session_for(path)
        if session.knows(path):
            return session.size_bytes(self.commit, path)
        kept = session.disk_cache.get(self._file(path), "size")
        if kept is None:
            kept = session.size_bytes(self.commit, path).to_bytes(8)
            session.disk_cache.put(self._file(path), "size", kept)
        return int.from_bytes(kept)

    def _disk_cache(self, path: str) -> DiskCache | None:
        return None if is_offline() or self._cached_bytes(path) is not None else self._session().disk_cache

    def _cached_bytes(self, path: str) -> int | None:
        """Returns the size of the file in the snapshot, None if it is not there."""
        try:
            return self.snapshot.size_bytes(path)
        except MissingFileError:
            return None

    def _check_cached(self, path: str, found: int, expected: int) -> None:
        if found != expected:
            # The file itself: when only the link to it is deleted, huggingface_hub makes the same link again.
            place = os.path.realpath(os.path.join(self.snapshot.root, path))
            raise StorageError(
                f"{self.description}: {path}: its copy {place} has {found} bytes, expected {expected}; delete that, and it will "
                "be read from the Hub again"
            )

    @property
    def statistics(self) -> StorageStatistics:
        session = self._process_state.get(os.getpid())
        total = Counters()
        total.add(self.snapshot.statistics)
        if session is not None:
            total.add(session.statistics())
        return total.snapshot()

    def _session_for(self, path: str) -> HubSession:
        """Returns the session of this process, to ask for a file that is not in the cache.

        Raises:
          MissingFileError: HF_HUB_OFFLINE forbids it.
        """
        if is_offline():
            raise MissingFileError(
                f"{self.description}: there is no file {path} in the cache; with HF_HUB_OFFLINE=1 it cannot be fetched, so unset that, or "
                f"first run hf download {self.repository.repo_id} --repo-type dataset --revision {self.commit}"
            )
        return self._session()

    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        with contextlib.suppress(MissingFileError):
            return self.snapshot._read_range(path, wanted)
        return self._session_for(path).read_range(self.commit, path, wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class BucketStorage(_OnHub):
    """The files that a bucket held when it was opened, each pinned by its size and hash.

    Their list travels with it, so that all processes read the same. A token does as with `HubStorage`.
    """

    description: str
    commit: str
    options: StorageOptions
    repository: HubBucket
    files: Mapping[str, ListedFile] = dataclasses.field(repr=False, hash=False)
    _process_state: dict[int, HubSession] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.commit, self.options, self.repository, self.files)

    def list_metadata(self) -> Mapping[str, int]:
        return {path: file.size_bytes for path, file in self.files.items() if path.startswith(f"{_METADATA}/")}

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        size = self.size_bytes(path)
        self._check_size(path, size, max_bytes)
        return self._read_range(path, ByteRange(0, size)) if size else b""

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        if (file := self.files.get(path)) is None:
            raise MissingFileError(f"{self.description}: there is no file {path} (nor any outside of meta/, data/ and videos/)")
        return file.size_bytes

    def _disk_cache(self, path: str) -> None:  # noqa: ARG002 (never)
        return None

    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        pinned, session = self.files[path], self._session()
        try:
            if (size := session.size_bytes(pinned.xet_hash, path)) != pinned.size_bytes:
                raise StorageError(f"{self.description}: {path} has {size} bytes, {pinned.size_bytes} when it was listed; {CHANGED}")
            return session.read_range(pinned.xet_hash, path, wanted)
        except MissingFileError:
            # It was there: no caller may take it for a file that the data set does without.
            raise StorageError(f"{self.description}: {path} is gone; {CHANGED}") from None


def open_storage(
    repository: str | os.PathLike[str],
    *,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    options: StorageOptions,
) -> Storage:
    """Pins a data set and lists its metadata.

    On the Hub that takes three requests, two when `revision` is given, one when it is a commit hash; one less when huggingface_hub has
    downloaded that commit. With HF_HUB_OFFLINE=1 it takes none, and names mean what they meant when they were downloaded. Of a bucket all
    files are listed, with three requests or one for each 1,000.

    Args:
      repository: a directory (any path object, or a text that is absolute, begins with `./`, `../` or `~`, or names an existing directory),
        or a data set on the Hub: `org/name` or `hf://datasets/org/name@revision`, or in a bucket: `hf://buckets/org/name/folder`.
      revision: a branch, a tag or a commit of a data set on the Hub; None for the newest tag `v3.x`, or `main` when there is none.
      endpoint: address of the Hub; None for HF_ENDPOINT or https://huggingface.co.
      token: None for the token of the environment, if any; True if there must be one; False to send none; or the token.
      cache_dir: where metadata is kept; None for the cache of huggingface_hub. Pieces of other files are kept beside it, see
        `disk_cache_directory`.
      options: how bytes are read.

    Raises:
      InvalidRequestError: no such repository, revision, endpoint or token can exist.
      StorageError: it does not exist, is not accessible, or the Hub cannot be reached.
    """
    name = os.fspath(repository)
    if not isinstance(repository, str) or _looks_like_directory(name):
        if revision is not None:
            raise InvalidRequestError(f"{name} is a directory, which has no revision {revision!r}; leave it out")
        root = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(root):
            raise InvalidRequestError(f"{root} is not a directory; a data set on the Hub is named org/name")
        return DirectoryStorage(root, root, options)
    if name.startswith(BUCKET_SCHEME):
        return _open_bucket(name_bucket(name, revision=revision, endpoint=endpoint, cache_dir=cache_dir, token=token, options=options))
    repo_id, revision = _parse_hub_name(name, revision)
    hub_repository = name_repository(repo_id, endpoint=endpoint, cache_dir=cache_dir, token=token, options=options)
    if is_offline():
        return _open_offline(hub_repository, revision)
    session = HubSession(hub_repository)
    try:
        commit = session.commit_of(revision or session.default_revision())
        listing = cached_listing(hub_repository, commit)
        if listing is None:
            listing = session.list_files(commit, _METADATA)
    except BaseException:
        session.close()
        raise
    storage = _make_hub_storage(hub_repository, commit, listing)
    storage._process_state[os.getpid()] = session
    return storage


def _open_bucket(bucket: HubBucket) -> Storage:
    if bucket.prefix and not _is_readable_path(bucket.prefix[:-1]):
        raise InvalidRequestError(f"{bucket.at('')}: {bucket.prefix[:-1]!r} is no folder of a bucket")
    session = HubSession(bucket)
    try:
        files = [file for file in list_bucket(session, bucket) if _is_readable_path(file.path)]
    except BaseException:
        session.close()
        raise
    description = bucket.at("")
    storage = BucketStorage(description, commit_of_files(files), bucket.options, bucket, {file.path: file for file in files})
    storage._process_state[os.getpid()] = session
    return storage


def _looks_like_directory(name: str) -> bool:
    return os.path.isabs(name) or name in (".", "..") or name.startswith(("./", "../", "~")) or ("://" not in name and os.path.isdir(name))


def _parse_hub_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """Returns repository and revision of `org/name` or `hf://datasets/org/name@revision`."""
    if match := _HUB_URI.fullmatch(name):
        repo_id, named_revision = match.groups()
        if named_revision and revision and named_revision != revision:
            raise InvalidRequestError(f"{name} names another revision than revision={revision!r}; give it once")
        return repo_id, named_revision or revision
    if "://" in name or name.count("/") != 1:
        raise InvalidRequestError(
            f"{name!r} is neither an existing directory nor a data set on the Hub, named org/name or hf://datasets/org/name@revision"
        )
    return name, revision


def _open_offline(repository: HubRepository, revision: str | None) -> HubStorage:
    commit = cached_commit(repository, revision)
    if commit is None:
        wanted = f"{repository.repo_id}@{revision or 'v3.x or main'}"
        raise StorageError(
            f"{wanted}: HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset it, or first run "
            f"hf download {repository.repo_id} --repo-type dataset" + (f" --revision {revision}" if revision else "")
        )
    listing = cached_listing(repository, commit)
    if listing is None:
        listing = _snapshot(repository, commit).list_metadata()
    return _make_hub_storage(repository, commit, listing)


def _make_hub_storage(repository: HubRepository, commit: str, listing: Mapping[str, int]) -> HubStorage:
    metadata = tuple(sorted((p, size) for p, size in listing.items() if p.startswith(f"{_METADATA}/") and _is_readable_path(p)))
    return HubStorage(repository.at(commit), commit, repository.options, repository, _snapshot(repository, commit), metadata)


def _snapshot(repository: HubRepository, commit: str) -> DirectoryStorage:
    root = snapshot_directory(repository, commit)
    return DirectoryStorage(f"{repository.at(commit)} in {root}", root, repository.options, commit)


def _is_readable_path(path: str) -> bool:
    try:
        check_path("", path)
    except DatasetFormatError:
        return False
    return True
