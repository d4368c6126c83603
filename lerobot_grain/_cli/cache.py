"""`lerobot-grain cache`: lists what lies in the caches on disk, deletes it, or fills them ahead of
a training.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

from lerobot_grain import (
    FilledCache,
    InvalidRequestError,
    ReadOptions,
    StorageOptions,
    fill_cache,
    open_repository,
)
from lerobot_grain._cli.argument_types import episodes, image_size, positive, size_bytes
from lerobot_grain._cli.output.report import Part, Table, print_report
from lerobot_grain._cli.output.units import size
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._inspection.cache_contents import CacheContents, cache_contents, clear_caches

# Options that belong to --fill, and are None where they were not given.
_OF_FILL = (
    "revision",
    "endpoint",
    "features",
    "episodes",
    "image_size",
    "disk_cache",
    "frames",
    "threads",
    "budget",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command. It has no dataset of its own: the default is all."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--clear",
        nargs="?",
        const=True,
        metavar="NAME",
        help="delete what is kept of this dataset (ORG/NAME, or ORG/NAME@COMMIT as it is listed), "
        "or everything",
    )
    what.add_argument(
        "--fill",
        metavar="ORG/NAME|DIRECTORY",
        help="fetch this dataset ahead of a training; what is there is not fetched again",
    )
    add(
        "--frame-directory",
        metavar="DIRECTORY",
        help="of decoded frames (default: that of ReadOptions)",
    )
    _add_fill_arguments(parser)


def _add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("with --fill").add_argument
    add("--frames", type=size_bytes, metavar="BYTES", help="decode, too: keep so many, as in 50GB")
    add("--features", nargs="+", metavar="KEY", help="only these (default: all)")
    add(
        "--episodes",
        type=episodes,
        metavar="RANGE",
        help="only these, such as :50, 10:20 or 0,7,9 (default: all)",
    )
    add(
        "--image-size",
        type=image_size,
        metavar="HxW",
        help="to which the training resizes all cameras, such as 96x128; with --frames",
    )
    add("--revision", help="branch, tag or commit, as of the other commands")
    add("--endpoint", help="of the Hub (default: huggingface.co, or HF_ENDPOINT)")
    add(
        "--disk-cache",
        type=size_bytes,
        metavar="BYTES",
        help="that all coded bytes may take, as StorageOptions(disk_cache_bytes=) of the training "
        "(default: 16GiB)",
    )
    add("--threads", type=positive, metavar="N", help="that decode (default: one per core)")
    add("--budget", type=size_bytes, metavar="BYTES", help="memory (default: as in ReadOptions)")


def run(options: argparse.Namespace) -> int:
    """Lists, deletes or fills, and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: an option is out of its range, or belongs to --fill; nothing of the dataset
        to be deleted is kept; or the one to be fetched cannot be opened or read.
    """
    if options.fill is not None:
        return _fill(options)
    given = [name for name in _OF_FILL if getattr(options, name) is not None]
    if given:
        raise InvalidRequestError(f"--{given[0].replace('_', '-')} belongs to --fill ORG/NAME")
    if options.clear is not None:
        return _clear(options)
    contents = cache_contents(options.frame_directory)
    if options.json:
        print(json.dumps(_as_json(contents), indent=2))
    else:
        print_report(_parts(contents))
    return 0


def _clear(options: argparse.Namespace) -> int:
    name = None if options.clear is True else options.clear
    cleared = clear_caches(name, options.frame_directory)
    if options.json:
        print(json.dumps(asdict(cleared), indent=2))
    else:
        print(
            f"deleted {size(cleared.coded_bytes)} of video, rows and indices, and "
            f"{size(cleared.frame_bytes)} of decoded frames"
        )
    return 0


def _fill(options: argparse.Namespace) -> int:
    if options.image_size is not None and options.frames is None:
        raise InvalidRequestError("--image-size belongs to --frames: what is fetched has one size")
    if options.frame_directory is not None and options.frames is None:
        raise InvalidRequestError("--frame-directory belongs to --frames, where it says --fill")
    storage = (
        StorageOptions()
        if options.disk_cache is None
        else StorageOptions(disk_cache_bytes=options.disk_cache)
    )
    read_options = ReadOptions(
        memory_budget_bytes=options.budget,
        num_decode_threads=options.threads,
        storage=storage,
        frame_cache_bytes=options.frames or 0,
        frame_cache_directory=options.frame_directory,
    )
    start = time.perf_counter()
    repository = open_repository(
        options.fill,
        revision=options.revision,
        endpoint=options.endpoint,
        storage_options=storage,
    )
    with closing(repository), ProgressLine() as progress:
        filled = fill_cache(
            repository,
            features=options.features,
            episodes=options.episodes,
            image_size=options.image_size,
            read_options=read_options,
            on_progress=lambda what, done, total: progress.show(
                f"{what}: {_amount(what, done)} of {_amount(what, total)}, {done / total:.0%}",
                share=done / total,
            ),
        )
    seconds = time.perf_counter() - start
    print(
        json.dumps(asdict(filled) | {"seconds": seconds}, indent=2)
        if options.json
        else _filled_text(filled, seconds)
    )
    return 0


def _amount(what: str, number: int) -> str:
    return size(number) if what == "rows and video" else f"{number:,}"


def _filled_text(filled: FilledCache, seconds: float) -> str:
    lines = [
        f"{filled.dataset}: {filled.num_episodes:,} episodes, in {seconds:.1f} s",
        f"fetched {size(filled.bytes_fetched)}; of rows and video "
        f"{size(filled.bytes_selected)} are to be kept",
    ]
    if filled.bytes_above_limit:
        lines.append(
            f"{size(filled.bytes_above_limit)} of them are not: they are above the limit, "
            "which --disk-cache and StorageOptions(disk_cache_bytes=) of the training raise"
        )
    if filled.frames_selected:
        lines.append(
            f"decoded {filled.frames_decoded:,} frames; {filled.frames_there:,} of "
            f"{filled.frames_selected:,} are kept"
        )
    return "\n".join(lines)


def _as_json(contents: CacheContents) -> dict[str, Any]:
    return {
        "directory": contents.directory,
        "coded_bytes": contents.coded_bytes,
        "datasets": [each._asdict() for each in contents.pieces],
        "indices": contents.indices._asdict(),
        "frame_directory": contents.frame_directory,
        "frame_bytes": contents.frame_bytes,
        "frames": [each._asdict() for each in contents.frames],
    }


def _parts(contents: CacheContents) -> list[Part]:
    """Returns the contents as lines and tables, for people."""
    coded = [
        (
            _name(each.dataset),
            f"{each.pieces:,} pieces",
            size(each.num_bytes),
            _when(each.last_used),
        )
        for each in contents.pieces
    ]
    if contents.indices.files:
        indices = contents.indices
        files = f"{indices.files:,} files"
        coded.append(("indices of all datasets", files, size(indices.num_bytes), ""))
    frames = [
        (
            _name(each.dataset),
            _name(each.camera),
            "as recorded" if each.image_size is None else "{}x{}".format(*each.image_size),
            f"{each.files:,} episodes",
            size(each.num_bytes),
            _when(each.last_used),
        )
        for each in contents.frames
    ]
    return [
        f"video and rows, in {contents.directory}: {size(contents.coded_bytes)}",
        Table(rows=coded),
        "",
        f"decoded frames, in {contents.frame_directory}: {size(contents.frame_bytes)}",
        Table(rows=frames),
    ]


def _name(text: str) -> str:
    return text or "(not known)"


def _when(seconds: float) -> str:
    return f"used {time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))}"
