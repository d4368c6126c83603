"""`python -m lerobot_grain.testing` serves datasets until it is ended."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain._cli.main import main as run_command
from lerobot_grain.testing.__main__ import main


class Visitor(threading.Event):
    """Does something while the datasets are served, in place of waiting for an end."""

    def __init__(self, visit: Callable[[], None]) -> None:
        super().__init__()
        self._visit = visit

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is None
        self._visit()
        self.set()
        return True


def test_directories_are_served_under_their_names(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arm").symlink_to(small_dataset)

    def visit() -> None:
        text = capsys.readouterr().out
        found = re.search(r"demo/data is served at (http://localhost:\d+) until Ctrl-C", text)
        assert found is not None
        repository = lg.open_repository(
            "demo/data", endpoint=found[1], token=False, cache_dir=tmp_path / "cache"
        )
        assert repository.info.codebase_version == "v3.0"
        assert len(lg.read_rows(repository, 3)) == 1
        repository.close()

    visitor = Visitor(visit)
    # A link is served under the name of what it leads to.
    assert main([str(tmp_path / "arm")], ended=visitor) == 0
    assert visitor.is_set()


def test_without_a_directory_a_dataset_is_written_and_the_printed_command_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def visit() -> None:
        (line,) = re.findall(r"^  lerobot-grain (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert run_command(line.split()) == 0
        assert "6 episodes, 360 rows at 10 fps" in capsys.readouterr().out
        raise KeyboardInterrupt

    assert main([], ended=Visitor(visit)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent is no LeRobotDataset: it has no meta/info.json; give the directory"),
        (["{data}", "{data}"], "have the same name; rename one"),
        (["{data}", "--latency", "-1"], "latency is -1.0 s, expected 0 or more"),
        (["{data}", "--bandwidth", "0"], "bandwidth is 0.0 bytes/s, expected more than 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], message: str, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [each.format(data=small_dataset) for each in arguments]
    assert main(given, ended=Visitor(lambda: pytest.fail("served"))) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""
