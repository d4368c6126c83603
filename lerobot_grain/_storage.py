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

It does not parse, cache or check contents.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lerobot_grain._bucket_storage import BUCKET_SCHEME, CHANGED, HubBucket, commit_of_files, list_bucket, name_bucket
from lerobot_grain._byte_ranges import ByteRange, merge_ranges, slice_from
from lerobot_grain._errors import DatasetFormatError, InvalidRequestError, MissingFileError, StorageError
from lerobot_grain._hub_storage import (
    COMMIT,
    HubRepository,
    HubSession,
    ListedFile,
    is_offline,
    name_repository,
    newest_version_tag,
)
from lerobot_grain._transport import Counters, StorageOptions, StorageStatistics

__all__ = [
    "BucketStorage",
    "DirectoryStorage",
    "HubStorage",
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
        """Closes the connections of this process. A later call makes new ones; a call that is under way in another thread fails."""

    @property
    @abc.abstractmethod
    def statistics(self) -> StorageStatistics:
        """What this process has read so far, without what `read_metadata` downloads into the cache of huggingface_hub."""

    @abc.abstractmethod
    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        """Returns the bytes of a range that is not empty, inside of the file and need not be merged."""

    def read_ranges(self, path: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Returns the bytes of each range, in the order asked.

        Ranges may overlap; empty ones give `b""`. Neighbours are read in one request, as `options` say.

        Raises:
          InvalidRequestError: a range starts before 0 or stops before it starts.
          DatasetFormatError: see `check_path`.
          StorageError: a range goes past the end of the file, or its bytes could not be had.
        """
        check_path(self.description, path)
        if backwards := [r for r in ranges if not 0 <= r.start <= r.stop]:
            raise InvalidRequestError(f"{self.description}: {path} bytes {backwards[0]}: expected 0 <= start <= stop")
        merged = merge_ranges(ranges, gap_bytes=self.options.merge_gap_bytes, max_bytes=self.options.merge_max_bytes)
        if merged and merged[-1].stop > (size := self.size_bytes(path)):
            raise StorageError(f"{self.description}: {path} bytes {merged[-1]}: the file has only {size} bytes")
        payloads = [self._read_range(path, r) for r in merged]
        return [slice_from(merged, payloads, r) for r in ranges]

    def read_tail(self, path: str, length: int) -> tuple[bytes, int]:
        """Returns the last `length` bytes of a file, or all if it has fewer, and the size of the file. For footers.

        Raises:
          InvalidRequestError: `length` is negative.
          DatasetFormatError, StorageError: as `read_ranges`.
        """
        if length < 0:
            raise InvalidRequestError(f"{self.description}: {path}: the last {length} bytes cannot be read")
        size = self.size_bytes(path)
        return self.read_ranges(path, [ByteRange(max(0, size - length), size)])[0], size

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
      remedy: ends the message about a missing file.
    """

    description: str
    root: str
    options: StorageOptions
    commit: str | None = None
    remedy: str = ""
    _process_state: dict[int, Counters] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.root, self.options, self.commit, self.remedy)

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
        if isinstance(error, FileNotFoundError):
            return MissingFileError(f"{self.description}: there is no file {path}{self.remedy}")
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

    The list of `meta/` travels with it, so that other processes need not ask the Hub's API. So does a token that was given as a string:
    prefer one in the environment, which every process finds by itself.
    """

    description: str
    commit: str
    options: StorageOptions
    repository: HubRepository
    metadata_sizes: tuple[tuple[str, int], ...] = dataclasses.field(repr=False)
    _process_state: dict[int, HubSession] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.commit, self.options, self.repository, self.metadata_sizes)

    def list_metadata(self) -> Mapping[str, int]:
        return dict(self.metadata_sizes)

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        check_path(self.description, path)
        size = self.list_metadata().get(path)
        if size is None:
            raise MissingFileError(f"{self.description}: there is no file {path}")
        self._check_size(path, size, max_bytes)
        cached = self._session().download(self.commit, path)
        try:
            with open(cached, "rb") as file:
                data = file.read(size + 1)
        except OSError as error:
            raise StorageError(f"{self.description}: {path}: {cached} cannot be read: {error.strerror}") from None
        if len(data) != size:
            found = os.path.getsize(cached)
            raise StorageError(
                f"{self.description}: {path}: {cached} has {found} bytes, expected {size}; delete it, it will be downloaded again"
            )
        return data

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        return self._session().size_bytes(self.commit, path)

    def _read_range(self, path: str, wanted: ByteRange) -> bytes:
        return self._session().read_range(self.commit, path, wanted)


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

    On the Hub that takes three requests, two when `revision` is given, one when it is a commit hash. With HF_HUB_OFFLINE=1 it takes none,
    and the snapshot in the cache of huggingface_hub is read. Of a bucket all files are listed, with three requests or one for each 1,000.

    Args:
      repository: a directory (any path object, or a text that is absolute, begins with `./`, `../` or `~`, or names an existing directory),
        or a data set on the Hub: `org/name` or `hf://datasets/org/name@revision`, or in a bucket: `hf://buckets/org/name/folder`.
      revision: a branch, a tag or a commit of a data set on the Hub; None for the newest tag `v3.x`, `v2.1` or `v2.0`, or `main` when
        there is none.
      endpoint: address of the Hub; None for HF_ENDPOINT or https://huggingface.co.
      token: None for the token of the environment, if any; True if there must be one; False to send none; or the token.
      cache_dir: where metadata is kept; None for the cache of huggingface_hub.
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
        return _open_cached_snapshot(hub_repository, revision)
    session = HubSession(hub_repository)
    try:
        commit = session.commit_of(revision or session.default_revision())
        sizes = session.list_files(commit, _METADATA)
    except BaseException:
        session.close()
        raise
    listed = tuple(sorted((path, size) for path, size in sizes.items() if _is_readable_path(path)))
    storage = HubStorage(hub_repository.at(commit), commit, options, hub_repository, listed)
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


def _open_cached_snapshot(repository: HubRepository, revision: str | None) -> Storage:
    found = _find_cached_snapshot(repository, revision)
    if found is None:
        wanted = f"{repository.repo_id}@{revision or 'v3.x, v2.1, v2.0 or main'}"
        raise StorageError(
            f"{wanted}: HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset it, or first run "
            f"hf download {repository.repo_id} --repo-type dataset" + (f" --revision {revision}" if revision else "")
        )
    root, commit = found
    remedy = (
        " in the cache; with HF_HUB_OFFLINE=1 it cannot be fetched, so unset that, or first run "
        f"hf download {repository.repo_id} --repo-type dataset --revision {commit}"
    )
    return DirectoryStorage(repository.at(commit), root, repository.options, commit, remedy)


def _find_cached_snapshot(repository: HubRepository, revision: str | None) -> tuple[str, str] | None:
    """Returns directory and commit of a revision in the cache of huggingface_hub, or None if it was never downloaded by that name."""
    root = os.path.join(repository.cache_dir, "datasets--" + repository.repo_id.replace("/", "--"))
    references = os.path.join(root, "refs")
    try:
        commit = revision or newest_version_tag(os.listdir(references))
        if not COMMIT.fullmatch(commit):
            with open(os.path.join(references, *commit.split("/")), encoding="ascii") as file:
                commit = file.read().strip()
    except (OSError, ValueError):
        return None
    snapshot = os.path.join(root, "snapshots", commit)
    return (snapshot, commit) if COMMIT.fullmatch(commit) and os.path.isdir(snapshot) else None


def _is_readable_path(path: str) -> bool:
    try:
        check_path("", path)
    except DatasetFormatError:
        return False
    return True
