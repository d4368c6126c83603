"""A dataset in a directory: the simplest storage, and the example to write another one by.

It has no commit, so nobody may change the files while they are read. Nothing is kept on disk, since
the files are there.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import MissingFileError, StorageError
from lerobot_grain._base.per_process import PerProcess
from lerobot_grain._base.regular_files import NO_WAITING
from lerobot_grain._format.layout import INFO_PATH, METADATA
from lerobot_grain._storage.base import Storage, check_path, is_readable_path, text_of_folders
from lerobot_grain._storage.git_files import LfsPointer
from lerobot_grain._storage.options import Counters, StorageOptions, StorageStatistics

# Folders that are looked into for datasets that lie one level farther down, and folders there: a
# message costs a few thousand calls of the file system at most.
_MAX_FOLDERS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryStorage(Storage):
    """The files under a directory, which nobody may change while they are read.

    Symbolic links are followed, also those that lead out of the directory: the snapshots of
    huggingface_hub's cache consist of them. A file is opened for each range: that takes 1
    microsecond of a local disk, 3 with the 64 KiB read (2026-11), and leaves nothing to close.

    Attributes:
      root: the absolute path of the directory.
    """

    description: str
    root: str
    options: StorageOptions
    commit: str | None = None
    _counters: PerProcess[Counters] = dataclasses.field(
        default_factory=lambda: PerProcess(Counters), init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.description, self.root, self.options, self.commit)

    def list_metadata(self) -> Mapping[str, int]:
        def fail(error: OSError) -> None:
            raise self._failure(os.path.relpath(error.filename, self.root), error)

        sizes: dict[str, int] = {}
        top = os.path.join(self.root, METADATA)
        if not os.path.isdir(top):
            return sizes
        for directory, _, names in os.walk(top, onerror=fail, followlinks=True):
            for name in names:
                path = os.path.relpath(os.path.join(directory, name), self.root).replace(
                    os.sep, "/"
                )
                if is_readable_path(path) and stat.S_ISREG((status := self._status(path)).st_mode):
                    sizes[path] = status.st_size
        return dict(sorted(sizes.items()))

    def elsewhere(self) -> str:
        return text_of_folders(
            [os.path.join(self.root, folder) for folder in dataset_folders(self.root)]
        )

    # The message before it names the path.
    def _about_pointer(self, path: str, pointer: LfsPointer) -> str:  # noqa: ARG002
        return (
            f"it is {pointer}: the directory was cloned without Git LFS; run `git lfs pull` in "
            f"{self.root}"
        )

    def size_bytes(self, path: str) -> int:
        check_path(self.description, path)
        return self._size_in(path, self._status(path))

    def _size_in(self, path: str, status: os.stat_result) -> int:
        if not stat.S_ISREG(status.st_mode):
            what = (
                os.strerror(errno.EISDIR)
                if stat.S_ISDIR(status.st_mode)
                else "it is a pipe, a socket or a device, and no file"
            )
            raise StorageError(f"{self.description}: {path} cannot be read: {what}")
        return status.st_size

    def _status(self, path: str) -> os.stat_result:
        try:
            return os.stat(os.path.join(self.root, path))
        except OSError as error:
            raise self._failure(path, error) from None

    def _check_end(self, path: str, merged: Sequence[ByteRange]) -> None:
        # `read_range` asks the file that it has opened: where the directory is far away, asking by
        # path would take as long as reading.
        pass

    @property
    def statistics(self) -> StorageStatistics:
        return self._counters().snapshot()

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        started = time.perf_counter()
        data = b""
        try:
            descriptor = os.open(os.path.join(self.root, path), os.O_RDONLY | NO_WAITING)
            try:
                size = self._size_in(path, os.fstat(descriptor))
                if wanted.stop > size:
                    raise self._too_short(path, wanted, size)
                # Again until nothing comes: one read returns at most 2 GiB.
                while len(data) < wanted.length and (
                    more := os.pread(
                        descriptor, wanted.length - len(data), wanted.start + len(data)
                    )
                ):
                    data = data + more if data else more
            finally:
                os.close(descriptor)
        except StorageError:  # which is an OSError, too
            raise
        except OSError as error:
            raise self._failure(path, error) from None
        self._counters().add(
            StorageStatistics(1, len(data), request_seconds=time.perf_counter() - started)
        )
        if len(data) < wanted.length:
            raise StorageError(
                f"{self.description}: {path} bytes {wanted}: the file ended after {len(data)} of "
                f"{wanted.length} bytes; was it changed?"
            )
        return data

    def _failure(self, path: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingFileError(f"{self.description}: there is no file {path}")
        return StorageError(f"{self.description}: {path} cannot be read: {error.strerror}")


def dataset_folders(root: str) -> list[str]:
    """Returns the folders of a directory that hold a dataset, in order, with slashes: those that
    lie in it, or, where none does, those one level farther down. Deeper ones are not looked for: a
    message is not worth a walk through a disk.
    """
    folders = _names_in(root, "")
    if found := _with_dataset(root, folders):
        return found
    below = (each for folder in folders[:_MAX_FOLDERS] for each in _names_in(root, f"{folder}/"))
    return _with_dataset(root, itertools.islice(below, _MAX_FOLDERS))


def _names_in(root: str, prefix: str) -> list[str]:
    try:
        return [prefix + name for name in sorted(os.listdir(os.path.join(root, prefix)))]
    except OSError:
        return []


def _with_dataset(root: str, folders: Iterable[str]) -> list[str]:
    return [each for each in folders if os.path.isfile(os.path.join(root, each, INFO_PATH))]
