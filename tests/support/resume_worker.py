"""One process of a training of several that are killed: streams its rows and saves checkpoints;
started by test_resume.py.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import grain
import orbax.checkpoint as ocp

import lerobot_grain as lg

BATCH_SIZE = 16  # of all processes together
SHUFFLE = lg.Shuffle(seed=5, num_parts=4, buffer_size=16)


def stream_rows(
    test: Connection, repository: str, directory: str, shard: int, num_shards: int, save_every: int
) -> None:
    """Sends (step, rows) of the step it begins behind, without rows, and of every step after it.

    It waits for the others after each step, as a collective operation would: for something from the
    test.
    """
    options = grain.sharding.ShardOptions(shard, num_shards)
    dataset = lg.LeRobotIterDataset(
        repository, features=["index"], shuffle=SHUFFLE, shard_options=options
    )
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
        test.send((step, next(batches)["index"].tolist()))
        if shard == 0 and step % save_every == 0:
            checkpoints.save(
                step, args=ocp.args.Composite(data=ocp.args.JsonSave(batches.get_state()))
            )
