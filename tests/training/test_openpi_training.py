"""openpi's training script with the changes of docs/trainers/openpi.md, stopped and resumed: the
real one where openpi is installed, and a stand-in that calls its loader and checkpoints in the same
order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Camera, write_dataset
from tests.support import openpi_stand_in
from tests.support.openpi_script import FEEDS, import_script
from tests.support.openpi_training import BATCH_SIZE, NUM_STEPS, SAVE_INTERVAL, STOP_IN

TOP = "observation.images.top"
EPISODE_LENGTHS = (14, 10)
SEED = 42  # openpi's default


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> lg.Repository:
    """24 rows; the first number of each state is its row."""

    def values(episode: int, length: int) -> dict[str, np.ndarray]:
        rows = np.arange(length, dtype=np.float32) + sum(EPISODE_LENGTHS[:episode])
        state, action = np.full((2, length, 7), 0.5, np.float32)
        state[:, 0] = rows
        action[:] = rows[:, None] / 24
        return {"observation.state": state, "action": action}

    return lg.open_repository(
        write_dataset(
            tmp_path_factory.mktemp("openpi") / "data",
            episode_lengths=EPISODE_LENGTHS,
            fps=10,
            cameras=[Camera(key=TOP, height=48, width=96)],
            tasks=["pick", "place"],
            row_values=values,
        ).directory
    )


@pytest.fixture(scope="module")
def expected(repository: lg.Repository) -> list[list[int]]:
    """The rows of each step of an undisturbed run."""
    order = iter(lg.FrameOrderIterDataset(repository, shuffle=lg.Shuffle(seed=SEED)))
    return [[next(order) for _ in range(BATCH_SIZE)] for _ in range(NUM_STEPS)]


# --- the real script -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openpi_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where openpi looks for what it has downloaded: here a small vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece")
    home = tmp_path_factory.mktemp("openpi_home")
    (home / "big_vision").mkdir()
    with open(home / "big_vision" / "paligemma_tokenizer.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["pick the cube", "place it"]),
            model_writer=model,
            vocab_size=18,
            hard_vocab_limit=False,
        )
    return home


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not openpi_stand_in.IS_INSTALLED, reason="openpi is not installed")
@pytest.mark.parametrize("feed", FEEDS)
def test_the_real_script_stopped_and_resumed_trains_as_if_undisturbed(
    repository: lg.Repository,
    expected: list[list[int]],
    openpi_home: Path,
    tmp_path: Path,
    feed: str,
) -> None:
    def run(workdir: str, life: str) -> tuple[int, list[Any]]:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.openpi_training"),
                *(repository.description, str(tmp_path / workdir), feed, life),
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "HOME": str(tmp_path),
                # On the CPU, JAX 0.5.3 computes something else with a train step out of its cache.
                "JAX_ENABLE_COMPILATION_CACHE": "false",
                "JAX_PLATFORMS": "cpu",
                "OPENPI_DATA_HOME": str(openpi_home),
            },
        )
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        # openpi writes lines of its own between them.
        lines = [line for line in ended.stdout.splitlines() if line.startswith("[")]
        return ended.returncode, [json.loads(line) for line in lines]

    code, straight = run("straight", "straight")
    assert code == 0
    code, stopped = run("stopped", "stopped")
    assert code == -signal.SIGKILL
    code, resumed = run("stopped", "resumed")
    assert code == 0
    assert [step[:2] for step in straight] == [[step, rows] for step, rows in enumerate(expected)]
    assert stopped == straight[: STOP_IN + 1]
    assert resumed == straight[SAVE_INTERVAL + 1 :]


# --- the stand-in --------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def life(
    script: Any, directory: Path, *, resume: bool, stop: bool = False
) -> list[tuple[int, list[int]]]:
    """Runs the script; returns step and rows of each step."""
    steps: list[tuple[int, list[int]]] = []
    add = script.train_step

    def train_step(config: Any, rng: Any, state: Any, batch: Any) -> Any:
        step = int(state["step"])
        steps.append((step, np.asarray(batch[0].state)[:, 0].astype(int).tolist()))
        if stop and step == STOP_IN:
            deadline = time.monotonic() + 30
            while not (directory / str(SAVE_INTERVAL)).is_dir():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise StoppedError
        return add(config, rng, state, batch)

    config = types.SimpleNamespace(
        checkpoint_dir=directory,
        resume=resume,
        seed=SEED,
        batch_size=BATCH_SIZE,
        num_train_steps=NUM_STEPS,
        save_interval=SAVE_INTERVAL,
        log_interval=1,
        model=types.SimpleNamespace(action_horizon=4, action_dim=32, max_token_len=48),
        assets_dirs=None,
        data=types.SimpleNamespace(create=lambda *_: DATA_CONFIG),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "train_step", train_step)
        with contextlib.suppress(StoppedError):
            script.main(config)
    return steps


def shape(example: dict[str, Any]) -> dict[str, Any]:
    """openpi's transforms in one."""
    picture = lg.resize_with_pad(example[TOP], (224, 224))
    pictures = dict.fromkeys(("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"), picture)
    tokens, mask = openpi_stand_in.PaligemmaTokenizer(8).tokenize(str(example["prompt"]))
    return {
        "image": pictures,
        "image_mask": dict.fromkeys(pictures, np.True_),
        "state": example["observation.state"],
        "actions": example["action"],
        "tokenized_prompt": tokens.astype(np.int32),
        "tokenized_prompt_mask": mask,
    }


DATA_CONFIG = types.SimpleNamespace(
    repack_transforms=types.SimpleNamespace(inputs=[]),
    data_transforms=types.SimpleNamespace(inputs=[shape]),
    model_transforms=types.SimpleNamespace(inputs=[]),
    norm_stats=None,
    use_quantile_norm=False,
)


@pytest.mark.parametrize("feed", FEEDS)
def test_a_script_that_is_stopped_and_resumed_trains_on_the_same_batches(
    repository: lg.Repository,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    feed: str,
) -> None:
    monkeypatch.setattr(lg, "open_repository", lambda _: repository)
    with openpi_stand_in.importable():
        script = import_script(openpi_stand_in.SCRIPT, feed)
        straight = life(script, tmp_path / "straight", resume=False)
        stopped = life(script, tmp_path / "stopped", resume=False, stop=True)
        resumed = life(script, tmp_path / "stopped", resume=True)
    assert straight == list(enumerate(expected))
    assert stopped == straight[: STOP_IN + 1]
    assert resumed == straight[SAVE_INTERVAL + 1 :]
