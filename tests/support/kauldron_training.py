"""A training with the real Kauldron, in a process of its own: its Trainer on a stream of ours,
stopped and resumed by its own checkpointer; started by test_kauldron.py.

    python -m tests.support.kauldron_training DATASET WORKDIR

Prints a line of JSON for each life of a training: where its batches are, whether it is the straight
one, step -> loss in hexadecimal, and the parameters at its end.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import optax
from kauldron import kd

import lerobot_grain as lg
from lerobot_grain.kauldron import KauldronPipeline

NUM_STEPS = 50


class Model(nn.Module):
    """State -> actions of 4 frames."""

    state: kd.kontext.Key = kd.kontext.REQUIRED

    @nn.compact
    def __call__(self, state: jax.Array) -> dict[str, jax.Array]:
        hidden = nn.Dropout(0.1, deterministic=False)(nn.relu(nn.Dense(16)(state)))
        return {"actions": nn.Dense(4 * 7)(hidden).reshape(-1, 4, 7)}


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class Recorder(kd.train.metric_writer.NoopWriter):
    """Keeps the losses instead of writing them."""

    seen: Any = dataclasses.field(compare=False, hash=False)

    def write_step_metrics(self, *, step: int, aux: Any, **_: Any) -> None:
        self.seen[step] = float(aux.compute(flatten=False).loss_values["l2"]).hex()


def batches_of(directory: str, feed: str) -> grain.IterDataset[Any]:
    dataset = lg.LeRobotIterDataset(
        directory,
        features=["observation.state", "action", "index"],
        delta_timestamps={"action": [0.0, 0.1, 0.2, 0.3]},
        shuffle=lg.Shuffle(seed=3),
    )
    batches = dataset.batch(8, drop_remainder=True)
    return batches.pipe(lg.DeviceIterDataset) if feed == "device" else batches


def trainer_of(directory: str, workdir: Path, feed: str, stop_after: int | None, seen: Any) -> Any:
    return kd.train.Trainer(
        seed=1,
        workdir=workdir,
        train_ds=KauldronPipeline(batches=batches_of(directory, feed)),
        model=Model(state="batch['observation.state']"),
        train_losses={"l2": kd.losses.L2(preds="preds.actions", targets="batch.action")},
        optimizer=optax.adam(1e-2),
        num_train_steps=NUM_STEPS,
        stop_after_steps=stop_after,
        log_metrics_every=1,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=10),
        writer=Recorder(seen=seen),
    )


def main(directory: str, workdir: str) -> None:
    for feed in ("host", "device"):
        # Stopped 5 steps after a checkpoint, which are trained again.
        for name, stop_after in (("straight", None), ("stopped", 25), ("stopped", None)):
            seen: dict[int, str] = {}
            trainer = trainer_of(directory, Path(workdir) / feed / name, feed, stop_after, seen)
            state, _ = trainer.train()
            leaves = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state.params)]
            life = {"feed": feed, "name": name, "losses": seen, "parameters": leaves}
            print(json.dumps(life), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
