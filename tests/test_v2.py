"""Data sets of v2.0 and v2.1: the same examples, order, states and statistics as of v3; malformed lines of JSON; which version is opened."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain import _json_lines
from lerobot_grain._hub_storage import newest_version_tag
from lerobot_grain.testing import EXTRA_FEATURES, Camera, LoopbackHub, WrittenDataset, read_barcodes, write_dataset

TOP, WRIST, PICTURE = "top", "wrist", "picture"
CAMERAS = (
    Camera(key=TOP, height=64, width=96, gop=2),
    Camera(key=WRIST, height=64, width=96, codec="h264", gop=10),
    Camera(key=PICTURE, height=32, width=80, kind="image"),
)
LENGTHS = [21, 8, 30, 11, 17]
WINDOWS = {"action": [0.0, 0.1, 0.2], TOP: [-0.2, 0.0], WRIST: [0.0, 0.5]}

Written = Mapping[str, WrittenDataset]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The same episodes in every version; folders of two files."""
    root = tmp_path_factory.mktemp("versions")
    return {
        version: write_dataset(
            root / version,
            version=version,
            episode_lengths=LENGTHS,
            fps=10,
            cameras=CAMERAS,
            features=EXTRA_FEATURES,
            tasks=("pick", "place"),
            chunks_size=2,
        )
        for version in ("v3.0", "v2.1", "v2.0")
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data set of v2.1 without cameras that a test may damage."""
    return write_dataset(tmp_path / "data", version="v2.1", episode_lengths=[5, 6, 7], cameras=()).directory


def assert_equal_examples(found: Any, expected: Any) -> int:
    count = 0
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert type(mine[key]) is type(value), key
            assert getattr(mine[key], "dtype", None) == getattr(value, "dtype", None), key
            assert np.array_equal(mine[key], value), key
        count += 1
    return count


def refusal(directory: Path, read: Callable[[lg.Repository], Any] = lambda repository: None) -> str:
    with pytest.raises(lg.DatasetFormatError) as caught:
        read(lg.open_repository(directory))
    assert str(caught.value).startswith(str(directory))
    return str(caught.value).removeprefix(str(directory)).removeprefix(", ").removeprefix(": ")


# --- the same as v3 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_the_same_tables_as_version_3(written: Written, version: str) -> None:
    found, expected = lg.open_repository(written[version].directory), lg.open_repository(written["v3.0"].directory)
    assert found.info.codebase_version == version
    assert (found.tasks, found.fps, found.gop_length()) == (expected.tasks, expected.fps, expected.gop_length())
    assert list(found.features.items()) == list(expected.features.items())
    assert found.episodes.lengths.tolist() == LENGTHS
    assert found.episodes.data_offsets.tolist() == [0] * 5
    assert found.episodes.data.paths[3] == "data/chunk-001/episode_000003.parquet"
    assert found.episodes.videos[TOP].files.paths[4] == "videos/chunk-002/top/episode_000004.mp4"
    again: lg.Repository = pickle.loads(pickle.dumps(found))
    assert list(again.episodes.data.paths) == list(found.episodes.data.paths)


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
@pytest.mark.parametrize("shuffle", [None, lg.Shuffle(seed=3, buffer_size=32, num_parts=4)], ids=["sequential", "shuffled"])
def test_the_same_examples_in_the_same_order(written: Written, version: str, shuffle: lg.Shuffle | None) -> None:
    found, expected = (
        lg.LeRobotIterDataset(written[name].directory, delta_timestamps=WINDOWS, shuffle=shuffle, num_epochs=1)
        for name in (version, "v3.0")
    )
    assert found.shuffle == expected.shuffle
    assert assert_equal_examples(found, expected) == sum(LENGTHS)
    states = [iter(dataset).get_state() for dataset in (found, expected)]
    assert {**states[0], "commit": ""} == {**states[1], "commit": ""}


def test_every_frame_belongs_to_its_row(written: Written) -> None:
    data = written["v2.1"]
    for example in lg.LeRobotIterDataset(data.directory, num_epochs=1):
        episode, frame = int(example["episode_index"]), int(example["frame_index"])
        for index, camera in enumerate(CAMERAS):
            assert read_barcodes(example[camera.key][None])[0].tolist() == [episode, frame, index]
        assert example["task"] == data.expected_row(episode, frame)["task"]


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_the_same_statistics(written: Written, version: str) -> None:
    found, expected = (lg.open_repository(written[name].directory).stats for name in (version, "v3.0"))
    assert found is not None
    assert expected is not None
    assert found.keys() == expected.keys()
    for key, statistics in found.items():
        assert list(statistics) == ["min", "max", "mean", "std", "count"]
        for name, value in statistics.items():
            assert (value.dtype, value.shape) == (np.dtype(np.float64), expected[key][name].shape)
            np.testing.assert_allclose(value, expected[key][name], rtol=1e-12, atol=1e-12, err_msg=f"{key} {name}")


def test_real_data_sets_of_both_versions(shared: Path) -> None:
    for old, new, features, window in (
        ("cr5_v21", "cr5_v30", None, {"observation.images.top": [-0.1, 0.0], "action": [0.0, 0.1]}),
        (
            "gr00t_v20",
            "gr00t_v30",
            ["observation.images.ego_view", "observation.state", "action", "timestamp", "index", "next.done", "task"],
            {"observation.images.ego_view": [-0.05, 0.0], "action": [0.0, 0.05]},
        ),
    ):
        repository = lg.open_repository(shared / "real" / old)
        found, expected = (
            lg.LeRobotIterDataset(
                opened,
                episodes=range(repository.episodes.num_episodes),
                features=features,
                delta_timestamps=window,
                shuffle=lg.Shuffle(seed=1),
                num_epochs=1,
            )
            for opened in (repository, lg.open_repository(shared / "real" / new))
        )
        assert assert_equal_examples(found, expected) == repository.info.total_frames
