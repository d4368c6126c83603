"""The rooms of the package: imports point down, heavy dependencies stay in their room, and the public names are what `__all__` says."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain import _errors

PACKAGE = Path(lg.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
ROOMS = {name for name in MODULES if not name.startswith("testing.")}

# A module imports only from the rows above its own.
LEVELS = [
    ["_errors"],
    [
        "_byte_ranges",
        "_disk_cache",
        "_features",
        "_windows",
        "_order",
        "_kept",
        "_known_frames",
        "_batches",
        "_recycled",
        "_parquet_pages",
        "_stats_file",
        "_texts",
        "_memory",
        "_per_process",
        "_versions",
    ],
    ["_mp4_boxes", "_awake", "_request_scope", "_schema", "_storage_options", "_git_files"],
    ["_video_format", "_daemon_pool"],
    ["_mp4", "_episodes", "_answers", "_hub_repository", "_columns", "_augment", "_shaping", "_running_stats"],
    ["_bitstreams", "_row_frames", "_parquet", "_pacing", "_hub_cache", "_openpi"],
    ["_small_mp4"],
    ["_plan", "_connections"],
    ["_transport"],
    ["_hub_api"],
    ["_hub_storage"],
    ["_bucket_storage"],
    ["_storage"],
    ["_remote_storage"],
    ["_open_storage"],
    ["_video", "_json_lines", "_statistics"],
    ["_metadata_v2"],
    ["_row_order"],
    ["_repository"],
    ["_selection", "_order_reader"],
    ["_rows"],
    ["_frame_order", "_depth_video", "_coded_video", "_plot"],
    ["_row_reader", "_camera_reader", "_workers", "_requests"],
    ["_frame_reader"],
    ["_readahead", "_check_files", "_normalize"],
    ["_open_stream", "_check"],
    ["_dataset"],
    ["_profile", "_cli_progress", "_compute_stats", "_device"],
    ["_cli_profile", "_cli_check"],
    ["_cli"],
]
# What is not listed imports NumPy and the standard library only, apart from other modules of ours.
HEAVY = {
    "_versions": {"huggingface_hub", "jax"},
    "_transport": {"httpx2"},
    "_connections": {"httpx2"},
    "_hub_repository": {"huggingface_hub"},
    "_columns": {"pyarrow"},
    "_parquet": {"pyarrow"},
    "_video": {"torch", "torchcodec", "PIL"},
    "_depth_video": {"av"},
    "_frame_order": {"grain"},
    "_requests": {"grain"},
    "_dataset": {"grain"},
    "_device": {"grain", "jax"},
    "_normalize": {"jax"},
    "_workers": {"absl", "grain"},
    "_cli_profile": {"matplotlib"},
    "_plot": {"matplotlib"},
    "_augment": {"jax"},
    "_shaping": {"grain", "PIL"},
    "_openpi": {"grain"},
    "testing._video_writer": {"av"},
    "testing._writer": {"pyarrow"},
    "testing._writer_metadata": {"pyarrow"},
    "testing._synthetic_metadata": {"pyarrow"},
    "testing._writer_recording": {"PIL"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the full names of all imported modules; of `from lerobot_grain.testing import _x` it is `lerobot_grain.testing._x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            ours = node.module in ("lerobot_grain", "lerobot_grain.testing")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if ours else (node.module,)


def own_imports(tree: ast.AST) -> set[str]:
    return {name.removeprefix("lerobot_grain.") for name in imported(tree) if name.split(".")[0] == "lerobot_grain"}


def test_every_module_has_its_level() -> None:
    listed = [name for level in LEVELS for name in level]
    assert sorted(listed) == sorted(ROOMS)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_imports_point_down(name: str) -> None:
    level = next(number for number, names in enumerate(LEVELS) if name in names)
    below = {lower for names in LEVELS[:level] for lower in names}
    assert own_imports(MODULES[name]) <= below


@pytest.mark.parametrize("name", sorted(set(MODULES) - ROOMS))
def test_the_testing_package_stands_beside_the_rooms(name: str) -> None:
    # Users test with it, so it must not need what it tests.
    assert {other for other in own_imports(MODULES[name]) if not other.startswith("testing.")} <= {"_errors"}


def test_the_testing_package_has_no_circles() -> None:
    left = {name: {other for other in own_imports(tree) if other in MODULES} for name, tree in MODULES.items()}
    while done := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in done}
    assert not left


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_stand_at_the_top(name: str) -> None:
    inner = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert {found for node in inner for found in own_imports(node)} == set()
    typing_only = [node for node in MODULES[name].body if isinstance(node, ast.If)]
    assert {found for node in typing_only for found in own_imports(node)} == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_dependencies_stay_in_their_room(name: str) -> None:
    packages = {found.split(".")[0] for found in imported(MODULES[name])}
    assert packages - {"lerobot_grain", "numpy"} - set(sys.stdlib_module_names) <= HEAVY.get(name, set())


def test_the_rooms_of_heavy_dependencies_need_them() -> None:
    for name, packages in HEAVY.items():
        found = {found.split(".")[0] for found in imported(MODULES[name])}
        assert found & packages, f"{name} is in the list, but imports none of {packages}"


def test_the_loopback_hub_runs_without_any_dependency() -> None:
    # Its server is a process of its own, which starts in no time because it imports the standard library only.
    seen, waiting = set(), ["testing._hub_server"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        assert {found.split(".")[0] for found in imported(MODULES[name])} <= set(sys.stdlib_module_names) | {"lerobot_grain"}
        waiting += sorted(own_imports(MODULES[name]) - seen)


# --- public names --------------------------------------------------------------------------------------------------------------------


def test_public_names_are_what_all_says() -> None:
    assert list(lg.__all__) == sorted(set(lg.__all__))
    # Seen in a new process, where no test has imported a submodule.
    code = "import lerobot_grain, types; print(*(n for n, v in vars(lerobot_grain).items() if n[0] != '_' and type(v) != types.ModuleType))"
    assert sorted(printed(code).split()) == list(lg.__all__)


def test_importing_the_package_does_not_import_pytorch() -> None:
    # Two seconds and 200 MB that data sets without video need not pay.
    assert printed("import lerobot_grain, sys; print(*{'torch', 'torchcodec'} & set(sys.modules))").strip() == ""


def printed(code: str) -> str:
    """Returns what a program prints in a new process."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent).stdout


@pytest.mark.parametrize("name", lg.__all__)
def test_public_names_are_described(name: str) -> None:
    value = getattr(lg, name)
    assert inspect.getdoc(value)
    assert value.__doc__, "not only an inherited docstring"
    assert not value.__doc__.startswith(f"{name}("), "only the signature that dataclass writes"
    for member_name, member in vars(value).items() if inspect.isclass(value) else ():
        if not member_name.startswith("_") and inspect.isfunction(member):
            assert inspect.getdoc(getattr(value, member_name)), f"{name}.{member_name}"


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_rooms_and_what_they_offer_are_described(name: str) -> None:
    assert ast.get_docstring(MODULES[name])
    for node in MODULES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


# --- exceptions ----------------------------------------------------------------------------------------------------------------------

EXCEPTIONS = [value for value in vars(_errors).values() if inspect.isclass(value) and issubclass(value, BaseException)]
ERRORS = [value for value in EXCEPTIONS if not issubclass(value, Warning)]


def test_the_exception_tree() -> None:
    assert set(EXCEPTIONS) == {value for name in lg.__all__ if inspect.isclass(value := getattr(lg, name)) and issubclass(value, Exception)}
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
    assert all(error.__name__ in (_errors.__doc__ or "") for error in EXCEPTIONS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_exceptions_take_one_string_and_pickle(error: type[lg.LeRobotGrainError]) -> None:
    # Grain's worker processes hang on an exception that does not.
    text = "org/name@1a2b: data.parquet bytes [0, 9): something"
    again = pickle.loads(pickle.dumps(error(text)))
    assert type(again) is error
    assert (str(again), again.args) == (text, (text,))
    with pytest.raises(TypeError):
        error(text, "another")
