"""Tests whether a storage keeps the promises of `lerobot_grain.Storage`.

It looks at the storage from outside, next to a directory with the same files, and knows nothing of
how it reads.
"""

from __future__ import annotations

import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from lerobot_grain._base.errors import (
    DatasetFormatError,
    LeRobotGrainError,
    MissingFileError,
    StorageError,
)

_ABSENT = "data/chunk-999/file-999.parquet"
_THREADS, _RANGES, _SEED = 8, 40, 0


class _Range(NamedTuple):
    """The bytes `[start, stop)` of a file, as `lerobot_grain.ByteRange` has them."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def check_storage(storage: Any, directory: str | os.PathLike[str]) -> None:
    """Checks a storage of your own against a directory with the same dataset.

    That it lists `meta/`, knows sizes, reads exact ranges from many threads, refuses what is not
    there with the right errors, and goes to another process.

    Args:
      storage: a `lerobot_grain.Storage`.
      directory: with the same files. All of them are read.

    Raises:
      AssertionError: it breaks a promise; the text says which.
    """
    contents = _contents(directory)
    listed = {path: len(data) for path, data in contents.items() if path.startswith("meta/")}
    assert dict(storage.list_metadata()) == listed, "list_metadata differs from the directory"
    commit = storage.commit
    assert commit is None or (len(commit) == 40 and set(commit) <= set("0123456789abcdef")), (
        f"commit is {commit!r}, expected 40 hexadecimal digits or None"
    )
    for path, data in contents.items():
        size = storage.size_bytes(path)
        assert size == len(data), f"size_bytes of {path} is {size}, expected {len(data)}"
    _check_ranges(storage, contents)
    again = pickle.loads(pickle.dumps(storage))
    assert (again.description, again.commit) == (storage.description, commit), (
        "a pickled storage has another description or commit"
    )
    _check_ranges(again, contents)
    _check_refusals(storage, contents)
    storage.close()
    _check_ranges(storage, contents)


def _contents(directory: str | os.PathLike[str]) -> dict[str, bytes]:
    found = {}
    for folder, _, names in os.walk(directory, followlinks=True):
        for name in names:
            place = os.path.join(folder, name)
            with open(place, "rb") as file:
                found[os.path.relpath(place, directory).replace(os.sep, "/")] = file.read()
    return dict(sorted(found.items()))


def _check_ranges(storage: Any, contents: dict[str, bytes]) -> None:
    draw = random.Random(_SEED)
    paths = [path for path, data in contents.items() if data]
    wanted = []
    for path in (draw.choice(paths) for _ in range(_RANGES)):
        start, stop = sorted(draw.randint(0, len(contents[path])) for _ in range(2))
        wanted.append((path, _Range(start, stop)))
    wanted += [(path, _Range(0, len(contents[path]))) for path in paths]

    def read(asked: tuple[str, _Range]) -> bytes:
        payload: bytes = storage.read_ranges(asked[0], [asked[1]])[0]
        return payload

    with ThreadPoolExecutor(_THREADS) as pool:
        for (path, each), data in zip(wanted, pool.map(read, wanted), strict=True):
            assert data == contents[path][each.start : each.stop], (
                f"{path} bytes [{each.start}, {each.stop}) differ from the directory"
            )


def _check_refusals(storage: Any, contents: dict[str, bytes]) -> None:
    assert _ABSENT not in contents
    for path, expected in ((_ABSENT, MissingFileError), ("../elsewhere", DatasetFormatError)):
        text = _refusal(storage, path, expected)
        assert text is not None, f"size_bytes of {path} raised no {expected.__name__}"
        assert text.startswith(storage.description), (
            f"a message does not begin with the description: {text}"
        )
    path, data = next(iter(contents.items()))
    try:
        storage.read_ranges(path, [_Range(0, len(data) + 1)])
    except StorageError:
        return
    raise AssertionError("a range past the end of a file raised no StorageError")


def _refusal(storage: Any, path: str, expected: type[LeRobotGrainError]) -> str | None:
    """Returns the text of the error with which a storage refuses a path; None if it does not."""
    try:
        storage.size_bytes(path)
    except expected as error:
        return str(error)
    return None
