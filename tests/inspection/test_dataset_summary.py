"""What a dataset is said to be, against what was written; and its lengths in figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._inspection.overview.dataset_summary import (
    LengthBin,
    episode_lengths,
    summarize,
)
from tests.support.streams import DATA_AND_VIDEO


def test_what_was_written_is_what_is_said(small_dataset: Path) -> None:
    repository = lg.open_repository(small_dataset)
    summary = summarize(repository, max_files=None, on_progress=None)
    report = lg.check(repository)
    assert (summary.version, summary.fps, summary.num_episodes, summary.num_rows) == (
        "v3.0",
        10,
        5,
        36,
    )
    assert summary.seconds == pytest.approx(3.6)
    assert summary.tasks == ("pick", "place")
    (camera,) = summary.cameras
    assert (camera.key, camera.kind, camera.size, camera.unit) == ("top", "video", (32, 80), None)
    assert camera.video is not None
    assert camera.video == report.cameras[0]
    assert camera.video.frame_rates == (10.0,)
    # GOPs of 4 and the rests of 5, 7, 6 and 10 frames: sums of 1 to their lengths, of 36 frames.
    gops = [4, 4, 4, 1, 4, 3, 4, 2, 4, 4, 2]
    assert camera.video.pictures_alone == pytest.approx(sum(n * (n + 1) / 2 for n in gops) / 36)
    state = next(each for each in summary.features if each.key == "observation.state")
    assert (state.dtype, state.shape) == ("float32", (7,))
    assert "top" not in {each.key for each in summary.features}
    assert summary.cost.video_bytes + summary.cost.row_bytes == pytest.approx(
        report.bytes_per_epoch, abs=2
    )
    assert (summary.cost.pictures, summary.cost.is_sample) == (36, False)
    assert (summary.num_files, summary.num_problems) == (len(DATA_AND_VIDEO), 0)


def test_a_sample_of_the_files_says_so(small_dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = summarize(
        lg.open_repository(small_dataset),
        max_files=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert summary.cost.is_sample
    assert (summary.num_files_read, seen[-1]) == (2, (2, 2))


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([5], [(5, 6, 1)]),
        ([5, 5, 5], [(5, 6, 3)]),
        ([1, 2, 4], [(1, 2, 1), (2, 3, 1), (3, 4, 0), (4, 5, 1)]),
        # Three bars for two episodes, each as wide as a third of all lengths.
        ([10, 49], [(10, 24, 1), (24, 38, 0), (38, 52, 1)]),
    ],
)
def test_bars(lengths: list[int], bins: list[tuple[int, int, int]]) -> None:
    found = episode_lengths(np.array(lengths))
    assert found.histogram == tuple(
        LengthBin(start=start, stop=stop, count=count) for start, stop, count in bins
    )
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))


def test_bars_hold_every_episode_and_are_few() -> None:
    lengths = np.random.default_rng(0).integers(1, 5000, 1000)
    found = episode_lengths(lengths)
    assert sum(each.count for each in found.histogram) == 1000
    assert 6 <= len(found.histogram) <= 12
    assert all(
        one.stop == other.start
        for one, other in zip(found.histogram, found.histogram[1:], strict=False)
    )
