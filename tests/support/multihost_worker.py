"""One process of several that stream a dataset together and run jitted steps on the global
batches; started by test_multihost.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import lerobot_grain as lg

DEVICES_PER_PROCESS = 2


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Runs one process of a task; see `run` in test_multihost.py."""
    jax.config.update("jax_num_cpu_devices", DEVICES_PER_PROCESS)
    jax.distributed.initialize(
        task["coordinator"], task["num_processes"], task["process"], initialization_timeout=30
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def step(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # A sum over the rows of all processes, and all rows on each of them: neither is there
        # without the other processes.
        gathered = jax.lax.with_sharding_constraint(batch["index"], everywhere)
        return {
            "index": gathered,
            "sum": batch["action"].sum(axis=0),
            "count": jnp.full((), len(gathered)),
        }

    jitted_step = jax.jit(step)

    def stream(
        shard_options: grain.sharding.ShardOptions, *, num_epochs: int | None = None
    ) -> grain.IterDataset[Any]:
        dataset = lg.LeRobotIterDataset(
            task["directory"],
            features=["index", "action", "task"],
            shuffle=lg.Shuffle(seed=3),
            shard_options=shard_options,
            num_epochs=num_epochs,
        )
        return dataset.batch(task["batch_size"] // shard_options.shard_count, drop_remainder=True)

    seen: dict[str, Any] = {"steps": [], "states": []}
    feed = lg.DeviceIterDataset(stream(grain.sharding.ShardByJaxProcess()), sharding=rows)
    with contextlib.closing(iter(feed)) as batches:
        if task["state"] is not None:
            batches.set_state(task["state"])
        spec = grain.experimental.get_element_spec(feed)
        for _ in range(task["num_steps"]):
            batch = next(batches)
            for key, value in without_text(batch).items():
                assert spec[key].shape == value.shape
                assert spec[key].sharding == value.sharding
            words = batch["task"]
            done = jitted_step(without_text(batch))
            assert batch["index"].shape == (task["batch_size"],)
            assert isinstance(words, np.ndarray)
            assert len(words) == task["batch_size"] // task["num_processes"]
            seen["steps"].append(
                {
                    "index": done["index"].tolist(),
                    "sum": np.asarray(done["sum"]).tolist(),
                    "count": int(done["count"]),
                }
            )
            seen["states"].append(batches.get_state())

    # With drop_remainder a finite stream ends on all processes at the same step; one more on any of
    # them would hang here.
    finite = stream(grain.sharding.ShardByJaxProcess(drop_remainder=True), num_epochs=1).pipe(
        lg.DeviceIterDataset, sharding=rows
    )
    with contextlib.closing(iter(finite)) as batches:
        seen["rows_of_an_epoch"] = [
            int(row) for batch in batches for row in jitted_step(without_text(batch))["index"]
        ]

    # Half of the rows for one half of the processes, the other half for the other; copies of them
    # on the devices of each.
    grid = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1), ("data", "model"))
    halves = NamedSharding(grid, PartitionSpec("data"))
    half = grain.sharding.ShardOptions(task["process"] * 2 // task["num_processes"], 2)
    if task["num_processes"] > 1:
        with contextlib.closing(
            iter(lg.DeviceIterDataset(stream(half), sharding=halves))
        ) as batches:
            seen["steps_of_halves"] = [
                jitted_step(without_text(next(batches)))["index"].tolist() for _ in range(2)
            ]
    seen["refused"] = [
        refusal(
            lambda: lg.DeviceIterDataset(
                stream(grain.sharding.ShardByJaxProcess(), num_epochs=1), sharding=rows
            )
        ),
        refusal(
            lambda: lg.DeviceIterDataset(
                stream(grain.sharding.ShardByJaxProcess()), sharding=everywhere
            )
        ),
        refusal(
            lambda: lg.DeviceIterDataset(
                stream(grain.sharding.ShardByJaxProcess()), sharding=halves
            )
        ),
    ]
    return seen


def without_text(batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {key: value for key, value in batch.items() if isinstance(value, jax.Array)}


def refusal(use: Any) -> str | None:
    """Returns the text with which something is refused; `None`: it is not."""
    try:
        use()
    except lg.InvalidRequestError as error:
        return str(error)
    return None
