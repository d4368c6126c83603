"""Calls a data loader and checkpoints in the order of the training script of openpi, without a
model; for machines without openpi. The lines that docs/trainers/openpi.md changes are those of
openpi.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import openpi.training.checkpoints as _checkpoints
import openpi.training.data_loader as _data_loader
import openpi.training.weight_loaders as _weight_loaders


def train_step(config: Any, rng: Any, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """Adds the actions to the weights, to which the number of steps belongs."""
    del config, rng
    _, actions = batch
    return {"step": state["step"] + 1, "sum": state["sum"] + np.asarray(actions).sum()}, {}


def main(config: Any) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    data_sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    checkpoint_manager, resuming = _checkpoints.initialize_checkpoint_dir(
        config.checkpoint_dir, resume=config.resume
    )

    data_loader = _data_loader.create_data_loader(
        config,
        sharding=data_sharding,
        shuffle=True,
    )
    data_iter = iter(data_loader)
    batch = next(data_iter)

    train_state = _weight_loaders.initial_state()
    if resuming:
        train_state = _checkpoints.restore_state(checkpoint_manager, train_state, data_loader)

    start_step = int(train_state["step"])
    infos = []
    # fmt: off
    for step in range(start_step, config.num_train_steps):
        train_state, info = train_step(config, None, train_state, batch)
        infos.append(info)
        if step % config.log_interval == 0:
            infos = []
        batch = next(data_iter)

        if (step % config.save_interval == 0 and step > start_step) or step == config.num_train_steps - 1:
            _checkpoints.save_state(checkpoint_manager, train_state, data_loader, step)
    # fmt: on

    checkpoint_manager.wait_until_finished()
