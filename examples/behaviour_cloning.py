"""Behaviour cloning from the state alone: the smallest training that there is, seconds on a laptop.

    python examples/behaviour_cloning.py
    python examples/behaviour_cloning.py --repository lerobot/pusht --steps 5000

No camera is named, so no video is fetched. In the dataset that is written by default the state
tells where a point is that circles around the middle, and the action is its velocity.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from training import Batch, Result, masked_mean, opened, parser, train

from lerobot_grain import (
    LeRobotIterDataset,
    Normalizer,
    Repository,
    Shuffle,
    normalizer,
    train_eval_split,
)
from lerobot_grain.testing import write_dataset

NUM_ACTIONS = 4


def stream(repository: Repository, **kind: Any) -> LeRobotIterDataset:
    """Returns examples: the state of a row, and the actions from there on."""
    return LeRobotIterDataset(
        repository,
        features=["observation.state", "action"],  # what is not named is not fetched
        delta_timestamps={"action": [step / repository.fps for step in range(NUM_ACTIONS)]},
        **kind,
    )


class Policy(nnx.Module):
    """State -> `(batch, NUM_ACTIONS, action_size)`, normalized."""

    def __init__(
        self, repository: Repository, normalizer: Normalizer, *, width: int, rngs: nnx.Rngs
    ) -> None:
        self.normalizer = nnx.data(normalizer)
        state_size, action_size = (
            math.prod(repository.features[key].shape) for key in ("observation.state", "action")
        )
        self.layers = nnx.Sequential(
            *(
                nnx.Linear(state_size, width, rngs=rngs),
                nnx.gelu,
                nnx.Linear(width, width, rngs=rngs),
                nnx.gelu,
            ),
            # Begins with the mean action, so what is below the first error has been learned.
            nnx.Linear(
                width, NUM_ACTIONS * action_size, kernel_init=nnx.initializers.zeros, rngs=rngs
            ),
        )

    def __call__(self, state: jax.Array) -> jax.Array:
        return self.layers(state).reshape(len(state), NUM_ACTIONS, -1)


def error(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    del key
    batch = policy.normalizer.normalize(batch)
    # Past the end of an episode the last action is repeated. It was never taken there, so it is
    # not learned.
    return masked_mean(
        jnp.square(policy(batch["observation.state"]) - batch["action"]),
        ~batch["action_is_pad"][..., None],
    )


def loss(policy: Policy, batch: Batch, key: jax.Array) -> jax.Array:
    return error(policy, batch, key).mean()


def write_circles(directory: Path) -> None:
    write_dataset(
        directory, episode_lengths=[100] * 50, fps=10, cameras=[], state_size=2, action_size=2
    )


def main(argv: list[str] | None = None) -> Result:
    options = parser(__doc__, name="behaviour_cloning", steps=1000, batch_size=64).parse_args(argv)
    with opened(options, options.repository or write_circles) as repository:
        episodes, held_out = train_eval_split(repository)
        return train(
            Policy(
                repository, normalizer(repository), width=options.width, rngs=nnx.Rngs(options.seed)
            ),
            stream(repository, episodes=episodes, shuffle=Shuffle(seed=options.seed)),
            {"held-out": stream(repository, episodes=held_out, num_epochs=1)},
            loss=loss,
            error=error,
            options=options,
            blind_to=["observation.state"],
        )


if __name__ == "__main__":
    main()
