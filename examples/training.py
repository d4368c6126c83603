"""The training loop of all examples: Flax NNX, Optax, Orbax, a progress bar, held-out episodes,
`--resume`, a plot of the losses.

An example says what it reads, what its policy is and what it costs; everything else is here, once.
A checkpoint holds the policy, the optimizer and the state of the stream. Random numbers (noise,
styles) come from a key that is a function of the seed and the step, so they need not be saved. A
run that is stopped and resumed therefore ends with the same parameters, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from checkpoints import Checkpoints, open_checkpoints
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

from lerobot_grain import (
    DeviceIterDataset,
    ElasticIterDataset,
    ReadOptions,
    Repository,
    open_repository,
)
from lerobot_grain.testing import LoopbackHub

Batch = dict[str, Any]
Errors = dict[str, float]

# JAX compiles in the first steps; they are left out where times are told.
WARM_UP_STEPS = 10


@dataclass(frozen=True)
class Result:
    """The results of a run.

    Attributes:
      errors: step -> name of a held-out stream -> mean error of the policy's actions.
      step_seconds: of a step, median of this run.
      data_wait: share of this run's time in which a step waited for its batch.
      policy: with its final parameters.
    """

    errors: dict[int, Errors]
    step_seconds: float
    data_wait: float
    policy: nnx.Module


def parser(
    description: str | None, *, name: str, steps: int, batch_size: int = 32
) -> argparse.ArgumentParser:
    """Returns the options that all examples have."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add(
        "--repository",
        help="org/name on the Hub, or a directory; by default a dataset is written, and served "
        "by a Hub on this machine",
    )
    add("--revision", help="branch, tag or commit; by default the newest version tag")
    add(
        "--directory",
        type=Path,
        default=Path("runs") / name,
        help="of checkpoints and losses (default: %(default)s)",
    )
    add("--resume", action="store_true", help="go on from the last checkpoint in the directory")
    add("--steps", type=int, default=steps, help="(default: %(default)s)")
    add(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="stop here, as if interrupted; go on with --resume",
    )
    add("--batch-size", type=int, default=batch_size, help="(default: %(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    add(
        "--image-size",
        nargs=2,
        type=int,
        default=[96, 96],
        metavar=("HEIGHT", "WIDTH"),
        help="that cameras are decoded to (default: 96 96)",
    )
    add(
        "--width",
        type=int,
        default=128,
        help="of the policy; 512 and more on an accelerator (default: %(default)s)",
    )
    add(
        "--save-every",
        type=int,
        default=100,
        metavar="STEPS",
        help="save a checkpoint and evaluate (default: %(default)s)",
    )
    add(
        "--eval-batches",
        type=int,
        default=50,
        metavar="N",
        help="held-out batches of an evaluation (default: %(default)s)",
    )
    add(
        "--frame-cache-gb",
        type=float,
        default=0,
        metavar="GB",
        help="of decoded frames that are kept on disk, so that later epochs and runs do not decode "
        "them (default: none)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the order, of the first parameters and of all noise (default: %(default)s)",
    )
    add(
        "--blind",
        action="store_true",
        help="hide what the actions depend on, to see what can be learned without",
    )
    return found


def read_options(options: argparse.Namespace) -> ReadOptions:
    """Returns how streams read, by the options of the command line."""
    return ReadOptions(frame_cache_bytes=int(options.frame_cache_gb * 1e9))


@contextlib.contextmanager
def opened(
    options: argparse.Namespace, source: str | Callable[[Path], object], *, name: str = "robot"
) -> Iterator[Repository]:
    """Opens a dataset, and says what is in it.

    Args:
      options: of the command line.
      source: org/name on the Hub, or a directory; or what writes a dataset into a directory: then
        that is done once, in the directory of the run, and it is served by a Hub on this machine.
      name: of the dataset that is written.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, str):
            found = open_repository(source, revision=options.revision)
        else:
            directory = options.directory / name
            if not directory.exists():
                print(f"writing a small dataset into {directory}")
                # perhaps by a run that was killed meanwhile
                unfinished = options.directory / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                source(unfinished)
                unfinished.rename(directory)
            hub = stack.enter_context(LoopbackHub())
            hub.add_repository(f"demo/{name}", directory, tags=["v3.0"])
            found = open_repository(
                f"demo/{name}",
                endpoint=hub.endpoint,
                token=False,
                cache_dir=options.directory / "cache",
            )
        stack.enter_context(contextlib.closing(found.storage))  # its connections
        episodes = found.episodes
        print(
            f"{found.description}: {episodes.num_episodes} episodes, {episodes.num_rows:,} frames "
            f"at {found.fps:g} fps"
        )
        yield found


def masked_mean(errors: jax.Array, is_real: jax.Array) -> jax.Array:
    """Returns float32 `(batch,)`: the mean over all other axes of what is real; 0 where
    nothing is.
    """
    axes = tuple(range(1, errors.ndim))
    is_real = jnp.broadcast_to(is_real, errors.shape)
    return jnp.where(is_real, errors, 0).sum(axes) / jnp.maximum(is_real.sum(axes), 1)


def train(
    policy: nnx.Module,
    dataset: grain.IterDataset[Batch],
    held_out: Mapping[str, grain.IterDataset[Batch]],
    *,
    loss: Callable[[Any, Batch, jax.Array], jax.Array],
    error: Callable[[Any, Batch, jax.Array], jax.Array],
    options: argparse.Namespace,
    blind_to: Sequence[str],
) -> Result:
    """Trains a policy, from the beginning or from the last checkpoint.

    Args:
      policy: the policy.
      dataset: of examples to train on, shuffled and without an end.
      held_out: name -> examples of other episodes, shuffled, one pass.
      loss: (policy, batch, random key) -> scalar: what is minimized.
      error: (policy, batch, random key) -> `(batch,)`: how far the policy's actions are from those
        of the dataset.
      options: of the command line.
      blind_to: keys of what is zeros with `--blind`.
    """
    directory = options.directory.absolute()
    log = _Log(directory / "losses.jsonl")
    if log.lines and not options.resume:
        raise SystemExit(
            f"{options.directory} holds a training already; go on with --resume, or choose "
            "another --directory"
        )

    def batched(dataset: grain.IterDataset[Batch], **kind: Any) -> grain.IterDataset[Batch]:
        batches = dataset.batch(options.batch_size, **kind)
        return (
            batches.map(lambda batch: batch | {key: 0 * batch[key] for key in blind_to})
            if options.blind
            else batches
        )

    trainer = _Trainer(policy, batched(dataset), loss=loss, options=options)
    evaluate = _Evaluation(
        {name: batched(examples, drop_remainder=True) for name, examples in held_out.items()},
        error,
        options,
    )
    with (
        contextlib.closing(trainer),
        contextlib.closing(open_checkpoints(directory / "checkpoints")) as checkpoints,
        tqdm(total=options.steps, unit="step", mininterval=0.5) as bar,
    ):
        done = checkpoints.latest_step()
        if done:
            trainer.restore(checkpoints, done)
        bar.update(done)
        log.forget_after(done or -1)
        if not done:
            log.note(0, errors=evaluate(policy))
            bar.write(f"step 0: {told(log.errors[0])}")
        for step in range(done + 1, (options.stop_at or options.steps) + 1):
            log.note(step, loss=trainer.train_step(step))
            bar.set_postfix(
                loss=f"{log.lines[-1]['loss']:.4f}",
                data_wait=f"{trainer.data_wait:.1%}",
                refresh=False,
            )
            bar.update()
            if step % options.save_every == 0 or step == options.steps:
                log.note(step, errors=evaluate(policy))
                bar.write(f"step {step}: {told(log.errors[step])}")
                trainer.save(checkpoints, step)
    log.plot(directory / "losses.png")
    last = max(log.errors)
    print(
        f"step {last}: {told(log.errors[last])}; at the start {told(log.errors[0])}. "
        f"{trainer.step_seconds * 1000:.0f} ms a step, {trainer.data_wait:.1%} of the time spent "
        f"waiting for data. {options.directory / 'losses.png'}"
    )
    return Result(log.errors, trainer.step_seconds, trainer.data_wait, policy)


def told(errors: Errors) -> str:
    return ", ".join(f"{name} error {value:.4f}" for name, value in errors.items())


class _Evaluation:
    """The errors of a policy on the first batches of each held-out stream, which are shuffled, and
    the same each time.
    """

    def __init__(
        self,
        held_out: Mapping[str, grain.IterDataset[Batch]],
        error: Callable[[Any, Batch, jax.Array], jax.Array],
        options: argparse.Namespace,
    ) -> None:
        self._held_out, self._error, self._options = held_out, nnx.jit(error), options

    def __call__(self, policy: nnx.Module) -> Errors:
        errors = {}
        for name, dataset in self._held_out.items():
            with contextlib.closing(iter(dataset)) as batches:
                numbered = enumerate(itertools.islice(batches, self._options.eval_batches))
                found = [
                    self._error(policy, batch, jax.random.key(number)) for number, batch in numbered
                ]
            if not found:
                raise SystemExit(
                    f"{name}: fewer rows than --batch-size {self._options.batch_size} are held "
                    "out; make it smaller"
                )
            errors[name] = float(np.mean(found))
        return errors


class _Trainer:
    """A policy, its optimizer and a stream of batches: all that a checkpoint holds."""

    def __init__(
        self,
        policy: nnx.Module,
        batches: grain.IterDataset[Batch],
        *,
        loss: Callable[[Any, Batch, jax.Array], jax.Array],
        options: argparse.Namespace,
    ) -> None:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, options.learning_rate, options.steps // 20, options.steps
        )
        adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
        self._policy, self._optimizer = policy, nnx.Optimizer(policy, adam, wrt=nnx.Param)
        self._batches = iter(batches.pipe(DeviceIterDataset).pipe(ElasticIterDataset))
        self._key = jax.random.key(options.seed)
        self._times: list[tuple[float, float]] = []  # (waiting for the batch, all of the step)

        @nnx.jit
        def train_step(
            policy: nnx.Module, optimizer: nnx.Optimizer, batch: Batch, key: jax.Array
        ) -> jax.Array:
            value, gradients = nnx.value_and_grad(loss)(policy, batch, key)
            optimizer.update(policy, gradients)
            return value

        self._jitted = train_step

    def train_step(self, step: int) -> float:
        """Trains on the next batch; returns the loss."""
        started = time.perf_counter()
        batch = next(self._batches)
        received = time.perf_counter()
        value = float(
            self._jitted(self._policy, self._optimizer, batch, jax.random.fold_in(self._key, step))
        )
        self._times.append((received - started, time.perf_counter() - started))
        return value

    @property
    def step_seconds(self) -> float:
        return float(
            np.median(
                [
                    seconds
                    for _, seconds in self._times[WARM_UP_STEPS:] or self._times or [(0.0, 0.0)]
                ]
            )
        )

    @property
    def data_wait(self) -> float:
        waits, steps = np.sum(self._times[WARM_UP_STEPS:] or [(0.0, 1.0)], axis=0)
        return float(waits / steps)

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        checkpoints.save(step, nnx.state((self._policy, self._optimizer)), self._batches)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        state = nnx.state((self._policy, self._optimizer))
        found = checkpoints.restore(step, state, self._batches)
        # Orbax binds arrays to their device, and those of a new policy are not bound to one: the
        # step would be compiled again for them, and a third time for its own results.
        unbound = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), found)
        nnx.update((self._policy, self._optimizer), unbound)

    def close(self) -> None:
        self._batches.close()  # and with it the threads that read ahead


class _Log:
    """Losses and errors, a line of JSON for each, so that they outlive the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    @property
    def errors(self) -> dict[int, Errors]:
        return {line["step"]: line["errors"] for line in self.lines if "errors" in line}

    def forget_after(self, step: int) -> None:
        """Forgets what came after the checkpoint that the training goes on from."""
        self.lines = [line for line in self.lines if line["step"] <= step]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def note(self, step: int, **values: Any) -> None:
        self.lines.append({"step": step, **values})
        with self._path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")

    def plot(self, path: Path) -> None:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        losses = [(line["step"], line["loss"]) for line in self.lines if "loss" in line]
        axes.plot(*np.transpose(losses), linewidth=0.7, alpha=0.6, label="training loss")
        for name in self.errors[0]:
            axes.plot(
                list(self.errors),
                [errors[name] for errors in self.errors.values()],
                "o-",
                label=f"{name} error",
            )
        axes.set(xlabel="step", yscale="log")
        axes.legend()
        figure.savefig(path, dpi=120)
