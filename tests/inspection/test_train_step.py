"""A step that is tried on the batches of a stream: what it is given, and how it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._inspection.overview import train_step
from lerobot_grain._inspection.overview.train_step import (
    batch_values,
    measure_step,
    measure_together,
    read_all,
)
from lerobot_grain._inspection.profile import Reading, measure_reading


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(small_dataset)


@pytest.fixture(scope="module")
def reading(dataset: lg.LeRobotIterDataset) -> Reading:
    return measure_reading(
        dataset,
        batch_size=4,
        max_batches=2,
        max_seconds=None,
        on_batch=lambda *_: None,
    )


def test_values_of_a_batch(reading: Reading) -> None:
    values = {value.key: value for value in batch_values(reading.last_batch)}
    top = values["top"]
    assert (top.shape, top.dtype, top.device_dtype) == ((4, 32, 80, 3), "uint8", "uint8")
    assert top.num_bytes == 4 * 32 * 80 * 3
    # As JAX has it without 64 bits.
    assert (values["index"].dtype, values["index"].device_dtype) == ("int64", "int32")
    assert (values["task"].dtype, values["task"].device_dtype) == ("text", None)


def test_a_step_gets_all_numbers_of_a_batch_on_the_device(
    reading: Reading, dataset: lg.LeRobotIterDataset
) -> None:
    seen: list[dict[str, Any]] = []

    def step(batch: Any) -> Any:
        seen.append({key: (value.shape, str(value.dtype)) for key, value in batch.items()})
        return batch["action"].sum()

    cost = measure_step(reading, step=step, step_seconds=None)
    assert cost.compile_seconds is not None
    assert cost.step_seconds > 0
    assert len(seen) == 1, "traced once, so it is jitted"
    expected = {
        value.key: (value.shape, value.device_dtype)
        for value in batch_values(reading.last_batch)
        if value.device_dtype
    }
    assert seen == [expected]
    calls: list[int] = []
    together = measure_together(
        dataset,
        batch_size=4,
        # JAX would know the other one.
        step=lambda batch: step(batch),
        max_seconds=0.0,
        on_step=lambda steps, _: calls.append(steps),
    )
    assert (together.num_steps, calls) == (1, [1])
    assert 0 <= together.waited_seconds <= together.seconds
    assert seen[1] == expected


def test_the_step_that_is_there_reads_every_number(reading: Reading) -> None:
    images = reading.last_batch["top"]
    mean, spread = jax.jit(read_all)({"top": images})["top"]
    assert float(mean) == pytest.approx(images.mean(), rel=1e-4)
    assert float(spread) == pytest.approx(images.std(), rel=1e-4)


def test_a_known_duration_runs_no_step(reading: Reading) -> None:
    def step(_: Any) -> Any:
        raise AssertionError

    cost = measure_step(reading, step=step, step_seconds=0.25)
    assert (cost.compile_seconds, cost.step_seconds) == (None, 0.25)


def test_the_first_transfer_is_not_measured(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    takes = iter([100.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    device_put = jax.device_put

    def put(batch: Any) -> Any:
        clock[0] += next(takes, 0.0)
        return device_put(batch)

    monkeypatch.setattr(jax, "device_put", put)
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: clock[0])
    assert measure_step(reading, step=None, step_seconds=1.0).transfer_seconds == 3.0


def test_a_step_that_fails(reading: Reading) -> None:
    with pytest.raises(
        lg.InvalidRequestError, match=r"the step failed with KeyError: 'nothing'; it was given "
    ):
        measure_step(reading, step=lambda batch: batch["nothing"], step_seconds=None)


def test_texts_alone_are_nothing_for_a_step(reading: Reading) -> None:
    only_texts = Reading(
        batch_size=1,
        batch_seconds=np.array([1.0]),
        statistics=reading.statistics,
        last_batch={"task": np.array(["pick"])},
    )
    with pytest.raises(lg.InvalidRequestError, match="the batch has texts only"):
        measure_step(only_texts, step=None, step_seconds=None)
