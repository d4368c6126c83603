"""docs/format-support.md: every line names the tests that hold it, and they exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LINES = [
    line
    for line in (TESTS.parent / "docs" / "format-support.md").read_text().splitlines()
    if re.match(r"\| (?!item \|)", line)
]


@functools.cache
def paths() -> dict[str, list[Path]]:
    """Returns the files of tests by their names."""
    found: dict[str, list[Path]] = {}
    for path in TESTS.rglob("test_*.py"):
        found.setdefault(path.name, []).append(path)
    return found


@functools.cache
def defined(path: Path) -> set[str]:
    """Returns the names of tests in a file: `test_name`, `TestClass` and `TestClass::test_name`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return names


def test_the_page_has_lines() -> None:
    assert len(LINES) > 50


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip()[:40])
def test_every_line_names_tests_that_exist(line: str) -> None:
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) == 6, "expected | item | state | how | test |"
    named = re.findall(r"`(test_\w+\.py)::(\w+(?:::\w+)?)`", cells[4])
    assert named, "no test is named"
    for file, name in named:
        (path,) = paths().get(file, [])
        assert name in defined(path), f"{file}::{name}"
