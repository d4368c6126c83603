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
      InvalidRequestError: its directory does not exist, or it is a directory or a device itself.
    """
    if not path.parent.is_dir():
        raise InvalidRequestError(f"{option} {path}: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise InvalidRequestError(
            f"{option} {path}: it is a directory or a device; expected a file"
        )


def write_whole(path: Path, contents: bytes, option: str) -> None:
    """Writes a file under another name and renames it, so that it is never there in part; if it is
    ended meanwhile, as by Ctrl-C, nothing is left. A link stays, and its file is written.

    Raises:
      InvalidRequestError: the file cannot be written.
    """
    try:
        file_path = path.resolve()
        handle, name = tempfile.mkstemp(
            dir=file_path.parent, prefix=f".{file_path.name}.", suffix=".part"
        )
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(contents)
            # As other files of this user, not for the owner alone.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, file_path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except (OSError, RuntimeError) as error:
        # RuntimeError: links that lead to each other.
        raise InvalidRequestError(f"{option} {path}: cannot be written ({error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
