"""The examples, run as a user runs them, and their checks that the resumed stream is the right one."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lerobot_grain.testing import write_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "stream_and_train.py"


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where classes look for the names in their annotations.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return imported(EXAMPLE)


@pytest.fixture(scope="module")
def mixture() -> ModuleType:
    return imported(EXAMPLES / "mixture.py")


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


# --- the mixture ---------------------------------------------------------------------------------------------------------------------


def test_mixture_has_the_shares_and_goes_on(mixture: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    result = mixture.main(["--batches", "4", "--batch-size", "20"])
    assert result["shares"] == {"arm": 0.75, "gripper": 0.25}
    assert result["resumed"] == result["expected"]
    assert len(result["resumed"]) == 4
    assert not set(map(str, result["resumed"])) & set(map(str, result["before"]))
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[0-9a-f]{8}$|\d+ bytes", "_", line) for line in lines] == [
        "writing arm: 96x128 pixels, 10 fps, 7 actions",
        "writing gripper: 72x96 pixels, 20 fps, 3 actions",
        "a batch: action float32 (20, 8, 7), action_mask bool (20, 8, 7), image uint8 (20, 64, 64, 3), robot int64 (20,), "
        "row int64 (20,), state float32 (20, 7), state_mask bool (20, 7)",
        "shares: arm 75.0% (asked for 75%), gripper 25.0% (asked for 25%)",
        "restored from _: the next 4 batches are those that would have come, pixels _",
    ]


def test_mixture_pads_and_masks(mixture: ModuleType) -> None:
    robot = mixture.ROBOTS["gripper"]
    actions = np.arange(24, dtype=np.float32).reshape(8, 3)
    is_pad = np.arange(8) >= 6
    example = {
        "observation.state": np.ones(4, np.float32),
        "action": actions,
        "action_is_pad": is_pad,
        "index": 5,
        robot.camera.key: "seen",
    }
    found = mixture.to_common(example, robot)
    assert found["state"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert found["state_mask"].tolist() == [True] * 4 + [False] * 3
    assert np.array_equal(found["action"], np.hstack([actions, np.zeros((8, 4))]))
    assert np.array_equal(found["action_mask"], ~is_pad[:, None] & (np.arange(7) < 3))
    assert (found["image"], found["robot"], found["row"]) == ("seen", 1, 5)
    assert {found[key].dtype.name for key in ("state", "action")} == {"float32"}


def test_another_mixture_after_restoring_is_an_error(mixture: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(mixture, "fingerprint", lambda _batch: ([(0, next(calls))], ""))
    with pytest.raises(SystemExit, match="the restored mixture goes on with other examples"):
        mixture.main(["--batches", "1", "--batch-size", "2"])
