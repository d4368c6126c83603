"""Storages that users write: the page that describes them, and what finds out that one is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import re
import sys
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lerobot_grain as lg
from lerobot_grain._storage.opening import open_storage
from lerobot_grain.testing import LoopbackHub, check_storage, write_dataset
from tests.support.datasets import examples_of

PAGE = Path(__file__).parents[2] / "docs" / "object-stores.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def zip_file(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("zip") / "arm.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for path in small_dataset.rglob("*"):
            archive.write(path, path.relative_to(small_dataset))
    return place


@pytest.fixture(scope="module")
def of_page(zip_file: Path, small_dataset: Path) -> dict[str, Any]:
    """What the page's blocks define. They run in order, in a module that pickles."""
    module = types.ModuleType("page_of_object_stores")
    # Where pickle finds the class.
    sys.modules[module.__name__] = module
    module.__dict__.update(zip_file=zip_file, directory=small_dataset)
    assert len(BLOCKS) == 5
    for block in BLOCKS[1:]:
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    return module.__dict__


def test_the_first_block_is_right(
    small_dataset: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", hub.s3_endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hub.add_bucket("s3://robots", small_dataset.parent)
    names: dict[str, Any] = {}
    block = BLOCKS[0].replace("sets/arm", small_dataset.name)
    exec(compile(block, str(PAGE), "exec"), names)
    assert names["dataset"].num_rows == lg.open_repository(small_dataset).episodes.num_rows


def test_examples_of_an_own_storage(of_page: dict[str, Any], small_dataset: Path) -> None:
    repository = pickle.loads(pickle.dumps(of_page["repository"]))
    examples, expected = examples_of(repository), examples_of(small_dataset)
    assert [repr(each) for each in examples] == [repr(each) for each in expected]
    assert repository.commit == repository.storage.commit
    with pytest.raises(lg.InvalidRequestError, match="a storage was given; leave them out"):
        lg.open_repository(repository.storage, revision="main")


def test_our_own_storages_conform(small_dataset: Path, hub: LoopbackHub) -> None:
    hub.add_bucket("s3://conform", small_dataset)
    hub.add_bucket("tests/conform", small_dataset)
    hub.add_repository("tests/conform", small_dataset)
    for name, endpoint in (
        (str(small_dataset), None),
        ("s3://conform", hub.s3_endpoint),
        ("hf://buckets/tests/conform", hub.endpoint),
        ("tests/conform", hub.endpoint),
    ):
        storage = open_storage(
            name,
            revision=None,
            endpoint=endpoint,
            token=False,
            cache_dir=None,
            options=lg.StorageOptions(),
        )
        check_storage(storage, small_dataset)
        storage.close()


def test_what_a_wrong_storage_is_told(of_page: dict[str, Any], small_dataset: Path) -> None:
    right = of_page["open_zip"](of_page["zip_file"])
    kind = type(right)

    def told(**methods: Any) -> str:
        values = (getattr(right, field.name) for field in dataclasses.fields(kind))
        wrong = type("Wrong", (kind,), methods)(*values)
        with pytest.raises(AssertionError) as caught:
            check_storage(wrong, small_dataset)
        return str(caught.value)

    assert "list_metadata differs" in told(list_metadata=lambda _: {})
    assert "size_bytes of " in told(size_bytes=lambda self, path: kind.size_bytes(self, path) + 1)
    assert "differ from the directory" in told(
        read_range=lambda self, path, wanted: kind.read_range(self, path, wanted)[:-1] + b"?"
    )


class Gate:
    """Holds reads, once it is shut, until so many are under way at a time."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._lock = threading.Condition()
        self._under_way = 0
        self.most = 0
        self.is_shut = False

    def __enter__(self) -> None:
        with self._lock:
            self._under_way += 1
            if self.is_shut:
                self.most = max(self.most, self._under_way)
                self._lock.notify_all()
                assert self._lock.wait_for(lambda: self.most >= self._wanted, 60)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._under_way -= 1


@dataclasses.dataclass(frozen=True)
class GatedStorage(lg.Storage):
    """A directory all of whose reads pass a gate."""

    description: str
    commit: str | None
    options: lg.StorageOptions
    near: lg.Storage
    gate: Gate

    def list_metadata(self) -> Any:
        return self.near.list_metadata()

    def size_bytes(self, path: str) -> int:
        return self.near.size_bytes(path)

    def read_range(self, path: str, wanted: lg.ByteRange) -> bytes:
        with self.gate:
            return self.near.read_range(path, wanted)


@pytest.mark.parametrize("num_connections", [1, 5])
def test_reads_under_way_are_as_many_as_connections_wherever_the_files_are(
    tmp_path: Path, num_connections: int
) -> None:
    write_dataset(tmp_path / "data", episode_lengths=[4] * 6, episodes_per_video_file=1)
    near = lg.open_repository(tmp_path / "data").storage
    options = lg.StorageOptions(num_connections=num_connections)
    gate = Gate(num_connections)
    storage = GatedStorage(near.description, near.commit, options, near, gate)
    dataset = lg.LeRobotIterDataset(
        lg.open_repository(storage), read_options=lg.ReadOptions(storage=options), num_epochs=1
    )
    gate.is_shut = True
    with contextlib.closing(iter(dataset)) as examples:
        assert len(list(examples)) == 24
    assert gate.most == num_connections
