"""The command line: what is common to its commands, each of which has a room of its own.

    lerobot-grain inspect org/name      what is it?
    lerobot-grain check org/name        is it whole, and what does it cost to stream it?
    lerobot-grain show org/name         what do its examples look like, and where are they stored?
    lerobot-grain profile org/name      how fast and how well mixed does it stream on this machine?
    lerobot-grain train-check org/name  what would a training on this machine wait for?
    lerobot-grain cache                 what is kept on disk? Fill it ahead of a training, clear it.

Rules:
* The result goes to standard output: text and tables, or one JSON value. Progress and errors go to
  standard error, progress only to a terminal.
* An exception of the package ends the command with status 2 and one line on standard error;
  anything else is a defect of ours and shows its traceback. Ctrl-C ends it with status 130, and a
  reader that closes the pipe with 141, as a shell has them.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lerobot_grain import LeRobotGrainError
from lerobot_grain._cli import cache as cli_cache
from lerobot_grain._cli import check as cli_check
from lerobot_grain._cli import inspect as cli_inspect
from lerobot_grain._cli import profile as cli_profile
from lerobot_grain._cli import show as cli_show
from lerobot_grain._cli import train_check as cli_train_check
from lerobot_grain._cli.output.report import printable

_INTERRUPTED = 130
_CLOSED_PIPE = 141
# Until a Ctrl-C is sent again: long enough to leave the place where exceptions are dropped.
_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """A command.

    Attributes:
      name, help, description: as `--help` has them.
      examples: command lines, without the name of the program, each with what it does.
      add_arguments, run: of its room.
      has_dataset: it takes the name of one, and its revision.
    """

    name: str
    help: str
    description: str
    examples: tuple[tuple[str, str], ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    has_dataset: bool = True


_COMMANDS = (
    _Command(
        name="inspect",
        help="say what a dataset is: cameras, features, episodes, tasks, costs",
        description="Says what a dataset is: its cameras with resolution, codec, GOP and rate, its "
        "features, tasks, the lengths of its episodes, and what an epoch costs to stream. Reads "
        "the metadata and the indices of some files, no frame and no row.",
        examples=(
            ("inspect lerobot/pusht", "a dataset on the Hub"),
            ("inspect ./my_dataset --json", "a directory, for a program"),
        ),
        add_arguments=cli_inspect.add_arguments,
        run=cli_inspect.run,
    ),
    _Command(
        name="check",
        help="find damaged files and rows without a frame before training does",
        description="Reads the metadata and the indices of all files, no frame and no row: "
        "whether every row has its frame, where files disagree, which episodes cannot "
        "be read, and what an epoch costs. Status 0: fine, 1: problems were found, 2: "
        "it cannot be read.",
        examples=(
            ("check lerobot/pusht", "all files"),
            ("check lerobot/droid_1.0.1 --max-files 20", "a sample of a large dataset"),
            ("check ./my_dataset --weights corrections.csv", "and the rows of a stream"),
        ),
        add_arguments=cli_check.add_arguments,
        run=cli_check.run,
    ),
    _Command(
        name="show",
        help="show examples or an episode: pictures, curves, and where they are stored",
        description="Says where rows and their frames are stored: episode, data file and row "
        "group, and for each camera the video file, frame, time, GOP and bytes. With --output or "
        "--open it makes a page of them, one file that needs no other: frames over time, states "
        "and actions with their padding, tasks, and where each is stored.",
        examples=(
            ("show lerobot/pusht --open", "some examples, in a browser"),
            ("show lerobot/pusht --episode 7 --output episode.html", "a whole episode"),
            ("show lerobot/pusht --row 4711", "where one row is stored, as text"),
            ("show lerobot/pusht --open --windows action=0,0.1,0.2", "with these windows"),
        ),
        add_arguments=cli_show.add_arguments,
        run=cli_show.run,
    ),
    _Command(
        name="profile",
        help="measure how fast and how well mixed a dataset streams",
        description="Streams a dataset for a while: how fast that is, what is waited for, what "
        "is read, and how random its order is.",
        examples=(
            ("profile lerobot/pusht", "for ten seconds"),
            ("profile lerobot/pusht --delta action=0,0.1,0.2 --image-size 96x96", "as trained"),
            ("profile lerobot/pusht --seconds 60 --plot profile.png", "with plots"),
        ),
        add_arguments=cli_profile.add_arguments,
        run=cli_profile.run,
    ),
    _Command(
        name="train-check",
        help="run a jitted step on the batches, and say what a training would wait for",
        description="Streams batches, runs a jitted step on them on this machine's device, alone "
        "and together with the stream: shapes, dtypes and bytes of a batch, batches a second "
        "against steps a second, and which of the two waits.",
        examples=(
            ("train-check lerobot/pusht --batch-size 64", "with a step that only reads"),
            ("train-check lerobot/pusht --step policy:loss", "with your own, of policy.py"),
            ("train-check lerobot/pusht --step-seconds 0.12", "against a known duration"),
        ),
        add_arguments=cli_train_check.add_arguments,
        run=cli_train_check.run,
    ),
    _Command(
        name="cache",
        help="list, fill or clear what is kept on disk",
        description="Lists what lies in the caches on disk: coded bytes by dataset, decoded frames "
        "by dataset, camera and size. --fill fetches a dataset ahead of a training, and decodes "
        "it with --frames; --clear deletes.",
        examples=(
            ("cache", "what is kept"),
            ("cache --fill lerobot/pusht", "fetch a dataset ahead of a training"),
            ("cache --fill lerobot/pusht --frames 50GB --image-size 96x96", "and decode it"),
            ("cache --clear lerobot/pusht", "delete what is kept of it"),
        ),
        add_arguments=cli_cache.add_arguments,
        run=cli_cache.run,
        has_dataset=False,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default that of the process. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _no_lost_interrupts():
            status: int = options.run(options)
        # A closed pipe shows here, and not when the interpreter ends.
        sys.stdout.flush()
    except LeRobotGrainError as error:
        line = " ".join(str(error).splitlines())
        print(f"lerobot-grain: {printable(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The rest of the buffer would be written, and fail, at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    return status


@contextlib.contextmanager
def _no_lost_interrupts() -> Iterator[None]:
    """Sends a Ctrl-C again that has struck where Python drops exceptions: in a destructor, or in a
    callback of the garbage collector, such as the one of JAX. Without, the command would go on.
    """
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if issubclass(found.exc_type, KeyboardInterrupt):
            timer = threading.Timer(_AGAIN_SECONDS, _interrupt)
            timer.daemon = True
            timer.start()
        else:
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt() -> None:
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)  # This ends a wait of the main thread, too.
    else:
        _thread.interrupt_main()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of a command takes up to fifteen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; `{self.prog} --help` says more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lerobot-grain",
        description="Looks at, checks and measures LeRobotDataset datasets, as they are streamed.",
        epilog="Every command has --json, and examples in its --help.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in _COMMANDS:
        command = commands.add_parser(
            each.name,
            help=each.help,
            description=each.description,
            epilog=_examples(each.examples),
            formatter_class=_Help,
        )
        if each.has_dataset:
            _add_dataset(command)
        each.add_arguments(command)
        command.add_argument(
            "--json", action="store_true", help="print one JSON value instead of text"
        )
        command.set_defaults(run=each.run)
    return parser


def _add_dataset(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "repository",
        metavar="ORG/NAME|DIRECTORY",
        help="a dataset on the Hub (or ORG/NAME/FOLDER), in hf://buckets/..., in "
        "s3://bucket/folder or gs://bucket/folder, or a directory",
    )
    add(
        "--revision",
        help="branch, tag or commit (default: the newest tag or branch v3.x, v2.1 or v2.0)",
    )
    add("--endpoint", help="of the Hub (default: huggingface.co, or HF_ENDPOINT)")


def _examples(examples: Sequence[tuple[str, str]]) -> str:
    width = max(len(line) for line, _ in examples)
    lines = (f"  lerobot-grain {line:<{width}}  {what}" for line, what in examples)
    return "\n".join(["examples:", *lines])


class _Help(argparse.HelpFormatter):
    """Wraps a description, and leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)
