"""The example of the README, run as a user runs it, and its check that the resumed stream is the right one."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lerobot_grain.testing import write_dataset

EXAMPLE = Path(__file__).parents[1] / "examples" / "stream_and_train.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stream_and_train", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("example") / "data", episode_lengths=[20, 7, 13], fps=10, action_size=2).directory


def test_demo_trains_stops_resumes_and_prints_no_warning() -> None:
    command = [sys.executable, str(EXAMPLE), "--steps", "6", "--batch-size", "16"]
    environment = os.environ | {"no_proxy": "localhost,127.0.0.1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert [re.sub(r"[0-9a-f]{12}|\d+\.\d+|\[.*\]|\w+$|\d+ examples", "_", line) for line in lines] == [
        "writing a small data _",
        "demo/circling_disc@_: 30 episodes, 6000 frames at 10 _",
        "step 0: held-out loss _, camera observation.images._",
        "step 3: held-out loss _; saving a checkpoint and _",
        "resumed: the next batch is the one that would have come, rows _..., pixels _",
        "step 6: held-out loss _ (it was _); _/s while _",
    ]
    # Standard error has the progress bar and nothing else.
    assert [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and not re.search(r"%\|.*\d/6 \[", line)] == []


def test_any_data_set_can_be_streamed(example: ModuleType, directory: Path) -> None:
    result = example.main(["--repository", str(directory), "--steps", "4", "--batch-size", "8"])
    assert result["resumed"] == result["expected"]
    rows, checksum = result["resumed"]
    assert len(rows) == 8
    # The last of the three episodes is held out.
    assert max(rows) < 27
    assert len(checksum) == 8


def test_another_batch_after_resuming_is_an_error(example: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(example, "fingerprint", lambda _batch, camera: ([next(calls)], camera))
    with pytest.raises(SystemExit, match=r"goes on with another batch: rows and checksum \(\[1\], .*expected \(\[0\], "):
        example.main(["--repository", str(directory), "--steps", "2", "--batch-size", "8"])
