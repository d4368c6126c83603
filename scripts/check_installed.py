"""Streams a dataset with the installed package, and prints what was installed and read.

Run by `scripts/package.sh`, with the Python of the environment and away from the checkout. Reads
`av1_small` of the golden datasets where they are, else a dataset of embedded images that it writes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset


def main() -> None:
    """Raises if another package than the installed one is imported, or rows are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golden", type=Path, required=True, help="the folder of golden datasets")
    golden: Path = parser.parse_args().golden / "av1_small"
    assert Path(lg.__file__).is_relative_to(sys.prefix), f"imported from {lg.__file__}"
    assert importlib.metadata.version("lerobot_grain") == lg.__version__
    with tempfile.TemporaryDirectory() as directory:
        if not golden.is_dir():
            cameras = [Camera(key="observation.images.top", height=48, width=64, kind="image")]
            written = Path(directory) / "written"
            golden = write_dataset(written, episode_lengths=[20, 12], cameras=cameras).directory
        dataset = lg.LeRobotIterDataset(str(golden), num_epochs=1)
        with contextlib.closing(iter(dataset)) as examples:
            rows = sorted(example["index"].item() for example in examples)
    assert rows == list(range(dataset.num_rows)), f"{len(rows)} rows of {dataset.num_rows}"
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"lerobot_grain {lg.__version__} on Python {python}: {len(rows)} rows of {golden.name}")


if __name__ == "__main__":
    main()
