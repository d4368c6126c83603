"""Storage Buckets of the loopback Hub: files without versions, which are overwritten in place.

Idea: a bucket maps paths to files on disk. To overwrite one is to map its path to another file;
links that were signed before go on serving the old contents, as the content-addressed storage of
the real Hub does.

Listings and headers are what huggingface_hub 2.4 reads. A recursive listing has files only, and a
prefix is compared as text: `log` finds `logs/1` too.
"""

from __future__ import annotations

import os
from typing import Any

from lerobot_grain.testing._hub.model import StoredFile, date_text, list_files


class Bucket:
    """A bucket, and who may see it (`token` may, if it is private)."""

    def __init__(self, bucket_id: str, directory: str, private: bool, token: str | None) -> None:
        self.repository_id = bucket_id
        self.private = private
        self.token = token
        self.files = {file.path: file for file in list_files(directory)}

    def put(self, path: str, disk_path: str) -> None:
        """Adds or overwrites a file."""
        status = os.stat(disk_path)
        self.files[path] = StoredFile(path, disk_path, status.st_size, status.st_mtime_ns)

    def information(self) -> dict[str, Any]:
        """Returns what the API says of the bucket as a whole."""
        return {
            "id": self.repository_id,
            "author": self.repository_id.partition("/")[0],
            "private": self.private,
            "createdAt": date_text(min((file.mtime_ns for file in self.files.values()), default=0)),
            "size": sum(file.size_bytes for file in self.files.values()),
            "totalFiles": len(self.files),
        }

    def entries(self, prefix: str, recursive: bool) -> list[dict[str, Any]]:
        """Returns the listing of what begins with `prefix`; if not `recursive`, with directories in
        place of what is below them.
        """
        found = {
            path: self.file_entry(file)
            for path, file in self.files.items()
            if path.startswith(prefix)
        }
        if recursive:
            return [entry for _, entry in sorted(found.items())]
        depth = prefix.count("/") + 2 if prefix else 1
        shown: dict[str, dict[str, Any]] = {}
        for path in sorted(found):
            cut = "/".join(path.split("/")[:depth])
            directory = {"type": "directory", "path": cut, "uploadedAt": found[path]["uploadedAt"]}
            shown.setdefault(cut, found[path] if cut == path else directory)
        return list(shown.values())

    def file_entry(self, file: StoredFile) -> dict[str, Any]:
        """Returns one file as listings have it."""
        date = date_text(file.mtime_ns)
        return {
            "type": "file", "path": file.path, "size": file.size_bytes, "xetHash": file.xet_hash,
            "mtime": date, "uploadedAt": date,
        }  # fmt: skip
