"""`lerobot-grain show`: says where rows and their frames are stored, and makes a page of them with
pictures and curves.

The page: `_cli/page/document`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from lerobot_grain import InvalidRequestError, Repository, RowLocation, locate, open_repository
from lerobot_grain._cli.argument_types import count, positive, window
from lerobot_grain._cli.output.files import check_can_be_written, write_whole
from lerobot_grain._cli.output.report import printable
from lerobot_grain._cli.output.units import size
from lerobot_grain._cli.page.document import page
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._inspection.overview.shown import Shown
from lerobot_grain._inspection.overview.shown_rows import (
    first_rows,
    read_episode,
    read_examples,
    row_places,
    rows_of_episode,
    windows_around,
)

# As many pictures as stand side by side.
_FRAMES = 5
_EXAMPLES = 4
# Examples that are read side by side, and held with their pictures.
_READ_TOGETHER = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--row", type=int, metavar="N", help="row of the dataset, from 0")
    what.add_argument("--episode", type=count, metavar="N", help="a whole episode, by its number")
    what.add_argument(
        "--examples",
        type=positive,
        default=_EXAMPLES,
        metavar="N",
        help="the first rows of a shuffled stream (default: %(default)s of them)",
    )
    add = parser.add_argument
    add("--seed", type=count, default=0, metavar="N", help="of that stream (default: %(default)s)")
    add("--camera", metavar="KEY", help="only this camera (default: all)")
    page_of = parser.add_argument_group("page")
    page_of.add_argument(
        "--output", type=Path, metavar="FILE.html", help="write a page with pictures and curves"
    )
    page_of.add_argument(
        "--open",
        action="store_true",
        help="open the page in a browser; without --output it is a temporary file",
    )
    page_of.add_argument(
        "--windows",
        nargs="*",
        type=window,
        metavar="KEY=SECONDS,...",
        help="windows of features, as delta_timestamps, such as action=0,0.1,0.2; without a value: "
        "none (default: one second before the row to one after it)",
    )
    page_of.add_argument(
        "--frames",
        type=positive,
        default=_FRAMES,
        metavar="N",
        help="pictures of each camera, where no window says which (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Prints where rows are stored, or makes their page. Returns the exit status.

    Raises:
      LeRobotGrainError: the dataset cannot be opened, or it has no such row, episode or camera, or
        cannot be read there; the page cannot be written.
    """
    makes_page = options.output is not None or options.open
    if options.windows is not None and options.episode is not None:
        raise InvalidRequestError("--windows belongs to rows; an episode is shown whole")
    if options.windows is not None and not makes_page:
        raise InvalidRequestError("--windows belongs to a page; add --output FILE.html, or --open")
    if options.output is not None:
        check_can_be_written(options.output, "--output")
    repository = open_repository(
        options.repository, revision=options.revision, endpoint=options.endpoint
    )
    with closing(repository):
        if not makes_page:
            _print(_places(repository, options), options)
            return 0
        places: list[RowLocation] = []
        with ProgressLine() as progress:
            progress.show("reading rows and frames")
            shown = _noting_places(_shown(repository, options), places)
            html = page(repository, shown, command=_command(options))
    # Half a surrogate pair, which JSON can have, has no UTF-8.
    contents = html.encode("utf-8", "backslashreplace")
    path = _written(contents, options.output)
    if options.json:
        _print(places, options)
    else:
        print(f"{printable(str(path))}: {size(len(contents))}")
    if options.open and not webbrowser.open(path.absolute().as_uri()):
        name = printable(str(path))
        print(f"lerobot-grain: found no browser to open {name} with", file=sys.stderr)
        return 1
    return 0


def _print(places: Sequence[RowLocation], options: argparse.Namespace) -> None:
    """Prints where rows are stored; one row as one object, several as a list."""
    if options.json:
        found = [asdict(place) for place in places]
        print(json.dumps(found[0] if options.row is not None else found, indent=2))
    else:
        print("\n\n".join(printable(str(place)) for place in places))


def _places(repository: Repository, options: argparse.Namespace) -> Sequence[RowLocation]:
    """Returns where rows are stored. For one row, an error of the reader is an error here."""
    if options.row is not None:
        return [locate(repository, options.row, options.camera)]
    cameras = _cameras(repository, options)
    rows = (
        first_rows(repository, count=options.examples, seed=options.seed)
        if options.episode is None
        else rows_of_episode(repository, options.episode, count=options.frames)
    )
    return row_places(repository, rows, cameras)


def _cameras(repository: Repository, options: argparse.Namespace) -> tuple[str, ...]:
    if options.camera is None:
        return repository.cameras
    if options.camera not in repository.cameras:
        known = ", ".join(repository.cameras) or "no cameras"
        raise InvalidRequestError(
            f"{repository.description}: there is no camera {options.camera!r}; there are {known}"
        )
    return (options.camera,)


def _noting_places(shown: Iterable[Shown], places: list[RowLocation]) -> Iterator[Shown]:
    """Yields examples, and collects where they are stored."""
    for each in shown:
        places += each.places
        yield each


def _shown(repository: Repository, options: argparse.Namespace) -> Iterator[Shown]:
    """Yields what is on the page, read a few examples at a time."""
    cameras = _cameras(repository, options)
    if options.episode is not None:
        yield read_episode(
            repository, options.episode, cameras=cameras, frames_per_camera=options.frames
        )
        return
    rows = (
        first_rows(repository, count=options.examples, seed=options.seed)
        if options.row is None
        else [options.row]
    )
    features = [key for key, each in repository.features.items() if not each.is_camera]
    windows = (
        windows_around(repository, [*features, *cameras], frames_per_camera=options.frames)
        if options.windows is None
        else dict(options.windows)
    )
    for start in range(0, len(rows), _READ_TOGETHER):
        some = rows[start : start + _READ_TOGETHER]
        yield from read_examples(repository, some, cameras=cameras, windows=windows)


def _command(options: argparse.Namespace) -> str:
    """Returns the command that makes the page again."""
    words = ["lerobot-grain", "show", options.repository]
    for name in ("revision", "endpoint", "row", "episode", "camera"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    if options.row is None and options.episode is None:
        words += ["--examples", str(options.examples), "--seed", str(options.seed)]
    if options.frames != _FRAMES:
        words += ["--frames", str(options.frames)]
    if options.windows is not None:
        words += [
            "--windows",
            *(f"{key}={','.join(map(repr, deltas))}" for key, deltas in options.windows),
        ]
    return shlex.join([*words, "--output", (options.output or Path("page.html")).name])


def _written(contents: bytes, output: Path | None) -> Path:
    if output is not None:
        write_whole(output, contents, "--output")
        return output
    # A directory that only this user can read.
    path = Path(tempfile.mkdtemp(prefix="lerobot-grain-show-")) / "page.html"
    write_whole(path, contents, "--open")
    return path
