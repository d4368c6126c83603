"""The unpacked columns of one row group, and single rows of them as bytes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The selected columns of one row group.

    Attributes:
      first_row: row in the file of its first row.
      columns: feature key -> array `(rows, *shape)`, or a sequence of str, (images) bytes or
        (language) lists; and the texts.
      nbytes: bytes held.
      problems: row -> what is wrong with it, for rows that cannot be handed out.
    """

    first_row: int
    columns: dict[str, npt.NDArray[Any] | Sequence[Any]]
    nbytes: int
    problems: Mapping[int, str] = field(default_factory=dict)
    _records: dict[tuple[str, ...], Records] = field(default_factory=dict)

    def only(self, rows: npt.NDArray[np.int64]) -> RowGroup:
        """Returns some of its rows, as rows 0, 1, 2, ...; nothing of the others is held."""
        chosen = rows - self.first_row
        columns: dict[str, npt.NDArray[Any] | Sequence[Any]] = {
            key: column[chosen]
            if isinstance(column, np.ndarray)
            else [column[row] for row in chosen.tolist()]
            for key, column in self.columns.items()
        }
        problems = (
            {
                place: self.problems[row]
                for place, row in enumerate(rows.tolist())
                if row in self.problems
            }
            if self.problems
            else {}
        )
        return RowGroup(0, columns, nbytes=0, problems=problems)

    def records(self, keys: tuple[str, ...]) -> Records:
        """Returns the values of columns that are arrays, row by row: a single row is then one
        piece.
        """
        found = self._records.get(keys)
        if found is None:
            arrays = {
                key: column for key in keys if isinstance(column := self.columns[key], np.ndarray)
            }
            table = np.empty(
                len(next(iter(arrays.values()))),
                [(key, array.dtype, array.shape[1:]) for key, array in arrays.items()],
            )
            for key, array in arrays.items():
                table[key] = array
                self.columns[key] = table[key]  # so that nothing is held twice
            found = self._records[keys] = Records(table.view(np.uint8).data, table.dtype)
        return found


class Records(NamedTuple):
    """Rows as bytes, one after the other, each of a structured dtype with the columns as fields."""

    rows: memoryview
    dtype: np.dtype[Any]
