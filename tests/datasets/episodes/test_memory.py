"""An episode of 20,000 frames is streamed in chunks within the memory budget and 400 MB.

Measured is what the stream adds to a process (`VmHWM` at its end less `VmRSS` before it): what was
imported, with which frames are read, takes more than 400 MB without any stream (docs/sampling.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lerobot_grain.testing import Camera, write_dataset

MARGIN_BYTES = 400_000_000
CAMERA = Camera(height=480, width=640, codec="h264", gop=2)
PROGRAM = """
import json, sys
import lerobot_grain as lg

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

directory, budget, shuffled = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shuffled"
dataset = lg.EpisodeIterDataset(
    directory,
    chunk_frames=64,
    shuffle=lg.Shuffle() if shuffled else None,
    num_epochs=1,
    read_options=lg.ReadOptions(memory_budget_bytes=budget),
)
before = {name: status(name) for name in ("VmRSS", "RssAnon")}
frames = sum(int((~chunk["chunk_is_pad"]).sum()) for chunk in dataset)
print(json.dumps({"before": before, "peak": status("VmHWM"), "frames": frames}))
"""


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one episode of 20,000 frames: two pictures in turn, which encode fast."""
    small = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    pictures = small.repeat(16, axis=1).repeat(16, axis=2)
    return write_dataset(
        tmp_path_factory.mktemp("episode") / "data",
        episode_lengths=[20_000],
        cameras=(CAMERA,),
        frame_content=lambda _episode, frame, _camera: pictures[frame % 2],
        barcodes=False,
        statistics=False,
    ).directory


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("budget_bytes", "order"), [(1 << 28, "shuffled"), (1 << 30, "in order")])
def test_an_episode_of_20000_frames(episode: Path, budget_bytes: int, order: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(episode), str(budget_bytes), order],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print({"budget": budget_bytes, "order": order} | found)
    assert found["frames"] == 20_000
    assert found["peak"] - found["before"]["VmRSS"] <= budget_bytes + MARGIN_BYTES
