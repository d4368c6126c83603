"""Compares the stream with lerobot's map-style reader, value by value, in one process, and measures
both of lerobot's readers beside it.

    python benchmarks/compare_lerobot.py                    # the golden datasets of ../shared
    python benchmarks/compare_lerobot.py DIRECTORY [...]    # any of v3.0, whole, local

For an environment with lerobot, such as environments/lerobot.txt; exits with status 77 where it is
not installed. Every row of each dataset is read by both, with a window of two frames of each
camera, and of sixteen actions. Rows that lerobot itself cannot read are counted. The rates are of
single examples, one epoch each, shuffled: lerobot's readers in the process itself (no workers), the
stream with its default options.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lerobot_grain as lg

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
NOT_INSTALLED = 77


def main() -> int:
    """Runs the comparison with the command line's options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
        from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset
    except ModuleNotFoundError as error:
        print(f"not run: {error}", file=sys.stderr)
        return NOT_INSTALLED
    warnings.simplefilter("ignore")
    directories = options.directories or sorted(path for path in GOLDEN.iterdir() if path.is_dir())
    print(
        "| dataset | rows | compared values | not read by lerobot | different | lerobot, "
        "map-style | lerobot, streaming | lerobot_grain |"
    )
    print("|---|---|---|---|---|---|---|---|")
    num_different = 0
    for directory in directories:
        repository = lg.open_repository(directory)
        deltas = windows(repository)
        theirs = LeRobotDataset(
            f"local/{directory.name}", root=directory, delta_timestamps=deltas, return_uint8=True
        )
        ours = lg.LeRobotIterDataset(repository, delta_timestamps=deltas, num_epochs=1)
        compared, unread, different = compare(ours, theirs, deltas)
        num_different += len(different)
        order = np.random.default_rng(0).permutation(repository.episodes.num_rows).tolist()
        streaming = StreamingLeRobotDataset(
            f"local/{directory.name}", root=directory, delta_timestamps=deltas, return_uint8=True
        )
        rates = [rate(readable(theirs, order)), rate(iter(streaming)), rate(ours)]
        cells = [
            directory.name,
            repository.episodes.num_rows,
            compared,
            unread,
            len(different),
            *(f"{each}" for each in rates),
        ]
        print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
        for line in different[:5]:
            print(f"  {line}", file=sys.stderr)
    return int(num_different > 0)


def windows(repository: lg.Repository) -> dict[str, list[float]]:
    """Returns two frames of each camera, and sixteen actions."""
    step = 1 / repository.fps
    found = {key: [-step, 0.0] for key in repository.cameras}
    if "action" in repository.features:
        found["action"] = [number * step for number in range(16)]
    return found


def compare(
    ours: Iterable[dict[str, Any]], theirs: Any, deltas: dict[str, list[float]]
) -> tuple[int, int, list[str]]:
    """Returns how many values were compared, how many rows lerobot could not read, and a line for
    each value that differs.
    """
    compared, unread, different = 0, 0, []
    for example in ours:
        row = int(example["index"])
        try:
            expected = theirs[row]
        except Exception:
            unread += 1
            continue
        for key, value in expected.items():
            if key not in example:
                different.append(f"row {row}: {key}: not in the example")
                continue
            found, wanted = np.asarray(example[key]), np.asarray(value)
            if wanted.ndim >= 3 and key in deltas and found.shape != wanted.shape:
                found = np.moveaxis(found, -1, -3)  # lerobot's channels come first
            if found.dtype == np.uint8 and wanted.dtype == np.float32:
                # embedded images, also with return_uint8
                wanted = np.round(wanted * 255).astype(np.uint8)
            compared += 1
            if not np.array_equal(found, wanted):
                different.append(
                    f"row {row}: {key}: {found.dtype} {found.shape} is not {wanted.dtype} "
                    f"{wanted.shape}"
                )
    return compared, unread, different


def readable(dataset: Any, rows: list[int]) -> Iterator[Any]:
    """Yields the rows that lerobot can read."""
    for row in rows:
        with contextlib.suppress(Exception):
            yield dataset[row]


def rate(examples: Iterable[Any]) -> str:
    """Returns examples a second, the start included; a reader that fails says how."""
    started, count = time.perf_counter(), 0
    try:
        for _ in examples:
            count += 1
    except Exception as error:
        return f"{type(error).__name__} after {count}"
    return f"{count / (time.perf_counter() - started):.0f}"


if __name__ == "__main__":
    sys.exit(main())
