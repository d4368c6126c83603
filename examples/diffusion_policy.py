"""Diffusion policy (Chi et al. 2023): denoises a chunk of actions, given two frames of every camera
and two states.

    python examples/diffusion_policy.py
    python examples/diffusion_policy.py --repository lerobot/pusht --width 512 --batch-size 64 \
        --steps 50000

In the dataset that is written by default the balls circle clockwise in some episodes and the other
way round in others, so only a policy that sees motion can tell. As in the paper: squared cosine
schedule, a convolutional network over time that is modulated by the observation (FiLM), sampling in
a few deterministic steps (DDIM). Other than there: the network predicts the actions, not the noise,
which takes fewer steps to learn, and it keeps its temporal resolution.
"""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from training import Batch, Result, masked_mean, opened, parser, read_options, train
from worlds import write_world

from lerobot_grain import (
    LeRobotIterDataset,
    Normalizer,
    Repository,
    Shuffle,
    normalizer,
    train_eval_split,
)

NUM_FRAMES = 2
CHUNK = 8
NUM_SAMPLING_STEPS = 10


def stream(repository: Repository, options: argparse.Namespace, **kind: Any) -> LeRobotIterDataset:
    """Returns examples: the last frames of all cameras, the last states, and the actions from the
    row on.
    """
    history = [(step + 1 - NUM_FRAMES) / repository.fps for step in range(NUM_FRAMES)]
    return LeRobotIterDataset(
        repository,
        features=[*repository.cameras, "observation.state", "action"],
        delta_timestamps={
            **dict.fromkeys([*repository.cameras, "observation.state"], history),
            "action": [step / repository.fps for step in range(CHUNK)],
        },
        image_size=tuple(options.image_size),
        read_options=read_options(options),
        **kind,
    )


def signal_and_noise(time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how much of the actions, and how much noise, is left at a time between 0 (none) and 1
    (nothing but noise).
    """
    return jnp.cos(time * jnp.pi / 2), jnp.sin(time * jnp.pi / 2)


class Block(nnx.Module):
    """A residual convolution over the time of the chunk, scaled and shifted by the observation."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.first, self.second = (nnx.Conv(width, width, (5,), rngs=rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.film = nnx.Linear(width, 2 * width, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        scale, shift = jnp.split(self.film(condition)[:, None], 2, axis=-1)
        return x + self.second(nnx.gelu(self.norm(self.first(x)) * (1 + scale) + shift))


class DiffusionPolicy(nnx.Module):
    """Noisy actions `(batch, CHUNK, action_size)`, a time and an observation -> actions without
    noise, normalized.
    """

    def __init__(
        self, repository: Repository, normalizer: Normalizer, options: argparse.Namespace
    ) -> None:
        width, rngs = options.width, nnx.Rngs(options.seed)
        self.cameras = tuple(repository.cameras)
        self.normalizer = nnx.data(normalizer)
        state_size, self.action_size = (
            math.prod(repository.features[key].shape) for key in ("observation.state", "action")
        )
        cells = math.prod(math.ceil(pixels / 16) for pixels in options.image_size)
        self.vision = nnx.Sequential(
            *(nnx.Conv(3 * NUM_FRAMES, width // 4, (5, 5), strides=4, rngs=rngs), nnx.relu),
            *(nnx.Conv(width // 4, width // 2, (3, 3), strides=2, rngs=rngs), nnx.relu),
            *(nnx.Conv(width // 2, width // 4, (3, 3), strides=2, rngs=rngs), nnx.relu),
        )
        observed = len(self.cameras) * cells * (width // 4) + NUM_FRAMES * state_size
        self.observed_in = nnx.Sequential(
            nnx.Linear(observed, width, rngs=rngs), nnx.gelu, nnx.Linear(width, width, rngs=rngs)
        )
        self.time_in = nnx.Linear(width, width, rngs=rngs)
        self.action_in = nnx.Linear(self.action_size, width, rngs=rngs)
        self.blocks = nnx.data([Block(width, rngs=rngs) for _ in range(3)])
        # Begins with the mean action, so what is below the first error has been learned.
        self.action_out = nnx.Linear(
            width, self.action_size, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def observe(self, batch: Batch) -> jax.Array:
        """Returns float32 `(batch, width)`: what was seen."""
        size = len(batch["observation.state"])
        # The frames of a window become channels: (batch, time, height, width, 3) -> (batch, height,
        # width, time * 3).
        pictures = [jnp.moveaxis(batch[camera], 1, 3) for camera in self.cameras]
        seen = [
            self.vision(picture.reshape(*picture.shape[:3], -1)).reshape(size, -1)
            for picture in pictures
        ]
        return self.observed_in(
            jnp.concatenate([*seen, batch["observation.state"].reshape(size, -1)], axis=-1)
        )

    def __call__(self, noisy: jax.Array, time: jax.Array, observed: jax.Array) -> jax.Array:
        frequencies = jnp.exp(jnp.linspace(0, 6, self.time_in.in_features // 2))
        waves = time[:, None] * frequencies
        condition = nnx.gelu(
            observed + self.time_in(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=-1))
        )
        x = self.action_in(noisy)
        for block in self.blocks:
            x = block(x, condition)
        return self.action_out(x)

    def sample(self, batch: Batch, key: jax.Array) -> jax.Array:
        """Returns actions, from noise, in `NUM_SAMPLING_STEPS` steps of DDIM."""
        observed = self.observe(batch)
        noisy = jax.random.normal(key, (len(observed), CHUNK, self.action_size))
        for step in range(NUM_SAMPLING_STEPS, 0, -1):
            found = self(noisy, jnp.full(len(observed), step / NUM_SAMPLING_STEPS), observed)
            signal, noise = signal_and_noise(jnp.array(step / NUM_SAMPLING_STEPS))
            next_signal, next_noise = signal_and_noise(jnp.array((step - 1) / NUM_SAMPLING_STEPS))
            noisy = next_signal * found + next_noise * (noisy - signal * found) / noise
        return noisy


def loss(policy: DiffusionPolicy, batch: Batch, key: jax.Array) -> jax.Array:
    batch = policy.normalizer.normalize(batch)  # on the device: frames come as uint8
    actions = batch["action"]
    time_key, noise_key = jax.random.split(key)
    time = jax.random.uniform(time_key, (len(actions),))
    signal, noise = (level[:, None, None] for level in signal_and_noise(time))
    found = policy(
        signal * actions + noise * jax.random.normal(noise_key, actions.shape),
        time,
        policy.observe(batch),
    )
    return masked_mean(jnp.square(found - actions), ~batch["action_is_pad"][..., None]).mean()


def error(policy: DiffusionPolicy, batch: Batch, key: jax.Array) -> jax.Array:
    """Returns how far sampled actions are from those of the dataset; for a policy without camera
    input, about twice their variance.
    """
    batch = policy.normalizer.normalize(batch)
    return masked_mean(
        jnp.square(policy.sample(batch, key) - batch["action"]), ~batch["action_is_pad"][..., None]
    )


def main(argv: list[str] | None = None) -> Result:
    options = parser(__doc__, name="diffusion_policy", steps=1000).parse_args(argv)
    with opened(
        options, options.repository or functools.partial(write_world, both_ways=True)
    ) as repository:
        episodes, held_out = train_eval_split(repository)
        return train(
            DiffusionPolicy(repository, normalizer(repository), options),
            stream(repository, options, episodes=episodes, shuffle=Shuffle(seed=options.seed)),
            {"held-out": stream(repository, options, episodes=held_out, num_epochs=1)},
            loss=loss,
            error=error,
            options=options,
            blind_to=tuple(repository.cameras),
        )


if __name__ == "__main__":
    main()
