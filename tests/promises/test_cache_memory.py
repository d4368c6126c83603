"""Memory of a process that streams does not grow with the cache of decoded frames on disk.

Measured is what is the process's own: `RssAnon` of /proc/self/status, after a whole epoch that read
from the cache. Pages of files, which the system keeps where it has memory to spare, are not in it.
(Of the cache of coded bytes: `tests/storage/disk/test_piece_cache.py`.)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset
from tests.support.forked import call_forked
from tests.support.process_memory import STATUS, status_bytes

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc to measure it by")

# The limit of the small cache; the large one holds everything, which is 12 times as much.
SMALL_BYTES = 1 << 20
# Between two runs of the same program.
TOLERANCE_BYTES = 4 << 20


def own_memory(name: str, cache_bytes: int) -> tuple[int, int]:
    """Streams an epoch; returns the process's own bytes and the number of frames from the cache."""
    options = lg.ReadOptions(
        memory_budget_bytes=8 << 20, num_decode_threads=1, frame_cache_bytes=cache_bytes
    )
    stream = lg.LeRobotIterDataset(name, shuffle=None, num_epochs=1, read_options=options)
    with contextlib.closing(iter(stream)) as iterator:
        for _ in range(stream.num_rows):
            next(iterator)
        return status_bytes("RssAnon"), lg.read_statistics(iterator).frames_from_cache


@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    directory = write_dataset(
        tmp_path / "data",
        episode_lengths=[20] * 20,
        cameras=(Camera(height=96, width=128, codec="h264", gop=2),),
    ).directory

    def run(cache_bytes: int) -> tuple[int, int]:
        """Returns the memory of a process that finds what one before it has kept, and how much
        that is.
        """
        kept = tmp_path / str(cache_bytes)
        for _ in range(2):
            # What it has of the process that it is forked from is the same in all of them.
            anonymous, from_cache = call_forked(
                own_memory,
                str(directory),
                cache_bytes,
                environment=os.environ | {"LEROBOT_GRAIN_CACHE": str(kept)},
            )
        assert from_cache > 0, "the cache is used"
        return anonymous, sum(path.stat().st_size for path in (kept / "frames").iterdir())

    (small, small_bytes), (large, large_bytes) = run(SMALL_BYTES), run(1 << 30)
    print(
        f"{small_bytes / 1e6:.1f} and {large_bytes / 1e6:.1f} MB in the cache; "
        f"RssAnon {small / 1e6:.1f} and {large / 1e6:.1f} MB"
    )
    assert 0 < small_bytes <= SMALL_BYTES
    assert large_bytes > 12 * SMALL_BYTES
    assert large < small + TOLERANCE_BYTES
