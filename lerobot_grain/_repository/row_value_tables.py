"""Tables of weights or of valid rows, by the names that users give: files of this machine, or of
the dataset, where they are read at the pinned commit.

Which of the two is said by the name alone, never by what happens to be there: a text that begins
with `meta/` names a file of the dataset. A `Path`, and any other text, is one of this machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError, short_repr
from lerobot_grain._format.layout import (
    EPISODES_FOLDER,
    METADATA,
    SUBTASKS_PATH,
    TASKS_PATH,
)
from lerobot_grain._parquet.row_tables import TABLE_SUFFIXES, column_names, read_row_table
from lerobot_grain._repository.repository import Repository

_OF_DATASET = f"{METADATA}/"
# About what 10 million rows take as CSV.
_MAX_TABLE_BYTES = 256 << 20
_MAX_NAMED = 8


@dataclass(frozen=True, slots=True, eq=False)
class OpenedTable:
    """The contents of a table.

    Attributes:
      argument: that names it.
      name: of the file, for messages; with the dataset, if it is one of its files.
      contents: of the file.
      path: in the dataset; `None`: it is a file of this machine.
    """

    argument: str
    name: str
    contents: bytes
    path: str | None

    def columns(
        self, repository: Repository, kinds: Mapping[str, npt.DTypeLike]
    ) -> dict[str, npt.NDArray[Any]]:
        """Returns column -> array `(rows,)`, of those columns that the table has.

        Args:
          kinds: column -> dtype.

        Raises:
          DatasetFormatError: as `read_row_table`.
        """
        with self._checked(repository):
            return read_row_table(self.contents, self.name, kinds)

    def shown_columns(self) -> str:
        """Returns the names of all columns, for messages."""
        names = column_names(self.contents, self.name)
        more = f" and {len(names) - _MAX_NAMED} more" * (len(names) > _MAX_NAMED)
        return ", ".join(map(short_repr, names[:_MAX_NAMED])) + more if names else "no columns"

    @contextlib.contextmanager
    def _checked(self, repository: Repository) -> Iterator[None]:
        if self.path is None:
            yield
        else:
            with repository.storage.checked(self.path):
                yield


def open_table(
    repository: Repository, argument: str, given: str | os.PathLike[str], features: Sequence[str]
) -> OpenedTable:
    """Reads the file that an argument names.

    Args:
      features: those that it might have named instead, for messages.

    Raises:
      InvalidRequestError: there is no such file, or its name is not that of a table.
      DatasetFormatError: the file of the dataset is too large, or a Git LFS pointer.
      StorageError: the file of the dataset could not be read.
    """
    path = os.fsdecode(given)
    if not path.endswith(TABLE_SUFFIXES):
        raise InvalidRequestError(
            f"{argument}={path!r}: expected a .parquet or .csv table, or a feature with one value "
            f"in every row; the dataset has {', '.join(features) or 'no such feature'}"
        )
    if isinstance(given, str) and given.startswith(_OF_DATASET):
        return _of_dataset(repository, argument, given)
    try:
        contents = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        # A name with a null character is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(
            f"{argument}={path!r}: the table could not be read: {reason}"
        ) from None
    return OpenedTable(argument, path, contents, None)


def _of_dataset(repository: Repository, argument: str, path: str) -> OpenedTable:
    storage = repository.storage
    listing = storage.list_metadata()
    if path not in listing:
        # Those of the format itself have names of their own.
        tables = [
            each for each in listing if each.endswith(TABLE_SUFFIXES) and not _is_of_format(each)
        ]
        more = f" and {len(tables) - _MAX_NAMED} more" * (len(tables) > _MAX_NAMED)
        there = ", ".join(tables[:_MAX_NAMED]) + more if tables else "no table of rows"
        raise InvalidRequestError(
            f"{argument}={short_repr(path)}: {repository.description} has no such file; below "
            f"{_OF_DATASET} it has {there}. A file of this machine is named "
            f"{short_repr(f'./{path}')}"
        )
    return OpenedTable(
        argument,
        f"{repository.description}, {path}",
        storage.read_metadata(path, max_bytes=_MAX_TABLE_BYTES),
        path,
    )


def _is_of_format(path: str) -> bool:
    return path in (TASKS_PATH, SUBTASKS_PATH) or path.startswith(f"{EPISODES_FOLDER}/")
