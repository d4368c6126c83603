"""Numbers of episodes with gaps (10, 20, 30, ...), as some datasets of v2.x have them: users, files
and messages know episodes by these.
"""

from __future__ import annotations

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
from lerobot_grain._repository.selection import select_episodes
from lerobot_grain.testing import Camera, WrittenDataset, read_barcodes, write_dataset
from tests.support.datasets import examples_of

TOP, PICTURE = "top", "picture"
LENGTHS = [6, 4, 7, 5]
NUMBERS = [10, 20, 30, 45]
EPISODES, STATS = "meta/episodes.jsonl", "meta/episodes_stats.jsonl"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """The same episodes with the numbers 0, 1, 2, 3."""
    return write_dataset(
        tmp_path_factory.mktemp("numbers") / "data",
        version="v2.1",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(
            Camera(key=TOP, height=64, width=96, codec="h264", gop=3),
            Camera(key=PICTURE, height=32, width=80, kind="image"),
        ),
        tasks=("pick", "place"),
        chunks_size=25,
    )


def renumbered(directory: Path, numbers: list[int]) -> Path:
    """Gives the episodes of a dataset other numbers, in their files and in their names."""
    for path in (EPISODES, STATS):
        lines = [json.loads(line) for line in (directory / path).read_text().splitlines()]
        changed = [{**line, "episode_index": numbers[line["episode_index"]]} for line in lines]
        (directory / path).write_text("\n".join(map(json.dumps, changed)))
    files = sorted(
        [*directory.glob("data/*/*.parquet"), *directory.glob("videos/*/*/*.mp4")], reverse=True
    )
    for file in files:
        number = numbers[int(file.stem.removeprefix("episode_"))]
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            column = pa.array([number] * table.num_rows)
            pq.write_table(
                table.set_column(
                    table.column_names.index("episode_index"), "episode_index", column
                ),
                file,
            )
        parts = list(file.parts)
        chunk = next(place for place, part in enumerate(parts) if part.startswith("chunk-"))
        parts[chunk], parts[-1] = f"chunk-{number // 25:03d}", f"episode_{number:06d}{file.suffix}"
        Path(*parts).parent.mkdir(parents=True, exist_ok=True)
        file.rename(Path(*parts))
    return directory


@pytest.fixture(scope="module")
def gapped(usual: WrittenDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renumbered(
        shutil.copytree(usual.directory, tmp_path_factory.mktemp("gaps") / "data"), NUMBERS
    )


@pytest.fixture(scope="module")
def repository(gapped: Path) -> lg.Repository:
    return lg.open_repository(gapped)


@pytest.fixture
def directory(gapped: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(gapped, tmp_path / "copy")


def assert_same(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], numbers: list[int] = NUMBERS
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert np.array_equal(
                one[key], numbers[int(value)] if key == "episode_index" else value
            ), key


def refusal(
    make: Callable[[], Any], kind: type[lg.LeRobotGrainError] = lg.DatasetFormatError
) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value).splitlines()[0]


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shuffle",
    [None, lg.Shuffle(seed=1, clip_length=3, num_parts=2, buffer_size=8)],
    ids=["sequential", "shuffled"],
)
def test_the_same_examples_as_without_gaps(
    repository: lg.Repository, usual: WrittenDataset, shuffle: lg.Shuffle | None
) -> None:
    arguments: dict[str, Any] = {
        "shuffle": shuffle,
        "delta_timestamps": {"action": [-0.1, 0.0, 0.2], TOP: [0.0, 0.1]},
    }
    assert_same(examples_of(repository, **arguments), examples_of(usual.directory, **arguments))


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [0, 1, 2, 7], [24, 25, 49, 10_000]], ids=str)
def test_other_gaps(usual: WrittenDataset, tmp_path: Path, numbers: list[int]) -> None:
    data = renumbered(shutil.copytree(usual.directory, tmp_path / "data"), numbers)
    assert_same(examples_of(data), examples_of(usual.directory), numbers)
    assert lg.open_repository(data).episodes.numbers.tolist() == numbers


def test_the_table(repository: lg.Repository, usual: WrittenDataset) -> None:
    table = repository.episodes
    assert (table.numbers.tolist(), table.num_episodes, table.num_rows) == (
        NUMBERS,
        4,
        sum(LENGTHS),
    )
    assert table.data.paths[2] == "data/chunk-001/episode_000030.parquet"
    assert table.videos[TOP].files.paths[0] == "videos/chunk-000/top/episode_000010.mp4"
    assert table.locate(6) == (20, 0)
    assert repository.episode_column("episode_index").tolist() == NUMBERS
    assert repository.notes == ()
    again: lg.Repository = pickle.loads(pickle.dumps(repository))
    assert again.episodes.numbers.tolist() == NUMBERS
    assert lg.open_repository(usual.directory).episodes.numbers.tolist() == [0, 1, 2, 3]


def test_statistics(repository: lg.Repository, usual: WrittenDataset) -> None:
    expected = lg.open_repository(usual.directory)
    for found, other in (
        (repository.stats, expected.stats),
        (lg.compute_stats(repository), lg.compute_stats(expected)),
    ):
        assert found is not None
        assert other is not None
        assert np.array_equal(found["action"]["mean"], other["action"]["mean"])
    some = lg.compute_stats(repository, episodes=[20, 45], features=["action"])
    assert np.array_equal(
        some["action"]["max"],
        lg.compute_stats(expected, episodes=[1, 3], features=["action"])["action"]["max"],
    )


# --- what selects them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("episodes", "expected"),
    [
        ([20, 45], [20, 45]),
        ([45, 10], [10, 45]),
        (np.array([30]), [30]),
        (range(10, 31, 10), [10, 20, 30]),
        (slice(1, 3), [20, 30]),
        (slice(-1, None), [45]),
        (slice(20, 31), None),
        (lambda episode: episode.index > 20, [30, 45]),
        (lambda episode: episode.length == 4 and episode["episode_index"] == 20, [20]),
        ("first", [10, 20]),
        (None, NUMBERS),
    ],
    ids=[
        "list",
        "any order",
        "array",
        "range",
        "slice",
        "last",
        "slice of numbers",
        "function",
        "column",
        "split",
        "all",
    ],
)
def test_selections(directory: Path, episodes: Any, expected: list[int] | None) -> None:
    """Lists and functions know the numbers; slices and splits count the episodes, as
    lerobot does.
    """
    info = json.loads((directory / "meta/info.json").read_text())
    (directory / "meta/info.json").write_text(json.dumps({**info, "splits": {"first": "0:2"}}))
    if expected is None:
        assert "selects none of the 4 episodes" in refusal(
            lambda: examples_of(directory, episodes=episodes), lg.InvalidRequestError
        )
        return
    found = examples_of(directory, episodes=episodes, features=["episode_index", TOP])
    assert list(dict.fromkeys(int(example["episode_index"]) for example in found)) == expected
    codes = read_barcodes(np.stack([example[TOP] for example in found]))
    assert [NUMBERS[code] for code in codes[:, 0].tolist()] == [
        int(example["episode_index"]) for example in found
    ]


@pytest.mark.parametrize("number", [0, 1, 15, 46, -10, 10**30])
def test_numbers_that_no_episode_has(repository: lg.Repository, number: int) -> None:
    text = refusal(lambda: select_episodes(repository, [10, number]), lg.InvalidRequestError)
    assert (
        text == f"episodes: there is no episode {number}; the dataset has episodes 10, 20, 30, 45"
    )
    assert refusal(lambda: select_episodes(repository, [20, 20]), lg.InvalidRequestError) == (
        "episodes: 20 is given 2 times; expected every episode once"
    )


def test_training_and_held_out_episodes(repository: lg.Repository, usual: WrittenDataset) -> None:
    expected = lg.train_eval_split(lg.open_repository(usual.directory), eval_fraction=0.5, seed=3)
    found = lg.train_eval_split(repository, eval_fraction=0.5, seed=3)
    assert [part.tolist() for part in found] == [
        [NUMBERS[position] for position in part] for part in expected
    ]
    for part in found:
        examples = examples_of(repository, episodes=part, features=["episode_index"])
        assert {int(example["episode_index"]) for example in examples} == set(part.tolist())


def test_requests_name_episodes_by_their_numbers(
    repository: lg.Repository, usual: WrittenDataset
) -> None:
    rows = lg.FrameOrderIterDataset(repository, shuffle=None, num_epochs=1)
    made = list(rows.map(lg.DeltaTimestamps(repository, {"action": [0.1]})))
    assert [(request.episode, request.frame) for request in made] == [
        repository.episodes.locate(row) for row in range(sum(LENGTHS))
    ]
    assert made[6].episode == 20

    def request(row: int) -> lg.WindowRequest:
        episode, frame = repository.episodes.locate(row)
        return lg.WindowRequest(row, episode, frame, {TOP: np.array([0])}, {TOP: np.array([False])})

    found = list(lg.ReadWindowsIterDataset(rows.map(request), repository))
    expected = examples_of(usual.directory)
    for row, example in enumerate(found):
        assert np.array_equal(example["action"], expected[row]["action"])
        assert NUMBERS[int(read_barcodes(example[TOP])[0, 0])] == int(example["episode_index"])
    wrong = lg.ReadWindowsIterDataset(
        rows.map(lambda row: lg.WindowRequest(row, 2, 0, {}, {})), repository
    )
    text = refusal(lambda: list(wrong), lg.InvalidRequestError)
    assert text == "a WindowRequest: there is no episode 2; the dataset has episodes 10, 20, 30, 45"
    late = lg.ReadWindowsIterDataset(
        rows.map(lambda row: lg.WindowRequest(row, 20, 4, {}, {})), repository
    )
    text = refusal(lambda: list(late), lg.InvalidRequestError)
    assert text == "a WindowRequest: frame is [4]; expected frames of episode 20, which are 0 to 3"


# --- states --------------------------------------------------------------------------------------


def test_states(repository: lg.Repository, usual: WrittenDataset) -> None:
    """States of episodes without gaps are as before; for others the numbers count."""
    states = {
        name: iter(lg.FrameOrderIterDataset(opened, episodes=episodes)).get_state()
        for name, opened, episodes in (
            ("usual", lg.open_repository(usual.directory), None),
            ("gapped", repository, None),
            ("some", repository, [10, 20]),
        )
    }
    # As they were before numbers could have gaps.
    assert states["usual"]["episodes"] == "72df2f7adb47eedc"
    assert len({state["episodes"] for state in states.values()}) == 3
    dataset = lg.LeRobotIterDataset(repository, num_epochs=1, features=["index", "episode_index"])
    iterator = iter(dataset)
    first = [next(iterator) for _ in range(9)]
    again = iter(dataset)
    again.set_state(iterator.get_state())
    rest = [*again]
    assert_same([*first, *rest], [*dataset], numbers=[*range(50)])
    for opened in (iterator, again):
        opened.close()


# --- messages ------------------------------------------------------------------------------------


def test_messages_name_the_number(directory: Path) -> None:
    short = directory / "videos/chunk-000/top/episode_000020.mp4"
    rows = directory / "data/chunk-001/episode_000045.parquet"
    shutil.copy(
        directory / "videos/chunk-001/top/episode_000045.mp4",
        directory / "videos/chunk-001/top/episode_000030.mp4",
    )
    short.unlink()
    found = refusal(lambda: examples_of(directory, episodes=[30], features=[TOP]))
    assert found.startswith(
        f"{directory}, videos/chunk-001/top/episode_000030.mp4: episode 30, camera top: it has 7 "
        "rows, but only 5 frames"
    )
    assert "episode_000020.mp4" in refusal(
        lambda: examples_of(directory, episodes=[20], features=[TOP]), lg.MissingFileError
    )

    def change(name: str, values: Any) -> None:
        table = pq.read_table(rows)
        pq.write_table(table.set_column(table.column_names.index(name), name, values), rows)

    change("episode_index", pa.array([3] * 5))
    assert (
        "it has 5 rows with episode_index 3; the episode table puts 0 rows of episode 3 there"
        in refusal(lambda: examples_of(directory, episodes=[45]))
    )
    change("episode_index", pa.array([45] * 5))
    change("frame_index", pa.array([0, 1, 1, 2, 3]))
    change("index", pa.array([17, 18, 18, 19, 20]))  # which would decide
    assert "episode 45 has frame_index 1 in two rows" in refusal(
        lambda: examples_of(directory, episodes=[45])
    )
    change("frame_index", pa.array(range(5)))
    change("task_index", pa.array([0, 0, 9, 0, 0]))
    assert "row 19 of the dataset (episode 45, frame 2): task_index 9" in refusal(
        lambda: examples_of(directory, episodes=[45])
    )
    change("task_index", pa.array([0] * 5))
    change("picture", pa.array([{"bytes": b"no picture", "path": None}] * 5))
    assert f"{directory}, episode 45, camera picture: not an image" in refusal(
        lambda: examples_of(directory, episodes=[45], features=[PICTURE])
    )
    change("action", pa.array([[np.nan] * 7] * 5, pa.list_(pa.float32())))
    assert "in row 17 (episode 45, frame 0)" in refusal(
        lambda: lg.compute_stats(lg.open_repository(directory), features=["action"])
    )
    report = lg.check(lg.open_repository(directory))
    assert report.unusable_episodes == (20, 30)
    assert report.usable_episodes == [10, 45]
    assert {finding.episodes for finding in report.findings if finding.is_problem} == {(20,), (30,)}
    assert any("episode 30: it has 7 rows" in finding.text for finding in report.findings)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([(10, 3), (20, 0)], "episode 20 has length 0; expected at least 1 frame"),
        (
            [(10, 3), (20, 4), (10, 3)],
            "episode_index 10 is there more than once; expected every episode once",
        ),
        (
            [(0, 3), (1, 4), (1, 3)],
            "episode_index 1 is there more than once; expected every episode once",
        ),
    ],
    ids=["length", "twice", "twice without gaps"],
)
def test_tables_that_contradict_themselves(
    directory: Path, lines: list[tuple[int, int]], text: str
) -> None:
    (directory / EPISODES).write_text(
        "\n".join(
            json.dumps({"episode_index": number, "length": length}) for number, length in lines
        )
    )
    assert refusal(lambda: lg.open_repository(directory)) == f"{directory}, {EPISODES}: {text}"


def test_an_episode_that_is_left_out_of_the_table(directory: Path, usual: WrittenDataset) -> None:
    """Its files are not read, and those of the others are what they were."""
    lines = (directory / EPISODES).read_text().splitlines()
    (directory / EPISODES).write_text("\n".join([lines[3], lines[0], lines[2]]))
    with pytest.warns(lg.LeRobotGrainWarning):
        repository = lg.open_repository(directory)
    assert (
        repository.notes[0]
        == "meta/info.json: total_episodes is 4, but the episode table has 3, which is what is read"
    )
    assert repository.episodes.numbers.tolist() == [10, 30, 45]
    expected = [
        example for example in examples_of(usual.directory) if int(example["episode_index"]) != 1
    ]
    assert_same(examples_of(repository), expected)


def test_version_3_has_no_gaps(tmp_path: Path) -> None:
    data = write_dataset(
        tmp_path / "data", episode_lengths=[3, 4], cameras=(), statistics=False
    ).directory
    path = data / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(
            table.column_names.index("episode_index"), "episode_index", pa.array([10, 20])
        ),
        path,
    )
    assert refusal(lambda: lg.open_repository(data)) == (
        f"{data}, meta/episodes: episode_index should be 0, 1, 2, ... once each; found 10 where 0 "
        "was expected"
    )
