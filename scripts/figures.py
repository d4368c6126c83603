"""Prints the sizes and shapes that keep the package readable: folders, arrows, lines, fields,
parameters, words. `tests/project/test_figures.py` holds the limits.

    python scripts/figures.py            # every figure beside its limit
    python scripts/figures.py --places   # and where a limit is not kept
"""

from __future__ import annotations

import argparse
import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lerobot_grain"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured property of the package.

    Attributes:
      name: what is measured.
      value: the largest that was found, a count, or a rate.
      limit: what it may be at most.
      places: where the limit is not kept, each a line of text.
    """

    name: str
    value: float
    limit: float
    places: tuple[str, ...] = ()


def figures() -> list[Figure]:
    """Measures the package as it lies in this checkout."""
    trees = {
        path.relative_to(ROOT).as_posix(): _parsed(path) for path in sorted(PACKAGE.rglob("*.py"))
    }
    return [
        _modules_of_a_folder(trees),
        _lines_of_a_module(),
        _columns_of_a_line(),
        _largest("fields of a class that is no frozen value", 10, _fields(trees)),
        _largest("lines of a function, docstring aside", 60, _function_lines(trees)),
        _largest("parameters of a private function", 6, _parameters(trees)),
        _parallel_assignments(trees),
        _sentences(),
        _files_with_budget_shares(),
        _absent_texts(),
    ]


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


def _largest(name: str, limit: int, sizes: dict[str, int]) -> Figure:
    over = sorted(((size, place) for place, size in sizes.items() if size > limit), reverse=True)
    return Figure(name, max(sizes.values()), limit, tuple(f"{place}: {n}" for n, place in over))


def _modules_of_a_folder(trees: dict[str, ast.Module]) -> Figure:
    modules = [name for name in trees if not name.endswith("__init__.py")]
    folders = Counter(name.rpartition("/")[0] for name in modules)
    return _largest("modules of a folder", 10, dict(folders))


def _lines_of_a_module() -> Figure:
    return _largest(
        "lines of a module",
        450,
        {_name(path): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")},
    )


def _columns_of_a_line() -> Figure:
    files = [path for folder in _CODE for path in (ROOT / folder).rglob("*.py")]
    files.remove(ROOT / _OF_OPENPI)
    return _largest(
        "columns of a line",
        100,
        {
            f"{name}:{number}": len(_PRAGMA.sub("", line) if "#" in line else line)
            for name, path in ((_name(path), path) for path in files)
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if "https://" not in line  # an address cannot be broken
        },
    )


# Comments for tools must stand on the line that they are for.
_PRAGMA = re.compile(r"\s+# (?:noqa|type: ignore)\b.*")
# Has lines as openpi writes them, which a diff of the documentation changes.
_OF_OPENPI = "tests/support/openpi_train.py"
_CODE = ("lerobot_grain", "tests", "examples", "benchmarks", "scripts", "fuzz")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """Yields file, owner and definition of every function and method."""
    for name, tree in trees.items():
        owners = {
            child: node.name
            for node in _nodes(tree)
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in _nodes(tree):
            if isinstance(node, ast.FunctionDef):
                yield name, owners.get(node, ""), node


def _function_lines(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Counts from `def` to the last line, without the docstring: a public function may say at
    length what its many arguments are."""
    found = {}
    for name, _, function in _functions(trees):
        assert function.end_lineno is not None
        first = function.body[0]
        if ast.get_docstring(function) is not None:
            assert first.end_lineno is not None
            length = function.end_lineno - function.lineno - (first.end_lineno - first.lineno)
        else:
            length = function.end_lineno - function.lineno + 1
        found[f"{name}:{function.lineno} {function.name}"] = length
    return found


def _parameters(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Counts without `self`, of functions and methods with a private name, `__init__` of private
    classes among them."""
    found = {}
    for name, owner, function in _functions(trees):
        is_private = function.name.startswith("_") and not function.name.startswith("__")
        if is_private or (function.name == "__init__" and owner.startswith("_")):
            arguments = function.args
            names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([one for one in names if one.arg not in ("self", "cls")])
            found[f"{name}:{function.lineno} {function.name}"] = count
    return found


def _fields(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Counts what is annotated in the body of a class, and what its methods assign to `self`."""
    found = {}
    for name, tree in trees.items():
        for node in _nodes(tree):
            if isinstance(node, ast.ClassDef) and not _is_frozen(node):
                found[f"{name}:{node.lineno} {node.name}"] = len(_fields_of(node))
    return found


def _is_frozen(node: ast.ClassDef) -> bool:
    is_tuple = any(ast.unparse(base) in ("NamedTuple", "Protocol") for base in node.bases)
    return is_tuple or any("frozen=True" in ast.unparse(one) for one in node.decorator_list)


def _fields_of(node: ast.ClassDef) -> set[str]:
    names = {
        one.target.id
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    for one in ast.walk(node):
        if (
            isinstance(one, ast.Attribute)
            and isinstance(one.ctx, ast.Store)
            and isinstance(one.value, ast.Name)
            and one.value.id == "self"
        ):
            names.add(one.attr)
    return names


def _parallel_assignments(trees: dict[str, ast.Module]) -> Figure:
    total, places = 0, []
    for name, tree in trees.items():
        for node in _nodes(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                total += 1
                if isinstance(node.value, ast.Tuple) and any(
                    isinstance(target, ast.Tuple) for target in getattr(node, "targets", ())
                ):
                    places.append(f"{name}:{node.lineno}")
    return Figure("parallel assignments, %", 100 * len(places) / total, 1, tuple(places))


# --- words ---------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`*])")
_VAGUE = re.compile(r"(What|Where|Of)\b(?!.*\?$)")


def _sentences() -> Figure:
    """Counts sentences of docstrings, comments and pages that begin with a clause or a genitive."""
    count, places = 0, []
    for name, text in _prose():
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*#|])", text):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                sentence = sentence.lstrip("-*#>| ")
                count += 1
                if _VAGUE.match(sentence):
                    places.append(f"{name}: {sentence}")
    name = "sentences that begin with What, Where or Of, in 1,000"
    return Figure(name, 1000 * len(places) / count, 3, tuple(places))


def _prose() -> Iterator[tuple[str, str]]:
    """Yields place and text of every docstring and comment of the package, and of every page."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in _nodes(_parsed(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{_name(path)}:{getattr(node, 'lineno', 1)}", text
        yield from _comments(path)
    for path in _pages():
        # Without blocks of code and headings.
        yield _name(path), re.sub(r"```.*?```|^#[^\n]*", "", path.read_text(), flags=re.S | re.M)


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def _comments(path: Path) -> Iterator[tuple[str, str]]:
    """Yields comments, those on neighboring lines as one text."""
    text, last = "", 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if text and line != last + 1:
                yield f"{_name(path)}:{last}", text
                text = ""
            text += token.string.lstrip("#: ") + "\n"
            last = line
    if text:
        yield f"{_name(path)}:{last}", text


# --- knowledge in one place ----------------------------------------------------------------------

_SHARE = re.compile(r"budget\w*(?:\.\w+)? *(?://|\*) *[\w.]+|[\w.]+ *\* *(?:memory_)?budget\b")


def _files_with_budget_shares() -> Figure:
    """Finds the modules of the reader that divide the memory budget."""
    places = [
        f"{_name(path)}:{number} {line.strip()}"
        for path in sorted((PACKAGE / "_reading").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _SHARE.search(line)
    ]
    files = {place.partition(":")[0] for place in places}
    return Figure("files with shares of the budget", len(files), 1, tuple(places))


_PATH = re.compile(r"`((?:docs|tests|scripts|benchmarks|examples|fuzz|_[a-z]+)/[\w./-]+)`")
# Of openpi and Octo.
_PATHS_OF_OTHERS = {"scripts/train.py", "scripts/openpi_data.py"}
_ABSENT = re.compile(r"\b(?:design|house|style|grain|hub|lerobot-format)\.md\b")


def _absent_texts() -> Figure:
    """Finds paths in code and documents at which this repository has nothing."""
    files = [path for folder in _CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    places = []
    for path in [*files, *_pages()]:
        text = path.read_text()
        named = [
            one for one in sorted(set(_PATH.findall(text)) - _PATHS_OF_OTHERS) if not _exists(one)
        ]
        named += [] if path == Path(__file__) else _ABSENT.findall(text)
        places += [f"{_name(path)}: {one}" for one in named]
    return Figure("references to absent texts", len(places), 0, tuple(places))


def _exists(named: str) -> bool:
    """Whether a path, or a module without `.py`, is there, from the root, the package or
    `tests/`."""
    return any(
        (folder / (named.rstrip("/") + ending)).exists()
        for folder in (ROOT, PACKAGE, PACKAGE / "testing", ROOT / "tests")
        for ending in ("", ".py")
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", action="store_true", help="print where a limit is not kept")
    options = parser.parse_args()
    for figure in figures():
        print(f"{figure.name:55} {figure.value:8.3g}   at most {figure.limit:g}")
        if options.places and figure.value > figure.limit:
            print("".join(f"    {place}\n" for place in figure.places), end="")


if __name__ == "__main__":
    main()
