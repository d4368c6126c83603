"""The figures of `scripts/figures.py` are within their limits, and each is seen to be exceeded."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "figures.py"))


def test_all_figures_are_within_their_limits() -> None:
    """One test: they take 4 s, which is too long for the collection of tests."""
    figures = SCRIPT["figures"]()
    assert len(figures) == 10
    over = {figure.name: figure.places for figure in figures if figure.value > figure.limit}
    assert over == {}


def counted(function: Callable[..., Any], source: str) -> Any:
    return function({"file.py": ast.parse(source)})


def test_fields_of_classes() -> None:
    source = """
class Counted:
    annotated: int
    def __init__(self):
        self.one = self.two = 1
        self.one += 1
        other.three = 1

@dataclass(frozen=True)
class Frozen:
    one: int

class Pair(NamedTuple):
    one: int
"""
    assert counted(SCRIPT["_fields"], source) == {"file.py:2 Counted": 3}


def test_lines_of_functions() -> None:
    source = (
        'def one():\n    """Text.\n\n    More.\n    """\n    return 1\n\n\ndef two():\n    pass\n'
    )
    assert counted(SCRIPT["_function_lines"], source) == {"file.py:1 one": 2, "file.py:9 two": 2}


def test_parameters_of_private_functions() -> None:
    source = """
def public(a, b, c): ...
def _private(a, /, b, *, c): ...
class _Private:
    def __init__(self, a, b): ...
class Public:
    def __init__(self, a, b, c, d): ...
    def _method(self, a): ...
"""
    assert counted(SCRIPT["_parameters"], source) == {
        "file.py:3 _private": 3,
        "file.py:5 __init__": 2,
        "file.py:8 _method": 1,
    }


def test_parallel_assignments() -> None:
    source = "a, b = 1, 2\na, b = pair\nc = 1, 2\nd: int = 1\n"
    figure = counted(SCRIPT["_parallel_assignments"], source)
    assert (figure.value, figure.places) == (25, ("file.py:1",))


@pytest.mark.parametrize(
    ("sentence", "is_vague"),
    [
        ("What is read is checked.", True),
        ("Where a file is missing, it raises.", True),
        ("Of each file one version is read.", True),
        ("What does it read?", False),
        ("Whether a file is there.", False),
        ("Offsets are seconds.", False),
    ],
)
def test_sentences_that_begin_with_a_clause(sentence: str, is_vague: bool) -> None:
    assert bool(SCRIPT["_VAGUE"].match(sentence)) is is_vague


@pytest.mark.parametrize(
    ("line", "is_share"),
    [
        ("limit = self._budget.block // needed", True),
        ("step = budget_bytes // 8", True),
        ("limit = budget.rows", False),
        ("limit = budget.examples_of_block(needed)", False),
    ],
)
def test_shares_of_the_budget(line: str, is_share: bool) -> None:
    assert bool(SCRIPT["_SHARE"].search(line)) is is_share


def test_paths_that_are_not_there() -> None:
    exists = SCRIPT["_exists"]
    assert all(exists(name) for name in ("docs/performance.md", "_reading/fetch_groups", "_video/"))
    assert not any(exists(name) for name in ("docs/absent.md", "_reading/absent", "tests/absent"))
