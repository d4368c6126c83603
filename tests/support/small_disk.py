"""A disk that is full soon."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(path: Path, *, num_bytes: int) -> Iterator[Path]:
    """Yields the directory `path`, which is made, as a disk that holds no more than `num_bytes`;
    skips the test where mounting is not allowed.
    """
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting is not allowed")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
