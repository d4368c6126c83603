"""Opens files in whose places others may have put anything else, and does not wait for that."""

from __future__ import annotations

import os
import stat

# Whoever opens a named pipe to read it waits for a writer, unless told not to.
NO_WAITING = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str, flags: int) -> int:
    """Returns the descriptor of a regular file.

    Args:
      path: of the file.
      flags: of `os.open`; those of `NO_WAITING` are added.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, flags | NO_WAITING, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return descriptor
