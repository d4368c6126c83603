"""Dataset repositories of the loopback Hub: commits over directories on disk, with branches and
tags.

Idea: a commit is a listing (path, size, modification time) of a directory at the moment when it was
added. Contents stay on disk, hashes are computed when somebody asks for them.

Not included: git. A commit's sha is derived from its listing and its parent, a directory's id from
its path.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from lerobot_grain.testing._hub.http import FileSlice

# The real Hub decides by .gitattributes and by size; LeRobot's datasets have these as plain git
# files and the rest in LFS.
GIT_FILE_SUFFIXES = (".json", ".jsonl", ".md", ".txt")
# Files in LFS above this get an invented sha256: to hash gigabytes of video would delay the first
# listing by seconds, for a number that nobody compares: clients hash small files only.
MAX_HASHED_BYTES = 16_000_000
# Files that `git` and `hf download --local-dir` leave in a directory.
_IGNORED_DIRECTORIES = frozenset((".git", ".cache"))


class StoredFile:
    """One file of a commit. The hashes are computed at their first use and kept."""

    __slots__ = ("_git_oid", "_sha256", "disk_path", "is_lfs", "mtime_ns", "path", "size_bytes")

    def __init__(self, path: str, disk_path: str, size_bytes: int, mtime_ns: int) -> None:
        self.path = path
        self.disk_path = disk_path
        self.size_bytes = size_bytes
        self.mtime_ns = mtime_ns
        name = path.rpartition("/")[2]
        self.is_lfs = not (name == ".gitattributes" or name.endswith(GIT_FILE_SUFFIXES))
        self._sha256 = ""
        self._git_oid = ""

    @property
    def whole(self) -> FileSlice:
        return FileSlice(self.disk_path, self.size_bytes, self.mtime_ns, 0, self.size_bytes)

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits: of the contents, or of path, size and modification time if that
        would take long.
        """
        if not self._sha256:
            if self.is_lfs and self.size_bytes > MAX_HASHED_BYTES:
                self._sha256 = hashlib.sha256(
                    f"{self.path}\0{self.size_bytes}\0{self.mtime_ns}".encode()
                ).hexdigest()
            else:
                self._sha256 = hashlib.sha256(self._read()).hexdigest()
        return self._sha256

    @property
    def xet_hash(self) -> str:
        """64 hexadecimal digits: not the Merkle hash of the real Xet, but as unique."""
        return self.sha256[::-1]

    @property
    def git_oid(self) -> str:
        """40 hexadecimal digits: the id of the git blob, which for a file in LFS is that of its
        pointer.
        """
        if not self._git_oid:
            blob = self._pointer() if self.is_lfs else self._read()
            self._git_oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        return self._git_oid

    def _pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize "
            f"{self.size_bytes}\n"
        ).encode()

    def _read(self) -> bytes:
        with open(self.disk_path, "rb") as file:
            return file.read()

    def tree_entry(self) -> dict[str, Any]:
        """Returns the file as the tree and paths-info endpoints list it.

        Without `xetHash`, which would make huggingface_hub's snapshot_download ask for Xet tokens
        instead of the file.
        """
        entry: dict[str, Any] = {
            "type": "file",
            "oid": self.git_oid,
            "size": self.size_bytes,
            "path": self.path,
        }
        if self.is_lfs:
            entry["lfs"] = {
                "oid": self.sha256,
                "size": self.size_bytes,
                "pointerSize": len(self._pointer()),
            }
        return entry

    def sibling(self, with_blobs: bool) -> dict[str, Any]:
        """Returns the file as the repository's information lists it, with sizes and hashes if
        `with_blobs`.
        """
        entry: dict[str, Any] = {"rfilename": self.path}
        if with_blobs:
            entry |= {"size": self.size_bytes, "blobId": self.git_oid}
            if self.is_lfs:
                entry["lfs"] = {
                    "size": self.size_bytes,
                    "sha256": self.sha256,
                    "pointerSize": len(self._pointer()),
                }
        return entry


class Commit:
    """A listing of a directory.

    `paths` has the paths of files and directories, sorted; a directory comes before what it
    contains.
    """

    def __init__(self, directory: str, parent: str) -> None:
        self.files = {file.path: file for file in list_files(directory)}
        self.directories = {
            path[:at] for path in self.files for at in range(len(path)) if path[at] == "/"
        }
        self.paths = sorted(self.files.keys() | self.directories)
        newest_ns = max((file.mtime_ns for file in self.files.values()), default=0)
        self.date = date_text(newest_ns)
        digest = hashlib.sha1(parent.encode())
        for path in sorted(self.files):
            file = self.files[path]
            digest.update(f"{path}\0{file.size_bytes}\0{file.mtime_ns}\n".encode())
        self.sha = digest.hexdigest()

    def tree_entry(self, path: str) -> dict[str, Any]:
        if path in self.files:
            return self.files[path].tree_entry()
        return {
            "type": "directory",
            "oid": hashlib.sha1(f"{self.sha}/{path}".encode()).hexdigest(),
            "size": 0,
            "path": path,
        }

    def paths_under(self, directory: str, recursive: bool) -> list[str]:
        """Returns what is in `directory` ("" for the root), with everything below it if
        `recursive`.
        """
        prefix = f"{directory}/" if directory else ""
        inside = [path for path in self.paths if path.startswith(prefix)]
        return inside if recursive else [path for path in inside if "/" not in path[len(prefix) :]]


class Repository:
    """A dataset repository: commits by sha, branches and tags by name, and who may see it (`token`
    may, if it is private or gated).
    """

    def __init__(
        self, repository_id: str, private: bool, gated: str | bool, token: str | None
    ) -> None:
        self.repository_id = repository_id
        self.private = private
        self.gated = gated
        self.token = token
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._newest = ""

    def add_commit(self, directory: str, branches: list[str], tags: list[str]) -> str:
        """Adds a commit on top of the newest one, moves the branches and tags to it, and returns
        its sha.
        """
        # The parent is hashed in, so that adding an unchanged directory gives a new commit too, as
        # `git commit --allow-empty` does.
        commit = Commit(directory, parent=self._newest or self.repository_id)
        self.commits[commit.sha] = commit
        self.branches |= dict.fromkeys(branches, commit.sha)
        self.tags |= dict.fromkeys(tags, commit.sha)
        self._newest = commit.sha
        return commit.sha

    def find(self, revision: str) -> Commit | None:
        """Returns the commit of a branch, a tag or a sha (all 40 digits)."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


def date_text(time_ns: int) -> str:
    """Returns a time since the epoch as the Hub's API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time_ns // 10**9))


def list_files(directory: str) -> Iterator[StoredFile]:
    """Yields the regular files under a directory."""
    # Links are followed, because the snapshots in huggingface_hub's cache are made of them.
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in _IGNORED_DIRECTORIES]
        for name in names:
            disk_path = os.path.join(folder, name)
            status = os.stat(disk_path)
            if stat.S_ISREG(status.st_mode):
                path = os.path.relpath(disk_path, directory).replace(os.sep, "/")
                yield StoredFile(path, disk_path, status.st_size, status.st_mtime_ns)
