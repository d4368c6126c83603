"""Batches as Arrow record batches: what goes over the wire between a reader and its consumer.

A column is a key. An array of numbers is one raw buffer, `(examples,)` values of a fixed number of
bytes, whose dtype and shape stand in the metadata of the field: nothing is copied on either side.
Texts are strings of Arrow, texts of a window lists of them, and language is JSON. So a batch that
comes from elsewhere is data and nothing else: no pickle is read.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._reading.batches import Batch

_TEXT = pa.string()
_TEXTS = pa.list_(pa.string())
_FIELD = b"array"
_MAX_WIDTH = (1 << 31) - 1
# Of the dtypes that a column may name: bool, (u)int, float. The others would be references.
_KINDS = "biuf"


def record_batch_of(batch: Batch) -> Any:
    """Returns a batch as a record batch, which shares the memory of its arrays.

    Raises:
      InvalidRequestError: a value is none that can be sent.
    """
    fields = []
    columns = []
    for key, value in batch.items():
        column, description = _column(key, value)
        metadata = {_FIELD: json.dumps(description)}
        fields.append(pa.field(key, column.type, metadata=metadata))
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def batch_of(found: Any) -> Batch:
    """Returns the batch in a record batch; its arrays are read-only views of that.

    Raises:
      StorageError: it was not made by `record_batch_of`.
    """
    try:
        # Offsets that lead out of a buffer would be followed.
        found.validate(full=True)
        return {
            field.name: _value(field, column)
            for field, column in zip(found.schema, found.columns, strict=True)
        }
    except (
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise StorageError(
            f"a reader sent a record batch with the schema {str(found.schema)[:200]!r}: {error}; "
            "expected the one of a batch; use the same version of lerobot_grain on both sides"
        ) from None


def empty_like(schema: Any) -> Any:
    """Returns a record batch of no example."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def _column(key: str, value: Any) -> tuple[Any, Any]:
    """Returns the column of a value of a batch, and what its field says of it: dtype and shape of
    an array in one example; `None` of texts.
    """
    if isinstance(value, list):
        return pa.array(value, _TEXTS if isinstance(value[0], list) else _TEXT), None
    shape = value.shape[1:]
    if value.dtype.hasobject:
        return pa.array([_json_of(key, item) for item in value], _TEXTS), ["object", shape]
    width = value.dtype.itemsize * math.prod(shape)
    if value.dtype.kind not in _KINDS or not 0 < width <= _MAX_WIDTH:
        raise InvalidRequestError(
            f"a reader: {key!r} is {value.dtype} {shape} in an example; expected bool, int or "
            "float, of 1 byte to 2 GiB; leave it out with features="
        )
    buffer = pa.py_buffer(np.ascontiguousarray(value))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(value), [None, buffer])
    return column, [value.dtype.str, shape]


def _json_of(key: str, item: Any) -> list[str]:
    """Returns the objects of one example, in C order."""
    try:
        values = item.ravel().tolist() if isinstance(item, np.ndarray) else [item]
        return [json.dumps(each) for each in values]
    except TypeError as error:
        raise InvalidRequestError(
            f"a reader: {key!r} holds what JSON has no form for ({error}); expected texts, "
            "numbers, lists and dicts; leave it out with features="
        ) from None


def _value(field: Any, column: Any) -> Any:
    description = json.loads(field.metadata[_FIELD])
    if description is None:
        return column.to_pylist()
    name, shape = description
    if name == "object":
        rows = column.to_pylist()
        width = math.prod(shape)
        # Before memory for so many is taken.
        if any(len(texts) != width for texts in rows):
            raise ValueError(f"{field.name!r} has not {width} objects in each example")
        found = np.empty((len(rows), width), object)
        for row, texts in enumerate(rows):
            for place, text in enumerate(texts):
                found[row, place] = json.loads(text)
        return found.reshape(len(column), *shape)
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise ValueError(f"{field.name!r} is {dtype}")
    count = len(column) * math.prod(shape)
    start = column.offset * column.type.byte_width
    data = column.buffers()[1]
    return np.frombuffer(data, dtype, count, start).reshape(len(column), *shape)
