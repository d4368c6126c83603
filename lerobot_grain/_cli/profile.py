"""`lerobot-grain profile`: streams a dataset for a while, and prints how fast and how well mixed
that is on this machine.

Its text: `_cli/output/profile_text`; its plots: `_cli/output/profile_plots`.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_grain import InvalidRequestError, LeRobotIterDataset, ReadOptions, Shuffle
from lerobot_grain._cli.argument_types import positive, seconds, size_bytes
from lerobot_grain._cli.output.profile_plots import check_can_plot, write_plots
from lerobot_grain._cli.output.profile_text import report_parts
from lerobot_grain._cli.output.report import print_report
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._cli.selection_arguments import (
    add_selection_arguments,
    add_stream_arguments,
    selection_of,
    stream_of,
)
from lerobot_grain._inspection.profile import (
    MAX_COUNTED_EPOCHS,
    MAX_COUNTED_ROWS,
    MAX_ORDER_ROWS,
    Frequencies,
    Randomness,
    Reading,
    measure_frequencies,
    measure_randomness,
    measure_reading,
)

DEFAULT_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    add_stream_arguments(parser)
    _add_limit_arguments(parser)
    add_selection_arguments(parser)
    _add_order_arguments(parser)
    _add_machine_arguments(parser)
    _add_output_arguments(parser)


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--batches", type=positive, metavar="N", help="stop after so many batches")
    limit.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        help=f"stop after so many seconds (default: {DEFAULT_SECONDS:g})",
    )


def _add_order_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = Shuffle()
    order = parser.add_argument_group("order")
    order.add_argument("--sequential", action="store_true", help="episode by episode, not shuffled")
    order.add_argument("--seed", type=int, metavar="N", help=f"(default: {defaults.seed})")
    order.add_argument(
        "--buffer-size", type=int, metavar="ROWS", help=f"(default: {defaults.buffer_size})"
    )
    order.add_argument(
        "--clip-length",
        type=int,
        metavar="FRAMES",
        help="(default: a multiple of the GOP length, at least 16)",
    )
    order.add_argument(
        "--num-parts", type=int, metavar="N", help=f"(default: {defaults.num_parts})"
    )
    order.add_argument(
        "--open-files",
        type=int,
        metavar="N",
        help="finish so many data files before the next ones (default: all at once)",
    )


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--budget",
        type=size_bytes,
        metavar="BYTES",
        help="memory to read ahead into, as in 2GiB (default: 1.5 GiB, more above four cores, at "
        "most a quarter of the memory)",
    )
    machine.add_argument(
        "--threads", type=int, metavar="N", help="that decode (default: one per core)"
    )
    machine.add_argument(
        "--frames",
        type=size_bytes,
        metavar="BYTES",
        help="of decoded frames that are kept on disk, as in 50GB (default: none)",
    )
    machine.add_argument(
        "--frame-directory",
        metavar="DIRECTORY",
        help="where (default: that of ReadOptions); with --frames",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="write four plots; needs matplotlib"
    )


def _shuffle(options: argparse.Namespace) -> Shuffle | None:
    names = ("seed", "buffer_size", "clip_length", "num_parts", "open_files")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not options.sequential:
        return Shuffle(**given)
    if given:
        raise InvalidRequestError(
            f"--{next(iter(given)).replace('_', '-')} belongs to a shuffled order; leave it out, "
            "or --sequential"
        )
    return None


def _read_options(options: argparse.Namespace) -> ReadOptions:
    if options.frame_directory is not None and options.frames is None:
        raise InvalidRequestError(
            "--frame-directory belongs to --frames; leave it out, or add that"
        )
    return ReadOptions(
        memory_budget_bytes=options.budget,
        num_decode_threads=options.threads,
        frame_cache_bytes=options.frames or 0,
        frame_cache_directory=options.frame_directory,
    )


def run(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: an option is out of its range, or the dataset cannot be opened or read.
    """
    shuffle = _shuffle(options)
    plot = options.plot
    if plot is not None:
        check_can_plot(plot)
    read_options = _read_options(options)
    seconds = (
        DEFAULT_SECONDS if options.seconds is None and options.batches is None else options.seconds
    )
    start = time.perf_counter()
    dataset = LeRobotIterDataset(
        shuffle=shuffle,
        read_options=read_options,
        **stream_of(options),
        **selection_of(options),
    )
    with closing(dataset.repository):
        open_seconds = time.perf_counter() - start
        with ProgressLine() as progress:
            reading = measure_reading(
                dataset,
                batch_size=options.batch_size,
                max_batches=options.batches,
                max_seconds=seconds,
                on_batch=lambda examples, seconds: progress.show(
                    f"{seconds:.1f} s, {examples:,} examples, {examples / seconds:,.0f} a second"
                ),
            )
        randomness = measure_randomness(
            dataset, batch_size=options.batch_size, max_rows=MAX_ORDER_ROWS
        )
        frequencies = measure_frequencies(
            dataset, max_rows=MAX_COUNTED_ROWS, max_epochs=MAX_COUNTED_EPOCHS
        )
    report = _report(dataset, open_seconds, reading, randomness) | {
        "rows_per_epoch": randomness.num_rows,
        "frequencies": None if frequencies is None else _frequencies_report(frequencies),
    }
    if plot is not None:
        write_plots(plot, dataset.repository.description, reading, randomness, frequencies)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report_parts(report))
    return 0


def _report(
    dataset: LeRobotIterDataset, open_seconds: float, reading: Reading, randomness: Randomness
) -> dict[str, Any]:
    """Returns the JSON object: what was measured, units in names."""
    statistics = reading.statistics
    repository = dataset.repository
    episodes = randomness.episodes_per_batch
    gaps = randomness.gaps
    return {
        "dataset": repository.description,
        "num_episodes": repository.episodes.num_episodes,
        "num_rows": repository.episodes.num_rows,
        "fps": repository.fps,
        "shuffle": None if dataset.shuffle is None else asdict(dataset.shuffle),
        "throughput": {
            "batch_size": reading.batch_size,
            "batches": len(reading.batch_seconds),
            "examples": reading.num_examples,
            "seconds": reading.seconds,
            "examples_per_second": reading.examples_per_second,
            "steady_examples_per_second": reading.steady_examples_per_second,
            "open_seconds": open_seconds,
            "first_batch_seconds": float(reading.batch_seconds[0]),
        },
        "waited_seconds": {
            "fetch": statistics.waited_for_fetch_seconds,
            "decode": statistics.waited_for_decode_seconds,
            "other": reading.other_seconds,
        },
        "reading": asdict(statistics),
        "randomness": {
            "rows": len(randomness.rows),
            "correlation": randomness.correlation,
            "episodes_per_batch_mean": float(episodes.mean()) if len(episodes) else None,
            "episodes_per_batch_min": int(episodes.min()) if len(episodes) else None,
            "global_shuffle_episodes_per_batch": randomness.global_episodes_per_batch,
            "gap_median": randomness.median_gap,
            "gap_90_percent": float(np.quantile(gaps, 0.9)) if len(gaps) else None,
            "global_shuffle_gap_median": randomness.global_median_gap,
            "gap_histogram": [
                {"start": 1 << k, "stop": 2 << k, "count": count}
                for k, count in enumerate(randomness.gap_histogram.tolist())
            ],
        },
    }


def _frequencies_report(frequencies: Frequencies) -> dict[str, Any]:
    return asdict(frequencies) | {"clips_by_times": frequencies.clips_by_times.tolist()}
