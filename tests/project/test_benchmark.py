"""The benchmark runs: a smoke test with the smallest datasets.

Its figures here mean nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import ForkingMultiprocessing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = ["--scale", "tiny", "--repeats", "1", "--naive-seconds", "60", "--markdown"]


def check_tables(stdout: str, written: dict[str, Any], rows: dict[str, int]) -> None:
    """The printed tables begin with the date, and have these names and numbers of cases; no line is
    cut.
    """
    assert list(written) == ["date", "machine", "command", "repeats", "summaries", "results"]
    date, _, _, *tables = stdout.splitlines()[:3] + stdout.split("\n\n")[2:]
    assert date.startswith(written["date"])
    assert [table.split("|")[1].strip() for table in tables] == list(rows)
    # Heading, rule, and a line for each case.
    assert [len(table.strip().splitlines()) for table in tables] == [
        2 + count for count in rows.values()
    ]


def test_a_measurement_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--cases", "state", *SMALLEST]
    command += ["--cache", str(tmp_path), "--json", str(tmp_path / "result.json")]
    environment = os.environ | {"no_proxy": "localhost,127.0.0.1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "result.json").read_text())
    # A dataset without video has nothing that the other kinds measure.
    assert {case: list(kinds) for case, kinds in written["results"].items()} == {"state": ["ours"]}
    assert written["results"]["state"]["ours"][0]["examples"] == 96
    check_tables(done.stdout, written, {"local directory": 1})


def measure_here(command: list[str], **_: Any) -> types.SimpleNamespace:
    """Stands in the place of `subprocess.run`: a new process would take 5 s to import PyTorch, for
    each kind.
    """
    output = io.StringIO()
    argv, sys.argv = sys.argv, command[1:]
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(command[1], run_name="__main__")
    finally:
        sys.argv = argv
    return types.SimpleNamespace(returncode=0, stdout=output.getvalue())


def test_two_cases_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    throughput, naive = (importlib.import_module(name) for name in ("throughput", "_naive"))
    monkeypatch.setattr(
        throughput, "subprocess", types.SimpleNamespace(run=measure_here, PIPE=subprocess.PIPE)
    )
    monkeypatch.setattr(naive, "multiprocessing", ForkingMultiprocessing())
    options = ["--cases", "small", "state", *SMALLEST, "--kinds", "ours", "limit", "naive", "hub50"]
    throughput.main([*options, "--cache", str(tmp_path), "--json", str(tmp_path / "result.json")])
    written = json.loads((tmp_path / "result.json").read_text())
    results = written["results"]
    assert {case: list(kinds) for case, kinds in results.items()} == {
        "small": ["ours", "limit", "naive", "hub50"],
        "state": ["ours"],
    }
    assert [results["small"][kind][0]["examples"] for kind in ("ours", "naive", "hub50")] == [
        96,
        96,
        96,
    ]
    assert results["small"]["limit"][0]["frames"] == 96
    for kind in ("ours", "hub50"):
        statistics = results["small"][kind][0]["statistics"]
        assert statistics["examples"] == statistics["frames_handed_out"] == 96
        assert 96 <= statistics["pictures_decoded"] <= 2 * 96
    assert list(written["summaries"][0]["ratios"]) == ["ours/limit", "ours/naive", "hub50/local"]
    check_tables(capsys.readouterr().out, written, {"local directory": 2, "Hub on this machine": 1})


def test_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    caches = importlib.import_module("caches")
    monkeypatch.setattr(
        caches, "subprocess", types.SimpleNamespace(run=measure_here, PIPE=subprocess.PIPE)
    )
    monkeypatch.delenv("LEROBOT_GRAIN_CACHE")  # that of each kind
    kinds = ["directory", "off", "first", "second", "half"]
    command = ["caches", "--case", "small", "--scale", "0", "--repeats", "1", "--epochs", "1"]
    command += ["--kinds", *kinds, "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    caches.main()
    table = capsys.readouterr().out.splitlines()
    columns = [cell.strip() for cell in table[0].split("|")[1:-1]]
    found = {
        row[0]: dict(zip(columns[1:], map(float, row[1:]), strict=True))
        for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:])
    }
    assert list(found) == kinds
    assert found["off"]["epoch 1, MB from disk"] == 0
    assert found["first"]["epoch 1, MB fetched"] > 0
    assert found["second"]["epoch 1, MB fetched"] == found["second"]["epoch 1, requests"] == 0
    assert found["second"]["epoch 1, MB from disk"] > 0


def test_seeking(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["seeking", "--rows", "600", "--repeats", "1"])
    runpy.run_path(str(BENCHMARKS / "seeking.py"), run_name="__main__")
    heading, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert heading.startswith("| 600 rows |")
    assert [line.split("|")[1].strip() for line in lines] == [
        "without",
        "mask",
        "by episode",
        "by row",
        "few heavy",
        "uneven",
    ]


def test_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    goals = importlib.import_module("goals")
    monkeypatch.setattr(goals, "subprocess", types.SimpleNamespace(run=measure_here))
    command = ["--cases", "small", "--scale", "tiny", "--repeats", "1", "--cache", str(tmp_path)]
    goals.main([*command, "--json", str(tmp_path / "result.json")])
    written = json.loads((tmp_path / "result.json").read_text())
    kinds = ["none", "fixed", "uniform", "geometric", "last"]
    assert {case: list(kinds) for case, kinds in written.items()} == {"small": kinds}
    assert all(written["small"][kind][0]["examples"] == 96 for kind in kinds)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == kinds


def test_the_frame_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    frame_cache = importlib.import_module("frame_cache")
    monkeypatch.setattr(
        frame_cache, "subprocess", types.SimpleNamespace(run=measure_here, PIPE=subprocess.PIPE)
    )
    kinds = ["off", "all", "new", "cold", "half"]
    options = ["--cases", "small", "--scale", "0", "--kinds", *kinds, "--cache", str(tmp_path)]
    frame_cache.main([*options, "--json", str(tmp_path / "result.json")])
    results = {each["kind"]: each for each in json.loads((tmp_path / "result.json").read_text())}
    assert list(results) == kinds
    assert results["off"]["frames_from_cache"] == 0
    for kind in ("new", "cold"):
        assert results[kind]["frames_from_cache"] == results[kind]["frames_handed_out"] == 96
        assert results[kind]["decoded"] == [0]
    assert results["cold"]["disk_bytes_per_second"] > 0
    assert results["half"]["frames_from_cache"] < results["half"]["frames_handed_out"]
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == kinds
    assert not (tmp_path / "frames").exists(), "nothing of it is left"
