"""Draws the pictures of docs/concepts.md and of the pages on memory, into docs/images.

    python scripts/pictures.py                # all
    python scripts/pictures.py order resume   # some

The order, the resume and the mixture are those of the package: the pictures show what it computes.
Memory and cores are drawn from the tables of docs/robustness.md and docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import grain
import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

import lerobot_grain as lg
from lerobot_grain._order.mixture import TURN, MixtureOrder, shares_of
from lerobot_grain.testing import write_dataset

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Okabe and Ito's colors, which also people with other color vision tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY, INK = "#9AA0A6", "#20242A"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "lerobot_grain",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
BATCH = 64


def order() -> None:
    """Which episodes the first batches mix, for some shuffles."""
    lengths = np.random.default_rng(0).integers(60, 190, 206)
    kinds: dict[str, lg.Shuffle | None] = {
        "Shuffle(), the default": lg.Shuffle(),
        "num_parts=16, buffer_size=256": lg.Shuffle(num_parts=16, buffer_size=256),
        "num_parts=1": lg.Shuffle(num_parts=1),
        "shuffle=None": None,
    }
    with tempfile.TemporaryDirectory() as directory:
        written = write_dataset(
            Path(directory) / "data", episode_lengths=lengths.tolist(), cameras=[]
        )
        repository = lg.open_repository(str(written.directory))
        rows = {
            name: _first_rows(lg.FrameOrderIterDataset(repository, shuffle=shuffle), 64 * BATCH)
            for name, shuffle in kinds.items()
        }
        episode_of_row = np.repeat(np.arange(len(lengths)), lengths)
    figure, axes = plt.subplots(
        2, 2, figsize=(9, 6), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, found) in zip(axes.flat, rows.items(), strict=True):
        episodes = episode_of_row[found]
        mixed = [len(set(batch)) for batch in episodes.reshape(-1, BATCH)]
        shown = episodes[: 4 * BATCH]
        axis.scatter(np.arange(len(shown)), shown, s=5, color=BLUE, linewidths=0)
        for border in range(BATCH, 4 * BATCH, BATCH):
            axis.axvline(border, color=GREY, linewidth=0.6, zorder=0)
        axis.set(xlim=(0, 4 * BATCH))
        axis.set_xticks(range(0, 4 * BATCH + 1, BATCH))
        axis.set_title(name)
        axis.set_title(
            f"mixes {np.mean(mixed):.0f}",
            loc="right",
            color=VERMILION,
            fontsize=9,
            fontweight="normal",
        )
    figure.supxlabel("position in the stream", fontsize=9)
    figure.supylabel("episode", fontsize=9)
    _save(figure, "order.png")


def _first_rows(dataset: lg.FrameOrderIterDataset, count: int) -> np.ndarray:
    iterator = iter(dataset)
    return np.array([int(next(iterator)) for _ in range(count)])


def windows() -> None:
    """What an example at a row takes, in the middle of an episode and at its end."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 3.6), layout="constrained")
    cases = [("in the middle of the episode", 7), ("the fourth from the end of the episode", 20)]
    for axis, (name, row) in zip(axes, cases, strict=True):
        _episode(axis, 24)
        _window(axis, "images, [-0.1, 0.0] s", [row - 1, row], 2, BLUE, 24)
        _window(axis, "action, 8 steps from 0.0 s", list(range(row, row + 8)), 1, ORANGE, 24)
        axis.text(row + 0.45, 3.95, "row of the example", ha="center", va="bottom", fontsize=8)
        axis.plot([row + 0.45] * 2, [3.85, 3.95], color=INK, linewidth=0.8)
        axis.set(title=f"The row is {name}", xlim=(-7.5, 28.5), ylim=(0.9, 4.5))
        axis.axis("off")
    _save(figure, "windows.svg")


def _episode(axis: Axes, length: int) -> None:
    axis.text(-0.4, 3.45, "frames of an episode", ha="right", va="center")
    for frame in range(length):
        axis.add_patch(Rectangle((frame, 3.1), 0.9, 0.7, facecolor="#E8EAED", edgecolor="white"))


def _window(axis: Axes, name: str, frames: list[int], y: int, color: str, length: int) -> None:
    axis.text(-0.4, y + 0.45, name, ha="right", va="center")
    for frame in frames:
        is_pad = frame >= length
        box = Rectangle(
            (frame, y + 0.1),
            0.9,
            0.7,
            facecolor="white" if is_pad else color,
            edgecolor=color,
            hatch="////" if is_pad else None,
            linewidth=1 if is_pad else 0,
        )
        axis.add_patch(box)
    if frames[-1] >= length:
        axis.text(
            frames[-1] + 1.1, y + 0.45, "pad", ha="left", va="center", fontsize=8, color=color
        )


def reader() -> None:
    """How far ahead of the consumer the reader knows, fetches and decodes."""
    figure, axis = plt.subplots(figsize=(9, 2.9), layout="constrained")
    bands = [
        ("known", "which GOPs are needed, how often and when: only integers", 10.6, GREY),
        ("fetched", "coded bytes, each range once", 8.0, BLUE),
        ("decoded", "each GOP once; frames stay until their last use", 5.4, GREEN),
        ("in the batch", "", 2.2, ORANGE),
    ]
    for level, (name, text, end, color) in enumerate(bands):
        y = 3 - level
        axis.add_patch(
            FancyBboxPatch(
                (0, y + 0.12),
                end,
                0.72,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=color,
                edgecolor="none",
                alpha=0.9,
            )
        )
        axis.text(0.2, y + 0.48, name, va="center", color="white", weight="bold")
        axis.text(end + 0.2, y + 0.48, text, va="center")
    axis.annotate("", (12.2, -0.15), (0, -0.15), arrowprops={"arrowstyle": "->", "color": INK})
    axis.text(0, -0.3, "the example that next() returns", va="top", fontsize=8)
    axis.text(12.2, -0.3, "later positions of the stream", va="top", ha="right", fontsize=8)
    axis.set(xlim=(-0.1, 15.6), ylim=(-0.75, 4))
    axis.axis("off")
    _save(figure, "reader.svg")


def resume() -> None:
    """Which host gets which position: two hosts, a stop, three hosts."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        write_dataset(path, episode_lengths=[20, 16, 12], cameras=[])
        repository = lg.open_repository(str(path))
        straight = _first_rows(lg.FrameOrderIterDataset(repository), 42)
        before, state = _hosts(repository, 2, 9, None)
        after, _ = _hosts(repository, 3, 8, state)
    stop = state["position"]
    assert sorted(before + after) == sorted(straight.tolist())
    figure, axis = plt.subplots(figsize=(9, 2.5), layout="constrained")
    colors = [BLUE, ORANGE, GREEN]
    for position, row in enumerate(straight):
        host = position % 2 if position < stop else (position - stop) % 3
        axis.add_patch(Rectangle((position, host), 0.92, 0.92, facecolor=colors[host]))
        axis.text(
            position + 0.46,
            host + 0.46,
            str(row),
            color="white",
            ha="center",
            va="center",
            fontsize=6.5,
        )
    axis.axvline(stop - 0.04, color=VERMILION, linewidth=1.5)
    axis.text(
        stop,
        3.35,
        f'stopped: the state is {{"position": {stop}, ...}} on both hosts',
        color=VERMILION,
        ha="center",
        va="bottom",
    )
    axis.set(
        xlim=(0, len(straight)),
        ylim=(-0.1, 3.3),
        xlabel="position in the stream",
        yticks=[0.46, 1.46, 2.46],
        yticklabels=["host 0", "host 1", "host 2"],
    )
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    _save(figure, "resume.svg")


def _hosts(
    repository: lg.Repository, count: int, steps: int, state: Mapping[str, int] | None
) -> tuple[list[int], dict[str, int]]:
    """Streams so many rows on each of so many hosts; returns the rows and the state of all."""
    rows: list[int] = []
    states = []
    for host in range(count):
        shard = grain.sharding.ShardOptions(host, count)
        iterator = iter(lg.FrameOrderIterDataset(repository, shard_options=shard))
        if state is not None:
            iterator.set_state(dict(state))
        rows += [int(next(iterator)) for _ in range(steps)]
        states.append(iterator.get_state())
    assert all(one == states[0] for one in states)
    return rows, states[0]


def mixture() -> None:
    """The components of the first positions, and their shares over a turn."""
    weights = {"arm": 3, "hand": 2, "rover": 1}
    shares = shares_of(weights)
    components, _ = MixtureOrder(
        seed=0, begin=0, shares=list(shares.values()), starts=[0] * len(shares)
    ).places(np.arange(TURN))
    colors = [BLUE, ORANGE, GREEN]
    figure, (strip, counts) = plt.subplots(
        2, 1, figsize=(9, 3.4), height_ratios=[1, 2], layout="constrained"
    )
    for position, component in enumerate(components[:96]):
        strip.add_patch(Rectangle((position, 0), 0.9, 1, facecolor=colors[component]))
    strip.set(xlim=(0, 96), ylim=(0, 1), yticks=[], title="The first 96 positions")
    strip.spines["left"].set_visible(False)
    positions = np.unique(np.geomspace(1, TURN, 400).astype(int))
    for number, (name, share) in enumerate(shares.items()):
        part = np.cumsum(components == number)[positions - 1] / positions
        counts.plot(positions, part, color=colors[number], label=f"{name}: {share:,} of {TURN:,}")
        counts.axhline(share / TURN, color=colors[number], linewidth=0.6, linestyle=":")
    counts.set(
        xscale="log",
        xlim=(1, TURN),
        ylim=(0, 1),
        xlabel="positions so far",
        ylabel="part of them",
        title="Shares: exact at the end of each turn",
    )
    counts.legend(loc="upper right")
    _save(figure, "mixture.svg")


def memory() -> None:
    """The memory of a process over an hour with faults: the table of docs/robustness.md."""
    page = (IMAGES.parent / "robustness.md").read_text()
    section = page.partition("## An hour of faults")[2]
    lines = re.findall(r"^\| (\d+) \|(?:[^|]*\|){5} ([\d.]+) \| ([\d.]+) \|$", section, re.M)
    minutes, resident, allocated = np.array(lines, float).T
    figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for found, color, name in (
        (resident, BLUE, "resident memory of the process"),
        (allocated, GREEN, "allocated, without the holes between"),
    ):
        axis.plot(minutes, found, "o-", color=color, markersize=4)
        axis.text(minutes[-1], found[-1] - 70, name, color=color, ha="right", va="top")
    axis.set(
        xlim=(0, 62),
        ylim=(0, 1200),
        xticks=range(0, 61, 10),
        xlabel="minutes of streaming; 15 % of all requests go wrong, 975 iterators come and go",
        ylabel="MB",
    )
    _save(figure, "memory_over_time.png")


def cores() -> None:
    """Examples a second over cores: the table of docs/performance.md."""
    page = (IMAGES.parent / "performance.md").read_text()
    section = page.partition("## Many cores")[2]
    table = {
        cells[0].strip(): [cell.strip().replace(",", "") for cell in cells[1:]]
        for cells in (line.strip("|").split("|") for line in section.splitlines() if "|" in line)
    }
    rates = np.array(table["examples/s"][:4], float)
    parts = np.array(table["of the ideal"][:4], float)
    ideal = rates / parts
    counts = np.array([8, 16, 32, 64])
    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    axis.plot(counts, ideal, color=GREY, linestyle="--", linewidth=1)
    axis.plot(counts, rates, "o-", color=BLUE)
    for count, rate, part in zip(counts, rates, parts, strict=True):
        axis.text(count * 1.03, rate * 0.93, f"{part:.2f}", color=BLUE, va="top")
    axis.text(44, ideal[3] * 0.85, "all cores decode all the time", color=GREY, ha="right")
    axis.set(
        xscale="log",
        yscale="log",
        ylabel="examples/s",
        xlabel="cores (pretended)",
        title="Three cameras of 640x480, AV1 g=2; numbers: part of the ideal",
    )
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xticks([], minor=True)
    axis.set_yticks([500, 1000, 2000, 4000], ["500", "1,000", "2,000", "4,000"])
    axis.set_yticks([], minor=True)
    _save(figure, "scaling.png")


def _save(figure: plt.Figure, name: str) -> None:
    metadata = {"Date": None} if name.endswith(".svg") else {"Software": None}
    figure.savefig(IMAGES / name, metadata=metadata)
    plt.close(figure)
    print(f"docs/images/{name}")


PICTURES: Mapping[str, Callable[[], None]] = {
    "order": order,
    "windows": windows,
    "reader": reader,
    "resume": resume,
    "mixture": mixture,
    "memory": memory,
    "cores": cores,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        for name in options.names or PICTURES:
            PICTURES[name]()


if __name__ == "__main__":
    main()
