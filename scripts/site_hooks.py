"""Hooks of MkDocs: links of pages that lead out of docs/ become addresses of the repository.

So the pages are readable on GitHub and on the site. The address and the version stand once, in
`pyproject.toml` and in the package. MkDocs runs this file (`mkdocs.yml`); it is no program.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The target of a link or picture that begins with a way up; titles do not occur in the pages.
_UPWARDS = re.compile(r"(!?\[[^\]]*\]\()(\.\./[^)\s]+)\)")


def repository_url() -> str:
    """Returns the public address of the repository, as the package's metadata has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    url: str = project["urls"]["Repository"]
    return url


def outside_links(markdown: str, *, page: str, url: str) -> str:
    """Returns a page whose links out of `docs/` lead to the repository.

    Args:
      markdown: of the page.
      page: its path below `docs/`.
      url: of the repository.

    Raises:
      FileNotFoundError: a link leads to a path that the repository does not have.
    """

    def replace(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[2].partition("#")
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{page} links to {path}, which is not in the repository")
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}{url}/{kind}/main/{path}{hash_sign}{anchor})"

    return _UPWARDS.sub(replace, markdown)


def on_config(config: Any) -> Any:
    """Sets what stands in the head of every page."""
    config.repo_url = repository_url()
    config.repo_name = "Repository"
    version = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "lerobot_grain" / "__init__.py").read_text(), re.M
    )
    assert version is not None
    config.site_name = f"lerobot_grain {version[1]}"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Changes the links of a page before MkDocs checks them."""
    return outside_links(markdown, page=page.file.src_uri, url=repository_url())
