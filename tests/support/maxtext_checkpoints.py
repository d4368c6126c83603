"""What MaxText's loading and checkpoint code does with a dataset, and what Grain's handler after
0.2.18 does: written after their sources, for the tests.

MaxText 0.2.5: `MultiHostDataLoadIterator` of `maxtext/input_pipeline/multihost_dataloading.py`;
`save_checkpoint` and `load_state_if_possible` of `maxtext/common/checkpointing.py`, which give what
`maxtext/common/grain_utility.py` makes of a data iterator to Orbax v1, under the name `iter`. Where
MaxText is installed, its own are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from jax.sharding import Mesh, NamedSharding, PartitionSpec

IS_INSTALLED = importlib.util.find_spec("maxtext") is not None


class MultiHostDataLoadIterator:
    """Cuts the batches of this process over its devices; its checkpoint is the state of
    `local_iterator`.
    """

    def __init__(self, dataloader: Iterable[Any], global_mesh: Mesh) -> None:
        assert isinstance(dataloader, Iterable)
        self.local_iterator: Any = iter(dataloader)
        self._mesh = global_mesh

    def __next__(self) -> Any:
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))

        def placed(array: Any) -> jax.Array:
            devices = self._mesh.local_devices
            parts = np.split(array, len(devices))
            placed = list(map(jax.device_put, parts, devices))
            shape = (jax.process_count() * len(array), *array.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, placed)

        return jax.tree.map(placed, next(self.local_iterator))


@functools.cache
def _maxtext() -> tuple[Any, Any]:
    """Returns MaxText's modules of loading and of checkpoints."""
    from maxtext.common import checkpointing
    from maxtext.input_pipeline import multihost_dataloading

    # At the end of a loader MaxText ends all processes of the machine that look like orphans of
    # multiprocessing, those of others, too.
    multihost_dataloading._cleanup_orphaned_multiprocessing_processes = lambda: None
    return multihost_dataloading, checkpointing


def loader_of(dataset: Iterable[Any], mesh: Mesh) -> Any:
    """Returns what MaxText makes of a dataset."""
    if IS_INSTALLED:
        return _maxtext()[0].MultiHostDataLoadIterator(dataset, mesh)
    return MultiHostDataLoadIterator(dataset, mesh)


class _ElasticFile:
    """Of an elastic iterator process 0 writes one file, which all processes read."""

    def __init__(self, iterator: Any) -> None:
        # For every other iterator MaxText has a file per process, and asks for as many again.
        assert isinstance(iterator, grain.experimental.ElasticIterator)
        self._iterator = iterator

    async def save(self, directory: Any) -> Any:
        state = self._iterator.get_state()

        async def write() -> None:
            path = await directory.await_creation()
            if jax.process_index() == 0:
                text = json.dumps(state, indent=4)
                await asyncio.to_thread((path / "process_0.json").write_text, text)

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            text = await asyncio.to_thread((directory / "process_0.json").read_text)
            self._iterator.set_state(json.loads(text))

        return read()


def save(directory: Path, step: int, state: Any, data_iterator: Any) -> Callable[[], None]:
    """Begins to save; returns what waits for the end. `data_iterator` has a `local_iterator`."""
    if IS_INSTALLED:
        checkpointing = _maxtext()[1]
        manager = _manager(directory)
        # Of MaxText's settings those that are asked for.
        config = types.SimpleNamespace(
            enable_checkpointing=True,
            checkpoint_period=1,
            dataset_type="grain",
            expansion_factor_real_data=-1,
        )
        assert checkpointing.save_checkpoint(manager, step, state, config, data_iterator)
        return manager.close
    checkpoints = ocp_v0.v1.training.Checkpointer(directory)
    items = {"items": state, "iter": _ElasticFile(data_iterator.local_iterator)}
    assert checkpoints.save_checkpointables_async(step, items) is not None
    return checkpoints.close


def restore(directory: Path, step: int, state: Any, data_iterator: Any) -> Any:
    """Restores the data iterator in place; returns the state."""
    if IS_INSTALLED:
        with contextlib.closing(_manager(directory)) as manager:
            found, _ = _maxtext()[1].load_state_if_possible(
                manager,
                data_iterator,
                load_parameters_from_path="",
                load_full_state_from_path="",
                checkpoint_storage_concurrent_gb=1,
                abstract_unboxed_pre_state=state,
                dataset_type="grain",
                step=step,
            )
            return found["items"]
    with contextlib.closing(ocp_v0.v1.training.Checkpointer(directory)) as checkpoints:
        items = {"items": state, "iter": _ElasticFile(data_iterator.local_iterator)}
        return checkpoints.load_checkpointables(step, items)["items"]


def _manager(directory: Path) -> Any:
    return _maxtext()[1].create_orbax_checkpoint_manager(
        str(directory), enable_checkpointing=True, use_async=True, save_interval_steps=1
    )


def save_shards(directory: Path, iterator: Any) -> None:
    """Saves the states of shards, as Grain's handler of 2026-06-26 does."""
    assert isinstance(iterator.base_iterator, grain.DatasetIterator)
    for shard, state in iterator.get_shard_states().items():
        (directory / f"shard_state_{shard}.json").write_text(json.dumps(state, indent=4))


def restore_shards(directory: Path, iterator: Any) -> None:
    """Restores them on another number of processes."""
    options = iterator.shard_options
    states: dict[int, Any] = {}
    shard = options.shard_index
    while (file := directory / f"shard_state_{shard}.json").exists():
        states[shard] = json.loads(file.read_text())
        shard += options.shard_count
    iterator.set_shard_states(states)
