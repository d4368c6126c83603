"""What MaxText's checkpoint code does with a data iterator, and what Grain's handler after 0.2.18
does: written after their sources, for the tests.

MaxText 0.2.5: `for_save` and `for_restore` of `maxtext/common/grain_utility.py`, whose values go
to Orbax v1 under the name `iter`. Where MaxText is installed, its own are used.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import grain
import jax


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
    if importlib.util.find_spec("maxtext") is not None:
        from maxtext.common import grain_utility  # type: ignore[import-not-found, unused-ignore]

        return grain_utility.for_save(step, data_iterator, expansion_factor)
    return _ElasticFile(data_iterator.local_iterator)


def for_restore(checkpoints: Any, step: int, data_iterator: Any, expansion_factor: int) -> Any:
    """Returns what MaxText gives Orbax v1 to restore."""
    if importlib.util.find_spec("maxtext") is not None:
        from maxtext.common import grain_utility

        return grain_utility.for_restore(checkpoints, step, data_iterator, expansion_factor)
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
