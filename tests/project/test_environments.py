"""Other people's environments: what `scripts/environments.sh` names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_brief_tests_exist() -> None:
    script = (ROOT / "scripts" / "environments.sh").read_text()
    listed = re.search(r"^BRIEF=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)
    assert listed
    tests = listed[1].split()
    assert tests
    assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_named_environments_exist() -> None:
    known = {path.stem for path in (ROOT / "environments").glob("*.txt")}
    in_ci = re.search(r"^for name in ([\w ]+);", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert in_ci
    pages = (ROOT / "docs" / "compatibility.md").read_text()
    in_docs = re.findall(
        r"^    scripts/environments\.sh(?: --\w+)? ((?:\w[\w-]* )+)", pages, re.MULTILINE
    )
    assert in_docs
    assert {*in_ci[1].split(), *" ".join(in_docs).split()} <= known
