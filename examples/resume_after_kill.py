"""Trains a small policy that may be killed at any moment, also with SIGKILL, and goes on as if
nothing had happened.

    python examples/resume_after_kill.py --repository lerobot/pusht --directory run
    python examples/resume_after_kill.py --repository lerobot/pusht --directory run --resume

A checkpoint holds the model (with the random numbers of its dropout), the optimizer, and the state
of the stream: a few numbers as JSON, the same on every host. `losses.txt` in the directory gets a
line per step: the step, the loss without rounding, a hash of the batch.
`examples/kill_and_compare.py` kills this script many times and compares those lines with those of a
training that was left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from checkpoints import Checkpoints, open_checkpoints
from flax import nnx

from lerobot_grain import (
    ElasticIterDataset,
    LeRobotIterDataset,
    Repository,
    Shuffle,
    open_repository,
)

NUM_ACTIONS = 4
IMAGE_SIZE = (32, 32)


class Policy(nnx.Module):
    """One frame, uint8 (batch, height, width, 3) -> actions, float32 (batch, NUM_ACTIONS,
    action_size).
    """

    def __init__(self, *, action_size: int, rngs: nnx.Rngs) -> None:
        self.action_size = action_size
        self.convolution = nnx.Conv(3, 8, kernel_size=(5, 5), strides=4, rngs=rngs)
        self.hidden = nnx.Linear(IMAGE_SIZE[0] * IMAGE_SIZE[1] // 16 * 8, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(64, NUM_ACTIONS * action_size, rngs=rngs)

    def __call__(self, frames: jax.Array) -> jax.Array:
        features = nnx.relu(self.convolution(frames.astype(jnp.float32) / 127.5 - 1.0))
        hidden = self.dropout(nnx.relu(self.hidden(features.reshape(len(frames), -1))))
        return self.out(hidden).reshape(len(frames), NUM_ACTIONS, self.action_size)


@nnx.jit
def train_step(
    model: Policy, optimizer: nnx.Optimizer, frames: jax.Array, actions: jax.Array
) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda model: jnp.square(model(frames) - actions).mean())(
        model
    )
    optimizer.update(model, gradients)
    return loss


class Trainer:
    """A model, its optimizer and a stream of batches: all that a checkpoint holds."""

    def __init__(self, repository: Repository, options: argparse.Namespace) -> None:
        self.camera = next(iter(repository.cameras))
        statistics = (repository.stats or {}).get(
            "action", {"mean": np.zeros(1), "std": np.ones(1)}
        )
        self.mean, self.std = (
            statistics[name].astype(np.float32).reshape(-1) for name in ("mean", "std")
        )
        action_size = int(np.prod(repository.features["action"].shape))
        self.model = Policy(action_size=action_size, rngs=nnx.Rngs(options.seed))
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        dataset = LeRobotIterDataset(
            repository,
            features=[self.camera, "action", "index"],
            delta_timestamps={"action": [step / repository.fps for step in range(NUM_ACTIONS)]},
            shuffle=Shuffle(seed=options.seed),
            image_size=IMAGE_SIZE,
        )
        self.batches = iter(dataset.batch(options.batch_size).pipe(ElasticIterDataset))

    def train_step(self) -> tuple[float, str]:
        """Trains on the next batch.

        Returns the loss, and a hash of the rows, pixels and actions of the batch.
        """
        batch: dict[str, Any] = next(self.batches)
        actions = (batch["action"].reshape(*batch["action"].shape[:2], -1) - self.mean) / (
            self.std + 1e-6
        )
        loss = train_step(self.model, self.optimizer, batch[self.camera], actions)
        digest = hashlib.sha256(
            b"".join(batch[key].tobytes() for key in ("index", self.camera, "action"))
        )
        return float(loss), digest.hexdigest()[:16]

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        checkpoints.save(step, nnx.state((self.model, self.optimizer)), self.batches)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        state = nnx.state((self.model, self.optimizer))
        nnx.update((self.model, self.optimizer), checkpoints.restore(step, state, self.batches))

    def close(self) -> None:
        self.batches.close()  # and with it the threads that read ahead


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", required=True, help="org/name on the Hub, or a directory")
    parser.add_argument("--revision", help="branch, tag or commit; by default the newest v3.x tag")
    parser.add_argument(
        "--directory", type=Path, required=True, help="of the checkpoints and of losses.txt"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last complete checkpoint, if there is one",
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    log_path = options.directory / "losses.txt"
    if log_path.exists() and not options.resume:
        raise SystemExit(
            f"{options.directory} holds a training already; go on with --resume, or choose "
            "another --directory"
        )
    options.directory.mkdir(parents=True, exist_ok=True)
    repository = open_repository(options.repository, revision=options.revision)
    with (
        contextlib.closing(repository.storage),  # its connections
        contextlib.closing(open_checkpoints(options.directory / "checkpoints")) as checkpoints,
        contextlib.closing(Trainer(repository, options)) as trainer,
        log_path.open("a") as log,
    ):
        done = checkpoints.latest_step()
        if done:
            trainer.restore(checkpoints, done)
        for step in range(done + 1, options.steps + 1):
            loss, digest = trainer.train_step()
            log.write(f"{step} {loss.hex()} {digest}\n")
            log.flush()
            if step % options.save_every == 0 or step == options.steps:
                trainer.save(checkpoints, step)


if __name__ == "__main__":
    main()
