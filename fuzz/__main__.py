"""python -m fuzz: runs the fuzzer for some time, or replays one input. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.corpus import make_seeds
from fuzz.targets import TARGETS

_WORKER = (sys.executable, "-m", "fuzz.worker")
# A worker that stays at one input for so long hangs in native code, where no signal reaches Python:
# processor seconds, since on a busy machine the clock on the wall tells little; and of that clock,
# for code that waits.
_STALLED_SECONDS = 30.0
_STALLED_WALL_SECONDS = 1800.0
# Inputs of one process, times the share of its target: many, since a process takes two seconds to
# begin.
_PART = 5000


@dataclass
class Counts:
    """Counts of the outcomes of one target's inputs."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)

    def line(self, name: str) -> str:
        """Returns one line for people."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return (
            f"{name:9} {self.inputs:9} inputs, {self.accepted:8} read, {rate:6.0f} a second, "
            f"{self.findings.total()} findings"
        )


def run_worker(
    name: str, corpus: Path, counts: Counts, *, seed: int, start: int, stop: int, folder: Path
) -> int:
    """Runs inputs `[start, stop)` in a process of its own, and returns the number after the last
    one that was run.
    """
    command = [*_WORKER, name, str(corpus / name), *map(str, (seed, start, stop, folder))]
    (folder / "progress").write_bytes(struct.pack("<Q", start))
    # Standard error goes to a file: what native code says when it ends the process.
    with (
        (folder / "stderr").open("w+b") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as worker,
    ):
        started = time.monotonic()
        last = -1
        while worker.poll() is None:
            time.sleep(0.05)
            used = processor_seconds(worker.pid)
            if (number := running_input(folder)) != last:
                last = number
                used_before = used
                wall_before = time.monotonic()
            if (
                used - used_before > _STALLED_SECONDS
                or time.monotonic() - wall_before > _STALLED_WALL_SECONDS
            ):
                worker.send_signal(signal.SIGKILL)
        assert worker.stdout is not None
        lines = [json.loads(line) for line in worker.stdout.read().splitlines()]
        stderr.seek(0)
        said = stderr.read().decode(errors="replace").strip()
    for found in lines:
        if "found" in found:
            print(f"{name} input {found['number']}: {found['found']}: {found['text']}", flush=True)
    if worker.returncode == 0:
        counts.inputs += lines[-1]["inputs"]
        counts.accepted += lines[-1]["accepted"]
        counts.seconds += lines[-1]["seconds"]
        counts.findings.update(lines[-1]["findings"])
        return stop
    if worker.returncode > 0:
        raise SystemExit(f"the worker of {name} failed:\n{said}")
    number = running_input(folder)
    kind = (
        "native code hung"
        if worker.returncode == -signal.SIGKILL
        else f"native code died of signal {-worker.returncode}"
    )
    print(f"{name} input {number}: {kind}: {said[-300:]}", flush=True)
    counts.inputs += number + 1 - start
    counts.seconds += time.monotonic() - started
    counts.findings[kind] += 1
    return number + 1


def processor_seconds(process: int) -> float:
    """Returns how much processor time a child has used; 0 if it has ended."""
    try:
        # After the name, which may hold spaces: utime and stime are fields 14 and 15 of proc(5).
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running_input(folder: Path) -> int:
    """Returns the number of the input that a worker is at."""
    (number,) = struct.unpack("<Q", (folder / "progress").read_bytes())
    return int(number)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--inputs", type=int, default=2_000_000, help="of all targets together")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no process begins after so long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--round",
        type=int,
        default=0,
        help="to go on after so many rounds of an earlier run with the same seed",
    )
    parser.add_argument("--folder", type=Path, help="where inputs with findings are kept")
    parser.add_argument(
        "--replay",
        type=Path,
        help="runs one kept input of the (only) target and shows what it raises",
    )
    given = parser.parse_args()
    if given.replay:
        TARGETS[given.targets[0]].run(given.replay.read_bytes())
        return
    os.nice(19)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = folder / "corpus"
    for name, seeds in make_seeds().items():
        (corpus / name).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds):
            (corpus / name / f"{number:03}").write_bytes(data)
    print(f"findings are kept in {folder}", flush=True)
    counts = {name: Counts() for name in given.targets}
    shares = sum(TARGETS[name].share for name in given.targets)
    part = min(_PART, max(given.inputs // shares, 1))
    until = time.monotonic() + given.seconds
    # All targets in turn, so that a run that is stopped has tried all of them.
    for round_number in range(given.round, given.round + max(given.inputs // (shares * part), 1)):
        for name in given.targets:
            inputs = part * TARGETS[name].share
            number, stop = round_number * inputs, (round_number + 1) * inputs
            while number < stop and time.monotonic() < until:
                number = run_worker(
                    name,
                    corpus,
                    counts[name],
                    seed=given.seed,
                    start=number,
                    stop=stop,
                    folder=folder,
                )
        print(
            f"round {round_number}",
            *(count.line(name) for name, count in counts.items()),
            sep="\n",
            flush=True,
        )
        if time.monotonic() > until:
            break
    raise SystemExit(1 if any(count.findings for count in counts.values()) else 0)


if __name__ == "__main__":
    main()
