"""One policy for unlike robots: a mixture of datasets with weights, other cameras, frame rates,
states and actions.

    python examples/mixture.py
    python examples/mixture.py --mix org/arm 3 --mix org/gripper 1 --width 512 \
        --batch-size 256 --steps 50000

`delta_timestamps` are seconds and make the robots equal in time: all of them give actions
a tenth of a second apart, from every frame of one and from every second frame of the other.
Frames are resized while they are decoded. Other dimensions are padded, with a mask that
says what is real, and a loss leaves out the rest. By default two datasets are written: a robot
with two hands and one with one hand, which moves at another frame rate.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from training import Batch, Result, masked_mean, opened, parser, read_options, train
from worlds import CAMERAS, write_world

from lerobot_grain import (
    LeRobotIterDataset,
    MixtureIterDataset,
    PadDimensions,
    Repository,
    Shuffle,
    train_eval_split,
)

NUM_ACTIONS = 8
ACTION_SECONDS = 0.1
# The common form: what a robot does not have is padded.
NUM_CAMERAS, STATE_SIZE, ACTION_SIZE = 2, 8, 8
# Name, how it is written, weight.
WORLDS = (
    ("two_hands", functools.partial(write_world, fps=10), 3.0),
    (
        "one_hand",
        functools.partial(
            write_world,
            fps=20,
            cameras=CAMERAS[:1],
            image_size=(72, 96),
            episode_length=120,
            seed=1,
        ),
        1.0,
    ),
)


def to_common(example: Batch, *, robot: int, repository: Repository) -> Batch:
    """Returns an example of a robot with the keys, shapes and units that all robots share, but for
    the padding of state and action.
    """
    seen = [example[camera] for camera in repository.cameras]
    pictures = np.stack(seen + [np.zeros_like(seen[0])] * (NUM_CAMERAS - len(seen)))
    common: Batch = {
        "pictures": pictures,
        "robot": np.int32(robot),
        "action_is_pad": example["action_is_pad"],
    }
    assert repository.stats is not None
    for key in ("observation.state", "action"):
        # Each robot has statistics of its own, so numbers are normalized here, and frames, which
        # have none, on the device.
        mean, std = (repository.stats[key][name] for name in ("mean", "std"))
        common[key] = ((example[key] - mean) / (std + 1e-6)).astype(np.float32)
    return common


def stream(
    repository: Repository, robot: int, *, image_size: tuple[int, int], **kind: Any
) -> grain.IterDataset[Batch]:
    """Returns the examples of one robot, in the common form."""
    dataset = LeRobotIterDataset(
        repository,
        features=[*repository.cameras, "observation.state", "action"],
        delta_timestamps={"action": [step * ACTION_SECONDS for step in range(NUM_ACTIONS)]},
        image_size=image_size,
        **kind,
    )
    common = dataset.map(functools.partial(to_common, robot=robot, repository=repository))
    return common.map(PadDimensions({"observation.state": STATE_SIZE, "action": ACTION_SIZE}))


class Policy(nnx.Module):
    """Frames, state and number of the robot -> `(batch, NUM_ACTIONS, ACTION_SIZE)`,
    normalized.
    """

    def __init__(self, *, num_robots: int, options: argparse.Namespace) -> None:
        width, rngs = options.width, nnx.Rngs(options.seed)
        self.vision = nnx.Sequential(
            *(nnx.Conv(3, width // 4, (5, 5), strides=4, rngs=rngs), nnx.relu),
            *(nnx.Conv(width // 4, width // 2, (3, 3), strides=2, rngs=rngs), nnx.relu),
            *(nnx.Conv(width // 2, width // 4, (3, 3), strides=2, rngs=rngs), nnx.relu),
        )
        seen = (
            NUM_CAMERAS
            * math.prod(math.ceil(pixels / 16) for pixels in options.image_size)
            * (width // 4)
        )
        self.robots = nnx.Embed(num_robots, width, rngs=rngs)
        self.observed_in = nnx.Linear(seen + STATE_SIZE, width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        # Begins with the mean action, so what is below the first error has been learned.
        self.action_out = nnx.Linear(
            width, NUM_ACTIONS * ACTION_SIZE, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, batch: Batch) -> jax.Array:
        pictures = batch["pictures"].astype(jnp.float32) / 127.5 - 1.0
        size = len(pictures)
        seen = self.vision(pictures.reshape(-1, *pictures.shape[2:])).reshape(size, -1)
        observed = self.observed_in(
            jnp.concatenate([seen, batch["observation.state"]], axis=-1)
        ) + self.robots(batch["robot"])
        return self.action_out(nnx.gelu(self.hidden(nnx.gelu(observed)))).reshape(
            size, NUM_ACTIONS, ACTION_SIZE
        )


def error(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    del key
    is_pad = batch["action_is_pad"][..., None] | batch["action_dim_is_pad"]
    return masked_mean(jnp.square(policy(batch) - batch["action"]), ~is_pad)


def loss(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    return error(policy, batch, key).mean()


def main(argv: list[str] | None = None) -> Result:
    arguments = parser(__doc__, name="mixture", steps=1000)
    arguments.add_argument(
        "--mix",
        nargs=2,
        action="append",
        metavar=("REPOSITORY", "WEIGHT"),
        help="one for each robot, in place of --repository",
    )
    options = arguments.parse_args(argv)
    mixed = [
        (repository, repository, float(weight)) for repository, weight in options.mix or []
    ] or list(WORLDS)
    with contextlib.ExitStack() as stack:
        training, held_out, weights = {}, {}, {}
        for robot, (name, source, weight) in enumerate(mixed):
            repository = stack.enter_context(opened(options, source, name=name))
            episodes, others = train_eval_split(repository)
            common = functools.partial(
                stream,
                repository,
                robot,
                image_size=tuple(options.image_size),
                read_options=read_options(options),
            )
            training[name] = common(episodes=episodes, shuffle=Shuffle(seed=options.seed))
            held_out[name] = common(episodes=others, num_epochs=1)
            weights[name] = weight
        return train(
            Policy(num_robots=len(mixed), options=options),
            # Which robot comes when is a function of seed, weights and position alone.
            MixtureIterDataset(
                training, weights, seed=options.seed, read_options=read_options(options)
            ),
            held_out,
            loss=loss,
            error=error,
            options=options,
            blind_to=["pictures"],
        )


if __name__ == "__main__":
    main()
