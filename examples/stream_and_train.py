"""Streams a LeRobot data set and trains a small policy on it; stops half-way, resumes, and checks that no example was lost.

    python examples/stream_and_train.py                              # a small data set, written here and served by a Hub on this machine
    python examples/stream_and_train.py --repository lerobot/pusht   # any LeRobotDataset v3.0 of the Hugging Face Hub

Behaviour cloning: the policy sees two frames of one camera and nothing else, and learns the next eight actions. What it reads is said in
`stream`, how the stream is saved in `Trainer.save` and `Trainer.restore`; the rest is an ordinary training loop with Flax.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from lerobot_grain import LeRobotIterDataset, Repository, Shuffle, open_repository
from lerobot_grain.testing import LoopbackHub, write_dataset

NUM_ACTIONS = 8
IMAGE_SIZE = (96, 96)
ADAM = optax.adam(1e-3)


def stream(repository: Repository, camera: str, *, held_out: bool, seed: int) -> LeRobotIterDataset:
    """Returns the examples to train on, shuffled and without an end; or one pass over those of the last tenth of the episodes."""
    split = max(1, repository.episodes.num_episodes * 9 // 10)
    return LeRobotIterDataset(
        repository,
        episodes=slice(split, None) if held_out else slice(0, split),
        features=[camera, "action", "index"],  # what is not named here is not fetched
        delta_timestamps={
            camera: [-1 / repository.fps, 0.0],
            "action": [step / repository.fps for step in range(NUM_ACTIONS)],
        },
        shuffle=None if held_out else Shuffle(seed=seed),
        num_epochs=1 if held_out else None,
        image_size=IMAGE_SIZE,
    )


class Policy(nnx.Module):
    """Frames of a camera, uint8 (batch, time, height, width, 3) -> actions, float32 (batch, NUM_ACTIONS, action_size)."""

    def __init__(self, *, num_frames: int, action_size: int, rngs: nnx.Rngs) -> None:
        self.action_size = action_size
        self.convolutions = nnx.Sequential(
            *(nnx.Conv(3 * num_frames, 16, kernel_size=(5, 5), strides=4, rngs=rngs), nnx.relu),
            *(nnx.Conv(16, 32, kernel_size=(3, 3), strides=2, rngs=rngs), nnx.relu),
            *(nnx.Conv(32, 32, kernel_size=(3, 3), strides=2, rngs=rngs), nnx.relu),
        )
        height, width = (-(-pixels // 16) for pixels in IMAGE_SIZE)
        self.hidden = nnx.Linear(height * width * 32, 128, rngs=rngs)
        self.out = nnx.Linear(128, NUM_ACTIONS * action_size, rngs=rngs)

    def __call__(self, frames: jax.Array) -> jax.Array:
        # uint8 goes to the device, a quarter of the bytes of float32; the time axis becomes channels.
        pixels = jnp.moveaxis(frames.astype(jnp.float32) / 127.5 - 1.0, 1, 3)
        features = self.convolutions(pixels.reshape(*pixels.shape[:3], -1))
        hidden = nnx.relu(self.hidden(features.reshape(len(frames), -1)))
        return self.out(hidden).reshape(len(frames), NUM_ACTIONS, self.action_size)


@nnx.jit
def loss_of(model: Policy, frames: jax.Array, actions: jax.Array, is_pad: jax.Array) -> jax.Array:
    # Behind the end of an episode the last action is repeated. It was never taken there, so it is not learnt.
    errors = jnp.square(model(frames) - actions).mean(axis=-1)
    return jnp.where(is_pad, 0.0, errors).sum() / jnp.maximum((~is_pad).sum(), 1)


@nnx.jit
def train_step(model: Policy, optimizer: nnx.Optimizer, frames: jax.Array, actions: jax.Array, is_pad: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, frames, actions, is_pad)
    optimizer.update(model, gradients)
    return loss


class Trainer:
    """A model, its optimizer and a stream of batches: all that a checkpoint holds."""

    def __init__(self, repository: Repository, options: argparse.Namespace) -> None:
        self.camera = options.camera or next(iter(repository.cameras), "observation.images.top")
        statistics = (repository.stats or {}).get("action", {"mean": np.zeros(1), "std": np.ones(1)})
        self.mean, self.std = (statistics[name].astype(np.float32).reshape(-1) for name in ("mean", "std"))
        action_size = int(np.prod(repository.features["action"].shape))
        self.model = Policy(num_frames=2, action_size=action_size, rngs=nnx.Rngs(options.seed))
        self.optimizer = nnx.Optimizer(self.model, ADAM, wrt=nnx.Param)
        self.held_out = stream(repository, self.camera, held_out=True, seed=0).batch(options.batch_size)
        self.batches = iter(stream(repository, self.camera, held_out=False, seed=options.seed).batch(options.batch_size))

    def arrays(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        actions = batch["action"].reshape(*batch["action"].shape[:2], -1)
        return batch[self.camera], (actions - self.mean) / (self.std + 1e-6), batch["action_is_pad"]

    def train(self, batches: Iterator[dict[str, Any]], bar: tqdm[Any], steps: int) -> None:
        for batch in itertools.islice(batches, steps):
            loss = train_step(self.model, self.optimizer, *self.arrays(batch))
            if bar.n % 10 == 0:
                bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
            bar.update()

    def held_out_loss(self, max_batches: int = 20) -> float:
        with contextlib.closing(iter(self.held_out)) as batches:
            return float(np.mean([loss_of(self.model, *self.arrays(batch)) for batch in itertools.islice(batches, max_batches)]))

    def save(self, checkpoints: ocp.CheckpointManager, step: int) -> None:
        state = ocp.args.StandardSave(nnx.state((self.model, self.optimizer)))
        checkpoints.save(step, args=ocp.args.Composite(state=state, data=grain.checkpoint.CheckpointSave(self.batches)))
        checkpoints.wait_until_finished()

    def restore(self, checkpoints: ocp.CheckpointManager) -> None:
        state = ocp.args.StandardRestore(nnx.state((self.model, self.optimizer)))
        composite = ocp.args.Composite(state=state, data=grain.checkpoint.CheckpointRestore(self.batches))
        nnx.update((self.model, self.optimizer), checkpoints.restore(checkpoints.latest_step(), args=composite)["state"])

    def close(self) -> None:
        self.batches.close()  # and with it the threads that read ahead


def fingerprint(batch: dict[str, Any], camera: str) -> tuple[list[int], str]:
    """Returns the rows of a batch and a checksum of its pixels."""
    return batch["index"].tolist(), f"{zlib.crc32(batch[camera].tobytes()):08x}"


@contextlib.contextmanager
def opened_repository(options: argparse.Namespace, directory: Path) -> Iterator[Repository]:
    if options.repository is not None:
        yield open_repository(options.repository, revision=options.revision)
        return
    # 30 episodes of 200 frames: a disc circles in front of a camera, and the action is its velocity.
    print("writing a small data set")
    write_dataset(directory / "dataset", episode_lengths=[200] * 30, fps=10, state_size=2, action_size=2, episodes_per_video_file=10)
    with LoopbackHub() as hub:
        hub.add_repository("demo/circling_disc", directory / "dataset", tags=["v3.0"])
        hub.add_token("demo")
        yield open_repository("demo/circling_disc", endpoint=hub.endpoint, token="demo", cache_dir=directory / "cache")


def run(repository: Repository, options: argparse.Namespace, checkpoints: ocp.CheckpointManager) -> dict[str, Any]:
    half = max(1, options.steps // 2)
    episodes = repository.episodes
    print(f"{repository.description}: {episodes.num_episodes} episodes, {episodes.num_rows} frames at {repository.fps:g} fps")
    with tqdm(total=options.steps, unit="step") as bar:
        with contextlib.closing(Trainer(repository, options)) as trainer:
            first_loss = trainer.held_out_loss()
            bar.write(f"step 0: held-out loss {first_loss:.4f}, camera {trainer.camera}")
            trainer.train(trainer.batches, bar, half)
            bar.write(f"step {half}: held-out loss {trainer.held_out_loss():.4f}; saving a checkpoint and stopping")
            trainer.save(checkpoints, half)
            expected = fingerprint(next(trainer.batches), trainer.camera)  # what would have come if training had gone on

        with contextlib.closing(Trainer(repository, options)) as trainer:
            trainer.restore(checkpoints)
            batch = next(trainer.batches)
            resumed = fingerprint(batch, trainer.camera)
            if resumed != expected:
                raise SystemExit(f"the resumed stream goes on with another batch: rows and checksum {resumed}, expected {expected}")
            bar.write(f"resumed: the next batch is the one that would have come, rows {resumed[0][:4]}..., pixels {resumed[1]}")
            start = time.perf_counter()
            trainer.train(itertools.chain([batch], trainer.batches), bar, options.steps - half)
            rate = (options.steps - half) * options.batch_size / (time.perf_counter() - start)
            last_loss = trainer.held_out_loss()
    print(f"step {options.steps}: held-out loss {last_loss:.4f} (it was {first_loss:.4f}); {rate:.0f} examples/s while training")
    return {"first_loss": first_loss, "last_loss": last_loss, "resumed": resumed, "expected": expected, "examples_per_second": rate}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", help="org/name on the Hub, or a directory; by default a small data set is written and served")
    parser.add_argument("--revision", help="branch, tag or commit; by default the newest v3.x tag")
    parser.add_argument("--camera", help="feature to learn from; by default the first camera")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as name, contextlib.ExitStack() as stack:
        repository = stack.enter_context(opened_repository(options, Path(name)))
        stack.enter_context(contextlib.closing(repository.storage))  # its connections
        checkpoints = stack.enter_context(ocp.CheckpointManager(Path(name) / "checkpoints", item_names=("state", "data")))
        return run(repository, options, checkpoints)


if __name__ == "__main__":
    main()
