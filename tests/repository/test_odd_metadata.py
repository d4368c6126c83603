"""Irregular `meta/` does not keep unconcerned data from being read: kinds of features,
tables of tasks, statistics of texts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, Feature, WrittenDataset, write_dataset
from tests.support.datasets import change_info, change_table, examples_of

LENGTHS = [4, 3, 5]
TASKS = ("pick", "place", "push")
TOP = "top"
INFO, DATA, TABLE = "meta/info.json", "data/chunk-000/file-000.parquet", "meta/tasks.parquet"
KEYS = [
    "observation.state",
    "action",
    "note",
    TOP,
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
    "task_index",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("odd") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(Camera(key=TOP, height=64, width=96, codec="h264", gop=3),),
        features={"note": Feature(dtype="string")},
        tasks=TASKS,
        statistics=False,
    )


@pytest.fixture(scope="module")
def expected(written: WrittenDataset) -> list[dict[str, Any]]:
    return examples_of(written.directory)


@pytest.fixture
def directory(written: WrittenDataset, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(written.directory, tmp_path / "copy")


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for key in one:
            assert np.array_equal(one[key], other[key]), key


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(lg.DatasetFormatError) as caught:
        make()
    return str(caught.value)


# --- features that are not read ------------------------------------------------------------------

KINDS = "expected a NumPy dtype such as float32, or string, image, video, language"
FEATURES: dict[str, tuple[Any, str]] = {
    "audio": ({"dtype": "audio", "shape": [1]}, f"feature 'odd' has dtype 'audio'; {KINDS}"),
    "pointcloud": (
        {"dtype": "pointcloud", "shape": [1024, 3]},
        f"feature 'odd' has dtype 'pointcloud'; {KINDS}",
    ),
    "text": ({"dtype": "text", "shape": [1]}, f"feature 'odd' has dtype 'text'; {KINDS}"),
    "no dtype": ({"shape": [1]}, f"feature 'odd' has dtype None; {KINDS}"),
    "a number as dtype": ({"dtype": 32, "shape": [1]}, f"feature 'odd' has dtype 32; {KINDS}"),
    "no shape": (
        {"dtype": "float32"},
        "feature 'odd' has shape None; expected a list of integers >= 0",
    ),
    "shape a number": (
        {"dtype": "float32", "shape": 7},
        "feature 'odd' has shape 7; expected a list of integers >= 0",
    ),
    "texts in shape": (
        {"dtype": "float32", "shape": ["7"]},
        "feature 'odd' has shape ['7']; expected a list of integers >= 0",
    ),
    "null in shape": (
        {"dtype": "float32", "shape": [None]},
        "feature 'odd' has shape [None]; expected a list of integers >= 0",
    ),
    "a camera of two axes": (
        {"dtype": "video", "shape": [4, 6]},
        "camera 'odd' has shape [4, 6]; expected [height, width, channels]",
    ),
    "a camera with a list as info": (
        {"dtype": "image", "shape": [4, 6, 3], "info": [1]},
        "camera 'odd' has info [1]; expected an object",
    ),
    "a depth camera of another unit": (
        {
            "dtype": "video",
            "shape": [4, 6, 1],
            "info": {"is_depth_map": True, "depth_unit": "inch"},
        },
        "depth camera 'odd' has depth_unit 'inch'; expected \"m\" or \"mm\"",
    ),
    "no description": (None, "feature 'odd' is None; expected an object with dtype and shape"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_cannot_be_read_is_refused_where_it_is_selected(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    description, problem = FEATURES[name]
    change_info(directory, lambda info: info["features"].update(odd=description))
    repository = lg.open_repository(directory)
    assert list(repository.features) == KEYS
    assert repository.info.unreadable == {"odd": problem}
    assert_same(examples_of(repository, features=["action", TOP, "task"]), expected)
    begin = f"{directory}, {INFO}: {problem}. "
    for make in (
        lg.LeRobotIterDataset,
        lambda *_, **__: lg.compute_stats(repository, features=["odd"]),
    ):
        assert (
            refusal(functools.partial(make, directory, features=["odd", "action"]))
            == f"{begin}Leave 'odd' out of features=[...]"
        )
    text = refusal(lambda: lg.LeRobotIterDataset(directory))
    others = [*KEYS, "task"]
    assert text == f"{begin}To read all but 'odd': features={others!r}"
    # As it stands in the message.
    assert_same(examples_of(directory, features=eval(text.split("features=")[1])), expected)


def test_several_features_that_cannot_be_read(directory: Path) -> None:
    change_info(
        directory,
        lambda info: info["features"].update(
            a={"dtype": "audio", "shape": [1]}, b={"dtype": "float32"}
        ),
    )
    text = refusal(lambda: lg.LeRobotIterDataset(directory))
    assert text.startswith(f"{directory}, {INFO}: feature 'a' has dtype 'audio'; ")
    assert f". To read all but 'a', 'b': features={[*KEYS, 'task']!r}" in text


def test_nothing_that_can_be_read(directory: Path) -> None:
    change_info(
        directory, lambda info: info.update(features={"a": {"dtype": "audio", "shape": [1]}})
    )
    assert (
        refusal(lambda: lg.open_repository(directory))
        == f"{directory}, {INFO}: feature 'a' has dtype 'audio'; {KINDS}"
    )


def test_what_does_not_select_it_does_not_notice(directory: Path) -> None:
    """Windows, statistics, normalization, checks and pickles."""
    change_info(
        directory,
        lambda info: info["features"].update(
            {"action_is_pad": {"dtype": "mask", "shape": [1]}, "cloud": 5}
        ),
    )
    change_table(
        directory / DATA,
        lambda table: table.append_column("cloud", pa.array([b"x"] * table.num_rows)),
    )
    repository: lg.Repository = pickle.loads(pickle.dumps(lg.open_repository(directory)))
    found = examples_of(repository, features=["action"], delta_timestamps={"action": [0.0, 0.1]})
    assert found[0]["action_is_pad"].tolist() == [False, False]
    stats = lg.compute_stats(repository)
    assert set(stats) == set(KEYS) - {"note", TOP}
    assert set(lg.normalizer(repository, stats=stats).values) == {"action", "observation.state"}
    assert repository.cameras == (TOP,)
    findings = {
        finding.feature: finding
        for finding in lg.check(repository).findings
        if finding.kind == "unreadable_feature"
    }
    assert set(findings) == {"action_is_pad", "cloud"}
    assert (
        findings["cloud"].text
        == f"{INFO}: feature 'cloud' is 5; expected an object with dtype and shape"
    )
    assert findings["cloud"].is_problem
    report = lg.check(repository)
    assert (report.unusable_features, report.unusable_episodes) == (("action_is_pad", "cloud"), ())
    assert not [finding for finding in report.findings if finding.kind == "undeclared_columns"]


def test_a_window_of_it(directory: Path) -> None:
    change_info(
        directory, lambda info: info["features"].update(odd={"dtype": "audio", "shape": [1]})
    )
    with pytest.raises(lg.InvalidRequestError, match=r"delta_timestamps\['odd'\]"):
        lg.LeRobotIterDataset(directory, features=["action"], delta_timestamps={"odd": [0.0]})


# --- tables of tasks -----------------------------------------------------------------------------


def tasks(**columns: Any) -> Callable[[Path], Any]:
    return lambda directory: pq.write_table(pa.table(columns), directory / TABLE)


def number_tasks(directory: Path, numbers: list[int], **options: Any) -> None:
    """Gives the rows of each task another number."""

    def change(table: pa.Table) -> pa.Table:
        values = [numbers[value] for value in table["task_index"].to_pylist()]
        return table.set_column(
            table.column_names.index("task_index"), "task_index", pa.array(values)
        )

    change_table(directory / DATA, change, **options)


TABLES: dict[str, tuple[Callable[[Path], Any], list[int]]] = {
    "gaps": (tasks(task_index=[0, 4, 9], task=TASKS), [0, 4, 9]),
    "from 1": (tasks(task_index=[1, 2, 3], task=TASKS), [1, 2, 3]),
    "backwards": (tasks(task_index=[2, 1, 0], task=TASKS[::-1]), [0, 1, 2]),
    "more than are used": (tasks(task_index=[5, 0, 1, 2], task=["fold", *TASKS]), [0, 1, 2]),
    "a text twice": (tasks(task_index=[0, 1, 2, 7], task=[*TASKS, "pick"]), [7, 1, 2]),
    "another column of texts": (
        tasks(task_index=[0, 1, 2], category=["x", "y", "z"], task=TASKS),
        [0, 1, 2],
    ),
    "-1 in the table": (tasks(task_index=[-1, 1, 2], task=TASKS), [-1, 1, 2]),
}


@pytest.mark.parametrize("name", TABLES)
def test_texts_are_found_by_their_number(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    write, numbers = TABLES[name]
    write(directory)
    number_tasks(directory, numbers)
    found = examples_of(directory)
    assert [example["task"] for example in found] == [example["task"] for example in expected]
    assert {int(example["task_index"]) for example in found} == set(numbers)


def test_texts_of_another_name_next_to_lists(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    tasks(task_index=[0, 1, 2], words=TASKS, tags=[["a"], [], ["b", "c"]])(directory)
    assert [example["task"] for example in examples_of(directory)] == [
        example["task"] for example in expected
    ]


def test_numbers_below_0_in_version_2(tmp_path: Path) -> None:
    data = write_dataset(
        tmp_path / "data",
        version="v2.1",
        episode_lengths=[3],
        cameras=(),
        tasks=("pick",),
        statistics=False,
    ).directory
    path = data / "meta/tasks.jsonl"
    path.write_text('{"task_index": -1, "task": "none"}\n' + path.read_text())
    assert {example["task"] for example in examples_of(data)} == {"pick"}


def test_a_row_without_its_task_is_an_error_where_it_is_read(
    directory: Path, expected: list[dict[str, Any]]
) -> None:
    """All rows lie in one row group: those of other tasks are read before it, and without it."""
    number_tasks(directory, [0, -1, 2])
    bad = next(row for row, example in enumerate(expected) if example["task"] == "place")
    episode = int(expected[bad]["episode_index"])
    frame = int(expected[bad]["frame_index"])
    assert bad > 0
    text = (
        f"{directory}, {DATA}: row {bad} of the dataset (episode {episode}, frame {frame}): "
        "task_index -1 is not in the table of tasks, which has 0 to 2; leave 'task' out of "
        "features=[...] to read the row without"
    )
    with contextlib.closing(iter(lg.LeRobotIterDataset(directory, shuffle=None))) as examples:
        found = [next(examples) for _ in range(bad)]
        for _ in range(2):
            with pytest.raises(lg.DatasetFormatError) as caught:
                next(examples)
            assert str(caught.value).splitlines()[0] == text
    assert_same(found, expected[:bad])
    others = [
        e
        for e in range(3)
        if e
        not in {int(example["episode_index"]) for example in expected if example["task"] == "place"}
    ]
    assert others
    kept = [example for example in expected if int(example["episode_index"]) in others]
    assert_same(examples_of(directory, episodes=others), kept)
    without = examples_of(directory, features=["action", "task_index"])
    assert [example["action"].tolist() for example in without] == [
        example["action"].tolist() for example in expected
    ]


def test_a_row_without_its_task_where_few_rows_are_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lerobot_grain._reading.options._MIN_LARGE_BYTES", 0)
    number_tasks(directory, [0, 1, 8])
    options = lg.ReadOptions(memory_budget_bytes=200)
    dataset = lg.LeRobotIterDataset(
        directory, features=["index", "task"], shuffle=None, read_options=options
    )
    numbers = pq.read_table(directory / DATA)["task_index"].to_pylist()
    with contextlib.closing(iter(dataset)) as examples:
        with pytest.warns(lg.LeRobotGrainWarning, match="row groups that"):
            assert int(next(examples)["index"]) == 0
        assert [int(next(examples)["index"]) for _ in range(1, numbers.index(8))] == list(
            range(1, numbers.index(8))
        )
        with pytest.raises(
            lg.DatasetFormatError,
            match=rf"row {numbers.index(8)} of the dataset .*: task_index 8 is not in the table of",
        ):
            next(examples)


def test_which_numbers_a_table_has(directory: Path) -> None:
    for numbers, shown in (
        ([3, 7, 12], "3, 7, 12"),
        ([*range(0, 40, 2)], "0, 2, 4, 6, 8, 10, 12, 14, ..."),
        ([], "none"),
        ([6], "6 to 6"),
    ):
        tasks(
            task_index=pa.array(numbers, pa.int64()),
            task=pa.array(["x"] * len(numbers), pa.string()),
        )(directory)
        number_tasks(directory, [0, 1, 2])
        change_table(
            directory / DATA,
            lambda table: table.set_column(
                table.column_names.index("task_index"), "task_index", pa.array([99] * 12)
            ),
        )
        assert f"task_index 99 is not in the table of tasks, which has {shown}; " in refusal(
            lambda: examples_of(directory)
        )
        change_table(
            directory / DATA,
            lambda table: table.set_column(
                table.column_names.index("task_index"), "task_index", pa.array([0] * 12)
            ),
        )


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda directory: (directory / TABLE).unlink(),
        ": there is no meta/tasks.parquet; expected the table of task texts",
    ),
    "truncated": (
        lambda directory: (directory / TABLE).write_bytes(b"PAR1"),
        ", meta/tasks.parquet: not a parquet file, or truncated: its 4 bytes end with b'PAR1'; "
        "expected b'PAR1'",
    ),
    "no texts": (
        tasks(task_index=[0, 1, 2]),
        ", meta/tasks.parquet: found the columns task_index; expected task_index and one of texts",
    ),
    "a number with two texts": (
        tasks(task_index=[0, 1, 1], task=TASKS),
        ", meta/tasks.parquet: task_index 1 is 'place' and 'push'; expected one text for a number",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_an_error_for_who_selects_its_texts(
    directory: Path, expected: list[dict[str, Any]], name: str
) -> None:
    break_it, problem = BROKEN[name]
    break_it(directory)
    assert refusal(lambda: lg.open_repository(directory)) == f"{directory}{problem}"
    assert (
        refusal(lambda: lg.LeRobotIterDataset(directory))
        == f"{directory}{problem}. To read all but 'task': features={KEYS!r}"
    )
    assert refusal(lambda: lg.LeRobotIterDataset(directory, features=["action", "task"])) == (
        f"{directory}{problem}. Leave 'task' out of features=[...]"
    )
    with pytest.warns(lg.LeRobotGrainWarning) as caught:
        dataset = lg.LeRobotIterDataset(
            directory, features=["action", TOP], shuffle=None, num_epochs=1
        )
    assert [str(warning.message) for warning in caught] == [f"{directory}: {dataset.notes[0]}"]
    assert dataset.notes[0] == f"{TABLE}: {problem.lstrip(':, ').removeprefix(TABLE).lstrip(': ')}"
    assert_same(list(dataset), expected)
    repository: lg.Repository = pickle.loads(pickle.dumps(dataset.repository))
    for look in (len, list, lambda table: table[0], lambda table: 0 in table):
        assert refusal(lambda: look(repository.tasks)) == f"{directory}{problem}"  # noqa: B023
    assert [finding.kind for finding in lg.check(repository).findings][:1] == ["note"]


def test_a_broken_table_of_subtasks(directory: Path) -> None:
    pq.write_table(
        pa.table({"subtask_index": [0, 0], "subtask": ["a", "b"]}),
        directory / "meta/subtasks.parquet",
    )
    change_table(
        directory / DATA, lambda table: table.append_column("subtask_index", pa.array([0] * 12))
    )
    change_info(
        directory,
        lambda info: info["features"].update(
            subtask_index={"dtype": "int64", "shape": [1], "names": None}
        ),
    )
    problem = (
        f"{directory}, meta/subtasks.parquet: subtask_index 0 is 'a' and 'b'; expected one "
        "text for a number"
    )
    assert refusal(lambda: lg.open_repository(directory)) == problem
    assert (
        refusal(lambda: lg.LeRobotIterDataset(directory, features=["subtask"]))
        == f"{problem}. Leave 'subtask' out of features=[...]"
    )
    with pytest.warns(lg.LeRobotGrainWarning):
        assert len(examples_of(directory, features=["action", "task", "subtask_index"])) == 12


def test_subtasks_with_gaps(directory: Path) -> None:
    pq.write_table(
        pa.table({"subtask_index": [7, 3], "subtask": ["a", "b"]}),
        directory / "meta/subtasks.parquet",
    )
    change_table(
        directory / DATA, lambda table: table.append_column("subtask_index", pa.array([3, 7] * 6))
    )
    change_info(
        directory,
        lambda info: info["features"].update(
            subtask_index={"dtype": "int64", "shape": [1], "names": None}
        ),
    )
    assert [example["subtask"] for example in examples_of(directory)] == ["b", "a"] * 6


# --- version 2 -----------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_dataset(
        tmp_path / "old",
        version="v2.1",
        episode_lengths=LENGTHS,
        cameras=(),
        tasks=TASKS,
        features={"note": Feature(dtype="string")},
    ).directory


def test_a_missing_table_of_version_2(old: Path) -> None:
    expected = examples_of(old)
    (old / "meta/tasks.jsonl").unlink()
    with pytest.warns(
        lg.LeRobotGrainWarning,
        match=r"meta/tasks.jsonl: there is no meta/tasks.jsonl, which a LeRobotDataset v2.x has",
    ):
        assert_same(examples_of(old, features=["action", "index"]), expected)
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"which a LeRobotDataset v2.x has. Leave 'task' out of features=\[...\]",
    ):
        lg.LeRobotIterDataset(old, features=["task"])


def test_tasks_of_version_2_with_gaps(old: Path) -> None:
    expected = [example["task"] for example in examples_of(old)]
    lines = [
        {"task_index": number, "task": text}
        for number, text in ((30, "push"), (10, "pick"), (20, "place"), (40, "pick"))
    ]
    (old / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for path in (old / "data/chunk-000").iterdir():
        column = pa.array(
            [(10, 20, 30)[number] for number in pq.read_table(path)["task_index"].to_pylist()]
        )
        change_table(
            path,
            lambda table, column=column: table.set_column(
                table.column_names.index("task_index"), "task_index", column
            ),
        )
    assert [example["task"] for example in examples_of(old)] == expected


STATS = "meta/episodes_stats.jsonl"


def change_lines(old: Path, change: Callable[[int, dict[str, Any]], Any]) -> None:
    lines = [json.loads(line) for line in (old / STATS).read_text().splitlines()]
    for number, line in enumerate(lines):
        change(number, line["stats"])
    (old / STATS).write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("key", ["note", "__meta__"])
@pytest.mark.parametrize("first", [0, 2], ids=["everywhere", "in one episode"])
def test_statistics_of_texts_in_version_2(old: Path, key: str, first: int) -> None:
    expected = lg.open_repository(old).stats
    assert expected is not None
    good = {name: [1.0] for name in ("min", "max", "mean", "std", "count")}
    change_lines(
        old,
        lambda number, stats: stats.update(
            {key: {**good, "min": ["a"]} if number >= first else good}
        ),
    )
    repository = lg.open_repository(old)
    with pytest.warns(
        lg.LeRobotGrainWarning,
        match=rf"line {first + 1}, feature '{key}': min is \['a'\]; expected numbers .*; it has no",
    ):
        stats = repository.stats
    assert stats is not None
    assert set(stats) == set(expected)
    assert np.array_equal(stats["action"]["std"], expected["action"]["std"])


@pytest.mark.parametrize(
    "contents",
    ["", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"],
    ids=["empty", "LFS"],
)
def test_statistics_of_version_2_are_asked_for_late(old: Path, contents: str) -> None:
    expected = examples_of(old)
    (old / STATS).write_text(contents)
    repository = lg.open_repository(old)
    assert_same(examples_of(repository), expected)
    with pytest.raises(lg.DatasetFormatError, match=STATS):
        _ = repository.stats


# --- normalization -------------------------------------------------------------------------------


def test_normalization_needs_no_statistics_of_cameras(
    written: WrittenDataset, directory: Path
) -> None:
    stats = lg.compute_stats(
        lg.open_repository(written.directory), features=["action", "observation.state"]
    )
    rows = {
        key: {name: value.tolist() for name, value in values.items()}
        for key, values in stats.items()
    }
    (directory / "meta/stats.json").write_text(json.dumps(rows))
    found = lg.normalizer(lg.open_repository(directory))
    assert set(found.values) == {"action", "observation.state"}
    assert set(found.cameras) == {TOP}


def test_other_statistics_in_place_of_malformed_ones(directory: Path) -> None:
    (directory / "meta/stats.json").write_text("{")
    with pytest.warns(
        lg.LeRobotGrainWarning,
        match=r"meta/stats.json: expected .*; until then there are no statistics",
    ):
        repository = lg.open_repository(directory)
    with pytest.raises(lg.DatasetFormatError, match=r"compute_stats\(repository\) makes others"):
        lg.normalizer(repository)
    found = lg.normalizer(repository, stats=lg.compute_stats(repository))
    assert set(found.values) == {"action", "observation.state"}
