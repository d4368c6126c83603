"""What openpi's training script and `openpi_data.py` of docs/trainers/openpi.md take of openpi,
written after its public sources for machines without it: `models/model.py`, `models/tokenizer.py`,
`transforms.py`, `training/checkpoints.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

IS_INSTALLED = importlib.util.find_spec("openpi") is not None
SCRIPT = Path(__file__).with_name("openpi_train.py")


@dataclass
class Observation:
    """`openpi.models.model.Observation`, with the checks that its annotations make."""

    images: dict[str, jax.Array]
    image_masks: dict[str, jax.Array]
    state: jax.Array
    tokenized_prompt: jax.Array | None
    tokenized_prompt_mask: jax.Array | None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Observation:
        assert ("tokenized_prompt" in data) == ("tokenized_prompt_mask" in data)
        for key, image in data["image"].items():
            # in place, as openpi does it
            data["image"][key] = image.astype(np.float32) / 255.0 * 2.0 - 1.0
        made = cls(
            data["image"],
            data["image_mask"],
            data["state"],
            data.get("tokenized_prompt"),
            data.get("tokenized_prompt_mask"),
        )
        size = len(made.state)
        assert (
            made.images.keys()
            == made.image_masks.keys()
            == {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"}
        )
        for key, image in made.images.items():
            assert (image.shape, image.dtype) == ((size, 224, 224, 3), jnp.float32)
            assert (made.image_masks[key].shape, made.image_masks[key].dtype) == (
                (size,),
                jnp.bool_,
            )
        assert (made.state.ndim, made.state.dtype) == (2, jnp.float32)
        if made.tokenized_prompt is not None:
            assert made.tokenized_prompt.dtype == jnp.int32
            assert made.tokenized_prompt_mask is not None
            assert (made.tokenized_prompt_mask.shape, made.tokenized_prompt_mask.dtype) == (
                made.tokenized_prompt.shape,
                jnp.bool_,
            )
        return made


@dataclass
class PaligemmaTokenizer:
    """Letters as tokens."""

    max_len: int = 48

    def tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        letters = [ord(letter) for letter in text[: self.max_len]]
        tokens = np.array(letters + [0] * (self.max_len - len(letters)))
        return tokens, tokens > 0


@dataclass
class Normalize:
    norm_stats: Any
    use_quantiles: bool = False

    def __call__(self, example: Any) -> Any:
        assert self.norm_stats is None
        return example


# --- training/checkpoints.py ---------------------------------------------------------------------


def initialize_checkpoint_dir(directory: Path, *, resume: bool) -> tuple[Any, bool]:
    directory.mkdir(parents=True, exist_ok=True)
    manager = ocp.CheckpointManager(
        directory,
        item_handlers={"train_state": ocp.PyTreeCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(max_to_keep=1, create=False),
    )
    return manager, resume and tuple(manager.all_steps()) not in [(), (0,)]


def save_state(manager: Any, state: Any, data_loader: Any, step: int) -> None:
    data_loader.data_config()
    manager.save(step, {"train_state": state})


def restore_state(manager: Any, state: Any, data_loader: Any) -> Any:
    del data_loader
    return manager.restore(None, items={"train_state": state})["train_state"]


def _no_data_loader(*_: Any, **__: Any) -> None:
    raise AssertionError("the data are those of openpi")


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Makes `openpi` importable where it is not installed, for as long as the context lasts."""
    contents: dict[str, dict[str, Any]] = {
        "openpi": {},
        "openpi.models": {},
        "openpi.models.model": {"Observation": Observation},
        "openpi.models.tokenizer": {"PaligemmaTokenizer": PaligemmaTokenizer},
        "openpi.transforms": {"Normalize": Normalize},
        "openpi.training": {},
        "openpi.training.checkpoints": {
            "initialize_checkpoint_dir": initialize_checkpoint_dir,
            "save_state": save_state,
            "restore_state": restore_state,
        },
        "openpi.training.data_loader": {"create_data_loader": _no_data_loader},
        "openpi.training.weight_loaders": {
            "initial_state": lambda: {"step": np.zeros((), np.int32), "sum": np.zeros(())}
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in contents.items():
            module = types.ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        yield
