"""The hash by which Git names the contents of a file, and the pointer that Git LFS puts in its
place.

Without any I/O.

The Hub names a small file by the id of its git blob, a large one by its SHA-256: in listings, in
ETags, and as file names in the cache of huggingface_hub. A repository that was cloned without Git
LFS, and a mirror that knows nothing of it, has a *pointer* in place of each large file: a text of
three lines (git-lfs's specification).

    version https://git-lfs.github.com/spec/v1
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
    size 12345
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

# "Pointer files MUST be less than 1024 bytes".
MAX_POINTER_BYTES = 1024
# The second one was written by Git LFS before its first release, and is still read.
_POINTER = re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/v1")
_FILE_SIZE = re.compile(rb"^size (\d{1,18})\r?$", re.MULTILINE)
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
# Written by Git where there is no object.
_NO_OBJECT = "0" * 40


class LfsPointer(NamedTuple):
    """A pointer of so many bytes, for a file of `file_bytes`; None where it does not say."""

    num_bytes: int
    file_bytes: int | None

    def __str__(self) -> str:
        size = "" if self.file_bytes is None else f", which stands for a file of {self.file_bytes}"
        return f"a Git LFS pointer of {self.num_bytes} bytes{size}"


def lfs_pointer(contents: bytes) -> LfsPointer | None:
    """Returns what `contents`, of a whole file, is as a pointer; None if it is none."""
    if len(contents) > MAX_POINTER_BYTES or not _POINTER.match(contents):
        return None
    size = _FILE_SIZE.search(contents)
    return LfsPointer(len(contents), int(size[1]) if size else None)


def hash_in(name: object) -> str:
    """Returns the hash that an id in a listing or an ETag is, with or without quotes; `""` if it is
    none.
    """
    text = name.removeprefix("W/").strip('"') if isinstance(name, str) else ""
    return text if _HASH.fullmatch(text) and text != _NO_OBJECT else ""


def git_blob_id(contents: bytes) -> str:
    """Returns the id of the git blob with these contents."""
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def blob_name(contents: bytes, told: str) -> str | None:
    """Returns the name of contents in the cache of huggingface_hub, or None if they do not have the
    hash `told`.

    Args:
      contents: of a whole file.
      told: a SHA-256; 40 digits: the id of the git blob of a file or (in lists that do not tell
        files of Git LFS from others) of its pointer, or the SHA-1 that other servers use as ETag;
        `""` where nothing is known.
    """
    return blob_name_of([contents], len(contents), told)


def blob_name_of(pieces: Iterable[bytes], num_bytes: int, told: str) -> str | None:
    """As `blob_name`, of contents in pieces, `num_bytes` together."""
    all_hashes = sha256, git, plain = (
        hashlib.sha256(),
        hashlib.sha1(b"blob %d\0" % num_bytes),
        hashlib.sha1(),
    )
    for piece in pieces:
        for each in all_hashes:
            each.update(piece)
    if told == sha256.hexdigest():
        return told
    if told in ("", git.hexdigest(), plain.hexdigest()):
        return git.hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize "
        f"{num_bytes}\n"
    ).encode()
    return sha256.hexdigest() if told == git_blob_id(pointer) else None


def hash_like(contents: bytes, told: str) -> str:
    """Returns the hash of contents, of the kind that `told` is, for a message."""
    return hashlib.sha256(contents).hexdigest() if len(told) == 64 else git_blob_id(contents)
