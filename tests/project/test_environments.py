"""Other people's environments: what `scripts/environments.sh` names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_brief_tests_exist() -> None:
    script = (ROOT / "scripts" / "environments.sh").read_text()
    listed = re.search(r"^BRIEF=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)
    assert listed
    tests = listed[1].split()
    assert tests
    assert [test for test in tests if not (ROOT / test).is_file()] == []


@pytest.mark.parametrize("script", [".ci/run", "docs/compatibility.md"])
def test_named_environments_exist(script: str) -> None:
    known = {path.stem for path in (ROOT / "environments").glob("*.txt")}
    used = re.findall(r"environments\.sh(?: --\w+)?((?: [\w-]+)*)", (ROOT / script).read_text())
    assert set(" ".join(used).split()) <= known
