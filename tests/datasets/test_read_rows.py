"""A few rows by their numbers: the examples of the stream, in the order given."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import LoopbackHub
from tests.support.oracle import NAMES, Oracle
from tests.support.streams import write_small

# Out of order, twice, at the ends of episodes, in all files.
ROWS = [20, 3, 35, 3, 0, 12, 13, 7, 8]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    return lg.open_repository(write_small(tmp_path_factory.mktemp("rows") / "data"))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert type(found[key]) is type(value), key
        if isinstance(value, np.ndarray | np.generic):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        assert np.array_equal(found[key], value), key


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"features": ["action", "top"]},
        {"features": ["task"]},
        {
            "delta_timestamps": {"top": [-0.1, 0.0], "action": [0.0, 0.1, 5.0]},
            "pad_keys": {"action": "no_action"},
            "image_size": (16, 40),
        },
    ],
    ids=["all", "two features", "task only", "windows"],
)
def test_the_examples_are_those_of_the_stream(
    repository: lg.Repository, arguments: dict[str, Any]
) -> None:
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(repository, shuffle=None, num_epochs=1, **arguments))
    ) as examples:
        expected = list(examples)
    found = lg.read_rows(repository, ROWS, **arguments)
    assert len(found) == len(ROWS)
    for example, row in zip(found, ROWS, strict=True):
        assert_same(example, expected[row])


@pytest.mark.parametrize("specification", ["none", "wide"])
@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_those_of_the_map_style_reader(
    shared: Path, name: str, specification: str
) -> None:
    oracle = Oracle.of(shared, name, specification)
    repository = lg.open_repository(shared / "golden" / name)
    rows = oracle.rows[::-1]
    found = lg.read_rows(repository, rows, delta_timestamps=oracle.deltas)
    assert [example["index"] for example in found] == rows
    oracle.check(found[::-1], repository)


def test_one_row_an_array_of_rows_and_none(repository: lg.Repository) -> None:
    (expected,) = lg.read_rows(repository, [5])
    arrays = (np.array([5]), np.array(5), jnp.array([5]), jnp.array(5))
    for rows in (5, np.int64(5), iter([5]), *arrays):
        (found,) = lg.read_rows(repository, rows)
        assert_same(found, expected)
    assert lg.read_rows(repository, []) == []
    first = lg.read_rows(repository, repository.episodes.first_rows, features=["frame_index"])
    assert [example["frame_index"] for example in first] == [0] * 5


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (36, "there is no row 36"),
        ([0, -1], "there is no row -1"),
        (True, "a row is True"),
        ([1.5], "a row is 1.5"),
        ("12", "a row is '1'"),
        (None, "a row is None"),
        (np.zeros((2, 2), int), "a row is [0, 0]"),
    ],
    ids=str,
)
def test_rows_that_are_none(repository: lg.Repository, rows: Any, found: str) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.read_rows(repository, rows)
    assert str(caught.value) == (
        f"read_rows: {found}; expected ints, 0 <= row < 36, the rows of {repository.description}"
    )


def test_other_arguments_are_checked_as_those_of_the_stream(repository: lg.Repository) -> None:
    for arguments in (
        {"features": ["nothing"]},
        {"features": ["action"], "delta_timestamps": {"top": [0.0]}},
        {"delta_timestamps": {"action": [0.05]}},
        {"image_size": (0, 1)},
        {"pad_keys": {"action": "mask"}},
    ):
        texts = []
        for make in (lg.LeRobotIterDataset, lambda *args, **kw: lg.read_rows(args[0], 0, **kw)):
            with pytest.raises(lg.InvalidRequestError) as caught:
                make(repository, **arguments)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


def test_only_what_the_rows_need_is_fetched_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_small(tmp_path / "data")
    monkeypatch.setenv("LEROBOT_GRAIN_CACHE", str(tmp_path / "cache"))
    with LoopbackHub() as hub:
        hub.add_repository("test/rows", directory, tags=["v3.0"])
        repository = lg.open_repository("test/rows", endpoint=hub.endpoint)
        threads = set(threading.enumerate())
        hub.clear_requests()
        (example,) = lg.read_rows(repository, 30)
        assert (example["episode_index"], example["frame_index"]) == (4, 4)
        asked = {request.path.rpartition("/")[2] for request in hub.requests()}
        assert "file-002.mp4" in asked
        assert not {"file-000.mp4", "file-001.mp4", "file-000.parquet"} & asked
        left = {thread.name for thread in set(threading.enumerate()) - threads}
        assert not [name for name in left if "decode" in name or "fetch" in name], left
        repository.close()
