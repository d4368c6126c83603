"""Tries a training step on the batches of a stream: what a batch is on the device, how long a step
takes on it, and what a training would wait for.

Rules:
* Three measurements: the stream alone (`measure_reading`), the step alone on the last of its
  batches, and both together, as a training runs them, with `DeviceIterDataset` between them. On a
  machine whose device is its CPU the two share its cores, so together is less than the slower one.
* Without a step of the user's, one is made that reads every number of a batch once. Every training
  takes longer, so its rate is an upper bound.
* If the duration of a step is given, none is run, and the two rates are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.feed.device import DeviceIterDataset
from lerobot_grain._datasets.lerobot_dataset import LeRobotIterDataset
from lerobot_grain._inspection.profile import Reading

Step = Callable[[Mapping[str, Any]], Any]

# Transfers, and steps, that are measured after the first one, which starts the device or compiles:
# the median of them.
_MEASURED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchValue:
    """A value of a batch.

    Attributes:
      key, shape, dtype: as `dataset.batch` gives it; the dtype of texts is `text`.
      num_bytes: on the host; of texts, of their array.
      device_dtype: on the device; `None`: it stays on the host, because it is text.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    device_dtype: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The step alone, on a batch.

    Attributes:
      transfer_seconds: of the batch to the device, the median of several after the first one, which
        starts the device.
      compile_seconds: of the first call; `None`: no step was run.
      step_seconds: of a later call, the median; or as it was given.
    """

    transfer_seconds: float
    compile_seconds: float | None
    step_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Stream and step as a training runs them.

    Attributes:
      num_steps: that were run after the first one, at least 1.
      seconds: that they took.
      waited_seconds: of these, for the next batch on the device.
    """

    num_steps: int
    seconds: float
    waited_seconds: float


def batch_values(batch: Mapping[str, Any]) -> tuple[BatchValue, ...]:
    """Returns the values of a batch, in its order."""
    return tuple(_value(key, value) for key, value in batch.items())


def _value(key: str, value: Any) -> BatchValue:
    array = np.asarray(value)
    is_text = array.dtype.kind not in "biuf"
    return BatchValue(
        key=key,
        shape=array.shape,
        dtype="text" if is_text else str(array.dtype),
        num_bytes=array.nbytes,
        device_dtype=None if is_text else str(jax.dtypes.canonicalize_dtype(array.dtype)),
    )


def device_name() -> str:
    """Returns the device that a step runs on: JAX's default one, with its kind."""
    device = jax.devices()[0]
    kind = str(device.device_kind)
    return str(device) if kind in str(device) else f"{device} ({kind})"


def is_on_cpu() -> bool:
    """Returns whether steps run on the cores that decode."""
    return bool(jax.devices()[0].platform == "cpu")


def measure_step(reading: Reading, *, step: Step | None, step_seconds: float | None) -> StepCost:
    """Runs a step on the last batch of a stream.

    Args:
      reading: the stream that was measured.
      step: a function of a dict of `jax.Array`s that `jax.jit` can compile; `None`: one that reads
        every number once.
      step_seconds: the duration of a step, where it is known: then none is run.

    Raises:
      InvalidRequestError: the batch has only texts, or the step fails.
    """
    host = {
        value.key: reading.last_batch[value.key]
        for value in batch_values(reading.last_batch)
        if value.device_dtype is not None
    }
    if not host:
        raise InvalidRequestError(
            "train-check: the batch has texts only; expected a feature with numbers for the step"
        )
    _, transfer_seconds = _durations(lambda: jax.block_until_ready(jax.device_put(host)))
    on_device = jax.block_until_ready(jax.device_put(host))
    compile_seconds = None
    if step_seconds is None:
        compiled = jax.jit(step or read_all)
        compile_seconds, step_seconds = _durations(lambda: _call(compiled, on_device))
    return StepCost(
        transfer_seconds=transfer_seconds,
        compile_seconds=compile_seconds,
        step_seconds=step_seconds,
    )


def _durations(call: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of a first call, and of a later one."""
    durations = []
    for _ in range(1 + _MEASURED):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations[0], float(np.median(durations[1:]))


def _call(step: Step, batch: Mapping[str, Any]) -> None:
    try:
        jax.block_until_ready(step(batch))
    except Exception as error:
        # Whatever the code of the user raises.
        keys = ", ".join(batch)
        raise InvalidRequestError(
            f"the step failed with {type(error).__name__}: {error}; it was given a dict with the "
            f"keys {keys}, of arrays of a whole batch"
        ) from error


def measure_together(
    dataset: LeRobotIterDataset,
    *,
    batch_size: int,
    step: Step | None,
    max_seconds: float,
    on_step: Callable[[int, float], None],
) -> Together:
    """Runs steps on the batches of a stream, two at least, until so many seconds are over.

    Args:
      dataset: an endless stream; it is begun anew.
      batch_size: examples a batch.
      step: as of `measure_step`.
      max_seconds: after the first step, which compiles.
      on_step: called after each step with the steps and the seconds so far.

    Raises:
      LeRobotGrainError: as the stream raises it, or the step fails.
    """
    compiled = jax.jit(step or read_all)
    waited = 0.0
    num_steps = 0
    with closing(iter(dataset.batch(batch_size).pipe(DeviceIterDataset))) as batches:
        _call(compiled, _arrays(next(batches)))
        begin = time.perf_counter()
        while num_steps == 0 or time.perf_counter() - begin < max_seconds:
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            _call(compiled, _arrays(batch))
            num_steps += 1
            on_step(num_steps, time.perf_counter() - begin)
        seconds = time.perf_counter() - begin
    return Together(num_steps=num_steps, seconds=seconds, waited_seconds=waited)


def _arrays(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if isinstance(value, jax.Array)}


def read_all(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean and spread of every array: the step where there is none of the user's."""
    found = {}
    for key, value in batch.items():
        numbers = value.astype(jnp.float32)
        found[key] = (numbers.mean(), numbers.std())
    return found
