"""A small dataset with all kinds of features, and a stream of it, for whatever reads elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lerobot_grain as lg
from lerobot_grain.testing import EXTRA_FEATURES, Camera, write_dataset
from tests.support.datasets import add_language

LENGTHS = [13, 6, 11, 10]
NUM_ROWS = sum(LENGTHS)


def write_mixed(directory: Path) -> Path:
    """Writes a dataset with a camera, embedded images, numbers, strings and language (`said`)."""
    write_dataset(
        directory,
        episode_lengths=LENGTHS,
        fps=10,
        cameras=[
            Camera(key="top", height=32, width=80, codec="h264"),
            Camera(key="still", height=24, width=80, kind="image"),
        ],
        features=EXTRA_FEATURES,
        tasks=("pick", "place it there"),
    )
    add_language(directory, "said", row_group_size=9)
    return directory


def stream(directory: Path, **changes: Any) -> lg.LeRobotIterDataset:
    """Returns a shuffled stream of it with windows of numbers and strings."""
    arguments: dict[str, Any] = {
        "delta_timestamps": {"action": [-0.1, 0.0, 0.3], "observation.note": [0.0, 0.1]},
        "shuffle": lg.Shuffle(seed=3, num_parts=2, buffer_size=8),
        "num_epochs": 2,
    }
    return lg.LeRobotIterDataset(directory, **(arguments | changes))
