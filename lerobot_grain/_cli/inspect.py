"""`lerobot-grain inspect`: prints what a dataset is, and what an epoch of it costs.

Its text: `_cli/output/inspect_text`.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict

from lerobot_grain import open_repository
from lerobot_grain._cli.argument_types import positive
from lerobot_grain._cli.output.inspect_text import summary_parts
from lerobot_grain._cli.output.report import print_report
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._inspection.overview.dataset_summary import summarize

# Enough to know the encodings, and soon done: two small requests a file.
_MOST_FILES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    parser.add_argument(
        "--max-files",
        type=positive,
        default=_MOST_FILES,
        metavar="N",
        help="read the indices of so many files of each camera and so many data files, evenly "
        "spaced (default: %(default)s); bytes are estimates where there are more",
    )


def run(options: argparse.Namespace) -> int:
    """Looks and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: the dataset cannot be opened.
    """
    repository = open_repository(
        options.repository, revision=options.revision, endpoint=options.endpoint
    )
    with closing(repository), ProgressLine() as progress:
        summary = summarize(
            repository, max_files=options.max_files, on_progress=progress.show_files
        )
    if options.json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        print_report(summary_parts(summary))
    return 0
