"""Oddities of real datasets that the format does not promise: each is read, read with a
note, or refused in words.

The datasets here are written as the recorder writes them and then changed; what comes out must be
what came out before.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lerobot_grain as lg
from lerobot_grain._reading import options as read_options
from lerobot_grain.testing import (
    Camera,
    Feature,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)
from tests.support.datasets import change_info, change_table, examples_of
from tests.support.installed import JSON

TOP = "top"
LENGTHS = [7, 12, 5, 9]
INFO = "meta/info.json"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-{:03d}.parquet"
KINDS = {
    "array2": Feature(dtype="float64", shape=(2, 3)),
    "array3": Feature(dtype="int16", shape=(2, 1, 3)),
    "array4": Feature(dtype="uint8", shape=(1, 2, 2, 2)),
    "array5": Feature(dtype="float32", shape=(2, 1, 1, 2, 2)),
    "chunk": Feature(dtype="float32", shape=(4, 2)),
    "wide": Feature(dtype="float64", shape=(3,)),
    "count": Feature(dtype="uint32"),
    "is_done": Feature(dtype="bool"),
    "flags": Feature(dtype="bool", shape=(2,)),
    "note": Feature(dtype="string"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """Two data files, a video file for every episode."""
    return write_dataset(
        tmp_path_factory.mktemp("oddities") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(Camera(key=TOP, height=64, width=96, codec="h264", gop=3),),
        state_size=2,
        action_size=2,
        episodes_per_video_file=1,
        episodes_per_data_file=2,
        statistics=False,
        tasks=("pick", "place"),
    )


@pytest.fixture(scope="module")
def expected(written: WrittenDataset) -> list[dict[str, Any]]:
    return examples_of(lg.open_repository(written.directory))


@pytest.fixture
def directory(written: WrittenDataset, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(written.directory, tmp_path / "copy")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """No camera, one data file, features of every kind."""
    directory = tmp_path_factory.mktemp("rows") / "data"
    return write_dataset(
        directory, episode_lengths=LENGTHS, fps=10, cameras=(), features=KINDS, statistics=False
    )


@pytest.fixture
def rows_directory(rows: WrittenDataset, tmp_path: Path) -> Path:
    return shutil.copytree(rows.directory, tmp_path / "rows")


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for key, value in other.items():
            assert np.array_equal(one[key], value), key
            assert np.asarray(one[key]).dtype == np.asarray(value).dtype, key


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def renamed(old: str, new: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.rename_columns(
        [new if name == old else name for name in table.column_names]
    )


# --- info.json -----------------------------------------------------------------------------------

CAMERA_NAMES = ["height", "width", "channels"]
OLD_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
OLD_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
NEW_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
NEW_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

INFOS: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "float fps": (lambda info: info.update(fps=10.0), []),
    "no totals": (
        lambda info: [info.pop(name) for name in ("total_episodes", "total_frames", "total_tasks")],
        [],
    ),
    "totals of a larger dataset": (
        lambda info: info.update(total_episodes=50, total_frames=9999, total_tasks=3),
        [
            "total_episodes is 50, but the episode table has 4, which is what is read",
            "total_frames is 9999, but the episode table has 33, which is what is read",
        ],
    ),
    "templates of v2.x": (
        lambda info: info.update(data_path=OLD_DATA, video_path=OLD_VIDEO),
        [
            f"data_path is '{OLD_DATA}', that of a LeRobotDataset v2.x; '{NEW_DATA}' is used",
            f"video_path is '{OLD_VIDEO}', that of a LeRobotDataset v2.x; '{NEW_VIDEO}' is used",
        ],
    ),
    "video_path null": (
        lambda info: info.update(video_path=None),
        [f"video_path is null, but 'top' is a video; '{NEW_VIDEO}' is used"],
    ),
    "no video_path": (
        lambda info: info.pop("video_path"),
        [f"video_path is missing, but 'top' is a video; '{NEW_VIDEO}' is used"],
    ),
    "no data_path": (lambda info: info.pop("data_path"), []),
    "shape as CHW": (
        lambda info: info["features"][TOP].update(
            shape=[3, 64, 96], names=["channels", "height", "width"]
        ),
        [],
    ),
    "shape as CHW without names": (
        lambda info: info["features"][TOP].update(shape=[3, 64, 96], names=None),
        [],
    ),
    "shape as CHW, names as HWC": (
        lambda info: info["features"][TOP].update(shape=[3, 64, 96]),
        [
            f"camera 'top' has shape [3, 64, 96] and names {CAMERA_NAMES}, which do not fit; read "
            "with 3 channels"
        ],
    ),
    "names as dict": (
        lambda info: info["features"]["action"].update(names={"motors": ["a", "b"]}),
        [],
    ),
    "names null": (lambda info: info["features"]["action"].update(names=None), []),
    "no names": (lambda info: info["features"]["action"].pop("names"), []),
    "video_info": (
        lambda info: info["features"][TOP].update(video_info=info["features"][TOP].pop("info")),
        [],
    ),
    "neither info nor video_info": (lambda info: info["features"][TOP].pop("info"), []),
    "wrong codec": (
        lambda info: info["features"][TOP]["info"].update(
            {"video.codec": "av1", "video.pix_fmt": "yuvj420p"}
        ),
        [],
    ),
    "fps of features": (
        lambda info: [feature.update(fps=10.0) for feature in info["features"].values()],
        [],
    ),
    "another fps of a feature": (
        lambda info: info["features"]["action"].update(fps=50),
        [
            "1 features have an fps of their own, such as 'action': 50; it is not used, all have "
            "that of the dataset, 10"
        ],
    ),
    "extra keys": (
        lambda info: info.update(total_videos=4, total_chunks=1, encoding={"a": 1}, tools=[]),
        [],
    ),
    "a feature called task": (
        lambda info: info["features"].update(task={"dtype": "string", "shape": [1], "names": None}),
        [
            "feature 'task' is not read: examples have the text from the table of tasks under "
            "that key, as in lerobot"
        ],
    ),
}


@pytest.mark.parametrize("name", INFOS)
def test_info_that_is_odd_changes_nothing(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    change, notes = INFOS[name]
    change_info(directory, change)
    with pytest.warns(lg.LeRobotGrainWarning) if notes else contextlib.nullcontext() as caught:
        dataset = lg.LeRobotIterDataset(directory, shuffle=None, num_epochs=1)
    assert dataset.notes == dataset.repository.notes == tuple(f"{INFO}: {note}" for note in notes)
    if caught is not None:
        assert [str(warning.message) for warning in caught] == [
            f"{directory}: {note}" for note in dataset.notes
        ]
    assert_same(list(dataset), expected)


def test_notes_travel_with_the_repository_and_are_issued_once(directory: Path) -> None:
    change_info(directory, lambda info: info.update(total_frames=1))
    with pytest.warns(lg.LeRobotGrainWarning):
        repository = lg.open_repository(directory)
    again = pickle.loads(pickle.dumps(repository))
    assert again.notes == repository.notes == lg.LeRobotIterDataset(again).notes != ()


def test_a_size_that_is_not_that_of_the_video(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    change_info(directory, lambda info: info["features"][TOP].update(shape=[32, 32, 3]))
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"a frame has shape \(64, 96, 3\); info.json declares \(32, 32, 3\)",
    ):
        examples_of(directory)
    assert examples_of(directory, image_size=(64, 96))[0][TOP].shape == expected[0][TOP].shape


# --- cameras without files -----------------------------------------------------------------------


def test_a_camera_without_files_is_refused_when_it_is_read(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    shutil.rmtree(directory / "videos")
    without = [key for key in expected[0] if key != TOP]
    assert_same(
        examples_of(directory, features=without),
        [{key: example[key] for key in without} for example in expected],
    )
    for features in (None, [TOP]):
        with pytest.raises(
            lg.MissingFileError, match=r"there is no file videos/top/chunk-000/file-000.mp4"
        ):
            examples_of(directory, features=features)


def test_a_camera_that_no_table_knows_is_refused_when_it_is_selected(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    change_info(directory, lambda info: info["features"].update(ghost=info["features"][TOP]))
    assert_same(examples_of(directory, features=list(expected[0])), expected)
    for features in (None, ["ghost"]):
        with pytest.raises(
            lg.DatasetFormatError,
            match=r"camera 'ghost' has no video: .* name the other features in features=\[...\]",
        ):
            examples_of(directory, features=features)


# --- the episode table and its files -------------------------------------------------------------


def _shorten(table: pa.Table) -> pa.Table:
    stops = np.asarray(table.column("videos/top/to_timestamp")) - 0.1
    return with_column(table, "videos/top/to_timestamp", pa.array(stops))


def _second_table(directory: Path) -> None:
    other = directory / "meta/episodes/backup/chunk-000"
    other.mkdir(parents=True)
    shutil.copy(directory / EPISODES, other)


def _split_table(directory: Path) -> None:
    table = pq.read_table(directory / EPISODES)
    for number in range(table.num_rows):
        pq.write_table(
            table.slice(number, 1), directory / EPISODES.replace("file-000", f"file-{number:03d}")
        )


def _change_episodes(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda directory: change_table(directory / EPISODES, change)


def _as_doubles(table: pa.Table) -> pa.Table:
    for name in table.column_names:
        if pa.types.is_integer(table.schema.field(name).type):
            table = with_column(table, name, table.column(name).cast(pa.float64()))
    return table


def _change_data(change: Callable[[pa.Table], pa.Table], **options: Any) -> Callable[[Path], None]:
    """Changes the second data file only: the schemas of the two are different then."""
    return lambda directory: change_table(directory / DATA.format(1), change, **options)


def _other_files(directory: Path) -> None:
    pq.write_table(pa.table({"something": [1, 2]}), directory / DATA.format(7))
    (directory / "data/readme.txt").write_text("notes of my own")


def _tasks(**columns: Any) -> Callable[[Path], None]:
    return lambda directory: pq.write_table(pa.table(columns), directory / "meta/tasks.parquet")


LAYOUTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "to_timestamp one frame short": (_change_episodes(_shorten), []),
    "no from and to index": (
        _change_episodes(
            lambda table: table.drop_columns(["dataset_from_index", "dataset_to_index"])
        ),
        [],
    ),
    "no from_timestamp": (
        _change_episodes(
            lambda table: table.drop_columns(
                ["videos/top/from_timestamp", "videos/top/to_timestamp"]
            )
        ),
        [
            "there is no column videos/top/from_timestamp; every episode has a video file of its "
            "own, and begins with it"
        ],
    ),
    "underscores": (
        _change_episodes(
            lambda table: renamed("data/chunk_index", "data_chunk_index")(
                renamed("data/file_index", "data_file_index")(table)
            )
        ),
        [
            f"there is no column data/{name}_index; data_{name}_index is read in its place"
            for name in ("chunk", "file")
        ],
    ),
    "integers as doubles": (_change_episodes(_as_doubles), []),
    "episode table there twice": (_second_table, []),
    "a file for every episode of the table": (_split_table, []),
    "rows with another order of columns": (
        _change_data(lambda table: table.select(table.column_names[::-1])),
        [],
    ),
    "rows with more columns": (
        _change_data(
            lambda table: with_column(table, "extra", pa.array([[1, "a"][:1]] * table.num_rows))
        ),
        [],
    ),
    "rows with integers as doubles": (_change_data(_as_doubles), []),
    "rows with shorter integers": (
        _change_data(
            lambda table: with_column(table, "index", table.column("index").cast(pa.int32()))
        ),
        [],
    ),
    "one row group": (_change_data(lambda table: table), []),
    "row groups across episodes": (_change_data(lambda table: table, row_group_size=4), []),
    "files that nothing refers to": (_other_files, []),
    "old name of the tasks": (_tasks(task_index=[0, 1], __index_level_0__=["pick", "place"]), []),
    "tasks with another text": (
        _tasks(task=["pick", "place"], task_index=[0, 1], category=["x", "y"]),
        [],
    ),
    "tasks as a dictionary": (
        _tasks(task_index=[0.0, 1.0], task=pa.array(["pick", "place"]).dictionary_encode()),
        [],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_are_odd_change_nothing(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    change, notes = LAYOUTS[name]
    change(directory)
    with pytest.warns(lg.LeRobotGrainWarning) if notes else contextlib.nullcontext():
        repository = lg.open_repository(directory)
    assert repository.notes == tuple(f"meta/episodes: {note}" for note in notes)
    assert_same(examples_of(repository), expected)


def test_without_from_timestamp_an_episode_must_have_its_own_file(directory: Path) -> None:
    def one_file(table: pa.Table) -> pa.Table:
        table = table.drop_columns(["videos/top/from_timestamp"])
        return with_column(table, "videos/top/file_index", pa.array([0, 0, 1, 2]))

    change_table(directory / EPISODES, one_file)
    with pytest.raises(
        lg.DatasetFormatError,
        match="there is no column videos/top/from_timestamp; expected the seconds at which each",
    ):
        lg.open_repository(directory)


def test_rows_without_frame_index_and_with_times_of_a_clock(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    """Which frame belongs to a row is told by its place in the episode."""

    def change(table: pa.Table) -> pa.Table:
        times = 1_700_000.0 + np.arange(table.num_rows) * 0.137
        return with_column(
            table.drop_columns(["frame_index"]), "timestamp", pa.array(times, pa.float32())
        )

    for number in range(2):
        change_table(directory / DATA.format(number), change)
    change_info(directory, lambda info: info["features"].pop("frame_index"))
    found = examples_of(directory)
    assert found[0]["timestamp"] == np.float32(1_700_000)
    assert "frame_index" not in found[0]
    frames = np.stack([example[TOP] for example in found])
    assert np.array_equal(frames, np.stack([example[TOP] for example in expected]))
    assert read_barcodes(frames)[:, 1].tolist() == [
        frame for length in LENGTHS for frame in range(length)
    ]


def test_rows_that_are_fewer_than_the_table_says(directory: Path) -> None:
    change_table(directory / DATA.format(1), lambda table: table.slice(0, 10))
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"file-001.parquet: it has 10 rows; the episode table puts 14 into it",
    ):
        examples_of(directory, features=["index"])


# --- row groups ----------------------------------------------------------------------------------


def test_a_data_file_of_one_row_group_is_three_requests(
    rows_directory: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    change_table(rows_directory / DATA.format(0), lambda table: table)
    hub.add_repository("tests/one-group", rows_directory, tags=["v3.0"])
    dataset = lg.LeRobotIterDataset(
        "tests/one-group",
        endpoint=hub.endpoint,
        num_epochs=3,
        token=False,
        cache_dir=tmp_path / "cache",
    )
    iterator = iter(dataset.batch(8))
    next(iterator)
    first = lg.read_statistics(iterator)
    assert first.requests <= 3, "where it is, its footer, its rows"
    for _ in iterator:
        pass
    found = lg.read_statistics(iterator)
    assert found.requests == first.requests
    assert found.bytes_fetched <= 1.1 * first.bytes_needed + 16384, "and a footer"


@pytest.mark.parametrize("with_windows", [False, True])
def test_row_groups_that_no_memory_holds_are_read_again_and_said_to_be(
    rows: WrittenDataset, monkeypatch: pytest.MonkeyPatch, with_windows: bool
) -> None:
    windows = {"note": [0.0, 0.1], "chunk": [-0.1, 0.0], "action": [0.3]} if with_windows else None
    arguments: dict[str, Any] = {
        "shuffle": lg.Shuffle(clip_length=2),
        "num_epochs": 2,
        "delta_timestamps": windows,
    }
    expected = list(lg.LeRobotIterDataset(rows.directory, **arguments))
    monkeypatch.setattr(read_options, "_MIN_LARGE_BYTES", 0)
    dataset = lg.LeRobotIterDataset(
        rows.directory, **arguments, read_options=lg.ReadOptions(memory_budget_bytes=2000)
    )
    iterator = iter(dataset)
    text = (
        r"the 4 row groups that \d+ examples need unpack to .* Shuffle\(num_parts=...\) or "
        r"Shuffle\(open_files=...\)"
    )
    with pytest.warns(lg.LeRobotGrainWarning, match=text) as caught:
        assert_same(list(iterator), expected)
    assert len(caught) == 1
    assert lg.read_statistics(iterator).budget_used_bytes == 0, "nothing of them is kept"
    again = iter(dataset)
    with pytest.warns(lg.LeRobotGrainWarning, match=text):
        next(again)
    again.close()
    assert not [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("lerobot_grain rows")
    ]


# --- kinds of features ---------------------------------------------------------------------------


def test_every_kind_of_feature(rows: WrittenDataset) -> None:
    for number, example in enumerate(examples_of(rows.directory)):
        for key, feature in KINDS.items():
            value = rows.rows[key][number]
            assert np.array_equal(example[key], value), key
            if feature.dtype == "string":
                assert type(example[key]) is str
            else:
                assert (example[key].dtype, example[key].shape) == (
                    np.dtype(feature.dtype),
                    feature.row_shape,
                ), key


def test_every_kind_of_feature_in_windows_and_batches(rows: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        rows.directory,
        shuffle=None,
        num_epochs=1,
        delta_timestamps={key: [0.0, 0.1] for key in KINDS if key != "wide"},
    )
    batch = next(iter(dataset.batch(5)))
    for key, feature in KINDS.items():
        if key == "note":
            assert [column.tolist() for column in batch[key]] == [
                [f"note 0-{i + k}" for i in range(5)] for k in range(2)
            ]
            continue
        shape = feature.row_shape if key == "wide" else (2, *feature.row_shape)
        assert (batch[key].dtype, batch[key].shape) == (np.dtype(feature.dtype), (5, *shape)), key
    assert np.array_equal(batch["chunk"][:, 1], rows.rows["chunk"][1:6]), (
        "a chunk of actions is one value"
    )
    on_device = jax.tree.map(
        jnp.asarray, {key: value for key, value in batch.items() if key not in ("note", "task")}
    )
    assert on_device["array5"].shape == (5, 2, 2, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            [[1.0, 2.0, 3.0]] * 32 + [[1.0]],
            r"feature 'wide' has 1 values at axis 0 in some row; expected 3 everywhere",
        ),
        ([[1.0, 2.0, None]] * 33, r"feature 'wide' has 33 missing values; every row needs one"),
        (
            [["a", "b", "c"]] * 33,
            r"feature 'wide' is stored as object; its declared dtype is float64",
        ),
    ],
    ids=["ragged", "missing", "texts"],
)
def test_lists_that_are_no_arrays_are_refused(rows_directory: Path, values: Any, text: str) -> None:
    change_table(
        rows_directory / DATA.format(0), lambda table: with_column(table, "wide", pa.array(values))
    )
    with pytest.raises(lg.DatasetFormatError, match=text):
        examples_of(rows_directory)
    assert len(examples_of(rows_directory, features=["action", "note"])) == 33


def _encoded(number: int, kind: str) -> bytes:
    rng = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("as_struct", [True, False], ids=["struct", "binary"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_embedded_images(rows_directory: Path, kind: str, as_struct: bool) -> None:
    pictures = [_encoded(number, kind) for number in range(33)]
    values = pa.array(
        [{"bytes": picture, "path": None} for picture in pictures] if as_struct else pictures
    )
    change_table(
        rows_directory / DATA.format(0), lambda table: with_column(table, "picture", values)
    )
    change_info(
        rows_directory,
        lambda info: info["features"].update(
            picture={"dtype": "image", "shape": [16, 24, 3], "names": None}
        ),
    )
    found = examples_of(
        rows_directory, features=["picture"], delta_timestamps={"picture": [0.0, 0.1]}
    )
    for number in (0, 3, 32):
        with Image.open(io.BytesIO(pictures[number])) as picture:
            assert np.array_equal(found[number]["picture"][0], np.asarray(picture))


# --- texts of tables -----------------------------------------------------------------------------


def _add_subtasks(directory: Path, texts: dict[str, Any] | None) -> None:
    column = pa.array([number % 3 for number in range(33)])
    change_table(
        directory / DATA.format(0), lambda table: with_column(table, "subtask_index", column)
    )
    change_info(
        directory,
        lambda info: info["features"].update(
            subtask_index={"dtype": "int64", "shape": [1], "names": None}
        ),
    )
    if texts is not None:
        pq.write_table(pa.table(texts), directory / "meta/subtasks.parquet")


def test_subtasks(rows_directory: Path) -> None:
    _add_subtasks(
        rows_directory, {"subtask_index": [2, 0, 1], "subtask": ["lift", "reach", "grasp"]}
    )
    repository = lg.open_repository(rows_directory)
    assert repository.subtasks == {0: "reach", 1: "grasp", 2: "lift"}
    found = examples_of(repository)
    assert [example["subtask"] for example in found] == [
        ["reach", "grasp", "lift"][number % 3] for number in range(33)
    ]
    assert {example["task"] for example in found} == {"pick the cube"}
    assert set(examples_of(repository, features=["subtask"])[0]) == {"subtask"}
    assert "subtask" not in examples_of(repository, features=["subtask_index"])[0]


def test_subtasks_without_their_table_are_numbers(rows_directory: Path) -> None:
    _add_subtasks(rows_directory, None)
    found = examples_of(rows_directory)
    assert [int(example["subtask_index"]) for example in found] == [
        number % 3 for number in range(33)
    ]
    assert "subtask" not in found[0]
    with pytest.raises(lg.InvalidRequestError, match="there is no feature 'subtask'"):
        examples_of(rows_directory, features=["subtask"])


def test_a_subtask_that_the_table_does_not_have(rows_directory: Path) -> None:
    _add_subtasks(rows_directory, {"subtask_index": [0, 1], "subtask": ["reach", "grasp"]})
    with pytest.raises(
        lg.DatasetFormatError,
        match="subtask_index 2 is not in the table of subtasks, which has 0 to 1",
    ):
        examples_of(rows_directory)


# --- language ------------------------------------------------------------------------------------

MESSAGE = {
    "role": "user",
    "content": "pick it up",
    "style": "subtask",
    "timestamp": 0.5,
    "camera": None,
    "tool_calls": None,
}
CALL = {"name": "say", "arguments": {"text": "yes"}}


def _language(*fields: str) -> pa.DataType:
    kinds = {"timestamp": pa.float32(), "tool_calls": pa.list_(JSON)}
    return pa.list_(pa.struct([pa.field(name, kinds.get(name, pa.string())) for name in fields]))


@pytest.fixture
def language(rows_directory: Path) -> Path:
    def change(table: pa.Table) -> pa.Table:
        stored = pa.list_(
            pa.struct(
                [
                    *_language(*list(MESSAGE)[:5]).value_type,
                    pa.field("tool_calls", pa.list_(pa.string())),
                ]
            )
        )
        persistent = pa.array(
            [[MESSAGE, {**MESSAGE, "content": f"{row}"}] for row in range(33)], stored
        ).cast(_language(*MESSAGE))
        event = {
            "role": "assistant",
            "content": None,
            "style": None,
            "camera": None,
            "tool_calls": [json.dumps(CALL), "no JSON"],
        }
        events = pa.array([[event] if row == 4 else None if row == 5 else [] for row in range(33)])
        return with_column(
            with_column(table, "language_persistent", persistent), "language_events", events
        )

    change_table(rows_directory / DATA.format(0), change)
    entry = {"dtype": "language", "shape": [1], "names": None}
    change_info(
        rows_directory,
        lambda info: info["features"].update(language_persistent=entry, language_events=entry),
    )
    return rows_directory


def test_language(language: Path) -> None:
    found = examples_of(language)
    assert found[3]["language_persistent"] == [MESSAGE, {**MESSAGE, "content": "3"}]
    assert [len(example["language_events"]) for example in found] == [
        int(row == 4) for row in range(33)
    ]
    event = found[4]["language_events"][0]
    assert event == {
        "role": "assistant",
        "content": None,
        "style": None,
        "camera": None,
        "tool_calls": [CALL, "no JSON"],
    }


def test_language_in_batches_is_an_array_of_lists(language: Path) -> None:
    dataset = lg.LeRobotIterDataset(
        language, shuffle=None, num_epochs=1, delta_timestamps={"language_events": [0.0, 0.1]}
    )
    batch = next(iter(lg.DeviceIterDataset(dataset.batch(6))))
    assert isinstance(batch["action"], jax.Array)
    assert batch["language_persistent"].shape == (6,)
    assert batch["language_persistent"][5][1]["content"] == "5"
    assert batch["language_events"].shape == (6, 2)
    assert [len(value) for value in batch["language_events"][:, 1]] == [0, 0, 0, 1, 0, 0]
    assert [
        example["language_events"].shape
        for example in examples_of(language, delta_timestamps={"language_events": [0.0]})
    ] == [(1,)] * 33


def test_language_that_is_none(rows_directory: Path) -> None:
    change_info(
        rows_directory,
        lambda info: info["features"].update(
            note={"dtype": "language", "shape": [1], "names": None}
        ),
    )
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"feature 'note' is stored as 'string'; expected lists of messages, which "
        r"are structs",
    ):
        examples_of(rows_directory)


# --- real datasets ------------------------------------------------------------------------------


def test_the_fixture_of_lerobot_studio(shared: Path) -> None:
    """Doubles for integers, underscores in the names of columns, a camera as CHW, the text of the
    task as a dictionary.
    """
    with pytest.warns(lg.LeRobotGrainWarning):
        repository = lg.open_repository(shared / "real/lerobot_studio_v30")
    assert repository.notes == tuple(f"meta/episodes: {note}" for note in LAYOUTS["underscores"][1])
    found = examples_of(repository, delta_timestamps={"action": [0.0, 0.1]})
    assert [example["index"].item() for example in found] == list(range(6))
    assert {example["index"].dtype for example in found} == {np.dtype(np.int64)}
    assert {example["task"] for example in found} == {"pick cube"}
    assert found[2]["action"].tolist() == [np.float32(0.1)] * 2
    assert {example["observation.images.cam"].shape for example in found} == {(64, 64, 3)}


def test_the_metadata_of_oc_models(shared: Path) -> None:
    repository = lg.open_repository(shared / "real/oc_models_meta_v30")
    assert (repository.episodes.num_episodes, repository.episodes.num_rows, repository.notes) == (
        50,
        22449,
        (),
    )
    assert list(repository.tasks.values()) == ["Pick the tiger and place near elephant"]
    assert repository.stats is not None
    assert repository.stats["observation.images.top_phone"]["mean"].shape == (3, 1, 1)
    dataset = lg.LeRobotIterDataset(repository, features=["action"])
    with pytest.raises(
        lg.MissingFileError, match=r"there is no file data/chunk-000/file-000.parquet"
    ):
        next(iter(dataset))


def test_the_rows_of_pusht(shared: Path) -> None:
    """Row groups of 1000 rows, names as a dict, an fps of every feature, `video_info`, the old name
    of the tasks.
    """
    repository = lg.open_repository(shared / "real/pusht_rows_v30")
    assert repository.notes == ()
    stored = pq.read_table(shared / "real/pusht_rows_v30" / DATA.format(0))
    found = next(
        iter(
            lg.LeRobotIterDataset(
                repository, features=["next.done", "next.reward", "task"], shuffle=None
            ).batch(25650)
        )
    )
    for key in ("next.done", "next.reward"):
        assert np.array_equal(found[key], np.asarray(stored.column(key)))
    assert found["next.done"].dtype == np.bool_
    assert set(found["task"].tolist()) == {"Push the T-shaped block onto the T-shaped target."}
