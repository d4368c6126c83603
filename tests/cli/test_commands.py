"""What all commands have in common: examples in their help, JSON, tables in a terminal and plain
text elsewhere, exit codes, and nothing left when they are ended. And `inspect` and `train-check`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lerobot_grain import InvalidRequestError
from lerobot_grain._cli.main import _COMMANDS, _parser, main
from lerobot_grain._cli.output.files import check_can_be_written, write_whole
from lerobot_grain._cli.output.report import Table, plain_lines, print_report
from lerobot_grain._cli.output.units import duration, shape_text, size
from lerobot_grain.testing import LoopbackHub
from tests.support.commands import COMMAND, interrupted

NAMES = [command.name for command in _COMMANDS]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_the_help_are_command_lines(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main([name, "--help"])
    assert raised.value.code == 0
    lines = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
    assert len(lines) >= 2
    for line in lines:
        words = re.split(r"  +", line.strip())[0]
        program, *arguments = shlex.split(words)
        assert program == "lerobot-grain"
        assert _parser().parse_args(arguments).command == name


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_json(name: str) -> None:
    arguments = [name, "--json"] if name == "cache" else [name, "org/name", "--json"]
    assert _parser().parse_args(arguments).json


# --- text and tables -----------------------------------------------------------------------------

PARTS = (
    "title: \x1b[31m1",
    Table(header=("key", "bytes"), rows=[("a", "1"), ("long\x1b[2J", "22")], numbers=(1,)),
    Table(rows=[("label", "text\nof two lines")]),
    Table(rows=[]),
)


def test_plain_text_is_aligned_and_printable() -> None:
    assert plain_lines(PARTS) == [
        "title: \\x1b[31m1",
        f"  {'key':<11}  bytes",
        f"  {'a':<11}      1",
        "  long\\x1b[2J     22",
        "  label  text of two lines",
    ]


def test_a_terminal_gets_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_report(PARTS)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    print_report(PARTS)
    drawn = capsys.readouterr().out
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" in drawn
    assert "\x1b[1m" in drawn, "the header is bold"
    assert "\x1b[2J" not in drawn, "nothing of a dataset controls the terminal"
    assert "\x1b[31m" not in drawn


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3e15, "3,000.0 TB")],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.04, "3.0 s"), (61, "1 min 1 s"), (7265, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("shape", [(), (7,), (480, 640, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    assert shape_text(list(shape)) == str(shape)


# --- inspect and train-check ---------------------------------------------------------------------


def test_inspect_prints_what_a_dataset_is(
    small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(capsys, "inspect", str(small_dataset))
    assert printed.startswith(f"{small_dataset}: LeRobotDataset v3.0")
    assert "5 episodes, 36 rows at 10 fps, 3.6 s" in printed
    assert re.search(r"\n  top +32x80 +h264 +4 \(1 to 4\) +10 +[\d,]+\n", printed)
    assert re.search(r"\n  action +float32 +\(7,\) ", printed)
    assert "\ntasks: 2\n  pick\n  place\n" in printed
    assert re.search(r"\n +9 to 10 +1  #+\n", printed), "the longest episode has a bar"
    assert re.search(r"\n  bytes +[\d.]+ kB: video ", printed)
    assert "problem" not in printed


def test_inspect_as_json(small_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "inspect", str(small_dataset), "--json", "--max-files", "1"))
    assert (report["num_rows"], report["cost"]["is_sample"]) == (36, True)
    assert report["cameras"][0]["video"]["codecs"] == ["h264"]
    assert sum(each["count"] for each in report["lengths"]["histogram"]) == 5


def test_train_check_as_text_and_json(
    small_dataset: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "policy_of_test.py").write_text(
        "def step(batch):\n    return batch['action'] * 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["train-check", str(small_dataset), "--batch-size", "4", "--seconds", "0.01"]
    printed = run(capsys, *arguments, "--step", "policy_of_test:step")
    assert re.search(r"\n  top +\(4, 32, 80, 3\) +uint8 +30,720 +uint8\n", printed)
    assert "no: texts stay on the host" in printed
    assert "policy_of_test:step; the first, which compiles, " in printed
    assert re.search(r"\n  together +[\d.,]+ steps/s; \d+% of the time", printed)
    report = json.loads(run(capsys, *arguments, "--step-seconds", "1000", "--json"))
    assert (report["slower"], report["together"]) == ("step", None)
    assert report["step"]["steps_per_second"] == pytest.approx(0.001)
    printed = run(capsys, *arguments, "--step-seconds", "1e-9")
    assert "The stream is the slower one" in printed


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("policy", "--step policy: expected MODULE:FUNCTION"),
        ("nowhere_at_all:step", "the module nowhere_at_all cannot be imported (ModuleNotFound"),
        ("json:nothing", "--step json:nothing: json has no function nothing"),
    ],
)
def test_steps_that_there_are_none_of(
    small_dataset: Path, step: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-check", str(small_dataset), "--step", step]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cache"])
def test_a_dataset_that_is_not_there_is_status_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lerobot-grain: ")
    assert captured.err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(small_dataset: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [*COMMAND, "inspect", str(small_dataset)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


class _Dropped:
    """An exception in a destructor is dropped, as is one in a callback of the garbage collector."""

    def __del__(self) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_where_python_drops_exceptions_is_not_lost(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        _Dropped()
        threading.Event().wait(30)
        pytest.fail("the command went on")

    monkeypatch.setattr("lerobot_grain._cli.inspect.open_repository", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["inspect", str(small_dataset)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "")


def test_the_package_is_a_program() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lerobot_grain", "profile", "--seconds", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "lerobot-grain profile: argument --seconds: '0': expected a number of seconds above 0; "
        "`lerobot-grain profile --help` says more\n"
    )


def test_a_page_that_is_interrupted_leaves_nothing(
    small_dataset: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repository("commands/stalled", small_dataset, tags=["v3.0"])
    arguments = ["show", "commands/stalled", "--output", "page.html"]
    assert interrupted(arguments, hub, directory=tmp_path) == (130, b"")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_whole(path, b"first", "--output")
    assert path.read_bytes() == b"first"
    # As any other file of this user.
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"second", "--output")
    assert path.read_bytes() == b"first"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "page.html"]
    monkeypatch.undo()
    with pytest.raises(InvalidRequestError, match=r"--output .*: cannot be written"):
        write_whole(tmp_path / "nowhere" / "page.html", b"", "--output")


def test_a_link_stays_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "page.html"
    target.write_bytes(b"old")
    link = tmp_path / "link.html"
    link.symlink_to(target)
    check_can_be_written(link, "--output")
    write_whole(link, b"new", "--output")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    loop = tmp_path / "loop.html"
    loop.symlink_to(loop)
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        write_whole(loop, b"", "--output")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "elsewhere"):
        with pytest.raises(InvalidRequestError, match="a directory or a device; expected a file"):
            check_can_be_written(tmp_path / name, "--output")
    with pytest.raises(InvalidRequestError, match="a directory or a device"):
        check_can_be_written(Path(os.devnull), "--plot")


def test_an_error_is_one_line_that_controls_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["inspect", str(tmp_path / "a\x1b[2J\nb")]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "a\\x1b[2J b" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["profile", "train-check"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "x"])
def test_seconds_that_are_none(name: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "x", f"--seconds={seconds}"])
    assert f"'{seconds}': expected a number of seconds above 0" in capsys.readouterr().err
