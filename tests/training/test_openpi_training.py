"""openpi's real training script on a stream of ours.

Where its repository is and its packages are: set OPENPI to the path of a copy, and run this in the
environment of `environments/openpi.txt` together with openpi's other requirements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_grain.testing import Camera, write_dataset
from tests.support.openpi_training import NUM_STEPS, STOPPED_AFTER


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "OPENPI" not in os.environ, reason="OPENPI does not name a copy of openpi's repository"
)
def test_the_real_script_stopped_and_resumed_has_the_same_batches_and_losses(
    tmp_path: Path,
) -> None:
    cameras = [Camera(key="observation.images.top", height=48, width=96)]
    write_dataset(
        tmp_path / "data",
        episode_lengths=[70, 90],
        fps=10,
        cameras=cameras,
        tasks=["pick", "place"],
    )
    command = [sys.executable, "-m", "tests.support.openpi_training", os.environ["OPENPI"]]
    output = subprocess.run(
        [*command, str(tmp_path / "data"), str(tmp_path / "runs")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    lines = [line for line in output.splitlines() if line.startswith('{"name"')]
    straight, stopped, resumed = map(json.loads, lines)
    assert len(set(straight["batches"])) == NUM_STEPS
    assert len(stopped["batches"]) == STOPPED_AFTER
    assert stopped["batches"] + resumed["batches"] == straight["batches"]
    assert len(straight["losses"]) == NUM_STEPS
    assert {**stopped["losses"], **resumed["losses"]} == straight["losses"]
