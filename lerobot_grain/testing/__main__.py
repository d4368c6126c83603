"""Serves datasets from a Hub on this machine until Ctrl-C, to try out what reads from the Hub.

    python -m lerobot_grain.testing                                  # a dataset written for it
    python -m lerobot_grain.testing ./arm ./hand --latency 0.05      # directories, 50 ms away

It prints the names of the datasets and the address, which every command and function takes as
`endpoint`. The directories must not change meanwhile.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._hub.loopback import LoopbackHub
from lerobot_grain.testing._writer.dataset import write_dataset
from lerobot_grain.testing._writer.video import Camera

_ORGANIZATION = "demo"
_WRITTEN = "robot"


def main(arguments: Sequence[str] | None = None, *, ended: threading.Event | None = None) -> int:
    """Serves datasets until Ctrl-C, or until `ended` is set. Returns the exit status: 0, or 2 where
    there is nothing to serve, which is one line on standard error.
    """
    options = _parser().parse_args(arguments)
    with ExitStack() as stack:
        try:
            hub = stack.enter_context(LoopbackHub())
            hub.set_latency(options.latency)
            hub.set_bandwidth(options.bandwidth)
            directories = _named(options.directories) or {
                _WRITTEN: _written(stack.enter_context(tempfile.TemporaryDirectory()))
            }
            for name, directory in directories.items():
                hub.add_repository(f"{_ORGANIZATION}/{name}", directory, tags=_tags(directory))
        except (InvalidRequestError, ValueError, ImportError) as error:
            print(f"lerobot_grain.testing: {error}", file=sys.stderr)
            return 2
        print(_invitation(list(directories), hub.endpoint), flush=True)
        try:
            (ended or threading.Event()).wait()
        except KeyboardInterrupt:
            print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lerobot_grain.testing",
        description="Serves datasets from a Hub on this machine until Ctrl-C.",
    )
    parser.add_argument(
        "directories",
        nargs="*",
        type=Path,
        metavar="DIRECTORY",
        help=f"served as {_ORGANIZATION}/NAME, with the directory's name (default: a small dataset "
        f"that is written, {_ORGANIZATION}/{_WRITTEN}; that needs PyAV)",
    )
    parser.add_argument(
        "--latency",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="until the first byte of each answer (default: %(default)s)",
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="BYTES",
        help="a second and connection (default: no limit)",
    )
    return parser


def _named(directories: Sequence[Path]) -> dict[str, Path]:
    """Returns the directories by the names that they are served under."""
    found: dict[str, Path] = {}
    for directory in directories:
        if not (directory / "meta" / "info.json").is_file():
            raise ValueError(
                f"{directory} is no LeRobotDataset: it has no meta/info.json; give the directory "
                "that has meta/"
            )
        name = directory.resolve().name
        if name in found:
            raise ValueError(f"{found[name]} and {directory} have the same name; rename one")
        found[name] = directory
    return found


def _written(directory: str) -> Path:
    """Writes a dataset of two cameras, large enough for a stream of some seconds."""
    return write_dataset(
        Path(directory) / _WRITTEN,
        episode_lengths=[60, 45, 80, 55, 70, 50],
        fps=10,
        cameras=(
            Camera(key="observation.images.top", height=96, width=128, codec="h264"),
            Camera(key="observation.images.wrist", height=96, width=128, codec="h264"),
        ),
        tasks=("pick the cube", "put the cube into the box"),
    ).directory


def _tags(directory: Path) -> list[str]:
    """Returns the tag of a dataset's version, as lerobot sets it."""
    found = re.search(
        r'"codebase_version"\s*:\s*"(v[\w.]+)"', (directory / "meta" / "info.json").read_text()
    )
    return [] if found is None else [found[1]]


def _invitation(names: Sequence[str], endpoint: str) -> str:
    full = [f"{_ORGANIZATION}/{name}" for name in names]
    return (
        f"{', '.join(full)} {'is' if len(full) == 1 else 'are'} served at {endpoint} "
        "until Ctrl-C. For example:\n"
        f"  lerobot-grain inspect {full[0]} --endpoint {endpoint}\n"
        f'  LeRobotIterDataset("{full[0]}", endpoint="{endpoint}", token=False)\n'
        "Where a proxy is configured: export no_proxy=localhost,127.0.0.1"
    )


if __name__ == "__main__":
    sys.exit(main())
