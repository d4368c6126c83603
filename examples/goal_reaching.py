"""Reaching a goal that is a frame, learned in hindsight: any frame of the future was a goal that
the episode has reached.

    python examples/goal_reaching.py
    python examples/goal_reaching.py --blind          # with the goal set to zero
    python examples/goal_reaching.py --repository lerobot/pusht --steps 20000

For each row, a frame is drawn from the 3rd to the 10th after it in its episode (`windows=`), and
the policy learns the action that was taken on the way there. In the dataset that is written by
default, balls roll straight ahead, each episode in another direction, which nothing but the goal
tells.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from training import Batch, Result, opened, parser, read_options, train

from lerobot_grain import (
    LeRobotIterDataset,
    Normalizer,
    Repository,
    Shuffle,
    UniformDraw,
    Window,
    normalizer,
    train_eval_split,
)
from lerobot_grain.testing import Camera, write_dataset

FPS = 10
# The frames from which a goal is drawn, after the row of the example.
NEAREST, FARTHEST = 3, 10
SIZE = 64
EPISODE_LENGTH = 20
# Of the width of the frame, each second.
SPEED = 0.3


def stream(
    repository: Repository, image_size: tuple[int, int], **kind: Any
) -> grain.IterDataset[Batch]:
    """Returns examples: the frame of a row, a goal that was reached later, and the action."""
    (camera, *_) = repository.cameras
    goals = UniformDraw(NEAREST / repository.fps, FARTHEST / repository.fps)
    dataset = LeRobotIterDataset(
        repository,
        features=[camera, "action"],
        windows={"goal": Window(camera, goals)},
        image_size=image_size,
        **kind,
    )
    found: grain.IterDataset[Batch] = dataset.map(
        lambda example: {**example, "now": example[camera]}
    )
    return found


class Policy(nnx.Module):
    """Frame and goal, uint8 `(batch, height, width, 3)` -> `(batch, action_size)`, normalized."""

    def __init__(
        self,
        repository: Repository,
        normalizer: Normalizer,
        image_size: tuple[int, int],
        *,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.normalizer = nnx.data(normalizer)
        channels = [6, 16, 32, 32]
        self.convolutions = nnx.List(
            nnx.Conv(before, after, kernel_size=(3, 3), strides=(2, 2), rngs=rngs)
            for before, after in itertools.pairwise(channels)
        )
        # Each stride rounds up.
        pixels = math.prod(-(-size // 2 ** len(self.convolutions)) for size in image_size)
        self.layers = nnx.Sequential(
            nnx.Linear(pixels * channels[-1], width, rngs=rngs),
            nnx.gelu,
            # Begins with the mean action, so what is below the first error has been learned.
            nnx.Linear(
                width,
                math.prod(repository.features["action"].shape),
                kernel_init=nnx.initializers.zeros,
                rngs=rngs,
            ),
        )

    def __call__(self, now: jax.Array, goal: jax.Array) -> jax.Array:
        x = jnp.concatenate([now, goal], axis=-1).astype(jnp.float32) / 127.5 - 1
        for convolution in self.convolutions:
            x = nnx.gelu(convolution(x))
        return self.layers(x.reshape(len(x), -1))


def error(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    del key
    action = policy.normalizer.normalize(batch, ["action"])["action"]
    errors = jnp.square(policy(batch["now"], batch["goal"]) - action).mean(-1)
    # At the end of an episode nothing was reached that late.
    return jnp.where(batch["goal_is_pad"], 0, errors)


def loss(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    return error(policy, batch, key).mean()


def picture(place: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Returns a ball at a place, 0 to 1 from the left and the top."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    ball = np.clip((0.1 - np.hypot(x - place[0], y - place[1])) * SIZE / 2, 0, 1)
    found: npt.NDArray[np.uint8] = (40 + ball[..., None] * [210, 160, 60]).astype(np.uint8)
    return found


def roll(episode: int, *, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the places of the ball in an episode, float64 (length, 2), and its velocity (2,)."""
    rng = np.random.default_rng([seed, episode])
    direction = rng.uniform(0, 2 * np.pi)
    velocity = SPEED * np.array([np.cos(direction), np.sin(direction)])
    seconds = (np.arange(EPISODE_LENGTH) - EPISODE_LENGTH / 2) / FPS
    return rng.uniform(0.35, 0.65, 2) + seconds[:, None] * velocity, velocity


def write_rolls(directory: Path, *, num_episodes: int = 300) -> None:
    """Writes a dataset of balls that roll; the action is the velocity."""
    write_dataset(
        directory,
        episode_lengths=[EPISODE_LENGTH] * num_episodes,
        fps=FPS,
        cameras=[Camera(key="observation.images.above", height=SIZE, width=SIZE)],
        state_size=0,
        action_size=2,
        episodes_per_video_file=100,
        row_values=lambda episode, length: {"action": np.tile(roll(episode)[1], (length, 1))},
        frame_content=lambda episode, frame, _: picture(roll(episode)[0][frame]),
        barcodes=False,
    )


def missed_by(policy: Policy, *, num_goals: int = 16) -> float:
    """Returns how far from the goal a ball is, on average, that the policy has led for a second;
    it began `SPEED` away from it.
    """
    act = nnx.jit(lambda policy, now, goal: policy(now, goal))
    # Of episodes that nobody has seen.
    paths = np.stack([roll(episode, seed=1)[0] for episode in range(num_goals)])
    place, goal = paths[:, 4].copy(), paths[:, 4 + FPS]
    goals = np.stack([picture(each) for each in goal])
    for _ in range(FPS):
        now = np.stack([picture(each) for each in place])
        found = policy.normalizer.unnormalize({"action": act(policy, now, goals)})
        place += np.asarray(found["action"]) / FPS
    return float(np.hypot(*(place - goal).T).mean())


def main(argv: list[str] | None = None) -> Result:
    options_parser = parser(__doc__, name="goal_reaching", steps=300, batch_size=32)
    options_parser.set_defaults(image_size=[SIZE, SIZE])
    options = options_parser.parse_args(argv)
    size = tuple(options.image_size)
    with opened(options, options.repository or write_rolls) as repository:
        episodes, held_out = train_eval_split(repository)
        reading: dict[str, Any] = {"image_size": size, "read_options": read_options(options)}
        result = train(
            Policy(
                repository,
                normalizer(repository),
                size,
                width=options.width,
                rngs=nnx.Rngs(options.seed),
            ),
            stream(repository, episodes=episodes, shuffle=Shuffle(seed=options.seed), **reading),
            {"held-out": stream(repository, episodes=held_out, num_epochs=1, **reading)},
            loss=loss,
            error=error,
            options=options,
            blind_to=["goal"],
        )
    if options.repository is None and size == (SIZE, SIZE) and not options.blind:
        print(f"{SPEED} from the goal at the start, {missed_by(result.policy):.3f} at the end")
    return result


if __name__ == "__main__":
    main()
