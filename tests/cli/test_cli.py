"""The command line, in this process: what it prints, what it writes, how it ends; and the figures
of randomness that it prints.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_grain import LeRobotIterDataset
from lerobot_grain._cli import profile as cli_profile
from lerobot_grain._cli.main import main
from lerobot_grain._cli.output import profile_plots
from lerobot_grain._inspection.profile import (
    consecutive_gaps,
    expected_episodes,
    measure_randomness,
)
from lerobot_grain.testing import Camera, Fault, LoopbackHub, write_dataset

CAMERA = "observation.images.top"
LENGTHS = [20, 7, 13, 30]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = (Camera(key=CAMERA, height=32, width=96),)
    return write_dataset(
        tmp_path_factory.mktemp("cli") / "data", episode_lengths=LENGTHS, fps=10, cameras=cameras
    ).directory


def profile(capsys: pytest.CaptureFixture[str], directory: Path, *arguments: str) -> dict[str, Any]:
    assert (
        main(
            ["profile", str(directory), "--batch-size", "8", "--batches", "4", "--json", *arguments]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    report: dict[str, Any] = json.loads(captured.out)
    return report


def test_the_table_has_every_figure_and_no_progress_without_a_terminal(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(directory), "--batch-size", "8", "--batches", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    title, order, empty, *rows = captured.out.splitlines()
    assert title == f"{directory}: 4 episodes, 70 rows at 10 fps"
    assert order == "shuffled: seed 0, buffer_size 1024, clip_length 16, num_parts 64"
    assert empty == ""
    labels = [row.split("  ")[0] for row in rows if not row.startswith(" ")]
    assert labels == [
        "throughput",
        "first batch",
        "time",
        "fetched",
        "decoded",
        "memory budget",
        "|corr(row, iteration)|",
        "episodes in a batch",
        "gap of two neighbors",
    ]
    assert "examples/s: 4 batches of 8 in " in rows[0]
    # The histogram holds every pair of neighbors.
    assert sum(
        float(row.split("%")[0].split()[-1]) for row in rows if row.startswith(" ")
    ) == pytest.approx(100, abs=1)


def test_json_says_what_was_read(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = profile(capsys, directory)
    assert list(report) == [
        "dataset",
        "num_episodes",
        "num_rows",
        "fps",
        "shuffle",
        "throughput",
        "waited_seconds",
        "reading",
        "randomness",
        "rows_per_epoch",
        "frequencies",
    ]
    assert (report["rows_per_epoch"], report["frequencies"]) == (70, None)
    assert (report["dataset"], report["num_episodes"], report["num_rows"], report["fps"]) == (
        str(directory),
        4,
        70,
        10,
    )
    throughput, waited, reading = report["throughput"], report["waited_seconds"], report["reading"]
    assert (throughput["batch_size"], throughput["batches"], throughput["examples"]) == (8, 4, 32)
    assert throughput["examples_per_second"] == pytest.approx(32 / throughput["seconds"])
    assert throughput["steady_examples_per_second"] > throughput["examples_per_second"] > 0
    assert sum(waited.values()) == pytest.approx(throughput["seconds"], rel=0.05)
    assert reading["examples"] == reading["frames_handed_out"] == 32
    assert reading["pictures_decoded"] >= 32
    assert reading["bytes_fetched"] >= reading["bytes_needed"] > 0
    assert reading["requests"] > 0
    assert 0 < reading["budget_peak_bytes"] <= reading["budget_bytes"]


def test_what_came_from_the_caches_is_shown(
    directory: Path, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repository("cli/caches", directory)
    arguments = ["profile", "cli/caches", "--endpoint", hub.endpoint, "--batch-size", "10"]
    # The same seven batches, the whole dataset.
    arguments += ["--batches", "7", "--frames", "1GB", "--frame-directory", str(tmp_path / "here")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "from the frame cache" not in first
    assert len(list((tmp_path / "here").iterdir())) == len(LENGTHS)
    assert main([*arguments, "--json"]) == 0
    reading = json.loads(capsys.readouterr().out)["reading"]
    assert reading["frames_from_cache"] == reading["frames_handed_out"] == 70
    assert reading["bytes_from_disk_cache"] > 0 == reading["bytes_fetched"]
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert re.search(r"\nfrom the disk cache +[\d.]+ kB\n", again)
    assert re.search(r"\nfrom the frame cache +70 of 70 frames \(100%\)\n", again)


def test_json_says_how_random_the_order_is(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequential = profile(capsys, directory, "--sequential")
    assert sequential["shuffle"] is None
    assert sequential["randomness"] == {
        "rows": 70,
        "correlation": pytest.approx(1),
        # Frames 0-7, 8-15, 16-19 and 0-3, 4-6 and 0-4, 5-12, 0-7, 8-15, 16-23; six rows are no
        # whole batch.
        "episodes_per_batch_mean": pytest.approx((1 + 1 + 2 + 2 + 1 + 1 + 1 + 1) / 8),
        "episodes_per_batch_min": 1,
        "global_shuffle_episodes_per_batch": pytest.approx(expected_episodes(np.array(LENGTHS), 8)),
        "gap_median": 1,
        "gap_90_percent": 1,
        "global_shuffle_gap_median": pytest.approx(20.5, abs=0.1),
        # Two neighbors less than frames in each episode.
        "gap_histogram": [{"start": 1, "stop": 2, "count": 70 - 4}],
    }
    shuffled = profile(capsys, directory)["randomness"]
    assert shuffled["correlation"] < 0.5
    assert shuffled["episodes_per_batch_mean"] > 2
    assert sum(bin_["count"] for bin_ in shuffled["gap_histogram"]) == 70 - 4


def test_options_reach_the_stream(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def recorded(*arguments: Any, **options: Any) -> LeRobotIterDataset:
        made.append(options)
        return LeRobotIterDataset(*arguments, **options)

    monkeypatch.setattr(cli_profile, "LeRobotIterDataset", recorded)
    given = (
        f"--features {CAMERA} action --delta {CAMERA}=-0.1,0 --delta action=0,0.1,0.2 "
        "--image-size 16x48 --seed 5 --buffer-size 32 --clip-length 4 --num-parts 2 --open-files "
        "1 --budget 5MB --threads 1"
    )
    report = profile(capsys, directory, *given.split())
    assert report["shuffle"] == {
        "seed": 5,
        "buffer_size": 32,
        "clip_length": 4,
        "num_parts": 2,
        "open_files": 1,
    }
    assert report["reading"]["frames_handed_out"] == 2 * 32
    assert report["reading"]["budget_bytes"] == 5_000_000
    (options,) = made
    assert options["features"] == [CAMERA, "action"]
    assert options["delta_timestamps"] == {CAMERA: [-0.1, 0.0], "action": [0.0, 0.1, 0.2]}
    assert options["image_size"] == (16, 48)
    assert options["read_options"].num_decode_threads == 1


def test_a_repository_of_the_hub(
    directory: Path,
    hub: LoopbackHub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.add_repository("cli/data", directory, tags=["v3.0"])
    arguments = [
        "profile",
        "cli/data",
        "--endpoint",
        hub.endpoint,
        "--revision",
        "v3.0",
        "--batches",
        "1",
        "--json",
    ]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dataset"].startswith("cli/data@")
    assert report["throughput"]["steady_examples_per_second"] is None


def test_a_limit_in_seconds(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "profile",
                str(directory),
                "--features",
                "action",
                "--batch-size",
                "4",
                "--seconds",
                "0.3",
                "--json",
            ]
        )
        == 0
    )
    throughput = json.loads(capsys.readouterr().out)["throughput"]
    assert 0.3 <= throughput["seconds"] < 3
    assert throughput["batches"] > 1


def test_progress_is_written_to_a_terminal_and_erased(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["profile", str(directory), "--batch-size", "8", "--batches", "2"]) == 0
    error = capsys.readouterr().err
    assert ", 8 examples, " in error
    # The line is erased.
    assert error.endswith("\x1b[2K")


def test_plot_writes_a_picture(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    profile(capsys, directory, "--plot", str(tmp_path / "plots.png"))
    written = (tmp_path / "plots.png").read_bytes()
    assert written.startswith(b"\x89PNG")
    assert len(written) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["DIRECTORY/nothing"],
            "DIRECTORY/nothing is not a directory; a dataset on the Hub is named org/name",
        ),
        (
            ["DIRECTORY", "--delta", "nothing=0"],
            "delta_timestamps['nothing']: there is no such feature; ",
        ),
        (["DIRECTORY", "--delta", "action=0.05"], "delta_timestamps['action']"),
        (["DIRECTORY", "--features", "nothing"], "nothing"),
        (
            ["DIRECTORY", "--threads", "0"],
            "ReadOptions(num_decode_threads=0): expected an int >= 1",
        ),
        (["DIRECTORY", "--num-parts", "0"], "Shuffle(num_parts=0): expected an int >= 1"),
        (
            ["DIRECTORY", "--sequential", "--num-parts", "2"],
            "--num-parts belongs to a shuffled order; leave it out, or --sequential",
        ),
        (["DIRECTORY", "--frame-directory", "x"], "--frame-directory belongs to --frames"),
        (
            ["DIRECTORY", "--plot", "DIRECTORY/nothing/a.png"],
            "--plot DIRECTORY/nothing/a.png: there is no directory DIRECTORY/nothing",
        ),
    ],
)
def test_an_error_is_one_line_and_status_2(
    directory: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["profile", *(argument.replace("DIRECTORY", str(directory)) for argument in arguments)]
        )
        == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lerobot-grain: ")
    assert message.replace("DIRECTORY", str(directory)) in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ORG/NAME|DIRECTORY"),
        (
            ["x", "--delta", "action"],
            "'action': expected KEY=SECONDS,SECONDS,... such as action=0,0.1,0.2",
        ),
        (["x", "--delta", "action=0,b"], "'action=0,b': expected KEY=SECONDS"),
        (["x", "--image-size", "96"], "'96': expected HEIGHTxWIDTH such as 96x128"),
        (["x", "--batch-size", "0"], "'0': expected a whole number of at least 1"),
        (["x", "--batches", "1", "--seconds", "1"], "not allowed with argument"),
    ],
)
def test_a_wrong_command_line_is_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["profile", *arguments])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("; `lerobot-grain profile --help` says more\n")
    assert error.count("\n") == 1


def test_plots_without_matplotlib_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_plots, "Figure", None)
    assert main(["profile", "nowhere/nothing", "--plot", str(tmp_path / "plots.png")]) == 2
    expected = (
        "lerobot-grain: --plot needs matplotlib; install it with: pip install "
        '"lerobot_grain[examples]"\n'
    )
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("rows", "gaps"),
    [
        ([0, 1, 2, 3, 4, 5], [1, 1, 1, 1]),
        ([5, 4, 3, 2, 1, 0], [1, 1, 1, 1]),
        ([0, 3, 1, 4, 2, 5], [2, 2, 2, 2]),
        ([0, 2, 4, 1], [2, 3]),
        ([2, 3], []),
        ([1], []),
        ([1, 0, 1, 3, 0, 4, 0], [1, 2]),
    ],
    ids=["ascending", "descending", "in turn", "cut off", "two episodes", "one row", "again"],
)
def test_gaps_of_neighbors_in_one_episode(rows: list[int], gaps: list[int]) -> None:
    # Two episodes of three frames.
    assert consecutive_gaps(np.array(rows), np.array([0, 3])).tolist() == sorted(gaps)


@pytest.mark.parametrize("lengths", [[1] * 9, [9], [3, 1, 5], [4, 4, 4, 4]], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_expected_episodes_of_a_global_shuffle(lengths: list[int], batch_size: int) -> None:
    episodes, generator = np.repeat(np.arange(len(lengths)), lengths), np.random.default_rng(1)
    drawn = [len(set(generator.permutation(episodes)[:batch_size].tolist())) for _ in range(4000)]
    assert expected_episodes(np.array(lengths), batch_size) == pytest.approx(
        np.mean(drawn), abs=0.07
    )


def test_the_order_that_is_measured_is_the_one_that_is_read(directory: Path) -> None:
    dataset = LeRobotIterDataset(directory, features=["index"], num_epochs=1)
    randomness = measure_randomness(dataset, batch_size=8, max_rows=50)
    assert randomness.rows.tolist() == [int(example["index"]) for example in dataset][:50]
    assert (randomness.num_rows, len(randomness.episodes_per_batch)) == (70, 6)


def test_what_the_hub_made_wait_for_is_shown(
    directory: Path,
    hub: LoopbackHub,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.add_repository("cli/limited", directory, tags=["v3.0"])
    hub.add_fault(
        Fault(origin="cdn", path_regex="^data/", status=503, headers={"Retry-After": "0"}, times=2)
    )
    arguments = [
        "profile",
        "cli/limited",
        "--endpoint",
        hub.endpoint,
        "--revision",
        "v3.0",
        "--batches",
        "1",
    ]
    assert main(arguments) == 0
    (row,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("the Hub ")]
    assert re.search(
        r"  2 further attempts; \d+\.\d s of pauses and rate limits, over all threads$", row
    )
    # The second time, all of it is on disk.
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert not [row for row in rows if row.startswith("the Hub ")]
    (row,) = [row for row in rows if row.startswith("from the disk cache ")]
    assert re.search(r"  [\d.]+ kB$", row)
    assert any("0 bytes in 0 requests" in row for row in rows)
