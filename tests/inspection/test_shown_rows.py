"""What is read to be shown is what a stream gives, and a camera that cannot be read hides nothing
else.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import lerobot_grain as lg
from lerobot_grain._cli.page.pictures import strip
from lerobot_grain._cli.page.plots import plots
from lerobot_grain._inspection.overview import shown_pictures
from lerobot_grain._inspection.overview.shown_rows import (
    first_rows,
    read_episode,
    read_examples,
    rows_of_episode,
    windows_around,
)
from lerobot_grain.testing import Camera, Feature, write_dataset
from tests.support.datasets import change_info, change_table

TOP = "top"


@pytest.fixture(scope="module")
def repository(small_dataset: Path) -> lg.Repository:
    return lg.open_repository(small_dataset)


def test_examples_are_those_of_read_rows_and_the_curves_in_order(
    repository: lg.Repository,
) -> None:
    windows = {TOP: [0.1, -0.1], "action": [0.1, 0.0, -0.3]}
    (shown,) = read_examples(repository, [9], cameras=[TOP], windows=windows)
    ordered = {key: sorted(deltas) for key, deltas in windows.items()}
    (example,) = lg.read_rows(repository, 9, delta_timestamps=ordered)
    (action,) = shown.curves
    assert np.array_equal(action.values, example["action"])
    assert action.seconds.tolist() == ordered["action"]
    # Row 9 is frame 1 of episode 1.
    assert (shown.episode, shown.frame, shown.length) == (1, 1, 5)
    assert action.is_pad.tolist() == example["action_is_pad"].tolist() == [True, False, False]
    (top,) = shown.pictures
    assert np.array_equal(top.frames, example[TOP])
    assert shown.words["task"] == example["task"]
    assert "action" not in shown.words
    assert "action_is_pad" not in shown.words
    assert shown.places == (lg.locate(repository, 9),)


def test_a_feature_may_be_called_as_masks_are(small_dataset: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(small_dataset, tmp_path / "copy")
    for path in sorted(directory.glob("data/*/*.parquet")):
        change_table(
            path, lambda table: table.append_column("action_is_pad", pa.array([True] * len(table)))
        )
    entry = {"dtype": "bool", "shape": [1], "names": None}
    change_info(directory, lambda info: info["features"].update(action_is_pad=entry))
    repository = lg.open_repository(directory)
    windows = windows_around(repository, ["action", "action_is_pad"], frames_per_camera=1)
    (shown,) = read_examples(repository, [9], cameras=[], windows=windows)
    own, action = sorted(shown.curves, key=lambda each: len(each.names))
    assert own.values.all()
    assert action.is_pad.sum() == 21 - 5


def test_windows_around_a_row_have_the_row(repository: lg.Repository) -> None:
    for count in (1, 2, 5, 6, 40):
        windows = windows_around(repository, [TOP, "action", "index"], frames_per_camera=count)
        assert 0.0 in windows[TOP]
        assert len(windows[TOP]) == min(count, 21)
        assert windows["action"] == [frame / 10 for frame in range(-10, 11)]
        assert set(windows) == {TOP, "action"}


def test_an_episode_is_read_whole(repository: lg.Repository) -> None:
    shown = read_episode(repository, 2, cameras=[TOP], frames_per_camera=3)
    examples = lg.read_rows(repository, range(13, 20))
    assert (shown.row, shown.frame, shown.length) == (None, None, 7)
    action = next(each for each in shown.curves if each.key == "action")
    assert np.array_equal(action.values, [each["action"] for each in examples])
    assert action.seconds.tolist() == [frame / 10 for frame in range(7)]
    (top,) = shown.pictures
    assert np.array_equal(top.frames, [examples[frame][TOP] for frame in (0, 3, 6)])
    assert [place.row for place in shown.places] == [13, 16, 19]
    assert shown.words["task"] in ("pick", "place")
    assert rows_of_episode(repository, 2, count=3) == [13, 16, 19]


def test_the_rows_of_a_stream(repository: lg.Repository) -> None:
    dataset = lg.LeRobotIterDataset(
        repository, features=["index"], shuffle=lg.Shuffle(seed=3), num_epochs=1
    )
    expected = [int(example["index"]) for example in dataset]
    assert first_rows(repository, count=4, seed=3) == expected[:4]
    assert first_rows(repository, count=99, seed=3) == expected


def test_a_camera_that_cannot_be_read_is_named_and_the_rest_is_shown(
    small_dataset: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(small_dataset, tmp_path / "copy")
    (directory / "videos/top/chunk-000/file-000.mp4").unlink()
    repository = lg.open_repository(directory)
    (shown,) = read_examples(repository, [0], cameras=[TOP], windows={"action": [0.0]})
    assert "there is no file videos/top/chunk-000/file-000.mp4" in (shown.pictures[0].problem or "")
    assert len(shown.curves) == 1
    assert dict(shown.places[0].cameras) == {}
    episode = read_episode(repository, 0, cameras=[TOP], frames_per_camera=2)
    assert episode.pictures[0].problem is not None


def test_a_broken_file_hides_no_other(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        version="v2.1",
        episode_lengths=[4, 4],
        fps=10,
        cameras=(Camera(key=TOP, height=32, width=80, codec="h264"),),
    ).directory
    paths = sorted(directory.glob("videos/*/*/*.mp4"))
    assert len(paths) == 2
    whole = [path.read_bytes() for path in paths]
    paths[1].write_bytes(b"no video")
    repository = lg.open_repository(directory)
    found = read_examples(repository, [1, 5, 2], cameras=[TOP], windows={})
    assert [len(shown.pictures[0].frames) for shown in found] == [1, 0, 1]
    assert [shown.pictures[0].problem is None for shown in found] == [True, False, True]
    # The order follows from the first file.
    paths[1].write_bytes(whole[1])
    paths[0].write_bytes(b"no video")
    repository = lg.open_repository(directory)
    rows = first_rows(repository, count=8, seed=0)
    assert sorted(rows) == list(range(8))
    found = read_examples(repository, rows, cameras=[TOP], windows={})
    assert [each.pictures[0].problem is None for each in found] == [row >= 4 for row in rows]


def test_an_episode_is_shown_with_the_frames_that_can_be_read(
    repository: lg.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(repository: lg.Repository, rows: Sequence[int], **arguments: Any) -> Any:
        if arguments["features"] == [TOP] and 13 in rows:
            raise lg.DatasetFormatError("no such frame")
        return lg.read_rows(repository, rows, **arguments)

    monkeypatch.setattr(shown_pictures, "read_rows", failing)
    (top,) = read_episode(repository, 2, cameras=[TOP], frames_per_camera=3).pictures
    assert top.seconds.tolist() == [0.3, 0.6]
    assert len(top.frames) == len(top.is_pad) == 2
    assert top.problem == "no such frame"
    html = strip(top, is_example=False)
    assert "Frames of this camera cannot be read: no such frame" in html
    assert html.count("<img") == 2


def test_many_frames_are_held_at_the_size_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width, length = 100, 800, 7
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[length],
        fps=10,
        cameras=(
            Camera(key=TOP, height=height, width=width, kind="image"),
            Camera(key="depth", height=height, width=width, kind="image", depth=True),
        ),
    ).directory
    repository = lg.open_repository(directory)
    full_size = {
        key: [each[key] for each in lg.read_rows(repository, range(length), features=[key])]
        for key in (TOP, "depth")
    }
    held: list[weakref.ref[Any]] = []
    together = []

    def noting(repository: lg.Repository, rows: Sequence[int], **arguments: Any) -> Any:
        alive = [each for each in held if each() is not None]
        assert len(alive) <= len(together), "full frames of more than one row of each read before"
        examples = lg.read_rows(repository, rows, **arguments)
        for example in examples:
            frames = example[arguments["features"][0]]
            held.append(weakref.ref(frames if frames.base is None else frames.base))
        together.append(len(rows))
        return examples

    monkeypatch.setattr(shown_pictures, "read_rows", noting)
    monkeypatch.setattr(shown_pictures, "_FULL_SIZE_BYTES", 3 * height * width * 3)
    top, depth = read_episode(
        repository, 0, cameras=[TOP, "depth"], frames_per_camera=length
    ).pictures
    # A frame of color takes 3 bytes a pixel, one of depth 4.
    assert together == [3, 3, 1, 2, 2, 2, 1]
    assert top.size == depth.size == (height, width)
    assert top.frames.shape == (length, 48, 384, 3)
    assert depth.frames.shape == (length, 48, 384, 1)
    assert np.array_equal(top.seconds, np.arange(length) / 10)
    means = [float(np.mean(frame)) for frame in full_size[TOP]]
    assert np.allclose(top.frames.mean((1, 2, 3)), means, atol=1)
    every = np.stack(full_size["depth"])
    assert depth.depth_limits == (float(every[every > 0].min()), float(every.max()))
    assert top.depth_limits is None
    assert set(np.unique(depth.frames)) <= set(np.unique(every)), "no depth where nothing is"


def test_of_a_long_vector_so_much_is_read_as_is_drawn(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[3],
        fps=10,
        cameras=(),
        features={"long": Feature(dtype="float32", shape=(50,))},
    ).directory
    shown = read_episode(lg.open_repository(directory), 0, cameras=[], frames_per_camera=1)
    long = next(each for each in shown.curves if each.key == "long")
    assert (len(long.names), long.values.shape) == (50, (3, 32))
    assert "18 further dimensions are not drawn." in plots(long, is_example=False)


def test_language_is_shown_as_text(small_dataset: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(small_dataset, tmp_path / "copy")
    message = {"role": "user", "content": "pick it up"}
    for path in sorted(directory.glob("data/*/*.parquet")):
        change_table(
            path,
            lambda table: table.append_column(
                "language_events",
                pa.array(
                    [[message]] * len(table),
                    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
                ),
            ),
        )
    entry = {"dtype": "language", "shape": [1], "names": None}
    change_info(directory, lambda info: info["features"].update(language_events=entry))
    repository = lg.open_repository(directory)
    (shown,) = read_examples(repository, [0], cameras=[], windows={})
    assert shown.words["language_events"] == '[{"role": "user", "content": "pick it up"}]'
    episode = read_episode(repository, 0, cameras=[], frames_per_camera=2)
    assert '"pick it up"' in episode.words["language_events"]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"side": [0.0]}, "there is no feature 'side' to show a window of; there are "),
        ({"action": [0.05]}, r"delta_timestamps\['action'\]"),
        ({TOP: [0.05]}, r"delta_timestamps\['top'\]"),
    ],
)
def test_windows_that_there_are_none_of(
    repository: lg.Repository, windows: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=message):
        read_examples(repository, [0], cameras=[TOP], windows=windows)


def test_no_such_episode(repository: lg.Repository) -> None:
    with pytest.raises(lg.InvalidRequestError, match="there is no episode 5; there are 0 to 4"):
        read_episode(repository, 5, cameras=[], frames_per_camera=1)
