"""The site: every public name is in the reference, arguments that docstrings describe exist, links
out of `docs/` lead to files, and every picture is used.

`scripts/docs.sh` checks links between pages.
"""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain import testing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HOOKS = runpy.run_path(str(ROOT / "scripts" / "site_hooks.py"))
URL = HOOKS["repository_url"]()
PUBLIC: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (lg, testing)
    for name in module.__all__
}


def test_the_reference_has_every_public_name_once() -> None:
    found = re.findall(
        r"^::: (\S+)$",
        "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md")),
        re.MULTILINE,
    )
    assert sorted(found) == sorted(PUBLIC)


@pytest.mark.parametrize(
    "name", [name for name, value in PUBLIC.items() if callable(value)], ids=str
)
def test_described_arguments_exist(name: str) -> None:
    value = PUBLIC[name]
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(value) or "", re.MULTILINE)
    if section is None:
        return
    lines = re.findall(r"^  (\w[\w, ]*):", section[1], re.MULTILINE)
    described = {name for line in lines for name in re.split(r", ", line)}
    assert described
    assert described <= set(inspect.signature(value).parameters)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_out_of_the_pages_lead_to_files(page: Path) -> None:
    text = HOOKS["outside_links"](page.read_text(), page=page.relative_to(DOCS).as_posix(), url=URL)
    left = re.findall(r"\]\((\.\./[^)#]+)", text)
    assert [link for link in left if not (page.parent / link).resolve().is_relative_to(DOCS)] == []


def test_a_link_becomes_an_address() -> None:
    text = "[a](../examples/act.py) [b](../../README.md#use) [c](../check.md) ![d](../../LICENSE)"
    changed = HOOKS["outside_links"](text, page="architecture/page.md", url="https://host/one")
    assert changed == (
        "[a](../examples/act.py) [b](https://host/one/blob/main/README.md#use) [c](../check.md) "
        "![d](https://host/one/raw/main/LICENSE)"
    )
    with pytest.raises(FileNotFoundError, match=r"docs/page\.md links to absent\.py"):
        HOOKS["outside_links"]("[a](../absent.py)", page="page.md", url=URL)


def test_every_picture_is_used_and_there() -> None:
    texts = [page.read_text() for page in (*PAGES, ROOT / "README.md")]
    used = {name for text in texts for name in re.findall(r"images/([\w.]+\.(?:png|svg))", text)}
    there = {path.name for path in (DOCS / "images").iterdir() if path.suffix in (".png", ".svg")}
    assert used == there
