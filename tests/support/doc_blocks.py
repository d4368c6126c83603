"""Runs the Python and shell blocks of a page of the documentation.

Rules:
* The blocks of a page share their names, as in a notebook.
* Endless loops end: a `for` at the top of a block takes two elements.
* A command of `lerobot-grain` runs in this process. Other commands are not run: files, options and
  extras that they name must exist.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lerobot_grain._cli.main import main

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MOST_LOOPS = 2
# Of the commands that measure, whatever a page says.
_SECONDS = "0.3"


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Returns language, text and first line of each block of a page."""
    text = page.read_text()
    return [
        (match[1], match[2], text.count("\n", 0, match.start()) + 2)
        for match in _BLOCK.finditer(text)
    ]


class _ShortLoops(ast.NodeTransformer):
    """Lets `for` statements outside of functions take a few elements only."""

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        node.iter = ast.Call(ast.Name("_few", ast.Load()), [node.iter], [])
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node


def _few(values: Iterable[Any]) -> Iterator[Any]:
    return itertools.islice(iter(values), _MOST_LOOPS)


def run_python(code: str, names: dict[str, Any], *, page: Path, line: int) -> None:
    """Runs a block; a traceback has the page and its lines.

    Raises:
      Exception: whatever the block raises.
    """
    tree = ast.increment_lineno(_ShortLoops().visit(ast.parse(code)), line - 1)
    names["_few"] = _few
    exec(compile(ast.fix_missing_locations(tree), str(page), "exec"), names)


def run_shell(code: str, *, replaced: dict[str, str]) -> None:
    """Runs the commands of the package, and checks what others name.

    Args:
      code: of the block.
      replaced: arguments that are other ones in tests, such as a shorter time.

    Raises:
      AssertionError: a command fails, or names what is not there, or is of an unknown kind.
    """
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0].endswith("lerobot-grain"):
            arguments = [replaced.get(word, word) for word in words[1:]]
            if "--seconds" in arguments:
                arguments[arguments.index("--seconds") + 1] = _SECONDS
            elif arguments[0] in ("profile", "train-check"):
                arguments += ["--seconds", _SECONDS]
            assert main(arguments) == 0, line
        else:
            _check_command(words, line)


def _check_command(words: list[str], line: str) -> None:
    program, *rest = words
    if words[:2] == ["python", "-m"]:
        assert (ROOT / words[2].replace(".", "/") / "__main__.py").is_file(), line
    elif program == "bash" or program.endswith("python"):
        path = ROOT / rest[0]
        assert path.is_file(), line
        options = [word.partition("=")[0] for word in rest[1:] if word.startswith("--")]
        texts = _texts_of_program(path)
        assert [option for option in options if option not in texts] == [], line
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[(\w+)\]", line)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = {*project["optional-dependencies"], "cuda13"}
        assert set(extras) <= known, line
    else:
        raise AssertionError(f"nothing here checks commands of {program}: {line}")


def _texts_of_program(path: Path) -> str:
    """Returns what may name the options of a program: its text, of a script also that of the
    programs that it runs, and of an example that of what all share."""
    text = path.read_text()
    named = re.findall(r"[\w/]+\.(?:py|sh)", text) if path.suffix == ".sh" else ["training.py"]
    files = [place / name for name in named for place in (ROOT, path.parent)]
    return text + "".join(file.read_text() for file in files if file.is_file())
