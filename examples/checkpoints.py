"""The checkpoints of all examples: parameters, optimizer and the state of the stream, by Orbax.

`orbax.checkpoint.v1` writes them where it is there (Orbax 0.12), and `CheckpointManager` where it
is not. v1 reads what either has written, so a training may go on after an update of Orbax. A save
returns before everything is written, and the training and the stream go on meanwhile; until it is
complete, a checkpoint does not count as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import grain
import orbax.checkpoint as ocp

# Orbax 0.11 has another v1, or none.
V1: Any = getattr(ocp, "v1", None)
HAS_V1 = hasattr(V1, "load_checkpointables")
KEPT = 2


class Checkpoints(Protocol):
    """The checkpoints in a directory; the newest `KEPT` are kept.

    The iterator of a stream ends in `ElasticIterDataset`: v1 then has one file for it, which any
    number of processes restores.
    """

    def latest_step(self) -> int:
        """Returns the step of the newest checkpoint; 0 where there is none."""

    def save(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> None:
        """Begins to save, after the save that may still be running."""

    def restore(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> Any:
        """Restores the iterator in place, and returns the tree that was saved as `state`.

        Args:
          step: of the checkpoint.
          state: a tree of the same form.
          batches: an iterator over the same dataset.

        Raises:
          StateMismatchError: the state is one of another stream.
        """

    def close(self) -> None:
        """Waits until everything is written."""


def open_checkpoints(directory: Path) -> Checkpoints:
    """Opens a directory that may not exist yet, and removes checkpoints that a killed process has
    left unfinished.
    """
    return _V1(directory.absolute()) if HAS_V1 else _V0(directory.absolute())


class _V1:
    def __init__(self, directory: Path) -> None:
        training = V1.training
        # With the default policy a save is skipped while another one runs.
        every_call = training.save_decision_policies.FixedIntervalPolicy(1)
        self._checkpointer = training.Checkpointer(
            directory,
            save_decision_policy=every_call,
            preservation_policy=training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int:
        latest = self._checkpointer.latest
        return 0 if latest is None else int(latest.step)

    def save(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> None:
        self._checkpointer.save_checkpointables_async(step, {"state": state, "data": batches})

    def restore(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> Any:
        found = self._checkpointer.load_checkpointables(step, {"state": state, "data": batches})
        return found["state"]

    def close(self) -> None:
        self._checkpointer.close()


class _V0:
    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            directory, item_names=("state", "data"), options=options
        )

    def latest_step(self) -> int:
        return self._manager.latest_step() or 0

    def save(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> None:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(batches.get_state())
        )
        self._manager.save(step, args=arguments)

    def restore(self, step: int, state: Any, batches: grain.DatasetIterator[Any]) -> Any:
        # Earlier versions of the examples left the state of the stream to Grain's handler.
        by_grain = list((self._manager.directory / str(step) / "data").glob("process_*.json"))
        data = grain.checkpoint.CheckpointRestore(batches) if by_grain else ocp.args.JsonRestore()
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=data)
        found = self._manager.restore(step, args=arguments)
        if not by_grain:
            batches.set_state(found["data"])
        return found["state"]

    def close(self) -> None:
        self._manager.close()
