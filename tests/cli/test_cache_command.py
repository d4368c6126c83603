"""`lerobot-grain cache`, in this process and in one of its own: what it prints and how it ends."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain._cli import argument_types
from lerobot_grain._cli.main import main
from lerobot_grain._storage.disk import dataset_cache, piece_cache
from lerobot_grain.testing import Camera, LoopbackHub, write_dataset
from tests.support.commands import interrupted

CAMERA = "observation.images.top"
LENGTHS = [20, 7, 13]
FRAME = 32 * 48 * 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras = (Camera(key=CAMERA, height=64, width=96),)
    return write_dataset(
        tmp_path_factory.mktemp("cache") / "data", episode_lengths=LENGTHS, fps=10, cameras=cameras
    ).directory


@pytest.fixture
def name(hub: LoopbackHub, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset on the Hub, and caches with nothing in them."""
    monkeypatch.setattr(piece_cache, "_FREE_BYTES", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    dataset_cache._caches.cache_clear()
    name = f"command/{tmp_path.name}"
    hub.add_repository(name, directory, tags=["v3.0"])
    return name


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["cache", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run(capsys, "--json", *arguments))


def test_fill_list_and_clear(
    hub: LoopbackHub, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = ["--fill", name, "--endpoint", hub.endpoint, "--frames", "1GB", "--image-size", "32x48"]
    title, fetched, decoded = run(capsys, *fill).splitlines()
    assert title.startswith(f"{name}@")
    assert ": 3 episodes, in " in title
    assert re.match(r"fetched [\d.]+ kB; of rows and video ", fetched)
    assert decoded == "decoded 40 frames; 40 of 40 are kept"
    listed = run_json(capsys)
    assert list(listed) == [
        "directory",
        "coded_bytes",
        "datasets",
        "indices",
        "frame_directory",
        "frame_bytes",
        "frames",
    ]
    assert listed["directory"] == str(tmp_path / "kept")
    (dataset,) = listed["datasets"]
    assert list(dataset) == ["dataset", "pieces", "num_bytes", "last_used"]
    assert dataset["dataset"].startswith(f"{name}@")
    (frames,) = listed["frames"]
    assert frames["image_size"] == [32, 48]
    assert frames["files"] == 3
    assert frames["num_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "kept" / "frames").iterdir()
    )
    assert frames["num_bytes"] == 40 * FRAME + 3 * 2 * 4096
    table = run(capsys)
    assert f"video and rows, in {tmp_path / 'kept'}: " in table
    assert f"\n  {dataset['dataset']}" in table
    assert "\n  indices of all datasets  " in table
    assert f"  {CAMERA}  32x48  3 episodes  208.9 kB  used 20" in table
    assert all(line == line.rstrip() for line in table.splitlines())
    assert run(capsys, "--clear", name).endswith("208.9 kB of decoded frames\n")
    left = run_json(capsys)
    assert left["datasets"] == left["frames"] == []
    assert left["indices"]["files"] > 0
    cleared = run_json(capsys, "--clear")
    assert cleared["frame_bytes"] == 0
    assert cleared["coded_bytes"] == left["coded_bytes"] > 0
    assert run_json(capsys)["coded_bytes"] == 0


def test_options_decide_what_is_filled(
    hub: LoopbackHub, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fill = ["--fill", name, "--endpoint", hub.endpoint, "--revision", "v3.0"]
    rows = run_json(capsys, *fill, "--features", "action", "--episodes", "0,2")
    assert list(rows) == [*(field for field in lg.FilledCache.__slots__), "seconds"]
    assert rows["num_episodes"] == 2
    everything = run_json(capsys, *fill)
    assert everything["bytes_selected"] > 2 * rows["bytes_selected"]
    # A second time nothing comes: it is there.
    assert run_json(capsys, *fill)["bytes_fetched"] == 0
    elsewhere = tmp_path / "elsewhere"
    frames = ["--frames", "100MB", "--frame-directory", str(elsewhere), "--episodes", ":2"]
    made = run_json(capsys, *fill, *frames, "--threads", "1", "--budget", "20MB")
    assert made["frames_there"] == made["frames_selected"] == 27
    assert len(list(elsewhere.iterdir())) == 2
    assert run_json(capsys, "--frame-directory", str(elsewhere))["frames"][0]["files"] == 2
    little = run(capsys, *fill, "--disk-cache", "10kB", "--features", "action", CAMERA)
    assert "they are above the limit, which --disk-cache" in little


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "action"], "--features belongs to --fill ORG/NAME"),
        (["--clear", "--image-size", "8x8"], "--image-size belongs to --fill ORG/NAME"),
        (["--disk-cache", "1GB"], "--disk-cache belongs to --fill ORG/NAME"),
        (["--clear", "org/none"], "nothing of 'org/none' is kept in "),
        (["--fill", "DIRECTORY"], "nothing of it would be kept on disk"),
        (["--fill", "DIRECTORY", "--image-size", "8x8"], "--image-size belongs to --frames"),
        (
            ["--fill", "DIRECTORY", "--frame-directory", "x"],
            "--frame-directory belongs to --frames",
        ),
        (["--fill", "DIRECTORY", "--frames", "1GB", "--features", "no"], "no"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    directory: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("DIRECTORY", str(directory)) for argument in arguments]
    assert main(["cache", *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lerobot-grain: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fill", "x", "--clear"], "not allowed with argument"),
        (["--fill", "x", "--frames", "much"], "'much': expected bytes, such as 500000000 or 20GB"),
        (["--fill", "x", "--episodes", "a"], "'a': expected episodes, such as :50, 10:20 or 0,7,9"),
        (["--fill"], "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["cache", *arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_progress_is_written_to_a_terminal_and_erased(
    name: str, hub: LoopbackHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lerobot_grain._cli.progress._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["cache", "--fill", name, "--endpoint", hub.endpoint, "--frames", "1GB"]) == 0
    error = capsys.readouterr().err
    assert f"frames of {CAMERA}: 40 of 40, 100% " in error
    assert "kB, 100% " in error
    # The line is erased, and the cursor is back.
    assert error.endswith(("\r\x1b[2K\x1b[?25h", "\x1b[1A\x1b[2K"))


def test_control_characters_of_names_are_not_printed(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd\x1b[2J\nname"
    odd.symlink_to(directory)
    lg.fill_cache(lg.open_repository(odd), read_options=lg.ReadOptions(frame_cache_bytes=1 << 30))
    table = run(capsys)
    assert "\x1b" not in table
    assert r"odd\x1b[2J name  " in table


def test_ctrl_c_ends_with_130_and_leaves_nothing_unfinished(
    name: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    assert interrupted(["cache", "--fill", name], hub, directory=tmp_path) == (130, b"")
    assert not list((tmp_path / "kept").rglob("*.part"))


# --- how values are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("500000000", 500_000_000),
        ("20GB", 20 * 10**9),
        ("20 gb", 20 * 10**9),
        ("1.5k", 1500),
        ("16GiB", 16 << 30),
        ("2TiB", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert argument_types.size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "GB", "1i", "1iB", "1XB", "1e9", "٣", "0.0001"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected (bytes|at least one byte)"):
        argument_types.size_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", [7]),
        ("0,7,9", [0, 7, 9]),
        (":50", slice(None, 50)),
        ("50:", slice(50, None)),
        ("10:20", slice(10, 20)),
        (":", slice(None, None)),
    ],
)
def test_episodes(text: str, expected: slice | list[int]) -> None:
    assert argument_types.episodes(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,", "-1:", "1:2:3", "1,:3"])
def test_no_episodes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected episodes"):
        argument_types.episodes(text)
