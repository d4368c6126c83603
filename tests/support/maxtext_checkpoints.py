"""What MaxText's loading and checkpoint code does with a dataset, and what Grain's handler after
0.2.18 does: written after their sources, for the tests.

MaxText 0.2.5: `MultiHostDataLoadIterator` of `maxtext/input_pipeline/multihost_dataloading.py`;
`for_save` and `for_restore` of `maxtext/common/grain_utility.py`, whose values go to Orbax v1 under
the name `iter`. Where MaxText is installed, its own are used.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
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
    from maxtext.common import grain_utility
    from maxtext.input_pipeline import multihost_dataloading

    # At the end of a loader MaxText ends all processes of the machine that look like orphans of
    # multiprocessing, those of others, too.
    multihost_dataloading._cleanup_orphaned_multiprocessing_processes = lambda: None
    return multihost_dataloading, grain_utility


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


def for_save(step: int, data_iterator: Any, expansion_factor: int) -> Any:
    """Returns what MaxText gives Orbax v1 to save; `data_iterator` has a `local_iterator`."""
    if IS_INSTALLED:
        return _maxtext()[1].for_save(step, data_iterator, expansion_factor)
    return _ElasticFile(data_iterator.local_iterator)


def for_restore(checkpoints: Any, step: int, data_iterator: Any, expansion_factor: int) -> Any:
    """Returns what MaxText gives Orbax v1 to restore."""
    if IS_INSTALLED:
        return _maxtext()[1].for_restore(checkpoints, step, data_iterator, expansion_factor)
    return _ElasticFile(data_iterator.local_iterator)


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
