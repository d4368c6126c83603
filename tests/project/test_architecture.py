"""The folders of the package: which imports which, where heavy dependencies are, and that the
public names are what `__all__` says.
"""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain._base import errors

PACKAGE = Path(lg.__file__).parent
# Public modules at the root, each with names that need another package than the rest: nothing but
# a door to the module of ours that has them.
DOORS = {"kauldron": "_training.kauldron"}
# `python -m lerobot_grain`: nothing but the call of the command line.
PROGRAM = "__main__"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
    and path not in {PACKAGE / f"{door}.py" for door in (*DOORS, PROGRAM)}
}
FOLDERS = {
    path.parent.relative_to(PACKAGE): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("__init__.py"))
}

# Which folders a folder imports, from the lowest floor to the highest (docs/architecture/README.md
# draws it).
ALLOWED = {
    "_base": set(),
    "_format": {"_base"},
    "_order": {"_base"},
    "_parquet": {"_base", "_format"},
    "_video": {"_base", "_format"},
    "_storage": {"_base", "_format"},
    "_repository": {"_base", "_format", "_order", "_parquet", "_video", "_storage"},
    "_reading": {"_base", "_format", "_order", "_parquet", "_video", "_storage", "_repository"},
    "_datasets": {"_base", "_order", "_repository", "_reading"},
    "_training": {"_base", "_video", "_repository", "_reading", "_datasets"},
    "_inspection": {
        "_base",
        "_format",
        "_order",
        "_parquet",
        "_video",
        "_storage",
        "_repository",
        "_reading",
        "_datasets",
    },
    "_cli": {"_inspection"},
    "testing": {"_base"},
}
# Only these modules of some folders.
ONLY = {
    ("_storage", "_format"): {"_format.layout"},
    ("_repository", "_order"): {"_order.philox"},
    ("_repository", "_video"): {"_video.mp4"},
    ("_reading", "_order"): {"_order.windows"},
    ("_training", "_video"): {"_video.images"},
    ("_cli", "_inspection"): {
        "_inspection.cache_contents",
        "_inspection.locate",
        "_inspection.overview.dataset_summary",
        "_inspection.overview.shown",
        "_inspection.overview.shown_rows",
        "_inspection.overview.train_step",
        "_inspection.profile",
    },
    ("testing", "_base"): {"_base.errors"},
}
# A module not listed imports NumPy and the standard library only, apart from modules of ours.
HEAVY = {
    "_base.versions": {"huggingface_hub", "jax"},
    "_parquet.columns": {"pyarrow"},
    "_parquet.row_tables": {"pyarrow"},
    "_parquet.table": {"pyarrow"},
    "_video.decoder": {"torch", "torchcodec"},
    "_video.depth": {"av"},
    "_video.images": {"PIL"},
    "_reading.frame_cache.episode_frames": {"xxhash"},
    "_storage.http.client": {"httpx2"},
    "_storage.http.connections": {"httpx2"},
    "_storage.hub.address": {"huggingface_hub"},
    "_storage.objects.aws_credentials": {"botocore"},
    "_storage.objects.google_credentials": {"google"},
    "_datasets.frame_order": {"grain"},
    "_datasets.delta_timestamps": {"grain"},
    "_datasets.lerobot_dataset": {"grain"},
    "_datasets.episodes.episode_dataset": {"grain"},
    "_datasets.mixtures.components": {"grain"},
    "_datasets.mixtures.mixture_dataset": {"grain"},
    "_datasets.pipelines": {"grain"},
    "_datasets.positions": {"grain"},
    "_datasets.read_rows": {"grain"},
    "_datasets.read_windows": {"grain"},
    "_datasets.element_specs": {"grain"},
    "_datasets.feed.batches": {"grain"},
    "_datasets.feed.device": {"grain", "jax"},
    "_datasets.feed.elastic": {"grain", "jax"},
    "_datasets.feed.placement": {"grain", "jax"},
    "_datasets.feed.readers": {"grain"},
    "_datasets.feed.remote.definition": {"grain"},
    "_datasets.feed.remote.flight": {"pyarrow"},
    "_datasets.feed.remote.flight_readers": {"grain", "pyarrow"},
    "_datasets.feed.remote.ray_readers": {"grain", "ray"},
    "_datasets.feed.remote.reader_server": {"grain", "pyarrow"},
    "_datasets.feed.remote.record_batches": {"pyarrow"},
    "_datasets.feed.remote.remote_readers": {"grain"},
    "_datasets.feed.remote.tickets": {"grain"},
    "_datasets.feed.worker_stream": {"grain"},
    "_datasets.feed.workers": {"absl", "grain"},
    "_training.augmentation": {"jax"},
    "_training.kauldron": {"etils", "grain", "jax", "kauldron", "orbax"},
    "_training.normalization": {"jax"},
    "_training.openpi": {"grain"},
    "_training.returns_to_go": {"grain"},
    "_training.shaping": {"grain", "PIL"},
    "_inspection.plot": {"matplotlib"},
    "_inspection.overview.shown_pictures": {"PIL"},
    "_inspection.overview.train_step": {"jax"},
    "_cli.progress": {"rich"},
    "_cli.output.profile_plots": {"matplotlib"},
    "_cli.output.report": {"rich"},
    "_cli.page.pictures": {"PIL"},
    "testing._writer.video": {"av"},
    "testing._writer.dataset": {"pyarrow"},
    "testing._writer.metadata": {"pyarrow"},
    "testing._writer.large_metadata": {"pyarrow"},
    "testing._writer.recording": {"PIL"},
}
# The public names, and what is not imported from a package but is one.
PUBLIC = "the public names"
MOST_MODULES, MOST_ARROWS, FLOORS = 10, 41, 8


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the full names of all imported modules; of `from lerobot_grain._format import info` it
    is `lerobot_grain._format.info`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in names if name.removeprefix("lerobot_grain.") in MODULES]
            yield from ours or [node.module]


def own_imports(tree: ast.AST) -> set[str]:
    """Returns the modules of ours that are imported, and `PUBLIC` for the package itself."""
    ours = {name for name in imported(tree) if name.split(".")[0] == "lerobot_grain"}
    return {
        name.removeprefix("lerobot_grain.") if name != "lerobot_grain" else PUBLIC for name in ours
    }


def folder_of(name: str) -> str:
    return name.split(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Returns which folder imports which other one."""
    found = {
        (folder_of(name), folder_of(other))
        for name, tree in MODULES.items()
        for other in own_imports(tree)
        if other != PUBLIC
    }
    return {(source, target) for source, target in found if source != target}


def floors(needs: Mapping[str, set[str]]) -> dict[str, int]:
    """Returns the floor of each: one above the highest of what it needs, from 1 on.

    Fails at a circle.
    """
    found: dict[str, int] = {}
    while left := [name for name in needs if name not in found]:
        ready = {
            name: needs[name] & set(needs) - {name}
            for name in left
            if needs[name] & set(needs) - {name} <= set(found)
        }
        assert ready, f"a circle among {left}"
        found |= {
            name: 1 + max((found[other] for other in others), default=0)
            for name, others in ready.items()
        }
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_what_its_folder_may(name: str) -> None:
    folder = folder_of(name)
    for other in own_imports(MODULES[name]):
        if other == PUBLIC:
            assert folder == "_cli", "only the command asks for the public names"
        elif folder_of(other) != folder:
            assert folder_of(other) in ALLOWED[folder], f"{name} imports {other}"
            assert other in ONLY.get((folder, folder_of(other)), {other}), f"{name} imports {other}"


def test_what_is_allowed_is_used() -> None:
    used = arrows()
    assert {(source, target) for source, targets in ALLOWED.items() for target in targets} == used
    assert len([arrow for arrow in used if arrow[0] != "testing"]) <= MOST_ARROWS


def test_the_folders_stand_on_eight_floors() -> None:
    house = {name: targets for name, targets in ALLOWED.items() if name != "testing"}
    assert {folder_of(name) for name in MODULES} == set(ALLOWED)
    assert len(house) == 12
    assert max(floors(house).values()) == FLOORS
    # No arrow up: the folders are listed from the lowest floor to the highest.
    order = list(house)
    assert all(
        order.index(target) < order.index(source)
        for source, targets in house.items()
        for target in targets
    )


def test_modules_have_no_circles() -> None:
    floors({name: own_imports(tree) - {PUBLIC} for name, tree in MODULES.items()})


def test_rows_and_frames_do_not_know_each_other() -> None:
    for name, tree in MODULES.items():
        for one, other in (
            ("_reading.rows.", "_reading.frames."),
            ("_reading.frames.", "_reading.rows."),
            ("_storage.http.", "_storage.hub."),
            ("_storage.http.", "_storage.objects."),
            ("_storage.hub.", "_storage.objects."),
            ("_storage.objects.", "_storage.hub."),
        ):
            if name.startswith(one):
                assert not [found for found in own_imports(tree) if found.startswith(other)], name


def test_a_folder_has_at_most_ten_modules() -> None:
    sizes = Counter(name.rpartition(".")[0] for name in MODULES)
    assert max(sizes.values()) <= MOST_MODULES, sizes


def test_every_module_has_a_test_file_of_its_name_or_a_line_that_names_one() -> None:
    page = (PACKAGE.parent / "docs" / "architecture" / "README.md").read_text()
    lines = page.partition("## Which test holds which module")[2].splitlines()
    files = {path.stem for path in (PACKAGE.parent / "tests").rglob("test_*.py")}
    held = set()
    for cells in (line.split("|") for line in lines if line.startswith("| `")):
        first, *others = re.findall(r"`([\w/]+)`", cells[1])
        folder = first.rpartition("/")[0]
        held |= {
            first.replace("/", "."),
            *(f"{folder}/{name}".replace("/", ".") for name in others),
        }
        named = re.findall(r"`(\w+)`", cells[2])
        assert named, first
        assert set(named) <= files, first
    assert held <= set(MODULES)
    unnamed = {name for name in MODULES if f"test_{name.rpartition('.')[2]}" not in files}
    assert unnamed <= held


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if str(folder) not in (".", "testing")], ids=str
)
def test_a_private_folder_says_what_it_is_and_nothing_else(folder: Path) -> None:
    assert ast.get_docstring(FOLDERS[folder])
    assert len(FOLDERS[folder].body) == 1


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_stand_at_the_top(name: str) -> None:
    inner = [
        node
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert {found for node in inner for found in own_imports(node)} == set()
    typing_only = [node for node in MODULES[name].body if isinstance(node, ast.If)]
    assert {found for node in typing_only for found in own_imports(node)} == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_dependencies_stay_in_their_modules(name: str) -> None:
    packages = {found.split(".")[0] for found in imported(MODULES[name])}
    assert packages - {"lerobot_grain", "numpy"} - set(sys.stdlib_module_names) <= HEAVY.get(
        name, set()
    )


def test_the_modules_of_heavy_dependencies_need_them() -> None:
    for name, packages in HEAVY.items():
        found = {found.split(".")[0] for found in imported(MODULES[name])}
        assert found & packages, f"{name} is in the list, but imports none of {packages}"


def test_the_loopback_hub_runs_without_any_dependency() -> None:
    # Its server is a process of its own, which starts in no time because it imports the standard
    # library only.
    seen, waiting = set(), ["testing._hub.server"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        assert {found.split(".")[0] for found in imported(MODULES[name])} <= set(
            sys.stdlib_module_names
        ) | {"lerobot_grain"}
        waiting += sorted(own_imports(MODULES[name]) - seen)


# --- public names --------------------------------------------------------------------------------


def test_public_names_are_what_all_says() -> None:
    assert list(lg.__all__) == sorted(set(lg.__all__))
    # Seen in a new process, where no test has imported a submodule.
    code = (
        "import lerobot_grain, types; print(*(n for n, v in vars(lerobot_grain).items() if "
        "n[0] != '_' and type(v) != types.ModuleType))"
    )
    assert sorted(printed(code).split()) == list(lg.__all__)


def test_importing_the_package_imports_neither_pytorch_nor_a_trainer() -> None:
    # Two seconds and 200 MB that datasets without video need not pay.
    names = {"kauldron", "tensorflow", "torch", "torchcodec"}
    assert printed(f"import lerobot_grain, sys; print(*{names} & set(sys.modules))").strip() == ""


@pytest.mark.parametrize("door", DOORS)
def test_a_door_has_the_names_of_one_module(door: str) -> None:
    tree = ast.parse((PACKAGE / f"{door}.py").read_text())
    assert ast.get_docstring(tree)
    assert own_imports(tree) == {DOORS[door]}
    imports, names = tree.body[1:]
    assert isinstance(imports, ast.ImportFrom)
    assert isinstance(names, ast.Assign)
    assert ast.literal_eval(names.value) == [alias.name for alias in imports.names]
    # No other module of ours needs the package.
    assert not [name for name, tree in MODULES.items() if DOORS[door] in own_imports(tree)]


def test_the_program_is_the_command_line() -> None:
    assert own_imports(ast.parse((PACKAGE / f"{PROGRAM}.py").read_text())) == {"_cli.main"}


def printed(code: str) -> str:
    """Returns what a program prints in a new process."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    ).stdout


@pytest.mark.parametrize("name", lg.__all__)
def test_public_names_are_described(name: str) -> None:
    value = getattr(lg, name)
    assert inspect.getdoc(value)
    assert value.__doc__, "not only an inherited docstring"
    assert not value.__doc__.startswith(f"{name}("), "only the signature that dataclass writes"
    for member_name, member in vars(value).items() if inspect.isclass(value) else ():
        if not member_name.startswith("_") and inspect.isfunction(member):
            assert inspect.getdoc(getattr(value, member_name)), f"{name}.{member_name}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if folder_of(name) != "testing"))
def test_modules_and_what_they_offer_are_described(name: str) -> None:
    assert ast.get_docstring(MODULES[name])
    for node in MODULES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


# --- exceptions ----------------------------------------------------------------------------------

EXCEPTIONS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, BaseException)
]
ERRORS = [value for value in EXCEPTIONS if not issubclass(value, Warning)]


def test_the_exception_tree() -> None:
    assert set(EXCEPTIONS) == {
        value
        for name in lg.__all__
        if inspect.isclass(value := getattr(lg, name)) and issubclass(value, Exception)
    }
    parents = {error.__name__: [base.__name__ for base in error.__bases__] for error in EXCEPTIONS}
    assert parents == {
        "LeRobotGrainError": ["Exception"],
        "InvalidRequestError": ["LeRobotGrainError", "ValueError"],
        "StateMismatchError": ["InvalidRequestError"],
        "DatasetFormatError": ["LeRobotGrainError"],
        "StorageError": ["LeRobotGrainError", "OSError"],
        "MissingFileError": ["StorageError"],
        "LeRobotGrainWarning": ["UserWarning"],
    }
    assert all(error.__name__ in (errors.__doc__ or "") for error in EXCEPTIONS)


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda exception: exception.__name__)
def test_exceptions_name_the_public_path(exception: type[Exception]) -> None:
    assert (exception.__module__, exception.__qualname__) == ("lerobot_grain", exception.__name__)
    assert getattr(lg, exception.__name__) is exception
    assert b"_base" not in pickle.dumps(exception("text"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_exceptions_take_one_string_and_pickle(error: type[lg.LeRobotGrainError]) -> None:
    # Grain's worker processes hang on an exception that does not.
    text = "org/name@1a2b: data.parquet bytes [0, 9): something"
    again = pickle.loads(pickle.dumps(error(text)))
    assert type(again) is error
    assert (str(again), again.args) == (text, (text,))
    with pytest.raises(TypeError):
        error(text, "another")
