"""`lerobot-grain show`: prints where a row and its frames are stored, as `locate` finds it."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict

from lerobot_grain import locate, open_repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    parser.add_argument(
        "--row", type=int, required=True, metavar="N", help="row of the dataset, from 0"
    )
    parser.add_argument("--camera", metavar="KEY", help="only this camera (default: all)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the text"
    )


def run(options: argparse.Namespace) -> int:
    """Locates the row and prints the result. Returns the exit status.

    Raises:
      LeRobotGrainError: the dataset cannot be opened, or it has no such row or camera, or cannot be
        read there.
    """
    repository = open_repository(
        options.repository, revision=options.revision, endpoint=options.endpoint
    )
    with closing(repository):
        found = locate(repository, options.row, options.camera)
    print(json.dumps(asdict(found), indent=2) if options.json else found)
    return 0
