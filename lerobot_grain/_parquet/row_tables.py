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
from lerobot_grain._parquet.columns import DAMAGED, first_line
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
    read = _read_csv if path.endswith(".csv") else _read_parquet
    found = read(data, path, columns)
    return {
        name: _as_dtype(found[name], np.dtype(dtype), f"{path}, column {name}")
        for name, dtype in columns.items()
        if name in found
    }


def column_names(data: bytes, path: str) -> list[str]:
    """Returns the names of all columns of a table; arguments and errors as of `read_row_table`."""
    if not path.endswith(".csv"):
        return list(open_table(InMemoryFile("a table of rows", data), path).leaves)
    try:
        with csv.open_csv(io.BytesIO(data)) as reader:
            return list(reader.schema.names)
    except DAMAGED as error:
        raise _damaged_csv(path, error) from None


def _read_parquet(
    data: bytes, path: str, columns: Mapping[str, npt.DTypeLike]
) -> dict[str, npt.NDArray[Any]]:
    table = open_table(InMemoryFile("a table of rows", data), path)
    # A row group without rows may have column chunks without bytes.
    if table.num_rows == 0:
        return {name: np.empty(0) for name in columns if name in table.leaves}
    return read_columns(table, list(columns))


def _read_csv(
    data: bytes, path: str, columns: Mapping[str, npt.DTypeLike]
) -> dict[str, npt.NDArray[Any]]:
    try:
        with csv.open_csv(io.BytesIO(data)) as reader:
            names = reader.schema.names
        found = [name for name in columns if name in names]
        if not found:
            return {}
        for name in found:
            if (count := names.count(name)) > 1:
                raise DatasetFormatError(
                    f"{path}: there are {count} columns {name!r}; expected one"
                )
        only = csv.ConvertOptions(include_columns=found)
        table = csv.read_csv(io.BytesIO(data), convert_options=only)
    except DAMAGED as error:
        raise _damaged_csv(path, error) from None
    return {name: _without_nulls(table.column(name), f"{path}, column {name}") for name in found}


def _damaged_csv(path: str, error: Exception) -> DatasetFormatError:
    return DatasetFormatError(f"{path}: could not be read as CSV ({first_line(error)})")


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
    if values.dtype.kind == "u" and dtype.kind == "i" and len(values):
        largest = int(values.max())
        if largest > np.iinfo(dtype).max:
            raise DatasetFormatError(f"{where}: {largest} is there; expected at most 2**63 - 1")
    return values.astype(dtype)
