"""Tables of texts: `meta/tasks.parquet` and `meta/subtasks.parquet`, number -> text. Pure.

Rows name a text by its number, so a table may have its rows in any order, numbers with gaps, and
more of them than are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import DatasetFormatError, short_repr

# The column of the texts as the version of lerobot that wrote the table calls it: they are the
# index of a pandas table.
_PANDAS_INDEX = "__index_level_0__"
_MAX_SHOWN = 8


def texts_of_table(
    columns: Mapping[str, npt.NDArray[Any]], kind: str, *, where: str
) -> dict[int, str]:
    """Returns the texts by their number.

    Args:
      columns: name -> array `(rows,)`, all that the file has.
      kind: `task` or `subtask`: the name of the column of texts, where there are several;
        `{kind}_index` numbers them.
      where: names the file in messages.

    Raises:
      DatasetFormatError: a column is missing or malformed, or a number has two texts.
    """
    index = f"{kind}_index"
    texts = [name for name, values in columns.items() if name != index and values.dtype == object]
    if len(texts) > 1:
        # Lists are objects too.
        texts = [
            name
            for name in texts
            if name == kind or all(isinstance(value, str | None) for value in columns[name])
        ]
    texts = next(([name] for name in (kind, _PANDAS_INDEX) if name in texts), texts)
    if index not in columns or len(texts) != 1:
        raise DatasetFormatError(
            f"{where}: found the columns {', '.join(columns)[:400]}; expected {index} and one of "
            "texts"
        )
    numbers = columns[index]
    values = columns[texts[0]]
    if numbers.dtype.kind not in "iuf" or not _are_integers(numbers):
        raise DatasetFormatError(
            f"{where}: {index} is {short_repr(numbers[:8].tolist())}...; expected integers"
        )
    if odd := [value for value in values if not isinstance(value, str)]:
        raise DatasetFormatError(
            f"{where}: found {short_repr(odd[0])} in column {texts[0][:400]}; expected texts"
        )
    found: dict[int, str] = {}
    for number, text in zip(numbers.astype(np.int64).tolist(), values.tolist(), strict=True):
        if found.setdefault(number, text) != text:
            raise DatasetFormatError(
                f"{where}: {index} {number} is {short_repr(found[number])} and "
                f"{short_repr(text)}; expected one text for a number"
            )
    return found


def _are_integers(numbers: npt.NDArray[Any]) -> bool:
    as_double = numbers.astype(np.float64)
    return bool(
        (
            np.isfinite(as_double)
            & (as_double == np.floor(as_double))
            & (np.abs(as_double) < 2.0**53)
        ).all()
    )


def numbers_shown(texts: Mapping[int, str]) -> str:
    """Returns which numbers a table has, for a message: `0 to 4`, or `0, 4, 9`."""
    numbers = sorted(texts)
    if not numbers:
        return "none"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:_MAX_SHOWN])) + (
        ", ..." if len(numbers) > _MAX_SHOWN else ""
    )


class UnreadableTexts(Mapping[int, str]):
    """A table of texts that is missing or malformed: an error for whoever looks into it, and for
    nobody else.

    Attributes:
      problem: what is wrong.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __getitem__(self, number: int) -> str:
        self._refuse()

    def __iter__(self) -> Iterator[int]:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DatasetFormatError(self.problem)
