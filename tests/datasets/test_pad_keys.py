"""Datasets that declare a feature under the name that the mask of a window has, such as
`action_is_pad`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Feature, write_dataset
from tests.support.forked import fork_workers

LENGTHS = [6, 5]
DECLARED = {
    "action_is_pad": Feature(dtype="bool"),
    "observation.state_is_pad": Feature(dtype="int16", shape=(3,)),
    "other": Feature(dtype="bool"),
}
CLASH = (
    "{}: the mask of the window of 'action' and the feature 'action_is_pad', which is selected, "
    "would both be 'action_is_pad' in examples; give the mask another key, such as "
    "pad_keys={{'action': 'action_window_is_pad'}}, or leave 'action_is_pad' out of "
    "features=[...]"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("pads") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
        features=DECLARED,
        statistics=False,
    ).directory


@pytest.fixture(scope="module")
def columns(directory: Path) -> list[dict[str, Any]]:
    """All rows as the files have them."""
    return list(lg.LeRobotIterDataset(directory, shuffle=None, num_epochs=1))


def stream(directory: Path, **arguments: Any) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(directory, **{"shuffle": None, "num_epochs": 1} | arguments)


def piped(
    directory: Path, windows: dict[str, list[float]], **arguments: Any
) -> lg.ReadWindowsIterDataset:
    repository = lg.open_repository(directory)
    rows = lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=1)
    return lg.ReadWindowsIterDataset(
        rows.filter(lambda _: True).map(lg.DeltaTimestamps(repository, windows)),
        repository,
        **arguments,
    )


def refusal(make: Any) -> str:
    with pytest.raises(lg.InvalidRequestError) as caught:
        make()
    return str(caught.value)


def test_without_a_window_the_column_passes_through(
    directory: Path, columns: list[dict[str, Any]]
) -> None:
    assert len({bool(row["action_is_pad"]) for row in columns}) == 2, "both values occur"
    found = list(stream(directory, delta_timestamps={"other": [0.0, 0.1]}))
    assert [bool(example["action_is_pad"]) for example in found] == [
        bool(row["action_is_pad"]) for row in columns
    ]
    assert np.array_equal(
        found[3]["observation.state_is_pad"], columns[3]["observation.state_is_pad"]
    )
    assert found[5]["other_is_pad"].tolist() == [False, True]
    (batch,) = stream(directory).batch(11)
    assert batch["action_is_pad"].tolist() == [bool(row["action_is_pad"]) for row in columns]


@pytest.mark.parametrize(
    "features", [None, ["action", "action_is_pad"], ["action_is_pad", "task", "action"]], ids=str
)
def test_a_window_whose_mask_has_the_name_of_a_feature(
    directory: Path, features: list[str] | None
) -> None:
    windows = {"action": [0.0, 0.1]}
    expected = CLASH.format("delta_timestamps['action']")
    assert (
        refusal(lambda: stream(directory, delta_timestamps=windows, features=features)) == expected
    )
    assert refusal(lambda: piped(directory, windows, features=features)) == expected


def test_other_features_clash_too(directory: Path) -> None:
    text = refusal(lambda: stream(directory, delta_timestamps={"observation.state": [0.0]}))
    assert "'observation.state'" in text
    assert "'observation.state_is_pad'" in text


def test_a_feature_that_is_not_selected_is_in_nobodys_way(directory: Path) -> None:
    windows = {"action": [0.0, 0.1]}
    for dataset in (
        stream(directory, delta_timestamps=windows, features=["action"]),
        piped(directory, windows, features=["action"]),
    ):
        assert [example["action_is_pad"].tolist() for example in dataset][4:7] == [
            [False, False],
            [False, True],
            [False, False],
        ]


@pytest.mark.parametrize("make", [stream, piped], ids=["front", "parts"])
def test_the_mask_under_another_key(
    directory: Path, columns: list[dict[str, Any]], make: Any
) -> None:
    windows = {"action": [0.0, 0.1], "observation.state": [-0.1], "other": [0.1]}
    arguments: dict[str, Any] = {
        "pad_keys": {"action": "action_window_is_pad", "observation.state": "past"}
    }
    arguments |= {"delta_timestamps": windows} if make is stream else {}
    dataset = (
        make(directory, **arguments) if make is stream else make(directory, windows, **arguments)
    )
    found = list(dataset)
    batches = list(
        make(directory, **arguments).batch(4)
        if make is stream
        else make(directory, windows, **arguments).batch(4)
    )
    for row, example in enumerate(found):
        is_last, is_first = row in (5, 10), row in (0, 6)
        assert set(example) == {*columns[0], "action_window_is_pad", "past", "other_is_pad"}
        assert example["action_window_is_pad"].tolist() == [False, is_last]
        assert example["past"].tolist() == [is_first]
        assert example["other_is_pad"].tolist() == [is_last]
        assert bool(example["action_is_pad"]) == bool(columns[row]["action_is_pad"])
        assert np.array_equal(
            example["observation.state_is_pad"], columns[row]["observation.state_is_pad"]
        )
        for key in ("action_window_is_pad", "past", "action_is_pad"):
            assert np.array_equal(batches[row // 4][key][row % 4], example[key])


def test_masks_of_columns_that_are_masks(directory: Path, columns: list[dict[str, Any]]) -> None:
    """The window of the actions that the recorder has marked, next to the mask of that window."""
    windows = {"action": [0.0, 0.1], "action_is_pad": [0.0, 0.1]}
    found = list(stream(directory, delta_timestamps=windows, pad_keys={"action": "behind_the_end"}))
    for row, example in enumerate(found):
        following = row if row in (5, 10) else row + 1
        assert example["action_is_pad"].tolist() == [
            bool(columns[place]["action_is_pad"]) for place in (row, following)
        ]
        assert (
            example["behind_the_end"].tolist()
            == example["action_is_pad_is_pad"].tolist()
            == [False, row in (5, 10)]
        )


@pytest.mark.parametrize(
    ("pad_keys", "text"),
    [
        (
            {"action": "other"},
            "pad_keys={'action': 'other'}: the mask of the window of 'action' and the feature "
            "'other', which is selected, would both be 'other' in examples; give the mask another "
            "key, such as pad_keys={'action': 'action_window_is_pad'}, or leave 'other' out of "
            "features=[...]",
        ),
        (
            {"action": "task"},
            "pad_keys={'action': 'task'}: the mask of the window of 'action' and the feature "
            "'task', which is selected, would both be 'task' in examples; give the mask another "
            "key, such as pad_keys={'action': 'action_window_is_pad'}, or leave 'task' out of "
            "features=[...]",
        ),
        (
            {"action": "pad", "index": "pad"},
            "pad_keys={'index': 'pad'}: the mask of the window of 'index' and the mask of "
            "'action' would both be 'pad' in examples; give the mask another key, such as "
            "pad_keys={'index': 'index_window_is_pad'}",
        ),
        (
            {"action": "index_is_pad"},
            "delta_timestamps['index']: the mask of the window of 'index' and the mask of "
            "'action' would both be 'index_is_pad' in examples; give the mask another key, such "
            "as pad_keys={'index': 'index_window_is_pad'}",
        ),
        (
            {"action": ""},
            "pad_keys['action'] is ''; expected the key that the mask of its window has in "
            "examples",
        ),
        (
            {"action": 3},
            "pad_keys['action'] is 3; expected the key that the mask of its window has in examples",
        ),
        (
            {"other": "x"},
            "pad_keys['other']: there is no window of it; there are those of action, index",
        ),
        ("_pad", "pad_keys='_pad': expected a mapping, such as {'action': 'action_window_is_pad'}"),
    ],
    ids=str,
)
def test_keys_that_make_no_sense(directory: Path, pad_keys: Any, text: str) -> None:
    windows = {"action": [0.0, 0.1], "index": [0.0]}
    assert refusal(lambda: stream(directory, delta_timestamps=windows, pad_keys=pad_keys)) == text
    assert refusal(lambda: piped(directory, windows, pad_keys=pad_keys)) == text


def test_statistics_of_a_stream_leave_out_what_the_mask_marks(directory: Path) -> None:
    batches = stream(
        directory, delta_timestamps={"action": [0.3]}, pad_keys={"action": "mask"}
    ).batch(4)
    stats = lg.stats_of(batches, keys=["action"], pad_keys={"action": "mask"})
    assert stats["action"]["count"].tolist() == [sum(LENGTHS) - 3 * len(LENGTHS)]


class _Requests(grain.transforms.Map):
    """Makes requests without `DeltaTimestamps`, with windows from some row on."""

    def __init__(self, first_row: int) -> None:
        self._first_row = first_row

    def map(self, row: int) -> lg.WindowRequest:
        if row < self._first_row:
            return lg.WindowRequest(row, 0, row, {}, {})
        return lg.WindowRequest(
            row, 0, row, {"action": np.array([row])}, {"action": np.array([False])}
        )


def test_windows_that_are_not_known_before_are_refused_when_they_come(directory: Path) -> None:
    repository = lg.open_repository(directory)
    rows = lg.FrameOrderIterDataset(repository, episodes=[0], shuffle=None, num_epochs=1)
    with contextlib.closing(
        iter(lg.ReadWindowsIterDataset(rows.map(_Requests(2)), repository))
    ) as examples:
        assert [int(next(examples)["index"]) for _ in range(2)] == [0, 1]
        with pytest.raises(lg.InvalidRequestError) as caught:
            next(examples)
        assert str(caught.value).splitlines()[0] == CLASH.format("delta_timestamps['action']")
    renamed = lg.ReadWindowsIterDataset(
        rows.map(_Requests(2)), repository, pad_keys={"action": "mask"}
    )
    assert ["mask" in example for example in renamed] == [False] * 2 + [True] * 4


def test_in_worker_processes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    dataset = stream(
        directory,
        delta_timestamps={"action": [0.0, 0.1]},
        pad_keys={"action": "mask"},
        features=["index", "action", "action_is_pad"],
    )
    with contextlib.closing(iter(lg.WorkerPrefetchIterDataset(dataset, num_workers=2))) as iterator:
        found = list(iterator)
    for one, other in zip(found, dataset, strict=True):
        assert one.keys() == other.keys() == {"index", "action", "action_is_pad", "mask"}
        for key, value in other.items():
            assert np.array_equal(one[key], value), key


# --- features that are called like a mask, outside of the reader ---------------------------------


def _with_a_feature(**batch: Any) -> dict[str, Any]:
    return {
        "action": np.ones((3,), np.float32),
        "observation.state": np.zeros((3,), np.float32),
    } | batch


@pytest.mark.parametrize(
    "flag",
    [np.bool_(True), np.float32(1), np.array([1, 0, 1], np.int64)],
    ids=["bool", "float", "numbers"],
)
def test_a_feature_that_is_called_like_a_mask_is_none(flag: Any) -> None:
    example = _with_a_feature(**{"action_is_pad": flag, "observation.state_is_pad": flag})
    found = lg.DeltaActions([True, True, False]).map(example)
    assert found["action"].tolist() == [1, 1, 1]
    assert lg.plot_example(example) is not None


def test_statistics_beside_a_feature_that_is_called_like_a_mask() -> None:
    batch = {
        "action": np.array([[1.0], [2.0], [6.0]]),
        "action_is_pad": np.array([False, False, True]),
    }
    assert lg.stats_of([batch], keys=["action"], pad_keys={"action": None})["action"][
        "mean"
    ].tolist() == [3]
    assert lg.stats_of([batch], keys=["action"])["action"]["mean"].tolist() == [1.5]
    other = batch | {"action_is_pad": np.array([0.0, 0.5, 1.0])}
    assert lg.stats_of([other], keys=["action"])["action"]["mean"].tolist() == [3]
