"""Prints the covered lines and branches of every folder, from the JSON report of coverage.py.

python scripts/coverage_by_folder.py coverage.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

_COUNTED = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def by_folder(report: Path) -> dict[str, Counter[str]]:
    """Returns for each folder how many lines and branches its files have, and how many were run;
    `total` comes last.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    files = json.loads(report.read_text())["files"]
    for name in sorted(files, key=lambda name: Path(name).parts):
        counts = {key: files[name]["summary"][key] for key in _COUNTED}
        found[str(Path(name).parent)].update(counts)
    found["total"] = sum(found.values(), Counter())
    return found


def _share(covered: int, count: int) -> str:
    return f"{covered / count:7.1%} of {count:6,}" if count else f"{'-':>7}    {count:6,}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="FILE.json", help="of `coverage json`")
    report = parser.parse_args().report
    print(f"{'folder':42} {'lines':>17} {'branches':>20}")
    for name, counts in by_folder(report).items():
        lines = _share(counts["covered_lines"], counts["num_statements"])
        branches = _share(counts["covered_branches"], counts["num_branches"])
        print(f"{name:42} {lines} {branches:>20}")


if __name__ == "__main__":
    main()
