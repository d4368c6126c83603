"""One process of a training whose checkpoints other numbers of processes restore; started by
test_elastic.py.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lerobot_grain as lg
from tests.support import maxtext_checkpoints as maxtext

SHUFFLE = lg.Shuffle(seed=3, num_parts=4, buffer_size=16)
WEIGHTS = {"w": np.arange(6.0)}  # beside the stream, as a model would be
HAS_SHARD_STATES = hasattr(
    sys.modules[grain.experimental.ElasticIterator.__module__], "ElasticIterDatasetIterator"
)
# Way -> step after which its checkpoint is saved, and one batch more is taken.
SAVED_AT = {"orbax": 1, "maxtext": 3, "grain": 5, "shards": 7}


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Runs one process: from the beginning, with a checkpoint in each way, or from each of these
    checkpoints.

    Returns:
      Way -> rows of this process, one step after the other. A training from the beginning has
      them under one name.
    """
    jax.distributed.initialize(
        task["coordinator"], task["num_processes"], task["process"], initialization_timeout=30
    )
    directory = Path(task["checkpoints"])
    seen: dict[str, Any] = {}
    if not task["restore"]:
        with contextlib.closing(iter(pipeline(task))) as batches:
            rows: list[int] = []
            seen["all"] = rows
            for way, step in SAVED_AT.items():
                rows += rows_of(next(batches))
                assert batches.get_state()["position"] == step * task["batch_size"]
                goes_on = batches
                if way == "maxtext":
                    goes_on = loader_of(task)
                    goes_on.local_iterator.set_state(batches.get_state())
                finish = save(way, directory / way, step, goes_on)
                # The stream goes on while the checkpoint is written.
                ahead = rows_of(next(goes_on))
                if goes_on is not batches:
                    goes_on.local_iterator.close()
                    assert rows_of(next(batches)) == ahead
                rows += ahead
                # Two Orbax managers of several processes cannot save at the same time.
                finish()
        return seen
    for way, step in SAVED_AT.items():
        batches = loader_of(task) if way == "maxtext" else iter(pipeline(task))
        with contextlib.closing(batches.local_iterator if way == "maxtext" else batches):
            restore(way, directory / way, step, batches)
            seen[way] = [row for _ in range(task["num_steps"]) for row in rows_of(next(batches))]
    return seen


def host_batches(task: dict[str, Any]) -> grain.IterDataset[Any]:
    dataset = lg.LeRobotIterDataset(
        task["directory"],
        features=["index"],
        shuffle=SHUFFLE,
        shard_options=grain.sharding.ShardByJaxProcess(drop_remainder=True),
    )
    return dataset.batch(task["batch_size"] // jax.process_count())


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("data",))


def pipeline(task: dict[str, Any]) -> grain.IterDataset[Any]:
    sharding = NamedSharding(mesh(), PartitionSpec("data"))
    batches = host_batches(task).pipe(lg.DeviceIterDataset, sharding=sharding)
    return batches.pipe(lg.ElasticIterDataset)


def loader_of(task: dict[str, Any]) -> Any:
    """Returns MaxText's iterator over batches on the devices."""
    return maxtext.loader_of(host_batches(task).pipe(lg.ElasticIterDataset), mesh())


def rows_of(batch: dict[str, jax.Array]) -> list[int]:
    """Returns the rows that this process has of a global batch."""
    rows: list[int] = batch["index"].addressable_data(0).tolist()
    return rows


def save(way: str, directory: Path, step: int, batches: Any) -> Any:
    """Begins to save a checkpoint; returns what waits for its end."""
    if way == "shards":
        if jax.process_index() == 0:
            directory.mkdir()
        multihost_utils.sync_global_devices("directory")
        maxtext.save_shards(directory, batches)
        return lambda: multihost_utils.sync_global_devices("saved")
    if way == "grain":
        old = ocp_v0.CheckpointManager(directory, item_names=("data",))
        data = grain.checkpoint.CheckpointSave(batches)
        old.save(step, args=ocp_v0.args.Composite(data=data))
        return old.close
    if way == "maxtext":
        return maxtext.save(directory, step, WEIGHTS, batches)
    checkpoints = ocp_v0.v1.training.Checkpointer(directory)
    items = {"state": WEIGHTS, "data": batches}
    assert checkpoints.save_checkpointables_async(step, items) is not None
    return checkpoints.close


def restore(way: str, directory: Path, step: int, batches: Any) -> None:
    if way == "shards":
        maxtext.restore_shards(directory, batches)
        return
    if way == "grain" and HAS_SHARD_STATES:
        with ocp_v0.CheckpointManager(directory, item_names=("data",)) as old:
            data = grain.checkpoint.CheckpointRestore(batches)
            old.restore(step, args=ocp_v0.args.Composite(data=data))
        return
    if way == "grain":
        # Grain 0.2.18 refuses it, but Orbax v1 reads the same files.
        ocp_v0.v1.load_checkpointables(directory / str(step), {"data": batches})
        return
    if way == "maxtext":
        state = maxtext.restore(directory, step, WEIGHTS, batches)
        assert np.array_equal(state["w"], WEIGHTS["w"])
        return
    with contextlib.closing(ocp_v0.v1.training.Checkpointer(directory)) as checkpoints:
        loaded = checkpoints.load_checkpointables(step, {"state": WEIGHTS, "data": batches})
        assert loaded["data"] is batches
        assert np.array_equal(loaded["state"]["w"], WEIGHTS["w"])
