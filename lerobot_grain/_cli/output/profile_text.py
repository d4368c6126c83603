"""The report of `lerobot-grain profile` as text, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot_grain._cli.output.report import Part, Table
from lerobot_grain._cli.output.units import size

# Summed over all threads. Below it nobody was slowed down.
_SHOWN_PAUSE_SECONDS = 0.05
# Clips that come less often are counted one by one.
_MOST_TIMES = 5


def report_parts(report: Mapping[str, Any]) -> list[Part]:
    """Returns the report, as `_cli/profile` makes it, as lines and a table."""
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
    if report["rows_per_epoch"] != report["num_rows"]:
        rows.append(("an epoch", f"{report['rows_per_epoch']:,} rows"))
    if report["frequencies"] is not None:
        rows += _frequency_rows(report["frequencies"])
    return [*lines, Table(rows=rows, indent="")]


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
            f"{size(fetched)} in {reading['requests']:,} requests "
            f"({reading['requests'] / examples:.3f} an example)"
            + (f", {fetched / needed:.3f} of what was needed" if needed else ""),
        )
    ]
    if reading["bytes_from_disk_cache"]:
        result.append(("from the disk cache", size(reading["bytes_from_disk_cache"])))
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
        ("memory budget", f"{size(peak)} of {size(budget)} at most in use"),
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
                "gap of two neighbors",
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


def _frequency_rows(frequencies: Mapping[str, Any]) -> list[tuple[str, str]]:
    result = [
        (
            "how often rows come",
            f"an epoch, on average over {frequencies['num_epochs']:.3g}, by weight",
        )
    ]
    for group in frequencies["groups"]:
        expected = group["expected"]
        found = f"found {group['found']:.3f}"
        if group["least"] < group["most"]:
            found = f"{group['least']:.3f} to {group['most']:.3f}; {found}"
        if expected:
            found += f" ({group['found'] / expected - 1:+.1%})"
        result.append((f"  {group['num_rows']:,} rows", f"{expected:.3f} times; {found}"))
    times = frequencies["clips_by_times"]
    if times:
        parts = [
            f"{count:,.0f} come {number} time{'s' * (number != 1)}"
            for number, count in enumerate(times[:_MOST_TIMES])
            if round(count)
        ]
        more = sum(times[_MOST_TIMES:])
        if round(more):
            parts.append(f"{more:,.0f} {_MOST_TIMES} to {len(times) - 1} times")
        result.append(("clips in an epoch", ", ".join(parts)))
        result.append(
            ("frames of these clips", f"{frequencies['clip_frames_per_row']:.2f} for a row")
        )
    return result
