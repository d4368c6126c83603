"""Kills a training with SIGKILL at random moments, resumes it each time, and compares every loss
with a training that was left alone.

    # on a small dataset, written and served on this machine
    python examples/kill_and_compare.py --kills 20 --plot resume_after_kill.png
    # any LeRobotDataset v3.0 of the Hub
    python examples/kill_and_compare.py --kills 20 --repository lerobot/pusht

It kills `resume_after_kill.py` while it starts, while it trains, and while it writes a
checkpoint. Every step of every life, also those that are trained once more after a kill, must have
the loss and the batch of the straight run, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from lerobot_grain.testing import Camera, LoopbackHub, write_dataset

TRAINING = Path(__file__).with_name("resume_after_kill.py")
# When processes are killed, in turn, so that no seed misses one of them.
MOMENTS = ("training", "saving", "starting")
# A random part of these passes before the kill: about what a start, and what a checkpoint, take on
# a small machine.
STARTING_SECONDS, SAVING_SECONDS = 4.0, 0.05


class Line(NamedTuple):
    """A line of the log: the loss in hexadecimal, so without rounding, and a hash of the batch."""

    step: int
    loss: str
    batch: str


def read_log(directory: Path) -> list[Line]:
    """Returns the steps of all lives of a training, in the order of time."""
    path = directory / "losses.txt"
    lines = path.read_text().split("\n") if path.exists() else [""]
    # The text after the last line break is still being written.
    return [
        Line(int(step), loss, batch) for step, loss, batch in (line.split() for line in lines[:-1])
    ]


def is_saving(directory: Path) -> bool:
    """Returns whether a checkpoint is being written, or was when the process was killed; a process
    begins by removing what is left.
    """
    return any((directory / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def wait_for(
    moment: str, step: int, process: subprocess.Popen[bytes], directory: Path, chance: random.Random
) -> None:
    """Returns at a random moment, while the process starts, or else after it has trained `step`; or
    when it has ended.
    """
    if moment == "starting":
        time.sleep(chance.uniform(0.0, STARTING_SECONDS))
        return
    already = len(read_log(directory))
    while process.poll() is None:
        log = read_log(directory)
        if (
            len(log) > already
            and log[-1].step >= step
            and (moment == "training" or is_saving(directory))
        ):
            time.sleep(chance.uniform(0.0, SAVING_SECONDS))
            return
        time.sleep(0.001)


def train(
    arguments: list[str],
    directory: Path,
    environment: dict[str, str],
    *,
    steps: int,
    kills: int,
    seed: int,
) -> list[int]:
    """Trains to the end, killing the first processes.

    Returns the last step of each that was killed.
    """
    chance = random.Random(seed)
    command = [
        sys.executable,
        str(TRAINING),
        *arguments,
        "--steps",
        str(steps),
        "--directory",
        str(directory),
        "--resume",
    ]
    killed: list[int] = []
    for number in itertools.count():
        with subprocess.Popen(command, env=environment) as process:
            if number < kills:
                moment = MOMENTS[number % len(MOMENTS)]
                # Spread over the steps, but for the last tenth: the training must not end before it
                # is killed for the last time.
                wait_for(
                    moment,
                    int(0.9 * steps * (number + chance.random()) / kills),
                    process,
                    directory,
                    chance,
                )
                process.kill()
        if process.returncode == 0:
            break
        if number >= kills:
            raise SystemExit(
                f"the training ended with exit status {process.returncode}; expected 0"
            )
        killed.append(max((line.step for line in read_log(directory)[-1:]), default=0))
        left = (
            ", which leaves an unfinished checkpoint"
            if moment != "starting" and is_saving(directory)
            else ""
        )
        print(f"kill {len(killed)}: while {moment}, after step {killed[-1]}{left}", flush=True)
    return killed


def compare(straight: list[Line], lives: list[Line]) -> None:
    """Ends the program unless every line of every life is in the straight run, and every line of it
    was written in some life.
    """
    expected = {line.step: line for line in straight}
    if different := [line for line in lives if line != expected[line.step]]:
        raise SystemExit(
            f"{len(different)} of {len(lives)} lines differ; the first is {different[0]}, "
            f"expected {expected[different[0].step]}"
        )
    if missing := sorted(expected.keys() - {line.step for line in lives}):
        raise SystemExit(
            f"{len(missing)} of {len(expected)} steps were not trained; the first is {missing[0]}"
        )


def plot(path: Path, straight: list[Line], lives: list[Line], killed: list[int]) -> None:
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    last = list({line.step: line for line in lives}.values())
    for lines, label, width, color in (
        (straight, "left alone", 4, "tab:orange"),
        (last, f"killed {len(killed)} times", 1, "black"),
    ):
        losses = [float.fromhex(line.loss) for line in lines]
        axes.plot([line.step for line in lines], losses, label=label, linewidth=width, color=color)
    axes.plot(killed, [0.0] * len(killed), "|", markersize=12, color="tab:red", label="SIGKILL")
    axes.set(xlabel="step", ylabel="loss", xlim=(0, len(straight)))
    axes.legend()
    figure.savefig(path, dpi=100)


@contextlib.contextmanager
def served(repository: str | None, directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the repository to train on and the environment to do it in."""
    if repository is not None:
        yield repository, dict(os.environ)
        return
    camera = Camera(height=64, width=96)
    write_dataset(
        directory / "dataset",
        episode_lengths=[50] * 12,
        fps=10,
        cameras=[camera],
        state_size=2,
        action_size=2,
    )
    with LoopbackHub() as hub:
        hub.add_repository("demo/circling_disc", directory / "dataset", tags=["v3.0"])
        hub.add_token("demo")
        at_home = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "demo",
            "HF_HOME": str(directory / "cache"),
            "no_proxy": "localhost,127.0.0.1",
        }
        yield "demo/circling_disc", os.environ | at_home


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repository",
        help="org/name on the Hub, or a directory; by default a small dataset is written and "
        "served",
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments; the training has its own"
    )
    parser.add_argument("--plot", type=Path, help="PNG file for both curves")
    options = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="lerobot_grain-") as name,
        served(options.repository, Path(name)) as (repository, environment),
    ):
        arguments = ["--repository", repository, "--save-every", str(options.save_every)]
        logs, killed = [], []
        for run, kills in (("straight", 0), ("killed", options.kills)):
            start = time.perf_counter()
            killed = train(
                arguments,
                Path(name) / run,
                environment,
                steps=options.steps,
                kills=kills,
                seed=options.seed,
            )
            logs.append(read_log(Path(name) / run))
            print(f"{run}: {len(logs[-1])} steps in {time.perf_counter() - start:.0f} s")
    straight, lives = logs
    compare(straight, lives)
    print(
        f"{len(killed)} kills: all {len(lives)} losses and batches equal those of the "
        f"{len(straight)} straight steps to the last bit"
    )
    if options.plot is not None:
        plot(options.plot, straight, lives, killed)
    return {"straight": straight, "lives": lives, "killed": killed}


if __name__ == "__main__":
    main()
