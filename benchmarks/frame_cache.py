"""Measures what decoded frames on disk (`ReadOptions(frame_cache_bytes=...)`) are worth, and prints
a table.

    python benchmarks/frame_cache.py                      # both cases, all kinds
    python benchmarks/frame_cache.py --cases vga3 --kinds off all new
    python benchmarks/frame_cache.py --kinds all cold     # from the disk itself
    python benchmarks/frame_cache.py --repeats 3 --json frame_cache.json

    vga3     three cameras of 640x480, AV1, g=2, noisy: 2,400 rows, 6.6 GB of frames
    small    a camera of 96x96, the same: 24,000 rows, 0.7 GB

Kinds, each in a process of its own:

    off      two epochs without the cache
    all      two epochs with a cache that is empty at first and has room for all
    new      an epoch with that cache: what a second run finds (needs `all`)
    cold     as `new`, after the files were dropped from the memory of the system (fsync, then
             posix_fadvise(DONTNEED)); and before that, as fast as the same files are read one after
             the other, dropped as well
    half     two epochs with a cache that is empty at first and has room for half

But for `cold`, what the cache holds is in the memory of the system where that has room for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _cases import CASES, TINY, Case, prepare
from _measure import memory_bytes

from lerobot_grain import LeRobotIterDataset, ReadOptions, open_repository, read_statistics

_KINDS = ("off", "all", "new", "cold", "half")
# These find what `all` has left.
_READING = ("new", "cold")
# Of the episodes of the case: 2,400 rows, and 24,000.
_SHARES = {"vga3": 0.5, "small": 0.4}
_BATCH_SIZE = 64
_TIMEOUT_SECONDS = 900
# Besides its frames a file has a page or two.
_FILE_BYTES = 1 << 16
_READ_BYTES = 1 << 20


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Reads some epochs, in this process."""
    disk_rate = _disk_rate(Path(job["cache_directory"])) if job["is_cold"] else None
    repository = open_repository(job["repository"])
    dataset = LeRobotIterDataset(
        repository,
        num_epochs=job["epochs"],
        read_options=ReadOptions(
            frame_cache_bytes=job["cache_bytes"], frame_cache_directory=job["cache_directory"]
        ),
    )
    iterator = iter(dataset.batch(_BATCH_SIZE))
    num_rows = repository.episodes.num_rows
    rates = []
    decoded = []
    started = time.perf_counter()
    first_batch_seconds = 0.0
    examples = 0
    for batch in iterator:
        now = time.perf_counter()
        first_batch_seconds = first_batch_seconds or now - started
        examples += len(batch["index"])
        if examples >= num_rows * (len(rates) + 1):
            rates.append(num_rows / (now - started - sum(num_rows / rate for rate in rates)))
            decoded.append(read_statistics(iterator).pictures_decoded - sum(decoded))
    statistics = read_statistics(iterator)
    return {
        "rates": rates,
        "decoded": decoded,
        "first_batch_seconds": first_batch_seconds,
        "frames_from_cache": statistics.frames_from_cache,
        "frames_handed_out": statistics.frames_handed_out,
        "anonymous_bytes": memory_bytes("RssAnon"),
        "disk_bytes_per_second": disk_rate,
    }


def _disk_rate(directory: Path) -> float:
    """Returns the bytes a second at which files are read one after the other, from the disk; leaves
    nothing of them in memory.
    """
    files = sorted(directory.iterdir())
    _drop_from_memory(files)
    started = time.perf_counter()
    num_bytes = 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while data := file.read(_READ_BYTES):
                num_bytes += len(data)
    seconds = time.perf_counter() - started
    _drop_from_memory(files)
    return num_bytes / seconds


def _drop_from_memory(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with the command line's options."""
    options = make_parser().parse_args(arguments)
    if options.job is not None:
        print(json.dumps(measure(json.loads(options.job))))
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for case in CASES:
        if case.name in options.cases:
            share = TINY if options.scale == TINY else _SHARES[case.name] * options.scale
            directory = prepare(case, cache=options.cache, scale=share).resolve()
            for _ in range(options.repeats):
                found += _measure_case(case, directory, options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(_table(found))


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", nargs="+", choices=list(_SHARES), default=list(_SHARES), metavar="CASE")
    add("--kinds", nargs="+", choices=_KINDS, default=_KINDS, metavar="KIND")
    add("--repeats", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add("--scale", type=float, default=1.0, metavar="X", help="multiplies the episodes; 0: tiny")
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark",
        help="of datasets, and of frames (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write every result")
    add("--job", help=argparse.SUPPRESS)
    return parser


def _measure_case(case: Case, directory: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a result of each kind."""
    repository = open_repository(directory)
    episodes = repository.episodes
    frame_bytes = sum(
        repository.features[key].shape[0] * repository.features[key].shape[1] * 3
        for key in repository.cameras
    )
    num_files = episodes.num_episodes * len(repository.cameras)
    all_bytes = frame_bytes * episodes.num_rows + _FILE_BYTES * num_files
    frames = options.cache / "frames"
    found = []
    for kind in options.kinds:
        if kind in ("all", "half"):
            shutil.rmtree(frames, ignore_errors=True)
        job = {
            "repository": str(directory),
            "cache_directory": str(frames),
            "cache_bytes": {"off": 0, "half": all_bytes // 2}.get(kind, all_bytes),
            "epochs": 1 if kind in _READING else 2,
            "is_cold": kind == "cold",
        }
        done = subprocess.run(
            [sys.executable, __file__, "--job", json.dumps(job)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        result = {"case": case.name, "kind": kind, "frame_bytes": frame_bytes} | json.loads(
            done.stdout.splitlines()[-1]
        )
        print(json.dumps(result), file=sys.stderr, flush=True)
        found.append(result)
    shutil.rmtree(frames, ignore_errors=True)
    return found


def _table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the medians as Markdown."""
    lines = [
        "| case | frame cache | first epoch, examples/s | second | second / first without | "
        "pictures decoded in the second | first batch, s | RssAnon, MB | "
        "the disk's bandwidth, GB/s | that of the epoch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(each["case"] for each in found):
        of_case = [each for each in found if each["case"] == case]
        without = [each["rates"][0] for each in of_case if each["kind"] == "off"]
        for kind in dict.fromkeys(each["kind"] for each in of_case):
            results = [each for each in of_case if each["kind"] == kind]
            last = median(each["rates"][-1] for each in results)
            first = f"{median(each['rates'][0] for each in results):,.0f}"
            first = "" if kind in _READING else first
            ratio = f"{last / median(without):.2f}" if without else ""
            decoded = median(each["decoded"][-1] for each in results)
            seconds = median(each["first_batch_seconds"] for each in results)
            memory = median((each["anonymous_bytes"] or 0) / 1e6 for each in results)
            disk = epoch = ""
            if kind == "cold":
                disk = f"{median(each['disk_bytes_per_second'] for each in results) / 1e9:.2f}"
                epoch = f"{last * results[0]['frame_bytes'] / 1e9:.2f}"
            lines.append(
                f"| {case} | {kind} | {first} | {last:,.0f} | {ratio} | "
                f"{decoded:,.0f} | {seconds:.2f} | {memory:,.0f} | {disk} | {epoch} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
