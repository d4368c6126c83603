"""A training with openpi's real `scripts/train.py` on a stream of ours, undisturbed, and stopped
and resumed; started by test_openpi_training.py.

    python -m tests.support.openpi_training OPENPI DATASET WORKDIR

OPENPI is a copy of its repository. Its packages must be importable, with these exceptions: lerobot,
of which openpi's own loader alone has need, is stood in for where it is missing, and so is the
tokenizer, which is downloaded. The model is pi0 with openpi's `dummy` sizes, and the smallest
vision tower that it knows.

Changed are four lines of the script, those of docs/trainers/openpi.md. Prints a line of JSON for
each life: hashes of the batches that were trained on, and step -> loss in hexadecimal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lerobot_grain as lg

PAGE = Path(__file__).parents[2] / "docs" / "trainers" / "openpi.md"
NUM_STEPS, STOPPED_AFTER = 20, 10
STATE_FILE = 'checkpoint_manager.directory / f"data-{checkpoint_manager.latest_step()}.json"'
# Lines of the script -> what the page has in their place.
CHANGES = {
    """    batch = next(data_iter)
    logging.info""": f"""    if resuming:
        data_iter.set_state(json.loads(({STATE_FILE}).read_text()))
    batch = next(data_iter)
    logging.info""",
    """        batch = next(data_iter)

""": """        data_state = data_iter.get_state()
        batch = next(data_iter)

""",
    """train_state, data_loader, step)
""": """train_state, data_loader, step)
            data_state_file = checkpoint_manager.directory / f"data-{step}.json"
            data_state_file.write_text(json.dumps(data_state))
""",
}


class Recording:
    """A loader whose batches are hashed as they are taken."""

    def __init__(self, loader: Any, seen: list[str]) -> None:
        self._loader, self._seen = loader, seen

    def data_config(self) -> Any:
        return self._loader.data_config()

    def __iter__(self) -> Any:
        self._iterator = iter(self._loader)
        self.get_state, self.set_state = self._iterator.get_state, self._iterator.set_state
        return self

    def __next__(self) -> Any:
        batch = next(self._iterator)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(batch):
            digest.update(np.asarray(leaf).tobytes())
        self._seen.append(digest.hexdigest()[:16])
        return batch

    def close(self) -> None:
        self._iterator.close()


def tokenize(text: str) -> tuple[Any, Any]:
    """Stands in for PaligemmaTokenizer(48).tokenize."""
    tokens = np.zeros(48, np.int32)
    tokens[: len(text)] = [ord(letter) for letter in text[:48]]
    return tokens, tokens > 0


def import_openpi(openpi: Path) -> types.ModuleType:
    """Returns openpi's script with the changes of the page, its model made small."""
    sys.path[:0] = [str(openpi / "src"), str(openpi / "packages" / "openpi-client" / "src")]
    if importlib.util.find_spec("lerobot") is None:
        names = ["lerobot", "lerobot.common", "lerobot.common.datasets"]
        for name in [*names, "lerobot.common.datasets.lerobot_dataset"]:
            sys.modules[name] = types.ModuleType(name)
    from openpi.models import siglip

    of_variant = siglip.decode_variant
    siglip.decode_variant = lambda _: of_variant("mu/14")
    path = openpi / "scripts" / "train.py"
    source = path.read_text()
    for before, after in CHANGES.items():
        assert source.count(before) == 1, f"{path} has {source.count(before)} times {before!r}"
        source = source.replace(before, after)
    module = types.ModuleType("train")
    vars(module)["json"] = json
    sys.modules["train"] = module  # openpi checks annotations, by the module's names
    exec(compile(source, str(path), "exec"), vars(module))
    return module


def train(openpi: types.ModuleType, directory: str, workdir: Path, num_steps: int) -> Any:
    from openpi.models import model
    from openpi.training import config as configs
    from openpi.training import data_loader

    config = dataclasses.replace(
        configs.get_config("debug"),
        batch_size=2,
        checkpoint_base_dir=str(workdir),
        exp_name="test",
        overwrite=False,
        resume=workdir.exists(),
        num_train_steps=num_steps,
        save_interval=100,
        log_interval=1,
    )
    hashes: list[str] = []
    losses: dict[int, str] = {}
    loaders: list[Recording] = []
    ours = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]

    def create_data_loader(config: Any, *, sharding: Any, shuffle: bool) -> Recording:
        assert shuffle
        names = {
            "config": config,
            "data_config": config.data.create(config.assets_dirs, config.model),
            "data_sharding": sharding,
            "tokenizer": types.SimpleNamespace(tokenize=tokenize),
            "Observation": model.Observation,
        }
        exec(ours, names)
        loaders.append(Recording(names["data_loader"], hashes))
        return loaders[-1]

    def log(values: Any, *, step: int) -> None:
        if "loss" in values:
            losses[step] = float(values["loss"]).hex()

    opening = lg.open_repository
    vars(lg)["open_repository"] = lambda _: opening(directory)
    data_loader.create_data_loader = create_data_loader
    vars(openpi)["wandb"].log = log
    try:
        openpi.main(config)
    finally:
        vars(lg)["open_repository"] = opening
        for loader in loaders:
            loader.close()
    # The last one was taken and not trained on.
    return {"batches": hashes[:-1], "losses": losses}


def main(openpi: str, directory: str, workdir: str) -> None:
    module = import_openpi(Path(openpi).absolute())
    for name, num_steps in (
        ("straight", NUM_STEPS),
        ("stopped", STOPPED_AFTER),
        ("stopped", NUM_STEPS),
    ):
        life = train(module, directory, Path(workdir) / name, num_steps)
        print(json.dumps({"name": name, **life}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
