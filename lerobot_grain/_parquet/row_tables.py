"""Tables that users give of rows or episodes, as Parquet or CSV: bytes -> columns."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._parquet.columns import as_format_error
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns

TABLE_SUFFIXES = (".parquet", ".csv")


def read_row_table(
    data: bytes, path: str, columns: Mapping[str, npt.DTypeLike]
) -> dict[str, npt.NDArray[Any]]:
    """Returns column -> array `(rows,)`, of those columns that the table has.

    Args:
      data: the bytes of the file.
      path: of the file, which ends with one of `TABLE_SUFFIXES`.
      columns: column -> dtype, to which its values are converted where none changes.

    Raises:
      DatasetFormatError: it is not such a table, a column is of another type, or a value is
        missing.
    """
    found = _read_csv(data, path) if path.endswith(".csv") else _read_parquet(data, path, columns)
    return {
        name: _as_dtype(found[name], np.dtype(dtype), f"{path}, column {name}")
        for name, dtype in columns.items()
        if name in found
    }


def _read_parquet(
    data: bytes, path: str, columns: Mapping[str, npt.DTypeLike]
) -> dict[str, npt.NDArray[Any]]:
    table = open_table(InMemoryFile("a table of rows", data), path)
    found = read_columns(table, list(columns))
    # Without row groups there are no rows either.
    return found or {name: np.empty(0) for name in columns if name in table.leaves}


def _read_csv(data: bytes, path: str) -> dict[str, npt.NDArray[Any]]:
    with as_format_error(path):
        table = csv.read_csv(io.BytesIO(data))
        return {
            name: _without_nulls(table.column(name), f"{path}, column {name}")
            for name in table.column_names
        }


def _without_nulls(column: pa.ChunkedArray, where: str) -> npt.NDArray[Any]:
    if column.null_count:
        raise DatasetFormatError(
            f"{where}: {column.null_count} of {len(column)} values are missing; every row needs one"
        )
    return np.asarray(column.to_numpy())


def _as_dtype(values: npt.NDArray[Any], dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    kinds = {"i": "iu", "f": "iuf", "b": "b"}[dtype.kind]
    if len(values) and values.dtype.kind not in kinds:
        expected = {"i": "whole numbers", "f": "numbers", "b": "true or false"}[dtype.kind]
        raise DatasetFormatError(
            f"{where}: its values are of type {values.dtype}, or some are missing; expected "
            f"{expected} in every row"
        )
    return values.astype(dtype)
