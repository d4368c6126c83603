"""`profile` with weights, valid rows and strides: how often rows and clips come, against a count of
the rows that the stream has; what the command prints, returns and draws.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._cli.main import main
from lerobot_grain._inspection.profile import (
    Frequencies,
    expected_episodes,
    measure_frequencies,
    measure_randomness,
)
from lerobot_grain.testing import Camera, Feature, write_dataset

LENGTHS = [20, 7, 13, 30, 22, 18]
FIRST_ROWS = np.cumsum([0, *LENGTHS[:-1]])
NUM_ROWS = sum(LENGTHS)
CLIP_LENGTH = 4
SHUFFLE = lg.Shuffle(seed=2, clip_length=CLIP_LENGTH, num_parts=4, buffer_size=32)
FEW = [1.0, 0.0, 2.0, 0.5, 2.0, 1.0]
# Not valid: those of a short episode, and of the others every seventh.
VALID = np.array([row % 7 != 2 and not 20 <= row < 27 for row in range(NUM_ROWS)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("profile") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(Camera(key="top", height=32, width=96),),
        features={"is_valid": Feature(dtype="bool")},
        row_values=lambda episode, length: {
            "is_valid": VALID[FIRST_ROWS[episode] : FIRST_ROWS[episode] + length]
        },
    ).directory


def dataset(directory: Path, **arguments: Any) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(
        directory, **{"shuffle": SHUFFLE, "features": ["index"]} | arguments
    )


def frequencies(directory: Path, **arguments: Any) -> Frequencies:
    found = measure_frequencies(dataset(directory, **arguments), max_rows=10**6, max_epochs=6)
    assert found is not None
    return found


def clips() -> list[list[int]]:
    return [
        list(range(first + start, min(first + start + CLIP_LENGTH, first + length)))
        for first, length in zip(FIRST_ROWS.tolist(), LENGTHS, strict=True)
        for start in range(0, length, CLIP_LENGTH)
    ]


@pytest.mark.parametrize("of_rows", [False, True], ids=["by episode", "by row"])
def test_frequencies_are_those_of_the_stream(directory: Path, of_rows: bool) -> None:
    weights = np.array(FEW)
    by_row = np.repeat(weights, LENGTHS)
    if of_rows:
        by_row = by_row * (np.arange(NUM_ROWS) % 3)
    found = frequencies(directory, weights=(by_row if of_rows else weights).tolist())
    num_rows = int(np.count_nonzero(by_row))
    assert (found.rows_per_epoch, found.num_epochs) == (num_rows, 6)
    order = lg.FrameOrderIterDataset(
        lg.open_repository(directory), shuffle=SHUFFLE, weights=by_row, num_epochs=6
    )
    rows = list(order)
    counts = Counter(rows)
    times = by_row * num_rows / by_row.sum()
    distinct = sorted(set(by_row.tolist()))
    assert len(found.groups) == len(distinct)
    for group, weight in zip(found.groups, distinct, strict=True):
        members = np.flatnonzero(by_row == weight)
        assert group.num_rows == len(members)
        assert group.least == group.most == pytest.approx(times[members[0]])
        assert group.expected == pytest.approx(times[members[0]])
        assert group.found == pytest.approx(
            sum(counts[row] for row in members.tolist()) / 6 / len(members)
        )
    by_times = Counter[int]()
    frames = 0
    for number in range(6):
        of_epoch = Counter(rows[number * num_rows : (number + 1) * num_rows])
        for clip in clips():
            if by_row[clip].any():
                came = max(of_epoch[row] for row in clip)
                by_times[came] += 1
                frames += came * len(clip)
    assert dict(enumerate((found.clips_by_times * 6).round().astype(int).tolist())) == {
        number: by_times[number] for number in range(max(by_times) + 1)
    }
    assert found.clip_frames_per_row == pytest.approx(frames / len(rows))


def test_many_weights_are_counted_in_ten_groups(directory: Path) -> None:
    weights = np.random.default_rng(0).uniform(0.1, 5, NUM_ROWS)
    weights[5:9] = 0
    found = frequencies(directory, weights=weights)
    never, *groups = found.groups
    assert (never.num_rows, never.expected, never.found) == (4, 0, 0)
    assert len(groups) == 10
    assert all(abs(group.num_rows - (NUM_ROWS - 4) / 10) <= 1 for group in groups)
    assert sum(group.num_rows for group in groups) == NUM_ROWS - 4
    for group, after in itertools.pairwise(groups):
        assert group.least <= group.expected <= group.most < after.least
    # All rows together come as often as they are to.
    assert sum(group.num_rows * group.found for group in groups) == pytest.approx(NUM_ROWS - 4)
    assert sum(group.num_rows * group.expected for group in groups) == pytest.approx(NUM_ROWS - 4)


@pytest.mark.parametrize("shuffle", [SHUFFLE, None], ids=["shuffled", "sequential"])
def test_valid_rows_come_once_and_the_others_never(
    directory: Path, shuffle: lg.Shuffle | None
) -> None:
    found = frequencies(directory, valid_rows="is_valid", shuffle=shuffle)
    assert [(group.num_rows, group.expected, group.found) for group in found.groups] == [
        (int((~VALID).sum()), 0, 0),
        (int(VALID.sum()), 1, 1),
    ]
    # Of the clips with a valid row each comes once.
    assert found.clips_by_times[0] == 0
    assert len(found.clips_by_times) == 2


def test_the_beginning_of_a_long_epoch(directory: Path) -> None:
    found = measure_frequencies(dataset(directory, weights=FEW), max_rows=30, max_epochs=6)
    assert found is not None
    assert found.num_epochs == pytest.approx(30 / (NUM_ROWS - 7))
    assert sum(group.num_rows * group.found for group in found.groups) == pytest.approx(
        NUM_ROWS - 7
    )
    assert (len(found.clips_by_times), found.clip_frames_per_row) == (0, None)


@pytest.mark.parametrize("arguments", [{}, {"stride": 3}, {"weights": [2.0] * 6}], ids=str)
def test_where_rows_come_once_nothing_is_counted(
    directory: Path, arguments: dict[str, Any]
) -> None:
    assert measure_frequencies(dataset(directory, **arguments), max_rows=9, max_epochs=1) is None


SELECTIONS: dict[str, tuple[dict[str, Any], Sequence[float]]] = {
    "weights": ({"weights": FEW}, [rows * 103 / 123 for rows in (20, 0, 26, 15, 44, 18)]),
    "episodes": ({"episodes": [0, 3], "drop_first_frames": 1}, [19, 29]),
    "stride": ({"stride": 3}, LENGTHS),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_randomness_is_that_of_the_selection(directory: Path, name: str) -> None:
    arguments, lengths = SELECTIONS[name]
    stream = dataset(directory, num_epochs=1, **arguments)
    measured = measure_randomness(stream, batch_size=8, max_rows=1000)
    assert measured.rows.tolist() == [int(example["index"]) for example in stream]
    assert measured.num_rows == len(measured.rows)
    assert measured.global_episodes_per_batch == pytest.approx(
        expected_episodes(np.rint(lengths).astype(int), 8)
    )


# --- the command ---------------------------------------------------------------------------------


def profile(directory: Path, *arguments: str) -> int:
    given = ["--batch-size", "8", "--batches", "3", "--clip-length", "4", *arguments]
    return main(["profile", str(directory), *given])


def test_the_command_prints_frequencies(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.csv").write_text("episode_index,weight\n1,0\n2,2\n3,0.5\n4,2\n")
    assert profile(directory, "--weights", str(tmp_path / "w.csv")) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("an epoch "))
    assert lines[begin].split("  ")[-1] == "103 rows"
    texts = [line[len("|corr(row, iteration)|") + 2 :] for line in lines[begin + 1 :]]
    labels = [line[: len("|corr(row, iteration)|")].rstrip() for line in lines[begin + 1 :]]
    assert labels == [
        "how often rows come",
        "  7 rows",
        "  30 rows",
        "  38 rows",
        "  35 rows",
        "clips in an epoch",
        "frames of these clips",
    ]
    assert texts[0] == "an epoch, on average over 100, by weight"
    assert texts[1] == "0.000 times; found 0.000"
    for text, expected in zip(texts[2:5], (0.5, 1, 2), strict=True):
        start, _, rest = text.partition("; found ")
        assert start == f"{expected * 103 / 123:.3f} times"
        found = float(rest.split(" ")[0])
        assert found == pytest.approx(expected * 103 / 123, rel=0.1)
        assert rest.endswith(f"({found / (expected * 103 / 123) - 1:+.1%})"[-2:])
    assert " come 0 times, " in texts[5]
    assert texts[6].endswith(" for a row")


def test_json_has_frequencies(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(directory, "--valid-rows", "is_valid", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows_per_epoch"] == report["frequencies"]["rows_per_epoch"] == VALID.sum()
    assert report["frequencies"]["num_epochs"] == 100
    assert [group["found"] for group in report["frequencies"]["groups"]] == [0, 1]
    assert report["frequencies"]["clips_by_times"][0] == 0
    assert report["frequencies"]["clip_frames_per_row"] > 1


def test_options_say_which_rows(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--episodes", "2:", "--drop-last-frames", "1", "--stride", "3", "--json"]
    assert profile(directory, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    order = lg.FrameOrderIterDataset(
        lg.open_repository(directory),
        episodes=slice(2, None),
        drop_last_frames=1,
        stride=3,
        shuffle=lg.Shuffle(clip_length=4),
        num_epochs=1,
    )
    assert report["rows_per_epoch"] == len(list(order)) < (13 + 30 + 22 + 18 - 4) / 3 + 4
    assert report["frequencies"] is None


def test_plots_with_frequencies(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    sizes = []
    for arguments in ([], ["--valid-rows", "is_valid"]):
        assert profile(directory, "--plot", str(tmp_path / "plots.png"), *arguments) == 0
        header = (tmp_path / "plots.png").read_bytes()[16:24]
        sizes.append((int.from_bytes(header[:4]), int.from_bytes(header[4:])))
    assert sizes[0] == (1210, 880)
    assert sizes[1] == (1210, 1320)
    capsys.readouterr()
