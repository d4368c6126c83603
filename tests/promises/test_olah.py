"""Streams from olah 0.5.4, a mirror of the Hub that others wrote, so that our reader does not only
understand our own loopback Hub.

It needs a virtual environment of its own, since it pins old versions. These tests run when
`~/.cache/lerobot_grain/olah-0.5.4` is one; `LEROBOT_GRAIN_OLAH=1 pytest
tests/promises/test_olah.py` makes it with pip (a minute or two, once).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lerobot_grain as lg
from lerobot_grain.testing import LoopbackHub
from tests.support.streams import digest

pytestmark = pytest.mark.timeout(400)

_VERSION = "0.5.4"
_START_SECONDS = 60.0
_INSTALL_SECONDS = 300.0


@pytest.fixture(scope="module")
def olah() -> Path:
    """The command that starts olah."""
    home = Path.home() / ".cache" / "lerobot_grain" / f"olah-{_VERSION}"
    command = home / "bin" / "olah-cli"
    if not command.exists():
        if os.environ.get("LEROBOT_GRAIN_OLAH") != "1":
            pytest.skip(f"{home} is not here; LEROBOT_GRAIN_OLAH=1 makes it")
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", home],
                check=True,
                capture_output=True,
                timeout=_INSTALL_SECONDS,
            )
            pip = [
                home / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                f"olah=={_VERSION}",
                "psutil<6",
            ]
            subprocess.run(pip, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(home, ignore_errors=True)
            pytest.skip(f"olah {_VERSION} cannot be installed: {error}")
    return command


@contextlib.contextmanager
def serve(olah: Path, folder: Path, *, offline: bool, **settings: object) -> Iterator[str]:
    """Runs olah with its files under `folder`, and gives its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    basic = {"host": "127.0.0.1", "port": port, "repos-path": str(folder / "repos"), **settings}
    lines = ["[basic]", *(f"{name} = {json.dumps(value)}" for name, value in basic.items())]
    folder.mkdir(exist_ok=True)
    (folder / "configs.toml").write_text(
        "\n".join([*lines, "[accessibility]", f"offline = {json.dumps(offline)}\n"])
    )
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [olah, "-c", "configs.toml"], cwd=folder, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, (folder / "output").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_mirror_that_fills_itself_then_without_network(olah, small_dataset, tmp_path):
    expected = digest(small_dataset)
    with LoopbackHub() as hub:
        commit = hub.add_repository("olah/arm", small_dataset, tags=["v3.0"]).commit
        netlocs = {
            "hf-netloc": hub.endpoint.removeprefix("http://"),
            "hf-lfs-netloc": hub.cdn_origin.removeprefix("http://"),
        }
        upstream = {"hf-scheme": "http", **netlocs}
        with serve(olah, tmp_path / "olah", offline=False, **upstream) as endpoint:
            assert digest("olah/arm", endpoint=endpoint, cache_dir=tmp_path / "warm") == expected
        assert {r.kind for r in hub.requests()} >= {"api", "resolver", "cdn"}
    with serve(olah, tmp_path / "olah", offline=True, **upstream) as endpoint:
        for number, revision in enumerate(("v3.0", commit)):
            assert (
                digest(
                    "olah/arm",
                    revision=revision,
                    endpoint=endpoint,
                    cache_dir=tmp_path / str(number),
                )
                == expected
            )


def test_a_mirror_of_git_repositories_that_ignores_ranges(olah, small_dataset, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("the command git is not here")
    repository = tmp_path / "mirrors" / "datasets" / "olah" / "arm"
    shutil.copytree(small_dataset, repository)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        [*identity, "commit", "-q", "-m", "x"],
        ["tag", "v3.0"],
    ):
        subprocess.run(
            ["git", *arguments], cwd=repository, check=True, capture_output=True, timeout=20
        )
    with (
        serve(
            olah, tmp_path / "olah", offline=True, **{"mirrors-path": [str(tmp_path / "mirrors")]}
        ) as endpoint,
        pytest.raises(
            lg.StorageError,
            match=r"ignores byte ranges \(HTTP 200 with the whole file, expected 206\)",
        ),
    ):
        digest("olah/arm", endpoint=endpoint, cache_dir=tmp_path / "cache")
