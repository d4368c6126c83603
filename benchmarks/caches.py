"""Measures what the caches on disk save: opening, the first batch, and epochs, first and again.

    python benchmarks/caches.py                                # video of three cameras, 640x480
    python benchmarks/caches.py --case small --scale 1         # 600 episodes of 96x96
    python benchmarks/caches.py --kinds directory off first second --repeats 5
    python benchmarks/caches.py --kinds look                   # of 30,000 pieces, 9 GB

Kinds, each in a fresh process, taken in turn. The Hub is on this machine, with 50 ms from request
to answer and 10 MB/s a connection:

    directory    from a directory, which has neither latency nor a cache
    off          from the Hub, StorageOptions(disk_cache_bytes=0)
    first        from the Hub, with an empty cache
    second       from the Hub, with what `first` has left
    offline      the same with HF_HUB_OFFLINE=1
    half         from the Hub, with a cache for half of the bytes, of which two runs have filled it
    look         no stream: looking through a directory of pieces, as the first write of a process
                 does; lookups in it; the memory that both take

To add a cache: a kind here that fills it, and one that reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _cases import CASES, Case, prepare
from _measure import memory_bytes, reset_peak
from _report import table_of_medians

from lerobot_grain.testing import LoopbackHub

_LATENCY_SECONDS = 0.05
_BYTES_PER_SECOND = 10e6
_NAME = "caches/dataset"
KINDS = ("directory", "off", "first", "second", "offline", "half", "look")
_ALL = 1 << 34
_NUM_PIECES = 30_000
_LOOKUPS = 40


def main() -> None:
    """Runs the benchmark with the command line's options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[case.name for case in CASES], default="vga3")
    parser.add_argument("--scale", type=float, default=0.2, help="of its episodes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:-1], metavar="KIND")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument(
        "--epochs", type=int, default=2, metavar="N", help="0: nothing but the first batch"
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=200,
        metavar="MB",
        help="memory; what is kept on disk matters where this does not keep all coded video",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        job = json.loads(options.job)
        print(json.dumps(_look(**job) if "folder" in job else _measure(**job)))
        return
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    for _ in range(options.repeats):
        with LoopbackHub() as hub, tempfile.TemporaryDirectory(prefix="lerobot_grain-") as scratch:
            hub.set_latency(_LATENCY_SECONDS)
            hub.set_bandwidth(_BYTES_PER_SECOND)
            hub.add_repository(_NAME, _directory(options), tags=["v3.0"])
            for kind in options.kinds:
                results[kind].append(_run(kind, hub, scratch, options))
                print(f"{kind}: {results[kind][-1]}", file=sys.stderr, flush=True)
    print(table_of_medians(results, digits=3))


def _case(options: argparse.Namespace) -> Case:
    return next(case for case in CASES if case.name == options.case)


def _directory(options: argparse.Namespace) -> Path:
    return prepare(_case(options), cache=options.cache, scale=options.scale)


def _run(
    kind: str, hub: LoopbackHub, scratch: str, options: argparse.Namespace
) -> dict[str, float]:
    if kind == "look":
        return _in_process({"folder": f"{scratch}/pieces"}, scratch)
    directory = _directory(options)
    job = {
        "name": str(directory) if kind == "directory" else _NAME,
        "endpoint": hub.endpoint,
        # `first`, `second` and `offline` share one.
        "cache_dir": f"{scratch}/{kind if kind in ('off', 'half') else 'hub'}",
        "disk_cache_bytes": 0 if kind == "off" else _ALL,
        "windows": _case(options).windows,
        "budget_bytes": options.budget << 20,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
    }
    if kind == "half":
        total = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        job["disk_cache_bytes"] = total // 2
        _in_process(job, scratch)
    offline = {"HF_HUB_OFFLINE": "1"} if kind == "offline" else {}
    return _in_process(job, scratch, **offline)


def _in_process(job: dict[str, Any], scratch: str, **environment: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)],
        env=os.environ | {"no_proxy": "localhost,127.0.0.1", "HF_HOME": scratch} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(
    name: str,
    endpoint: str,
    cache_dir: str,
    disk_cache_bytes: int,
    windows: dict[str, tuple[int, ...]],
    budget_bytes: int,
    epochs: int,
    batch_size: int,
) -> dict[str, float]:
    from torchcodec import decoders  # noqa: F401 (its import is not what is measured)

    import lerobot_grain as lg

    start = time.perf_counter()
    repository = lg.open_repository(
        name,
        endpoint=endpoint,
        cache_dir=cache_dir,
        storage_options=lg.StorageOptions(disk_cache_bytes=disk_cache_bytes),
    )
    dataset = lg.LeRobotIterDataset(
        repository,
        num_epochs=max(1, epochs),
        delta_timestamps={
            key: [step / repository.fps for step in steps] for key, steps in windows.items()
        }
        or None,
        read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
    )
    opened_seconds = time.perf_counter() - start
    iterator = iter(dataset.batch(batch_size))
    before = memory_bytes("VmRSS") or 0
    reset_peak()
    rows = repository.episodes.num_rows
    times = [time.perf_counter()]
    # At the end of each epoch; a batch may hold examples of two.
    ends = []
    for number in range(max(1, epochs * rows // batch_size)):
        next(iterator)
        times.append(time.perf_counter())
        if (number + 1) * batch_size >= (len(ends) + 1) * rows - batch_size:
            ends.append((times[-1], lg.read_statistics(iterator)))
    result = {
        "open, s": opened_seconds,
        "first batch, s": times[1] - times[0],
        "memory growth, MB": ((memory_bytes("VmHWM") or 0) - before) / 1e6,
    }
    last, fetched, requests, kept = times[0], 0, 0, 0
    for epoch, (end, found) in enumerate(ends[:epochs], 1):
        result[f"epoch {epoch}, s"] = end - last
        result[f"epoch {epoch}, MB fetched"] = (found.bytes_fetched - fetched) / 1e6
        result[f"epoch {epoch}, MB from disk"] = (found.bytes_from_disk_cache - kept) / 1e6
        result[f"epoch {epoch}, requests"] = float(found.requests - requests)
        last, fetched, requests = end, found.bytes_fetched, found.requests
        kept = found.bytes_from_disk_cache
    iterator.close()
    return result


def _look(folder: str) -> dict[str, float]:
    """Of pieces of 300 KB that are holes: their names and sizes count here, not their bytes."""
    from lerobot_grain._base.byte_ranges import ByteRange
    from lerobot_grain._storage.disk.entry_cache import EntryCache
    from lerobot_grain._storage.disk.piece_cache import PieceCache
    from lerobot_grain._storage.disk.piece_files import cells_of, file_bytes, hash_of

    step = 300_000
    files = [("org/name@1", "1", str(number)) for number in range(_NUM_PIECES // 600)]
    for file in files:
        for start in range(0, 600 * step, step):
            for cell, piece in cells_of(file, ByteRange(start, start + step)):
                path = Path(folder, hash_of(*file[:-1]), cell, f"{piece.start}-{piece.stop}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as written:
                    written.truncate(file_bytes(piece))
    entries = EntryCache(f"{folder}/ranges", _ALL)
    before = memory_bytes("VmRSS") or 0
    reset_peak()
    cache = PieceCache(folder, _ALL, entries)
    started = time.perf_counter()
    cache.put(files[0], 600 * step, b"x")
    looked = time.perf_counter()
    for file in files * _LOOKUPS:
        cache.get((*file[:-1], f"not {file[-1]}"), ByteRange(0, step))
    missed = time.perf_counter()
    return {
        "pieces": float(_NUM_PIECES),
        "first write, s": looked - started,
        "a lookup in vain, us": 1e6 * (missed - looked) / (_LOOKUPS * len(files)),
        "memory growth, MB": ((memory_bytes("VmHWM") or 0) - before) / 1e6,
    }


if __name__ == "__main__":
    main()
