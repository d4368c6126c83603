"""Arrow columns -> NumPy arrays, texts, encoded images and messages, as info.json declares them.

Rules:
* The values of a column are checked against the declared feature; nothing is converted that would
  become another value.
* Arrow does not look into values that it reads from a file: a text that is not UTF-8, or a date
  that Python does not have, is an error only here, when it becomes a Python object.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lerobot_grain._base.errors import DatasetFormatError, short_repr
from lerobot_grain._format.info import Feature

# The errors that pyarrow raises at damaged data; ValueError also for names and texts that are not
# UTF-8.
DAMAGED = (pa.ArrowException, OSError, EOFError, ValueError)

# The values of an example are made one by one.
_MAX_EXAMPLE_VALUES = 1 << 20


def to_numpy(column: pa.ChunkedArray, feature: Feature, *, where: str) -> npt.NDArray[Any]:
    """Returns the values of a low-dimensional feature, `(rows, *shape)`, `(rows,)` for a scalar, of
    its declared dtype.

    Raises:
      DatasetFormatError: a value is missing, has another shape than declared, or does not fit the
        declared dtype.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    rows = len(values)
    shape = () if feature.is_scalar else feature.shape
    if 0 in shape:
        _check_empty(values, shape, f"{where}: feature {feature.key!r}")
        return np.empty((rows, *shape), np.dtype(feature.dtype))
    if feature.is_scalar and _is_list(values.type):
        shape = (1,)
    for axis, length in enumerate(shape):
        values = _flatten(values, length, f"{where}: feature {feature.key!r}", axis)
    if _is_list(values.type):
        raise DatasetFormatError(
            f"{where}: feature {feature.key!r} has more dimensions than its declared shape "
            f"{feature.shape}"
        )
    if values.null_count:
        raise DatasetFormatError(
            f"{where}: feature {feature.key!r} has {values.null_count} missing values; every row "
            "needs one"
        )
    with as_format_error(f"{where}: feature {feature.key!r}"):
        array = flat_values(values)
    cast = _cast(array, feature, where)
    return np.ascontiguousarray(
        cast.reshape((rows,) if feature.is_scalar else (rows, *feature.shape))
    )


def flat_values(values: pa.Array) -> npt.NDArray[Any]:
    """Returns the values of a column that has no lists, `(rows,)`; read-only where they are those
    in Arrow's memory.

    Arrow's own `to_numpy` imports pandas where that is installed, which takes half a second and
    35 MiB of every process that streams. DLPack, the same memory, does not.
    """
    kind = values.type
    if not values.null_count:
        if pa.types.is_boolean(kind):
            return np.from_dlpack(values.cast(pa.uint8())).astype(np.bool_)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return np.from_dlpack(values)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return np.array(values.to_pylist(), object)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def reordered(table: pa.Table, places: npt.NDArray[np.integer[Any]]) -> pa.Table:
    """Returns the rows of a table in another order; `places`, `(rows,)`, says where each of them
    lies.
    """
    return pa.table({name: _taken(table.column(name), places) for name in table.column_names})


def _taken(column: pa.ChunkedArray, places: npt.NDArray[np.integer[Any]]) -> pa.ChunkedArray:
    try:
        return column.take(pa.array(places))
    except pa.ArrowNotImplementedError:
        # Types that Arrow does not take rows of, such as views of strings; it puts together slices
        # of all of them.
        values = column.combine_chunks()
        return pa.chunked_array([values.slice(place, 1) for place in places.tolist()], column.type)


def to_strings(column: pa.ChunkedArray, feature: Feature, *, where: str) -> list[str]:
    """Returns the values of a string feature."""
    with as_format_error(f"{where}: feature {feature.key!r}"):
        values: list[str] = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DatasetFormatError(
                f"{where}: feature {feature.key!r} has {short_repr(value)} in row {row} of its "
                "group; expected a string"
            )
    return values


def to_encoded_images(column: pa.ChunkedArray, feature: Feature, *, where: str) -> list[bytes]:
    """Returns the encoded images of an image feature: a struct with the field `bytes` (as lerobot
    embeds them), or plain binary.
    """
    values = column.combine_chunks()
    if pa.types.is_struct(values.type):
        if values.type.get_field_index("bytes") < 0:
            raise DatasetFormatError(
                f"{where}: image {feature.key!r} is a {str(values.type)[:400]}; expected a struct "
                "with a field bytes"
            )
        values = values.field("bytes")
    elif not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        raise DatasetFormatError(
            f"{where}: image {feature.key!r} is stored as {short_repr(str(values.type))}; "
            "expected encoded images, as bytes or as a struct with a field bytes"
        )
    with as_format_error(f"{where}: image {feature.key!r}"):
        images: list[bytes] = values.to_pylist()
    for row, image in enumerate(images):
        if not isinstance(image, bytes) or not image:
            raise DatasetFormatError(
                f"{where}: image {feature.key!r} has no bytes in row {row} of its group; images "
                "outside the table are not read"
            )
    return images


class LanguageColumn(Sequence[list[dict[str, Any]]]):
    """The values of a language feature, `(rows,)`: messages as lists of dicts.

    Every row of an episode repeats the same messages, so a value becomes Python objects when it is
    asked for, and not before.

    Args:
      column: lists of structs, as lerobot 0.6 writes them (its `datasets/language.py`).
      feature: which it is.
      where: names the row group in messages.

    Raises:
      DatasetFormatError: the column is something else, or a text in it is not UTF-8.
    """

    def __init__(self, column: pa.ChunkedArray, feature: Feature, *, where: str) -> None:
        self._values = column.combine_chunks()
        subject = f"{where}: feature {feature.key!r}"
        kind = self._values.type
        if not (pa.types.is_null(kind) or (_is_list(kind) and pa.types.is_struct(kind.value_type))):
            raise DatasetFormatError(
                f"{subject} is stored as {short_repr(str(kind))}; expected lists of messages, "
                "which are structs"
            )
        with as_format_error(subject):
            self._values.validate(full=True)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        """Returns the messages of a row, none for a missing value; `tool_calls`, which are JSON
        texts in the file, as what they say.
        """
        messages: list[dict[str, Any]] = self._values[row].as_py() or []
        for message in messages:
            if message and message.get("tool_calls"):
                message["tool_calls"] = [_decoded(call) for call in message["tool_calls"]]
        return messages


def _decoded(call: Any) -> Any:
    try:
        return json.loads(call)
    except (TypeError, ValueError, RecursionError):
        return call  # no JSON, or decoded already


def _flatten(
    values: pa.Array, length: int, subject: str, axis: int, *, may_be_empty: bool = False
) -> pa.Array:
    """Returns the elements of lists that must all have `length` elements, or, where that may be,
    all none.
    """
    if not _is_list(values.type):
        raise DatasetFormatError(
            f"{subject} has values of type {str(values.type)[:400]} at axis {axis}; expected "
            f"lists of {length}"
        )
    if values.null_count:
        raise DatasetFormatError(
            f"{subject} has {values.null_count} missing values; every row needs one"
        )
    if pa.types.is_fixed_size_list(values.type):
        lengths = np.array([values.type.list_size])
    else:
        lengths = np.unique(np.diff(flat_values(values.offsets)))
    if may_be_empty and not lengths.any():
        return values.flatten()
    if len(values) and (odd := lengths[lengths != length]).size:
        raise DatasetFormatError(
            f"{subject} has {odd[0]} values at axis {axis} in some row; expected {length} "
            "everywhere"
        )
    return values.flatten()


def _check_empty(values: pa.Array, shape: tuple[int, ...], subject: str) -> None:
    """Checks lists that are to hold no value: those of the axis of length 0 are empty, or all lists
    of an axis before it.

    The declared type of their values does not matter: a writer that has seen no value may call them
    lists of nulls, or of anything.
    """
    for axis, length in enumerate(shape):
        values = _flatten(values, length, subject, axis, may_be_empty=True)
        if len(values) == 0:
            return


def _cast(array: npt.NDArray[Any], feature: Feature, where: str) -> npt.NDArray[Any]:
    dtype = np.dtype(feature.dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise DatasetFormatError(
            f"{where}: feature {feature.key!r} is stored as {array.dtype}; its declared dtype is "
            f"{dtype}"
        )
    if array.dtype.kind in "iu" and dtype.kind in "iu" and len(array):
        limits = np.iinfo(dtype)
        # A cast back would bring a wrapped negative number home again.
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DatasetFormatError(
                f"{where}: feature {feature.key!r} is stored as {array.dtype} with values that "
                f"its declared dtype {dtype} cannot hold"
            )
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
        # Floating point may lose digits, as a declared float32 of stored doubles does in lerobot;
        # an integer or a bool must stay what it is.
        exact = dtype.kind == "f" or bool((cast.astype(array.dtype) == array).all())
    if not exact:
        raise DatasetFormatError(
            f"{where}: feature {feature.key!r} is stored as {array.dtype} with values that its "
            f"declared dtype {dtype} cannot hold"
        )
    return cast


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def example_column(kind: pa.DataType, feature: Feature) -> pa.ChunkedArray | None:
    """Returns a column of this type with one row of zeros and short texts, in lists as long as
    declared where the type leaves it open.

    A column that its type alone makes unreadable is found by converting this empty one. `None`
    where a row has too many values for that.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lengths: list[int] = []
    element = kind
    while _is_list(element):
        declared = feature.shape[len(lengths)] if len(lengths) < len(feature.shape) else 1
        if 0 in feature.shape:
            declared = 0  # as any list of it may be
        lengths.append(element.list_size if pa.types.is_fixed_size_list(element) else declared)
        element = element.value_type
    if math.prod(lengths) > _MAX_EXAMPLE_VALUES:
        return None
    value = _example_value(element)
    for length in reversed(lengths):
        value = [value] * length
    return pa.chunked_array([pa.array([value], kind)])


def element_dtype(kind: pa.DataType) -> str:
    """Returns the NumPy name of the numbers of a column, in lists or not; Arrow's name of the type
    of anything else.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while _is_list(kind):
        kind = kind.value_type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return str(np.dtype(kind.to_pandas_dtype()) if is_number else kind)


def _example_value(kind: pa.DataType) -> object:
    """Returns a value of a type; `None` for one that no feature has."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return {
            field.name: None if pa.types.is_nested(field.type) else _example_value(field.type)
            for field in fields
        }
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return 0
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "-"
    return b"-" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


@contextlib.contextmanager
def as_format_error(where: str) -> Iterator[None]:
    """Turns what pyarrow raises at damaged data into the format error; `where` begins its text."""
    try:
        yield
    except DAMAGED as error:
        raise DatasetFormatError(f"{where}: damaged parquet data ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, of bounded length."""
    return str(error).splitlines()[0][:400] if str(error).strip() else type(error).__name__
