"""Measures, side by side and several times in one run, how fast datasets are read, and prints
medians and ratios.

    # everything: about 20 minutes on 2 cores
    python benchmarks/throughput.py
    python benchmarks/throughput.py --cases small h264_g30 --kinds ours limit
    # a dataset that is there already
    python benchmarks/throughput.py --directory ~/data/pusht
    # this version beside another one, a checkout (`git worktree add ../before v0.2.0`)
    python benchmarks/throughput.py --kinds ours plain hub50 --versus ../before
    # what docs/performance.md shows
    python benchmarks/throughput.py --markdown --json throughput.json

Kinds of measurement, each in a fresh process, taken in turn so that what else the machine does hits
all of them alike:

    ours    one epoch of `LeRobotIterDataset(...).batch(64)`, default order
    plain   the same without windows, for cases that have windows
    limit   every video file decoded once from start to end, by one torchcodec decoder with
            one FFmpeg thread, as many files at a time as
            there are cores
    naive   two processes that read random frames, one torchcodec decoder a file
            (`_naive.py`); stopped after --naive-seconds
    hub0    `ours` from a Hub on this machine
    hub50   the same, with 50 ms from each request to the first byte of its answer
    s3_50, gcs_50   the same from an S3 and a Google Cloud Storage on this machine; only where they
            are asked for
    far50   the same from a directory, each size and each read of which takes 50 ms longer; only
            where it is asked for

Rates are examples a second over the whole epoch, the time to the first batch among it. "Steady"
leaves out the first and last tenth of the batches. Memory growth is the peak resident memory less
what was resident after import and construction. The datasets (`_cases.py`) are written into
--cache once, which takes some minutes and 1 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from _cases import CAMERA_NOISE, CASES, Case, prepare, scale_of
from _report import OTHER, OURS, RATE, summarize, tables

from lerobot_grain import open_repository
from lerobot_grain.testing import LoopbackHub

KINDS = (*OURS[:2], "limit", "naive", *OURS[2:])
_LATENCIES = {"hub0": 0.0, "hub50": 0.05, "s3_50": 0.05, "gcs_50": 0.05}
_STORES = {"s3_50": "s3://bench", "gcs_50": "gs://bench"}
_CONTENTS = ("cdn", "object")
_MEASURE = Path(__file__).with_name("_measure.py")
# A measurement takes seconds; after this long something hangs.
_TIMEOUT_SECONDS = 900


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with the command line's options."""
    options = make_parser().parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    cases = (
        [Case(name=options.directory.name, directory=options.directory)]
        if options.directory
        else _chosen(options.cases, options.noise)
    )
    results, summaries = {}, []
    for case in cases:
        results[case.name] = _measure_case(case, options)
        summaries.append(summarize(case, results[case.name]))
    command = " ".join(
        ["python benchmarks/throughput.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "command": command,
        "repeats": options.repeats,
    }
    if options.json is not None:
        options.json.write_text(
            json.dumps({**about, "summaries": summaries, "results": results}, indent=2) + "\n"
        )
    if options.markdown:
        print(
            f"{about['date']}, {about['machine']}, medians of {options.repeats}.\n\n    {command}\n"
        )
    print(tables(cases, summaries))


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=[case.name for case in CASES],
        metavar="CASE",
        help=", ".join(case.name for case in CASES),
    )
    parser.add_argument("--directory", type=Path, help="measure this dataset instead")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=[kind for kind in KINDS if kind not in (*_STORES, "far50")],
        metavar="KIND",
        help="of measurement (default: all)",
    )
    parser.add_argument(
        "--versus",
        type=Path,
        metavar="CHECKOUT",
        help="measure our kinds with the package of this checkout, too, in turn with this one",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=CAMERA_NOISE,
        metavar="X",
        help="of the frames, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=scale_of,
        default=1.0,
        metavar="X",
        help="multiplies the episodes of the datasets; or: tiny",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark",
        help="of datasets (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--budget", type=int, metavar="BYTES", help="of our reader")
    parser.add_argument("--threads", type=int, metavar="N", help="of our reader that decode")
    parser.add_argument(
        "--naive-seconds", type=float, default=15.0, metavar="S", help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result")
    parser.add_argument(
        "--markdown", action="store_true", help="print date, machine and command above the tables"
    )
    return parser


def _chosen(names: Sequence[str] | None, noise: float) -> list[Case]:
    return [replace(case, noise=noise) for case in CASES if names is None or case.name in names]


def _measure_case(case: Case, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Returns kind -> one result a repetition."""
    say(f"{case.name}: preparing the dataset")
    directory = prepare(case, cache=options.cache, scale=options.scale).resolve()
    with contextlib.ExitStack() as stack:
        kinds = _kinds_of(case, directory, options.kinds, versus=options.versus is not None)
        hub: LoopbackHub | None = None
        if any(kind in _LATENCIES for kind in options.kinds):
            hub = stack.enter_context(LoopbackHub())
            hub.add_repository("bench/mark", directory, tags=["v3.0"])
            for bucket in _STORES.values():
                hub.add_bucket(bucket, directory)
        _warm_page_cache(directory)
        results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for repetition in range(options.repeats):
            # The version that goes first changes, so that neither always finds the machine as the
            # other left it.
            for kind in kinds if repetition % 2 == 0 else reversed(kinds):
                result = measure(case, directory, kind, hub, options)
                results[kind].append(result)
                say(
                    f"{case.name}: {kind} {repetition + 1}/{options.repeats}: {result[RATE]:,.1f} "
                    "examples/s"
                )
    return results


def _kinds_of(case: Case, directory: Path, wanted: Sequence[str], *, versus: bool) -> list[str]:
    """Leaves out what a dataset without videos, or a case without windows, does not have; adds the
    measurements of the other version (`versus`)."""
    has_video = bool(open_repository(directory).episodes.videos)
    possible = dict.fromkeys(KINDS, has_video) | {
        "ours": True,
        "plain": has_video and bool(case.windows),
    }
    kinds = [kind for kind in KINDS if kind in wanted and possible[kind]]
    if versus:
        pairs = [[kind, kind + OTHER] if kind in OURS else [kind] for kind in kinds]
        kinds = [kind for pair in pairs for kind in pair]
    return kinds


def _warm_page_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            path.read_bytes()


def measure(
    case: Case, directory: Path, kind: str, hub: LoopbackHub | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Runs one measurement in a process of its own."""
    package = options.versus if kind.endswith(OTHER) else Path(__file__).parents[1]
    kind = kind.removesuffix(OTHER)
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as scratch:
        on_hub = kind in _LATENCIES
        if on_hub:
            assert hub is not None
            hub.set_latency(_LATENCIES[kind])
            hub.clear_requests()
        job = {
            "kind": "ours" if on_hub or kind in ("plain", "far50") else kind,
            "repository": _STORES.get(kind, "bench/mark") if on_hub else str(directory),
            "endpoint": _endpoint(kind, hub) if on_hub and hub else None,
            "cache_dir": scratch if on_hub else None,
            "far_seconds": 0.05 if kind == "far50" else 0.0,
            "windows": {} if kind == "plain" else case.windows,
            "clip_length": case.clip_length,
            "batch_size": options.batch_size,
            "budget_bytes": options.budget,
            "threads": options.threads,
            "naive_seconds": options.naive_seconds,
        }
        result = _run(job, scratch, package.resolve(), pinned=case.pinned)
        if on_hub and hub is not None:
            records = hub.requests()
            result["hub"] = {
                "requests": len(records),
                "requests_for_contents": sum(record.kind in _CONTENTS for record in records),
                "bytes_of_contents": sum(
                    record.body_bytes_sent for record in records if record.kind in _CONTENTS
                ),
            }
    return result


def _endpoint(kind: str, hub: LoopbackHub) -> str:
    return {"s3_50": hub.s3_endpoint, "gcs_50": hub.gcs_endpoint}.get(kind, hub.endpoint)


def _run(job: Mapping[str, Any], scratch: str, package: Path, *, pinned: bool) -> dict[str, Any]:
    # Proxies are not to be asked for this machine's Hub, nor the user's Hub settings.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_ENDPOINT")
    }
    environment |= {
        "PYTHONPATH": str(package),
        "HF_HOME": scratch,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "no_proxy": "localhost,127.0.0.1",
    }
    environment["NO_PROXY"] = environment["no_proxy"]
    # In the child before its imports, because some libraries count the cores when they are
    # imported.
    pin: Callable[[], None] | None = (
        partial(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))}) if pinned else None
    )
    done = subprocess.run(
        [sys.executable, str(_MEASURE), json.dumps(job)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
        preexec_fn=pin,
    )
    if done.returncode:
        raise SystemExit(
            f"throughput.py: the measurement {json.dumps(job)} ended with status "
            f"{done.returncode}; its error stands above"
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _machine() -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("lerobot_grain", "torchcodec", "grain", "numpy")
    )
    return (
        f"{len(os.sched_getaffinity(0))} cores of {processor}, Python "
        f"{platform.python_version()}, {versions}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
