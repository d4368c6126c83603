"""The examples: interrupted and resumed they end with the same parameters, they learn, and they run as a user runs them.

Trainings are a few steps long here, on pictures of 16 frames an episode. How far the examples come in the minutes that they are made for is
measured by `benchmarks/learning.py`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lerobot_grain.testing import write_dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = ("behaviour_cloning", "act", "diffusion_policy", "mixture")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes the examples importable as they find each other, and lets a second run of one take what the first has compiled."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}
    sys.path.insert(0, str(EXAMPLES))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    sys.path.remove(str(EXAMPLES))
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Returns for every example the options that name small data sets."""
    directory = tmp_path_factory.mktemp("worlds")
    write_world = importlib.import_module("worlds").write_world
    small: dict[str, Any] = {"num_episodes": 10, "episode_length": 16}
    write_dataset(directory / "state", episode_lengths=[16] * 10, fps=10, cameras=[], state_size=2, action_size=2)
    write_world(directory / "two_hands", **small)
    write_world(directory / "one_hand", **small, fps=20, cameras=("observation.images.wrist",), image_size=(72, 96), both_ways=True)
    pictures = ["--repository", str(directory / "two_hands")]
    return {
        "behaviour_cloning": ["--repository", str(directory / "state")],
        "act": pictures,
        "diffusion_policy": pictures,
        "mixture": ["--mix", str(directory / "two_hands"), "3", "--mix", str(directory / "one_hand"), "1"],
    }


def run(name: str, sources: dict[str, list[str]], directory: Path, *options: str) -> Any:
    arguments = [*sources[name], "--directory", str(directory), "--batch-size", "8", "--width", "16", "--save-every", "2", *options]
    return importlib.import_module(name).main(arguments)


def parameters(policy: Any) -> list[np.ndarray[Any, Any]]:
    from flax import nnx

    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy, nnx.Param))]


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_with_the_same_parameters(name: str, sources: dict[str, list[str]], tmp_path: Path) -> None:
    straight = run(name, sources, tmp_path / "straight", "--steps", "5")
    # Stopped behind the checkpoint of step 2: what came after it is computed again.
    run(name, sources, tmp_path / "stopped", "--steps", "5", "--stop-at", "3")
    resumed = run(name, sources, tmp_path / "stopped", "--steps", "5", "--resume")
    assert list(straight.errors) == [0, 2, 4, 5]
    assert resumed.errors == straight.errors
    pairs = list(zip(parameters(straight.policy), parameters(resumed.policy), strict=True))
    assert all(np.array_equal(one, other) for one, other in pairs)
    lines = [[json.loads(line) for line in (tmp_path / run / "losses.jsonl").read_text().splitlines()] for run in ("straight", "stopped")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "loss" in line] == [1, 2, 3, 4, 5]
    assert (tmp_path / "stopped" / "losses.png").read_bytes().startswith(b"\x89PNG")
