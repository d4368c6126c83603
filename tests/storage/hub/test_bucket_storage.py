"""Datasets in buckets of the loopback Hub: the same examples as from the directory, and never
bytes of a file that was changed since.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._cli.main import main
from lerobot_grain._storage.hub.bucket_storage import BucketStorage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain.testing import (
    Camera,
    Fault,
    LoopbackHub,
    WrittenDataset,
    read_barcodes,
    write_dataset,
)

CAMERA = "observation.images.top"
SECRET = "hf_secretsecretsecret"
OPTIONS = lg.StorageOptions(
    pause_seconds=0.01, read_timeout_seconds=0.5, deadline_seconds=5.0, max_attempts=4
)
INFO, DATA = "meta/info.json", "data/chunk-000/file-000.parquet"
VIDEO, SECOND_VIDEO = (f"videos/{CAMERA}/chunk-000/file-00{number}.mp4" for number in range(2))
NUMBERS = itertools.count()
REMEDY = (
    "the bucket was changed after it was opened: open it again and begin a new stream; to be "
    "safe from changes, read a copy of it"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    return write_to(tmp_path_factory.mktemp("bucket") / "data", seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    """As many rows, other contents."""
    return write_to(tmp_path_factory.mktemp("bucket") / "other", seed=1)


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


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no cache of the user."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_entries=3) as running:
        running.add_token("hf_stranger")
        yield running


@pytest.fixture
def hub(server: LoopbackHub) -> Iterator[LoopbackHub]:
    yield server
    server.clear_faults()
    server.set_url_lifetime(3600)


@pytest.fixture
def bucket(hub: LoopbackHub, written: WrittenDataset) -> str:
    """A bucket of this test alone, with the dataset in its folder `sets/a`; the log holds only
    what comes after.
    """
    name = f"robots/{next(NUMBERS)}"
    (root := written.directory.parent / "root" / "sets").mkdir(parents=True, exist_ok=True)
    if not (root / "a").exists():
        (root / "a").symlink_to(written.directory)
        (root / "a-more").mkdir()
        (root / "a-more" / "info.json").write_text("not of the dataset")
    hub.add_bucket(name, root.parent)
    hub.clear_requests()
    return name


def uri_of(bucket: str) -> str:
    return f"hf://buckets/{bucket}/sets/a"


def opened(hub: LoopbackHub, uri: str, **changes: Any) -> lg.Repository:
    return lg.open_repository(uri, endpoint=hub.endpoint, storage_options=OPTIONS, **changes)


def stored(hub: LoopbackHub, uri: str, **changes: Any) -> BucketStorage:
    arguments = {
        "revision": None,
        "endpoint": hub.endpoint,
        "token": None,
        "cache_dir": None,
        "options": OPTIONS,
    } | changes
    storage = open_storage(uri, **arguments)
    assert isinstance(storage, BucketStorage)
    return storage


def read(storage: Any, path: str = VIDEO, start: int = 0, stop: int = 10) -> bytes:
    data: bytes = storage.read_ranges(path, [ByteRange(start, stop)])[0]
    return data


# --- what is read --------------------------------------------------------------------------------


def test_an_epoch_equals_that_of_the_directory(
    hub: LoopbackHub, bucket: str, written: WrittenDataset
) -> None:
    shuffle = lg.Shuffle(seed=2, clip_length=4, num_parts=2)
    of_bucket = lg.LeRobotIterDataset(opened(hub, uri_of(bucket)), shuffle=shuffle, num_epochs=1)
    examples = list(of_bucket)
    for example, expected in zip(
        examples,
        lg.LeRobotIterDataset(written.directory, shuffle=shuffle, num_epochs=1),
        strict=True,
    ):
        assert example.keys() == expected.keys()
        for key in example:
            assert np.array_equal(example[key], expected[key]), key
        codes = read_barcodes(example[CAMERA][None])
        assert codes.tolist() == [[int(example["episode_index"]), int(example["frame_index"]), 0]]
    assert sorted(int(example["index"]) for example in examples) == list(range(30))
    assert not [
        record for record in hub.requests() if record.origin == "cdn" and record.had_authorization
    ]


def test_a_golden_data_set_at_the_root_of_a_bucket(shared: Path, hub: LoopbackHub) -> None:
    directory = shared / "golden" / "av1_small"
    hub.add_bucket("robots/golden", directory)
    options = {"num_epochs": 1, "delta_timestamps": {"action": [0.0, 0.1]}}
    of_bucket = lg.LeRobotIterDataset(
        "hf://buckets/robots/golden/", endpoint=hub.endpoint, **options
    )
    for example, expected in zip(
        of_bucket, lg.LeRobotIterDataset(directory, **options), strict=True
    ):
        assert all(np.array_equal(example[key], expected[key]) for key in expected)


def test_number_of_requests(hub: LoopbackHub, bucket: str) -> None:
    dataset = lg.LeRobotIterDataset(opened(hub, uri_of(bucket)), num_epochs=1)
    # Four files in meta/ are two pages of three; data/ has one file, videos/ two.
    assert [
        record.path.rpartition("/")[2] for record in hub.requests() if record.kind == "api"
    ] == ["meta", "meta", "data", "videos"]
    assert sum(1 for _ in dataset) == 30
    assert len([record for record in hub.requests() if record.kind == "api"]) == 4
    resolved = Counter(record.file for record in hub.requests() if record.kind == "resolver")
    assert resolved.keys() == {f"sets/a/{path}" for path in dataset.repository.storage.files}
    assert set(resolved.values()) == {1}
    assert {record.method for record in hub.requests() if record.kind == "resolver"} == {"HEAD"}
    assert all(record.range for record in hub.requests() if record.kind == "cdn")


def test_a_storage_of_a_bucket(hub: LoopbackHub, bucket: str, written: WrittenDataset) -> None:
    storage = stored(hub, uri_of(bucket))
    assert storage.description == uri_of(bucket)
    sizes = {path: os.path.getsize(written.directory / path) for path in storage.files}
    assert storage.list_metadata() == {
        path: size for path, size in sizes.items() if path.startswith("meta/")
    }
    assert sizes.keys() >= {INFO, DATA, VIDEO, SECOND_VIDEO}
    hub.clear_requests()
    assert {path: storage.size_bytes(path) for path in sizes} == sizes
    assert hub.requests() == []
    contents = (written.directory / INFO).read_bytes()
    assert storage.read_metadata(INFO, max_bytes=len(contents)) == contents
    with pytest.raises(
        lg.DatasetFormatError,
        match=rf"^{uri_of(bucket)}: {INFO} has {len(contents)} bytes, expected at most 9$",
    ):
        storage.read_metadata(INFO, max_bytes=9)
    with pytest.raises(lg.StorageError, match=r"the file has only \d+ bytes"):
        read(storage, stop=1 << 30)
    with pytest.raises(lg.DatasetFormatError, match="is not the path of a file"):
        read(storage, "../a-more/info.json")
    for path in ("meta/nothing", "README.md"):
        with pytest.raises(
            lg.MissingFileError,
            match=rf"^{uri_of(bucket)}: there is no file {path} \(nor any outside of meta/, data/",
        ):
            storage.size_bytes(path)
    assert storage.statistics.requests == len(hub.requests()) + 4
    storage.close()
    assert read(storage) == (written.directory / VIDEO).read_bytes()[:10]


def test_the_commit_is_a_hash_of_the_files(
    hub: LoopbackHub, bucket: str, written: WrittenDataset, other: WrittenDataset
) -> None:
    before = stored(hub, uri_of(bucket)).commit
    assert len(before) == 40
    hub.add_bucket(f"{bucket}.moved", written.directory)
    assert stored(hub, f"hf://buckets/{bucket}.moved").commit == before
    for path in (
        "checkpoints/1",
        "metadata",
        "data-of-others/1",
        "video/1",
    ):  # the Hub lists some of them, by the beginnings of their names
        hub.put_bucket_file(bucket, f"sets/a/{path}", written.directory / INFO)
    assert stored(hub, uri_of(bucket)).commit == before
    hub.put_bucket_file(bucket, f"sets/a/{VIDEO}", other.directory / VIDEO)
    changed = stored(hub, uri_of(bucket)).commit
    hub.delete_bucket_file(bucket, f"sets/a/{DATA}")
    assert len({before, changed, stored(hub, uri_of(bucket)).commit}) == 3


def test_another_process_asks_the_api_nothing_and_reads_the_same_version(
    hub: LoopbackHub, bucket: str, other: WrittenDataset
) -> None:
    # Without the package's __init__, which takes three seconds to import what reading does not
    # need.
    code = (
        "import pickle, sys, types\n"
        "sys.modules['lerobot_grain'] = types.ModuleType('lerobot_grain')\n"
        "sys.modules['lerobot_grain'].__path__ = [sys.argv[1]]\n"
        "from lerobot_grain._base.byte_ranges import ByteRange\n"
        "storage = pickle.load(sys.stdin.buffer)\n"
        "for path in sys.argv[2:]:\n"
        "    try: print(len(storage.read_ranges(path, [ByteRange(0, 10)])[0]))\n"
        "    except OSError as error: print(error)\n"
    )
    storage = stored(hub, uri_of(bucket))
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert hash(pickle.loads(pickle.dumps(storage))) == hash(storage)
    hub.put_bucket_file(bucket, f"sets/a/{SECOND_VIDEO}", other.directory / SECOND_VIDEO)
    hub.clear_requests()
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(lg.__file__), VIDEO, SECOND_VIDEO],
        input=pickle.dumps(storage),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
    )
    length, error = done.stdout.decode().splitlines()
    assert length == "10"
    assert REMEDY in error
    assert [record.kind for record in hub.requests()] == ["resolver", "cdn", "resolver"]


def test_the_profile_command(
    hub: LoopbackHub, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "profile",
                uri_of(bucket),
                "--endpoint",
                hub.endpoint,
                "--batch-size",
                "8",
                "--batches",
                "2",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith(f"{uri_of(bucket)}: 3 episodes, 30 rows at 10 fps\n")


# --- what was changed ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VIDEO, DATA])
def test_a_file_that_is_overwritten_before_it_is_read_is_an_error(
    hub: LoopbackHub, bucket: str, other: WrittenDataset, written: WrittenDataset, path: str
) -> None:
    dataset = lg.LeRobotIterDataset(
        opened(hub, uri_of(bucket)), shuffle=lg.Shuffle(clip_length=16), num_epochs=1
    )
    dataset.repository.close()  # what opening learned of the first video
    hub.put_bucket_file(bucket, f"sets/a/{path}", other.directory / path)
    iterator = iter(dataset)
    for _ in range(2):
        with pytest.raises(
            lg.StorageError,
            match=rf"^{uri_of(bucket)}: {path}: .* for Xet hash \w{{64}}, expected \w{{64}}; "
            rf"{REMEDY}",
        ):
            next(iterator)
    assert iterator.get_state()["position"] == 0
    # Its earlier contents may still be read.
    hub.put_bucket_file(bucket, f"sets/a/{path}", written.directory / path)
    assert sum(1 for _ in iterator) == 30


def test_metadata_that_is_overwritten_while_it_is_opened(
    hub: LoopbackHub, bucket: str, other: WrittenDataset
) -> None:
    storage = stored(hub, uri_of(bucket))
    hub.put_bucket_file(bucket, f"sets/a/{INFO}", other.directory / VIDEO)
    with pytest.raises(lg.StorageError, match=rf"^{uri_of(bucket)}: {INFO}: .*{REMEDY}"):
        storage.read_metadata(INFO, max_bytes=1 << 20)


def test_a_file_that_is_deleted_is_no_missing_file(hub: LoopbackHub, bucket: str) -> None:
    # `gop_length` takes a missing file for a camera without video.
    repository = opened(hub, uri_of(bucket))
    hub.delete_bucket_file(bucket, f"sets/a/{VIDEO}")
    with pytest.raises(
        lg.StorageError, match=rf"^{uri_of(bucket)}: {VIDEO} is gone; {REMEDY}"
    ) as caught:
        repository.gop_length()
    assert not isinstance(caught.value, lg.MissingFileError)


def test_another_size_for_the_same_hash(hub: LoopbackHub, bucket: str) -> None:
    storage = stored(hub, uri_of(bucket))
    hub.add_fault(Fault(origin="hub", method="HEAD", headers={"X-Linked-Size": "77"}))
    with pytest.raises(
        lg.StorageError,
        match=rf"^{uri_of(bucket)}: {VIDEO} has 77 bytes, \d+ when it was listed; {REMEDY}",
    ):
        read(storage)


def test_a_change_shows_when_the_link_has_expired(
    hub: LoopbackHub, bucket: str, written: WrittenDataset, other: WrittenDataset
) -> None:
    storage = stored(hub, uri_of(bucket))
    expected = (written.directory / VIDEO).read_bytes()
    assert read(storage) == expected[:10]
    hub.put_bucket_file(bucket, f"sets/a/{VIDEO}", other.directory / VIDEO)
    # The CDN has contents by their hash: what is read is still what was pinned.
    assert read(storage, start=10, stop=20) == expected[10:20]
    hub.expire_urls()
    with pytest.raises(lg.StorageError, match=REMEDY):
        read(storage, start=20, stop=30)


def test_a_state_does_not_go_on_in_a_bucket_that_was_changed(
    hub: LoopbackHub, bucket: str, other: WrittenDataset, written: WrittenDataset
) -> None:
    def streamed() -> Any:
        return iter(
            lg.LeRobotIterDataset(
                opened(hub, uri_of(bucket)), features=["index"], shuffle=lg.Shuffle(clip_length=16)
            )
        )

    iterator = streamed()
    rows = [int(next(iterator)["index"]) for _ in range(12)]
    state, rest = iterator.get_state(), [int(next(iterator)["index"]) for _ in range(5)]
    again = streamed()
    again.set_state(state)
    assert [int(next(again)["index"]) for _ in range(5)] == rest
    for path in (VIDEO, DATA, INFO):
        hub.put_bucket_file(
            bucket,
            f"sets/a/{path}",
            other.directory / path if path != INFO else edited(written, path),
        )
        changed = streamed()
        with pytest.raises(
            lg.StateMismatchError, match=r"commit.* of a bucket of the list of its files"
        ):
            changed.set_state(state)
        assert int(next(changed)["index"]) == rows[0]
        hub.put_bucket_file(bucket, f"sets/a/{path}", written.directory / path)
    again = streamed()
    again.set_state(state)
    assert [int(next(again)["index"]) for _ in range(5)] == rest


def edited(written: WrittenDataset, path: str) -> Path:
    """A file with one more blank at its end."""
    changed = written.directory.parent / "edited"
    changed.write_bytes((written.directory / path).read_bytes() + b" ")
    return changed


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "revision", "text"),
    [
        (
            "hf://buckets/org/name",
            "main",
            r"^hf://buckets/org/name: a bucket has no revisions, so not 'main'; leave it out$",
        ),
        (
            "hf://buckets/org/name@v1/a",
            None,
            r"^hf://buckets/org/name@v1/a: a bucket has no revisions; leave it out$",
        ),
        (
            "hf://buckets/org",
            None,
            r"does not name a bucket, expected hf://buckets/org/name or "
            r"hf://buckets/org/name/folder$",
        ),
        ("hf://buckets//name", None, r"does not name a bucket"),
        ("hf://buckets/org/na me", None, r"cannot be the name of a repository"),
        (
            "hf://buckets/org/name/../other",
            None,
            r"^hf://buckets/org/name/../other: '../other' is no folder of a bucket$",
        ),
        (
            "hf://buckets/org/name//a",
            None,
            r"^hf://buckets/org/name//a: '/a' is no folder of a bucket$",
        ),
    ],
)
def test_names_that_name_nothing(uri: str, revision: str | None, text: str) -> None:
    with pytest.raises(lg.InvalidRequestError, match=text):
        lg.open_repository(uri, revision=revision, endpoint="http://localhost:1")


def test_missing_or_private_looks_the_same(
    hub: LoopbackHub, bucket: str, written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = f"{bucket}.private"
    hub.add_bucket(private, written.directory, private=True, token=SECRET)
    hints = {
        None: "found none: set HF_TOKEN",
        "hf_stranger": "the token that was sent gives no access",
    }
    for name in ("robots/nothing", private):
        for token, hint in hints.items():
            with pytest.raises(lg.StorageError) as caught:
                opened(hub, f"hf://buckets/{name}", token=token)
            text = (
                f"there is no bucket {name} on {hub.endpoint}, or it is private, which looks "
                f"the same without access ({hint}"
            )
            assert str(caught.value).startswith(f"hf://buckets/{name}: meta/: {text}")
    with pytest.raises(
        lg.StorageError,
        match=r"does not accept the token: make a new one, or pass token=False for a "
        r"public bucket$",
    ):
        opened(hub, uri_of(bucket), token="hf_unknown")
    hub.clear_requests()
    given = lg.LeRobotIterDataset(
        opened(hub, f"hf://buckets/{private}", token=SECRET), num_epochs=1
    )
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = stored(hub, f"hf://buckets/{private}")
    assert sum(1 for _ in given) == 30
    assert {record.had_authorization for record in hub.requests() if record.origin == "cdn"} == {
        False
    }
    assert {record.had_authorization for record in hub.requests() if record.origin == "hub"} == {
        True
    }
    assert SECRET.encode() not in pickle.dumps(found)
    assert SECRET not in repr(given.repository.storage)


@pytest.mark.parametrize("folder", ["", "/sets", "/sets/a-more", "/nothing"])
def test_a_folder_without_a_data_set(hub: LoopbackHub, bucket: str, folder: str) -> None:
    with pytest.raises(
        lg.DatasetFormatError,
        match=rf"^hf://buckets/{bucket}{folder}: there is no meta/info.json; this is not a "
        rf"LeRobotDataset$",
    ):
        opened(hub, f"hf://buckets/{bucket}{folder}")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            b'{"type": "file", "path": "meta/info.json", "size": 3}',
            "lists meta/info.json without a hash, so it cannot be pinned",
        ),
        (b'{"type": "file", "path": "meta/info.json"}', "sent a listing that is not understood"),
    ],
)
def test_listings_that_pin_nothing(hub: LoopbackHub, bucket: str, entry: bytes, text: str) -> None:
    hub.add_fault(Fault(origin="hub", status=200, body=b"[" + entry + b"]"))
    with pytest.raises(lg.StorageError, match=rf"^hf://buckets/{bucket}: .*{text}$"):
        opened(hub, f"hf://buckets/{bucket}")


def test_an_answer_without_a_hash(hub: LoopbackHub, bucket: str) -> None:
    storage = stored(hub, uri_of(bucket))
    hub.add_fault(
        Fault(
            origin="hub",
            status=302,
            headers={"Location": "/elsewhere", "X-Linked-Size": "5"},
            times=None,
        )
    )
    with pytest.raises(
        lg.StorageError,
        match=rf"^{uri_of(bucket)}: {VIDEO}: gave up .* for Xet hash none, expected \w{{64}}$",
    ):
        read(storage)


def test_offline(hub: LoopbackHub, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        lg.StorageError,
        match=r"HF_HUB_OFFLINE=1 forbids to read from http://localhost:\d+: unset it",
    ):
        opened(hub, uri_of(bucket))
    assert hub.requests() == []


# --- trouble on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(origin="hub", status=503, times=2),
        Fault(origin="hub", status=429, headers={"Retry-After": "0"}),
        Fault(origin="hub", close_before=True),
        Fault(origin="hub", method="HEAD", status=500),
        Fault(origin="cdn", status=503, times=2),
        Fault(origin="cdn", reset_at=700, path_regex=r"\.mp4$"),
        Fault(origin="cdn", truncate_at=100, path_regex=r"\.parquet$", times=2),
        Fault(origin="cdn", status=403, path_regex=r"\.mp4$"),
    ],
    ids=[
        "listing 503",
        "listing 429",
        "listing closed",
        "resolver 500",
        "503",
        "reset",
        "truncated",
        "403",
    ],
)
def test_is_tried_again(hub: LoopbackHub, bucket: str, fault: Fault) -> None:
    hub.add_fault(fault)
    dataset = lg.LeRobotIterDataset(opened(hub, uri_of(bucket)), num_epochs=1)
    assert sorted(int(example["index"]) for example in dataset) == list(range(30))
    assert len([record for record in hub.requests() if record.faulted]) == fault.times


def test_links_that_expire_are_asked_for_again(
    hub: LoopbackHub, bucket: str, written: WrittenDataset
) -> None:
    hub.set_url_lifetime(20)  # below the margin: every link serves one request
    storage = stored(hub, uri_of(bucket))
    expected = (written.directory / VIDEO).read_bytes()
    assert [read(storage, start=i, stop=i + 10) for i in range(3)] == [
        expected[i : i + 10] for i in range(3)
    ]
    # one for the size
    assert len([record for record in hub.requests() if record.kind == "resolver"]) == 4


def test_errors_hold_no_secrets(hub: LoopbackHub, bucket: str) -> None:
    storage = stored(hub, uri_of(bucket))
    hub.add_fault(Fault(origin="cdn", status=403, times=None))
    with pytest.raises(
        lg.StorageError, match=r"HTTP 403 from 127.0.0.1 also for 2 fresh links"
    ) as caught:
        read(storage)
    for text in (str(caught.value), pickle.dumps(caught.value).decode("latin-1")):
        assert "Signature=" not in text
