"""Makes the iterator of a pipeline *elastic*: its checkpoint is one file, which any number of
processes restores.

The state of a stream is one position, so every process has the same. The checkpoint code of others
does not know that, and writes a file for each process. It asks an iterator for this:

* Orbax v1 (0.12.8): the methods `save` and `load`, its protocol `StatefulCheckpointable`. Those of
  Grain's iterators write one file per process and look for one per process.
* MaxText (0.2.5): whether it is a `grain.experimental.ElasticIterator`. Then process 0 writes
  `process_0.json`, and all processes read it. The files here have the same name and form.
* Grain's handler for Orbax v0: up to 0.2.18 nothing; it names its files by the number of processes
  before it asks the iterator for anything. In its repository since 2026-06-26: whether the iterator
  is an `ElasticIterator`, and its `base_iterator` an `ElasticIterDatasetIterator`. Then it also
  writes the *shard states*, and restores those on another number of processes.

`grain.experimental.ElasticIterator` itself is of no use here: it cuts a `MapDataset` into shards
and batches. It is an iterator in Grain 0.2.15, a dataset in 0.2.18 and an iterator after it. So
nothing is inherited from it: the iterator here is *registered* as one, which `isinstance` respects.

Rules:
* The state is the parent's, as it is: a state that was saved without the wrapper restores with it,
  and the other way round.
* A pipeline whose state is not one position is refused at construction.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

import grain
import jax

from lerobot_grain._base.errors import InvalidRequestError, StateMismatchError
from lerobot_grain._datasets.pipelines import only_source_under
from lerobot_grain._datasets.positions import Element, FollowingIterator

_FILE = "process_0.json"
# That of Orbax's handler of JSON, which writes what a training gives as `JsonSave(get_state())`.
_JSON_FILE = "metadata"
_FILES_OF_PROCESSES = "process_*-of-*.json"

# Grain's datasets, by name, since most of them are not public. Their state is the parent's, or (a
# random map) what it adds does not decide which rows come.
_ONE_TO_ONE = (
    "MapIterDataset",
    "RandomMapIterDataset",
    "BatchIterDataset",
    "ThreadPrefetchIterDataset",
    "WithOptionsIterDataset",
    "_WithSeedIterDataset",
)
# They count what one process has taken. Any number of processes takes as many batches.
_COUNTING = ("LimitIterDataset", "MapWithIndexIterDataset")
_REMEDIES = {
    "FilterIterDataset": "select rows with episodes= or valid_rows= of the stream",
    **dict.fromkeys(
        ("InterleaveIterDataset", "MultiprocessPrefetchIterDataset"),  # the latter up to 0.2.15
        "use WorkerPrefetchIterDataset in place of mp_prefetch",
    ),
    "MixedIterDataset": "use MixtureIterDataset in place of mix",
    "WindowShuffleIterDataset": "leave it out, the stream is shuffled already",
    **dict.fromkeys(_COUNTING, "put it after .batch"),
}
_EXPECTED = (
    "expected datasets of lerobot_grain, .map, .random_map, .batch and ThreadPrefetchIterDataset"
)


class ElasticIterDataset(grain.IterDataset[Element]):
    """Its parent, with checkpoints that are one file and restore on any number of processes,
    wherever they are written: by Orbax v1 or by MaxText.

        batches = iter(dataset.batch(local_batch_size).pipe(ElasticIterDataset))
        checkpointer.save_checkpointables(step, {"state": state, "data": batches})
        ...
        checkpointer.load_checkpointables(step, {"state": abstract_state, "data": batches})

    It goes last, after the device feed, and changes no element. Its iterators are instances of
    `grain.experimental.ElasticIterator`. `get_state()` is that of the parent: one small dict for
    JSON, with which a stream restores with this dataset or without it.

    A checkpoint is the file `process_0.json`, written by process 0, with the state at the time of
    the call. `load` also reads a state that Orbax has saved as JSON, and the files that Grain's
    iterators and handlers have written, one per process, if all processes stood at the same
    position.

    All processes must have taken the same number of batches when a checkpoint is saved, must see
    the directory, and restore exactly if the global batch keeps its size.

    Args:
      parent: the last dataset of a pipeline with one stream of ours, whose state is one position:
        `.map`, `.random_map` (rows are exact; examples get other random numbers on another number
        of processes), `.batch`, `ThreadPrefetchIterDataset`, `DeviceIterDataset`,
        `WorkerPrefetchIterDataset`, and after `.batch` `LimitIterDataset` and `map_with_index`.

    Raises:
      InvalidRequestError: something else stands in the pipeline, such as `.filter`,
        `grain.IterDataset.mix`, `mp_prefetch` or a dataset that is not known here; or there is not
        exactly one stream.
    """

    def __init__(self, parent: grain.IterDataset[Element]) -> None:
        super().__init__(parent)
        _check_pipeline(parent)
        only_source_under(parent, asked_by="ElasticIterDataset")

    def __iter__(self) -> grain.DatasetIterator[Element]:
        return _ElasticIterator(self._parent.__iter__())

    @property
    def _element_spec(self) -> Any:
        return grain.experimental.get_element_spec(self._parent)

    def __str__(self) -> str:
        return "ElasticIterDataset"


class _ElasticIterator(FollowingIterator[Element]):
    def __next__(self) -> Element:
        self._assert_not_closed()
        element: Element = next(self._parent)
        return element

    # Orbax v1

    async def save(self, directory: Any) -> Awaitable[None]:
        """Takes the state, and returns what writes it later.

        Args:
          directory: Orbax's path of a directory that may not be there yet.
        """
        text = json.dumps(self.get_state(), indent=4)
        return _write(directory, text)

    async def load(self, directory: Any) -> Awaitable[None]:
        """Restores the state; what it returns has nothing left to do.

        Args:
          directory: path of the directory that `save` was given, or that of a Grain iterator.

        Raises:
          StateMismatchError: it holds no state, states of processes that stood at different
            positions, or that of another stream. Nothing was restored.
        """
        # Here and not in what is returned: Orbax 0.12.8 replaces every error of that by its own,
        # which speaks of a handler that does not fit.
        self.set_state(await asyncio.to_thread(_read, directory))
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        finished.set_result(None)
        return finished

    # Grain after 0.2.18

    @property
    def base_iterator(self) -> grain.DatasetIterator[Element]:
        """The iterator that Grain's handler asks for the states of shards: this one."""
        return self

    @property
    def shard_options(self) -> grain.sharding.ShardOptions:
        """The shards whose states this process restores: all, which is one."""
        return grain.sharding.ShardOptions(shard_index=0, shard_count=1)

    def get_shard_states(self) -> dict[int, dict[str, Any]]:
        """Returns shard -> state, of the shards that this process is to save."""
        return {0: self.get_state()} if jax.process_index() == 0 else {}

    def set_shard_states(
        self, shard_states: Mapping[int, dict[str, Any]] | Sequence[dict[str, Any]]
    ) -> None:
        """Restores states of shards, which must be equal.

        Raises:
          StateMismatchError: they are not, or there is none, or they are of another stream.
        """
        states = shard_states.values() if isinstance(shard_states, Mapping) else shard_states
        self.set_state(_one_of(list(states), "the states of shards"))

    def __str__(self) -> str:
        return "ElasticIterDataset"


def _register() -> None:
    """Makes `isinstance` say that the iterators are Grain's elastic ones."""
    elastic = grain.experimental.ElasticIterator
    # In the versions of Grain in which that is a dataset, `isinstance(iterator, IterDataset)` is
    # true, too; Grain and MaxText ask whether something is an iterator first.
    elastic.register(_ElasticIterator)
    # Not exported; Grain 0.2.18 has none.
    name = "ElasticIterDatasetIterator"
    if (with_shards := getattr(sys.modules[elastic.__module__], name, None)) is not None:
        with_shards.register(_ElasticIterator)


_register()


# The pipeline


def _check_pipeline(last: grain.IterDataset[Any]) -> None:
    """Refuses a pipeline whose state is not one position."""
    nodes = _nodes(last)
    for number, node in enumerate(nodes):
        if type(node).__module__.startswith("lerobot_grain."):
            continue
        name = type(node).__name__
        if type(node).__module__.startswith("grain."):
            if name in _ONE_TO_ONE:
                continue
            if name in _COUNTING and _has_batches(nodes[number + 1 :]):
                continue
        remedy = _REMEDIES.get(
            name, "write it as a .map, or save the state of what stands before it"
        )
        raise InvalidRequestError(
            f"ElasticIterDataset: the pipeline has {name}, after which the state of one process is "
            f"not that of another number of processes; {_EXPECTED}; {remedy}"
        )


def _nodes(last: grain.IterDataset[Any]) -> list[Any]:
    """Returns all datasets of a pipeline, each before its parents."""
    nodes: list[Any] = [last]
    for node in nodes:
        nodes.extend(node.parents)
    return nodes


def _has_batches(nodes: Iterable[object]) -> bool:
    return any(type(node).__name__ == "BatchIterDataset" for node in nodes)


# Files


async def _write(directory: Any, text: str) -> None:
    path = await directory.await_creation()
    if jax.process_index() == 0:
        await asyncio.to_thread((path / _FILE).write_text, text)


def _read(directory: Any) -> Any:
    """Returns the state in a directory of a checkpoint."""
    for name in (_FILE, _JSON_FILE):
        if (file := directory / name).exists():
            return _parsed(file)
    files = sorted(directory.glob(_FILES_OF_PROCESSES))
    return _one_of(
        [_parsed(found) for found in files], f"{directory}: {_FILE} or {_FILES_OF_PROCESSES}"
    )


def _parsed(file: Any) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise StateMismatchError(
            f"{file}: not JSON ({error}); expected the state of a stream; restore an older "
            "checkpoint"
        ) from None


def _one_of(states: list[Any], subject: str) -> Any:
    """Returns the state that all are equal to."""
    if not states:
        raise StateMismatchError(
            f"{subject}: found none; expected the state that an ElasticIterDataset or a Grain "
            "iterator has saved"
        )
    if different := [state for state in states if state != states[0]]:
        raise StateMismatchError(
            f"{subject}: found {len(states)} states that differ, such as {_described(states[0])} "
            f"and {_described(different[0])}; expected the same state of every process; restore "
            "each in its own process, on the same number of processes, without ElasticIterDataset"
        )
    return states[0]


def _described(state: object) -> str:
    position = state.get("position") if isinstance(state, Mapping) else None
    return repr(state)[:100] if position is None else f"position {position}"
