"""Datasets in object stores of the loopback Hub: the same examples as from the directory, never
bytes of an object that was changed since, and errors by name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._cli.main import main
from lerobot_grain._storage.http.calls import Deadline
from lerobot_grain._storage.http.responses import Response
from lerobot_grain._storage.objects import aws_credentials, google_credentials, s3
from lerobot_grain._storage.objects.address import ListedObject
from lerobot_grain._storage.objects.credentials import Anonymous, BearerToken, Credentials, in_time
from lerobot_grain._storage.objects.object_storage import ObjectStorage
from lerobot_grain._storage.objects.session import StoreSession, _RefusedError
from lerobot_grain._storage.opening import open_storage
from lerobot_grain.testing import Camera, Fault, LoopbackHub, WrittenDataset, write_dataset
from tests.support.datasets import examples_of

CAMERA = "observation.images.top"
OPTIONS = lg.StorageOptions(
    disk_cache_bytes=0,
    pause_seconds=0.01,
    read_timeout_seconds=2.0,
    deadline_seconds=10.0,
    max_attempts=4,
)
# A name that each store quotes in another way.
FOLDER = "sets/ü b+c=d~"
INFO, DATA = "meta/info.json", "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
NUMBERS = itertools.count()
KEY, SECRET = "AKIDLOOPBACK", "secret+of/the=key"
STORES = ("s3", "gs")
REMEDY = "the bucket was changed after it was opened: open it again and begin a new stream"
needs_botocore = pytest.mark.skipif(
    importlib.util.find_spec("botocore") is None, reason="botocore (the extra s3) is not installed"
)
needs_google = pytest.mark.skipif(
    not google_credentials._is_installed(), reason="google-auth (the extra gcs) is not installed"
)


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials and settings of the user, and no service of a machine that has some."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_EMULATOR", "CLOUDSDK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def write_to(directory: Path, *, seed: int) -> WrittenDataset:
    cameras = (Camera(key=CAMERA, height=32, width=96, codec="h264", gop=4),)
    return write_dataset(
        directory,
        episode_lengths=[9, 14, 7],
        fps=10,
        cameras=cameras,
        episodes_per_video_file=2,
        seed=seed,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the dataset in `FOLDER`, and another one, of as many rows, in `other`."""
    path = tmp_path_factory.mktemp("objects")
    write_to(path / FOLDER, seed=0)
    write_to(path / "other", seed=1)
    (path / f"{FOLDER}-more").mkdir()
    (path / f"{FOLDER}-more" / "info.json").write_text("not of the dataset")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_entries=3) as running:
        running.add_token(f"{KEY}:{SECRET}")
        running.add_token("a-token")
        yield running


@pytest.fixture
def hub(server: LoopbackHub) -> Iterator[LoopbackHub]:
    yield server
    server.clear_faults()
    server.clear_requests()


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest, hub: LoopbackHub, root: Path) -> str:
    """Where the dataset lies, in a bucket of this test alone."""
    bucket = f"{request.param}://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    return f"{bucket}/{FOLDER}"


def endpoint_of(hub: LoopbackHub, uri: str) -> str:
    return hub.s3_endpoint if uri.startswith("s3:") else hub.gcs_endpoint


def bucket_of(uri: str) -> str:
    return "/".join(uri.split("/")[:3])


def opened(hub: LoopbackHub, uri: str, **changes: Any) -> lg.Repository:
    arguments = {
        "endpoint": endpoint_of(hub, uri),
        "token": False,
        "storage_options": OPTIONS,
    } | changes
    return lg.open_repository(uri, **arguments)


def stored(hub: LoopbackHub, uri: str, **changes: Any) -> ObjectStorage:
    arguments = {
        "revision": None,
        "endpoint": endpoint_of(hub, uri),
        "token": False,
        "cache_dir": None,
        "options": OPTIONS,
    } | changes
    storage = open_storage(uri, **arguments)
    assert isinstance(storage, ObjectStorage)
    return storage


def read(storage: ObjectStorage, path: str = VIDEO, start: int = 0, stop: int = 10) -> bytes:
    data: bytes = storage.read_ranges(path, [ByteRange(start, stop)])[0]
    return data


def assert_equal(examples: list[Any], expected: list[Any]) -> None:
    for example, other in zip(examples, expected, strict=True):
        assert example.keys() == other.keys()
        assert all(np.array_equal(example[key], other[key]) for key in other)


# --- what is read --------------------------------------------------------------------------------


def test_examples_equal_those_of_the_directory(hub: LoopbackHub, uri: str, root: Path) -> None:
    repository = opened(hub, uri)
    again = pickle.loads(pickle.dumps(repository))
    shuffle = lg.Shuffle(seed=2, clip_length=4, num_parts=2)
    expected = examples_of(root / FOLDER, shuffle=shuffle)
    assert len(expected) == 30
    assert_equal(examples_of(repository, shuffle=shuffle), expected)
    assert_equal(examples_of(again, shuffle=shuffle), expected)
    components = {
        "near": lg.LeRobotIterDataset(root / FOLDER),
        "far": lg.LeRobotIterDataset(repository),
    }
    mixture = lg.MixtureIterDataset(components, num_examples=8)
    with contextlib.closing(iter(mixture)) as examples:
        assert sum(1 for _ in examples) == 8


def test_requests_and_bytes(hub: LoopbackHub, uri: str, root: Path) -> None:
    hub.clear_requests()
    repository = opened(hub, uri)
    # Four files in meta/ are two pages of three; data/ has one file, videos/ two.
    assert [record.kind for record in hub.requests()].count("list") == 4
    assert len(examples_of(repository)) == 30
    assert {record.kind for record in hub.requests()} == {"list", "object"}
    assert all(record.range for record in hub.requests() if record.kind == "object")
    of_store = [record for record in hub.requests() if record.kind == "object"]
    hub.add_repository(f"same/{next(NUMBERS)}", root / FOLDER, tags=["v3.0"])
    hub.clear_requests()
    examples_of(
        lg.open_repository(
            f"same/{next(NUMBERS) - 1}",
            endpoint=hub.endpoint,
            token=False,
            storage_options=OPTIONS,
        )
    )
    of_hub = [record for record in hub.requests() if record.kind in ("cdn", "git_file")]
    wanted = sum(record.body_bytes_sent for record in of_hub)
    assert sum(record.body_bytes_sent for record in of_store) <= 1.05 * wanted


def test_a_storage(hub: LoopbackHub, uri: str, root: Path) -> None:
    storage = stored(hub, uri)
    assert storage.description == uri
    sizes = {path: os.path.getsize(root / FOLDER / path) for path in storage.files}
    assert {path: storage.size_bytes(path) for path in sizes} == sizes
    assert storage.list_metadata() == {p: s for p, s in sizes.items() if p.startswith("meta/")}
    assert sizes.keys() >= {INFO, DATA, VIDEO}
    with pytest.raises(lg.StorageError, match=r"the file has only \d+ bytes"):
        read(storage, stop=1 << 30)
    with pytest.raises(lg.DatasetFormatError, match="is not the path of a file"):
        read(storage, "../other/info.json")
    with pytest.raises(lg.MissingFileError, match=r"there is no file meta/nothing \(nor any"):
        storage.size_bytes("meta/nothing")
    again = pickle.loads(pickle.dumps(storage))
    assert (again, hash(again)) == (storage, hash(storage))
    storage.close()
    assert read(storage) == (root / FOLDER / VIDEO).read_bytes()[:10]
    assert storage.statistics.bytes_received == 10


def test_the_commit_is_that_of_the_contents(hub: LoopbackHub, uri: str, root: Path) -> None:
    before = stored(hub, uri).commit
    assert len(before) == 40
    copy = f"{bucket_of(uri)}.copy"
    hub.add_bucket(copy, root / FOLDER)
    assert stored(hub, copy).commit == before
    hub.put_bucket_file(bucket_of(uri), f"{FOLDER}/checkpoints/1", root / FOLDER / INFO)
    assert stored(hub, uri).commit == before
    hub.put_bucket_file(bucket_of(uri), f"{FOLDER}/{VIDEO}", root / "other" / VIDEO)
    assert stored(hub, uri).commit != before


def test_later_epochs_come_from_the_disk(hub: LoopbackHub, uri: str) -> None:
    options = lg.StorageOptions(pause_seconds=0.01)
    expected = examples_of(opened(hub, uri, storage_options=options))
    hub.clear_requests()
    assert_equal(examples_of(opened(hub, uri, storage_options=options)), expected)
    asked = {record.file for record in hub.requests() if record.kind == "object"}
    assert all(file.startswith(f"{FOLDER}/meta/") for file in asked if file)


def test_the_command_line(
    hub: LoopbackHub, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Settings as the tools of the stores read them.
    monkeypatch.setenv("AWS_ENDPOINT_URL", hub.s3_endpoint)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", hub.gcs_endpoint.removeprefix("http://"))
    assert main(["show", uri, "--row", "3"]) == 0
    assert VIDEO in capsys.readouterr().out


# --- what was changed ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VIDEO, DATA])
def test_an_object_that_was_overwritten_or_deleted(
    hub: LoopbackHub, uri: str, root: Path, path: str
) -> None:
    dataset = lg.LeRobotIterDataset(opened(hub, uri), num_epochs=1)
    name = f"{FOLDER}/{path}"
    hub.put_bucket_file(bucket_of(uri), name, root / "other" / path)
    with contextlib.closing(iter(dataset)) as iterator:
        with pytest.raises(lg.StorageError, match=rf"{path} .*was overwritten .*{REMEDY}"):
            next(iterator)
        hub.delete_bucket_file(bucket_of(uri), name)
        with pytest.raises(lg.StorageError, match=rf"{path} .*(is gone|overwritten) .*{REMEDY}"):
            next(iterator)
        assert iterator.get_state()["position"] == 0
        hub.put_bucket_file(bucket_of(uri), name, root / FOLDER / path)
        assert sum(1 for _ in iterator) == 30


def test_a_store_that_ignores_conditions(hub: LoopbackHub, uri: str) -> None:
    storage = stored(hub, uri)
    read(storage)
    header = "ETag" if uri.startswith("s3") else "X-Goog-Generation"
    hub.add_fault(Fault(path_regex=VIDEO, headers={header: "123"}, times=None))
    with pytest.raises(lg.StorageError, match=rf"for another version of the file; {REMEDY}"):
        read(storage)


def test_an_entity_tag_in_another_form(hub: LoopbackHub, uri: str, root: Path) -> None:
    storage = stored(hub, uri)
    expected = (root / FOLDER / VIDEO).read_bytes()[:10]
    assert read(storage) == expected
    etag = '"of other metadata"'  # of the same generation
    if uri.startswith("s3"):
        [pin] = [f.pin for f in StoreSession(storage.address).list_files() if f.path == VIDEO]
        etag = f'W/"{pin}"'
    hub.add_fault(Fault(path_regex=VIDEO, headers={"ETag": etag}, times=None))
    assert read(storage) == expected


def test_a_state_of_a_bucket_that_was_changed(hub: LoopbackHub, uri: str, root: Path) -> None:
    state = iter(lg.LeRobotIterDataset(opened(hub, uri))).get_state()
    iter(lg.LeRobotIterDataset(opened(hub, uri))).set_state(state)
    hub.put_bucket_file(bucket_of(uri), f"{FOLDER}/{DATA}", root / "other" / DATA)
    with pytest.raises(lg.StateMismatchError, match="commit"):
        iter(lg.LeRobotIterDataset(opened(hub, uri))).set_state(state)


# --- errors by name ------------------------------------------------------------------------------


def test_names_that_are_none(hub: LoopbackHub, uri: str) -> None:
    bucket = bucket_of(uri)
    scheme = bucket.partition("://")[0]
    with pytest.raises(lg.StorageError, match=r"there is no bucket nobody at http://localhost"):
        opened(hub, f"{scheme}://nobody/sets")
    with pytest.raises(lg.DatasetFormatError, match=r"begins with 'nothing/'$"):
        opened(hub, f"{bucket}/nothing")
    with pytest.raises(lg.DatasetFormatError, match=f"open {bucket}/other or {bucket}/sets$"):
        opened(hub, bucket)
    for wrong in (f"{scheme}://", f"{scheme}://a/../b", f"{scheme}://a b/c"):
        with pytest.raises(lg.InvalidRequestError, match=f"^'?{scheme}://"):
            opened(hub, wrong)
    with pytest.raises(lg.InvalidRequestError, match="a bucket has no revisions, so not 'main'"):
        opened(hub, uri, revision="main")
    with pytest.raises(lg.InvalidRequestError, match="expected the address of an object store"):
        opened(hub, uri, endpoint="ftp://user:password@host")


def test_prefixes_that_are_none(hub: LoopbackHub, uri: str) -> None:
    for folder in ("/sets", "a//b", "a/./b", "a?b", "a\nb"):
        with pytest.raises(lg.InvalidRequestError, match="expected names between single slashes"):
            opened(hub, f"{bucket_of(uri)}/{folder}")


def test_a_private_bucket_without_credentials(hub: LoopbackHub, uri: str, root: Path) -> None:
    private = f"{bucket_of(uri)}.private"
    hub.add_bucket(private, root, private=True)
    with pytest.raises(lg.StorageError, match=r"is denied .*; credentials: none: token=False"):
        opened(hub, f"{private}/{FOLDER}")


def test_a_refusal_with_a_long_page(hub: LoopbackHub, uri: str) -> None:
    storage = stored(hub, uri)
    hub.add_fault(Fault(status=403, body=b"x" * (65 << 10), times=None))
    for ask in (lambda: read(storage), lambda: opened(hub, uri)):
        with pytest.raises(lg.StorageError, match=r"is denied \(HTTP 403\); credentials: none"):
            ask()


def test_a_bucket_in_another_region(hub: LoopbackHub, root: Path) -> None:
    bucket = f"s3://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    moved = {"status": 301, "headers": {"x-amz-bucket-region": "eu-west-3"}}
    hub.add_fault(Fault(origin="s3", **moved))
    with pytest.raises(
        lg.StorageError, match=r"lies in the region eu-west-3.*AWS_REGION=eu-west-3"
    ):
        opened(hub, bucket)
    region = "<Error><Code>{}</Code><Region>eu-west-3</Region></Error>"
    hub.add_fault(Fault(origin="s3", status=400, body=region.format("Malformed").encode()))
    with pytest.raises(lg.StorageError, match=r"lies in the region eu-west-3"):
        opened(hub, bucket)
    # One that must be switched on first.
    body = b"<Error><Code>IllegalLocationConstraintException</Code></Error>"
    hub.add_fault(Fault(origin="s3", status=400, body=body))
    with pytest.raises(
        lg.StorageError, match=r"in another region than us-east-1.*: set AWS_REGION to its region$"
    ):
        opened(hub, bucket)
    # A server that names its region in every error.
    storage = stored(hub, f"{bucket}/{FOLDER}")
    hub.add_fault(Fault(origin="s3", status=412, body=region.format("Precondition").encode()))
    with pytest.raises(lg.StorageError, match=r"was overwritten \(HTTP 412, Precondition\)"):
        read(storage)


@pytest.mark.parametrize("encoding", ["", "utf-8", "UTF-8", "aws-chunked", "identity"])
def test_encodings_that_change_no_byte(
    hub: LoopbackHub, uri: str, root: Path, encoding: str
) -> None:
    storage = stored(hub, uri)
    fault = Fault(path_regex=VIDEO, headers={"Content-Encoding": encoding}, times=None)
    hub.add_fault(fault)
    assert read(storage) == (root / FOLDER / VIDEO).read_bytes()[:10]


def test_a_file_that_is_compressed(hub: LoopbackHub, uri: str) -> None:
    storage = stored(hub, uri)
    hub.add_fault(Fault(path_regex=VIDEO, headers={"Content-Encoding": "gzip"}, times=None))
    with pytest.raises(lg.StorageError, match="encoding 'gzip'; expected 10 bytes as they are"):
        read(storage)


def test_a_file_that_is_shorter_than_its_list_says(hub: LoopbackHub, uri: str) -> None:
    storage = stored(hub, uri)
    hub.add_fault(Fault(path_regex=VIDEO, status=416, times=None))
    with pytest.raises(lg.StorageError, match=rf"shorter than was listed \(HTTP 416.*{REMEDY}"):
        read(storage)


def test_a_clock_that_is_wrong(hub: LoopbackHub, root: Path) -> None:
    bucket = f"s3://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    hub.add_fault(Fault(origin="s3", status=403, body=body, times=None))
    with pytest.raises(lg.StorageError, match=r"TooSkewed.*set the clock of this machine$"):
        opened(hub, f"{bucket}/{FOLDER}")


IN_S3 = """<ListBucketResult>{}<Contents><Key>{}/meta/info.json</Key><ETag>"a"</ETag>
<Size>{}</Size></Contents></ListBucketResult>"""
IN_GCS = '{{"items": [{{"name": "meta/info.json", "size": {}, "generation": {}}}]{}}}'
GOES_ON = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"
NO_LIST = "answered with something that is no list of files$"
TWICE = "the list of meta/: http://localhost.* named the same next page twice after 2 pages"
LISTS: dict[str, tuple[str, str, str]] = {
    "the same page again": ("s3", IN_S3.format(GOES_ON.format("x"), FOLDER, 1), TWICE),
    "True, the same page again": (
        "s3",
        IN_S3.format(GOES_ON.format("x").replace("true", " True "), FOLDER, 1),
        TWICE,
    ),
    "goes on nowhere": ("s3", IN_S3.format(GOES_ON.format(""), FOLDER, 1), NO_LIST),
    "a size below 0": ("s3", IN_S3.format("", FOLDER, -10), NO_LIST),
    "a size with other digits": ("s3", IN_S3.format("", FOLDER, "1_0"), NO_LIST),
    "Google, the same page again": ("gs", IN_GCS.format(1, 1, ', "nextPageToken": "x"'), TWICE),
    "Google, a size below 0": ("gs", IN_GCS.format(-1, 1, ""), NO_LIST),
    "Google, a fraction": ("gs", IN_GCS.format(1.5, 1, ""), NO_LIST),
    "Google, true": ("gs", IN_GCS.format("true", 1, ""), NO_LIST),
    "Google, infinite": ("gs", IN_GCS.format("Infinity", 1, ""), NO_LIST),
    "Google, other digits": ("gs", IN_GCS.format(1, '"\u0663"', ""), NO_LIST),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_that_are_none(hub: LoopbackHub, root: Path, name: str) -> None:
    scheme, body, text = LISTS[name]
    bucket = f"{scheme}://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    hub.add_fault(Fault(status=200, body=body.encode(), times=None))
    with pytest.raises(lg.StorageError, match=text):
        opened(hub, f"{bucket}/{FOLDER}")


@pytest.mark.parametrize("encoding", ["foo", "shift_jis"])
def test_an_error_in_an_encoding_that_is_none(hub: LoopbackHub, root: Path, encoding: str) -> None:
    bucket = f"s3://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    body = f'<?xml version="1.0" encoding="{encoding}"?><Error/>'.encode()
    hub.add_fault(Fault(origin="s3", status=403, body=body, times=None))
    with pytest.raises(lg.StorageError, match=r"is denied \(HTTP 403\)"):
        opened(hub, bucket)


def test_the_region_of_amazon_is_found_where_nobody_chose_one(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each region at an address of its own.
    asked: list[str] = []

    def amazon(region: str) -> str:
        asked.append(region)
        return f"{hub.s3_endpoint}"

    monkeypatch.setattr(s3, "_amazon", amazon)
    monkeypatch.setattr(s3.S3Address, "_bucket_url", property(lambda a: f"{a.endpoint}/{a.bucket}"))
    bucket = f"s3://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    hub.add_fault(Fault(origin="s3", status=301, headers={"x-amz-bucket-region": "eu-west-3"}))
    repository = opened(hub, f"{bucket}/{FOLDER}", endpoint=None)
    assert repository.storage.address.region == "eu-west-3"
    assert asked == ["us-east-1", "eu-west-3"]
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    hub.add_fault(Fault(origin="s3", status=301, headers={"x-amz-bucket-region": "eu-west-3"}))
    with pytest.raises(lg.StorageError, match="asked for in us-west-1: set AWS_REGION=eu-west-3"):
        opened(hub, f"{bucket}/{FOLDER}", endpoint=None)


def test_a_bucket_that_moves_is_read_in_its_new_region(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = hub.s3_endpoint.replace("localhost", "127.0.0.1")
    assert there != hub.s3_endpoint
    monkeypatch.setattr(
        s3, "_amazon", lambda region: there if region == "eu-west-3" else hub.s3_endpoint
    )
    monkeypatch.setattr(s3.S3Address, "_bucket_url", property(lambda a: f"{a.endpoint}/{a.bucket}"))
    bucket = f"s3://robots-{next(NUMBERS)}"
    hub.add_bucket(bucket, root)
    storage = stored(hub, f"{bucket}/{FOLDER}", endpoint=None)
    read(storage)
    asked: list[str] = []
    object_url = s3.S3Address.object_url

    def noted(address: s3.S3Address, file: ListedObject) -> str:
        asked.append(address.endpoint)
        return object_url(address, file)

    monkeypatch.setattr(s3.S3Address, "object_url", noted)
    hub.add_fault(Fault(origin="s3", status=301, headers={"x-amz-bucket-region": "eu-west-3"}))
    read(storage)
    assert asked == [there]


def test_addresses_of_amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    name = functools.partial(
        s3.name_s3, revision=None, endpoint=None, token=False, options=OPTIONS, cache_root=""
    )
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    of_bucket = name("s3://robots/a b").list_url("", "")
    assert of_bucket.startswith("https://robots.s3.cn-north-1.amazonaws.com.cn/?encoding-type=url")
    assert of_bucket.endswith("prefix=a%20b%2F")
    # Names that no host can have: it would be another one's, or has no certificate.
    for bucket in ("robots.of.many", "MyRobots", "my_robots", "robots-"):
        of_bucket = name(f"s3://{bucket}").list_url("", "")
        assert of_bucket.startswith(f"https://s3.cn-north-1.amazonaws.com.cn/{bucket}/?")


# --- credentials ---------------------------------------------------------------------------------


@needs_botocore
def test_signed_requests(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = f"s3://private-{next(NUMBERS)}"
    hub.add_bucket(bucket, root, private=True, token=f"{KEY}:{SECRET}")
    uri = f"{bucket}/{FOLDER}"
    (tmp_path / "credentials").write_text(
        f"[arm]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"
        f"[wrong]\naws_access_key_id={KEY}\naws_secret_access_key=other\n"
        "[unknown]\naws_access_key_id=NOBODY\naws_secret_access_key=other\n"
    )
    (tmp_path / "config").write_text(f"[profile arm]\nendpoint_url = {hub.s3_endpoint}\n")
    monkeypatch.setenv("AWS_PROFILE", "arm")
    repository = opened(hub, uri, endpoint=None, token=None)
    assert len(examples_of(repository)) == 30
    pickled = pickle.dumps(repository)
    assert SECRET.encode() not in pickled
    assert KEY.encode() not in pickled
    for profile, code in (("wrong", "SignatureDoesNotMatch"), ("unknown", "InvalidAccessKeyId")):
        monkeypatch.setenv("AWS_PROFILE", profile)
        with pytest.raises(lg.StorageError) as caught:
            opened(hub, uri, token=None)
        assert f"denied (HTTP 403, {code}); credentials: AWS (shared-credentials-file, " in str(
            caught.value
        )
        assert f"profile {profile}" in str(caught.value)
        assert SECRET not in str(caught.value)
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(lg.InvalidRequestError, match=r"config profile \(missing\) could not"):
        opened(hub, uri, token=None)
    with pytest.raises(lg.InvalidRequestError, match="a token says nothing to S3"):
        opened(hub, uri, token="hf_token")


@needs_botocore
def test_credentials_that_were_changed_are_read_anew(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"s3://private-{next(NUMBERS)}"
    hub.add_bucket(bucket, root, private=True, token=f"{KEY}:{SECRET}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated since")
    found = aws_credentials.aws_credentials("us-east-1", required=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage = stored(hub, f"{bucket}/{FOLDER}", token=None)
    storage._session()._credentials = found
    assert read(storage) == (root / FOLDER / VIDEO).read_bytes()[:10]


def test_credentials_that_run_out_are_used_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(aws_credentials, "time", SimpleNamespace(monotonic=lambda: now))

    release = threading.Event()
    answers: list[str | None] = ["a key", None, "another key", None]

    class Found:
        ends_at = now + 900

        def refresh_needed(self, refresh_in: float = 900) -> bool:
            return self.ends_at - now <= refresh_in

        def get_frozen_credentials(self) -> str:
            assert now == 1000 or release.wait(10)
            if (answer := answers.pop(0)) is None:
                raise OSError("the service does not answer")
            return answer

    credentials = aws_credentials.AwsCredentials(Found(), "us-east-1")
    assert not credentials.is_fresh()
    credentials.refresh()
    assert credentials.is_fresh()
    for secret in ("a key", "another key"):
        now += 60
        assert not credentials.is_fresh()
        threads = set(threading.enumerate())
        release.clear()
        credentials.refresh()
        assert credentials.is_fresh()
        assert credentials.secret() == "a key"
        release.set()
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)
        assert credentials.is_fresh()
        assert credentials.secret() == secret
    now = 1000.0 + 900 - 60
    with pytest.raises(lg.StorageError, match="the service does not answer"):
        credentials.refresh()
    assert not credentials.is_fresh()


def test_credentials_that_another_thread_refreshed_are_tried_again(
    hub: LoopbackHub, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = stored(hub, uri).address
    found = BearerToken("first")
    monkeypatch.setattr(type(address), "find_credentials", lambda _: BearerToken(found._token))
    session = StoreSession(address)
    session._credentials = found
    asked = []

    def attempt(_: Deadline, credentials: Credentials) -> str:
        asked.append(credentials.secret())
        if len(asked) == 1:
            found._token = "second"
            raise _RefusedError(Response(403, {}), b"", is_of_file=True)
        return "read"

    assert session._ask("x", 5.0, attempt) == "read"
    assert asked == ["first", "second"]
    session.close()


def test_an_access_token_of_google(hub: LoopbackHub, root: Path) -> None:
    bucket = f"gs://private-{next(NUMBERS)}"
    hub.add_bucket(bucket, root, private=True, token="ya29.token")
    assert len(examples_of(opened(hub, f"{bucket}/{FOLDER}", token="ya29.token"))) == 30
    with pytest.raises(
        lg.StorageError, match=r"is denied .*; credentials: the token that was"
    ) as e:
        opened(hub, f"{bucket}/{FOLDER}", token="a-token")
    assert "a-token" not in str(e.value)
    # Those of the environment are not sent to anybody who listens.
    with pytest.raises(lg.InvalidRequestError, match="which is not encrypted"):
        opened(hub, f"{bucket}/{FOLDER}", token=True)
    with pytest.raises(lg.StorageError, match=r"credentials: none: http://localhost.* not encrypt"):
        opened(hub, f"{bucket}/{FOLDER}", token=None)


@needs_google
def test_credentials_of_google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(lg.InvalidRequestError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        google_credentials.google_credentials(required=True)
    assert isinstance(google_credentials.google_credentials(required=False), Anonymous)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(lg.StorageError, match="cannot be got: DefaultCredentialsError"):
        google_credentials.google_credentials(required=False)


@pytest.mark.parametrize(
    ("module", "find", "extra"),
    [
        (aws_credentials, lambda: aws_credentials.aws_credentials("r", required=True), "s3"),
        (google_credentials, lambda: google_credentials.google_credentials(required=True), "gcs"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, module: Any, find: Callable[[], Any], extra: str
) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda: False)
    with pytest.raises(lg.InvalidRequestError, match=rf"pip install 'lerobot_grain\[{extra}\]'"):
        find()
    assert aws_credentials._MISSING.startswith("none: botocore")


def test_credentials_that_do_not_come_are_not_waited_for(
    hub: LoopbackHub, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = stored(hub, uri)
    storage.close()
    asked = threading.Event()
    release = threading.Event()

    def find(_: Any) -> Anonymous:
        asked.set()
        release.wait(30)
        return Anonymous("late")

    monkeypatch.setattr(type(storage.address), "find_credentials", find)
    errors: list[str] = []

    def read_it() -> None:
        try:
            read(storage)
        except lg.StorageError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=read_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert asked.wait(10)
    storage.close()
    for thread in threads:
        thread.join(10)
    release.set()
    assert len(errors) == 2
    assert all("the storage was closed while it was in use" in error for error in errors)
    with pytest.raises(lg.StorageError, match=r"no credentials were got within 0\.2 s"):
        in_time(functools.partial(time.sleep, 1), subject="x", seconds=0.2, check=lambda: None)


def test_a_session_closes_its_sockets(hub: LoopbackHub, uri: str) -> None:
    session = StoreSession(stored(hub, uri).address)
    assert len(session.list_files()) == 7
    session.close()
    with pytest.raises(lg.StorageError, match="was closed while it was in use"):
        session.list_files()
