"""What Kauldron asks of a pipeline, written after its public sources (1.4.4) for machines without
it: `data/pipelines.py`, `data/iterators/iterators.py`, and the loop of `train/train_loop.py`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest

IS_INSTALLED = importlib.util.find_spec("kauldron") is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Iterator(abc.ABC):
    source: Any

    def __iter__(self) -> Any:
        return self

    @abc.abstractmethod
    def __next__(self) -> Any: ...

    @property
    def element_spec(self) -> Any:
        return self.source.element_spec


@dataclasses.dataclass(frozen=True, kw_only=True, eq=True)
class _Pipeline(abc.ABC):
    batch_size: int | None = None
    seed: Any = None

    @abc.abstractmethod
    def __iter__(self) -> Any: ...


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Makes `kauldron` importable where it is not installed, for as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        if not IS_INSTALLED:
            kauldron, data, iterators = (
                types.ModuleType(name)
                for name in ("kauldron", "kauldron.data", "kauldron.data.iterators")
            )
            vars(iterators)["Iterator"] = _Iterator
            vars(data).update(iterators=iterators, Pipeline=_Pipeline)
            vars(kauldron)["data"] = data
            for module in (kauldron, data, iterators):
                patch.setitem(sys.modules, module.__name__, module)
        yield
        if not IS_INSTALLED:
            for name in ("lerobot_grain.kauldron", "lerobot_grain._training.kauldron"):
                sys.modules.pop(name, None)


def train(
    train_ds: Any, step: Callable[[Any, Any], Any], state: Any, workdir: Path, *, num_steps: int
) -> Any:
    """Trains as Kauldron does, from its last checkpoint on; saves every third step, before it takes
    the next batch.
    """
    spec = train_ds.element_spec
    iterator = iter(train_ds)
    assert iterator.element_spec is spec
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handlers = {"state": ocp.StandardCheckpointHandler(), "ds": iterator.__kd_ocp_handlers__()}
    with ocp.CheckpointManager(workdir, item_handlers=handlers) as checkpoints:
        begin = checkpoints.latest_step() or 0
        if begin:
            arguments = ocp.args.Composite(
                state=ocp.args.StandardRestore(state), ds=iterator.__kd_ocp_restore_args__()
            )
            found = checkpoints.restore(begin, args=arguments)
            state = found["state"]
            iterator = iterator.__kd_ocp_restore_post__(found["ds"])
        for number in range(begin, num_steps):
            if number % 3 == 0 and number > begin:
                arguments = ocp.args.Composite(
                    state=ocp.args.StandardSave(state), ds=iterator.__kd_ocp_save_args__()
                )
                checkpoints.save(number, args=arguments)
            batch = next(iterator)
            found_spec = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
            assert found_spec == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), spec)
            state = step(state, jax.device_put(batch, sharding))
    return state
