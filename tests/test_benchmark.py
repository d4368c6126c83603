"""The benchmark runs: a smoke test with the smallest data sets. What it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "throughput.py"


def test_two_cases_of_the_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--cases", "small", "state", "--scale", "tiny", "--repeats", "1", "--naive-seconds", "1"]
    command += [
        "--kinds",
        "ours",
        "limit",
        "naive",
        "hub50",
        "--cache",
        str(tmp_path),
        "--json",
        str(tmp_path / "result.json"),
        "--markdown",
    ]
    environment = os.environ | {"no_proxy": "localhost,127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "result.json").read_text())
    assert list(written) == ["date", "machine", "command", "repeats", "summaries", "results"]
    results = written["results"]
    assert {case: list(kinds) for case, kinds in results.items()} == {"small": ["ours", "limit", "naive", "hub50"], "state": ["ours"]}
    assert [results["small"][kind][0]["examples"] for kind in ("ours", "naive", "hub50")] == [96, 96, 96]
    assert results["small"]["limit"][0]["frames"] == 96
    for kind in ("ours", "hub50"):
        statistics = results["small"][kind][0]["statistics"]
        assert statistics["examples"] == statistics["frames_handed_out"] == 96
        assert 96 <= statistics["pictures_decoded"] <= 2 * 96
    assert list(written["summaries"][0]["ratios"]) == ["ours/limit", "ours/naive", "hub50/local"]
    date, _, _, *tables = done.stdout.splitlines()[:3] + done.stdout.split("\n\n")[2:]
    assert date.startswith(written["date"])
    assert [table.split("|")[1].strip() for table in tables] == ["local directory", "Hub on this machine"]
    # Heading, rule, and a line for each case; no line is cut.
    assert [len(table.strip().splitlines()) for table in tables] == [2 + 2, 2 + 1]
