"""`open_repositories`: all are opened, side by side, and one error names all that cannot be."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain._datasets.mixtures import open_repositories as opening
from lerobot_grain.testing import LoopbackHub, write_dataset


@pytest.fixture(scope="module", name="directories")
def _directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("opening")
    return {
        name: write_dataset(
            where / name, episode_lengths=[length], cameras=[], seed=length
        ).directory
        for name, length in (("one", 3), ("two", 4), ("three", 5))
    }


def test_all_are_opened_in_their_order(directories: dict[str, Path]) -> None:
    found = lg.open_repositories(directories)
    assert list(found) == ["one", "two", "three"]
    assert [each.episodes.num_rows for each in found.values()] == [3, 4, 5]
    assert found["two"].commit == lg.open_repository(directories["two"]).commit
    assert lg.open_repositories({}) == {}


def test_side_by_side(directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All three wait for each other inside of opening."""
    together = threading.Barrier(3, timeout=20)
    original = opening.open_repository

    def open_repository(*arguments: Any, **named: Any) -> lg.Repository:
        together.wait()
        return original(*arguments, **named)

    monkeypatch.setattr(opening, "open_repository", open_repository)
    assert len(lg.open_repositories(directories)) == 3
    # The threads end.
    for _ in range(100):
        if not any("lerobot_grain open" in each.name for each in threading.enumerate()):
            return
        time.sleep(0.05)
    pytest.fail("threads are left")


def test_one_error_names_all_that_cannot_be_opened(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(directories["one"], tmp_path / "damaged")
    (damaged / "meta" / "info.json").write_text("[]")
    wrong: dict[str, Any] = {**directories, "damaged": damaged, "other": damaged}
    with pytest.raises(lg.DatasetFormatError) as raised:
        lg.open_repositories(wrong)
    lines = str(raised.value).splitlines()
    assert lines[0] == "2 of 5 datasets could not be opened:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  'damaged'", "  'other'"]
    assert all("info.json" in line for line in lines[1:])
    # Errors of several kinds.
    with pytest.raises(lg.LeRobotGrainError) as raised_other:
        lg.open_repositories({**wrong, "none": tmp_path / "none" / "at" / "all"})
    assert type(raised_other.value) is lg.LeRobotGrainError
    assert "3 of 6 datasets could not be opened:" in str(raised_other.value)


def test_from_a_hub_with_a_revision(directories: dict[str, Path], tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repository("org/one", directories["one"], tags=["v3.0"])
        hub.add_repository("org/two", directories["two"], tags=["v3.0", "v3.1"])
        found = lg.open_repositories(
            {"one": "org/one", "two": "org/two"},
            revisions={"two": "v3.0"},
            endpoint=hub.endpoint,
            cache_dir=tmp_path,
        )
    assert {name: each.episodes.num_rows for name, each in found.items()} == {"one": 3, "two": 4}
    with pytest.raises(lg.InvalidRequestError, match=r"revisions\['tow'\]: there is no such"):
        lg.open_repositories(directories, revisions={"tow": "main"})
