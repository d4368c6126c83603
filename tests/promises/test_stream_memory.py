"""Memory of a process that streams an episode of any length: what its imports take, the budget, and
a margin.

Measured is a process of its own, by /proc/self/status: the most that was resident (`VmHWM`), and
how much of that was the process's own at most: less the pages of files, most of them libraries,
that were resident before the first example (`RssFile`), which only become more.

The episode of 20,000 frames is a film of 240 frames, over and over: its coded pictures are copied.
So the frame of row i has the barcode of i mod 240.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, read_barcodes, write_dataset
from tests.support.forked import call_forked
from tests.support.odd_videos import KEY, VideoOf, joined, write_with_videos
from tests.support.process_memory import STATUS, status_bytes

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc to measure it by")

FILM_FRAMES = 240
# A line of pixels in the barcode of a frame that is 480 high.
LINE = 15
DEFAULT_BUDGET = 3 << 29
SMALL_BUDGET = 1 << 28
MARGIN_BYTES = 400_000_000
# The elements that are held: the one in use, the next one, and memory for another one.
HELD = 3

# Streams the epoch in chunks of 64 frames, or as rows in batches of 8. Writes of each frame its row
# and the line of its barcode. The barcodes are read elsewhere: `lerobot_grain.testing` brings PyAV.
PROGRAM = f"""
import json, sys
import numpy as np
import lerobot_grain as lg

def status():
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file]
    return {{line[0][:-1]: int(line[1]) << 10 for line in lines if line[-1] == "kB"}}

directory, lines, budget, kind = sys.argv[1:]
options = lg.ReadOptions(memory_budget_bytes=int(budget), num_decode_threads=2)
if kind == "rows":
    dataset = lg.LeRobotIterDataset(directory, num_epochs=1, read_options=options).batch(8)
else:
    shuffle = lg.Shuffle() if kind == "shuffled chunks" else None
    dataset = lg.EpisodeIterDataset(
        directory, chunk_frames=64, last_chunk="short", shuffle=shuffle, num_epochs=1,
        read_options=options,
    )
before = status()
most_bytes = anonymous = 0
iterator = iter(dataset)
with open(lines, "wb") as out:
    for element in iterator:
        pictures = element[{KEY!r}]
        most_bytes = max(most_bytes, pictures.nbytes)
        rows = element["index"].astype("<i8").view(np.uint8).reshape(-1, 8)
        out.write(np.column_stack([rows, pictures[:, {LINE}, :, 0]]).tobytes())
        anonymous = max(anonymous, status()["RssAnon"])
print(json.dumps({{
    "imports": before["VmRSS"],
    "imports, anonymous": before["RssAnon"],
    "resident": (peak := status()["VmHWM"]),
    "anonymous": max(anonymous, peak - before["RssFile"]),
    "growth": peak - before["VmRSS"],
    "element": most_bytes,
    "counted": lg.read_statistics(iterator).budget_peak_bytes,
}}))
"""


@pytest.fixture(scope="module")
def long_episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one episode of 20,000 frames of 640x480, g=2."""
    return write_long_episode(
        tmp_path_factory.mktemp("long"),
        num_frames=20_000,
        film=Camera(height=480, width=640, codec="h264", gop=2),
        film_frames=FILM_FRAMES,
    )


def write_long_episode(directory: Path, *, num_frames: int, film: Camera, film_frames: int) -> Path:
    """Writes an episode whose video is a film over and over, whole GOPs; returns the dataset."""
    gray = np.linspace(0, 255, film.width)[None, :, None]
    picture = np.broadcast_to(gray, (film.height, film.width, 3)).astype(np.uint8)
    write_dataset(
        directory / "film",
        episode_lengths=[film_frames],
        cameras=(film,),
        frame_content=lambda _episode, _frame, _camera: picture,
        statistics=False,
    )
    (path,) = (directory / "film").glob("videos/**/*.mp4")
    video = joined(*[path.read_bytes()] * -(-num_frames // film_frames))
    return write_with_videos(
        directory / "data",
        [VideoOf(video, [num_frames], [0.0])],
        fps=30,
        size=(film.height, film.width),
    ).directory


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("budget", [SMALL_BUDGET, DEFAULT_BUDGET], ids=["small", "default"])
@pytest.mark.parametrize("kind", ["chunks in order", "shuffled chunks", "rows"])
def test_an_episode_of_20000_frames(
    long_episode: Path, tmp_path: Path, kind: str, budget: int
) -> None:
    lines = tmp_path / "lines"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(long_episode), str(lines), str(budget), kind],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind}, budget {budget >> 20} MiB:",
        {key: value >> 20 for key, value in found.items()},
    )
    records = np.fromfile(lines, np.uint8).reshape(-1, 8 + 640)
    rows = records[:, :8].copy().view("<i8")[:, 0]
    assert sorted(rows.tolist()) == list(range(20_000))
    pictures = np.broadcast_to(records[:, None, 8:, None], (20_000, 16, 640, 3))
    for start in range(0, 20_000, 1_000):
        part = slice(start, start + 1_000)
        assert (read_barcodes(pictures[part])[:, 1] == rows[part] % FILM_FRAMES).all()
    held_bytes = HELD * found["element"]
    if budget == DEFAULT_BUDGET:
        assert found["resident"] <= budget + MARGIN_BYTES
    elif kind != "rows":
        assert found["anonymous"] - held_bytes <= budget + MARGIN_BYTES
    assert found["growth"] - held_bytes <= found["counted"] + MARGIN_BYTES


def growth_of_stream(name: str, budget: int) -> tuple[int, int]:
    """Streams an epoch in chunks; returns its frames, and by how many bytes the process grew."""
    options = lg.ReadOptions(memory_budget_bytes=budget, num_decode_threads=1)
    chunks = lg.EpisodeIterDataset(
        name, chunk_frames=64, last_chunk="short", num_epochs=1, read_options=options
    )
    before = status_bytes("VmRSS")
    num_frames = 0
    for chunk in chunks:
        codes = read_barcodes(chunk[KEY])
        assert (codes[:, 1] == chunk["index"] % FILM_FRAMES).all()
        num_frames += len(codes)
    return num_frames, status_bytes("VmHWM") - before


def test_an_episode_that_is_far_larger_than_the_budget(tmp_path: Path) -> None:
    num_frames = 2_400
    directory = write_long_episode(
        tmp_path,
        num_frames=num_frames,
        film=Camera(height=96, width=128, codec="h264", gop=2),
        film_frames=FILM_FRAMES,
    )
    found, growth = call_forked(growth_of_stream, str(directory), 8 << 20)
    assert found == num_frames
    print(f"growth {growth / 1e6:.1f} MB")
    # All frames are 88 MB.
    assert growth <= 48_000_000


def test_a_stream_does_not_import_pandas(tmp_path: Path) -> None:
    # Which takes 0.5 s and 35 MiB, and is there wherever lerobot is.
    directory = write_dataset(tmp_path / "data", episode_lengths=[9, 4], cameras=()).directory
    program = (
        "import sys, lerobot_grain as lg\n"
        "dataset = lg.LeRobotIterDataset(sys.argv[1], num_epochs=1)\n"
        "print(sum(1 for _ in dataset), 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["13", "False"]
