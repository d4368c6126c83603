"""One life of a training with the real openpi, in a process of its own: its training script with
the changes of docs/trainers/openpi.md, a small model, and a stream of ours; started by
test_openpi_training.py.

    python -m tests.support.openpi_training DATASET WORKDIR FEED straight|stopped|resumed

Prints a line of JSON for each step: its number, the rows of the batch that it trained on, and the
loss, all digits. A stopped life ends by SIGKILL in step 5, when the checkpoint of step 3 is
complete.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

import lerobot_grain as lg
from tests.support.openpi_script import import_script

NUM_STEPS = 8
SAVE_INTERVAL = 3
STOP_IN = 5
BATCH_SIZE = 4
ASSET = "org/name"


def script_path() -> Path:
    """Returns the training script of the clone of openpi that Python imports."""
    spec = importlib.util.find_spec("openpi")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[2] / "scripts" / "train.py"


def import_openpi() -> None:
    """Makes openpi importable without lerobot, which only its own data loader uses: here without
    any content, so whoever uses it fails.
    """
    try:
        found = importlib.util.find_spec("lerobot.common.datasets.lerobot_dataset")
    except ModuleNotFoundError:
        found = None
    if found is None:
        name = ""
        for part in ("lerobot", "common", "datasets", "lerobot_dataset"):
            parent, name = name, f"{name}.{part}".lstrip(".")
            sys.modules[name] = types.ModuleType(name)
            if parent:
                setattr(sys.modules[parent], part, sys.modules[name])
    # The smallest of SigLIP's variants in place of that with 400 million parameters.
    siglip = importlib.import_module("openpi.models.siglip")
    decode_variant = siglip.decode_variant
    vars(siglip)["decode_variant"] = lambda _: decode_variant("mu/14")


def config_of(workdir: Path, *, resume: bool) -> Any:
    config = importlib.import_module("openpi.training.config")
    transforms = importlib.import_module("openpi.transforms")
    libero = importlib.import_module("openpi.policies.libero_policy")
    pi0 = importlib.import_module("openpi.models.pi0_config")
    optimizer = importlib.import_module("openpi.training.optimizer")
    keys = {
        "observation/image": "observation.images.top",
        "observation/wrist_image": "observation.images.top",
        "observation/state": "observation.state",
        "actions": "action",
        "prompt": "prompt",
    }
    data = config.SimpleDataConfig(
        repo_id=ASSET,
        base_config=config.DataConfig(
            repack_transforms=transforms.Group(inputs=[transforms.RepackTransform(keys)])
        ),
        data_transforms=lambda model: transforms.Group(
            inputs=[libero.LiberoInputs(model_type=model.model_type)]
        ),
    )
    return config.TrainConfig(
        name="small",
        exp_name="run",
        model=pi0.Pi0Config(
            dtype="float32",
            paligemma_variant="dummy",
            action_expert_variant="dummy",
            action_horizon=4,
        ),
        lr_schedule=optimizer.CosineDecaySchedule(warmup_steps=2, peak_lr=1e-3, decay_steps=10),
        ema_decay=None,
        data=data,
        assets_base_dir=str(workdir / "assets"),
        checkpoint_base_dir=str(workdir / "checkpoints"),
        batch_size=BATCH_SIZE,
        num_train_steps=NUM_STEPS,
        save_interval=SAVE_INTERVAL,
        log_interval=1,
        wandb_enabled=False,
        resume=resume,
    )


def write_statistics(config: Any) -> dict[str, Any]:
    """Writes statistics for openpi's transforms, as its `compute_norm_stats.py` does."""
    normalize = importlib.import_module("openpi.shared.normalize")
    numbers = np.arange(7, dtype=np.float32)
    statistics = {
        key: normalize.NormStats(mean=numbers, std=numbers + 1, q01=-numbers, q99=numbers + 1)
        for key in ("state", "actions")
    }
    normalize.save(config.assets_dirs / ASSET, statistics)
    return statistics


def record(script: Any, config: Any, statistics: dict[str, Any] | None, *, stop: bool) -> None:
    """Lets the script print its steps; `statistics` are those that the batches were normalized
    with. The first number of a state is the row.
    """
    train_step = script.train_step
    stack_forest = script.common_utils.stack_forest

    def recorded(config: Any, rng: Any, state: Any, batch: Any) -> Any:
        after, info = train_step(config, rng, state, batch)
        return after, info | {"step": state.step, "state": batch[0].state}

    def seen(infos: list[dict[str, Any]]) -> Any:
        (info,) = infos
        rows = np.asarray(info.pop("state"))[:, 0]
        if statistics is not None:
            first = statistics["state"]
            rows = rows * (first.std[0] + 1e-6) + first.mean[0]
        step = int(info.pop("step"))
        loss = float(info["loss"]).hex()
        print(json.dumps([step, np.rint(rows).astype(int).tolist(), loss]), flush=True)
        if stop and step == STOP_IN:
            kill_after(config.checkpoint_dir / str(SAVE_INTERVAL))
        return stack_forest(infos)

    script.train_step = recorded
    script.common_utils = types.SimpleNamespace(stack_forest=seen)


def kill_after(checkpoint: Path) -> None:
    """Kills this process when a checkpoint has its final name."""
    deadline = time.monotonic() + 60
    while not checkpoint.is_dir():
        assert time.monotonic() < deadline, f"no checkpoint {checkpoint}"
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory: str, workdir: str, feed: str, life: str) -> None:
    import_openpi()
    repository = lg.open_repository(directory)
    vars(lg)["open_repository"] = lambda _: repository
    script = import_script(script_path(), feed)
    config = config_of(Path(workdir), resume=life == "resumed")
    statistics = write_statistics(config)
    record(script, config, statistics if feed == "openpi" else None, stop=life == "stopped")
    script.main(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
