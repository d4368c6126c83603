"""The datasets that the examples train on when none is named: balls circle, and hands follow them.

Each hand has a camera that shows its ball, and its two actions are the velocity of that ball, in
units per second. The state is of joints that have nothing to do with it. So a policy that sees
nothing can learn no more than the mean action. With `both_ways` the balls circle clockwise in some
episodes and the other way round in others, which a single frame does not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lerobot_grain.testing import Camera, write_dataset

FPS = 10
RADIANS_PER_SECOND = np.pi / 2
CAMERAS = ("observation.images.left", "observation.images.right")


def write_world(
    directory: Path,
    *,
    cameras: tuple[str, ...] = CAMERAS,
    image_size: tuple[int, int] = (96, 96),
    fps: int = FPS,
    num_episodes: int = 50,
    episode_length: int = 60,
    both_ways: bool = False,
    seed: int = 0,
) -> None:
    """Writes a dataset: a camera and two actions for each hand, a state of three joints."""
    height, width = image_size

    def balls(episode: int) -> npt.NDArray[np.float64]:
        """Returns float64 (length, hands, 4): position, 0 to 1 from the left and the top, and
        velocity.
        """
        rng = np.random.default_rng([seed, episode])
        radius = rng.uniform(0.15, 0.4, len(cameras))
        start = rng.uniform(0, 2 * np.pi, len(cameras))
        speed = RADIANS_PER_SECOND * (rng.choice([-1, 1]) if both_ways else 1)
        angle = start + speed * np.arange(episode_length)[:, None] / fps
        cos, sin = radius * np.cos(angle), radius * np.sin(angle)
        return np.stack([0.5 + cos, 0.5 + sin, -speed * sin, speed * cos], axis=-1)

    def rows(episode: int, length: int) -> Mapping[str, npt.ArrayLike]:
        phases = np.random.default_rng([seed, episode, 1]).uniform(0, 2 * np.pi, 3)
        joints = np.sin(phases + np.arange(length)[:, None] / fps)
        return {"observation.state": joints, "action": balls(episode)[..., 2:].reshape(length, -1)}

    paths = [balls(episode)[..., :2] for episode in range(num_episodes)]
    y, x = np.mgrid[:height, :width]

    def picture(episode: int, frame: int, camera: int) -> npt.NDArray[np.uint8]:
        """Returns a ball on a floor whose colors are others in every episode."""
        rng = np.random.default_rng([seed, episode, camera, 2])
        floor = rng.uniform(30, 100, 3) + (
            np.stack([x / width, y / height], -1) @ rng.uniform(-40, 40, (2, 3))
        )
        column, row = paths[episode][frame, camera] * (width, height)
        ball = np.clip(height / 10 + 0.5 - np.hypot(x - column, y - row), 0, 1)[..., None]
        picture: npt.NDArray[np.uint8] = (
            (floor + ball * ([255, 220, 120] - floor)).round().astype(np.uint8)
        )
        return picture

    write_dataset(
        directory,
        episode_lengths=[episode_length] * num_episodes,
        fps=fps,
        cameras=[Camera(key=key, height=height, width=width) for key in cameras],
        state_size=3,
        action_size=2 * len(cameras),
        tasks=["follow the ball"],
        episodes_per_video_file=10,
        row_values=rows,
        frame_content=picture,
        barcodes=False,
    )
