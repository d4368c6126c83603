"""Measures on any machine how the stream scales with the number of cores: the decoder of a frame
is replaced by a sleep as long as decoding takes, so any number of cores can be pretended.

    python benchmarks/cores.py                                  # all cases, 1 to 64 cores
    python benchmarks/cores.py --cases vga3 --cores 16 32 64
    python benchmarks/cores.py --versus ../before               # beside the package of a checkout
    python benchmarks/cores.py --plot docs/images/cores.png
    python benchmarks/cores.py --cases small --cores 16 --processes 1 2 4

This leaves our own serial part, Python's lock, and the scheduling, which are to be measured;
and all copies of frames, for which the machine has as many cores as it has. Frames are therefore
smaller than those that they cost as much as, but in `vga3_full`.

    small        a camera of 96x96, AV1, g=2: 67 us a frame
    vga3         three of 160x120, g=2, at the cost of 640x480: 4 ms a frame
    vga3_windows the same, windows of two frames
    vga3_g250    the same, one key frame in 250 frames
    vga3_full    three of 640x480, g=2

With several processes, each reads its shard and has its part of the cores; rates are those of all
together, other columns the mean of one.

Columns: "of the ideal" is how much of the time of all cores is decoding. "Consumer": processor
time of the thread that calls `next`. "Waits for the lock": how much of the time of the threads that
decode passes between the end of a sleep and the moment when Python runs them again; on a machine
whose real cores ("cores used") are all busy it holds waiting for these, too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _cases import Case, prepare

from lerobot_grain.testing import Camera

_SIMULATED = Path(__file__).with_name("_simulated.py")
_CORES = (1, 2, 4, 8, 16, 32, 64)
_CAMERAS = ("top", "left", "right")
# What the processes of one measurement do together.
_RATES = ("examples_per_second", "cores_used", "copied_bytes_per_second", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A case: a dataset, and the cost of a frame of it."""

    name: str
    cameras: tuple[Camera, ...]
    picture_seconds: float
    episodes: int = 160
    windows: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _cameras(height: int, width: int, **options: Any) -> tuple[Camera, ...]:
    return tuple(
        Camera(key=f"observation.images.{name}", height=height, width=width, **options)
        for name in _CAMERAS
    )


SIMULATIONS = (
    Simulation(
        name="small",
        cameras=(Camera(key="observation.images.top", height=96, width=96),),
        picture_seconds=67e-6,
        episodes=256,
    ),
    Simulation(name="vga3", cameras=_cameras(120, 160), picture_seconds=4e-3),
    Simulation(
        name="vga3_windows",
        cameras=_cameras(120, 160),
        picture_seconds=4e-3,
        windows={f"observation.images.{name}": (-1, 0) for name in _CAMERAS},
    ),
    Simulation(
        name="vga3_g250",
        cameras=_cameras(120, 160, codec="h264", gop=250),
        picture_seconds=4e-3,
    ),
    Simulation(name="vga3_full", cameras=_cameras(480, 640), picture_seconds=4e-3, episodes=16),
)
_EPISODE_LENGTH = 100


def main() -> None:
    """Runs the simulation with the command line's options."""
    options = make_parser().parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    versions = {"this": Path(__file__).parents[1]}
    if options.versus is not None:
        versions["other"] = options.versus.resolve()
    for simulation in SIMULATIONS:
        if simulation.name not in options.cases:
            continue
        directory = prepare(
            Case(
                name=f"cores-{simulation.name}",
                cameras=simulation.cameras,
                episodes=simulation.episodes,
                episode_length=_EPISODE_LENGTH,
                noise=0.0,
            ),
            cache=options.cache,
            scale=1.0,
        )
        for cores, processes in itertools.product(options.cores, options.processes):
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
            for _ in range(options.repeats):
                for name, package in versions.items():
                    job = _job(simulation, directory, cores // processes, options)
                    results[name].append(_run(job, processes, package))
            found += [
                {
                    "case": simulation.name,
                    "cores": cores,
                    "processes": processes,
                    "version": name,
                    **_medians(each),
                }
                for name, each in results.items()
            ]
            for line in found[-len(versions) :]:
                print(_described(line), file=sys.stderr, flush=True)
    print(_table(found))
    print(f"\nmemcpy: {_copy_bytes_per_second() / 1e9:.1f} GB/s on one core")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.plot is not None:
        _plot(found, options.plot)


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [simulation.name for simulation in SIMULATIONS]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE")
    parser.add_argument("--cores", nargs="+", type=int, default=_CORES, metavar="N")
    parser.add_argument("--processes", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--warm-seconds", type=float, default=3.0, help="before it")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--versus", type=Path, metavar="CHECKOUT")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lerobot_grain-benchmark",
        help="of datasets (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of the ratios to the ideal")
    return parser


def _job(
    simulation: Simulation, directory: Path, cores: int, options: argparse.Namespace
) -> dict[str, Any]:
    return {
        "repository": str(directory),
        "cores": cores,
        "picture_seconds": simulation.picture_seconds,
        "height": simulation.cameras[0].height,
        "width": simulation.cameras[0].width,
        "windows": simulation.windows,
        "batch_size": options.batch_size,
        # Until a batch of 64 has come, and all frames were written once.
        "warm_seconds": options.warm_seconds,
        "seconds": options.seconds,
    }


def _run(job: dict[str, Any], num_processes: int, package: Path) -> dict[str, Any]:
    """Returns what was measured, of all processes together or, where it is no rate, of one."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(_SIMULATED), json.dumps(job | {"shard": shard})],
                    env=os.environ | {"PYTHONPATH": str(package)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for shard in ((number, num_processes) for number in range(num_processes))
        ]
        outputs = [process.communicate(timeout=600)[0] for process in started]
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        key: (sum if key in _RATES else statistics.fmean)(result[key] for result in results)
        for key in results[0]
    }


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def _described(line: dict[str, Any]) -> str:
    return (
        f"{line['case']}, {line['cores']} cores, {line['processes']} processes, "
        f"{line['version']}: "
        f"{line['examples_per_second']:,.0f} examples/s, "
        f"{line['of_ideal']:.2f} of the ideal, "
        f"consumer {line['consumer_ms_an_example']:.3f} ms an example"
    )


def _table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| case | version | cores | processes | examples/s | of the ideal | pictures an example "
        "| consumer, ms an example | waits for the lock | cores used | copied, GB/s | threads "
        "| longest wait, s | first batch, s | peak, MB |",
        f"|{'---|' * 15}",
    ]
    lines += [
        f"| {line['case']} | {line['version']} | {line['cores']} | {line['processes']} "
        f"| {line['examples_per_second']:,.0f} | {line['of_ideal']:.2f} "
        f"| {line['pictures_an_example']:.2f} | {line['consumer_ms_an_example']:.3f} "
        f"| {line['late_share']:.0%} | {line['cores_used']:.2f} "
        f"| {line['copied_bytes_per_second'] / 1e9:.2f} | {line['threads']:.0f} "
        f"| {line['longest_wait_seconds']:.2f} | {line['first_batch_seconds']:.2f} "
        f"| {line['budget_peak_bytes'] / 1e6:,.0f} |"
        for line in found
    ]
    return "\n".join(lines)


def _copy_bytes_per_second() -> float:
    """Returns how fast one core copies memory that is not in its caches."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return source.nbytes / statistics.median(times)


def _plot(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for case, version in dict.fromkeys((line["case"], line["version"]) for line in found):
        lines = [
            line
            for line in found
            if (line["case"], line["version"], line["processes"]) == (case, version, 1)
        ]
        axes.plot(
            [line["cores"] for line in lines],
            [line["of_ideal"] for line in lines],
            marker="o",
            linestyle="-" if version == "this" else "--",
            label=case if version == "this" else f"{case}, before",
        )
    axes.set(xscale="log", xlabel="cores", ylabel="examples/s, of the ideal", ylim=(0, 1.05))
    axes.set_xticks(_CORES, [str(cores) for cores in _CORES])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
