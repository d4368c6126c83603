"""The examples: interrupted and resumed they end with the same parameters, they learn, and they run
as a user runs them.

Trainings are a few steps long here, on 16 frames an episode. How far the examples come
in the minutes that they are made for is measured by `benchmarks/learning.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.installed import is_silent

pytest.importorskip("flax", minversion="0.11")
nnx = pytest.importorskip("flax.nnx")
ocp = pytest.importorskip("orbax.checkpoint")
for name in ("optax", "matplotlib", "tqdm"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = ("behaviour_cloning", "act", "diffusion_policy", "goal_reaching", "mixture")
LARGE = ("act", "diffusion_policy")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes the examples importable as they find each other, and lets a second run of one take what
    the first has compiled.
    """
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    sys.path.insert(0, str(EXAMPLES))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    sys.path.remove(str(EXAMPLES))
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Returns for every example the options that name small datasets."""
    directory = tmp_path_factory.mktemp("worlds")
    write_world = importlib.import_module("worlds").write_world
    small: dict[str, Any] = {"num_episodes": 10, "episode_length": 16}
    write_dataset(
        directory / "state",
        episode_lengths=[16] * 10,
        fps=10,
        cameras=[],
        state_size=2,
        action_size=2,
    )
    write_world(directory / "two_hands", **small)
    write_world(
        directory / "one_hand",
        **small,
        fps=20,
        cameras=("observation.images.wrist",),
        image_size=(72, 96),
        both_ways=True,
    )
    pictures = ["--repository", str(directory / "two_hands")]
    return {
        "behaviour_cloning": ["--repository", str(directory / "state")],
        "act": pictures,
        "diffusion_policy": pictures,
        "goal_reaching": pictures,
        "mixture": [
            "--mix",
            str(directory / "two_hands"),
            "3",
            "--mix",
            str(directory / "one_hand"),
            "1",
        ],
    }


def run(name: str, sources: dict[str, list[str]], directory: Path, *options: str) -> Any:
    """Runs an example. Only a run that is resumed plots its losses, which takes 0.4 s of a core."""
    arguments = [
        *sources[name],
        "--directory",
        str(directory),
        "--batch-size",
        "8",
        "--width",
        "16",
        "--save-every",
        "2",
        "--image-size",
        "48",
        "64",
        *options,
    ]
    example = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        if "--resume" not in options:
            patch.setattr(importlib.import_module("training")._Log, "plot", lambda *_: None)
        return example.main(arguments)


def parameters(policy: Any) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy, nnx.Param))]


# Two have large networks, which take 12 s to compile: the next test runs what they compute.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in LARGE else []) for name in NAMES],
)
def test_an_interrupted_run_ends_with_the_same_parameters(
    name: str, sources: dict[str, list[str]], tmp_path: Path
) -> None:
    straight = run(name, sources, tmp_path / "straight", "--steps", "5")
    # Stopped after the checkpoint of step 2: what came after it is computed again.
    # Decoded frames on disk do not change what is read.
    kept = ["--frame-cache-gb", "1"]
    run(name, sources, tmp_path / "stopped", "--steps", "5", "--stop-at", "3", *kept)
    resumed = run(name, sources, tmp_path / "stopped", "--steps", "5", "--resume", *kept)
    has_frames = any((tmp_path / "kept" / "frames").glob("*.frames"))  # where conftest.py says
    assert has_frames == (name != "behaviour_cloning")
    assert list(straight.errors) == [0, 2, 4, 5]
    assert resumed.errors == straight.errors
    pairs = list(zip(parameters(straight.policy), parameters(resumed.policy), strict=True))
    assert all(np.array_equal(one, other) for one, other in pairs)
    lines = [
        [json.loads(line) for line in (tmp_path / run / "losses.jsonl").read_text().splitlines()]
        for run in ("straight", "stopped")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "loss" in line] == [1, 2, 3, 4, 5]
    assert (tmp_path / "stopped" / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", LARGE)
def test_loss_and_error_of_a_large_policy_have_their_shapes(
    name: str, sources: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, which takes no compilation: on batches of the stream and of the held-out one."""

    def trace(policy: Any, dataset: Any, held_out: Any, *, loss: Any, error: Any, **_: Any) -> Any:
        key = jax.random.key(0)
        found = []
        for stream, function in ((dataset, loss), (held_out["held-out"], error)):
            with contextlib.closing(iter(stream.batch(8))) as batches:
                found.append(function(policy, next(batches), key))
        return found

    monkeypatch.setattr(importlib.import_module(name), "train", trace)
    shapes = jax.eval_shape(lambda: run(name, sources, tmp_path))
    assert [(each.shape, each.dtype) for each in shapes] == [((), "float32"), ((8,), "float32")]


def test_behaviour_cloning_learns_and_blind_it_does_not(
    sources: dict[str, list[str]], tmp_path: Path
) -> None:
    options = ("--steps", "60", "--width", "64", "--save-every", "60")
    errors = {}
    for kind in ([], ["--blind"]):
        found = run(
            "behaviour_cloning", sources, tmp_path / f"run{len(kind)}", *options, *kind
        ).errors
        errors[len(kind)] = found[60]["held-out"] / found[0]["held-out"]
    assert errors[0] < 0.5
    assert errors[1] > 0.9


@pytest.mark.long
def test_goal_reaching_reaches_the_goal_and_without_it_does_not(tmp_path: Path) -> None:
    example = importlib.import_module("goal_reaching")
    example.write_rolls(tmp_path / "rolls", num_episodes=120)
    named = {"goal_reaching": ["--repository", str(tmp_path / "rolls")]}
    options = ("--steps", "150", "--width", "64", "--save-every", "150", "--batch-size", "32")
    size = ("--image-size", str(example.SIZE), str(example.SIZE))
    results = {}
    for kind in ((), ("--blind",)):
        results[kind] = run(
            "goal_reaching", named, tmp_path / f"run{len(kind)}", *options, *size, *kind
        )
    errors = {
        kind: result.errors[150]["held-out"] / result.errors[0]["held-out"]
        for kind, result in results.items()
    }
    assert errors[()] < 0.3
    assert errors["--blind",] > 0.9
    # A ball that is led for a second.
    assert example.missed_by(results[()].policy) < example.SPEED / 2


def test_a_directory_that_holds_a_training_is_not_overwritten(
    sources: dict[str, list[str]], tmp_path: Path
) -> None:
    run("behaviour_cloning", sources, tmp_path, "--steps", "1")
    with pytest.raises(
        SystemExit,
        match="holds a training already; go on with --resume, or choose another --directory",
    ):
        run("behaviour_cloning", sources, tmp_path, "--steps", "1")


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    sources: dict[str, list[str]], tmp_path: Path
) -> None:
    for directory, *options in (
        ("straight",),
        ("stopped", "--stop-at", "1"),
        ("stopped", "--resume"),
    ):
        run("behaviour_cloning", sources, tmp_path / directory, "--steps", "2", *options)
    assert (tmp_path / "straight" / "losses.jsonl").read_text() == (
        tmp_path / "stopped" / "losses.jsonl"
    ).read_text()


def test_a_run_that_orbax_v0_has_saved_goes_on_with_v1(
    sources: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first versions of the examples have saved: the stream by Grain's handler."""
    checkpoints = importlib.import_module("checkpoints")
    if not checkpoints.HAS_V1:
        pytest.skip("this Orbax has no v1")

    def save(self: Any, step: int, state: Any, batches: Any) -> None:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches)
        )
        self._manager.save(step, args=arguments)

    run("behaviour_cloning", sources, tmp_path / "straight", "--steps", "4")
    stopped = ("behaviour_cloning", sources, tmp_path / "stopped", "--steps", "4")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "HAS_V1", False)
        patch.setattr(checkpoints._V0, "save", save)
        run(*stopped, "--stop-at", "2")
    files = [path.name for path in (tmp_path / "stopped" / "checkpoints" / "2" / "data").iterdir()]
    assert "process_0-of-1.json" in files
    run(*stopped, "--resume")
    assert (tmp_path / "straight" / "losses.jsonl").read_text() == (
        tmp_path / "stopped" / "losses.jsonl"
    ).read_text()


def test_too_few_held_out_rows_are_an_error(sources: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match="held-out: fewer rows than --batch-size 17 are held out; make it smaller"
    ):
        run("behaviour_cloning", sources, tmp_path, "--batch-size", "17")


@is_silent
def test_an_example_writes_serves_trains_and_prints_no_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "behaviour_cloning.py"),
        "--steps",
        "4",
        "--save-every",
        "2",
    ]
    environment = os.environ | {"no_proxy": "localhost,127.0.0.1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [
        re.sub(r"[0-9a-f]{12}|\d+\.\d+|\d+ ms", "_", line.strip())
        for line in re.split(r"[\r\n]+", done.stdout)
        if line.strip()
    ]
    assert lines == [
        "writing a small dataset into runs/behaviour_cloning/robot",
        "demo/robot@_: 50 episodes, 5,000 frames at 10 fps",
        *(f"step {step}: held-out error _" for step in (0, 2, 4)),
        "step 4: held-out error _; at the start held-out error _. _ a step, _% of the time spent "
        "waiting for data. runs/behaviour_cloning/losses.png",
    ]
    # Standard error has the progress bar and nothing else.
    assert [
        line
        for line in re.split(r"[\r\n]+", done.stderr)
        if line.strip() and not re.search(r"%\|.*\d/4 \[", line)
    ] == []
    assert sorted(path.name for path in (tmp_path / "runs" / "behaviour_cloning").iterdir()) == [
        *("cache", "checkpoints", "losses.jsonl", "losses.png", "robot"),
    ]


def test_robots_of_a_mixture_get_one_form(sources: dict[str, list[str]]) -> None:
    mixture = importlib.import_module("mixture")
    found = {}
    for robot, name in enumerate(("two_hands", "one_hand")):
        repository = lg.open_repository(str(Path(sources["mixture"][1]).parent / name))
        with contextlib.closing(
            iter(mixture.stream(repository, robot, image_size=(64, 64), shuffle=None))
        ) as examples:
            found[name] = next(examples)
    shapes = {key: (value.dtype.name, value.shape) for key, value in found["two_hands"].items()}
    assert shapes == {
        key: (value.dtype.name, value.shape) for key, value in found["one_hand"].items()
    }
    assert shapes["pictures"] == ("uint8", (2, 64, 64, 3))
    assert [found[name]["robot"].item() for name in found] == [0, 1]
    assert [found[name]["pictures"].any(axis=(1, 2, 3)).tolist() for name in found] == [
        [True, True],
        [True, False],
    ]
    assert [(~found[name]["action_dim_is_pad"]).sum(axis=-1).tolist() for name in found] == [
        [4] * 8,
        [2] * 8,
    ]
    # An action is the velocity on a circle of one turn in 4 seconds: eight actions a tenth of a
    # second apart turn by 9 degrees each, at either frame rate.
    for name in found:
        stats = lg.open_repository(str(Path(sources["mixture"][1]).parent / name)).stats
        assert stats is not None
        actions = (
            found[name]["action"][:, : len(stats["action"]["mean"])] * stats["action"]["std"]
            + stats["action"]["mean"]
        )[:, :2]
        turns = np.diff(np.unwrap(np.arctan2(actions[:, 1], actions[:, 0])))
        assert np.allclose(np.abs(turns), np.pi / 20, atol=0.01)
