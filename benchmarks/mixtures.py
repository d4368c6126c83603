"""Measures a mixture of many datasets beside one of them: first batch, throughput, memory, threads,
and opening.

    python benchmarks/mixtures.py                    # 64 datasets of 640x480 x 2 cameras
    python benchmarks/mixtures.py --datasets 8 --kinds one mixture
    python benchmarks/mixtures.py --kinds opening    # 500 datasets of 96x96

Kinds, each in a fresh process, taken in turn:

    one          a dataset of 6,400 rows of the same kind
    mixture      a mixture of all, each of 800 rows, each with Shuffle().shared_by(their number)
    default      the same, each with Shuffle()
    grain        the same with grain.IterDataset.mix, which reads each with a reader of its own
    one50, mixture50  from a Hub on this machine, 50 ms from request to answer
    opening      open_repositories of 500 datasets of 96x96, from directories

The datasets differ in four, and are copies of these: what is read is as much, and what is written
takes a sixteenth of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from _measure import memory_bytes, reset_peak
from _report import table_of_medians

from lerobot_grain.testing import Camera, LoopbackHub, write_dataset

_CAMERAS = tuple(
    Camera(key=f"observation.images.{name}", height=480, width=640) for name in ("top", "wrist")
)
_DISTINCT = 4
_EPISODES = [80] * 10
_EPISODES_OF_ONE = [80] * 80
# Examples that are read, and those of them that come before the steady state.
_NUM_EXAMPLES = 2560
_WARM_EXAMPLES = 1280
_NUM_OPENED = 500
_LATENCY_SECONDS = 0.05
KINDS = ("one", "mixture", "default", "grain", "one50", "mixture50", "opening")


def main() -> None:
    """Runs the benchmark with the command line's options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--datasets", type=int, default=64, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(_measure(**json.loads(options.job))))
        return
    one, *directories = _written(options.cache / "mixtures", options.datasets)
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    with contextlib.ExitStack() as stack:
        hub: LoopbackHub | None = None
        if any(kind.endswith("50") for kind in options.kinds):
            hub = stack.enter_context(LoopbackHub())
            hub.set_latency(_LATENCY_SECONDS)
            hub.add_repository("mix/one", one, tags=["v3.0"])
            for number, directory in enumerate(directories):
                hub.add_repository(f"mix/{number:02}", directory, tags=["v3.0"])
        for _ in range(options.repeats):
            for kind in options.kinds:
                chosen = [one] if kind.startswith("one") else directories
                result = _run(kind, chosen, hub, options)
                results[kind].append(result)
                print(f"{kind}: {result}", file=sys.stderr, flush=True)
    print(table_of_medians(results, digits=4))


def _written(cache: Path, count: int) -> list[Path]:
    """Writes the datasets, if they are not there yet; the long one first."""
    cache.mkdir(parents=True, exist_ok=True)
    names = ["one", *(f"{number:02}" for number in range(count))]
    for place, name in enumerate(names):
        target = cache / name
        if target.is_dir():
            continue
        if place <= _DISTINCT:
            unfinished = cache / f"{name}.{os.getpid()}"
            write_dataset(
                unfinished,
                episode_lengths=_EPISODES if place else _EPISODES_OF_ONE,
                cameras=_CAMERAS,
                seed=place,
                noise=0.1,
                episodes_per_video_file=5 if place else 10,
            )
            unfinished.rename(target)
        else:
            shutil.copytree(cache / names[1 + (place - 1) % _DISTINCT], target)
    return [cache / name for name in names]


def _run(
    kind: str, directories: list[Path], hub: LoopbackHub | None, options: argparse.Namespace
) -> dict[str, float]:
    on_hub = kind.endswith("50")
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as scratch:
        if kind == "opening":
            small = Path(scratch) / "small"
            write_dataset(small, episode_lengths=[40] * 20, cameras=[Camera(height=96, width=96)])
            directories = [Path(scratch) / f"{number:03}" for number in range(_NUM_OPENED)]
            for directory in directories:
                shutil.copytree(small, directory)
        names = (
            [f"mix/{directory.name}" for directory in directories]
            if on_hub
            else [str(directory) for directory in directories]
        )
        if hub is not None:
            hub.clear_requests()
        job = {
            "kind": kind.removesuffix("50"),
            "names": names,
            "endpoint": hub.endpoint if on_hub and hub else None,
            "cache_dir": scratch if on_hub else None,
            "batch_size": options.batch_size,
        }
        done = subprocess.run(
            [sys.executable, __file__, "--job", json.dumps(job)],
            env=os.environ | {"no_proxy": "localhost,127.0.0.1", "HF_HOME": scratch},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(
    kind: str, names: list[str], endpoint: str | None, cache_dir: str | None, batch_size: int
) -> dict[str, float]:
    import grain
    from torchcodec import decoders  # noqa: F401 (its import is not what is measured)

    import lerobot_grain as lg

    start = time.perf_counter()
    repositories = lg.open_repositories(
        {name: name for name in names}, endpoint=endpoint, cache_dir=cache_dir
    )
    opened_seconds = time.perf_counter() - start
    if kind == "opening":
        return {"open, s": opened_seconds}
    shuffle = lg.Shuffle()
    if kind in ("mixture", "grain"):
        shuffle = shuffle.shared_by(len(repositories))
    streams = {
        name: lg.LeRobotIterDataset(repository, shuffle=shuffle)
        for name, repository in repositories.items()
    }
    made_seconds = time.perf_counter() - start
    dataset: Any
    if kind == "one":
        dataset = streams[names[0]]
    elif kind == "grain":
        dataset = grain.IterDataset.mix(streams)
    else:
        dataset = lg.MixtureIterDataset(streams)
    iterator = iter(dataset.batch(batch_size))
    before = memory_bytes("VmRSS") or 0
    reset_peak()
    threads = 0
    times = [time.perf_counter()]
    for _ in range(_NUM_EXAMPLES // batch_size):
        next(iterator)
        times.append(time.perf_counter())
        threads = max(threads, sum("lerobot_grain" in each.name for each in threading.enumerate()))
    peak = memory_bytes("VmHWM") or 0
    warm = _WARM_EXAMPLES // batch_size
    result = {
        "examples/s, steady": batch_size * (len(times) - 1 - warm) / (times[-1] - times[warm]),
        "first batch, s": times[1] - times[0],
        "memory growth, MB": (peak - before) / 1e6,
        "threads": float(threads),
        "open, s": opened_seconds,
        "streams made, s": made_seconds - opened_seconds,
    }
    if kind != "grain":
        found = lg.read_statistics(iterator)
        result["pictures an example"] = found.pictures_decoded / found.examples
        result["requests"] = float(found.requests)
    iterator.close()
    return result


if __name__ == "__main__":
    main()
