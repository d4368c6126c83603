"""`lerobot-grain profile`: streams a dataset for a while, and prints how fast and how well mixed
that is on this machine.

Its plots: `_cli/profile_plots`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_grain import InvalidRequestError, LeRobotIterDataset, ReadOptions, Shuffle
from lerobot_grain._cli.argument_types import image_size, positive, size_bytes
from lerobot_grain._cli.profile_plots import check_can_plot, write_plots
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._inspection.profile import (
    MAX_ORDER_ROWS,
    Randomness,
    Reading,
    measure_randomness,
    measure_reading,
)

DEFAULT_SECONDS = 10.0
# Summed over all threads. Below it nobody was slowed down.
_SHOWN_PAUSE_SECONDS = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    _add_stream_arguments(parser)
    _add_limit_arguments(parser)
    _add_order_arguments(parser)
    _add_machine_arguments(parser)
    _add_output_arguments(parser)


def _add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--features", nargs="+", metavar="KEY", help="read only these (default: all)")
    add(
        "--delta",
        action="append",
        default=[],
        type=_delta,
        metavar="KEY=SECONDS,...",
        help="window of a feature, such as action=0,0.1,0.2; may be given for several",
    )
    add(
        "--image-size",
        type=image_size,
        metavar="HxW",
        help="resize all cameras, such as 96x128 (height x width)",
    )
    add(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="examples a batch (default: %(default)s)",
    )


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--batches", type=positive, metavar="N", help="stop after so many batches")
    limit.add_argument(
        "--seconds",
        type=float,
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
        type=int,
        metavar="BYTES",
        help="memory to read ahead into (default: 1.5 GiB, more above four cores, at most a "
        "quarter of the memory)",
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
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="write four plots; needs matplotlib"
    )


def _delta(text: str) -> tuple[str, list[float]]:
    key, separator, values = text.rpartition("=")
    try:
        if not separator:
            raise ValueError
        return key, [float(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KEY=SECONDS,SECONDS,... such as action=0,0.1,0.2"
        ) from None


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


def run(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: an option is out of its range, or the dataset cannot be opened or read.
    """
    shuffle = _shuffle(options)
    plot = options.plot
    if plot is not None:
        check_can_plot(plot)
    if options.frame_directory is not None and options.frames is None:
        raise InvalidRequestError(
            "--frame-directory belongs to --frames; leave it out, or add that"
        )
    read_options = ReadOptions(
        memory_budget_bytes=options.budget,
        num_decode_threads=options.threads,
        frame_cache_bytes=options.frames or 0,
        frame_cache_directory=options.frame_directory,
    )
    seconds = (
        DEFAULT_SECONDS if options.seconds is None and options.batches is None else options.seconds
    )
    start = time.perf_counter()
    dataset = LeRobotIterDataset(
        options.repository,
        revision=options.revision,
        endpoint=options.endpoint,
        features=options.features,
        delta_timestamps=dict(options.delta),
        shuffle=shuffle,
        image_size=options.image_size,
        read_options=read_options,
    )
    with closing(dataset.repository):
        open_seconds = time.perf_counter() - start
        progress = ProgressLine()

        def on_batch(examples: int, seconds: float) -> None:
            progress.show(
                f"{seconds:.1f} s, {examples:,} examples, {examples / seconds:,.0f} a second"
            )

        try:
            reading = measure_reading(
                dataset,
                batch_size=options.batch_size,
                max_batches=options.batches,
                max_seconds=seconds,
                on_batch=on_batch,
            )
        finally:
            progress.clear()
        randomness = measure_randomness(
            dataset, batch_size=options.batch_size, max_rows=MAX_ORDER_ROWS
        )
    report = _report(dataset, open_seconds, reading, randomness)
    if plot is not None:
        write_plots(plot, dataset.repository.description, reading, randomness)
    print(json.dumps(report, indent=2) if options.json else _table(report))
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


def _table(report: Mapping[str, Any]) -> str:
    """Returns the report as text, for people."""
    shuffle = report["shuffle"]
    lines = [
        f"{report['dataset']}: {report['num_episodes']:,} episodes, {report['num_rows']:,} rows "
        f"at {report['fps']:g} fps",
        "sequential, episode by episode"
        if shuffle is None
        else "shuffled: "
        f"{', '.join(f'{name} {value}' for name, value in shuffle.items() if value is not None)}",
        "",
    ]
    rows = [
        *_throughput_rows(report),
        *_reading_rows(report),
        *_randomness_rows(report["randomness"]),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(lines + [f"{label:<{width}}  {value}" for label, value in rows])


def _throughput_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    throughput = report["throughput"]
    waited = report["waited_seconds"]
    steady = throughput["steady_examples_per_second"]
    shares = (
        f"{name} {value:.2f} s ({value / throughput['seconds']:.0%})"
        for name, value in waited.items()
    )
    return [
        (
            "throughput",
            f"{throughput['examples_per_second']:,.1f} examples/s: {throughput['batches']:,} "
            f"batches of {throughput['batch_size']} in {throughput['seconds']:.2f} s"
            + ("" if steady is None else f"; {steady:,.1f} after the first batch"),
        ),
        (
            "first batch",
            f"{throughput['first_batch_seconds']:.2f} s, after {throughput['open_seconds']:.2f} s "
            "to open the dataset",
        ),
        ("time", ", ".join(shares)),
    ]


def _reading_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    reading = report["reading"]
    examples = report["throughput"]["examples"]
    fetched = reading["bytes_fetched"]
    needed = reading["bytes_needed"]
    frames = reading["frames_handed_out"]
    result = [
        (
            "fetched",
            f"{fetched / 1e6:,.2f} MB in {reading['requests']:,} requests "
            f"({reading['requests'] / examples:.3f} an example)"
            + (f", {fetched / needed:.3f} of what was needed" if needed else ""),
        )
    ]
    if reading["bytes_from_disk_cache"]:
        result.append(("from the disk cache", f"{reading['bytes_from_disk_cache'] / 1e6:,.2f} MB"))
    if reading["retries"] or reading["pause_seconds"] >= _SHOWN_PAUSE_SECONDS:
        result.append(
            (
                "the Hub",
                f"{reading['retries']:,} further attempts; {reading['pause_seconds']:.1f} s of "
                "pauses and rate limits, over all threads",
            )
        )
    if from_cache := reading["frames_from_cache"]:
        result.append(
            (
                "from the frame cache",
                f"{from_cache:,} of {frames:,} frames ({from_cache / frames:.0%})",
            )
        )
    if frames:
        result.append(
            (
                "decoded",
                f"{reading['gops_decoded']:,} GOPs, {reading['gops_decoded_again']:,} of them "
                f"again; {reading['pictures_decoded'] / frames:.2f} coded pictures a frame handed "
                "out, those decoded ahead among them",
            )
        )
    peak = reading["budget_peak_bytes"]
    budget = reading["budget_bytes"]
    return [
        *result,
        ("memory budget", f"{peak / 1e6:,.1f} of {budget / 1e6:,.1f} MB at most in use"),
    ]


def _randomness_rows(randomness: Mapping[str, Any]) -> list[tuple[str, str]]:
    result = [
        (
            "|corr(row, iteration)|",
            f"{randomness['correlation']:.3f} over {randomness['rows']:,} rows",
        )
    ]
    if randomness["episodes_per_batch_mean"] is not None:
        result.append(
            (
                "episodes in a batch",
                f"{randomness['episodes_per_batch_mean']:.1f} (fewest "
                f"{randomness['episodes_per_batch_min']}); a global shuffle: "
                f"{randomness['global_shuffle_episodes_per_batch']:.1f}",
            )
        )
    if randomness["gap_median"] is not None:
        result.append(
            (
                "gap of two neighbours",
                f"median {randomness['gap_median']:,.0f} iterations, 90 % within "
                f"{randomness['gap_90_percent']:,.0f}; a global shuffle: median "
                f"{randomness['global_shuffle_gap_median']:,.0f}",
            )
        )
    histogram = randomness["gap_histogram"]
    total = sum(bin_["count"] for bin_ in histogram)
    for bin_ in histogram:
        share = bin_["count"] / total
        result.append(
            (
                f"  {bin_['start']:,} to {bin_['stop'] - 1:,}",
                f"{share:6.1%} {'#' * round(share * 50)}".rstrip(),
            )
        )
    return result
