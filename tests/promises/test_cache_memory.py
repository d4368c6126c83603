"""Memory of a process that streams does not grow with its caches on disk.

Measured is what is the process's own: `RssAnon` of /proc/self/status, after a whole epoch that read
from the cache. Pages of files, which the system keeps where it has memory to spare, are not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_grain.testing import Camera, LoopbackHub, write_dataset

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="there is no /proc to measure it by"
)

# The limit of the small cache; the large one holds everything, which is 12 times as much.
SMALL_BYTES = {"frames": 1 << 20, "coded bytes": 4 << 20}
# Between two runs of the same program.
TOLERANCE_BYTES = 4 << 20

PROGRAM = """
import json, sys
import lerobot_grain as lg

name, endpoint, frame_bytes, coded_bytes, epochs = json.loads(sys.argv[1])
repository = lg.open_repository(
    name, endpoint=endpoint, storage_options=lg.StorageOptions(disk_cache_bytes=coded_bytes)
)
options = lg.ReadOptions(
    memory_budget_bytes=8 << 20, num_decode_threads=1, frame_cache_bytes=frame_bytes
)
stream = lg.LeRobotIterDataset(
    repository, shuffle=None, num_epochs=epochs, read_options=options
)
iterator = iter(stream)
for _ in range(epochs * stream.num_rows):
    next(iterator)
with open("/proc/self/status") as status:
    anonymous = next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
found = lg.read_statistics(iterator)
print(json.dumps([anonymous, found.frames_from_cache, found.bytes_from_disk_cache]))
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["frames", "coded bytes"])
def test_memory_does_not_grow_with_the_cache(hub: LoopbackHub, tmp_path: Path, which: str) -> None:
    camera = (
        Camera(height=96, width=128, codec="h264", gop=2)
        if which == "frames"
        else Camera(height=240, width=320, kind="image")
    )
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[20] * 20,
        cameras=(camera,),
        noise=1.0,
        rows_per_row_group=1,
    ).directory
    name = f"memory/{which.split()[0]}"
    hub.add_repository(name, directory, tags=["v3.0"])

    def run(cache_bytes: int) -> tuple[int, int]:
        """Two epochs: the second one reads what the first has kept. Returns the memory, and what
        lies in the cache.
        """
        sizes = (cache_bytes, 0) if which == "frames" else (0, cache_bytes)
        kept = tmp_path / str(cache_bytes)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([name, hub.endpoint, *sizes, 2])],
            env=os.environ | {"LEROBOT_GRAIN_CACHE": str(kept), "HF_HOME": str(kept / "hub")},
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
        anonymous, from_frames, from_bytes = json.loads(done.stdout)
        assert (from_frames if which == "frames" else from_bytes) > 0, "the cache is used"
        folder = kept / ("frames" if which == "frames" else "pieces")
        return anonymous, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    limit = SMALL_BYTES[which]
    (small, small_bytes), (large, large_bytes) = run(limit), run(1 << 30)
    print(
        f"{which}: {small_bytes / 1e6:.1f} and {large_bytes / 1e6:.1f} MB in the cache; "
        f"RssAnon {small / 1e6:.1f} and {large / 1e6:.1f} MB"
    )
    assert 0 < small_bytes <= limit
    assert large_bytes > 12 * limit
    assert large < small + TOLERANCE_BYTES
