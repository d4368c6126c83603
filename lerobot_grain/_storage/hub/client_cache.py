"""The cache of huggingface_hub on disk: what of a dataset already lies in it, and putting a file
there.

Its layout is documented (huggingface_hub, "Understand caching"): contents in `blobs/<hash>`, for
each commit a tree of links to them in `snapshots/<commit>/`, the commits that branches and tags
stood for in `refs/`, and after `hf download` the list of the whole commit, with sizes, in
`trees/<commit>.json`. A commit never changes, so none of it goes stale but the names.

Rules:
* A snapshot may be incomplete; only the list says what the commit holds. Caches filled by
  `hf_hub_download`, or by older versions of huggingface_hub, have no list.
* It is written here and not by `hf_hub_download`, because that has no deadline, cannot be ended,
  waits for rate limits alone, and does not look at the contents: a byte that was flipped on the way
  would stay in the cache.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping

from lerobot_grain._base.versions import cached_repo_tree
from lerobot_grain._format.layout import newest_version_tag
from lerobot_grain._storage.git_files import blob_name_of, hash_in
from lerobot_grain._storage.hub.address import COMMIT, HubAddress, ListedFile

# The names of unfinished files, ours and those of huggingface_hub 1.x, which nobody goes on with;
# and how long the slowest is written.
_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.incomplete$")
_UNFINISHED_SECONDS = 86400.0
_cleaned: set[str] = set()
# The most bytes of a file that is compared with its hash.
_PIECE_BYTES = 1 << 20
# Which files were compared in this process, and whether they have their hash.
_compared: dict[tuple[str, int, int, int, str], bool] = {}


def snapshot_directory(repository: HubAddress, commit: str) -> str:
    """Returns where all files of a commit lie, if any do; a dataset in a folder lies in that
    folder of it.
    """
    return os.path.join(repository.cache_root, "snapshots", commit)


def cached_commit(repository: HubAddress, revision: str | None) -> str | None:
    """Returns the commit of a revision (None: of the newest version, or of `main`) when it was last
    downloaded by that name.

    None where it never was, or nothing is left of its files. Branches and tags lie in one folder.
    """
    references = os.path.join(repository.cache_root, "refs")
    try:
        commit = revision or newest_version_tag(os.listdir(references))
        if not COMMIT.fullmatch(commit):
            with open(os.path.join(references, *commit.split("/")), encoding="ascii") as file:
                commit = file.read().strip()
    except (OSError, ValueError):
        return None
    return (
        commit
        if COMMIT.fullmatch(commit) and os.path.isdir(snapshot_directory(repository, commit))
        else None
    )


def cached_listing(repository: HubAddress, commit: str) -> Mapping[str, ListedFile] | None:
    """Returns path in the repository -> file, of all files of a commit; None where the cache has no
    such list.
    """
    try:
        return _listing(repository.repo_id, repository.cache_dir, commit)
    except LookupError:
        return None


# A missing file is looked for again, because a download may bring it. A list of 100,000 files takes
# about 30 MB.
@functools.lru_cache(maxsize=8)
def _listing(repo_id: str, cache_dir: str, commit: str) -> Mapping[str, ListedFile]:
    files = cached_repo_tree(repo_id, revision=commit, cache_dir=cache_dir)
    if files is None:
        raise LookupError(commit)
    # The id of the blob, which is that of a pointer where the file is in Git LFS; of one in Xet
    # nothing is known of the pointer.
    return {
        f.path: ListedFile(
            f.path, f.size, f.xet_hash or "", "" if f.xet_hash else hash_in(f.blob_id)
        )
        for f in files
    }


def is_as_told(path: str, told: str) -> bool:
    """Returns whether a file, which is there, has the hash `told`, as `blob_name` takes it.

    Read once, and again after a change.
    """
    status = os.stat(path)
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns, told)
    if key not in _compared:
        with open(path, "rb") as file:
            pieces = iter(functools.partial(file.read, _PIECE_BYTES), b"")
            _compared[key] = blob_name_of(pieces, status.st_size, told) is not None
    return _compared[key]


def keep_file(root: str, commit: str, path: str, data: bytes, name: str) -> None:
    """Puts a file of a commit into the cache. Other processes may do the same at the same time.

    Args:
      root: the folder of the repository in the cache.
      commit: 40 hexadecimal digits.
      path: of the file in the repository, checked by `check_path`.
      data: its contents, which were checked: all programs will take them for those of the commit.
      name: of the blob: the hash of the contents.

    Raises:
      OSError: it cannot be written.
    """
    blob = os.path.join(root, "blobs", name)
    pointer = os.path.join(root, "snapshots", commit, *path.split("/"))
    for file in (blob, pointer):
        os.makedirs(os.path.dirname(file), exist_ok=True)
    # Whole at once under its name, or not at all. Unfinished ones are called as huggingface_hub
    # calls its own.
    unfinished = f"{blob}.{uuid.uuid4().hex[:8]}.incomplete"
    try:
        with open(unfinished, "wb") as contents:
            contents.write(data)
        os.replace(unfinished, blob)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    _clean({os.path.dirname(blob), os.path.dirname(pointer)})
    target = os.path.relpath(blob, os.path.dirname(pointer))
    try:
        os.symlink(target, pointer)
    except FileExistsError:
        # Left by another process that does the same, or the rest of a deleted file: that leads
        # nowhere, or to another blob.
        if os.path.realpath(pointer) != os.path.realpath(blob):
            _replace_link(target, pointer)
    except OSError:
        shutil.copyfile(blob, pointer)  # a file system without links


def _clean(directories: set[str]) -> None:
    """Deletes what killed processes left unfinished, once a process and directory: what nobody has
    changed for a day.
    """
    for directory in directories - _cleaned:
        _cleaned.add(directory)
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if (
                    _UNFINISHED.search(entry.name)
                    and entry.stat(follow_symlinks=False).st_mtime
                    < time.time() - _UNFINISHED_SECONDS
                ):
                    with contextlib.suppress(OSError):  # another process may do the same
                        os.unlink(entry.path)


def _replace_link(target: str, pointer: str) -> None:
    temporary = f"{pointer}.{uuid.uuid4().hex[:8]}.incomplete"
    os.symlink(target, temporary)
    try:
        os.replace(temporary, pointer)
    except OSError:
        os.unlink(temporary)
        raise
