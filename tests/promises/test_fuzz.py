"""A short run of the fuzzer, always the same, over all that reads bytes of a dataset; and the
fuzzer itself. Long runs: fuzz/README.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import __main__ as runner
from fuzz import worker
from fuzz.corpus import Seeds, make_seeds
from fuzz.targets import TARGETS, Target, make_input
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.info import Feature
from lerobot_grain._parquet.columns import to_encoded_images, to_numpy, to_strings
from lerobot_grain._parquet.files import InMemoryFile
from lerobot_grain._parquet.table import open_table, read_columns

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def seeds() -> Seeds:
    return make_seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_not_damaged_is_read(seeds: Seeds, name: str) -> None:
    assert all(TARGETS[name].accepts(data) for data in seeds[name])


@pytest.mark.parametrize(
    ("name", "inputs"), [("mp4", 1000), ("info", 4000), ("episodes", 2000), ("parquet", 300)]
)
def test_a_value_or_the_format_error(seeds: Seeds, name: str, inputs: int) -> None:
    # Warnings are errors in tests, so no absurd number slips through NumPy either.
    target = TARGETS[name]
    accepted = sum(
        target.accepts(make_input(target, seeds[name], seed=2, number=number))
        for number in range(inputs)
    )
    assert inputs // 20 < accepted < inputs - inputs // 20


def test_inputs_are_always_the_same(seeds: Seeds) -> None:
    for name, target in TARGETS.items():
        first, again = (
            [make_input(target, seeds[name], seed=3, number=number) for number in range(20)]
            for _ in range(2)
        )
        assert first == again
        assert len(set(first)) > 15


# --- any table of any types ----------------------------------------------------------------------

_LEAVES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int8(), [-1, 127]),
    (pa.uint64(), [0, 2**64 - 1]),
    (pa.float16(), [np.float16(0.5), np.float16("nan")]),
    (pa.float64(), [1e300, -0.0]),
    (pa.bool_(), [True, False]),
    (pa.string(), ["", "1"]),
    (pa.large_binary(), [b"", b"\xff"]),
    (pa.binary(2), [b"ab", b"\0\0"]),
    (pa.decimal128(30, 2), [0, 10**25]),
    (pa.timestamp("ns"), [0, 2**62]),
    (pa.timestamp("us", tz="UTC"), [-(2**62), 2**62]),
    (pa.date32(), [-(2**31), 2**31 - 1]),
    (pa.time64("us"), [0, 1]),
    (pa.duration("s"), [0, 2**60]),
    (pa.null(), [None]),
]
_ROWS = 3


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """Draws a column of any type that parquet holds, with missing values, in lists and structs."""
    kind, values = draw(st.sampled_from(_LEAVES))
    elements = st.one_of(st.none(), st.sampled_from(values))
    for _ in range(draw(st.integers(0, 3))):
        shape = draw(st.sampled_from(["list", "fixed", "large", "struct"]))
        if shape == "struct":
            name = draw(st.sampled_from(["bytes", "path"]))
            kind, elements = (
                pa.struct({name: kind}),
                st.one_of(st.none(), elements.map(lambda value, name=name: {name: value})),
            )
        else:
            size = 2 if shape == "fixed" else -1
            kind = pa.large_list(kind) if shape == "large" else pa.list_(kind, size)
            elements = st.one_of(st.none(), st.lists(elements, min_size=max(size, 0), max_size=2))
    array = pa.array([draw(elements) for _ in range(_ROWS)], kind)
    return array.dictionary_encode() if pa.types.is_string(kind) and draw(st.booleans()) else array


FEATURES = [
    *(
        Feature("key", dtype, shape)
        for dtype in ("bool", "int8", "uint64", "float16", "float64")
        for shape in ((), (1,), (2,), (2, 2), (0,))
    ),
    *(Feature("key", "string", (1,)), Feature("key", "image", (4, 6, 3))),
]


@settings(max_examples=300, derandomize=True, deadline=None)
@given(columns(), st.sampled_from(FEATURES))
def test_any_column_for_any_feature(array: pa.Array, feature: Feature) -> None:
    sink = io.BytesIO()
    try:
        pq.write_table(pa.table({"key": array}), sink)
    except (pa.ArrowException, OSError):
        return  # a type that parquet does not have
    table = open_table(InMemoryFile("org/name@1a2b", sink.getvalue()), "a.parquet")
    to_values = (
        to_encoded_images
        if feature.is_camera
        else to_strings
        if feature.dtype == "string"
        else to_numpy
    )
    with contextlib.suppress(DatasetFormatError):
        assert (
            len(to_values(table.read_group(0, ["key"]).column("key"), feature, where=table.where))
            == _ROWS
        )
    with contextlib.suppress(DatasetFormatError):
        assert len(read_columns(table, None)["key"]) == _ROWS


# --- the fuzzer itself ---------------------------------------------------------------------------


def dying(number: int, action: str) -> tuple[str, ...]:
    """Returns the command of a worker that gets as far as an input, and then does something."""
    code = f"""
import os, signal, struct, sys, time
open(sys.argv[-1] + "/progress", "r+b").write(struct.pack("<Q", {number}))
{action}
"""
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("action", "start", "limits", "finding"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 10, (60, 600), "native code died of signal 11"),
        # From the first input on: on a busy machine a worker takes long to get farther.
        ("while True: pass", 13, (0.5, 600), "native code hung"),
        ("time.sleep(600)", 13, (60, 0.5), "native code hung"),
    ],
)
def test_a_worker_that_dies_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
    action: str,
    start: int,
    limits: tuple[float, float],
    finding: str,
) -> None:
    monkeypatch.setattr(runner, "_WORKER", dying(13, action))
    monkeypatch.setattr(runner, "_STALLED_SECONDS", limits[0])
    monkeypatch.setattr(runner, "_STALLED_WALL_SECONDS", limits[1])
    counts = runner.Counts()
    assert (
        runner.run_worker("info", tmp_path, counts, seed=0, start=start, stop=20, folder=tmp_path)
        == 14
    )
    assert (counts.inputs, dict(counts.findings)) == (14 - start, {finding: 1})
    assert capsys.readouterr().out.startswith(f"info input 13: {finding}")


def test_a_worker_that_does_not_start_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "_WORKER", dying(0, "raise ImportError('no such thing')"))
    with pytest.raises(SystemExit, match="no such thing"):
        runner.run_worker(
            "info", tmp_path, runner.Counts(), seed=0, start=0, stop=1, folder=tmp_path
        )


def run_target(monkeypatch: pytest.MonkeyPatch, folder: Path, run: Any) -> dict[str, Any]:
    monkeypatch.setitem(TARGETS, "mp4", Target(lambda _random, data: data + b"!", run, share=1))
    (folder / "progress").write_bytes(bytes(8))
    return worker.run_batch("mp4", (b"seed",), seed=0, start=5, stop=10, folder=folder)


def test_findings_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    calls = []

    def fail_later(_: bytes) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise DatasetFormatError("org/name@1a2b: refused")
        if len(calls) == 4:
            raise ZeroDivisionError("found")

    found = run_target(monkeypatch, tmp_path, fail_later)
    assert (found["inputs"], found["accepted"], found["findings"].total()) == (5, 3, 1)
    line = json.loads(capsys.readouterr().out)
    assert (line["number"], line["text"]) == (7, "found")
    assert line["found"].startswith("ZeroDivisionError in test_fuzz.py:fail_later")
    assert (tmp_path / "mp4-0-7").read_bytes() == b"seed!"
    assert struct.unpack("<Q", (tmp_path / "progress").read_bytes()) == (9,)


@pytest.mark.parametrize(
    "text", ["somewhere else: refused", "org/name@1a2b: " + "x" * 5000], ids=["no place", "long"]
)
def test_messages_without_place_or_end_are_findings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    def refuse(data: bytes) -> None:
        if data != b"seed":
            raise DatasetFormatError(text)

    assert run_target(monkeypatch, tmp_path, refuse)["findings"].total() == 5


def test_what_takes_too_long_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "_MAX_SECONDS", 0.05)
    calls = []

    def hang(_: bytes) -> None:
        calls.append(0)
        while len(calls) == 2:
            pass

    ((finding, count),) = run_target(monkeypatch, tmp_path, hang)["findings"].items()
    assert count == 1
    assert finding.startswith("_TooSlow in")
    assert "test_fuzz.py:hang" in finding
