"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from lerobot_grain import InvalidRequestError


def check_can_be_written(path: Path, option: str) -> None:
    """Checks that a file may be made, before a minute is spent on its contents.

    Raises:
      InvalidRequestError: its directory does not exist, or it is a directory itself.
    """
    if not path.parent.is_dir():
        raise InvalidRequestError(f"{option} {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise InvalidRequestError(f"{option} {path}: it is a directory; expected a file")


def write_whole(path: Path, contents: bytes, option: str) -> None:
    """Writes a file under another name and renames it, so that it is never there in part; if it is
    ended meanwhile, as by Ctrl-C, nothing is left.

    Raises:
      InvalidRequestError: the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(contents)
            # As other files of this user, not for the owner alone.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        raise InvalidRequestError(f"{option} {path}: cannot be written ({error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
