"""Small pieces of files, kept on disk from one run to the next.

The idea: one file an entry, named by hashes of its key, written under another name and then moved
into place. A checksum over name and payload comes first, so an entry that is cut off, damaged,
of another version or of another key is the same as one that is not there. Nothing is locked; any
number of threads and processes share a directory. (Libraries that do this keep pickles, or a
database, whose locks network file systems do not have.)

Rules:
* Nothing here fails. An entry that cannot be read is absent, one that cannot be written is not
  kept; the log says the latter once a process.
* The bytes of a key never change, so it does not matter who wrote an entry, or how often. Keys
  therefore hold a commit. (The exception is what a name of a revision means: the latest counts.)
* The time of an entry's last change is when it was last used. Above the limit, those used longest
  ago are deleted.
* Nothing is deleted but files with our names.

It knows no formats: what it returns is checked like what comes from the network. Video and rows
are kept by `piece_cache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import secrets
import threading
from typing import BinaryIO

from lerobot_grain._base.regular_files import open_regular

_LOG = logging.getLogger(__name__)
# Part of every name. Entries of other versions are not found, and deleted when they are the oldest.
_VERSION = "1"
_SUFFIX = ".kept"
_DIGEST_BYTES = 16
# The share of the limit that one entry may take, and the bytes that are written before the
# directory is looked through again.
_SHARE = 16
# File systems give files whole blocks, mostly of this size, and many entries are smaller.
_BLOCK_BYTES = 4096

# How often writing has failed in this process; `next` of it is atomic.
_FAILURES = itertools.count()


class EntryCache:
    """Payloads by key in one directory. Thread-safe.

    Args:
      directory: need not exist, may be read-only, may be shared.
      max_bytes: that its files take, plus a sixteenth for each further object, here or in another
        process, that writes at the same time. An entry of more than a sixteenth is not kept; with 0
        nothing is kept and nothing found.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._share = max_bytes // _SHARE
        self._lock = threading.Lock()
        # So much that the first `put` looks what there is.
        self._written = max_bytes

    def get(self, file: tuple[str, ...], part: str) -> bytes | None:
        """Returns what was put for a part of a file, named by any texts, or None."""
        name = _name(file, part)
        if not self._max_bytes:
            return None
        try:
            with opened(self._path(name)) as entry:
                digest = entry.read(_DIGEST_BYTES)
                payload = entry.read(self._share + 1)
        except OSError:
            return None
        if digest != _digest(name, payload):
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path(name))
        return payload

    def put(self, file: tuple[str, ...], part: str, payload: bytes) -> None:
        """Keeps `payload`, if it is not too large and can be written."""
        name = _name(file, part)
        if not self._max_bytes or len(payload) > self._share:
            return
        temporary = self._path(f"{name}.{secrets.token_hex(8)}")
        try:
            os.makedirs(self._directory, exist_ok=True)
            try:
                with open(temporary, "xb") as entry:
                    entry.write(_digest(name, payload))
                    entry.write(payload)
                os.replace(temporary, self._path(name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except FileNotFoundError:
            return  # somebody empties the directory at this moment
        except OSError as error:
            say_unwritable(self._directory, error.strerror)
            return
        with self._lock:
            self._written += on_disk(_DIGEST_BYTES + len(payload))
            is_due = self._written > self._share
            if is_due:
                self._written = 0
        if is_due:
            self._trim()

    def forget(self, file: tuple[str, ...], part: str | None = None) -> None:
        """Deletes the entry of a part of `file`, or of all its parts."""
        if part is not None:
            delete(self._path(_name(file, part)))
            return
        prefix = _hash(*file)
        for entry in self._entries():
            if entry.name.startswith(prefix):
                delete(entry.path)

    def total_bytes(self) -> int:
        """Returns what the entries take on disk. Looks at each of them."""
        total = 0
        for entry in self._entries():
            with contextlib.suppress(OSError):
                total += on_disk(entry.stat(follow_symlinks=False).st_size)
        return total

    def _trim(self) -> None:
        found = []
        for entry in self._entries():
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, entry.path, on_disk(status.st_size)))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            # Less than the limit by what is written until the next look.
            if total <= self._max_bytes - self._share:
                break
            delete(path)
            total -= size

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._directory) as entries:
                return [entry for entry in entries if entry.name.endswith(_SUFFIX)]
        except OSError:
            return []

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name + _SUFFIX)


def opened(path: str) -> BinaryIO:
    """Opens an entry. A named pipe in its place is not waited for.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    return os.fdopen(open_regular(path, os.O_RDONLY), "rb")


def _name(file: tuple[str, ...], part: str) -> str:
    return f"{_hash(*file)}-{_hash(part)}"


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\0".join((_VERSION, *texts)).encode(), digest_size=16).hexdigest()


def _digest(name: str, payload: bytes) -> bytes:
    digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES)
    digest.update(payload)
    return digest.digest()


def on_disk(size_bytes: int) -> int:
    """Returns the bytes that a file of a size takes of a disk."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def say_unwritable(directory: str, reason: str | None) -> None:
    """Says, once a process, that a directory cannot be written to."""
    if next(_FAILURES) == 0:
        _LOG.warning(
            "nothing can be kept in %s (%s), so what was read will be fetched again",
            directory,
            reason,
        )


def delete(path: str) -> None:
    """Deletes a file, if that is possible."""
    with contextlib.suppress(OSError):
        os.unlink(path)
