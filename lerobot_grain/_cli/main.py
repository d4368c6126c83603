"""The command line: what is common to its commands, each of which has a room of its own.

    lerobot-grain check org/name      is it whole, and what does it cost to stream it?
    lerobot-grain profile org/name    how fast and how well mixed does it stream on this machine?
    lerobot-grain show org/name       where are a row and its frames stored?
    lerobot-grain cache               what is kept on disk? Fill it ahead of a training, clear it.

Rules:
* The result goes to standard output: a table, or one JSON object. Progress goes to standard error,
  and only to a terminal.
* An exception of the package ends the command with status 2 and one line on standard error;
  anything else is a defect of ours and shows its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lerobot_grain import LeRobotGrainError
from lerobot_grain._cli import cache as cli_cache
from lerobot_grain._cli import check as cli_check
from lerobot_grain._cli import profile as cli_profile
from lerobot_grain._cli import show as cli_show


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except LeRobotGrainError as error:
        print(f"lerobot-grain: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lerobot-grain", description="Streams LeRobotDataset datasets as Grain datasets."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    profile = commands.add_parser(
        "profile",
        help="measure how fast and how well mixed a dataset streams",
        description="Streams a dataset for a while: how fast that is, what is waited for, what "
        "is read, and how random its order is.",
    )
    check = commands.add_parser(
        "check",
        help="find damaged files and rows without a frame before training does",
        description="Reads the metadata and the indices of all files, no frame and no row: "
        "whether every row has its frame, where files disagree, which episodes cannot "
        "be read, and what an epoch costs. Status 0: fine, 1: problems were found, 2: "
        "it cannot be read.",
    )
    show = commands.add_parser(
        "show",
        help="print where a row and its frames are stored",
        description="Prints the episode of a row, its data file and row group, and for each "
        "camera the video file, frame, time, GOP and bytes. Reads the indexes of "
        "these files, and decodes no frame.",
    )
    for command, room in ((profile, cli_profile), (check, cli_check), (show, cli_show)):
        add = command.add_argument
        add(
            "repository",
            metavar="ORG/NAME|DIRECTORY",
            help="a dataset on the Hub (or ORG/NAME/FOLDER), in hf://buckets/..., or a directory",
        )
        add(
            "--revision",
            help="branch, tag or commit (default: the newest tag or branch v3.x, v2.1 or v2.0)",
        )
        add("--endpoint", help="of the Hub (default: huggingface.co, or HF_ENDPOINT)")
        room.add_arguments(command)
        command.set_defaults(run=room.run)
    cache = commands.add_parser(
        "cache",
        help="list, fill or clear what is kept on disk",
        description="Lists what lies in the caches on disk: coded bytes by dataset, decoded frames "
        "by dataset, camera and size. --fill fetches a dataset ahead of a training, and decodes "
        "it with --frames; --clear deletes.",
    )
    cli_cache.add_arguments(cache)
    cache.set_defaults(run=cli_cache.run)
    return parser
