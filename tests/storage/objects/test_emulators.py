"""The emulators of object stores that other people wrote: moto's S3, and that of Google Cloud
Storage on PyPI (`gcp-storage-emulator`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx2
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import write_dataset
from tests.support.datasets import examples_of

pytestmark = pytest.mark.timeout(100)

FOLDER = "sets/ü b+c=d~"
DATA = "data/chunk-000/file-000.parquet"
OPTIONS = lg.StorageOptions(disk_cache_bytes=0, deadline_seconds=20.0)
COMMANDS = {
    "s3": ("moto", "from moto.server import main; main(['-p', '{port}'])"),
    "gs": (
        "gcp_storage_emulator",
        "import sys; sys.argv[1:] = ['start', '--port', '{port}', '--in-memory', "
        "'--default-bucket', 'robots']; from gcp_storage_emulator.__main__ import main; main()",
    ),
}


class Emulator(NamedTuple):
    """A server that runs, and what puts an object into its bucket `robots`."""

    uri: str
    endpoint: str
    put: Callable[[str, bytes], object]


@pytest.fixture(params=COMMANDS)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    package, code = COMMANDS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://localhost:{port}"
    with subprocess.Popen(
        [sys.executable, "-c", code.format(port=port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    ) as process:
        try:
            wait_for(endpoint, process)
            if request.param == "s3":
                httpx2.put(f"{endpoint}/robots").raise_for_status()

            def put(name: str, contents: bytes) -> object:
                if request.param == "s3":
                    headers = {"Authorization": "AWS key:any"}
                    url = f"{endpoint}/robots/{quote(name)}"
                    answer = httpx2.put(url, content=contents, headers=headers)
                else:
                    query = f"uploadType=media&name={quote(name, safe='')}"
                    url = f"{endpoint}/upload/storage/v1/b/robots/o?{query}"
                    answer = httpx2.post(url, content=contents)
                return answer.raise_for_status()

            yield Emulator(f"{request.param}://robots/{FOLDER}", endpoint, put)
        finally:
            process.terminate()


def wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "the emulator has ended"
        with contextlib.suppress(httpx2.TransportError):
            httpx2.get(endpoint)
            return
        time.sleep(0.05)


def test_a_dataset(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any are right, and moto insists on some; that of Google is asked without.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    directory = tmp_path / "data"
    write_dataset(directory, episode_lengths=[9, 14, 7], fps=10)
    for path in directory.rglob("*"):
        if path.is_file():
            emulator.put(f"{FOLDER}/{path.relative_to(directory)}", path.read_bytes())
    arguments = {"endpoint": emulator.endpoint, "storage_options": OPTIONS}
    repository = lg.open_repository(emulator.uri, **arguments)
    examples, expected = examples_of(repository), examples_of(directory)
    assert [repr(each) for each in examples] == [repr(each) for each in expected]
    if emulator.uri.startswith("s3:"):  # that of Google knows no conditions
        again = lg.open_repository(emulator.uri, **arguments)
        contents = (directory / DATA).read_bytes()
        emulator.put(f"{FOLDER}/{DATA}", contents[:-1] + b"x")
        with pytest.raises(lg.StorageError, match="was overwritten"):
            examples_of(again)
    scheme = emulator.uri[:2]
    with pytest.raises(lg.StorageError, match="there is no bucket nobody at"):
        lg.open_repository(f"{scheme}://nobody/sets", **arguments)
    with pytest.raises(lg.DatasetFormatError, match="begins with 'nothing/'"):
        lg.open_repository(f"{scheme}://robots/nothing", **arguments)
