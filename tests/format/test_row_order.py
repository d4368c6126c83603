"""Rows that lie in no order in their file: put in order by `frame_index`, or `index`, or refused;
and what it costs to know that.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lerobot_grain as lg
from lerobot_grain._format.episodes import episode_table
from lerobot_grain._format.row_order import IN_ORDER, ExpectedRows, order_of_group
from lerobot_grain._parquet.columns import reordered
from lerobot_grain._parquet.table import ParquetTable
from lerobot_grain._reading.rows.timestamps import episode_timestamps
from lerobot_grain.testing import (
    Camera,
    Feature,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)
from tests.support.datasets import change_info, examples_of, make_info
from tests.support.installed import JSON

LENGTHS = [7, 12, 5, 9]
TOP, PICTURE = "top", "picture"
DATA, INFO = "data/chunk-000/file-{:03d}.parquet", "meta/info.json"
FEATURES = {
    "array": Feature(dtype="float32", shape=(2, 3)),
    "count": Feature(dtype="uint32"),
    "note": Feature(dtype="string"),
}
CAMERAS = (
    Camera(key=TOP, height=64, width=96, codec="h264", gop=3),
    Camera(key=PICTURE, height=32, width=80, kind="image"),
)
Places = npt.NDArray[np.int64]
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """One data file, a row group for each episode, values of every kind."""
    return write_dataset(
        tmp_path_factory.mktemp("row_order") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=CAMERAS,
        features=FEATURES,
        tasks=("pick", "place"),
        statistics=False,
    )


@pytest.fixture(scope="module")
def expected(written: WrittenDataset) -> list[dict[str, Any]]:
    return examples_of(written.directory)


@pytest.fixture
def directory(written: WrittenDataset, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(written.directory, tmp_path / "copy")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A dataset of numbers only, of one episode of 40 rows."""
    return write_dataset(
        tmp_path / "numbers",
        episode_lengths=[40],
        fps=10,
        cameras=(),
        state_size=2,
        statistics=False,
    ).directory


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for key, value in other.items():
            assert np.array_equal(one[key], value), key


def change_data(directory: Path, *changes: Change, number: int = 0, **options: Any) -> None:
    """Writes a data file again; in one row group, unless the options of the writer say
    otherwise.
    """
    path = directory / DATA.format(number)
    table = pq.read_table(path)
    for change in changes:
        table = change(table)
    pq.write_table(table, path, **options)


def taken(places: Any) -> Change:
    return lambda table: table.take(pa.array(places))


def with_column(name: str, values: Any) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return change


def without(*names: str) -> Change:
    return lambda table: table.drop_columns(list(names))


def undeclare(directory: Path, *names: str) -> None:
    def change(info: dict[str, Any]) -> None:
        for name in names:
            del info["features"][name]

    change_info(directory, change)


def refusal(directory: Path, **arguments: Any) -> str:
    with pytest.raises(lg.DatasetFormatError) as caught:
        examples_of(directory, **arguments)
    return str(caught.value).removeprefix(f"{directory}, {DATA.format(0)}, ")


def shuffled_in_episodes(seed: int) -> Places:
    rng = np.random.default_rng(seed)
    starts = np.cumsum(LENGTHS) - LENGTHS
    return np.concatenate(
        [start + rng.permutation(length) for start, length in zip(starts, LENGTHS, strict=True)]
    )


ORDERS = {
    "two rows": [0, 1, 3, 2, *range(4, 33)],
    "the first of an episode last": [*range(1, 7), 0, *range(7, 33)],
    "in each episode": shuffled_in_episodes(0),
    "episodes mixed": np.random.default_rng(1).permutation(33),
    "episodes in another order": [*range(24, 33), *range(7, 24), *range(7)],
    "backwards": range(32, -1, -1),
}


# --- put in order --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
def test_rows_of_a_row_group_in_any_order(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    """Numbers, texts, tasks, embedded images, and the frames of video that belong to them."""
    change_data(directory, taken(ORDERS[name]))
    found = examples_of(directory)
    assert_same(found, expected)
    codes = read_barcodes(np.stack([example[TOP] for example in found]))
    assert codes[:, :2].tolist() == [
        [int(example["episode_index"]), int(example["frame_index"])] for example in found
    ]


@pytest.mark.parametrize(
    "shuffle",
    [None, lg.Shuffle(seed=1, clip_length=4, num_parts=2, buffer_size=8)],
    ids=["sequential", "shuffled"],
)
def test_windows_and_batches_of_them(
    directory: Path, written: WrittenDataset, shuffle: lg.Shuffle | None
) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]))
    windows = {
        "frame_index": [-0.1, 0.0, 0.1],
        "note": [0.0, 0.2],
        PICTURE: [0.1],
        "action": [0.0, 0.3],
    }
    batches = [
        list(
            lg.LeRobotIterDataset(
                root, shuffle=shuffle, num_epochs=1, delta_timestamps=windows
            ).batch(8)
        )
        for root in (directory, written.directory)
    ]
    for found, wanted in zip(*batches, strict=True):
        for key, value in wanted.items():
            assert np.array_equal(found[key], value), key
        steps = np.diff(found["frame_index"], axis=1)
        assert (
            steps == ~(found["frame_index_is_pad"][:, 1:] | found["frame_index_is_pad"][:, :-1])
        ).all()


def test_row_groups_that_are_not_kept(
    directory: Path, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only the rows that are needed stay in memory."""
    monkeypatch.setattr("lerobot_grain._reading.options._MIN_LARGE_BYTES", 0)
    change_data(directory, taken(ORDERS["episodes mixed"]))
    options = lg.ReadOptions(memory_budget_bytes=2000)
    keys = [key for key in expected[0] if key not in (TOP, PICTURE)]
    with pytest.warns(lg.LeRobotGrainWarning, match="row groups that"):
        found = examples_of(directory, read_options=options, features=keys)
    assert_same(found, [{key: example[key] for key in keys} for example in expected])


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_files_of_one_episode(tmp_path: Path, version: str) -> None:
    data = write_dataset(
        tmp_path / "data",
        version=version,
        episode_lengths=[9, 6],
        fps=10,
        cameras=(),
        statistics=False,
    )
    expected = examples_of(data.directory)
    for episode, length in enumerate([9, 6]):
        path = data.directory / f"data/chunk-000/episode_{episode:06d}.parquet"
        pq.write_table(
            pq.read_table(path).take(pa.array(np.random.default_rng(episode).permutation(length))),
            path,
        )
    assert_same(examples_of(data.directory), expected)


def test_the_column_need_not_be_declared_nor_selected(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]))
    undeclare(directory, "frame_index", "index", "episode_index")
    found = examples_of(directory, features=["action", "note"])
    assert_same(found, [{key: example[key] for key in ("action", "note")} for example in expected])


@pytest.mark.parametrize("order", ["in each episode", "episodes mixed"])
def test_index_decides_where_there_is_no_frame_index(
    directory: Path, expected: list[dict[str, Any]], order: str
) -> None:
    change_data(directory, taken(ORDERS[order]), without("frame_index"))
    undeclare(directory, "frame_index")
    assert_same(
        examples_of(directory),
        [{key: v for key, v in example.items() if key != "frame_index"} for example in expected],
    )


def test_index_alone_tells_the_episodes_too(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]), without("frame_index", "episode_index"))
    undeclare(directory, "frame_index", "episode_index")
    found = examples_of(directory, features=["index", "action"])
    assert_same(found, [{key: example[key] for key in ("index", "action")} for example in expected])


def test_doubles_and_small_integers(directory: Path, expected: list[dict[str, Any]]) -> None:
    frames = [float(frame) for length in LENGTHS for frame in range(length)]
    change_data(directory, with_column("frame_index", frames), taken(ORDERS["episodes mixed"]))
    assert_same(examples_of(directory), expected)
    change_data(
        directory,
        lambda table: with_column("frame_index", table["frame_index"].to_numpy().astype(np.uint8))(
            table
        ),
    )
    assert_same(examples_of(directory), expected)


@pytest.mark.parametrize(
    "frames",
    [range(1, 8), [0, 1, 2, 5, 6, 9, 20], [-3, -2, -1, 0, 1, 2, 3]],
    ids=["from 1", "gaps", "below 0"],
)
def test_numbers_that_follow_each_other_in_some_way(
    directory: Path, expected: list[dict[str, Any]], frames: Any
) -> None:
    values = [*frames, *(frame for length in LENGTHS[1:] for frame in range(length))]
    change_data(directory, with_column("frame_index", values), taken(ORDERS["episodes mixed"]))
    found = examples_of(directory)
    assert [int(example["frame_index"]) for example in found] == values
    assert_same(
        [{**example, "frame_index": 0} for example in found],
        [{**example, "frame_index": 0} for example in expected],
    )


def test_depth_language_and_pictures_of_other_kinds(directory: Path) -> None:
    """Structs, lists of structs, texts as JSON, and plain bytes."""

    def picture(row: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((4, 6), row * 100, np.uint16)).save(out, "PNG")
        return out.getvalue()

    messages = pa.array(
        [
            [{"role": "user", "content": f"{row}", "tool_calls": [f'{{"row": {row}}}']}]
            for row in range(33)
        ]
    )

    def change(table: pa.Table) -> pa.Table:
        return table.append_column(
            "deep", pa.array([picture(row) for row in range(33)])
        ).append_column("messages", messages)

    change_data(directory, change, taken(ORDERS["episodes mixed"]))
    deep = {"dtype": "image", "shape": [4, 6, 1], "names": None, "info": {"is_depth_map": True}}
    messages = {"dtype": "language", "shape": [1], "names": None}
    change_info(directory, lambda info: info["features"].update(deep=deep, messages=messages))
    for row, example in enumerate(examples_of(directory, features=["deep", "messages"])):
        assert example["deep"][0, 0, 0] == row * 100
        assert example["messages"] == [
            {"role": "user", "content": f"{row}", "tool_calls": [{"row": row}]}
        ]


class _Array2D(pa.ExtensionType):
    """As `datasets` registers it for features of two axes."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.list_(pa.float32())), "lerobot_grain.tests.array2d")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> _Array2D:
        del storage_type, serialized
        return cls()


COLUMNS = {
    "extension": pa.ExtensionArray.from_storage(
        _Array2D(),
        pa.array([[[float(row)] * 2] for row in range(4)], pa.list_(pa.list_(pa.float32()))),
    ),
    "json": pa.array([f"{row}" for row in range(4)]).cast(JSON),
    "view of strings": pa.array(list("abcd"), pa.string_view()),
    "view of bytes": pa.array([b"a", b"b", b"c", b"d"], pa.binary_view()),
    "categories": pa.array(list("abca")).dictionary_encode(),
    "empty lists": pa.array([[], [], [], []], pa.list_(pa.null())),
    "nothing": pa.nulls(4),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_type_of_column_can_be_put_in_order(kind: str) -> None:
    column = pa.chunked_array([COLUMNS[kind][:1], COLUMNS[kind][1:]])
    found = reordered(pa.table({"a": column, "b": [0, 1, 2, 3]}), np.array([3, 0, 2, 1], np.uint8))
    assert found["a"].to_pylist() == [column.to_pylist()[place] for place in (3, 0, 2, 1)]
    assert found["a"].type == column.type
    assert found["b"].to_pylist() == [3, 0, 2, 1]


def test_statistics_of_some_episodes(directory: Path, written: WrittenDataset) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]))
    found, wanted = (
        lg.compute_stats(lg.open_repository(root), episodes=[1, 2])
        for root in (directory, written.directory)
    )
    for key, statistics in wanted.items():
        for name, value in statistics.items():
            np.testing.assert_allclose(found[key][name], value, err_msg=f"{key} {name}")


# --- refused -------------------------------------------------------------------------------------

FRAMES = [frame for length in LENGTHS for frame in range(length)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            [with_column("frame_index", [0, 1, 1, *FRAMES[3:]]), without("index")],
            "row group 0: episode 0 has frame_index 1 in two rows; expected every number once, "
            "since they tell the order of the rows; write the file again without the rows that "
            "are there twice",
        ),
        (
            [
                with_column("frame_index", [*FRAMES[:30], 0, 1, 2]),
                taken(ORDERS["episodes mixed"]),
                without("index"),
            ],
            "row group 0: episode 3 has frame_index 0 in two rows; expected every number once, "
            "since they tell the order of the rows; write the file again without the rows that "
            "are there twice",
        ),
        (
            [with_column("frame_index", [None, *FRAMES[1:]]), without("index")],
            "row group 0: feature 'frame_index' has 1 missing values; every row needs one. It "
            "tells the order of the rows: write the file again with an integer in each row of it, "
            "or without this column",
        ),
        (
            [with_column("frame_index", [0.5, *FRAMES[1:]]), without("index")],
            "row group 0: feature 'frame_index' is stored as float64 with values that its "
            "declared dtype int64 cannot hold. It tells the order of the rows: write the file "
            "again with an integer in each row of it, or without this column",
        ),
        (
            [with_column("frame_index", [f"{frame}" for frame in FRAMES]), without("index")],
            "row group 0: feature 'frame_index' is stored as object; its declared dtype is int64. "
            "It tells the order of the rows: write the file again with an integer in each row of "
            "it, or without this column",
        ),
        (
            [without("frame_index"), with_column("index", [*range(32), None])],
            "row group 0: feature 'index' has 1 missing values; every row needs one. It tells the "
            "order of the rows: write the file again with an integer in each row of it, or "
            "without this column",
        ),
        (
            [with_column("episode_index", [0] * 8 + [1] * 11 + [2] * 5 + [3] * 9)],
            "row group 0: it has 8 rows with episode_index 0; the episode table puts 7 rows of "
            "episode 0 there. If the file belongs to this table, write the file again ordered by "
            "index",
        ),
        (
            [with_column("episode_index", [0] * 7 + [1] * 12 + [2] * 5 + [8] * 9)],
            "row group 0: it has 0 rows with episode_index 3; the episode table puts 9 rows of "
            "episode 3 there. If the file belongs to this table, write the file again ordered by "
            "index",
        ),
        (
            [with_column("episode_index", [-(10**18)] * 7 + [1] * 12 + [2] * 5 + [10**18] * 9)],
            "row group 0: it has 7 rows with episode_index -1000000000000000000; the episode "
            "table puts 0 rows of episode -1000000000000000000 there. If the file belongs to this "
            "table, write the file again ordered by index",
        ),
        (
            [without("frame_index", "index"), taken(ORDERS["episodes in another order"])],
            "row group 0: row 0 of the file has episode_index 3; the episode table expects "
            "episode 0 there, and no column frame_index or index tells their order; write the "
            "file again ordered by index",
        ),
        (
            [without("episode_index", "index"), taken(ORDERS["episodes mixed"])],
            "row group 0: frame_index says that its rows are in no order, and no column "
            "episode_index tells the episode of each; write the file again ordered by index",
        ),
    ],
    ids=[
        "a number twice",
        "a number twice in no order",
        "missing numbers",
        "half numbers",
        "texts",
        "missing index",
        "a row of another episode",
        "an episode of another table",
        "numbers beyond reason",
        "episodes in no order without numbers",
        "no episodes",
    ],
)
def test_rows_that_cannot_be_put_in_order(
    directory: Path, changes: list[Change], text: str
) -> None:
    change_data(directory, *changes)
    assert refusal(directory, features=["action"]) == text


WITHOUT_ORDER = {
    "null": [None] * 33,
    "one null": [None, *FRAMES[1:]],
    "all 0": [0] * 33,
    "repeated": [frame // 2 for frame in FRAMES],
    "starting again": [frame % 3 for frame in FRAMES],
    "texts": [f"{frame}" for frame in FRAMES],
    "half": [frame + 0.5 for frame in FRAMES],
}


@pytest.mark.parametrize("rows", [33, 10, 3, 1])
@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_index_decides_where_frame_index_tells_no_order(
    directory: Path, expected: list[dict[str, Any]], name: str, rows: int
) -> None:
    order = np.concatenate(
        [
            start + np.random.default_rng(start).permutation(min(rows, 33 - start))
            for start in range(0, 33, rows)
        ]
    )
    for places in (range(33), order):
        change_data(
            directory,
            lambda table: table.sort_by("index"),
            with_column("frame_index", WITHOUT_ORDER[name]),
            taken(places),
        )
        change_data(directory, row_group_size=rows)
        found = examples_of(directory, features=["action", "index"])
        assert_same(
            found, [{key: example[key] for key in ("action", "index")} for example in expected]
        )


@pytest.mark.parametrize("rows", [33, 3])
def test_index_decides_where_it_is_not_that_of_the_recorder(
    directory: Path, expected: list[dict[str, Any]], rows: int
) -> None:
    """Gaps in it, as of rows that were dropped; compared over row groups."""
    values = [1000 + 3 * row for row in range(33)]
    change_data(
        directory,
        with_column("frame_index", [frame % 3 for frame in FRAMES]),
        with_column("index", values),
        row_group_size=rows,
    )
    found = examples_of(directory, features=["action"])
    assert_same(found, [{"action": example["action"]} for example in expected])


def test_index_tells_the_episodes_of_rows_in_no_order(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]), without("episode_index"))
    undeclare(directory, "episode_index")
    found = examples_of(directory, features=["index", "frame_index", "action"])
    assert_same(
        found,
        [{key: example[key] for key in ("index", "frame_index", "action")} for example in expected],
    )


def test_frame_index_decides_where_index_tells_no_order(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    for values in ([None] * 33, [0] * 33):
        change_data(
            directory,
            lambda table: table.sort_by(
                [("episode_index", "ascending"), ("frame_index", "ascending")]
            ),
        )
        change_data(
            directory,
            with_column("index", pa.array(values, pa.int64())),
            taken(ORDERS["episodes mixed"]),
        )
        found = examples_of(directory, features=["action"])
        assert_same(found, [{"action": example["action"]} for example in expected])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            [with_column("frame_index", [100 - frame for frame in FRAMES])],
            "row 6 of the file has frame_index 94 and index 6, row 0 has frame_index 100 and "
            "index 0",
        ),
        (
            [with_column("frame_index", [1, 0, *FRAMES[2:]])],
            "row 1 of the file has frame_index 0 and index 1, row 0 has frame_index 1 and index 0",
        ),
        (
            [with_column("index", [0, 2, 1, *range(3, 33)]), taken([*range(31), 32, 31])],
            "row 1 of the file has frame_index 1 and index 2, row 2 has frame_index 2 and index 1",
        ),
    ],
    ids=["backwards", "two rows", "index"],
)
def test_columns_that_contradict_each_other(
    directory: Path, changes: list[Change], text: str
) -> None:
    change_data(directory, *changes)
    assert refusal(directory, features=["action"]) == (
        f"row group 0: frame_index and index contradict each other: {text}; expected one order by "
        "both. Write the file again without the column that is wrong"
    )


def test_row_groups_that_neither_column_puts_in_order(numbers: Path) -> None:
    """Each group on its own is in order, and the numbers of both columns start again in the next
    one.
    """
    again = [row % 10 for row in range(40)]
    change_data(
        numbers, with_column("frame_index", again), with_column("index", again), row_group_size=10
    )
    text = (
        "row group 0: its rows of episode 0 have index 0 to 9, those in row group 1, which "
        "comes after it, 0 to 9; expected all of the "
    )
    assert text.replace("group 0", "group 1", 1).split(",")[0] in refusal(
        numbers, features=["index"]
    )


def test_without_numbers_rows_are_taken_as_they_lie(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    order = ORDERS["in each episode"]
    change_data(directory, taken(order), without("frame_index", "index"))
    undeclare(directory, "frame_index", "index")
    found = examples_of(directory, features=["action"])
    assert_same(
        found, [{"action": expected[place]["action"]} for place in np.asarray(order).tolist()]
    )


# --- episodes that are split over row groups -----------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_an_episode_over_several_row_groups(
    directory: Path, expected: list[dict[str, Any]], rows: int
) -> None:
    """Each of them in no order, but the whole in order of the groups."""
    order = np.concatenate(
        [
            start + np.random.default_rng(start).permutation(min(rows, 33 - start))
            for start in range(0, 33, rows)
        ]
    )
    change_data(directory, taken(order), row_group_size=rows)
    assert_same(examples_of(directory), expected)


def test_rows_in_no_order_over_several_row_groups(directory: Path) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]), row_group_size=11)
    found = refusal(directory, features=["action"])
    assert found.startswith("row group 0: it has ")
    assert found.endswith(
        ". If the file belongs to this table, write the file again ordered by index"
    )


def test_row_groups_in_another_order(directory: Path) -> None:
    """Each on its own is in order."""
    change_data(directory, taken([*range(7, 19), *range(7), *range(19, 33)]), row_group_size=7)
    assert (
        "row group 0: it has 0 rows with episode_index 0; the episode table puts 7 rows of "
        "episode 0 there" in refusal(directory)
    )


def shifted(by: int) -> Change:
    return lambda table: with_column("frame_index", np.asarray(table["frame_index"]) * 2 + by)(
        table
    )


@pytest.mark.parametrize("by", [0, 1, -50], ids=["gaps", "from 1", "below 0"])
def test_other_numbers_are_compared_with_those_of_other_row_groups(numbers: Path, by: int) -> None:
    expected = examples_of(numbers, features=["action"])
    order = np.concatenate(
        [start + np.random.default_rng(start).permutation(10) for start in range(0, 40, 10)]
    )
    change_data(numbers, taken(order), shifted(by), row_group_size=10)
    assert_same(examples_of(numbers, features=["action"]), expected)


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (
            [*range(10, 20), *range(10), *range(20, 40)],
            "row group 0: its rows of episode 0 have frame_index 21 to 39, those in row group 1, "
            "which comes after it, 1 to 19; expected all of the rows in order; write the file "
            "again ordered by index",
        ),
        # The parts at the borders are in order; the last one is not after the first one.
        (
            [*range(10, 40), *range(10)],
            "row group 0: its rows of episode 0 have frame_index 21 to 39, those in row group 3, "
            "which comes after it, 1 to 19; expected all of the rows in order; write the file "
            "again ordered by index",
        ),
        (
            [*range(9), 10, 9, *range(11, 40)],
            "row group 0: its rows of episode 0 have frame_index 1 to 21, those in row group 1, "
            "which comes after it, 19 to 39; expected all of the rows in order; write the file "
            "again ordered by index",
        ),
    ],
    ids=["swapped", "the first one last", "one row"],
)
def test_other_numbers_in_no_order_over_row_groups(
    numbers: Path, order: list[int], text: str
) -> None:
    change_data(numbers, taken(order), shifted(1), row_group_size=10)
    assert refusal(numbers, features=["action"]) == text


def test_one_episode_in_no_order_over_row_groups(numbers: Path) -> None:
    change_data(numbers, taken(np.random.default_rng(0).permutation(40)), row_group_size=10)
    assert refusal(numbers, features=["action"]).endswith(
        "expected all of the rows in order; write the file again ordered by index"
    )
    usual = examples_of(
        write_dataset(
            numbers.parent / "other", episode_lengths=[40], cameras=(), statistics=False
        ).directory
    )
    assert [int(example["frame_index"]) for example in usual] == list(range(40))


def test_a_row_group_whose_numbers_are_usual_needs_no_other(numbers: Path) -> None:
    """A number that is wrong is refused where it is read, and not before."""
    change_data(
        numbers,
        with_column("frame_index", [*range(35), 35, 35, 37, 38, 39]),
        without("index"),
        row_group_size=10,
    )
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(numbers, shuffle=None, features=["frame_index"]))
    ) as examples:
        assert [int(next(examples)["frame_index"]) for _ in range(30)] == list(range(30))
        with pytest.raises(
            lg.DatasetFormatError, match="row group 3: episode 0 has frame_index 35 in two rows"
        ):
            next(examples)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_order_of_any_row_group(data: st.DataObject) -> None:
    """The result is the expected rows, or an error where a row is missing."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    table = _table(lengths)
    total = sum(lengths)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    expected = ExpectedRows.of(table, 0, start, stop)
    order = np.array(data.draw(st.permutations(range(stop - start))), np.int64)
    gap, first = data.draw(st.integers(1, 3)), data.draw(st.integers(-2, 2))
    numbers = (expected.frames * gap + first)[order]
    found = order_of_group(
        expected.episodes[order], numbers, expected, column="frame_index", where="here"
    )
    places = np.arange(stop - start) if found.places is None else found.places
    assert order[places].tolist() == list(range(stop - start))
    is_split = start not in np.cumsum([0, *lengths]) or stop not in np.cumsum([0, *lengths])
    assert bool(found.unusual) == (not found.is_placed)
    assert not (found.unusual and not is_split)
    if gap == 1 and first == 0:
        assert found.is_placed
        assert (found is IN_ORDER) == (order.tolist() == list(range(stop - start)))


def _table(lengths: list[int]) -> Any:
    count = len(lengths)
    columns: dict[str, Any] = {"episode_index": np.arange(count), "length": np.array(lengths)}
    columns |= {f"data/{name}_index": np.zeros(count, np.int64) for name in ("chunk", "file")}
    return episode_table(columns, info=make_info(), where="here")


# --- what it costs -------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """(row group, columns) of everything that is read of data files, in the order of the reads."""
    found: list[tuple[int, tuple[str, ...]]] = []
    read_group = ParquetTable.read_group

    def recorded(table: ParquetTable, group: int, columns: Any, *, keep: bool = False) -> Any:
        if table.path.startswith("data/"):
            found.append((group, tuple(columns)))
        return read_group(table, group, columns, keep=keep)

    monkeypatch.setattr(ParquetTable, "read_group", recorded)
    return found


@pytest.mark.parametrize(
    "order", [range(33), [*range(10, -1, -1), *range(11, 33)]], ids=["in order", "in no order"]
)
def test_the_column_is_read_once_in_a_process(
    directory: Path, reads: Any, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    """Once for each row group, however often it is read, by whatever dataset of the
    repository.
    """
    monkeypatch.setattr("lerobot_grain._reading.options._MIN_LARGE_BYTES", 0)
    change_data(directory, taken(order), row_group_size=11)
    repository = lg.open_repository(directory)
    options = lg.ReadOptions(memory_budget_bytes=200)
    for _ in range(2):
        with pytest.warns(lg.LeRobotGrainWarning, match="row groups that"):
            examples_of(repository, features=["action"], read_options=options, num_epochs=3)
    assert len(reads) > 6
    assert sorted(group for group, columns in reads if "frame_index" in columns) == [0, 1, 2]
    # Only where the other one says that they lie in no order.
    assert [group for group, columns in reads if "index" in columns] == (
        [] if order == range(33) else [0]
    )
    reads.clear()
    examples_of(pickle.loads(pickle.dumps(repository)), features=["action"])
    assert sorted(group for group, columns in reads if "frame_index" in columns) == [0, 1, 2], (
        "another process knows nothing"
    )


def test_other_numbers_are_read_once_too(numbers: Path, reads: Any) -> None:
    change_data(numbers, shifted(1), row_group_size=10)
    examples_of(numbers, features=["action"], episodes=[0], num_epochs=2)
    # Columns that are read for a row group itself, and for the others.
    for columns in (("action", "episode_index", "frame_index"), ("episode_index", "frame_index")):
        groups = [group for group, others in reads if others == columns]
        assert len(groups) == len(set(groups)), columns


def test_what_is_kept_on_disk_is_found_there(
    directory: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    change_data(directory, taken(ORDERS["episodes mixed"]))
    hub.add_repository("rows/kept", directory, tags=["v3.0"])
    arguments = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "features": ["action"]}
    first = examples_of("rows/kept", **arguments)
    hub.clear_requests()
    for epochs in (1, 2):
        assert_same(examples_of("rows/kept", **arguments, num_epochs=epochs), first * epochs)
    assert not [
        request
        for request in hub.requests()
        if request.kind == "cdn" and str(request.file).startswith("data/")
    ]


OTHER = shifted(3)


@pytest.mark.parametrize("change", [lambda table: table, OTHER], ids=["usual", "other numbers"])
def test_row_groups_that_are_fetched_together(
    numbers: Path, hub: LoopbackHub, tmp_path: Path, change: Change
) -> None:
    """In one request with the column that orders them; `index` in one more for each that is in no
    order, and the other numbers in one.
    """
    expected = examples_of(numbers, features=["action"])
    order = np.concatenate(
        [start + np.random.default_rng(start).permutation(10) for start in range(0, 40, 10)]
    )
    # More than is read with the footer.
    noise = pa.array(np.random.default_rng(0).integers(0, 256, (40, 4000), np.uint8).tolist())
    change_data(
        numbers,
        taken(order),
        change,
        lambda table: table.append_column("noise", noise),
        row_group_size=10,
    )
    name = f"rows/together-{int(change is OTHER)}"
    hub.add_repository(name, numbers, tags=["v3.0"])
    hub.clear_requests()
    found = examples_of(
        name,
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
        features=["action"],
        num_epochs=2,
        read_options=lg.ReadOptions(storage=lg.StorageOptions(disk_cache_bytes=0)),
    )
    assert_same(found, expected * 2)
    asked = [
        request
        for request in hub.requests()
        if request.kind == "cdn" and str(request.file).startswith("data/")
    ]
    # And the footer.
    assert len(asked) == 2 + 4 + (change is OTHER)


# --- times of rows -------------------------------------------------------------------------------


def test_times_of_episodes(tmp_path: Path) -> None:
    """In the order of rows, of any episodes, from several files with several row groups; none where
    a file has no such column.
    """
    data = write_dataset(
        tmp_path / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
        episodes_per_data_file=2,
        rows_per_row_group=8,
        statistics=False,
    ).directory
    times = [np.random.default_rng(e).random(length) for e, length in enumerate(LENGTHS)]
    shuffled = [np.random.default_rng(e).permutation(8) for e in range(2)]
    order = np.concatenate([shuffled[0], 8 + shuffled[1], [18, 17, 16]])
    change_data(
        data,
        lambda table: with_column("timestamp", np.concatenate(times[:2]))(table),
        taken(order),
        row_group_size=8,
    )
    change_data(data, without("timestamp"), number=1)
    repository = lg.open_repository(data)
    found = episode_timestamps(repository, np.array([3, 1, 0, 1]))
    assert found[0] is None
    for values, episode in zip(found[1:], (1, 0, 1), strict=True):
        assert values is not None
        assert values.dtype == np.float64
        assert values.tolist() == times[episode].tolist()
    assert episode_timestamps(repository, np.array([], np.int64)) == []


def test_times_of_episodes_read_what_they_need(numbers: Path, reads: Any) -> None:
    change_data(numbers, row_group_size=10)
    for _ in range(2):
        (found,) = episode_timestamps(lg.open_repository(numbers), np.array([0]))
        assert found is not None
        np.testing.assert_allclose(found, np.arange(40) / 10, rtol=1e-6)
    assert {columns for _, columns in reads} == {("timestamp", "episode_index", "frame_index")}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([None] + [0.5] * 39, "feature 'timestamp' has 1 missing values"),
        (["a"] * 40, "feature 'timestamp' is stored as object"),
    ],
    ids=["missing", "texts"],
)
def test_times_that_are_none(numbers: Path, values: Any, text: str) -> None:
    change_data(numbers, with_column("timestamp", values))
    with pytest.raises(lg.DatasetFormatError, match=text):
        episode_timestamps(lg.open_repository(numbers), np.array([0]))


def test_real_and_golden_data_sets_are_in_order(shared: Path) -> None:
    for folder in itertools.chain((shared / "golden").iterdir(), (shared / "real").iterdir()):
        files = sorted(folder.glob("data/*/*.parquet"))
        if not files:
            continue
        with (
            pytest.warns(lg.LeRobotGrainWarning)
            if folder.name == "lerobot_studio_v30"
            else contextlib.nullcontext()
        ):
            repository = lg.open_repository(folder)
        keys = [key for key, feature in repository.features.items() if feature.is_array]
        examples_of(repository, features=keys[:1])
        assert set(repository.row_orders.values()) == {IN_ORDER}, folder
