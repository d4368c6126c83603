"""Weights, valid rows and strides of a dataset: in all their forms, and as examples."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, Feature, WrittenDataset, read_barcodes, write_dataset
from tests.support.forked import fork_workers

LENGTHS = [12, 3, 20, 7, 9]
NUM_ROWS = sum(LENGTHS)
FIRST_ROWS = [0, 12, 15, 35, 42]
SHUFFLE = lg.Shuffle(seed=4, clip_length=4, num_parts=2, buffer_size=8)


def is_valid(row: int) -> bool:
    return row % 5 != 3 and not 20 <= row < 24


def columns_of(episode: int, length: int) -> dict[str, Any]:
    rows = FIRST_ROWS[episode] + np.arange(length)
    return {
        "is_valid": np.array([is_valid(row) for row in rows.tolist()]),
        "importance": (rows % 4).astype(np.float32),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("rows") / "data",
        episode_lengths=LENGTHS,
        fps=30,
        cameras=(Camera(key="top", height=32, width=80, gop=4, codec="h264"),),
        features={
            "is_valid": Feature(dtype="bool"),
            "importance": Feature(dtype="float32"),
        },
        row_values=columns_of,
        tasks=("pick", "place"),
        episodes_per_data_file=2,
        rows_per_row_group=5,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


def rows_of(repository: lg.Repository, num_epochs: int = 1, **arguments: Any) -> list[int]:
    return list(
        lg.FrameOrderIterDataset(
            repository, **{"shuffle": SHUFFLE, "num_epochs": num_epochs} | arguments
        )
    )


VALID = [row for row in range(NUM_ROWS) if is_valid(row)]

# --- forms ---------------------------------------------------------------------------------------

BY_EPISODE = [1.0, 0.0, 0.5, 3.0, 1.0]


def table(directory: Path, name: str, columns: dict[str, list[Any]]) -> str:
    path = directory / name
    if name.endswith(".csv"):
        lines = [
            ",".join(columns),
            *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return str(path)


WEIGHT_FORMS: dict[str, Callable[[Path], Any]] = {
    "mapping": lambda _: {1: 0.0, 2: 0.5, 3: 3},
    "mapping with a rest": lambda _: lg.Weights({0: 2, 2: 1, 3: 6.0, 4: 2, 1: 0}, rest=5),
    "array of episodes": lambda _: np.array(BY_EPISODE, np.float32),
    "list of rows": lambda _: np.repeat(BY_EPISODE, LENGTHS).tolist(),
    "Series of pandas": lambda _: pd.Series(BY_EPISODE, index=list("abcde")),
    "Series of pandas with whole numbers": lambda _: pd.Series([2, 0, 1, 6, 2], dtype="Int64"),
    "array of JAX": lambda _: jnp.array(np.repeat(BY_EPISODE, LENGTHS)),
    "array of objects": lambda _: np.array(BY_EPISODE, object),
    "mapping to arrays without axes": lambda _: {1: jnp.zeros(()), 2: np.array(0.5), 3: 3},
    "function": lambda _: lambda episode: {3: 0, 20: 1, 7: 6}.get(episode.length, 2),
    "function that returns an array": lambda _: (
        lambda episode: jnp.float32({3: 0, 20: 1, 7: 6}.get(episode.length, 2))
    ),
    "csv of episodes": lambda where: table(
        where, "w.csv", {"episode_index": [1, 2, 3], "weight": [0, 0.5, 3]}
    ),
    "csv with other columns": lambda where: table(
        where,
        "o.csv",
        {
            "score": ["", "0.5", ""],
            "episode_index": [1, 2, 3],
            "weight": [0, 0.5, 3],
            "note": ["a", "b", ""],
        },
    ),
    "parquet of rows": lambda where: Path(
        table(
            where,
            "w.parquet",
            {
                "weight": np.repeat(BY_EPISODE, LENGTHS).tolist(),
                "index": list(range(NUM_ROWS)),
                "episode_index": np.repeat(range(5), LENGTHS).tolist(),
            },
        )
    ),
    "parquet of rows with a rest": lambda where: lg.Weights(
        table(where, "r.parquet", {"index": [*range(12, 15)], "weight": [0.0] * 3}), rest=1.0
    ),
}


@pytest.mark.parametrize("name", WEIGHT_FORMS)
def test_all_forms_of_weights_are_the_same_stream(
    repository: lg.Repository, tmp_path: Path, name: str
) -> None:
    given = WEIGHT_FORMS[name](tmp_path)
    plain = [1.0, 0.0, 1.0, 1.0, 1.0] if "rows with a rest" in name else BY_EPISODE
    expected = lg.FrameOrderIterDataset(repository, weights=plain, shuffle=SHUFFLE)
    found = lg.FrameOrderIterDataset(repository, weights=given, shuffle=SHUFFLE)
    assert found.num_rows == NUM_ROWS - 3
    assert iter(found).get_state() == iter(expected).get_state()
    assert list(itertools.islice(found, 150)) == list(itertools.islice(expected, 150))


VALID_FORMS: dict[str, Callable[[Path], Any]] = {
    "feature": lambda _: "is_valid",
    "array": lambda _: np.array([is_valid(row) for row in range(NUM_ROWS)]),
    "csv": lambda where: table(
        where,
        "v.csv",
        {"index": [*range(NUM_ROWS)], "is_valid": [is_valid(row) for row in range(NUM_ROWS)]},
    ),
    "parquet of the others": lambda where: lg.ValidRows(
        table(
            where,
            "v.parquet",
            {
                "index": [row for row in range(NUM_ROWS) if not is_valid(row)],
                "is_valid": [False] * (NUM_ROWS - len(VALID)),
            },
        )
    ),
    "parquet of these": lambda where: lg.ValidRows(
        table(where, "t.parquet", {"index": VALID, "is_valid": [True] * len(VALID)}), rest=False
    ),
}


@pytest.mark.parametrize("name", VALID_FORMS)
def test_all_forms_of_valid_rows(repository: lg.Repository, tmp_path: Path, name: str) -> None:
    given = VALID_FORMS[name](tmp_path)
    assert rows_of(repository, valid_rows=given, shuffle=None) == VALID
    assert sorted(rows_of(repository, valid_rows=given)) == VALID
    weights = [float(is_valid(row)) for row in range(NUM_ROWS)]
    assert rows_of(repository, 2, valid_rows=given) == rows_of(repository, 2, weights=weights)


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_features_of_older_versions(tmp_path: Path, version: str) -> None:
    directory = write_dataset(
        tmp_path,
        version=version,
        episode_lengths=LENGTHS,
        fps=30,
        cameras=(),
        features={"is_valid": Feature(dtype="bool"), "importance": Feature(dtype="float32")},
        row_values=columns_of,
    ).directory
    older = lg.open_repository(directory)
    assert rows_of(older, valid_rows="is_valid", shuffle=None) == VALID
    weights = [float(row % 4) for row in range(NUM_ROWS)]
    assert rows_of(older, weights="importance") == rows_of(older, weights=weights)


def test_a_feature_is_read_of_selected_episodes_only(repository: lg.Repository) -> None:
    expected = [row for row in VALID if 15 <= row < 35]
    assert rows_of(repository, valid_rows="is_valid", shuffle=None, episodes=[2]) == expected


def test_valid_episodes(repository: lg.Repository) -> None:
    expected = [*range(12), *range(15, 35)]
    for given in ([True, False, True, False, False], lambda episode: episode.index in (0, 2)):
        assert rows_of(repository, valid_rows=given, shuffle=None) == expected


def test_a_feature_as_weights(repository: lg.Repository) -> None:
    counts = Counter(rows_of(repository, 400, weights="importance"))
    assert not any(row % 4 == 0 for row in counts)
    by_value = Counter[int]()
    for row, count in counts.items():
        by_value[row % 4] += count
    rows = Counter(row % 4 for row in range(NUM_ROWS))
    shares = {value: by_value[value] / rows[value] for value in (1, 2, 3)}
    assert shares[2] / shares[1] == pytest.approx(2, rel=0.05)
    assert shares[3] / shares[1] == pytest.approx(3, rel=0.05)


def test_weights_and_valid_rows_together(repository: lg.Repository) -> None:
    product = np.repeat(BY_EPISODE, LENGTHS) * [is_valid(row) for row in range(NUM_ROWS)]
    assert rows_of(repository, 3, weights=BY_EPISODE, valid_rows="is_valid") == rows_of(
        repository, 3, weights=product
    )


def test_selected_episodes_and_dropped_frames_have_their_own_weights(
    repository: lg.Repository,
) -> None:
    arguments = {"episodes": [0, 2, 4], "drop_first_frames": 2, "drop_last_frames": 1}
    kept = [*range(2, 11), *range(17, 34), *range(44, 50)]
    assert sorted(rows_of(repository, **arguments)) == kept
    weights = np.arange(NUM_ROWS) % 3 > 0
    expected = [row for row in kept if row % 3]
    assert sorted(rows_of(repository, weights=weights.astype(float), **arguments)) == expected
    # Of the scale only those count that are selected.
    by_episode = {0: 1, 1: 1000, 2: 2, 4: 1}
    counts: Counter[int] = Counter(
        int(np.searchsorted([15, 35], row, side="right"))
        for row in rows_of(repository, 300, weights=by_episode, **arguments)
    )
    assert counts[1] / 17 / ((counts[0] + counts[2]) / 15) == pytest.approx(2, rel=0.1)


# --- nothing changes without ---------------------------------------------------------------------


def test_equal_weights_are_the_stream_without_weights(repository: lg.Repository) -> None:
    plain = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE))
    rows = [next(plain) for _ in range(70)]
    state = json.loads(json.dumps(plain.get_state()))
    for arguments in (
        {"weights": [3.7] * 5},
        {"weights": lambda _: 0.1},
        {"valid_rows": [True] * NUM_ROWS},
        {"stride": 1},
    ):
        equal = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, **arguments))
        assert [next(equal) for _ in range(70)] == rows
        assert equal.get_state() == state
        equal.set_state(state)
        assert next(equal) == next(plain)
        plain.set_state(state)


DIFFERENT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"weights": BY_EPISODE}, "was taken without weights, this stream is with; give"),
    ({"weights": BY_EPISODE}, {}, "was taken with weights, this stream is without; give"),
    (
        {"weights": BY_EPISODE},
        {"weights": [2.0, 0.0, 0.5, 3.0, 1.0]},
        "was taken with weights = '",
    ),
    ({"stride": 2}, {"stride": 3}, "was taken with stride = 2, this stream has 3; give the same"),
    ({"stride": 2}, {}, "was taken with stride, this stream is without; give the same"),
]


@pytest.mark.parametrize(("before", "now", "text"), DIFFERENT)
def test_states_of_other_weights_are_refused(
    repository: lg.Repository, before: dict[str, Any], now: dict[str, Any], text: str
) -> None:
    state = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, **before)).get_state()
    with pytest.raises(lg.StateMismatchError) as caught:
        iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, **now)).set_state(state)
    assert text in str(caught.value)


# --- examples ------------------------------------------------------------------------------------

WEIGHTED: dict[str, dict[str, Any]] = {
    "weights": {"weights": BY_EPISODE},
    "valid rows": {"valid_rows": lg.ValidRows("is_valid", pad_windows=True)},
    "stride": {"stride": 3},
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_examples_have_the_frames_of_their_rows(repository: lg.Repository, name: str) -> None:
    deltas = {"top": [-0.1, 0.0, 0.1], "index": [-0.1, 0.0, 0.1]}
    dataset = lg.LeRobotIterDataset(
        repository,
        shuffle=SHUFFLE,
        num_epochs=2,
        delta_timestamps=deltas,
        features=["index", "episode_index", "frame_index", "top"],
        **WEIGHTED[name],
    )
    expected = rows_of(repository, 2, **WEIGHTED[name])
    with contextlib.closing(iter(dataset)) as examples:
        found = list(examples)
    assert [example["index"][1] for example in found] == expected
    for example in found:
        row = int(example["index"][1])
        episode = int(np.searchsorted(FIRST_ROWS, row, side="right")) - 1
        first, last = FIRST_ROWS[episode], FIRST_ROWS[episode] + LENGTHS[episode] - 1
        for place, offset in enumerate((-3, 0, 3)):
            wanted = min(max(row + offset, first), last)
            is_pad = wanted != row + offset
            while name == "valid rows" and not is_valid(wanted):
                wanted += 1 if wanted < row else -1
                is_pad = True
            assert example["index"][place] == wanted
            assert example["index_is_pad"][place] == is_pad
            assert example["top_is_pad"][place] == is_pad
        barcodes = read_barcodes(example["top"])[:, :2].tolist()
        assert barcodes == [[episode, row - first] for row in example["index"].tolist()]


def test_windows_reach_rows_that_are_not_valid_unless_they_are_padded(
    repository: lg.Repository,
) -> None:
    arguments = {"shuffle": None, "num_epochs": 1, "delta_timestamps": {"index": [0.0, 0.1]}}
    for valid_rows, reached in (
        ("is_valid", True),
        (lg.ValidRows("is_valid", pad_windows=True), False),
    ):
        dataset = lg.LeRobotIterDataset(
            repository, features=["index"], valid_rows=valid_rows, **arguments
        )
        with contextlib.closing(iter(dataset)) as examples:
            windows = [example["index"].tolist() for example in examples]
        assert [first for first, _ in windows] == VALID
        assert any(not is_valid(second) for _, second in windows) == reached


def test_delta_timestamps_alone(repository: lg.Repository) -> None:
    transformation = lg.DeltaTimestamps(repository, {"index": [0.0, 0.1]}, valid_rows="is_valid")
    request = transformation.map(20)
    assert (request.row, request.episode, request.frame) == (20, 2, 5)
    # Row 20 itself is not valid, nor are 21 to 23.
    assert request.frames["index"].tolist() == [5, 5]
    assert request.is_pad["index"].tolist() == [True, True]
    request = transformation.map(17)
    assert request.frames["index"].tolist() == [2, 4]
    assert request.is_pad["index"].tolist() == [False, True]


@pytest.mark.parametrize("name", WEIGHTED)
def test_other_numbers_of_shards_go_on_where_one_was_stopped(
    repository: lg.Repository, name: str
) -> None:
    arguments = {"shuffle": SHUFFLE, **WEIGHTED[name]}
    straight = list(itertools.islice(lg.FrameOrderIterDataset(repository, **arguments), 240))
    state: dict[str, Any] | None = None
    position = 0
    for num_shards in (2, 5, 1, 3):
        found = []
        for shard in range(num_shards):
            options = grain.sharding.ShardOptions(shard, num_shards)
            iterator = iter(
                lg.FrameOrderIterDataset(repository, shard_options=options, **arguments)
            )
            if state is not None:
                iterator.set_state(state)
            found.append([next(iterator) for _ in range(13)])
            after = iterator.get_state()
        for step, rows in enumerate(zip(*found, strict=True)):
            begin = position + step * num_shards
            assert list(rows) == straight[begin : begin + num_shards]
        position += 13 * num_shards
        state = json.loads(json.dumps(after))


def test_worker_processes(repository: lg.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    dataset = lg.LeRobotIterDataset(
        repository, shuffle=SHUFFLE, num_epochs=1, features=["index"], weights="importance"
    )
    expected = rows_of(repository, weights="importance")
    with contextlib.closing(iter(lg.WorkerPrefetchIterDataset(dataset, num_workers=2))) as found:
        assert [int(example["index"]) for example in found] == expected


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"weights": {3: -1}}, "weights[3] is -1; expected a finite number >= 0"),
    "not finite": (
        {"weights": {3: float("nan")}},
        "weights[3] is nan; expected a finite number >= 0",
    ),
    "a bool as weight": ({"weights": {3: True}}, "weights[3] is True; expected a finite number"),
    "no such episode": (
        {"weights": {7: 1.0}},
        "weights: there is no episode 7; the dataset has episodes 0 to 4",
    ),
    "a key that is no number": ({"weights": {"3": 1.0}}, "weights: the key '3' is no number"),
    "of a row": (
        {"weights": [1.0] * 16 + [float("inf")] + [1.0] * 34},
        "weights[16] (row 16, frame 1 of episode 2) is inf; expected a finite number >= 0",
    ),
    "of an episode": ({"weights": [1, 1, -2, 1, 1]}, "weights[2] is -2; expected a finite"),
    "of another length": (
        {"weights": [1.0] * 7},
        "weights: an array of shape (7,); expected one of all episodes, (5,), or of all rows, "
        "(51,)",
    ),
    "a function": ({"weights": lambda episode: -episode.index}, "it returned -1 for episode 1"),
    "rest": ({"weights": lg.Weights({}, rest=-1)}, "weights: rest=-1; expected a finite number"),
    "nothing left": (
        {"weights": [0, 0, 0, 0, 1], "episodes": [0, 1]},
        "no selected row is left; expected at least one",
    ),
    "nothing valid with a weight": (
        {"weights": {0: 1, 1: 0, 2: 0, 3: 0, 4: 0}, "valid_rows": {0: False}},
        "no selected row is left",
    ),
    "no table": ({"weights": "gone.csv"}, "weights='gone.csv': the table could not be read: No"),
    "neither table nor feature": (
        {"valid_rows": "is_good"},
        "valid_rows='is_good': expected a .parquet or .csv table, or a feature with one value in "
        "every row; the dataset has is_valid",
    ),
    "a feature of numbers as mask": (
        {"valid_rows": "importance"},
        "valid_rows='importance': the feature has dtype float32 and shape (1,); expected one value "
        "in every row, True or False",
    ),
    "a feature with an axis": ({"weights": "action"}, "weights='action': the feature has dtype"),
    "a number that is no float": (
        {"weights": {3: 10**400}},
        "; expected a finite number >= 0",
    ),
    "a long double": (
        {"weights": {3: np.longdouble("1e4000")}},
        "weights[3] is np.longdouble('1e+4000'); expected a finite number",
    ),
    "long doubles": (
        {"weights": np.array([1, 2, np.longdouble("1e4000"), 4, 5], np.longdouble)},
        "weights[2] is inf; expected a finite number",
    ),
    "a number of many digits": (
        {"weights": {3: 10**5000}},
        "weights[3] is an int of 16610 bits; expected a finite number",
    ),
    "a rest that is no float": ({"weights": lg.Weights({}, rest=10**400)}, "expected a finite"),
    "a function of no float": ({"weights": lambda _: 10**400}, "for episode 0; expected a finite"),
    "a number of an episode above 2**63": (
        {"weights": {2**80: 1}},
        "weights: there is no episode 1208925819614629174706176; the dataset has episodes 0 to 4",
    ),
    "lists of other lengths": (
        {"weights": [[1, 2], [3]]},
        "weights=[[1, 2], [3]]: no array of numbers (",
    ),
    "a frame of pandas": (
        {"weights": pd.DataFrame({"weight": [1.0] * 5})},
        "weights: an array of shape (5, 1); expected one of all episodes",
    ),
    "a missing value of a list": (
        {"weights": [1, None, 2, 3, 4]},
        "weights[1] is None; expected a finite number >= 0",
    ),
    "a missing value of pandas": (
        {"valid_rows": pd.Series([True, True, None, True, True], dtype="boolean")},
        "valid_rows[2] is <NA>; expected True or False",
    ),
    "a masked value": (
        {"weights": np.ma.array([1.0, 2, 3, 4, 5], mask=[0, 0, 0, 1, 0])},
        "weights[3] is None; expected a finite number >= 0",
    ),
    "a name with a null character": (
        {"weights": "a\0.csv"},
        "weights='a\\x00.csv': the table could not be read: ",
    ),
    "a number": ({"weights": 3}, "weights=3: expected a mapping by episode, an array"),
    "windows that are padded or not": (
        {"valid_rows": lg.ValidRows({}, pad_windows="no")},
        "valid_rows: pad_windows='no'; expected True or False",
    ),
    "numbers as mask": ({"valid_rows": [1] * 51}, "valid_rows: values of dtype int64; expected"),
    "sequential": (
        {"weights": BY_EPISODE, "shuffle": None},
        "shuffle=None: weights say how often rows are drawn",
    ),
    "stride 0": ({"stride": 0}, "stride=0: expected an int >= 1"),
    "a long stride": ({"stride": 21}, "stride=21: the longest selected episode has 20 rows"),
    "stride and weights": (
        {"stride": 2, "weights": BY_EPISODE},
        "stride=2: not together with weights or rows that are not valid",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(repository: lg.Repository, name: str) -> None:
    arguments, text = REFUSED[name]
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.LeRobotIterDataset(repository, **{"shuffle": SHUFFLE} | arguments)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 500


BAD_TABLES: dict[str, tuple[str, dict[str, list[Any]], str]] = {
    "a row that is not there": (
        "w.csv",
        {"index": [3, 51], "weight": [1, 1]},
        "w.csv, row 1: index is 51; the dataset has rows 0 to 50",
    ),
    "an episode that is not there": (
        "w.parquet",
        {"episode_index": [3, 5], "weight": [1, 1]},
        "w.parquet: there is no episode 5; the dataset has episodes 0 to 4",
    ),
    "twice": (
        "w.csv",
        {"index": [3, 4, 3], "weight": [1, 1, 2]},
        "w.csv: index 3 is there 2 times; expected every one once",
    ),
    "twice, and another one more often": (
        "w.csv",
        {"index": [9, 3, 9, 3, 9], "weight": [1] * 5},
        "w.csv: index 3 is there 2 times; expected every one once",
    ),
    "an index that counts the rows of the table": (
        "w.csv",
        {"index": [0, 1], "episode_index": [0, 3], "weight": [1, 2]},
        "w.csv, row 1: index is 1, and episode_index is 3; row 1 of the dataset is of episode 0. "
        "Give rows by index, or episodes by episode_index alone",
    ),
    "an unsigned number above 2**63": (
        "w.parquet",
        {"index": [np.uint64(2**64 - 1)], "weight": [1]},
        "w.parquet, column index: 18446744073709551615 is there; expected at most 2**63 - 1",
    ),
    "no weights": (
        "w.csv",
        {"index": [3], "wieght": [1]},
        "has 'index', 'wieght'; expected the columns 'weight', and 'index' or",
    ),
    "no rows": (
        "w.csv",
        {"weight": [1]},
        "has 'weight'; expected the columns 'weight', and 'index' or 'episode_index'",
    ),
    "negative": (
        "w.parquet",
        {"index": [3, 4], "weight": [1.0, -0.5]},
        "w.parquet, row 1: weight is -0.5; expected a finite number >= 0",
    ),
    "texts": ("w.csv", {"index": [3], "weight": ["much"]}, "column weight: its values are of type"),
    "missing": (
        "w.parquet",
        {"index": [3, 4], "weight": [1.0, None]},
        "weight",
    ),
    "fractions of rows": ("w.csv", {"index": [3.5], "weight": [1]}, "expected whole numbers"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_tables_that_are_refused(repository: lg.Repository, tmp_path: Path, name: str) -> None:
    file, columns, text = BAD_TABLES[name]
    with pytest.raises((lg.InvalidRequestError, lg.DatasetFormatError)) as caught:
        lg.FrameOrderIterDataset(
            repository, shuffle=SHUFFLE, weights=table(tmp_path, file, columns)
        )
    assert text in str(caught.value)


MALFORMED_CSV: dict[str, tuple[str, str]] = {
    "empty": ("", "w.csv: could not be read as CSV (Empty CSV file)"),
    "a row that is too short": (
        "index,weight\n3\n",
        "w.csv: could not be read as CSV (CSV parse error: Expected 2 columns, got 1",
    ),
    "a column twice": (
        "index,weight,weight\n3,1,2\n",
        "w.csv: there are 2 columns 'weight'; expected one",
    ),
}


@pytest.mark.parametrize("name", MALFORMED_CSV)
def test_malformed_csv(repository: lg.Repository, tmp_path: Path, name: str) -> None:
    contents, text = MALFORMED_CSV[name]
    (tmp_path / "w.csv").write_text(contents)
    with pytest.raises(lg.DatasetFormatError) as caught:
        lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, weights=tmp_path / "w.csv")
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["v.parquet", "v.csv"])
def test_a_table_without_rows_names_none(
    repository: lg.Repository, tmp_path: Path, name: str
) -> None:
    columns = {"index": pa.array([], pa.int64()), "is_valid": pa.array([], pa.bool_())}
    if name.endswith(".csv"):
        (tmp_path / name).write_text(",".join(columns) + "\n")
    else:
        pq.write_table(pa.table(columns), tmp_path / name)
    plain = iter(lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE))
    found = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, valid_rows=tmp_path / name)
    assert iter(found).get_state() == plain.get_state()


def test_a_path_of_bytes(repository: lg.Repository, tmp_path: Path) -> None:
    class Name:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "w.csv")

    table(tmp_path, "w.csv", {"episode_index": [1], "weight": [0]})
    dataset = lg.FrameOrderIterDataset(repository, shuffle=SHUFFLE, weights=Name())
    assert dataset.num_rows == NUM_ROWS - LENGTHS[1]


# --- what it costs -------------------------------------------------------------------------------

MANY = [120] * 20


@pytest.fixture(scope="module")
def long_dataset(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """20 episodes of 120 frames in GOPs of 2, clips of 16."""
    directory = write_dataset(
        tmp_path_factory.mktemp("cost") / "data",
        episode_lengths=MANY,
        fps=30,
        cameras=(Camera(key="top", height=32, width=80, gop=2, codec="h264"),),
        barcodes=False,
    ).directory
    return lg.open_repository(directory)


BLOCKS = np.arange(sum(MANY)) // 2 % 5 > 0
COSTS: dict[str, dict[str, Any]] = {
    "all": {},
    "weights of 0 and 1 by episode": {"weights": [float(number % 3 > 0) for number in range(20)]},
    "weights by episode": {"weights": [0.2 + number % 4 for number in range(20)]},
    "rows that are not valid, whole GOPs": {"valid_rows": BLOCKS},
}


@pytest.mark.parametrize("name", COSTS)
def test_a_frame_of_a_clip_is_decoded_at_most_once_for_each_time_that_the_clip_comes(
    long_dataset: lg.Repository, name: str
) -> None:
    dataset = lg.LeRobotIterDataset(
        long_dataset,
        shuffle=lg.Shuffle(num_parts=16, buffer_size=256),
        num_epochs=1,
        features=["top"],
        **COSTS[name],
    )
    with contextlib.closing(iter(dataset)) as examples:
        count = sum(1 for _ in examples)
        statistics = lg.read_statistics(examples)
    assert count == statistics.frames_handed_out == dataset.num_rows
    assert statistics.pictures_decoded <= 1.1 * count
    if name != "weights by episode":
        # Copies of a clip that are read soon after each other share its frames.
        assert statistics.pictures_decoded >= count


def test_clips_of_which_few_rows_come_are_decoded_in_whole_gops(
    long_dataset: lg.Repository,
) -> None:
    # One row of two in every GOP.
    dataset = lg.LeRobotIterDataset(
        long_dataset,
        shuffle=lg.Shuffle(num_parts=16, buffer_size=256),
        num_epochs=1,
        features=["top"],
        valid_rows=np.arange(sum(MANY)) % 2 == 1,
    )
    with contextlib.closing(iter(dataset)) as examples:
        count = sum(1 for _ in examples)
        statistics = lg.read_statistics(examples)
    assert count == sum(MANY) // 2
    assert 2 * count <= statistics.pictures_decoded <= 2.2 * count
