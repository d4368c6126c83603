"""The selection of a stream: `episodes=` in all its forms, the split into training and held-out
episodes, and dropped frames.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lerobot_grain as lg
from lerobot_grain._repository.metadata import read_episode_columns
from lerobot_grain._repository.selection import select_episodes
from lerobot_grain.testing import WrittenDataset, write_dataset

LENGTHS = [12, 3, 20, 7, 9]
EPISODES = "meta/episodes/chunk-000/file-{:03d}.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("select") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
        tasks=("pick the cube", "place it"),
        episodes_per_metadata_file=2,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


def with_splits(written: WrittenDataset, directory: Path, splits: Any) -> lg.Repository:
    copy = shutil.copytree(written.directory, directory / "copy")
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "splits": splits}))
    return lg.open_repository(copy)


# --- numbers and slices --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("episodes", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        (slice(None), [0, 1, 2, 3, 4]),
        (slice(1, 3), [1, 2]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, -2), [0, 2, 4]),
        (slice(3, 99), [3, 4]),
        ([4, 0, 2], [0, 2, 4]),
        ((1,), [1]),
        ({3, 1}, [1, 3]),
        (range(0, 5, 3), [0, 3]),
        (np.array([2, 1]), [1, 2]),
        ([np.int32(1), np.uint8(0)], [0, 1]),
        (dict.fromkeys([3]).keys(), [3]),
    ],
    ids=repr,
)
def test_selected_episodes_are_in_ascending_order(
    repository: lg.Repository, episodes: Any, expected: list[int]
) -> None:
    selected = select_episodes(repository, episodes)
    assert selected.tolist() == expected
    assert selected.dtype == np.int64


@pytest.mark.parametrize(
    ("episodes", "text"),
    [
        ([5], "episodes: there is no episode 5; the dataset has episodes 0 to 4"),
        ([0, -1], "episodes: there is no episode -1; the dataset has episodes 0 to 4"),
        ([1, 2, 1], "episodes: 1 is given 2 times; expected every episode once"),
        ([], "episodes=[] selects none of the 5 episodes"),
        (slice(5, 9), "episodes=slice(5, 9, None) selects none of the 5 episodes"),
        (slice(3, 3), "episodes=slice(3, 3, None) selects none of the 5 episodes"),
        ([0, 1.0], "episodes=[0, 1.0]: expected episode numbers (int) or a slice"),
        ([True, False], "episodes=[True, False]: expected episode numbers (int) or a slice"),
        ([None], "episodes=[None]: expected episode numbers (int) or a slice"),
        (["0"], "episodes=['0']: expected episode numbers (int) or a slice"),
        ([[0]], "episodes=[[0]]: expected episode numbers (int) or a slice"),
        (
            3,
            "episodes=3: expected a list of episode numbers (int), a slice, the name of a split, "
            "or a function of an Episode",
        ),
    ],
    ids=repr,
)
def test_selections_that_make_no_sense(repository: lg.Repository, episodes: Any, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        select_episodes(repository, episodes)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "episodes",
    [1.5, [10**30], [-(10**30)], slice(0, 2.5), slice("a", None), slice(0, 3, 0)],
    ids=repr,
)
def test_selections_of_the_wrong_type_are_the_callers_fault(
    repository: lg.Repository, episodes: Any
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=r"^episodes"):
        select_episodes(repository, episodes)


# --- splits of info.json -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("0:5", [0, 1, 2, 3, 4]),
        ("1:3", [1, 2]),
        (":2", [0, 1]),
        ("3:", [3, 4]),
        (" 1 : 2 , 3:5 ", [1, 3, 4]),
        ("0:2,1:3", [0, 1, 2]),
        (["0:1", "4:5"], [0, 4]),
    ],
    ids=repr,
)
def test_a_split_by_name(
    written: WrittenDataset, tmp_path: Path, span: Any, expected: list[int]
) -> None:
    repository = with_splits(written, tmp_path, {"val": "0:1", "train": span})
    assert select_episodes(repository, "train").tolist() == expected
    assert select_episodes(repository, "val").tolist() == [0]


@pytest.mark.parametrize(
    "span",
    ["80%:", "0:80%", "3", "0:1:2", "-2:", "train", "", [0, 50], 5, ["0:1", 4], "0:1,"],
    ids=repr,
)
def test_a_split_that_could_mean_two_things_is_refused(
    written: WrittenDataset, tmp_path: Path, span: Any
) -> None:
    repository = with_splits(written, tmp_path, {"train": span})
    shown = span if isinstance(span, str) else repr(span)
    with pytest.raises(lg.DatasetFormatError) as caught:
        select_episodes(repository, "train")
    assert str(caught.value) == (
        f"{repository.description}, meta/info.json: split 'train' is {shown!r}; "
        'expected ranges of episodes such as "0:50" or "0:50, 60:80"; select with episode numbers'
    )


def test_a_split_of_more_episodes_than_there_are(written: WrittenDataset, tmp_path: Path) -> None:
    repository = with_splits(written, tmp_path, {"train": "0:100"})
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"split 'train' is '0:100', but there are 5 episodes; select with episode numbers$",
    ):
        select_episodes(repository, "train")


def test_a_split_that_does_not_exist(
    written: WrittenDataset, repository: lg.Repository, tmp_path: Path
) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"episodes='test': .* has no such split; meta/info.json has \['train'\]$",
    ):
        select_episodes(repository, "test")
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"has no such split; meta/info.json has none; select with episode numbers$",
    ):
        select_episodes(with_splits(written, tmp_path, None), "train")


def test_an_empty_split(written: WrittenDataset, tmp_path: Path) -> None:
    with pytest.raises(
        lg.InvalidRequestError, match=r"episodes='val' selects none of the 5 episodes"
    ):
        select_episodes(with_splits(written, tmp_path, {"val": "3:3"}), "val")


# --- functions of an episode ---------------------------------------------------------------------


def test_a_function_sees_every_episode(repository: lg.Repository) -> None:
    seen: list[tuple[Any, ...]] = []

    def accepts(episode: lg.Episode) -> bool:
        seen.append(
            (
                episode.index,
                episode.length,
                episode.tasks,
                episode["data/file_index"],
                episode["episode_index"],
            )
        )
        return episode.length > 8

    assert select_episodes(repository, accepts).tolist() == [0, 2, 4]
    texts = ("pick the cube", "place it")
    assert seen == [
        (index, length, (texts[index % 2],), 0, index) for index, length in enumerate(LENGTHS)
    ]


def test_columns_are_read_once_and_only_when_they_are_asked_for(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def recorded(storage: Any, listing: Any, wanted: tuple[str, ...]) -> Any:
        read.append(wanted)
        return read_episode_columns(storage, listing, wanted)

    monkeypatch.setattr("lerobot_grain._repository.repository.read_episode_columns", recorded)
    assert select_episodes(repository, lambda episode: episode.length < 8).tolist() == [1, 3]
    assert read == []
    assert select_episodes(
        repository, lambda episode: "place it" in episode.tasks and episode.tasks[0] != ""
    ).tolist() == [1, 3]
    assert read == [("episode_index", "tasks")]


def test_columns_of_the_users_own(written: WrittenDataset, tmp_path: Path) -> None:
    copy = shutil.copytree(written.directory, tmp_path / "copy")
    for number, (success, tasks) in enumerate(
        [([True, False], ["a", "b"]), ([False, True], ["c", None]), ([True], ["e"])]
    ):
        table = pq.read_table(copy / EPISODES.format(number))
        # The rows of a table may be in any order, and a task may be one text.
        table = (
            table.drop(["tasks"])
            .append_column("success", pa.array(success))
            .append_column("tasks", pa.array(tasks))
            .take(list(reversed(range(len(success)))))
        )
        pq.write_table(table, copy / EPISODES.format(number))
    repository = lg.open_repository(copy)
    assert select_episodes(repository, lambda episode: episode["success"]).tolist() == [0, 3, 4]
    assert select_episodes(
        repository, lambda episode: episode.index != 3 and episode.tasks > ("a",)
    ).tolist() == [1, 2, 4]
    with pytest.raises(
        lg.DatasetFormatError, match=r"episode 3 has None in column tasks; expected texts"
    ):
        select_episodes(repository, lambda episode: episode.tasks == ())


def test_what_a_function_does_wrong(repository: lg.Repository) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=r"episodes=.*: it returned None for episode 0; expected True or False",
    ):
        select_episodes(repository, lambda _: None)  # type: ignore[return-value]
    with pytest.raises(lg.InvalidRequestError, match="the episode table has no column 'quality'"):
        select_episodes(repository, lambda episode: episode["quality"])
    with pytest.raises(lg.InvalidRequestError, match="selects none of the 5 episodes"):
        select_episodes(repository, lambda _: False)
    with pytest.raises(ZeroDivisionError):
        select_episodes(repository, lambda episode: episode.length // episode.index > 1)


def test_a_stream_of_what_a_function_selects_has_the_state_of_the_numbers(
    repository: lg.Repository,
) -> None:
    chosen = lg.LeRobotIterDataset(
        repository, episodes=lambda episode: episode.length > 8, features=["index"], num_epochs=1
    )
    named = lg.LeRobotIterDataset(repository, episodes=[0, 2, 4], features=["index"], num_epochs=1)
    assert iter(chosen).get_state() == iter(named).get_state()
    assert [int(example["index"]) for example in chosen] == [
        int(example["index"]) for example in named
    ]


# --- training and held-out episodes --------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    directory = tmp_path_factory.mktemp("many") / "data"
    return lg.open_repository(
        write_dataset(directory, episode_lengths=[2] * 30, cameras=(), barcodes=False).directory
    )


# Computed apart from the package: Philox words with the key (seed, 0) and the counter (0, 0, 0, 3),
# and the episodes of the six smallest.
GOLDEN_SPLITS = [[0, 8, 13, 18, 23, 26], [3, 5, 16, 23, 24, 28], [3, 4, 6, 10, 19, 21]]


def test_the_split_never_changes(many: lg.Repository) -> None:
    assert [
        lg.train_eval_split(many, eval_fraction=0.2, seed=seed)[1].tolist()
        for seed in (0, 1, 2**64 - 1)
    ] == GOLDEN_SPLITS


@settings(deadline=None, max_examples=50)
@given(
    fraction=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**64 - 1),
    count=st.integers(2, 30),
)
def test_every_split(many: lg.Repository, fraction: float, seed: int, count: int) -> None:
    train, held_out = lg.train_eval_split(
        many, eval_fraction=fraction, seed=seed, episodes=slice(0, count)
    )
    assert sorted([*train, *held_out]) == list(range(count))
    assert train.tolist() == sorted(train)
    assert held_out.tolist() == sorted(held_out)
    assert len(train) >= 1
    assert len(held_out) >= 1
    assert abs(len(held_out) - fraction * count) <= 1
    # Leaving an episode out brings at most one other one to the other side.
    if count > 2:
        fewer = set(
            lg.train_eval_split(
                many, eval_fraction=fraction, seed=seed, episodes=slice(0, count - 1)
            )[1].tolist()
        )
        assert len(fewer - set(held_out.tolist())) <= 1


def test_both_sides_stream_every_row_once_over_shards(many: lg.Repository) -> None:
    rows = []
    for side in lg.train_eval_split(many, eval_fraction=0.3, seed=4):
        for shard in range(3):
            options = grain.sharding.ShardOptions(shard, 3)
            rows += list(
                lg.FrameOrderIterDataset(many, episodes=side, num_epochs=1, shard_options=options)
            )
    assert sorted(rows) == list(range(60))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"eval_fraction": 0},
            r"train_eval_split\(eval_fraction=0\): expected a number > 0 and < 1",
        ),
        ({"eval_fraction": 1.0}, r"train_eval_split\(eval_fraction=1.0\)"),
        ({"eval_fraction": float("nan")}, r"train_eval_split\(eval_fraction=nan\)"),
        ({"eval_fraction": True}, r"train_eval_split\(eval_fraction=True\)"),
        ({"eval_fraction": "0.1"}, r"train_eval_split\(eval_fraction='0.1'\)"),
        ({"seed": -1}, r"train_eval_split\(seed=-1\): expected an int, 0 <= seed < 2\*\*64"),
        ({"seed": 2**64}, r"train_eval_split\(seed=18446744073709551616\)"),
        ({"seed": 1.0}, r"train_eval_split\(seed=1.0\)"),
        ({"episodes": [3]}, r"has one episode to split; expected at least 2"),
        ({"episodes": [99]}, r"there is no episode 99"),
    ],
    ids=str,
)
def test_splits_that_cannot_be(many: lg.Repository, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.train_eval_split(many, **arguments)


# --- dropped frames ------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 3), (2, 0), (4, 5), (6, 2)])
@pytest.mark.parametrize(
    "shuffle", [None, lg.Shuffle(num_parts=2, buffer_size=8)], ids=["sequential", "shuffled"]
)
def test_dropped_frames_are_no_anchors(
    repository: lg.Repository, first: int, last: int, shuffle: lg.Shuffle | None
) -> None:
    starts = np.cumsum(LENGTHS) - LENGTHS
    expected = [
        row
        for start, length in zip(starts, LENGTHS, strict=True)
        for row in range(start + first, start + length - last)
    ]
    order = lg.FrameOrderIterDataset(
        repository, drop_first_frames=first, drop_last_frames=last, shuffle=shuffle, num_epochs=2
    )
    assert order.num_rows == len(expected)
    rows = list(order)
    if shuffle is None:
        assert rows == expected * 2
    for epoch in (rows[: len(expected)], rows[len(expected) :]):
        assert sorted(epoch) == expected


def test_windows_reach_dropped_frames(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(
        written.directory,
        episodes=[1, 3],
        drop_first_frames=1,
        drop_last_frames=2,
        delta_timestamps={"frame_index": [-0.1, 0.0, 0.2]},
        features=["frame_index", "episode_index"],
        shuffle=None,
        num_epochs=1,
    )
    # Episode 1 has no row left; of the 7 frames of episode 3 no window has to be filled up.
    examples = list(dataset)
    assert dataset.num_rows == len(examples) == 4
    assert {int(example["episode_index"]) for example in examples} == {3}
    assert [example["frame_index"].tolist() for example in examples] == [
        [0, 1, 3],
        [1, 2, 4],
        [2, 3, 5],
        [3, 4, 6],
    ]
    assert not any(example["frame_index_is_pad"].any() for example in examples)


def test_the_state_without_dropped_frames_is_as_before(repository: lg.Repository) -> None:
    state = iter(lg.FrameOrderIterDataset(repository, episodes=[0, 2])).get_state()
    again = lg.FrameOrderIterDataset(
        repository, episodes=[0, 2], drop_first_frames=0, drop_last_frames=0
    )
    assert iter(again).get_state() == state
    # SHA-256 of 0, 2, 12 and 20 as little-endian 64-bit integers.
    assert state["episodes"] == "2afbee0f2f3b9a90"


@pytest.mark.parametrize(
    ("saved", "restored", "field"),
    [
        ({}, {"drop_last_frames": 1}, "episodes"),
        ({"drop_last_frames": 1}, {}, "episodes"),
        ({"drop_last_frames": 1}, {"drop_last_frames": 2}, "episodes"),
        # As many rows of the same episodes.
        ({"drop_last_frames": 2}, {"drop_first_frames": 2}, "episodes"),
        (
            {"drop_first_frames": 1, "drop_last_frames": 2},
            {"drop_first_frames": 2, "drop_last_frames": 1},
            "episodes",
        ),
    ],
    ids=str,
)
def test_a_state_of_other_dropped_frames_is_refused(
    repository: lg.Repository, saved: dict[str, int], restored: dict[str, int], field: str
) -> None:
    state = iter(lg.FrameOrderIterDataset(repository, **saved)).get_state()
    iterator = iter(lg.FrameOrderIterDataset(repository, **restored))
    kept = iterator.get_state()
    text = (
        rf"taken with {field} = .* select the same episodes, with the same drop_first_frames "
        rf"and drop_last_frames"
    )
    with pytest.raises(lg.StateMismatchError, match=text):
        iterator.set_state(state)
    assert iterator.get_state() == kept


def test_a_state_with_dropped_frames_goes_on(repository: lg.Repository) -> None:
    dataset = lg.FrameOrderIterDataset(
        repository, drop_first_frames=1, drop_last_frames=1, num_epochs=2
    )
    straight = list(dataset)
    iterator = iter(dataset)
    for position in range(1, len(straight)):
        next(iterator)
        again = iter(dataset)
        again.set_state(json.loads(json.dumps(iterator.get_state())))
        assert list(again) == straight[position:]


@pytest.mark.parametrize("name", ["drop_first_frames", "drop_last_frames"])
@pytest.mark.parametrize("value", [-1, 1.0, True, None, "1"], ids=repr)
def test_a_number_of_frames_that_is_none(repository: lg.Repository, name: str, value: Any) -> None:
    with pytest.raises(lg.InvalidRequestError, match=rf"^{name}={value!r}: expected an int >= 0$"):
        lg.FrameOrderIterDataset(repository, **{name: value})


@pytest.mark.parametrize("value", [20, 10**30])
def test_no_row_is_left(repository: lg.Repository, value: int) -> None:
    with pytest.raises(
        lg.InvalidRequestError,
        match=rf"drop_last_frames={value}: no selected episode has more rows than these",
    ):
        lg.LeRobotIterDataset(repository, drop_last_frames=value, features=["index"])
