"""The code of the documentation runs, against a Hub on this machine.

A page that a test of its own runs (because its code needs a trainer, a device mesh, or a check of
what it computes) is not run here again. The README takes 5 s: it writes video, trains a step, saves
a checkpoint, profiles and fills the cache.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import huggingface_hub
import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from jax.sharding import AxisType

import lerobot_grain as lg
from lerobot_grain.testing import Camera, Feature, LoopbackHub, write_dataset
from tests.support.datasets import change_table
from tests.support.doc_blocks import ROOT, blocks, run_python, run_shell

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TESTS = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
# Rows of the pages' datasets are many; those of the tests are few. Seconds are few, too.
SHORT = {"4711": "11", "30": "0.3"}
NUM_EPISODES = 50


def run_elsewhere(page: Path) -> bool:
    """Whether another test runs the Python of a page: it names its file and looks for blocks.
    tests/training runs the pages of trainers.
    """
    return page.parent.name == "trainers" or any(
        f'"{page.name}"' in text and "```python" in text
        for text in (path.read_text() for path in TESTS)
    )


HERE = [page for page in PAGES if not run_elsewhere(page) and blocks(page)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with what the pages name: two cameras, rewards, marks, and tables of rows."""
    directory = tmp_path_factory.mktemp("docs") / "data"
    camera = {"height": 24, "width": 72, "kind": "image"}
    write_dataset(
        directory,
        episode_lengths=[30] * NUM_EPISODES,
        fps=10,
        cameras=[
            Camera(key="observation.images.top", **camera),
            Camera(key="observation.image", **camera),
        ],
        features={
            "is_valid": Feature(dtype="bool"),
            "next.reward": Feature(dtype="float32"),
            "next.done": Feature(dtype="bool"),
        },
    )

    def mark(table: pa.Table) -> pa.Table:
        return table.append_column("is_dagger", pa.array([True] * len(table)))

    for path in (directory / "meta" / "episodes").rglob("*.parquet"):
        change_table(path, mark)
    annotations = directory / "meta" / "annotations"
    annotations.mkdir()
    pq.write_table(weights(), annotations / "quality.parquet")
    return directory


def weights() -> pa.Table:
    return pa.table({"episode_index": [0, 1], "weight": [2.0, 0.5]})


@pytest.fixture(scope="module")
def named_hub(written: Path) -> Iterator[LoopbackHub]:
    """A Hub that has a dataset under all names of the pages."""
    with LoopbackHub() as hub:
        for name in ("org/name", "org/arm", "org/hand", "org/new", "org/banana", "lerobot/pusht"):
            hub.add_repository(name, written, tags=["v3.0"])
        hub.add_token("hf_of_a_test")
        yield hub


@pytest.fixture
def served(
    named_hub: LoopbackHub, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leads the names of the pages to this machine, and makes the files that they name."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", named_hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "banana").symlink_to(written)
    for name in ("corrections", "good"):
        column = "weight" if name == "corrections" else "is_valid"
        values = [2.0, 0.5] if name == "corrections" else [True, False]
        table = pa.table({"episode_index": [0, 1], column: values})
        pa.csv.write_csv(table, tmp_path / f"{name}.csv")
        pq.write_table(table, tmp_path / f"{name}.parquet")


def stand_ins(directory: Path) -> dict[str, Any]:
    """Returns the names that pages leave to the reader."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    names = {
        "contextlib": __import__("contextlib"),
        "grain": grain,
        "jax": jax,
        "lg": lg,
        "np": np,
        "mesh": mesh,
        "directory": directory / "mine",
        "dataset_directory": directory / "written",
        "cache_directory": directory / "cache",
        "state": {"step": np.int32(0)},
        "step": 1,
        "global_batch_size": 8,
        "train_step": lambda state, _: state,
    }
    return names | {name: getattr(lg, name) for name in lg.__all__}


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("page", HERE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The devices of one process are there already.
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)
    names = stand_ins(tmp_path)
    for language, code, line in blocks(page):
        if language == "bash":
            run_shell(code, replaced=SHORT)
            continue
        code = re.sub(r"\b4711\b", "11", code)
        run_python(code, names, page=page, line=line)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if run_elsewhere(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_whose_python_runs_elsewhere(page: Path) -> None:
    for language, code, _ in blocks(page):
        if language == "bash":
            run_shell(code, replaced=SHORT)


def test_a_block_that_fails_names_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\none = 1\n\nabsent\n```\n")
    ((_, code, line),) = blocks(page)
    with pytest.raises(NameError) as caught:
        run_python(code, {}, page=page, line=line)
    last: types.TracebackType | None = caught.tb
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None
    assert (last.tb_frame.f_code.co_filename, last.tb_lineno) == (str(page), 6)


def test_a_loop_without_end_ends() -> None:
    names: dict[str, Any] = {"seen": []}
    code = "import itertools\nfor n in itertools.count():\n    seen.append(n)\n"
    run_python(code, names, page=Path("page.md"), line=1)
    assert names["seen"] == [0, 1]


@pytest.mark.parametrize(
    "command",
    [
        "bash scripts/absent.sh",
        "bash scripts/docs.sh --absent",
        "python examples/act.py --absent 3",
        "pip install '.[absent]'",
        "make everything",
        "lerobot-grain check ./absent",
    ],
)
def test_a_command_that_is_not_there_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        run_shell(command, replaced={})


def test_commands_that_are_there_pass() -> None:
    run_shell(
        "# nothing\nbash scripts/docs.sh --serve  # shows it\npip install '.[depth]'\n", replaced={}
    )
