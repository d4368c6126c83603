"""Measures how fast datasets are read from a Hub of which every twentieth request goes wrong,
against one where none does.

    python benchmarks/faults.py                              # about 5 minutes on 2 cores
    python benchmarks/faults.py --cases vga3 --latency 0

Both are read in turn, in fresh processes, with the default options: an epoch without faults, then
one with 5 % of all kinds mixed (`lerobot_grain.testing.mixed_faults`), for each seed. Rates are
examples a second over the whole epoch, "steady" without its first and last tenth. The datasets and
processes are those of `throughput.py`.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import throughput
from _cases import CASES, Case, prepare
from _report import RATE, STEADY

from lerobot_grain.testing import LoopbackHub, mixed_faults


def main() -> None:
    """Runs the benchmark with the command line's options, and prints a table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["vga3", "h264_g30"],
        choices=[case.name for case in CASES],
        metavar="CASE",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="X",
        help="multiplies the episodes of the datasets",
    )
    parser.add_argument(
        "--probability",
        type=float,
        default=0.05,
        metavar="P",
        help="of a fault (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--latency",
        type=int,
        default=50,
        choices=(0, 50),
        help="of the Hub, in ms (default: %(default)s)",
    )
    options = parser.parse_args()
    heading = [
        "case",
        "examples",
        "requests",
        "with a fault",
        "examples/s",
        "with faults",
        "ratio",
        "steady",
        "with faults",
        "ratio",
    ]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}", flush=True)
    for case in CASES:
        if case.name in options.cases:
            _measure_case(case, options)


def _measure_case(case: Case, options: argparse.Namespace) -> None:
    shared = throughput.make_parser().parse_args([])
    shared.cache.mkdir(parents=True, exist_ok=True)
    directory = prepare(case, cache=shared.cache, scale=options.scale).resolve()
    kind = f"hub{options.latency}"
    with LoopbackHub() as hub:
        hub.add_repository("bench/mark", directory, tags=["v3.0"])
        throughput.measure(case, directory, kind, hub, shared)  # files into the page cache
        plain, faulty = [], []
        for seed in range(options.seeds):
            hub.clear_faults()
            plain.append(throughput.measure(case, directory, kind, hub, shared))
            for fault in mixed_faults(options.probability, seed=seed):
                hub.add_fault(fault)
            faulty.append(throughput.measure(case, directory, kind, hub, shared))
            records = hub.requests()
            faulty[-1]["hub"]["faulted"] = sum(record.faulted for record in records)
            throughput.say(
                f"{case.name}, seed {seed}: {plain[-1][RATE]:,.1f} and, with faults, "
                f"{faulty[-1][RATE]:,.1f} examples/s"
            )
    _print_line(case.name, plain, faulty)


def _print_line(name: str, plain: list[dict[str, Any]], faulty: list[dict[str, Any]]) -> None:
    requests, faulted = (
        ", ".join(str(found["hub"][key]) for found in faulty) for key in ("requests", "faulted")
    )
    cells = [name, f"{plain[0]['examples']:,}", requests, faulted]
    for key in (RATE, STEADY):
        without, with_faults = (
            statistics.median(found[key] for found in results) for results in (plain, faulty)
        )
        cells += [f"{without:,.0f}", f"{with_faults:,.0f}", f"{with_faults / without:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
