"""Reading byte ranges of a pinned dataset: the interface of all storages, and what they share.

The idea: a `Storage` is a value. It names an unchanging tree of files (a commit, the list of a
bucket's files with their hashes, or a directory nobody writes to) and travels to other processes by
pickle; clients, locks and links are made when a process first reads, and belong to that process.

There are four: `DirectoryStorage`, `HubStorage` for a commit, `BucketStorage` for a bucket of the
Hub, and `ObjectStorage` for one of an object store. Users write others: `Storage` is public.

Rules:
* Files are listed once, when the storage is opened: `meta/`, and of a bucket `data/` and `videos/`
  too. Other files are known by the paths that `meta/` gives, and those are not trusted:
  `check_path`.
* Ranges are `[start, stop)`. A range that is not completely inside of its file is an error, never a
  shorter result.
* Threads are the caller's: `read_ranges` works through its ranges one by one, and any number of
  threads may call it.
* Every error message begins with `description` and names the path and the range.
* A file that could not be parsed is looked at once more: an empty file, and the pointer in place of
  a file that Git LFS has not fetched, are recognized by their contents, for all formats here.

It does not parse contents. Fetched bytes stay on disk, if the storage has a disk cache.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

from lerobot_grain._base.byte_ranges import (
    ByteRange,
    Part,
    joined,
    merge_ranges,
    slice_from,
    uncovered,
)
from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    StorageError,
)
from lerobot_grain._storage.disk.dataset_cache import DatasetCache
from lerobot_grain._storage.git_files import MAX_POINTER_BYTES, LfsPointer, lfs_pointer
from lerobot_grain._storage.options import StorageOptions, StorageStatistics

# The longest path that Linux opens.
_MAX_PATH_LENGTH = 4096
_MAX_NAMED_FOLDERS = 8
_EMPTY = "the file is empty (0 bytes): what wrote or copied it was interrupted"


def check_path(description: str, path: str) -> None:
    """Checks that `path` names a file inside of the dataset and nothing else, wherever it is put
    into a URL or a directory.

    Metadata decides what is read. With `..` in it, a Hub client would fetch files of other
    repositories, with the user's token.

    Raises:
      DatasetFormatError: it is absolute, has an empty, `.` or `..` part, a backslash, a control
        character, `?`, `#` or `://`.
    """
    parts = path.split("/")
    forbidden = (
        any(c in "\\?#" or not c.isprintable() for c in path)
        or "://" in path
        or len(path) > _MAX_PATH_LENGTH
    )
    if forbidden or any(part in ("", ".", "..") for part in parts):
        raise DatasetFormatError(
            f"{description}: {path[:200]!r} is not the path of a file of a dataset"
        )


class Storage(abc.ABC):
    """A pinned tree of files that can only be read: the base of all storages, also of your own.

    A storage is an immutable value that pickles; what is needed to read is made anew in each
    process. Your own one implements `list_metadata`, `size_bytes` and `read_range`, has the
    attributes below, and is passed to `open_repository`. Any number of threads may call it.
    docs/object-stores.md has an example, `lerobot_grain.testing.check_storage` tests one.

    Attributes:
      description: begins every error message: `org/name@1a2b3c4d5e6f`,
        `org/name/folder@1a2b3c4d5e6f`, `hf://buckets/org/name/folder`, or a directory.
      commit: 40 hexadecimal digits that change with the contents of any file: a commit, or a hash
        of a list of files; None where there are none, and a hash of `meta/` is taken. States name
        it.
      options: how it is read.
    """

    __slots__ = ("__weakref__",)

    description: str
    commit: str | None
    options: StorageOptions

    @property
    def folder(self) -> str:
        """The folder of a repository on the Hub that it is the files of; empty where it is those of
        the whole repository, or no commit.
        """
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the name that it was opened by, each text as `name: what`."""
        return ()

    def elsewhere(self) -> str:
        """Returns the end of a message that there is no dataset: where there are some instead, as
        far as is known. May ask the Hub once.
        """
        return ""

    def check_path(self, path: str) -> None:
        """Checks that a path names a file inside of the dataset and nothing else.

        Raises:
          DatasetFormatError: it is absolute, has an empty, `.` or `..` part, or other characters
            than a path has.
        """
        check_path(self.description, path)

    @abc.abstractmethod
    def list_metadata(self) -> Mapping[str, int]:
        """Returns path -> size in bytes of all files under `meta/`, in order of paths, without
        those that `check_path` refuses.
        """

    def read_metadata(self, path: str, *, max_bytes: int) -> bytes:
        """Returns a whole file of those listed by `list_metadata`.

        Raises:
          DatasetFormatError: it is listed as longer than `max_bytes`, and nothing is read; or it is
            a Git LFS pointer.
          MissingFileError: there is no such file.
          StorageError: it cannot be read, or it has another size than listed.
        """
        contents = self.read_as_is(path, max_bytes=max_bytes)
        if (pointer := lfs_pointer(contents)) is not None:
            raise DatasetFormatError(
                f"{self.description}, {path}: {self._about_pointer(path, pointer)}"
            )
        return contents

    def read_as_is(self, path: str, *, max_bytes: int) -> bytes:
        """As `read_metadata`, also a Git LFS pointer: for what is not parsed, or parsed inside of
        `checked`.
        """
        size = self.size_bytes(path)
        self._check_size(path, size, max_bytes)
        return self.read_range(path, ByteRange(0, size)) if size else b""

    @abc.abstractmethod
    def size_bytes(self, path: str) -> int:
        """Returns the size of a file.

        Raises:
          DatasetFormatError: see `check_path`.
          MissingFileError: there is no such file.
          StorageError: it cannot be asked for.
        """

    def close(self) -> None:  # noqa: B027 (there may be nothing to close)
        """Closes the connections of this process.

        A later call makes new ones; a call that is under way in another thread fails at once.

        To end the calls of some threads only, such as those of one reader, there is `CancelScope`.
        """

    @property
    def statistics(self) -> StorageStatistics:
        """The reads of this process so far, without the downloads of `read_metadata` into the cache
        of huggingface_hub. Zeros where nobody counts them.
        """
        return StorageStatistics()

    @abc.abstractmethod
    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        """Returns exactly the bytes of a range that is not empty and inside of the file.

        All reads of a file go through `read_ranges`, which checks the path, merges ranges and
        knows what lies on disk. It is called by many threads at the same time, one for each
        request that is under way.

        Raises:
          StorageError: they cannot be read. Another exception ends the stream, too, but nothing
            says which file it was.
        """

    def _disk_cache(self, path: str) -> DatasetCache | None:  # noqa: ARG002 (of none)
        """Returns where `read_ranges` keeps bytes of a file; None where nothing is kept, the file
        is on disk anyway, or it may change.
        """
        return None

    def keep_opening(self) -> None:
        """Keeps on disk what opening the dataset has asked for. To be called when its metadata is
        found to be well-formed.
        """
        return

    def read_ranges(
        self, path: str, ranges: Sequence[ByteRange], *, keep: bool = False
    ) -> list[bytes]:
        """Returns the bytes of each range, in the order asked.

        Ranges may overlap; empty ones give `b""`. Neighbors are read in one request, as `options`
        say.

        Args:
          path: of the file.
          ranges: of its bytes.
          keep: whether it is an index: what is small, costs requests, and is asked for by the same
            ranges again. Indices stay on disk even where video and rows take more than the limit.
            To be used inside of `checked`.

        Raises:
          InvalidRequestError: a range starts before 0 or stops before it starts.
          DatasetFormatError: see `check_path`.
          StorageError: a range goes past the end of the file, or its bytes could not be read.
        """
        check_path(self.description, path)
        if backwards := [r for r in ranges if not 0 <= r.start <= r.stop]:
            raise InvalidRequestError(
                f"{self.description}: {path} bytes {backwards[0]}: expected 0 <= start <= stop"
            )
        cache = self._disk_cache(path)
        if cache is None:
            return self._read_ranges(path, ranges)
        if not keep:
            return self._read_through(cache, path, ranges, keep_pieces=True)
        part = " ".join(map(str, ranges))
        kept = cache.get(path, part)
        if kept is None or len(kept) != sum(r.length for r in ranges):
            payloads = self._read_through(cache, path, ranges, keep_pieces=False)
            cache.put(path, part, b"".join(payloads))
            return payloads
        stops = itertools.accumulate(r.length for r in ranges)
        return [kept[stop - r.length : stop] for r, stop in zip(ranges, stops, strict=True)]

    def keeps(self, path: str) -> bool:
        """Returns whether bytes of a file are kept on disk at all, as far as there is room."""
        return self._disk_cache(path) is not None

    def would_keep(self, path: str, wanted: ByteRange) -> bool:
        """Returns whether `read_ranges` would keep some of a range on disk, or finds it there."""
        cache = self._disk_cache(path)
        return cache is not None and cache.would_keep(path, wanted)

    @contextlib.contextmanager
    def checked(self, path: str) -> Iterator[None]:
        """Around code that parses a file.

        If it is malformed, the next try fetches all of it again: it may have been sent wrongly. And
        if it is empty, or a Git LFS pointer lies in its place, the error says that, which no parser
        knows.
        """
        try:
            yield
        except DatasetFormatError as error:
            text = self._malformed(path, str(error))
            self.forget(path)
            if text is not None:
                raise DatasetFormatError(text) from None
            raise

    def forget(self, path: str) -> None:
        """Deletes what is kept on disk of a file: it turned out to be malformed, and may have been
        sent wrongly.
        """
        if (cache := self._disk_cache(path)) is not None:
            cache.forget(path)

    def _malformed(self, path: str, text: str) -> str | None:
        """Returns what to say of a file that a parser refuses with `text`; None if there is nothing
        more to say.
        """
        with contextlib.suppress(LeRobotGrainError):
            size = self.size_bytes(path)
            if size == 0:
                return text if _EMPTY in text else f"{text}; {_EMPTY}"
            if (
                size <= MAX_POINTER_BYTES
                and (pointer := lfs_pointer(self.read_range(path, ByteRange(0, size)))) is not None
            ):
                return f"{self.description}, {path}: {self._about_pointer(path, pointer)}"
        return None

    # The message before it names the path.
    def _about_pointer(self, path: str, pointer: LfsPointer) -> str:  # noqa: ARG002
        """Returns what to say, and to do, of a Git LFS pointer that lies in place of a file."""
        return f"it is {pointer}"

    def _read_ranges(self, path: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        merged = merge_ranges(
            ranges, gap_bytes=self.options.merge_gap_bytes, max_bytes=self.options.merge_max_bytes
        )
        self._check_end(path, merged)
        payloads = [self.read_range(path, r) for r in merged]
        return [slice_from(merged, payloads, r) for r in ranges]

    def _read_through(
        self, cache: DatasetCache, path: str, ranges: Sequence[ByteRange], *, keep_pieces: bool
    ) -> list[bytes]:
        """As `_read_ranges`; reads what lies on disk, fetches the rest and may keep it."""
        options = self.options
        wanted = merge_ranges(ranges, gap_bytes=0, max_bytes=options.merge_max_bytes)
        self._check_end(path, wanted)
        parts = [part for each in wanted for part in cache.read(path, each)]
        on_disk = [part.extent for part in parts]
        missing = merge_ranges(
            uncovered(wanted, on_disk),
            gap_bytes=options.merge_gap_bytes,
            max_bytes=options.merge_max_bytes,
        )
        for each in missing:
            fetched = Part(each.start, self.read_range(path, each))
            for fresh in uncovered([each], on_disk) if keep_pieces else ():
                cache.keep(path, fresh.start, joined([fetched], fresh))
            parts.append(fetched)
        parts.sort(key=lambda part: part.start)
        payloads = [joined(parts, each) for each in wanted]
        return [slice_from(wanted, payloads, r) for r in ranges]

    def _check_end(self, path: str, merged: Sequence[ByteRange]) -> None:
        if merged and merged[-1].stop > (size := self.size_bytes(path)):
            raise self._too_short(path, merged[-1], size)

    def _too_short(self, path: str, wanted: ByteRange, size: int) -> StorageError:
        return StorageError(
            f"{self.description}: {path} bytes {wanted}: the file has only {size} bytes"
        )

    def read_tail(self, path: str, length: int, *, keep: bool = False) -> tuple[bytes, int]:
        """Returns the last `length` bytes of a file, or all if it has fewer, and the size of the
        file. For footers; `keep` as above.

        Raises:
          InvalidRequestError: `length` is negative.
          DatasetFormatError, StorageError: as `read_ranges`.
        """
        if length < 0:
            raise InvalidRequestError(
                f"{self.description}: {path}: the last {length} bytes cannot be read"
            )
        size = self.size_bytes(path)
        return self.read_ranges(path, [ByteRange(max(0, size - length), size)], keep=keep)[0], size

    def _check_size(self, path: str, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise DatasetFormatError(
                f"{self.description}: {path} has {size} bytes, expected at most {max_bytes}"
            )


def text_of_folders(names: Sequence[str]) -> str:
    """Returns the end of a message: where datasets lie, by what they are to be opened with."""
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMED_FOLDERS} more" if len(names) > _MAX_NAMED_FOLDERS else ""
    return (
        f"; datasets lie in folders of it, so open {' or '.join(names[:_MAX_NAMED_FOLDERS])}{more}"
    )


def is_readable_path(path: str) -> bool:
    """Returns whether `check_path` lets a path pass."""
    try:
        check_path("", path)
    except DatasetFormatError:
        return False
    return True
