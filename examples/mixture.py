"""Mixes two robots with other cameras, other frame rates, other states and actions; stops, and goes on exactly.

    python examples/mixture.py    # writes two small data sets and streams both

What differs in time is made equal by `delta_timestamps`, which are seconds: both robots give actions a tenth of a second apart, from
every frame of one and from every second frame of the other. Pictures are resized while they are decoded (`image_size`). What differs in
dimension is padded in `to_common`, with a mask that says what is real: a loss leaves out the rest.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from lerobot_grain import LeRobotIterDataset, Shuffle
from lerobot_grain.testing import Camera, write_dataset

NUM_ACTIONS = 8
ACTION_SECONDS = 0.1
STATE_SIZE, ACTION_SIZE = 7, 7
IMAGE_SIZE = (64, 64)


@dataclass(frozen=True)
class Robot:
    """A data set of the mixture, and what share of the examples comes from it."""

    number: int
    weight: float
    fps: int
    state_size: int
    action_size: int
    camera: Camera

    def write(self, directory: Path) -> None:
        episodes, cameras = [60] * 8, [self.camera]
        write_dataset(
            directory, episode_lengths=episodes, fps=self.fps, cameras=cameras, state_size=self.state_size, action_size=self.action_size
        )


ROBOTS = {
    "arm": Robot(0, 0.75, 10, 7, 7, Camera(key="observation.images.top", height=96, width=128)),
    "gripper": Robot(1, 0.25, 20, 4, 3, Camera(key="observation.images.wrist", height=72, width=96, codec="h264", gop=10)),
}


def padded(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Returns the values with zeros behind them in the last axis, up to this size."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])])


def to_common(example: dict[str, Any], robot: Robot) -> dict[str, Any]:
    """Returns the example of a robot with the keys, shapes and dtypes that all robots share."""
    is_real = ~example["action_is_pad"][:, None] & np.ones(robot.action_size, bool)
    return {
        "image": example[robot.camera.key],  # uint8 (height, width, 3)
        "state": padded(example["observation.state"], STATE_SIZE),  # float32 (STATE_SIZE,)
        "state_mask": np.arange(STATE_SIZE) < robot.state_size,
        "action": padded(example["action"], ACTION_SIZE),  # float32 (NUM_ACTIONS, ACTION_SIZE)
        "action_mask": padded(is_real, ACTION_SIZE),  # neither behind the end of the episode nor behind the robot's dimensions
        "robot": np.int64(robot.number),
        "row": example["index"],
    }


def stream(robot: Robot, directory: Path, *, seed: int) -> grain.IterDataset:
    """Returns the endless stream of one robot, in the common form."""
    dataset = LeRobotIterDataset(
        directory,
        features=[robot.camera.key, "observation.state", "action", "index"],
        delta_timestamps={"action": [step * ACTION_SECONDS for step in range(NUM_ACTIONS)]},
        shuffle=Shuffle(seed=seed),
        image_size=IMAGE_SIZE,
    )
    return dataset.map(functools.partial(to_common, robot=robot))


def mixture(directory: Path, options: argparse.Namespace) -> grain.IterDataset:
    """Returns batches in which every robot has its share; which robot comes when is a function of the weights and the position alone."""
    streams = {name: stream(robot, directory / name, seed=options.seed) for name, robot in ROBOTS.items()}
    weights = {name: robot.weight for name, robot in ROBOTS.items()}
    return grain.IterDataset.mix(streams, weights).batch(options.batch_size)


def fingerprint(batch: dict[str, Any]) -> tuple[list[tuple[int, int]], str]:
    """Returns (robot, row) of every example of a batch, and a checksum of all else."""
    checksum = 0
    for key in sorted(batch):
        checksum = zlib.crc32(batch[key].tobytes(), checksum)
    return list(zip(batch["robot"].tolist(), batch["row"].tolist(), strict=True)), f"{checksum:08x}"


def run(batches: Iterator[dict[str, Any]], count: int) -> list[tuple[list[tuple[int, int]], str]]:
    return [fingerprint(batch) for batch in itertools.islice(batches, count)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as name:
        directory = Path(name)
        for robot_name, robot in ROBOTS.items():
            print(f"writing {robot_name}: {robot.camera.height}x{robot.camera.width} pixels, {robot.fps} fps, {robot.action_size} actions")
            robot.write(directory / robot_name)
        with contextlib.closing(iter(mixture(directory, options))) as batches:
            first = next(batches)
            print("a batch:", ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in first.items()))
            before = [fingerprint(first), *run(batches, options.batches - 1)]
            saved = json.dumps(batches.get_state())
            expected = run(batches, options.batches)  # what would have come if the program had gone on
        counts = collections.Counter(number for rows, _ in before for number, _ in rows)
        shares = {name: counts[robot.number] / counts.total() for name, robot in ROBOTS.items()}
        print("shares:", ", ".join(f"{name} {share:.1%} (asked for {ROBOTS[name].weight:.0%})" for name, share in shares.items()))
        with contextlib.closing(iter(mixture(directory, options))) as batches:
            batches.set_state(json.loads(saved))
            resumed = run(batches, options.batches)
        if resumed != expected:
            raise SystemExit("the restored mixture goes on with other examples")
        print(f"restored from {len(saved)} bytes: the next {len(resumed)} batches are those that would have come, pixels {resumed[-1][1]}")
    return {"shares": shares, "before": before, "resumed": resumed, "expected": expected}


if __name__ == "__main__":
    main()
