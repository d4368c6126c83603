r"""ACT, action chunking with transformers (Zhao et al. 2023), from two cameras: from one look all
actions of the next second.

    python examples/act.py                                                     # minutes on 2 cores
    python examples/act.py --resume --steps 2000                               # goes on
    python examples/act.py --repository lerobot/svla_so101_pickplace --chunk 50 \
        --image-size 240 320 \
        --width 512 --steps 50000 --learning-rate 1e-4

As in the paper: a transformer over the cells of all cameras' feature maps, the state and a style
variable z, and a decoder that asks for all actions of the chunk at once; L1 loss; z is inferred
from the actions in training, and 0 afterwards. Other than there: a small convolutional network that
starts from nothing, in place of a pretrained ResNet.
"""

from __future__ import annotations

import argparse
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

LATENT = 16
KL_WEIGHT = 10.0
NUM_HEADS = 4


def stream(repository: Repository, options: argparse.Namespace, **kind: Any) -> LeRobotIterDataset:
    """Returns examples: all cameras and the state of a row, and the actions from there on."""
    return LeRobotIterDataset(
        repository,
        features=[*repository.cameras, "observation.state", "action"],
        delta_timestamps={"action": [step / repository.fps for step in range(options.chunk)]},
        image_size=tuple(options.image_size),
        read_options=read_options(options),
        **kind,
    )


class Layer(nnx.Module):
    """A transformer layer: tokens look at themselves and, in a decoder, at `memory`."""

    def __init__(self, width: int, *, has_memory: bool = False, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(NUM_HEADS, width, decode=False, rngs=rngs)
        self.cross = (
            nnx.MultiHeadAttention(NUM_HEADS, width, decode=False, rngs=rngs)
            if has_memory
            else None
        )
        self.norms = nnx.data([nnx.LayerNorm(width, rngs=rngs) for _ in range(3)])
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, tokens: jax.Array, memory: jax.Array | None = None) -> jax.Array:
        tokens = tokens + self.attention(self.norms[0](tokens))
        if self.cross is not None:
            tokens = tokens + self.cross(self.norms[1](tokens), memory)
        return tokens + self.mlp(self.norms[2](tokens))


class Act(nnx.Module):
    """Frames and state -> `(batch, chunk, action_size)`, normalized."""

    def __init__(
        self, repository: Repository, normalizer: Normalizer, options: argparse.Namespace
    ) -> None:
        width, chunk, rngs = options.width, options.chunk, nnx.Rngs(options.seed)
        self.cameras = tuple(repository.cameras)
        self.normalizer = nnx.data(normalizer)
        state_size, action_size = (
            math.prod(repository.features[key].shape) for key in ("observation.state", "action")
        )

        def embedding(count: int) -> nnx.Param[jax.Array]:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))

        self.vision = nnx.Sequential(
            *(nnx.Conv(3, width // 4, (5, 5), strides=4, rngs=rngs), nnx.relu),
            *(nnx.Conv(width // 4, width // 2, (3, 3), strides=2, rngs=rngs), nnx.relu),
            nnx.Conv(width // 2, width, (3, 3), strides=2, rngs=rngs),
        )
        self.places = embedding(
            len(self.cameras) * math.prod(math.ceil(pixels / 16) for pixels in options.image_size)
        )
        self.state_in = nnx.Linear(state_size, width, rngs=rngs)
        self.latent_in = nnx.Linear(LATENT, width, rngs=rngs)
        self.encoder = nnx.data([Layer(width, rngs=rngs) for _ in range(2)])
        self.queries = embedding(chunk)
        self.decoder = Layer(width, has_memory=True, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        # Begins with the mean action, so what is below the first error has been learned.
        self.action_out = nnx.Linear(
            width, action_size, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        # The style encoder: state and actions -> mean and logarithm of the variance of z.
        self.style_state_in = nnx.Linear(state_size, width, rngs=rngs)
        self.style_action_in = nnx.Linear(action_size, width, rngs=rngs)
        self.style_places = embedding(1 + chunk)
        self.style = Layer(width, rngs=rngs)
        self.style_out = nnx.Linear(width, 2 * LATENT, rngs=rngs)

    def infer_style(self, state: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = jnp.concatenate(
            [self.style_state_in(state)[:, None], self.style_action_in(actions)], axis=1
        )
        mean, log_variance = jnp.split(
            self.style_out(self.style(tokens + self.style_places)[:, 0]), 2, axis=-1
        )
        return mean, log_variance

    def __call__(self, batch: Batch, z: jax.Array) -> jax.Array:
        cells = [
            self.vision(batch[camera]).reshape(len(z), -1, self.state_in.out_features)
            for camera in self.cameras
        ]
        tokens = [
            jnp.concatenate(cells, axis=1) + self.places,
            self.state_in(batch["observation.state"])[:, None],
        ]
        memory = jnp.concatenate([*tokens, self.latent_in(z)[:, None]], axis=1)
        for layer in self.encoder:
            memory = layer(memory)
        queries = jnp.broadcast_to(self.queries, (len(z), *self.queries.shape))
        return self.action_out(self.norm(self.decoder(queries, memory)))


def loss(policy: Act, batch: Batch, key: jax.Array) -> jax.Array:
    batch = policy.normalizer.normalize(batch)  # on the device: frames come as uint8
    mean, log_variance = policy.infer_style(batch["observation.state"], batch["action"])
    z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(axis=-1)
    # Past the end of an episode the last action is repeated. It was never taken there, so it is
    # not learned.
    distance = jnp.abs(policy(batch, z) - batch["action"])
    return (masked_mean(distance, ~batch["action_is_pad"][..., None]) + KL_WEIGHT * kl).mean()


def error(policy: Act, batch: Batch, key: jax.Array) -> jax.Array:
    del key
    batch = policy.normalizer.normalize(batch)
    found = policy(batch, jnp.zeros((len(batch["action"]), LATENT)))
    return masked_mean(jnp.abs(found - batch["action"]), ~batch["action_is_pad"][..., None])


def main(argv: list[str] | None = None) -> Result:
    arguments = parser(__doc__, name="act", steps=1000)
    arguments.add_argument(
        "--chunk",
        type=int,
        default=10,
        help="actions that are planned at once (default: %(default)s)",
    )
    options = arguments.parse_args(argv)
    with opened(options, options.repository or write_world) as repository:
        episodes, held_out = train_eval_split(repository)
        return train(
            Act(repository, normalizer(repository), options),
            stream(repository, options, episodes=episodes, shuffle=Shuffle(seed=options.seed)),
            {"held-out": stream(repository, options, episodes=held_out, num_epochs=1)},
            loss=loss,
            error=error,
            options=options,
            blind_to=tuple(repository.cameras),
        )


if __name__ == "__main__":
    main()
