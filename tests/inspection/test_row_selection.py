"""`check` with a selection of rows: counted as the stream has them, what is wrong with weights and
valid rows, and what the command prints and returns.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._cli.main import main
from lerobot_grain.testing import Feature, WrittenDataset, write_dataset

LENGTHS = [12, 3, 20, 7, 9]
FIRST_ROWS = [0, 12, 15, 35, 42]
NUM_ROWS = sum(LENGTHS)
VALID = np.array([row % 5 != 3 and not 12 <= row < 15 for row in range(NUM_ROWS)])
IMPORTANCE = np.arange(NUM_ROWS) % 4


def columns_of(episode: int, length: int) -> dict[str, Any]:
    rows = slice(FIRST_ROWS[episode], FIRST_ROWS[episode] + length)
    return {"is_valid": VALID[rows], "importance": IMPORTANCE[rows].astype(np.float32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_dataset(
        tmp_path_factory.mktemp("selection") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(),
        features={"is_valid": Feature(dtype="bool"), "importance": Feature(dtype="float32")},
        row_values=columns_of,
        episodes_per_data_file=2,
    )


@pytest.fixture(scope="module")
def repository(written: WrittenDataset) -> lg.Repository:
    return lg.open_repository(written.directory)


FORMS: dict[str, tuple[Any, Any]] = {
    "of rows": (lambda values: values.tolist(), lambda values: values),
    "of episodes": (
        lambda values: [values[first].item() for first in FIRST_ROWS],
        lambda values: np.repeat(values[FIRST_ROWS], LENGTHS),
    ),
    "none": (lambda _: None, np.ones_like),
}


@pytest.mark.parametrize("episodes", [None, [0, 1, 2, 4]], ids=["all", "some"])
@pytest.mark.parametrize("dropped", [(0, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("weights", FORMS)
@pytest.mark.parametrize("valid_rows", FORMS)
def test_rows_are_counted_as_the_stream_has_them(
    repository: lg.Repository,
    episodes: list[int] | None,
    dropped: tuple[int, int],
    weights: str,
    valid_rows: str,
) -> None:
    given_weights, by_row = FORMS[weights]
    given_valid, valid_by_row = FORMS[valid_rows]
    arguments: dict[str, Any] = {
        "episodes": episodes,
        "drop_first_frames": dropped[0],
        "drop_last_frames": dropped[1],
        "weights": given_weights(IMPORTANCE.astype(float)),
        "valid_rows": given_valid(VALID),
    }
    report = lg.check(repository, **arguments)
    if all(value in (None, 0) for value in arguments.values()):
        assert report.selection is None
        return
    counts = report.selection
    assert counts is not None
    assert report.is_fine
    chosen = range(5) if episodes is None else episodes
    of_episodes = [
        row for each in chosen for row in range(FIRST_ROWS[each], FIRST_ROWS[each] + LENGTHS[each])
    ]
    left = [
        row
        for each in chosen
        for row in range(
            FIRST_ROWS[each] + dropped[0], FIRST_ROWS[each] + LENGTHS[each] - dropped[1]
        )
    ]
    valid = [row for row in left if valid_by_row(VALID)[row]]
    come = [row for row in valid if by_row(IMPORTANCE)[row]]
    assert counts.num_dropped == len(of_episodes) - len(left)
    assert counts.num_not_valid == len(left) - len(valid)
    assert counts.num_without_weight == len(valid) - len(come)
    assert counts.num_rows == len(come)
    owners = {int(np.searchsorted(FIRST_ROWS, row, side="right")) for row in come}
    assert counts.num_episodes == len(owners)
    times = by_row(IMPORTANCE)[come] / by_row(IMPORTANCE)[come].mean()
    assert counts.least_times == pytest.approx(times.min())
    assert counts.most_times == pytest.approx(times.max())
    stream = lg.FrameOrderIterDataset(repository, shuffle=lg.Shuffle(), num_epochs=1, **arguments)
    assert stream.num_rows == counts.num_rows
    if weights == "none":
        assert sorted(stream) == come


def test_a_stride(repository: lg.Repository) -> None:
    counts = lg.check(repository, stride=3, drop_first_frames=1).selection
    assert counts is not None
    assert (counts.stride, counts.num_rows, counts.num_dropped) == (3, NUM_ROWS - 5, 5)
    order = lg.FrameOrderIterDataset(repository, stride=3, drop_first_frames=1, num_epochs=3)
    assert len(list(order)) == counts.num_rows


# --- what is wrong -------------------------------------------------------------------------------


def table(directory: Path, name: str, *lines: str) -> str:
    (directory / name).write_text("\n".join(lines) + "\n")
    return str(directory / name)


WRONG: dict[str, tuple[str, list[str], str]] = {
    "a row that is not there": (
        "weights",
        ["index,weight", "3,1", "51,1"],
        "t.csv, row 1: index is 51; the dataset has rows 0 to 50",
    ),
    "an episode that is not there": (
        "valid_rows",
        ["episode_index,is_valid", "5,true"],
        "t.csv: there is no episode 5; the dataset has episodes 0 to 4",
    ),
    "a negative weight": (
        "weights",
        ["index,weight", "3,-1"],
        "t.csv, row 0: weight is -1.0; expected a finite number >= 0",
    ),
    "other columns": (
        "weights",
        ["index,quality", "3,1"],
        "t.csv has 'index', 'quality'; expected the columns 'weight'",
    ),
    "no CSV": ("valid_rows", ["index,is_valid", "3"], "t.csv: could not be read as CSV"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("of_dataset", [False, True], ids=["of this machine", "of the dataset"])
def test_a_wrong_table_is_a_finding_with_its_file_and_place(
    written: WrittenDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    of_dataset: bool,
) -> None:
    argument, lines, text = WRONG[case]
    directory = written.directory
    if of_dataset:
        directory = shutil.copytree(directory, tmp_path / "copy")
        (directory / "meta/annotations").mkdir()
        table(directory / "meta/annotations", "t.csv", *lines)
        given = "meta/annotations/t.csv"
    else:
        given = table(tmp_path, "t.csv", *lines)
    report = lg.check(lg.open_repository(directory), **{argument: given})
    (finding,) = report.findings
    assert (finding.kind, finding.is_problem, finding.path) == (argument, True, given)
    assert text in finding.text
    assert report.selection is None
    assert report.usable_episodes == [0, 1, 2, 3, 4]
    option = f"--{argument.replace('_', '-')}"
    assert main(["check", str(directory), option, given]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[3:6] == ["problems:", f"  {argument}", f"    {finding.text}"]
    # Nothing is to be left out of `episodes=`.
    assert not out.endswith("\n\n")


def test_wrong_values_of_a_feature_and_both_arguments(tmp_path: Path) -> None:
    repository = lg.open_repository(
        write_dataset(
            tmp_path,
            episode_lengths=[3, 4],
            fps=10,
            cameras=(),
            features={"importance": Feature(dtype="float32")},
            row_values=lambda episode, length: {
                "importance": np.full(length, -float(episode), np.float32)
            },
        ).directory
    )
    report = lg.check(repository, weights="importance", valid_rows=[True])
    assert [finding.kind for finding in report.findings] == ["valid_rows", "weights"]
    assert report.findings[0].text == (
        "valid_rows: an array of shape (1,); expected one of all episodes, (2,), or of all rows, "
        "(7,)"
    )
    assert report.findings[1].text == (
        "weights='importance': row 3, frame 0 of episode 1 is -1.0; expected a finite number >= 0"
    )


def test_no_row_is_left(repository: lg.Repository) -> None:
    report = lg.check(repository, weights={0: 0}, episodes=[0])
    (finding,) = report.findings
    assert (finding.kind, finding.is_problem) == ("no_rows", True)
    assert "no selected row is left" in finding.text


REFUSED: dict[str, tuple[list[str], str]] = {
    "a table that is not there": (
        ["--weights", "nothing.csv"],
        "weights='nothing.csv': the table could not be read: No such file or directory",
    ),
    "a table of the dataset that is not there": (
        ["--valid-rows", "meta/annotations/x.csv"],
        "has no such file; below meta/ it has no table of rows",
    ),
    "no such feature": (
        ["--weights", "imprtance"],
        "weights='imprtance': expected a .parquet or .csv table, or a feature with one value in "
        "every row; the dataset has importance, timestamp, ",
    ),
    "a feature of another kind": (
        ["--weights", "is_valid"],
        "weights='is_valid': the feature has dtype bool and shape (1,); expected one value",
    ),
    "an episode that is not there": (["--episodes", "0,7"], "there is no episode 7"),
    "all dropped": (["--drop-first-frames", "20"], "no selected episode has more rows"),
    "a long stride": (["--stride", "21"], "stride=21: the longest selected episode has 20 rows"),
    "a stride and weights": (
        ["--stride", "2", "--weights", "importance"],
        "stride=2: not together with weights",
    ),
}


@pytest.mark.parametrize("command", ["check", "profile"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_names_nothing_is_status_2(
    written: WrittenDataset, capsys: pytest.CaptureFixture[str], case: str, command: str
) -> None:
    arguments, text = REFUSED[case]
    assert main([command, str(written.directory), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lerobot-grain: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stride", "0"], "'0': expected a whole number of at least 1"),
        (["--drop-last-frames", "-1"], "expected"),
        (["--drop-last-frames", "x"], "'x': expected a whole number of at least 0"),
        (["--episodes", "a"], "'a': expected episodes, such as :50, 10:20 or 0,7,9"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["check", "x", *arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_the_selection(
    written: WrittenDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = table(tmp_path, "w.csv", "episode_index,weight", "0,3", "2,0")
    arguments = ["check", str(written.directory), "--episodes", ":4", "--drop-first-frames", "2"]
    arguments += ["--weights", weights, "--valid-rows", "is_valid"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("selection:")
    # Of episodes 0 to 3 the rows 2-11, 14, 17-34 and 37-41; of these 3, 8, 14, 18, 23, 28, 33 and
    # 38 are not valid. Then 8 rows of weight 3, and 4 of weight 1.
    assert lines[begin + 1 : begin + 8] == [
        "  episodes   2 of 5",
        "  dropped    8 rows left out, at the starts and ends of episodes",
        "  not valid  8 rows left out, by the valid rows",
        "  weight 0   14 rows left out, by the weights",
        "  an epoch   12 rows",
        "  weights    a row comes 0.429 to 1.29 times an epoch on average",
        "",
    ]
    assert lines[begin + 8] == "costs, of all rows, each byte fetched once:"


def test_the_command_prints_a_stride(
    written: WrittenDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(written.directory), "--stride", "2"]) == 0
    assert "  an epoch  about 26 rows; 51 in 2 epochs, each once" in capsys.readouterr().out
    assert main(["check", str(written.directory)]) == 0
    assert "selection:" not in capsys.readouterr().out.splitlines()


def test_json_has_the_selection(
    written: WrittenDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(written.directory), "--valid-rows", "is_valid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selection"] == {
        "num_rows": int(VALID.sum()),
        "num_episodes": 4,
        "num_dropped": 0,
        "num_not_valid": int((~VALID).sum()),
        "num_without_weight": 0,
        "stride": 1,
        "least_times": 1.0,
        "most_times": 1.0,
    }
