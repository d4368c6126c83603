"""The metadata of the package, and the refusals of `scripts/release.sh`."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT)
README = (ROOT / "README.md").read_text()
VERSION = "1.2.3"

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")


# --- metadata ------------------------------------------------------------------------------------


def test_the_version_stands_once_and_the_changelog_has_it() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "lerobot_grain/__init__.py"
    assert f"\n## [{lg.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {lg.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_address_begins_with_that_of_the_repository() -> None:
    repository = PROJECT["project"]["urls"]["Repository"]
    substitutions = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    replacements = [one["replacement"] for one in substitutions["substitutions"]]
    assert all(url.startswith(repository) for url in PROJECT["project"]["urls"].values())
    assert all(f"]({repository}/" in text for text in replacements)


def test_the_readme_of_the_package_index_has_no_relative_link() -> None:
    hooks = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = README
    for one in hooks["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"].replace("$HFPR_VERSION", "9"), text)
    repository = PROJECT["project"]["urls"]["Repository"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", README))
    assert all(link.startswith(("https://", "#")) for link in links), links
    assert f"]({repository}/raw/v9/docs/images/plot_example.png)" in text
    assert f"]({repository}/blob/v9/docs/performance.md#decode-once-not-once-an-epoch)" in text


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# --- release -------------------------------------------------------------------------------------


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that is ready, whose tests and builds do nothing but write their name."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    files = {
        "pyproject.toml": 'Repository = "https://example.org/one"\n',
        "lerobot_grain/__init__.py": f'__version__ = "{VERSION}"\n',
        "CHANGELOG.md": f"## [Unreleased]\n\n## [{VERSION}] - 2026-01-02\n\n- One.\n",
        "CITATION.cff": f"version: {VERSION}\n",
    }
    for name in ("test", "docs", "package"):
        files[f"scripts/{name}.sh"] = f"#!/bin/sh\necho {name}\n"
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / "scripts" / "release.sh", tmp_path / "scripts")
    shutil.copy(ROOT / "scripts" / "common.sh", tmp_path / "scripts")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def release(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "scripts/release.sh"], cwd=checkout, capture_output=True, text=True, check=False
    )


@needs_git
def test_a_release_tests_builds_tags_and_uploads_nothing(checkout: Path) -> None:
    done = release(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["test", "docs", "package"]
    assert "nothing was uploaded" in done.stdout
    assert git(checkout, "tag", "--points-at", "HEAD") == f"v{VERSION}"
    # Once more: the tag is there.
    assert "the tag v1.2.3 is there already" in release(checkout).stderr


def changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(checkout: Path) -> None:
        path = checkout / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        git(checkout, "commit", "--quiet", "--all", "--message", "two")

    return change


@needs_git
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda checkout: (checkout / "new").touch(), "changes that are not committed"),
        (changed("CHANGELOG.md", "- 2026-01-02", "- soon"), 'no line "## [1.2.3] - YYYY-MM-DD"'),
        (changed("CHANGELOG.md", "ased]\n", "ased]\n\n- Two.\n"), "lines under Unreleased"),
        (changed("pyproject.toml", "example.org", "lerobot-grain.example"), "reserved address"),
        (changed("CITATION.cff", VERSION, "1.2.2"), "CITATION.cff has another version"),
        (changed("scripts/docs.sh", "echo docs", "exit 3"), ""),
        (changed("scripts/test.sh", "echo test", "exit 3"), ""),
    ],
    ids=["changes", "changelog", "unreleased", "address", "citation", "docs", "tests"],
)
def test_a_release_that_is_not_ready_is_refused(
    checkout: Path, change: Callable[[Path], None], text: str
) -> None:
    change(checkout)
    done = release(checkout)
    assert done.returncode != 0
    assert text in done.stderr
    assert git(checkout, "tag") == ""


@pytest.mark.parametrize(
    "script",
    [path for path in sorted((ROOT / "scripts").glob("*.sh")) if path.stem != "common"],
    ids=lambda path: path.name,
)
def test_help_of_a_script_is_its_first_comment_and_nothing_else_is_done(
    script: Path, tmp_path: Path
) -> None:
    found = subprocess.run(
        ["bash", str(script), "--help"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    comment = itertools.takewhile(
        lambda line: line.startswith("#"), script.read_text().splitlines()[1:]
    )
    assert found.stdout.splitlines() == [line[1:].removeprefix(" ") for line in comment]
    assert found.stderr == ""
