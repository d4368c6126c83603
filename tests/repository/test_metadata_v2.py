"""Datasets of v2.0 and v2.1: the same examples, order, states and statistics as of v3; malformed
lines; which version is opened.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._format.layout import newest_version_tag
from lerobot_grain._repository import json_lines
from lerobot_grain.testing import (
    EXTRA_FEATURES,
    Camera,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)

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
    """A dataset of v2.1 without cameras that a test may damage."""
    return write_dataset(
        tmp_path / "data", version="v2.1", episode_lengths=[5, 6, 7], cameras=()
    ).directory


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


def refusal(directory: Path, *, read_stats: bool = False) -> str:
    with pytest.raises(lg.DatasetFormatError) as caught:
        _ = lg.open_repository(directory).stats if read_stats else lg.open_repository(directory)
    assert str(caught.value).startswith(str(directory))
    return str(caught.value).removeprefix(str(directory)).removeprefix(", ").removeprefix(": ")


# --- the same as v3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_the_same_tables_as_version_3(written: Written, version: str) -> None:
    found = lg.open_repository(written[version].directory)
    expected = lg.open_repository(written["v3.0"].directory)
    assert found.info.codebase_version == version
    assert (found.tasks, found.fps, found.gop_length()) == (
        expected.tasks,
        expected.fps,
        expected.gop_length(),
    )
    assert list(found.features.items()) == list(expected.features.items())
    assert found.episodes.lengths.tolist() == LENGTHS
    assert found.episodes.data_offsets.tolist() == [0] * 5
    assert found.episodes.data.paths[3] == "data/chunk-001/episode_000003.parquet"
    assert found.episodes.videos[TOP].files.paths[4] == "videos/chunk-002/top/episode_000004.mp4"
    again: lg.Repository = pickle.loads(pickle.dumps(found))
    assert list(again.episodes.data.paths) == list(found.episodes.data.paths)


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
@pytest.mark.parametrize(
    "shuffle",
    [None, lg.Shuffle(seed=3, buffer_size=32, num_parts=4)],
    ids=["sequential", "shuffled"],
)
def test_the_same_examples_in_the_same_order(
    written: Written, version: str, shuffle: lg.Shuffle | None
) -> None:
    found, expected = (
        lg.LeRobotIterDataset(
            written[name].directory, delta_timestamps=WINDOWS, shuffle=shuffle, num_epochs=1
        )
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
    found, expected = (
        lg.open_repository(written[name].directory).stats for name in (version, "v3.0")
    )
    assert found is not None
    assert expected is not None
    assert found.keys() == expected.keys()
    for key, statistics in found.items():
        assert list(statistics) == ["min", "max", "mean", "std", "count"]
        for name, value in statistics.items():
            assert (value.dtype, value.shape) == (np.dtype(np.float64), expected[key][name].shape)
            np.testing.assert_allclose(
                value, expected[key][name], rtol=1e-12, atol=1e-12, err_msg=f"{key} {name}"
            )


@pytest.mark.parametrize(
    ("old", "new", "features", "window"),
    [
        pytest.param(
            "cr5_v21",
            "cr5_v30",
            None,
            {"observation.images.top": [-0.1, 0.0], "action": [0.0, 0.1]},
            marks=pytest.mark.long,
            id="cr5",
        ),
        pytest.param(
            "gr00t_v20",
            "gr00t_v30",
            [
                "observation.images.ego_view",
                "observation.state",
                "action",
                "timestamp",
                "index",
                "next.done",
                "task",
            ],
            {"observation.images.ego_view": [-0.05, 0.0], "action": [0.0, 0.05]},
            id="gr00t",
        ),
    ],
)
def test_real_data_sets_of_both_versions(
    shared: Path, old: str, new: str, features: list[str] | None, window: dict[str, list[float]]
) -> None:
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


def test_a_declared_camera_without_files(shared: Path) -> None:
    repository = lg.open_repository(shared / "real/gr00t_v20")
    assert repository.gop_length() == 250, "of the other camera"
    iterator = iter(lg.LeRobotIterDataset(repository))
    with pytest.raises(
        lg.MissingFileError,
        match=r"there is no file videos/chunk-000/observation.images.egoview/episode_\d{6}.mp4",
    ):
        next(iterator)
    iterator.close()


def test_rows_without_video(shared: Path) -> None:
    repository = lg.open_repository(shared / "real/screwdriver_rows_v21")
    assert (repository.episodes.num_rows, len(repository.cameras), repository.gop_length()) == (
        1217,
        3,
        None,
    )
    columns = [key for key in repository.features if key not in repository.cameras]
    dataset = lg.LeRobotIterDataset(
        repository,
        features=[*columns, "task"],
        delta_timestamps={"action": [0.0, 1 / 30]},
        num_epochs=1,
    )
    examples = list(dataset)
    assert sorted(int(example["index"]) for example in examples) == list(range(1217))
    assert {example["task"] for example in examples} == set(repository.tasks.values())
    stats = repository.stats
    assert stats is not None
    actions = np.stack([example["action"][0] for example in examples]).astype(np.float64)
    # Those of the files were computed in float32.
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-4)
    assert stats["action"]["count"].tolist() == [1217]


def test_a_file_with_fewer_frames_than_its_episode_has_rows(tmp_path: Path) -> None:
    camera = Camera(key=TOP, height=32, width=96)
    data, short = (
        write_dataset(
            tmp_path / name, version="v2.1", episode_lengths=lengths, cameras=(camera,)
        ).directory
        for name, lengths in (("data", [5, 6]), ("short", [5, 4]))
    )
    path = "videos/chunk-000/top/episode_000001.mp4"
    (data / path).write_bytes((short / path).read_bytes())
    iterator = iter(lg.LeRobotIterDataset(data, shuffle=None))
    assert [int(next(iterator)["index"]) for _ in range(5)] == list(range(5))
    with pytest.raises(
        lg.DatasetFormatError,
        match=rf"{path}: episode 1, camera top: it has 6 rows, but only 4 frames",
    ):
        next(iterator)
    iterator.close()


# --- metadata ------------------------------------------------------------------------------------

EPISODES, TASKS, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"


@pytest.mark.parametrize(
    ("path", "line", "text"),
    [
        (
            EPISODES,
            '{"episode_index": 1, "length"',
            "not valid JSON (Expecting ':' delimiter at character 29); expected one object a line",
        ),
        (EPISODES, b"\xff\xfe{", "not valid JSON ('utf-"),
        (EPISODES, "[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (EPISODES, "[1, 2]", "found [1, 2]; expected a JSON object"),
        (EPISODES, '{"length": 6}', "episode_index is None; expected an integer >= 0"),
        (
            EPISODES,
            '{"episode_index": 1, "length": 6.5}',
            "length is 6.5; expected an integer >= 0",
        ),
        (
            EPISODES,
            '{"episode_index": 1, "length": "6"}',
            "length is '6'; expected an integer >= 0",
        ),
        (
            EPISODES,
            '{"episode_index": 1, "length": true}',
            "length is True; expected an integer >= 0",
        ),
        (
            EPISODES,
            '{"episode_index": 1, "length": NaN}',
            "length is nan; expected an integer >= 0",
        ),
        (
            EPISODES,
            '{"episode_index": -1, "length": 6}',
            "episode_index is -1; expected an integer >= 0",
        ),
        (
            EPISODES,
            '{"episode_index": 1e300, "length": 6}',
            "episode_index is 1e+300; expected an integer >= 0",
        ),
        (
            EPISODES,
            b"{" + b" " * (4 << 20),
            "it has more than 4194304 bytes; expected one JSON object of a few",
        ),
        (TASKS, '{"task_index": 0}', "task is None; expected a text"),
        (TASKS, '{"task": "pick"}', "task_index is None; expected an integer"),
        (
            TASKS,
            '{"task_index": 0, "task": "place"}',
            "task_index 0 is 'place', but 'pick the cube' in a line before it",
        ),
        (STATS, '{"episode_index": 1}', "stats is None; expected feature -> statistic -> numbers"),
        (
            STATS,
            '{"stats": {"action": 3}}',
            "feature 'action': found 3; expected statistic -> numbers",
        ),
        (
            STATS,
            '{"stats": {"action": {"min": [1], "max": [1]}}}',
            "feature 'action': there is no mean; found ['min', 'max']",
        ),
        (STATS, {"mean": ["a"]}, "feature 'action': mean is ['a']; expected numbers ("),
        (STATS, {"count": [0]}, "feature 'action': count is [0]; expected one number >= 1"),
        (STATS, {"count": []}, "feature 'action': count is []; expected one number >= 1"),
        (STATS, {"std": [1.0]}, "feature 'action': std has shape (1,), but mean (7,)"),
        (
            STATS,
            {"mean": ["1"] * 7},
            "feature 'action': mean is ['1', '1', '1', '1', '1', '1', '1']; expected numbers (",
        ),
        (STATS, {"q50": [0.0]}, "feature 'action': q50 has shape (1,), but mean (7,)"),
        (
            STATS,
            {name: [1.0] for name in ("min", "max", "mean", "std")},
            "feature 'action': found min of shape (1,); the episodes before it have",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_lines(
    directory: Path, path: str, line: str | bytes | dict[str, Any], text: str
) -> None:
    lines = (directory / path).read_bytes().splitlines()
    if isinstance(line, dict):
        line = json.dumps(
            {"stats": {"action": {**json.loads(lines[1])["stats"]["action"], **line}}}
        )
    lines[1:2] = [line if isinstance(line, bytes) else line.encode()]
    (directory / path).write_bytes(b"\n".join(lines))
    found = refusal(directory, read_stats=True)
    assert found.startswith(f"{path}, line 2")
    assert found.removeprefix(f"{path}, line 2").lstrip(":, ").startswith(text)


def test_episodes_that_contradict_each_other(directory: Path) -> None:
    path = directory / EPISODES
    original = path.read_text()
    path.write_text(original.replace('"episode_index": 1', '"episode_index": 2'))
    assert (
        refusal(directory)
        == f"{EPISODES}: episode_index 2 is there more than once; expected every episode once"
    )
    path.write_text(original.replace('"length": 6', '"length": 0'))
    assert refusal(directory) == f"{EPISODES}: episode 1 has length 0; expected at least 1 frame"
    path.write_text("")
    assert refusal(directory) == f"{EPISODES}: the table has no episode"


@pytest.mark.parametrize("path", [EPISODES, TASKS])
def test_missing_files(directory: Path, path: str) -> None:
    (directory / path).unlink()
    assert refusal(directory) == f"there is no {path}, which a LeRobotDataset v2.x has"


def test_data_sets_without_statistics(directory: Path) -> None:
    (directory / STATS).unlink()
    assert lg.open_repository(directory).stats is None
    (directory / "meta/stats.json").write_text('{"action": {"mean": [1.0]}}')
    stats = lg.open_repository(directory).stats
    assert stats is not None
    assert stats["action"]["mean"].tolist() == [1.0]


def test_lines_in_any_order_with_blank_ones_and_other_ends(directory: Path) -> None:
    expected = lg.open_repository(directory)
    for path in (EPISODES, TASKS, STATS):
        lines = (directory / path).read_bytes().splitlines()
        (directory / path).write_bytes(b"\r\n\r\n".join(reversed(lines)))
    found = lg.open_repository(directory)
    assert found.episodes.lengths.tolist() == expected.episodes.lengths.tolist()
    assert found.tasks == expected.tasks
    assert found.stats is not None
    assert expected.stats is not None
    np.testing.assert_allclose(found.stats["action"]["std"], expected.stats["action"]["std"])


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000])
def test_large_files_are_read_in_pieces(
    directory: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    expected = lg.open_repository(directory)
    assert expected.stats is not None
    monkeypatch.setattr(json_lines, "_PIECE_BYTES", piece_bytes)
    found = lg.open_repository(directory)
    assert (found.commit, found.tasks) == (expected.commit, expected.tasks)
    assert found.episodes.lengths.tolist() == expected.episodes.lengths.tolist()
    assert found.stats is not None
    assert found.stats["action"]["mean"].tolist() == expected.stats["action"]["mean"].tolist()


def test_statistics_keep_their_digits(directory: Path) -> None:
    # A mean that is far larger than the deviation, as of timestamps since 1970.
    values = [
        np.array([1.8e9, 1.8e9 + 1e-3]),
        np.array([1.8e9 + 2e-3, 1.8e9 + 3e-3]),
        np.array([1.8e9 + 4e-3]),
    ]
    lines = [
        {
            "episode_index": number,
            "stats": {
                "action": {
                    "min": [v.min()],
                    "max": [v.max()],
                    "mean": [v.mean()],
                    "std": [v.std()],
                    "count": [len(v)],
                }
            },
        }
        for number, v in enumerate(values)
    ]
    (directory / STATS).write_text("\n".join(json.dumps(line) for line in lines))
    stats = lg.open_repository(directory).stats
    assert stats is not None
    together = np.concatenate(values)
    assert {name: value.tolist() for name, value in stats["action"].items() if name != "std"} == {
        "min": [together.min()],
        "max": [together.max()],
        "mean": [together.mean()],
        "count": [5.0],
    }
    np.testing.assert_allclose(stats["action"]["std"], together.std(), rtol=1e-3)


def change_lines(directory: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    lines = [json.loads(line) for line in (directory / STATS).read_text().splitlines()]
    change(lines)
    (directory / STATS).write_text("\n".join(json.dumps(line) for line in lines))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda lines: lines.pop(),
            "there is no line for episode {last} (and 0 others); expected one for each of the "
            "{all} episodes",
        ),
        (
            lambda lines: lines.clear(),
            "there is no line for episode 0 (and {last} others); expected one for each of the "
            "{all} episodes",
        ),
        (
            lambda lines: lines.append(lines[0]),
            "line {next}: episode 0 has a line before it; expected one line for each episode",
        ),
        (
            lambda lines: lines[1].update(episode_index=77),
            "line 2: episode 77 is not in meta/episodes.jsonl; expected one line for each",
        ),
        (
            lambda lines: lines[1].pop("episode_index"),
            "line 2: episode_index is None; expected an integer >= 0",
        ),
        (
            lambda lines: lines[1]["stats"].pop("action"),
            "line 2, feature 'action': it has no statistics, which it has in the lines before",
        ),
        (
            lambda lines: lines[0]["stats"].pop("action"),
            "line 2, feature 'action': found statistics, which it has not in the lines before",
        ),
    ],
    ids=[
        "line missing",
        "empty",
        "line twice",
        "another episode",
        "no number",
        "feature missing",
        "feature missing in the first",
    ],
)
def test_statistics_of_some_episodes_only_are_refused(
    directory: Path, change: Callable[[Any], object], text: str
) -> None:
    repository = lg.open_repository(directory)
    count = repository.episodes.num_episodes
    change_lines(directory, change)
    found = refusal(directory, read_stats=True)
    assert found.startswith(f"{STATS}")
    assert text.format(last=count - 1, all=count, next=count + 1) in found
    rows = lg.LeRobotIterDataset(
        lg.open_repository(directory), shuffle=None, num_epochs=1, features=["action"]
    )
    assert len(list(rows)) == 18


@pytest.mark.parametrize("lines_with", [[0], [1], [1, 2]], ids=str)
def test_a_quantile_of_some_episodes_only_is_left_out_with_a_warning(
    directory: Path, lines_with: list[int]
) -> None:
    expected = lg.open_repository(directory).stats
    assert expected is not None
    change_lines(
        directory,
        lambda lines: [lines[i]["stats"]["action"].update(q50=[0.0] * 7) for i in lines_with],
    )
    repository = lg.open_repository(directory)
    with pytest.warns(
        lg.LeRobotGrainWarning,
        match="q50 of feature 'action' is left out: only some episodes have it",
    ):
        stats = repository.stats
    assert stats is not None
    assert stats["action"].keys() == expected["action"].keys()
    assert stats["action"]["std"].tolist() == expected["action"]["std"].tolist()


def test_episodes_are_selected_by_their_tasks(directory: Path) -> None:
    """Lists of JSON, where the table of v3 has arrays; some recorders write one text."""
    path = directory / EPISODES
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, tasks in zip(lines, (["pick it"], ["place it", "pick it"], "pick it"), strict=True):
        line["tasks"] = tasks
    path.write_text("\n".join(json.dumps(line) for line in lines))
    repository = lg.open_repository(directory)
    rows = lg.LeRobotIterDataset(
        repository,
        episodes=lambda e: "pick" in e.tasks[0],
        shuffle=None,
        num_epochs=1,
        features=["episode_index"],
    )
    assert {int(row["episode_index"]) for row in rows} == {0, 2}
    lines[1]["tasks"] = ["place it", None]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(
        lg.DatasetFormatError,
        match="the episode table: episode 1 has None in column tasks; expected texts",
    ):
        lg.LeRobotIterDataset(
            lg.open_repository(directory), episodes=lambda e: "pick" in e.tasks[0]
        )


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_a_check_does_not_miss_a_column_that_only_version_3_has(
    written: Written, version: str
) -> None:
    findings = lg.check(lg.open_repository(written[version].directory)).findings
    assert not [
        finding
        for finding in findings
        if "to_timestamp" in finding.text or finding.path == "meta/episodes"
    ]


# --- on the Hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["v2.0", "v2.1", "v1.6"], "v2.1"),
        (["v2.1", "v3.0", "v2.0"], "v3.0"),
        (["v3.9", "v3.10", "v3.10.1"], "v3.10.1"),
        (["v2.0"], "v2.0"),
        (["v2.2", "v4.0", "v1.6", "2.1", "v2.1-old"], "main"),
        ([], "main"),
    ],
    ids=str,
)
def test_the_newest_tag_of_a_version_that_is_read(tags: list[str], expected: str) -> None:
    assert newest_version_tag(tags) == expected


def test_opening_from_the_hub_does_not_read_statistics(
    written: Written, hub: LoopbackHub, tmp_path: Path
) -> None:
    repository_id = "tests/v21_opened"
    tagged = hub.add_repository(repository_id, written["v2.1"].directory, tags=["v2.1"])
    hub.add_commit(repository_id, written["v3.0"].directory, branches=["main"])
    hub.clear_requests()
    repository = lg.open_repository(repository_id, endpoint=hub.endpoint, cache_dir=tmp_path)
    assert (repository.commit, repository.info.codebase_version) == (tagged.commit, "v2.1"), (
        "the tag, not main"
    )
    assert not [request for request in hub.requests() if "stats" in request.path]
    assert repository.stats is not None
    num_requests = len([request for request in hub.requests() if "stats" in request.path])
    assert num_requests > 0
    again: lg.Repository = pickle.loads(pickle.dumps(repository))
    assert again.stats is not None
    assert (
        len([request for request in hub.requests() if "stats" in request.path]) == num_requests
    ), "kept, also in the pickle"


def test_a_small_file_costs_two_requests(hub: LoopbackHub, tmp_path: Path) -> None:
    camera = Camera(key=TOP, height=32, width=96)
    data = write_dataset(
        tmp_path / "data", version="v2.1", episode_lengths=[32, 19, 40], cameras=(camera,)
    ).directory
    hub.add_repository("tests/v21_requests", data, tags=["v2.1"])
    repository = lg.open_repository(
        "tests/v21_requests", endpoint=hub.endpoint, cache_dir=tmp_path / "cache"
    )
    dataset = lg.LeRobotIterDataset(repository, num_epochs=2)
    hub.clear_requests()
    assert sum(1 for _ in dataset) == 2 * 91
    requests = [request for request in hub.requests() if request.kind in ("resolver", "cdn")]
    # Whether a file is large or small, the Hub is asked where it lies; the video of episode 0 was
    # looked at before, for the GOP length.
    assert sorted(request.path for request in requests if request.kind == "resolver") == sorted(
        f"/datasets/tests/v21_requests/resolve/{repository.commit}/{path}"
        for path in (
            *repository.episodes.data.paths,
            *repository.episodes.videos[TOP].files.paths[1:],
        )
    )
    read = [request for request in requests if request.kind == "cdn"]
    # That was all of its file, and is kept on disk.
    sizes = [
        (data / path).stat().st_size
        for path in (
            *repository.episodes.data.paths,
            *repository.episodes.videos[TOP].files.paths[1:],
        )
    ]
    assert sorted(request.body_bytes_sent for request in read) == sorted(sizes)


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"version": "v1.6"}, "version 'v1.6' must be one of v3.0, v2.1, v2.0"),
        ({"version": "v2.1", "episodes_per_data_file": 2}, "v2.1 has one episode a file, not 2"),
        (
            {"version": "v2.0", "cameras": [Camera()], "episodes_per_video_file": 2},
            "v2.0 has one episode a file, not 2",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_written(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.InvalidRequestError) as caught:
        write_dataset(tmp_path / "data", **{"episode_lengths": [2, 3], "cameras": (), **arguments})
    assert str(caught.value) == text
