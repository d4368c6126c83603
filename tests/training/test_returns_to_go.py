"""Rewards and what is made of them: columns pass, windows of rewards, and returns to go, against a
loop over the rows.
"""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import grain
import numpy as np
import numpy.typing as npt
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Feature, WrittenDataset, write_dataset
from tests.support.datasets import examples_of
from tests.support.oracle import Oracle

LENGTHS = [7, 1, 12, 5]
REWARDS = {
    "next.reward": Feature(dtype="float32"),
    "next.done": Feature(dtype="bool"),
    "next.success": Feature(dtype="bool"),
    "cost": Feature(dtype="int64"),
    "two": Feature(dtype="float32", shape=(2,)),
}


def row_values(episode: int, length: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(episode)
    is_last = np.arange(length) == length - 1
    return {
        "next.reward": rng.normal(size=length).astype(np.float32),
        "next.done": is_last,
        "next.success": is_last & (episode % 2 == 0),
        "cost": rng.integers(-5, 5, length),
        "two": np.zeros((length, 2), np.float32),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("returns") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
        features=REWARDS,
        row_values=row_values,
        episodes_per_data_file=2,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


def looped(rewards: Any, lengths: list[int], discount: float) -> npt.NDArray[np.float32]:
    """The definition: for each row the sum over the rest of its episode, from its end."""
    found = []
    start = 0
    for length in lengths:
        total = 0.0
        of_episode = []
        for reward in reversed([float(each) for each in rewards[start : start + length]]):
            total = reward + discount * total
            of_episode.append(total)
        found += of_episode[::-1]
        start += length
    return np.array(found).astype(np.float32)


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0, 1])
@pytest.mark.parametrize("key", ["next.reward", "cost", "next.success"])
def test_the_returns_are_those_of_a_loop(
    written: WrittenDataset, repository: lg.Repository, key: str, discount: float
) -> None:
    returns = lg.ReturnsToGo(repository, reward=key, discount=discount, output="g")
    expected = looped(written.rows[key], LENGTHS, discount)
    assert returns.values.dtype == np.float32
    assert not returns.values.flags.writeable
    assert np.array_equal(returns.values, expected)
    for row, example in enumerate(examples_of(repository)):
        found = returns.map(example)
        assert "g" not in example
        assert (found["g"].dtype, found["g"].shape) == (np.float32, ())
        assert found["g"] == expected[row]


def test_discounted_by_powers(repository: lg.Repository, written: WrittenDataset) -> None:
    rewards = written.rows["next.reward"][8:20].astype(np.float64)
    expected = [
        sum(0.5**k * reward for k, reward in enumerate(rewards[start:])) for start in range(12)
    ]
    found = lg.ReturnsToGo(repository, discount=0.5).values[8:20]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_windows_batches_and_chunks(repository: lg.Repository) -> None:
    returns = lg.ReturnsToGo(repository, discount=0.9)
    windows = {"index": [-0.2, 0.0, 0.1, 0.5]}
    rows = lg.LeRobotIterDataset(repository, num_epochs=1, delta_timestamps=windows)
    streams: list[tuple[grain.IterDataset[Any], int]] = [
        (rows.map(returns), 1),
        (rows.batch(5).map(returns), 2),
        (rows.map(returns).batch(5), 2),
        (lg.EpisodeIterDataset(repository, num_epochs=1).map(returns), 1),
        (lg.EpisodeIterDataset(repository, chunk_frames=8, num_epochs=1).map(returns).batch(2), 2),
    ]
    for stream, ndim in streams:
        with contextlib.closing(iter(stream)) as elements:
            for element in elements:
                found = element["returns_to_go"]
                assert (found.dtype, found.ndim) == (np.float32, ndim)
                assert np.array_equal(found, returns.values[element["index"]])


@pytest.mark.parametrize("keys", [["index"], ["episode_index", "frame_index"]], ids=str)
def test_the_row_is_known_by_either(repository: lg.Repository, keys: list[str]) -> None:
    returns = lg.ReturnsToGo(repository)
    with contextlib.closing(
        iter(lg.LeRobotIterDataset(repository, features=keys, shuffle=None, num_epochs=1))
    ) as examples:
        found = [returns.map(example)["returns_to_go"] for example in examples]
    assert np.array_equal(found, returns.values)
    batch = {key: np.array([[0, 2], [2, 3]]) for key in ("episode_index",)}
    batch["frame_index"] = np.array([[6, 0], [11, 4]])
    assert np.array_equal(returns.map(batch)["returns_to_go"], returns.values[[[6, 8], [19, 24]]])


def test_episodes_whose_numbers_have_gaps(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        version="v2.1",
        episode_lengths=[3, 4],
        cameras=(),
        features={"next.reward": Feature(dtype="float32")},
    ).directory
    repository = lg.open_repository(directory)
    returns = lg.ReturnsToGo(repository)
    rewards = [example["next.reward"] for example in examples_of(repository)]
    assert np.array_equal(returns.values, looped(rewards, [3, 4], 1.0))


def test_only_one_column_is_read_once(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = pickle.loads(pickle.dumps(lg.ReturnsToGo(repository)))
    monkeypatch.setattr(type(repository.storage), "read_ranges", None)
    assert returns.map({"index": np.int64(3)})["returns_to_go"] == returns.values[3]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"reward": "reward"},
        "has no such feature; those with one number a frame are next.reward, next.done, "
        "next.success, cost, timestamp, frame_index, episode_index, index, task_index",
    ),
    ({"reward": "two"}, "has dtype float32 and shape (2,); expected one number a frame"),
    ({"discount": 1.1}, "ReturnsToGo(discount=1.1): expected a number, 0 <= discount <= 1"),
    ({"discount": True}, "ReturnsToGo(discount=True): expected a number"),
    ({"discount": float("nan")}, "ReturnsToGo(discount=nan): expected a number"),
    ({"output": ""}, "ReturnsToGo(output=''): expected the key that the returns get"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=lambda value: str(value)[:30])
def test_arguments_that_are_refused(
    repository: lg.Repository, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        lg.ReturnsToGo(repository, **arguments)
    assert text in str(caught.value)


EXAMPLES: list[tuple[dict[str, Any], str]] = [
    (
        {"action": 1, "frame_index": 0},
        "an example has the keys ['action', 'frame_index']; expected 'index', or 'episode_index'",
    ),
    ({"index": np.int64(25)}, "an example has index 25; expected a row of {}, which has 25 rows"),
    ({"index": np.array([[3, -1]])}, "an example has index -1; expected a row"),
    ({"index": 1.5}, "'index' is 1.5; expected ints"),
    (
        {"episode_index": np.array([0, 9]), "frame_index": np.array([1, 2])},
        "an example has episode_index 9, frame_index 2; expected a row of",
    ),
    (
        {"episode_index": 1, "frame_index": 1},
        "an example has episode_index 1, frame_index 1; expected a row of",
    ),
    (
        {"episode_index": np.array([0, 1]), "frame_index": 1},
        "'episode_index' has shape (2,), 'frame_index' has (); expected the same windows",
    ),
    ({"index": 0, "returns_to_go": 1}, "the example has 'returns_to_go' already"),
]


@pytest.mark.parametrize(("example", "text"), EXAMPLES, ids=lambda value: str(value)[:30])
def test_examples_that_are_refused(
    repository: lg.Repository, example: dict[str, Any], text: str
) -> None:
    returns = lg.ReturnsToGo(repository)
    with pytest.raises(lg.InvalidRequestError) as caught:
        returns.map(example)
    assert "ReturnsToGo: " + text.format(repository.description) in str(caught.value)


def test_a_reward_that_is_not_finite(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[3, 4],
        cameras=(),
        features={"next.reward": Feature(dtype="float32")},
        row_values=lambda episode, length: {
            "next.reward": np.where((np.arange(length) == 2) & (episode == 1), np.nan, 0.5).astype(
                np.float32
            )
        },
        statistics=False,
    ).directory
    repository = lg.open_repository(directory)
    with pytest.raises(lg.DatasetFormatError) as caught:
        lg.ReturnsToGo(repository)
    assert str(caught.value) == (
        f"{repository.description}: 'next.reward' is nan at row 5, frame 2 of episode 1; expected "
        "finite rewards"
    )


@pytest.mark.parametrize(("discount", "shown"), [(1.0, "9e+38"), (0.5, "5.25e+38")])
def test_a_return_that_no_float32_holds(tmp_path: Path, discount: float, shown: str) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[1, 3],
        cameras=(),
        features={"next.reward": Feature(dtype="float32")},
        row_values=lambda _, length: {"next.reward": np.full(length, 3e38, np.float32)},
        statistics=False,
    ).directory
    repository = lg.open_repository(directory)
    assert np.isfinite(lg.ReturnsToGo(repository, discount=0.0).values).all()
    with pytest.raises(lg.DatasetFormatError) as caught:
        lg.ReturnsToGo(repository, discount=discount)
    text = str(caught.value)
    assert f"the return of 'next.reward' is {shown} at row" in text
    assert "of episode 1; expected at most 3.40282e+38, the largest float32. Give a" in text


# --- columns -------------------------------------------------------------------------------------


def test_rewards_and_flags_are_columns_as_any_other(
    written: WrittenDataset, repository: lg.Repository
) -> None:
    deltas = {"next.reward": [0.0, 0.1, 0.2]}
    for row, example in enumerate(examples_of(repository, delta_timestamps=deltas)):
        for key in ("next.done", "next.success", "cost"):
            assert example[key] == written.rows[key][row]
            assert example[key].dtype == written.rows[key].dtype
        # An n-step return: no reward after the end of the episode.
        episode, frame = repository.episodes.locate(row)
        left = LENGTHS[episode] - frame
        rewards = written.rows["next.reward"][row : row + min(3, left)]
        assert example["next.reward_is_pad"].tolist() == [step >= left for step in range(3)]
        n_step = (
            example["next.reward"] * ~example["next.reward_is_pad"] * 0.9 ** np.arange(3)
        ).sum()
        assert np.isclose(n_step, sum(0.9**k * reward for k, reward in enumerate(rewards)))


def test_the_golden_with_rewards(shared: Path) -> None:
    oracle = Oracle.of(shared, "state_only", "none")
    repository = lg.open_repository(shared / "golden" / "state_only")
    examples = lg.read_rows(repository, oracle.rows)
    oracle.check(examples, repository)
    assert {"next.reward", "next.done"} <= set(oracle.arrays)
    found = lg.ReturnsToGo(repository, discount=0.97)
    rewards = [example["next.reward"] for example in examples_of(repository)]
    lengths = repository.episodes.lengths.tolist()
    assert np.array_equal(found.values, looped(rewards, lengths, 0.97))
