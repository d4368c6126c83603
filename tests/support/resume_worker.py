"""One process of a training of several that are killed: streams its rows and saves checkpoints;
started by test_resume.py.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grain
import orbax.checkpoint as ocp

import lerobot_grain as lg

BATCH_SIZE = 16  # of all processes together
SHUFFLE = lg.Shuffle(seed=5, num_parts=4, buffer_size=16)


# Weights of the datasets of a mixture, by name.
WEIGHTS = {"arm": 3.0, "bin": 1.0, "car": 0.5}


def dataset_of(directory: Path, options: grain.sharding.ShardOptions) -> Any:
    """Returns a stream of a dataset; of a mixture, if the directory has folders of these names."""
    if (directory / "meta").is_dir():
        return lg.LeRobotIterDataset(
            directory, features=["index"], shuffle=SHUFFLE, shard_options=options
        )
    components = {
        name: lg.LeRobotIterDataset(directory / name, features=["index", "task"], shuffle=SHUFFLE)
        for name in WEIGHTS
    }
    return lg.MixtureIterDataset(components, WEIGHTS, seed=2, shard_options=options)


def rows_of(batch: dict[str, Any]) -> list[Any]:
    """Returns the rows of a batch; of a mixture each with its task, which tells the dataset."""
    rows = batch["index"].tolist()
    return list(zip(batch["task"].tolist(), rows, strict=True)) if "task" in batch else rows


def stream_rows(
    test: Connection, repository: str, directory: str, shard: int, num_shards: int, save_every: int
) -> None:
    """Sends (step, rows) of the step it begins after, without rows, and of every step after it.

    It waits for the others after each step, as a collective operation would: for something from the
    test.
    """
    options = grain.sharding.ShardOptions(shard, num_shards)
    dataset = dataset_of(Path(repository), options)
    batches = iter(dataset.batch(BATCH_SIZE // num_shards))
    checkpoints = ocp.CheckpointManager(
        directory, item_names=("data",), options=ocp.CheckpointManagerOptions(read_only=shard > 0)
    )
    step = checkpoints.latest_step() or 0
    if step:
        batches.set_state(
            checkpoints.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        )
    test.send((step, []))
    while test.recv():
        step += 1
        test.send((step, rows_of(next(batches))))
        if shard == 0 and step % save_every == 0:
            checkpoints.save(
                step, args=ocp.args.Composite(data=ocp.args.JsonSave(batches.get_state()))
            )
