"""The cache of huggingface_hub on disk: finding a file of a commit in it, and putting one there.

Its layout is documented (huggingface_hub, "Understand caching"): contents in `blobs/<hash>`, and for each commit a tree of links to them in
`snapshots/<commit>/`. It is written here and not by `hf_hub_download`, because that has no deadline, cannot be ended, waits for rate limits
alone, and does not look at the contents: a byte that was flipped on the way would stay in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def cached_file(root: str, commit: str, path: str) -> str | None:
    """Returns where a file of a commit lies, None if it is not there. `root` is the folder of the repository in the cache."""
    pointer = _pointer(root, commit, path)
    return pointer if os.path.isfile(pointer) else None


def hash_in(etag: str | None) -> str | None:
    """Returns the hash that an ETag of the Hub is: SHA-256 of a large file, id of the git blob of a small one. None if it is neither."""
    name = (etag or "").removeprefix("W/").strip('"')
    return name if _HASH.fullmatch(name) else None


def hash_of(data: bytes, *, like: str) -> str:
    """Returns the hash of contents, of the kind that `like` is."""
    if len(like) == 64:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def keep_file(root: str, commit: str, path: str, data: bytes, name: str) -> str:
    """Puts a file of a commit into the cache and returns where it lies. Other processes may do the same at the same time.

    Args:
      root: the folder of the repository in the cache.
      commit: 40 hexadecimal digits.
      path: of the file, checked by `check_path`.
      data: its contents.
      name: of the blob: the hash of the contents.

    Raises:
      OSError: it cannot be written.
    """
    blob, pointer = os.path.join(root, "blobs", name), _pointer(root, commit, path)
    for file in (blob, pointer):
        os.makedirs(os.path.dirname(file), exist_ok=True)
    # Whole at once under its name, or not at all. Unfinished ones are called as huggingface_hub calls its own.
    unfinished = f"{blob}.{uuid.uuid4().hex[:8]}.incomplete"
    try:
        with open(unfinished, "wb") as contents:
            contents.write(data)
        os.replace(unfinished, blob)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    try:
        os.symlink(os.path.relpath(blob, os.path.dirname(pointer)), pointer)
    except FileExistsError:
        pass
    except OSError:
        shutil.copyfile(blob, pointer)  # a file system without links
    return pointer


def _pointer(root: str, commit: str, path: str) -> str:
    return os.path.join(root, "snapshots", commit, *path.split("/"))
