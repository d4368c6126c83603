"""The notebooks run from top to bottom, and the outputs that are kept in them are those of runs,
with figures.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
CellExecutionError = pytest.importorskip("nbclient.exceptions").CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
# Texts that cells print, where the numbers are the same on all machines.
EXPECTED = {
    "resume_exactly": [
        "all 60 losses and batches are the same, to the last bit",
        "the state was taken with seed = 0, this stream has 1",
    ],
    "stream_your_first_data_set": [
        "60 episodes, 3,600 frames at 10 fps",
        "uint8 (64, 2, 96, 96, 3), mean in the step",
    ],
    "train_act": [" parameters"],
}
# What a run of the tests prints in the place of the kept output: its dataset is smaller.
FEWER = {"60 episodes, 3,600 frames at 10 fps": "10 episodes, 600 frames at 10 fps"}


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_run", NOTEBOOKS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def environment(
    runner: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A few episodes, and without the dataset that only the long notebook reads: encoding all takes
    12 s of a core.
    """
    worlds = {"pusht": runner.WORLDS["pusht"] | {"num_episodes": 10}}
    with runner.stand_ins(tmp_path_factory.mktemp("notebooks"), worlds) as found:
        yield found


@pytest.fixture(scope="module")
def whole_environment(
    runner: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    with runner.stand_ins(tmp_path_factory.mktemp("all_notebooks")) as found:
        yield found


def texts(notebook: Any) -> str:
    return "".join(
        output.text
        for output in outputs(notebook)
        if output.output_type == "stream" and output.name == "stdout"
    )


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook: Any) -> list[bytes]:
    return [
        base64.b64decode(output.data["image/png"])
        for output in outputs(notebook)
        if "image/png" in output.get("data", {})
    ]


def test_there_are_three() -> None:
    assert [path.stem for path in PATHS] == list(EXPECTED)


def run_and_check(path: Path, runner: ModuleType, environment: dict[str, str]) -> None:
    found = runner.execute(path, environment, parameters={"STEPS": 3, "WIDTH": 16})
    for text in EXPECTED[path.stem]:
        assert FEWER.get(text, text) in texts(found)
    assert len(pictures(found)) == len(pictures(nbformat.read(path, as_version=4)))


# What the other one shows, test_examples.py and test_resume.py always prove.
@pytest.mark.parametrize(
    "name",
    ["stream_your_first_data_set", pytest.param("resume_exactly", marks=pytest.mark.long)],
)
def test_a_notebook_runs(name: str, runner: ModuleType, environment: dict[str, str]) -> None:
    run_and_check(NOTEBOOKS / f"{name}.ipynb", runner, environment)


# `examples/act.py`, which the notebook is short for, always runs.
@pytest.mark.long
def test_the_long_notebook_runs(runner: ModuleType, whole_environment: dict[str, str]) -> None:
    run_and_check(NOTEBOOKS / "train_act.ipynb", runner, whole_environment)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_kept_outputs_are_of_one_whole_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for text in EXPECTED[path.stem]:
        assert text in texts(notebook)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures(notebook))
    # Nothing of the machine that they were made on.
    assert not re.search(
        r"/(home|root|tmp|work|usr|opt)/|Error|Warning",
        "".join(str(output) for output in outputs(notebook)),
    )


def test_a_cell_that_raises_is_an_error(
    runner: ModuleType, tmp_path: Path, environment: dict[str, str]
) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("raise LookupError('there is no such dataset')")]
    )
    nbformat.write(notebook, tmp_path / "raises.ipynb")
    with pytest.raises(CellExecutionError, match="there is no such dataset"):
        runner.execute(tmp_path / "raises.ipynb", environment)
