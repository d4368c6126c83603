"""Measures what a jump to a position of an order costs, with weights and without.

    python benchmarks/seeking.py                       # 100,000, 1 million and 10 million rows
    python benchmarks/seeking.py --rows 1000000 --repeats 9

Kinds, taken in turn:

    without      no weights
    mask         a fifth of the rows left out
    by episode   a weight from 0.1 to 10 for each episode
    by row       a weight from 0 to 2 for each row
    few heavy    one row of 1,000 weighs 1,000 times as much as the others
    uneven       weights of a log-normal distribution, sigma 3

A jump goes to a random position in a round that was not set up before, and computes 1,024 rows. No
file is read. Times are those of the processor, since other programs lengthen those of the clock. A
ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from lerobot_grain._order.sampling.weights import scaled_weights
from lerobot_grain._order.shuffle import FrameOrder, Shuffle

_ROWS_AT_A_TIME = 1024


def main() -> None:
    """Runs the benchmark with the command line's options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for num_rows in options.rows:
        print(_table(num_rows, options.repeats), flush=True)


def _table(num_rows: int, repeats: int) -> str:
    orders = {}
    set_up_seconds = {}
    for kind, (lengths, weights) in _kinds(num_rows).items():
        start = time.thread_time()
        orders[kind] = _order(lengths, weights)
        orders[kind].epoch(0).rows(np.arange(1))
        set_up_seconds[kind] = time.thread_time() - start
    seconds: dict[str, list[float]] = {kind: [] for kind in orders}
    for repeat in range(1, repeats + 1):
        for kind, order in orders.items():
            last = max(1, order.num_rows - _ROWS_AT_A_TIME)
            first = int(np.random.default_rng(repeat).integers(last))
            elements = np.arange(first, min(first + _ROWS_AT_A_TIME, order.num_rows))
            start = time.thread_time()
            order.epoch(repeat).rows(elements)
            seconds[kind].append(time.thread_time() - start)
    medians = {kind: median(of_kind) for kind, of_kind in seconds.items()}
    lines = [
        f"| {num_rows:,} rows | set up once, ms | a jump, ms | ratio |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {set_up_seconds[kind] * 1e3:.0f} | {medians[kind] * 1e3:.1f} | "
            f"{medians[kind] / medians['without']:.2f} |"
            for kind in medians
        ),
    ]
    return "\n".join(lines) + "\n"


def _kinds(num_rows: int) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Returns the lengths of episodes, and a weight for each episode or each row."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(80, 161, max(2, num_rows // 120)).astype(np.int64)
    count = int(lengths.sum())
    return {
        "without": (lengths, None),
        "mask": (lengths, (generator.uniform(size=count) < 0.8).astype(np.float64)),
        "by episode": (lengths, 10 ** generator.uniform(-1, 1, len(lengths))),
        "by row": (lengths, generator.uniform(0, 2, count)),
        "few heavy": (lengths, np.where(generator.uniform(size=count) < 1e-3, 1e3, 1.0)),
        "uneven": (lengths, np.exp(generator.normal(0, 3, count))),
    }


def _order(lengths: np.ndarray, weights: np.ndarray | None) -> FrameOrder:
    scaled = None
    if weights is not None:
        runs = lengths if len(weights) == len(lengths) else np.ones(len(weights), np.int64)
        scaled = scaled_weights(weights, runs)
    return FrameOrder(
        first_rows=np.cumsum(lengths) - lengths,
        lengths=lengths,
        data_files=np.zeros_like(lengths),
        shuffle=Shuffle(clip_length=16),
        weights=scaled,
        stride=None,
    )


if __name__ == "__main__":
    main()
