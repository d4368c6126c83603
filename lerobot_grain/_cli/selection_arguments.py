"""The options that say what a stream reads of each row, which rows it has, and how often they come.
Their names are those of the arguments of `LeRobotIterDataset`.
"""

from __future__ import annotations

import argparse
from typing import Any

from lerobot_grain._cli.argument_types import count, episodes, image_size, positive, window

_NAMES = ("episodes", "drop_first_frames", "drop_last_frames", "weights", "valid_rows", "stride")


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is read of each row, and how many rows are a batch."""
    add = parser.add_argument
    add("--features", nargs="+", metavar="KEY", help="read only these (default: all)")
    add(
        "--delta",
        action="append",
        default=[],
        type=window,
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


def stream_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what is read of each row, and of which dataset, as arguments of
    `LeRobotIterDataset`.
    """
    return {
        "repository": options.repository,
        "revision": options.revision,
        "endpoint": options.endpoint,
        "features": options.features,
        "delta_timestamps": dict(options.delta),
        "image_size": options.image_size,
    }


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which rows are streamed, and how often they come."""
    add = parser.add_argument_group(
        "rows", "which rows are streamed, and how often they come; see docs/sampling.md"
    ).add_argument
    add(
        "--episodes",
        type=episodes,
        metavar="RANGE",
        help="only these, such as :50, 10:20 or 0,7,9 (default: all)",
    )
    for name, place in (("first", "start"), ("last", "end")):
        add(
            f"--drop-{name}-frames",
            type=count,
            default=0,
            metavar="N",
            help=f"leave out so many rows at the {place} of every episode",
        )
    add(
        "--weights",
        metavar="FILE|FEATURE",
        help="how often rows come, relative to each other: a .parquet or .csv table with the "
        "columns weight and index (the row) or episode_index, such as corrections.csv, or "
        "meta/annotations/quality.parquet of the dataset; or a feature with one number a row",
    )
    add(
        "--valid-rows",
        metavar="FILE|FEATURE",
        help="leave out the rows that are not valid: a table as for --weights, with the column "
        "is_valid; or a feature with one bool a row",
    )
    add(
        "--stride",
        type=positive,
        default=1,
        metavar="N",
        help="only every N-th frame in an epoch, the others in the next ones",
    )


def selection_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns which rows are streamed, as arguments of `LeRobotIterDataset`."""
    return {name: getattr(options, name) for name in _NAMES}
