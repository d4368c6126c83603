"""Runs the notebooks from top to bottom, against a Hub on this machine that has small datasets
under the names of the real ones.

    python examples/notebooks/run.py            # says whether they run
    # and keeps their outputs, with the figures, in the files
    python examples/notebooks/run.py --keep

The notebooks do not know of it: `HF_ENDPOINT` leads them here, as it leads all programs that use
huggingface_hub.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from lerobot_grain.testing import LoopbackHub

NOTEBOOKS = Path(__file__).parent
sys.path.insert(0, str(NOTEBOOKS.parent))

from worlds import write_world  # noqa: E402 (scripts of examples/ are no package)

# The arguments with which the stand-ins of the datasets are written.
WORLDS: dict[str, dict[str, Any]] = {
    "pusht": {"cameras": ("observation.image",), "num_episodes": 60},
    "svla_so101_pickplace": {"cameras": ("observation.images.up", "observation.images.side")},
}


@contextlib.contextmanager
def stand_ins(
    directory: Path, worlds: Mapping[str, Mapping[str, Any]] = WORLDS
) -> Iterator[dict[str, str]]:
    """Writes and serves datasets of these names and arguments; yields the environment in which
    notebooks find them.
    """
    with LoopbackHub() as hub:
        for name, arguments in worlds.items():
            write_world(directory / name, **arguments)
            hub.add_repository(f"lerobot/{name}", directory / name, tags=["v3.0"])
        here = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(directory / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "JAX_PLATFORMS": "cpu",
        }
        no_proxy = ",".join(filter(None, (os.environ.get("no_proxy"), "localhost,127.0.0.1")))
        yield os.environ | here | {"no_proxy": no_proxy, "NO_PROXY": no_proxy}


def execute(
    path: Path, environment: Mapping[str, str], *, parameters: Mapping[str, Any] = {}
) -> nbformat.NotebookNode:
    """Returns a notebook with the outputs of a run.

    Args:
      path: of the notebook.
      environment: of its kernel.
      parameters: name -> value, set after the cell with the tag `parameters`, for shorter runs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    # In an empty folder, as a notebook of one's own.
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources=resources,
            extra_arguments=["--log-level=40"],
        )
        client.execute(env=dict(environment))
    return notebook


def keep(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Writes a notebook with its outputs, but for the times of the run, progress bars and warnings,
    which are of this machine.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        default=sorted(NOTEBOOKS.glob("*.ipynb")),
        help="(default: all)",
    )
    parser.add_argument("--keep", action="store_true", help="write the outputs into the files")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lerobot_grain-") as directory,
        stand_ins(Path(directory)) as environment,
    ):
        for path in options.notebooks:
            start = time.perf_counter()
            notebook = execute(path, environment)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s")
            if options.keep:
                keep(path, notebook)


if __name__ == "__main__":
    main()
