"""`lerobot-grain check`: prints what `check` finds, and ends with status 1 where it found a
problem.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from typing import Any

from lerobot_grain import CheckReport, Finding, check, open_repository
from lerobot_grain._cli.argument_types import positive
from lerobot_grain._cli.output.report import Part, Table, print_report
from lerobot_grain._cli.output.units import size
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._cli.selection_arguments import add_selection_arguments, selection_of

# Findings of one kind that are shown; --json has all.
_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    parser.add_argument(
        "--max-files",
        type=positive,
        metavar="N",
        help="check so many files of each camera and so many data files, evenly spaced (default: "
        "all)",
    )
    add_selection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Checks and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: the dataset cannot be opened, or an option names something that it does not
        have.
    """
    start = time.perf_counter()
    repository = open_repository(
        options.repository, revision=options.revision, endpoint=options.endpoint
    )
    with closing(repository), ProgressLine() as progress:
        report = check(
            repository,
            max_files=options.max_files,
            on_progress=progress.show_files,
            **selection_of(options),
        )
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps(_as_json(report, seconds), indent=2))
    else:
        print_report(_parts(report, seconds))
    return 0 if report.is_fine else 1


def _as_json(report: CheckReport, seconds: float) -> dict[str, Any]:
    derived = (
        "is_fine",
        "usable_episodes",
        "bytes_per_example",
        "bytes_per_epoch",
        "requests_per_epoch",
    )
    return asdict(report) | {name: getattr(report, name) for name in derived} | {"seconds": seconds}


def _parts(report: CheckReport, seconds: float) -> list[Part]:
    count = f"{report.num_files_checked:,} of {report.num_files:,} files checked in {seconds:.1f} s"
    parts: list[Part] = [
        f"{report.dataset}: {report.num_episodes:,} episodes, {report.num_rows:,} rows at "
        f"{report.fps:g} fps",
        count,
    ]
    if report.num_files_checked < report.num_files:
        parts[-1] = f"{count}; a sample: what it finds is there, and there may be more of it"
    for title, is_problem in (("problems", True), ("notes", False)):
        findings = [finding for finding in report.findings if finding.is_problem == is_problem]
        parts += [
            "",
            f"{title}: {'none' if not findings else ''}".rstrip(),
            *_finding_lines(findings),
        ]
    if report.selection is not None:
        parts += ["", "selection:", _selection_table(report)]
    of_all = ", of all rows" if report.selection is not None else ""
    parts += ["", f"costs{of_all}, each byte fetched once:", _cost_table(report)]
    if remedy := list(_remedy_lines(report)):
        parts += ["", *remedy]
    return parts


def _finding_lines(findings: Sequence[Finding]) -> Iterable[str]:
    def kind(finding: Finding) -> tuple[str, str]:
        return finding.kind, finding.feature or ""

    for (name, feature), group in groupby(sorted(findings, key=kind), kind):
        alike = list(group)
        episodes = len({episode for finding in alike for episode in finding.episodes})
        about = [feature] * bool(feature) + [f"{episodes:,} episode{'s' * (episodes > 1)}"] * bool(
            episodes
        )
        yield f"  {', '.join([name, *about])}"
        yield from (f"    {finding.text}" for finding in alike[:_SHOWN])
        if len(alike) > _SHOWN:
            yield f"    ... and {len(alike) - _SHOWN:,} more files"


def _selection_table(report: CheckReport) -> Table:
    counts = report.selection
    assert counts is not None
    rows = [("episodes", f"{counts.num_episodes:,} of {report.num_episodes:,}")]
    for label, number, why in (
        ("dropped", counts.num_dropped, "at the starts and ends of episodes"),
        ("not valid", counts.num_not_valid, "by the valid rows"),
        ("weight 0", counts.num_without_weight, "by the weights"),
    ):
        if number:
            rows.append((label, f"{number:,} rows left out, {why}"))
    if counts.stride == 1:
        rows.append(("an epoch", f"{counts.num_rows:,} rows"))
    else:
        about = round(counts.num_rows / counts.stride)
        rows.append(
            (
                "an epoch",
                f"about {about:,} rows; {counts.num_rows:,} in {counts.stride} epochs, each once",
            )
        )
    if counts.least_times < counts.most_times:
        rows.append(
            (
                "weights",
                f"a row comes {counts.least_times:.3g} to {counts.most_times:.3g} times an epoch "
                "on average",
            )
        )
    return Table(rows=rows)


def _cost_table(report: CheckReport) -> Table:
    rows: list[tuple[str, str]] = []
    for camera in report.cameras:
        sizes = " and ".join(f"{height}x{width}" for height, width in camera.sizes)
        gops = f"{camera.gop_length} ({camera.gop_min} to {camera.gop_max})"
        rows.append(
            (
                camera.key,
                f"{', '.join(camera.codecs)} {sizes}, GOP {gops}, {camera.bytes_per_frame:,.0f} "
                "bytes a frame",
            )
        )
    if report.rows is not None:
        amount = sum(report.rows.bytes_per_row.values())
        largest = f"the largest {size(report.rows.largest_group_bytes)}"
        rows.append(
            ("rows", f"{amount:,.0f} bytes a row, {report.rows.num_groups:,} row groups, {largest}")
        )
    rows.append(("an example", f"{report.bytes_per_example:,.0f} bytes"))
    requests = (
        ""
        if report.requests_per_epoch is None
        else f" in at most about {report.requests_per_epoch:,} requests"
    )
    rows.append(("an epoch", f"{size(report.bytes_per_epoch)}{requests}"))
    if report.clip_length is not None:
        rows.append(("clip_length", f"{report.clip_length} frames, the default of Shuffle here"))
    return Table(rows=rows)


def _remedy_lines(report: CheckReport) -> Iterable[str]:
    if report.unusable_features:
        yield (
            f"no episode can be read with {', '.join(report.unusable_features)}: leave that out "
            "of features=[...]"
        )
    if not report.unusable_episodes:
        return
    if len(report.unusable_episodes) == report.num_episodes:
        yield "no episode can be read"
        return
    yield (
        f"{len(report.usable_episodes):,} of {report.num_episodes:,} episodes can be read; to "
        "leave the others out:"
    )
    yield (
        "  episodes=lambda episode: episode.index not in "
        f"{{{', '.join(map(str, report.unusable_episodes))}}}"
    )
