"""Measures what readers elsewhere cost and bring: throughput against the plain stream, bytes a
second that pass the wire or the store, and the time that a killed reader costs.

    python benchmarks/readers.py                                   # Flight, both cases
    python benchmarks/readers.py --engines flight ray --repeats 5
    python benchmarks/readers.py --cases vga3 --readers 4

Readers are processes of this machine and share its cores with the consumer: so this is the price of
sending, not what other machines bring. All kinds are measured in turn, in one run, each from its
first batch on:

    plain    `LeRobotIterDataset(...).batch(64)`
    workers  `WorkerPrefetchIterDataset`, as many processes as readers
    flight   `ReaderServer` processes
    ray      actors of a Ray that is started here

A kill: one reader is killed in the middle, and not started again where it is a server. Its cost is
the longest wait for a batch after it, less the longest one before. "Consumer's cores" is processor
time of the consumer's process, all its threads, divided by time. "By processor time" is how many
examples a second of processor time gives, of all processes together, compared with the plain
stream: the ratio of throughputs where all share the cores, also on a machine that has other work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from _cases import CASES, prepare, scale_of

import lerobot_grain as lg

_CASES = ("small", "vga3")
_ENGINES = ("workers", "flight", "ray")
_MIB = 1 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with the command line's options."""
    options = make_parser().parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    found = {}
    for case in CASES:
        if case.name in options.cases:
            directory = prepare(case, cache=options.cache, scale=options.scale)
            found[case.name] = measure(directory, options)
            print(table(case.name, found[case.name], options), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", nargs="+", choices=_CASES, default=_CASES)
    add("--engines", nargs="+", choices=_ENGINES, default=["flight"])
    add("--readers", type=int, default=2, metavar="N", help="(default: %(default)s)")
    add("--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)")
    add("--seconds", type=float, default=6.0, help="of one measurement (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="(default: %(default)s)")
    add("--kills", type=int, default=3, metavar="N", help="(default: %(default)s)")
    add("--scale", type=scale_of, default=1.0, help="of the datasets: a number, or tiny")
    add("--json", type=Path, help="write all figures into this file")
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark",
        help="of datasets (default: %(default)s)",
    )
    return parser


def stream(directory: str) -> lg.LeRobotIterDataset:
    return lg.LeRobotIterDataset(directory)


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the measurements of a dataset: kind -> one dict for each repeat."""
    dataset = stream(str(directory))
    found: dict[str, list[dict[str, Any]]] = {"plain": []}
    found |= {engine: [] for engine in options.engines}
    with contextlib.ExitStack() as stack:
        datasets = {"plain": dataset}
        for engine in options.engines:
            datasets[engine] = stack.enter_context(_READERS[engine](dataset, directory, options))
        for _ in range(options.repeats):
            for kind, each in datasets.items():
                found[kind].append(rate(each, options))
                print(kind, json.dumps(found[kind][-1]), file=sys.stderr, flush=True)
    for engine in set(options.engines) & set(_KILLS) if options.kills else ():
        found[f"{engine} kills"] = _KILLS[engine](dataset, directory, options)
        print(engine, json.dumps(found[f"{engine} kills"]), file=sys.stderr, flush=True)
    return found


def rate(dataset: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Reads for a while, from the first batch on."""
    with contextlib.closing(iter(dataset.batch(options.batch_size))) as batches:
        begin = time.perf_counter()
        next(batches)
        start = now = time.perf_counter()
        cpu = time.process_time()
        all_cpu = processor_seconds()
        examples = num_bytes = 0
        longest = 0.0
        while now - start < options.seconds:
            batch = next(batches)
            examples += len(batch["index"])
            num_bytes += sum(getattr(value, "nbytes", 0) for value in batch.values())
            before, now = now, time.perf_counter()
            longest = max(longest, now - before)
            del batch
        seconds = now - start
        return {
            "examples_per_second": examples / seconds,
            "bytes_per_second": num_bytes / seconds,
            "bytes_per_example": num_bytes / examples,
            "first_batch_seconds": start - begin,
            "longest_wait_seconds": longest,
            "consumer_cores": (time.process_time() - cpu) / seconds,
            "processor_seconds_per_example": (processor_seconds() - all_cpu) / examples,
        }


def processor_seconds() -> float:
    """Returns the processor time of this process and of all that it has started, and they have."""
    return sum(each.ticks for each in own_processes()) / os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A process: its number, its processor time, and what it calls itself."""

    pid: int
    ticks: int
    title: bytes


def own_processes() -> list[Process]:
    """Returns this process and all that it has started, and they have."""
    parents: dict[int, int] = {}
    found: dict[int, Process] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            fields = entry.read_text().rpartition(")")[2].split()
            pid = int(entry.parent.name)
            title = (entry.parent / "cmdline").read_bytes()
            found[pid] = Process(pid, int(fields[11]) + int(fields[12]), title)
            parents[pid] = int(fields[1])
    own = []
    for pid, process in found.items():
        ancestor = pid
        while ancestor and ancestor != os.getpid():
            ancestor = parents.get(ancestor, 0)
        if ancestor:
            own.append(process)
    return own


# --- readers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(dataset: Any, _directory: Path, options: argparse.Namespace) -> Iterator[Any]:
    yield lg.WorkerPrefetchIterDataset(dataset, num_workers=options.readers)


def _serve(ready: Connection, directory: str) -> None:
    with lg.ReaderServer(stream(directory)) as server:
        ready.send(server.url)
        server.wait()


def _servers(directory: Path, count: int) -> tuple[list[Any], list[str]]:
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, str(directory)), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    return processes, [pipe.recv() for pipe in pipes]


@contextlib.contextmanager
def _flight(dataset: Any, directory: Path, options: argparse.Namespace) -> Iterator[Any]:
    processes, urls = _servers(directory, options.readers)
    yield lg.RemoteReaderIterDataset(dataset, readers=lg.FlightReaders(urls))
    for process in processes:
        process.kill()
        process.join()


@contextlib.contextmanager
def _ray(dataset: Any, _directory: Path, options: argparse.Namespace) -> Iterator[Any]:
    import ray

    ray.init(num_cpus=options.readers, include_dashboard=False, logging_level="ERROR")
    yield lg.RemoteReaderIterDataset(dataset, readers=lg.RayReaders(options.readers))
    ray.shutdown()


_READERS = {"workers": _workers, "flight": _flight, "ray": _ray}


# --- kills ---------------------------------------------------------------------------------------


def _flight_kills(dataset: Any, directory: Path, options: argparse.Namespace) -> list[Any]:
    # One server is killed after the other; the first one stays.
    processes, urls = _servers(directory, options.kills + 1)
    remote = lg.RemoteReaderIterDataset(dataset, readers=lg.FlightReaders(urls))
    try:
        return _longest_waits(remote, [each.kill for each in processes[1:]], options)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _ray_kills(dataset: Any, directory: Path, options: argparse.Namespace) -> list[Any]:
    with _ray(dataset, directory, options) as remote:

        def kill() -> None:
            # Ray's own list of actors is a part of its dashboard.
            actors = [
                each.pid for each in own_processes() if each.title.startswith(b"ray::_Reader")
            ]
            os.kill(max(actors), signal.SIGKILL)

        return _longest_waits(remote, [kill] * options.kills, options)


_KILLS = {"flight": _flight_kills, "ray": _ray_kills}


def _longest_waits(
    dataset: Any, kills: Sequence[Any], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Returns what each kill costs: the longest wait for a batch before any, and after it."""
    found = []
    with contextlib.closing(iter(dataset.batch(options.batch_size))) as batches:
        next(batches)
        before = _longest_wait(batches, options.seconds)
        for kill in kills:
            kill()
            after = _longest_wait(batches, options.seconds)
            found.append({"before": before, "after": after, "lost_seconds": after - before})
    return found


def _longest_wait(batches: Iterator[Any], seconds: float) -> float:
    longest = 0.0
    until = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < until:
        next(batches)
        longest = max(longest, time.perf_counter() - begin)
    return longest


def table(name: str, found: dict[str, Any], options: argparse.Namespace) -> str:
    """Returns medians, and ratios of medians, as a table."""
    plain = statistics.median(each["examples_per_second"] for each in found["plain"])
    cost = statistics.median(each["processor_seconds_per_example"] for each in found["plain"])
    lines = [
        f"{name}, {options.readers} readers, {os.cpu_count()} cores, medians of {options.repeats}",
        "| kind | examples/s | of plain | by processor time | MiB/s | consumer's cores "
        "| first batch | a kill costs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("plain", *options.engines):
        medians = {
            key: statistics.median(each[key] for each in found[kind]) for key in found[kind][0]
        }
        kills = [each["lost_seconds"] for each in found.get(f"{kind} kills", ())]
        lines.append(
            f"| {kind} | {medians['examples_per_second']:,.0f} "
            f"| {medians['examples_per_second'] / plain:.2f} "
            f"| {cost / medians['processor_seconds_per_example']:.2f} "
            f"| {medians['bytes_per_second'] / _MIB:,.0f} "
            f"| {medians['consumer_cores']:.2f} "
            f"| {medians['first_batch_seconds']:.2f} s "
            f"| {f'{statistics.median(kills):.2f} s' if kills else ''} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
