"""Files from which the loopback Hub sends slices."""

from __future__ import annotations

import os
from collections import OrderedDict

from lerobot_grain.testing._hub.http import FileSlice

MAX_OPEN_FILES = 256


class OpenFiles:
    """Reads slices of files, and keeps the files that were used last open."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def check(self, part: FileSlice) -> None:
        """Raises OSError if the file is not the one that was listed: a commit's contents must not
        change.
        """
        status = os.stat(part.disk_path)
        if (status.st_size, status.st_mtime_ns) != (part.size_bytes, part.mtime_ns):
            raise OSError(
                f"{part.disk_path} has changed since its commit was added to the loopback Hub; "
                "add a commit of another directory"
            )

    def read(self, part: FileSlice) -> bytes:
        descriptor, *version = self._descriptors.get(part.disk_path, (-1, 0, 0))
        if version != [part.size_bytes, part.mtime_ns]:
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = os.open(part.disk_path, os.O_RDONLY)
            self._descriptors[part.disk_path] = (descriptor, part.size_bytes, part.mtime_ns)
            if len(self._descriptors) > MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1][0])
        self._descriptors.move_to_end(part.disk_path)
        return os.pread(descriptor, part.stop - part.start, part.start)
