"""Measures for how much of the time the ACT example waits for data, from a Hub on this machine that
answers after 50 ms.

    python benchmarks/data_wait.py                 # about 3 minutes on 2 cores
    python benchmarks/data_wait.py --widths 64 --steps 500 --latency 0.2

Two cameras of 96x96, batches of 32 rows, the first epochs from a cold start. Widths of the policy
make steps of other lengths. The training computes on the same cores that decode, which an
accelerator does not. The first 10 steps, in which JAX compiles, are not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lerobot_grain.testing import LoopbackHub

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from worlds import write_world  # noqa: E402 (scripts of examples/ are no package)

BATCH_SIZE = 32


def main() -> None:
    """Runs the benchmark with the command line's options, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--widths", nargs="+", type=int, default=[32, 64, 128], help="(default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument(
        "--latency", type=float, default=0.05, help="of the Hub, in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--episodes", type=int, default=200, help="of 60 frames (default: %(default)s)"
    )
    options = parser.parse_args()
    print(
        "| width | steps | epochs | ms a step (median) | waited for data |\n|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as name, LoopbackHub() as hub:
        hub.set_latency(options.latency)
        directory = Path(name)
        write_world(directory / "dataset", num_episodes=options.episodes)
        hub.add_repository("bench/two_cameras", directory / "dataset", tags=["v3.0"])
        for width in options.widths:
            # Each from a cold start: neither a cache of the Hub's files nor one of what was read.
            home = directory / f"home-{width}"
            environment = os.environ | {
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(home),
                "no_proxy": "localhost,127.0.0.1",
            }
            command = [
                sys.executable,
                str(EXAMPLES / "act.py"),
                "--repository",
                "bench/two_cameras",
                "--directory",
                str(home / "run"),
            ]
            command += [
                "--width",
                str(width),
                "--steps",
                str(options.steps),
                "--batch-size",
                str(BATCH_SIZE),
                "--save-every",
                "1000000",
            ]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            told = re.search(r"([\d.]+) ms a step, ([\d.]+)% of the time", done.stdout)
            if done.returncode or told is None:
                raise SystemExit(done.stdout + done.stderr)
            epochs = options.steps * BATCH_SIZE / (options.episodes * 60 * 0.9)
            print(
                f"| {width} | {options.steps} | {epochs:.1f} | {told[1]} | {told[2]} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
