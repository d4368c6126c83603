"""Features that dependency versions still in use lack, each with the version from which on the
substitute is superfluous.

Nothing else of the package asks for a version. Each dependency is imported when it is asked for, by
the module that needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np


def installed(*names: str) -> str:
    """Returns the installed versions of some packages, for a message."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def array_namespace(array: Any) -> Any:
    """Returns `array.__array_namespace__()`, the module with the functions of its kind of arrays
    (NumPy 2.0; before, arrays have none).
    """
    return np if isinstance(array, np.ndarray) else array.__array_namespace__()


def jax_enable_x64(enabled: bool) -> AbstractContextManager[Any]:
    """Returns `jax.enable_x64(enabled)`, a context of this thread (JAX 0.8; before,
    `jax.experimental` has it).
    """
    import jax

    has_it: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    context: AbstractContextManager[Any] = has_it.enable_x64(enabled)
    return context


def hub_is_offline() -> bool:
    """Returns `huggingface_hub.is_offline_mode()` (huggingface_hub 1.10 has it, 1.0 has only a
    constant).
    """
    import huggingface_hub

    if hasattr(huggingface_hub, "is_offline_mode"):
        return bool(huggingface_hub.is_offline_mode())
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def cached_repo_tree(repo_id: str, *, revision: str, cache_dir: str) -> list[Any] | None:
    """Returns the files of a dataset's commit, as huggingface_hub keeps their list next to a
    download (1.23).

    None where the list was not kept: older versions keep none.
    """
    import huggingface_hub

    if not hasattr(huggingface_hub, "get_cached_repo_tree"):
        return None
    try:
        return list(
            huggingface_hub.get_cached_repo_tree(
                repo_id, repo_type="dataset", revision=revision, cache_dir=cache_dir
            )
        )
    except huggingface_hub.errors.CachedRepoTreeNotFoundError:
        return None


def decoder_transforms() -> Any | None:
    """Returns `torchcodec.transforms` (torchcodec 0.10); None where it has none, and
    `resized_frames` is used.
    """
    if importlib.util.find_spec("torchcodec.transforms") is None:
        return None
    return importlib.import_module("torchcodec.transforms")


def resized_frames(frames: Any, image_size: tuple[int, int]) -> Any:
    """Returns uint8 tensors `(frames, height, width, 3)` in another size, bilinear and anti-aliased
    (torchcodec 0.10 does it itself).

    Its `Resize` is FFmpeg's, so pixels differ a little.
    """
    functional = importlib.import_module("torch.nn.functional")
    resized = functional.interpolate(
        frames.permute(0, 3, 1, 2), size=image_size, mode="bilinear", antialias=True
    )
    return resized.permute(0, 2, 3, 1)


def decoder_turns_frames(decoders: Any) -> bool:
    """Returns whether `torchcodec.decoders` turns frames as their file says (torchcodec 0.11);
    where not, `turned_frames` does.
    """
    return any(
        field.name == "rotation" for field in dataclasses.fields(decoders.VideoStreamMetadata)
    )


def turned_frames(frames: Any, degrees: int) -> Any:
    """Returns tensors `(frames, height, width, 3)` turned clockwise by 90, 180 or 270 degrees
    (torchcodec 0.11 does it itself).
    """
    return importlib.import_module("torch").rot90(frames, -degrees // 90, (1, 2))


@contextlib.contextmanager
def triton_hidden_from_torch() -> Iterator[None]:
    """Lets torch be imported after TensorFlow: as if Triton was not installed.

    torchcodec imports torch._dynamo, which imports Triton where it is installed, as torch's default
    build for Linux has it. After TensorFlow that was reported to end the interpreter with a
    segmentation fault; the test has stand-ins for both. torch remembers that there is no Triton, so
    it does not try again later.
    """
    if "tensorflow" not in sys.modules or "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        del sys.modules["triton"]
