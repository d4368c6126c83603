"""Measures what goals cost (`LeRobotIterDataset(windows=...)`), and prints a table.

    python benchmarks/goals.py
    python benchmarks/goals.py --cases h264_g30 --kinds none last
    python benchmarks/goals.py --cases small --kinds fixed last uniform --repeats 1
    python benchmarks/goals.py --cases h264_g30 --kinds fixed last uniform --repeats 1
    python benchmarks/goals.py --cases h264_g250 --kinds fixed last uniform --repeats 1 \\
        --examples 6400

The last three take less than three minutes each on two cores once the datasets are written, which
`--examples 0` does (16,000 frames of 640x360 take minutes).

    small       a camera of 96x96, AV1, g=2
    h264_g30    a camera of 320x240, h264, g=30, B pictures
    h264_g250   a camera of 640x360, h264, g=250, B pictures

Kinds, each in a process of its own; one epoch, or `--epochs`, or the first `--examples` of them:

    none       no window
    fixed      the frame one second later, as a window of one frame
    uniform    a frame drawn from 0.5 to 2 s ahead
    geometric  one drawn with a mean of one second
    last       the last frame of the episode

"More coded pictures" are those that were decoded beyond `none`, for each goal; the least that
random frames can cost, each decoded alone, is (g + 1) / 2. Rates are of coded pictures that were
decoded, and of examples. "Against fixed" is the rate of coded pictures against that of `fixed`.
Counts are those of an epoch only without `--examples`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _cases import CASES, prepare, scale_of

import lerobot_grain as lg

_CASES = ("small", "h264_g30", "h264_g250")
_FRAMES: dict[str, Any] = {
    "none": None,
    "fixed": [1.0],
    "uniform": lg.UniformDraw(0.5, 2.0),
    "geometric": lg.GeometricDraw(1.0),
    "last": lg.LastFrame(),
}
_BATCH_SIZE = 64
_TIMEOUT_SECONDS = 900


def measure(directory: str, kind: str, *, epochs: int, examples: int | None) -> dict[str, Any]:
    """Reads some epochs, or the first examples of them, in this process."""
    repository = lg.open_repository(directory)
    frames = _FRAMES[kind]
    windows = {"goal": lg.Window(repository.cameras[0], frames)} if frames is not None else None
    dataset = lg.LeRobotIterDataset(repository, num_epochs=epochs, windows=windows)
    iterator = iter(dataset.batch(_BATCH_SIZE))
    started = time.perf_counter()
    batches = None if examples is None else -(-examples // _BATCH_SIZE)
    found = sum(len(batch["index"]) for batch in itertools.islice(iterator, batches))
    seconds = time.perf_counter() - started
    statistics = lg.read_statistics(iterator)
    return {
        "examples": found,
        "pictures": statistics.pictures_decoded,
        "examples_per_second": found / seconds,
        "pictures_per_second": statistics.pictures_decoded / seconds,
        "peak_bytes": statistics.budget_peak_bytes,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with the command line's options."""
    options = make_parser().parse_args(arguments)
    if options.measure is not None:
        found = measure(*options.measure, epochs=options.epochs, examples=options.examples)
        print(json.dumps(found))
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for case in CASES:
        if case.name not in options.cases:
            continue
        directory = prepare(case, cache=options.cache, scale=options.scale).resolve()
        if options.examples == 0:
            continue
        found = results[case.name] = {kind: [] for kind in options.kinds}
        for repetition in range(options.repeats):
            kinds = options.kinds if repetition % 2 == 0 else options.kinds[::-1]
            for kind in kinds:
                found[kind].append(_measured(str(directory), kind, options))
                print(f"{case.name}: {kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES)
    parser.add_argument("--kinds", nargs="+", choices=tuple(_FRAMES), default=tuple(_FRAMES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--examples", type=int, metavar="N", help="end each stream after N; 0: only write datasets"
    )
    parser.add_argument(
        "--scale",
        type=scale_of,
        default=1.0,
        help="multiplies the episodes of the datasets; or: tiny",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    return parser


def _measured(directory: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", directory, kind]
    command += ["--epochs", str(options.epochs)]
    if options.examples is not None:
        command += ["--examples", str(options.examples)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Returns the results as a table of Markdown."""
    lines = [
        "| dataset | goal | more coded pictures a goal | coded pictures/s | against fixed | "
        "examples/s |",
        "|---|---|---|---|---|---|",
    ]
    for case, kinds in results.items():
        for kind, runs in kinds.items():
            more = "-"
            if kind != "none" and "none" in kinds:
                plain = kinds["none"][0]
                more = f"{(runs[0]['pictures'] - plain['pictures']) / runs[0]['examples']:.3f}"
            pictures = _median(runs, "pictures_per_second")
            ratio = "-"
            if "fixed" in kinds:
                ratio = f"{pictures / _median(kinds['fixed'], 'pictures_per_second'):.2f}"
            examples = _median(runs, "examples_per_second")
            lines.append(
                f"| {case} | {kind} | {more} | {pictures:,.0f} | {ratio} | {examples:,.0f} |"
            )
    return "\n".join(lines)


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(median(run[name] for run in runs))


if __name__ == "__main__":
    main()
