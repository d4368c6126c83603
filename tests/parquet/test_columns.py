"""Features without a value: a declared shape with a 0, stored as lists of whatever a writer calls
what it has never seen.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.info import Feature
from lerobot_grain._parquet import table as parquet_table
from lerobot_grain._parquet.columns import to_numpy
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table
from lerobot_grain.testing import write_dataset

ROWS = 5
NOTHING: list[Any] = [[]] * ROWS
KINDS = {
    "nulls": pa.list_(pa.null()),
    "large lists of nulls": pa.large_list(pa.null()),
    "numbers": pa.list_(pa.float64()),
    "texts": pa.list_(pa.string()),
    "structs": pa.list_(pa.struct([("a", pa.int8())])),
    "lists": pa.list_(pa.list_(pa.null())),
    "fixed, nulls": pa.list_(pa.null(), 0),
    "fixed, numbers": pa.list_(pa.float32(), 0),
    "fixed, lists": pa.list_(pa.list_(pa.int64(), 3), 0),
}


def stored(column: pa.Array) -> pa.ChunkedArray:
    """Returns a column as it is read of a file, in two row groups."""
    out = io.BytesIO()
    pq.write_table(pa.table({"other": range(len(column)), "key": column}), out, row_group_size=3)
    table = open_table(InMemoryFile("org/name@1a2b", out.getvalue()), "a.parquet")
    groups = [
        table.read_group(group, ["key"]).column("key")
        for group in range(table.metadata.num_row_groups)
    ]
    assert [len(group) for group in groups] == [
        min(3, len(column) - start) for start in range(0, len(column), 3)
    ]
    return pa.chunked_array([chunk for group in groups for chunk in group.chunks])


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_lists_of_any_type(kind: str, shape: tuple[int, ...], dtype: str) -> None:
    found = to_numpy(
        stored(pa.array(NOTHING, KINDS[kind])), Feature("key", dtype, shape), where="a"
    )
    assert (found.dtype, found.shape) == (np.dtype(dtype), (ROWS, *shape))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[[], []]] * ROWS, pa.list_(pa.list_(pa.null()))),
        pa.array([[[], []]] * ROWS, pa.list_(pa.list_(pa.float32()), 2)),
        pa.array([[[], []]] * ROWS, pa.list_(pa.list_(pa.null(), 0), 2)),
    ],
    ids=str,
)
def test_lists_of_empty_lists(column: pa.Array) -> None:
    found = to_numpy(stored(column), Feature("key", "float32", (2, 0)), where="a")
    assert found.dtype == np.float32
    assert found.shape == (ROWS, 2, 0)
    with pytest.raises(
        DatasetFormatError,
        match=r"a: feature 'key' has 2 values at axis 0 in some row; expected 3 everywhere",
    ):
        to_numpy(stored(column), Feature("key", "float32", (3, 0)), where="a")


def test_more_empty_lists_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array([[[], []]] * ROWS, pa.list_(pa.list_(pa.null(), 0), 2))
    # 3 rows and the 6 lists in them, 4 bytes each.
    monkeypatch.setattr(parquet_table, "_MAX_UNPACKED_BYTES", 36)
    assert len(stored(column)) == ROWS
    monkeypatch.setattr(parquet_table, "_MAX_UNPACKED_BYTES", 35)
    with pytest.raises(
        DatasetFormatError,
        match=r"row group 0: column 'key' holds 9 lists without a value; at most 35 bytes",
    ):
        stored(column)


@pytest.mark.parametrize(
    ("column", "shape", "text"),
    [
        (
            pa.array(NOTHING, pa.list_(pa.null())),
            (3,),
            "has 0 values at axis 0 in some row; expected 3 everywhere",
        ),
        (
            pa.array(NOTHING, pa.list_(pa.null(), 0)),
            (3,),
            "has 0 values at axis 0 in some row; expected 3 everywhere",
        ),
        (
            pa.array(NOTHING, pa.list_(pa.null())),
            (1,),
            "has 0 values at axis 0 in some row; expected 1 everywhere",
        ),
        (
            pa.array([[None, None]] * ROWS, pa.list_(pa.null())),
            (0,),
            "has 2 values at axis 0 in some row; expected 0 everywhere",
        ),
        (
            pa.array([[None, None]] * ROWS, pa.list_(pa.null())),
            (2,),
            "has 10 missing values; every row needs one",
        ),
        (
            pa.array([[], [1.0], [], [], []]),
            (0,),
            "has 1 values at axis 0 in some row; expected 0 everywhere",
        ),
        (
            pa.array([[], [1.0], [], [], []]),
            (2, 0),
            "has 0 values at axis 0 in some row; expected 2 everywhere",
        ),
        (
            pa.array([[], None, [], [], []], pa.list_(pa.null())),
            (0,),
            "has 1 missing values; every row needs one",
        ),
        (pa.nulls(ROWS), (0,), "has values of type null at axis 0; expected lists of 0"),
        (pa.array([1.0] * ROWS), (0,), "has values of type double at axis 0; expected lists of 0"),
    ],
    ids=str,
)
def test_what_is_not_as_empty_as_declared_is_refused(
    column: pa.Array, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(DatasetFormatError) as caught:
        to_numpy(stored(column), Feature("key", "float32", shape), where="a")
    assert str(caught.value) == f"a: feature 'key' {text}"


@pytest.mark.parametrize("kind", ["nulls", "numbers", "fixed, numbers"])
@pytest.mark.parametrize("shape", [[0], [2, 0]], ids=str)
def test_in_a_dataset(tmp_path: Path, kind: str, shape: list[int]) -> None:
    """Alone, next to others, in windows, in batches and in statistics."""
    root = write_dataset(
        tmp_path / "data", episode_lengths=[4, 3], fps=10, cameras=(), statistics=False
    ).directory
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.append_column("nothing", pa.array([[]] * 7, KINDS[kind])), path, row_group_size=3
    )
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["nothing"] = {"dtype": "float32", "shape": shape, "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    repository = lg.open_repository(root)
    for features in (["nothing"], ["nothing", "index"], None):
        for windows in (None, {"nothing": [0.0, 0.1]}):
            dataset = lg.LeRobotIterDataset(
                repository, features=features, delta_timestamps=windows, num_epochs=2
            )
            expected = ((2,) if windows else ()) + tuple(shape)
            examples = list(dataset)
            assert len(examples) == 14
            assert {
                (example["nothing"].shape, str(example["nothing"].dtype)) for example in examples
            } == {(expected, "float32")}
            assert next(iter(dataset.batch(5)))["nothing"].shape == (5, *expected)
    stats = lg.compute_stats(repository, features=["nothing", "action"])
    assert stats["nothing"]["mean"].shape == (0,)
    assert lg.check(repository).is_fine
