"""Runs a batch of inputs of one target under limits of time and memory.

A process of its own: a crash of native code ends only it.

    python -m fuzz.worker TARGET CORPUS SEED START STOP FOLDER

CORPUS is a folder of seeds. The number of the input that is running is put into FOLDER/progress (8
bytes, which must be there), for whom finds the process dead. Every finding is a line of JSON on
standard output, and its input a file in FOLDER; the last line counts.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.targets import TARGETS, make_input

# Processor seconds for one input; on a busy machine the clock on the wall tells nothing.
_MAX_SECONDS = 1.0
# By how much the process may have grown at its peak.
_MAX_BYTES = 512 << 20
# The system refuses requests far above this at once.
_MAX_ADDRESSES = 4 << 30
# Inputs that are kept of each place that lets out an error.
_KEPT_INPUTS = 3


class _TooSlow(BaseException):
    """An input took more than `_MAX_SECONDS`.

    Not an `Exception`, which the code under test might catch.
    """


def _stop(_: int, __: FrameType | None) -> None:
    raise _TooSlow(f"more than {_MAX_SECONDS} s of processor time")


def peak_bytes() -> int:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place_of(error: BaseException) -> str:
    """Returns what findings are told apart by: the kind of the error and the innermost
    functions.
    """
    innermost = reversed(traceback.extract_tb(error.__traceback__)[-3:])
    where = [f"{Path(f.filename).name}:{f.name}:{f.lineno}" for f in innermost]
    return f"{type(error).__name__} in {' < '.join(where)}"


def run_batch(
    name: str, seeds: tuple[bytes, ...], *, seed: int, start: int, stop: int, folder: Path
) -> dict[str, Any]:
    """Runs inputs `[start, stop)`, prints the findings, and returns the counts."""
    target = TARGETS[name]
    # Memory that is allocated once is not counted for any input.
    for data in seeds:
        target.accepts(data)
    accepted, seen, peak = 0, Counter[str](), peak_bytes()
    limit = peak + _MAX_BYTES
    started = time.monotonic()
    before = signal.signal(signal.SIGPROF, _stop)
    with (folder / "progress").open("r+b") as file, mmap.mmap(file.fileno(), 8) as progress:
        for number in range(start, stop):
            struct.pack_into("<Q", progress, 0, number)
            data = make_input(target, seeds, seed=seed, number=number)
            found = ""
            signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)
            try:
                accepted += target.accepts(data)
            except (Exception, _TooSlow) as error:
                found, text = place_of(error), str(error)
            finally:
                # A signal may come between the error and this line.
                with contextlib.suppress(_TooSlow):
                    signal.setitimer(signal.ITIMER_PROF, 0)
            if not found and peak_bytes() > max(limit, peak + (64 << 20)):
                found = "too much memory"
                text = f"the peak is {peak_bytes() >> 20} MiB"
                peak = peak_bytes()
            if found:
                seen[found] += 1
                if seen[found] <= _KEPT_INPUTS:
                    (folder / f"{name}-{seed}-{number}").write_bytes(data)
                    print(
                        json.dumps({"number": number, "found": found, "text": text[:300]}),
                        flush=True,
                    )
    signal.signal(signal.SIGPROF, before)
    return {
        "inputs": stop - start,
        "accepted": accepted,
        "seconds": time.monotonic() - started,
        "findings": seen,
    }


def main() -> None:
    """The command line, see above."""
    name, corpus, seed, start, stop, folder = sys.argv[1:]
    warnings.simplefilter("error")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MAX_ADDRESSES, resource.RLIM_INFINITY))
    seeds = tuple(path.read_bytes() for path in sorted(Path(corpus).iterdir()))
    print(
        json.dumps(
            run_batch(
                name, seeds, seed=int(seed), start=int(start), stop=int(stop), folder=Path(folder)
            )
        )
    )


if __name__ == "__main__":
    main()
