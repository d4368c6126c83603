"""The plots of `lerobot-grain profile --plot`.

matplotlib is optional: only `--plot` needs it, and it is asked for before anything is measured.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_grain import InvalidRequestError
from lerobot_grain._cli.output.files import check_can_be_written, write_whole
from lerobot_grain._inspection.profile import Frequencies, Randomness, Reading

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    Figure = None  # type: ignore[assignment,misc]

# More points than the plot has pixels would only make the file large.
_PLOTTED_POINTS = 20_000


def check_can_plot(path: Path) -> None:
    """Refuses a file that plots cannot be written to.

    Raises:
      InvalidRequestError: matplotlib is missing, or there is no such directory.
    """
    if Figure is None:
        raise InvalidRequestError(
            '--plot needs matplotlib; install it with: pip install "lerobot_grain[examples]"'
        )
    check_can_be_written(path, "--plot")


def write_plots(
    path: Path,
    title: str,
    reading: Reading,
    randomness: Randomness,
    frequencies: Frequencies | None,
) -> None:
    """Draws the four plots of a measurement into a PNG file, and two more where rows come unequally
    often.

    Raises:
      InvalidRequestError: the file cannot be written.
    """
    num_lines = 2 if frequencies is None else 3
    figure = Figure(figsize=(11, 4 * num_lines), layout="constrained")
    figure.suptitle(title)
    plots: Sequence[Any] = figure.subplots(num_lines, 2).ravel()
    for plot, draw in zip(plots, (_plot_rows, _plot_episodes, _plot_gaps), strict=False):
        draw(plot, randomness)
    _plot_throughput(plots[3], reading)
    if frequencies is not None:
        _plot_groups(plots[4], frequencies)
        _plot_clips(plots[5], frequencies)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    write_whole(path, file.getvalue(), "--plot")


def _plot_rows(plot: Any, randomness: Randomness) -> None:
    step = -(-len(randomness.rows) // _PLOTTED_POINTS)
    iterations = np.arange(0, len(randomness.rows), step)
    plot.plot(iterations, randomness.rows[::step], ".", markersize=1.5)
    plot.set(
        title=f"|corr(row, iteration)| = {randomness.correlation:.3f}",
        xlabel="iteration",
        ylabel="row",
    )


def _plot_episodes(plot: Any, randomness: Randomness) -> None:
    plot.plot(randomness.episodes_per_batch, linewidth=0.8, label="this order")
    plot.axhline(
        randomness.global_episodes_per_batch,
        color="black",
        linestyle="--",
        label="global shuffle, expected",
    )
    plot.set(
        title="different episodes in a batch", xlabel="batch", ylabel="episodes", ylim=(0, None)
    )
    plot.legend(loc="lower right")


def _plot_gaps(plot: Any, randomness: Randomness) -> None:
    counts = randomness.gap_histogram
    plot.bar(range(len(counts)), counts, width=0.9)
    plot.set_xticks(range(len(counts)), [f"{1 << k:,}" for k in range(len(counts))], rotation=45)
    median = randomness.median_gap
    plot.set(
        title="gap between neighboring frames"
        + ("" if median is None else f": median {median:,.0f}"),
        xlabel="iterations, from this to twice as many",
        ylabel="pairs of frames",
    )


def _plot_groups(plot: Any, frequencies: Frequencies) -> None:
    groups = frequencies.groups
    places = np.arange(len(groups))
    plot.bar(places, [group.found for group in groups], width=0.8, label="this order")
    plot.plot(
        places,
        [group.expected for group in groups],
        "_",
        color="black",
        markersize=18,
        label="by the weights",
    )
    plot.set_xticks(places, [f"{group.num_rows:,}" for group in groups], rotation=45)
    plot.set(
        title="how often rows come in an epoch",
        xlabel="rows, by weight",
        ylabel="times",
        ylim=(0, None),
    )
    plot.legend(loc="upper left")


def _plot_clips(plot: Any, frequencies: Frequencies) -> None:
    counts = frequencies.clips_by_times
    plot.bar(range(len(counts)), counts, width=0.9)
    plot.set(title="how often clips come in an epoch", xlabel="times", ylabel="clips")


def _plot_throughput(plot: Any, reading: Reading) -> None:
    # As many bins as show the course of it, each with several batches.
    num_bins = max(1, min(50, len(reading.batch_seconds) // 4))
    counts, edges = np.histogram(reading.batch_seconds, bins=num_bins, range=(0, reading.seconds))
    plot.stairs(counts * reading.batch_size / np.diff(edges), edges)
    plot.set(
        title=f"{reading.examples_per_second:,.0f} examples/s",
        xlabel="seconds since the first next",
        ylabel="examples/s",
        ylim=(0, None),
    )
