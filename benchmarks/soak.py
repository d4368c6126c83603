"""Streams for an hour from a Hub of which many requests go wrong, and says every minute how much
memory the process has.

    python benchmarks/soak.py                                # an hour
    python benchmarks/soak.py --minutes 5 --probability 0.3

Every frame is checked by its barcode, every row by its number. The stream is never at rest: a
memory budget of 4 MB and no disk cache, so that each epoch fetches its video again; every few
seconds a second iterator on the same dataset is opened and closed. Memory is looked at after each
batch, and the smallest figures of a minute count: how much lies in frames and answers on their way
is chance.

Two figures, because they answer two questions. "Allocated" is what the C library has handed out and
not got back: a leak lets it grow. "Resident" is what the operating system sees: it has the holes
between the allocations, too, and grows until there is a hole for everything. The last line gives
the slopes after the first ten minutes (least squares), in MB an hour. torchcodec 0.13 with torch
2.13 leaks 0.9 KB for each decoder (docs/compatibility.md), which shows here; take
torchcodec 0.17 to see what is ours.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import lerobot_grain as lg
from lerobot_grain.testing import Camera, LoopbackHub, mixed_faults, read_barcodes, write_dataset

KEYS = ("observation.images.top", "observation.images.wrist")
BATCH = 32
# No figure covers these: the process must not be measured while it starts.
WARM_UP_MINUTES = 10


def main() -> None:
    """Runs the soak with the command line's options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N")
    parser.add_argument(
        "--probability",
        type=float,
        default=0.15,
        metavar="P",
        help="of a fault (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the figures are written, too"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, LoopbackHub() as hub:
        cameras = [Camera(key=key, height=64, width=96, codec="h264", gop=5) for key in KEYS]
        written = write_dataset(
            Path(directory) / "data",
            episode_lengths=[60] * 40,
            fps=10,
            cameras=cameras,
            episodes_per_video_file=10,
        )
        hub.add_repository("soak/data", written.directory, tags=["v3.0"])
        storage = lg.StorageOptions(
            disk_cache_bytes=0, read_timeout_seconds=2.0, pause_seconds=0.05
        )
        repository = lg.open_repository(
            "soak/data",
            endpoint=hub.endpoint,
            token=False,
            cache_dir=Path(directory) / "cache",
            storage_options=storage,
        )
        for fault in mixed_faults(options.probability, seed=0):
            hub.add_fault(fault)
        figures = soak(repository, hub, minutes=options.minutes)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))


def soak(repository: lg.Repository, hub: LoopbackHub, *, minutes: float) -> list[dict[str, Any]]:
    """Streams, and returns a line of figures for every minute."""
    options = lg.ReadOptions(memory_budget_bytes=4 << 20)
    dataset = lg.LeRobotIterDataset(repository, shuffle=lg.Shuffle(seed=0), read_options=options)
    figures: list[dict[str, Any]] = []
    started, num_examples, num_errors, num_short = time.monotonic(), 0, 0, 0
    next_line, next_short = 60.0, 0.0
    num_requests = num_faulted = 0
    resident = allocated = math.inf
    print(
        "| minute | examples | requests | with a fault | errors | short iterators | resident MB | "
        "allocated MB | threads |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with contextlib.closing(iter(dataset.batch(BATCH))) as batches:
        while (elapsed := time.monotonic() - started) < 60 * minutes:
            try:
                batch = next(batches)
            except lg.StorageError:
                # six attempts in a row met a fault; the next call reads the same batch again
                num_errors += 1
                continue
            _check(batch)
            num_examples += BATCH
            resident, allocated = (
                min(resident, _resident_bytes()),
                min(allocated, _allocated_bytes()),
            )
            if elapsed > next_short:
                next_short, num_short = elapsed + 3, num_short + 1
                with (
                    contextlib.closing(iter(dataset)) as short,
                    contextlib.suppress(lg.StorageError),
                ):
                    next(short)
            if elapsed > next_line:
                next_line += 60
                records = hub.requests()
                hub.clear_requests()
                num_requests += len(records)
                num_faulted += sum(record.faulted for record in records)
                del records
                line = {
                    "minute": round(elapsed / 60),
                    "examples": num_examples,
                    "requests": num_requests,
                    "faulted": num_faulted,
                    "errors": num_errors,
                    "short": num_short,
                    "resident_mb": round(resident / 1e6, 1),
                    "allocated_mb": round(allocated / 1e6, 1),
                    "threads": threading.active_count(),
                }
                resident = allocated = math.inf
                figures.append(line)
                print(f"| {' | '.join(str(value) for value in line.values())} |", flush=True)
    if len(late := [line for line in figures if line["minute"] > WARM_UP_MINUTES]) > 1:
        minutes = [line["minute"] for line in late]
        slopes = [
            np.polyfit(minutes, [line[name] for line in late], 1)[0] * 60
            for name in ("resident_mb", "allocated_mb")
        ]
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"after {WARM_UP_MINUTES} minutes, in MB an hour: resident {slopes[0]:+.2f}, "
            f"allocated {slopes[1]:+.2f}; peak {peak_mb:.0f} MB resident"
        )
    return figures


def _check(batch: dict[str, Any]) -> None:
    wanted = np.stack([batch["episode_index"], batch["frame_index"]], axis=1)
    for number, key in enumerate(KEYS):
        codes = read_barcodes(batch[key])
        assert (codes[:, :2] == wanted).all()
        assert (codes[:, 2] == number).all()


class _Mallinfo2(ctypes.Structure):
    """The figures that glibc (2.33 or newer) reports about its heaps."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _Mallinfo2


def _allocated_bytes() -> int:
    found = _LIBC.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
