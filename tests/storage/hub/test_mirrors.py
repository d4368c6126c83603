"""Mirrors of the Hub: wrong and missing lengths, lists that are missing, other contents.

Exact or an error, and never a wrong file kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._repository import metadata
from lerobot_grain._storage.git_files import blob_name, blob_name_of, git_blob_id, hash_in
from lerobot_grain._storage.http.responses import (
    RangeSource,
    Response,
    RetryableError,
    accept_range,
)
from lerobot_grain._storage.hub import client_cache
from lerobot_grain._storage.hub.address import disk_cache_directory, name_repository
from lerobot_grain._storage.hub.client_cache import cached_commit
from lerobot_grain.testing import Fault, HubRepository, LoopbackHub
from tests.support.mirror import Headers, Mirror
from tests.support.streams import DATA_AND_VIDEO, digest
from tests.support.tables import table

INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-001.parquet"
DATA, VIDEO = DATA_AND_VIDEO[0], DATA_AND_VIDEO[-1]
POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 123456\n".encode()
)
OPTIONS = lg.StorageOptions(max_attempts=2, pause_seconds=0.001)
NUMBERS = itertools.count()


@pytest.fixture
def served(hub: LoopbackHub, small_dataset: Path) -> Iterator[HubRepository]:
    yield hub.add_repository(f"mirrors/{next(NUMBERS)}", small_dataset, tags=["v3.0"])
    hub.clear_faults()


@pytest.fixture
def mirror(hub: LoopbackHub) -> Iterator[Mirror]:
    """A repository manager with a path in its address, and ETags of its own."""
    with Mirror(hub.endpoint, prefix="/artifactory/api/huggingfaceml/remote") as running:
        yield running


def opened(served: HubRepository, endpoint: str, cache: Path, **changes: Any) -> lg.Repository:
    arguments = {
        "endpoint": endpoint,
        "token": False,
        "cache_dir": cache,
        "storage_options": OPTIONS,
    } | changes
    return lg.open_repository(served.repository_id, **arguments)


def refusal(call: Callable[[], Any], kind: type[lg.LeRobotGrainError] = lg.StorageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def kept_contents(cache: Path) -> dict[str, bytes]:
    """Returns path -> contents of what lies in the snapshots of huggingface_hub's cache."""
    files = [path for path in cache.glob("datasets--*/snapshots/*/**/*") if path.is_file()]
    return {
        path.as_posix().split("/snapshots/")[1].partition("/")[2]: path.read_bytes()
        for path in files
    }


def assert_only_the_files_of_the_commit_are_kept(cache: Path, small_dataset: Path) -> None:
    for path, contents in kept_contents(cache).items():
        assert contents == (small_dataset / path).read_bytes(), path
    blobs = [path.read_bytes() for path in cache.glob("datasets--*/blobs/*")]
    files = {path.read_bytes() for path in small_dataset.rglob("*") if path.is_file()}
    assert set(blobs) <= files


# --- lengths in answers to HEAD ------------------------------------------------------------------


@pytest.mark.parametrize("told", ["0", None], ids=["zero", "missing"])
def test_a_mirror_whose_head_tells_no_length_is_read_by_the_listed_sizes(
    served, hub, mirror, small_dataset, small_digest, tmp_path, told
):
    mirror.head_length = lambda *_: told
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)
    # And the Hub itself goes on with what was kept.
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    # Each folder of data and video files was listed once.
    asked = [path.split("/tree/")[1].partition("?")[0] for path in mirror.paths("expand=false")]
    assert sorted(path.split("/")[-1] for path in asked) == [
        "data%2Fchunk-000",
        "meta",
        "videos%2Ftop%2Fchunk-000",
    ]


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_a_wrong_length_of_metadata_does_not_count(
    served, mirror, small_dataset, small_digest, tmp_path, more
):
    mirror.head_length = lambda path, size: str(size + more * path.startswith("meta/"))
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)


@pytest.mark.parametrize("path", [INFO, TASKS, EPISODES])
def test_metadata_of_another_size_is_an_error_and_not_kept(
    served, hub, mirror, small_dataset, small_digest, tmp_path, path
):
    mirror.contents = lambda file, data: data + b"\n" if file == path else data
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path))
    assert text.startswith(f"{served.repository_id}@{served.commit[:12]}: {path} bytes [0, ")
    assert text.endswith("; the file was changed")
    assert path not in kept_contents(tmp_path)
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest


@pytest.mark.parametrize("path", [INFO, TASKS, EPISODES])
def test_metadata_of_the_same_size_that_is_not_what_was_listed_is_an_error_and_not_kept(
    served, hub, mirror, small_dataset, small_digest, tmp_path, path
):
    """The ETags of this mirror are no hashes: what counts is the hash in the list of the commit."""
    mirror.contents = lambda file, data: data[:-1] + bytes([data[-1] ^ 1]) if file == path else data
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path))
    assert f"{path}: its contents have the hash " in text
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)
    assert path not in kept_contents(tmp_path)
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest


def without_hashes(
    path: str, status: int, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    if "/tree/" in path and status == 200:
        entries = [
            {name: value for name, value in entry.items() if name not in ("oid", "lfs", "xetHash")}
            for entry in json.loads(body)
        ]
        body = json.dumps(entries).encode()
    return status, headers, body


@pytest.mark.parametrize("path", [INFO, TASKS, EPISODES])
def test_metadata_of_a_mirror_that_tells_no_hash_is_read_and_kept_nowhere(
    served, hub, mirror, small_dataset, small_digest, tmp_path, path
):
    """Neither its list nor its ETags are hashes, so that only the size was compared."""
    mirror.change = without_hashes
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest
    assert kept_contents(tmp_path) == {}
    mirror.contents = lambda file, data: data[:-1] + bytes([data[-1] ^ 1]) if file == path else data
    with contextlib.suppress(lg.LeRobotGrainError):  # the changed file may be unreadable
        digest(opened(served, mirror.endpoint, tmp_path))
    assert not list(tmp_path.glob("datasets--*/blobs/*"))
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)


@pytest.mark.parametrize(
    ("path", "kind"), [(DATA, "X-Linked-Size: 0"), (VIDEO, "X-Linked-Size: 0")]
)
def test_a_link_without_size_is_an_error_that_names_file_and_header(
    served, hub, tmp_path, path, kind
):
    """If the file was said to be empty, the error would be that it is malformed."""
    repository = opened(served, hub.endpoint, tmp_path)
    fault = Fault(
        method="HEAD", path_regex=f"resolve/.*{path}$", headers={"X-Linked-Size": "0"}, times=None
    )
    hub.add_fault(fault)
    text = refusal(lambda: digest(repository))
    assert (
        f"{path}: gave up after 2 attempt(s), the last one failed with: the Hub told no size of "
        f"the file ({kind})" in text
    )
    hub.clear_faults()
    assert digest(repository)


@pytest.mark.parametrize("path", [DATA, VIDEO])
def test_a_file_without_length_that_no_list_has_is_an_error_that_names_file_and_header(
    served, mirror, tmp_path, path
):
    mirror.head_length = lambda file, size: "0" if file == path else str(size)
    mirror.change = lambda asked, *answer: (
        (404, {}, b"") if "/tree/" in asked and "meta" not in asked else answer
    )
    repository = opened(served, mirror.endpoint, tmp_path)
    text = refusal(lambda: digest(repository))
    assert text.startswith(
        f"{repository.description}: {path}: the Hub told no size of the file (Content-Length: 0), "
        "and no list of files"
    )


@pytest.mark.parametrize("path", [DATA, VIDEO])
def test_a_wrong_length_of_other_files_is_an_error_and_not_remembered_on_disk(
    served, mirror, small_digest, tmp_path, path
):
    mirror.head_length = lambda file, size: str(size - (file == path))
    text = refusal(lambda: digest(opened(served, mirror.endpoint, tmp_path)))
    assert path in text
    assert "; the file was changed" in text
    mirror.head_length = lambda _file, size: str(size)
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest


@pytest.mark.parametrize("told", [1, 4])
def test_a_length_of_a_few_bytes_is_not_blamed_on_the_file(
    served, mirror, small_digest, tmp_path, told
):
    mirror.head_length = lambda path, size: str(told if path.endswith(".mp4") else size)
    text = refusal(lambda: digest(opened(served, mirror.endpoint, tmp_path)))
    assert (
        f"{mirror.endpoint} told a length of {told} bytes for this file, which is listed with "
        in text
    )
    mirror.head_length = lambda _path, size: str(size)
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest


def test_a_length_of_zero_that_was_kept_on_disk_before_does_not_count(
    served, hub, small_digest, tmp_path
):
    repository = opened(served, hub.endpoint, tmp_path)
    cache = repository.storage._disk_cache(VIDEO)
    assert cache is not None
    cache.put(VIDEO, "size", bytes(8))
    assert os.path.isdir(disk_cache_directory(str(tmp_path)))
    assert digest(repository) == small_digest


@pytest.mark.parametrize("path", [INFO, TASKS])
def test_a_wrong_file_that_lies_in_the_cache_is_named_and_can_be_deleted(
    served, hub, small_digest, tmp_path, path
):
    """As versions before this one left it: an empty blob of another name, and a link to it."""
    root = tmp_path / f"datasets--{served.repository_id.replace('/', '--')}"
    blob, link = root / "blobs" / git_blob_id(b""), root / "snapshots" / served.commit / path
    for file in (blob, link):
        file.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"")
    link.symlink_to(os.path.relpath(blob, link.parent))
    text = refusal(lambda: opened(served, hub.endpoint, tmp_path))
    assert f"{path}: its copy {blob} has 0 bytes, expected " in text
    assert text.endswith("; delete that, and it will be read from the Hub again")
    blob.unlink()
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    assert link.stat().st_size > 0
    found = huggingface_hub.try_to_load_from_cache(
        served.repository_id, path, cache_dir=tmp_path, revision=served.commit, repo_type="dataset"
    )
    assert found == str(link)


def spoilt_copy(cache: Path, path: str, old: bytes, new: bytes) -> Path:
    """Changes a file in huggingface_hub's cache to another one of its size."""
    (link,) = cache.glob(f"datasets--*/snapshots/*/{path}")
    contents = link.read_bytes()
    assert old in contents
    link.write_bytes(contents.replace(old, new))
    return link.resolve()


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [(INFO, b'"fps": 10', b'"fps": 20'), (TASKS, b"PAR1", b"PAR2")],
    ids=["info", "tasks"],
)
def test_a_copy_in_the_cache_that_was_changed_is_read_from_the_hub_with_a_warning(
    served, hub, small_digest, tmp_path, path, old, new
):
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    blob = spoilt_copy(tmp_path, path, old, new)
    with pytest.warns(lg.LeRobotGrainWarning) as caught:
        assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    assert f"{path}: its copy {blob} has the hash " in str(caught[0].message)
    assert f"delete it (rm {blob})" in str(caught[0].message)
    blob.unlink()
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    assert blob.exists()


def flipped(contents: bytes) -> bytes:
    at = len(contents) // 3
    return contents[:at] + bytes([contents[at] ^ 1]) + contents[at + 1 :]


SPOILT = {"one bit": flipped, "zeros": lambda contents: bytes(len(contents))}


@pytest.mark.parametrize("whole", [True, False], ids=["read whole", "read in ranges"])
@pytest.mark.parametrize("damage", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("path", [TASKS, EPISODES])
def test_a_copy_of_the_same_size_is_compared_with_its_hash(
    served, hub, small_digest, tmp_path, monkeypatch, path, damage, whole
):
    """All of the repository was downloaded. Long tables are read in ranges."""
    if not whole:
        monkeypatch.setattr(metadata, "_WHOLE_TABLE_BYTES", 0)
    huggingface_hub.snapshot_download(
        served.repository_id,
        repo_type="dataset",
        revision="v3.0",
        endpoint=hub.endpoint,
        token=False,
        cache_dir=tmp_path,
    )
    (link,) = tmp_path.glob(f"datasets--*/snapshots/*/{path}")
    good = link.read_bytes()
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    link.write_bytes(damage(good))
    with pytest.warns(lg.LeRobotGrainWarning) as caught:
        assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest
    (warning,) = {str(each.message) for each in caught}
    assert f"{path}: its copy {link.resolve()} " in warning
    assert "it was changed after it was downloaded; delete it (rm " in warning
    monkeypatch.setattr("lerobot_grain._storage.hub.commit_storage.is_offline", lambda: True)
    monkeypatch.setattr("lerobot_grain._storage.opening.is_offline", lambda: True)
    with pytest.raises(
        lg.StorageError, match=rf"{path}: its copy .* \(not with HF_HUB_OFFLINE=1\)$"
    ):
        digest(opened(served, hub.endpoint, tmp_path, revision=served.commit))
    link.write_bytes(good)
    assert digest(opened(served, hub.endpoint, tmp_path, revision=served.commit)) == small_digest


def test_a_long_copy_is_compared_once_until_it_changes(served, hub, tmp_path, monkeypatch):
    huggingface_hub.snapshot_download(
        served.repository_id,
        repo_type="dataset",
        endpoint=hub.endpoint,
        token=False,
        cache_dir=tmp_path,
    )
    monkeypatch.setattr(metadata, "_WHOLE_TABLE_BYTES", 0)
    compared = []

    def noted(pieces, num_bytes, told):
        compared.append(told)
        return blob_name_of(pieces, num_bytes, told)

    monkeypatch.setattr(client_cache, "blob_name_of", noted)
    for _ in range(3):
        digest(opened(served, hub.endpoint, tmp_path))
    assert len(compared) == len(set(compared)) == 3, (
        "two files of the episode table, and that of the tasks"
    )
    (link,) = tmp_path.glob(f"datasets--*/snapshots/*/{EPISODES}")
    os.utime(link.resolve(), (1, 1))
    digest(opened(served, hub.endpoint, tmp_path))
    assert len(compared) == 4


def test_a_copy_in_the_cache_that_was_changed_is_an_error_where_the_hub_cannot_be_asked(
    served, hub, tmp_path, monkeypatch
):
    opened(served, hub.endpoint, tmp_path)
    blob = spoilt_copy(tmp_path, INFO, b'"fps": 10', b'"fps": 20')
    monkeypatch.setattr("lerobot_grain._storage.hub.commit_storage.is_offline", lambda: True)
    monkeypatch.setattr("lerobot_grain._storage.opening.is_offline", lambda: True)
    text = refusal(lambda: opened(served, hub.endpoint, tmp_path, revision=served.commit))
    assert f"{INFO}: its copy {blob} has the hash " in text
    assert text.endswith("(not with HF_HUB_OFFLINE=1)")
    monkeypatch.undo()
    with Mirror(hub.endpoint) as broken:
        broken.route = lambda path: (404, {}, b"") if "/resolve/" in path else None
        text = refusal(lambda: opened(served, broken.endpoint, tmp_path))
    assert f"its copy {blob} has the hash " in text
    assert "Reading it from the Hub failed: " in text


def test_what_names_contents():
    data = b"contents"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 8\n"
    sha256, blob = hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob 8\0contents").hexdigest()
    pointer %= sha256.encode()
    for told, name in (
        ("", blob),
        (blob, blob),
        (hashlib.sha1(data).hexdigest(), blob),
        (sha256, sha256),
        (hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), sha256),
        ("f" * 40, None),
        ("f" * 64, None),
    ):
        assert blob_name(data, told) == name
    for text, found in (
        (f'"{blob}"', blob),
        (f'W/"{sha256}"', sha256),
        ("0" * 40, ""),
        ('"1a2b"', ""),
        (None, ""),
        (7, ""),
    ):
        assert hash_in(text) == found


def test_a_mirror_that_does_not_tell_commits_is_an_error_that_names_the_header(
    served, mirror, tmp_path
):
    mirror.tells_commit = False
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path))
    assert text.startswith(
        f"{served.repository_id}@{served.commit[:12]}: {INFO}: gave up after 2 attempt(s), the "
        "last one failed with: "
    )
    assert text.endswith(
        f"{mirror.endpoint} (without the header X-Repo-Commit) answered for commit none, expected "
        f"{served.commit}"
    )
    assert not list(tmp_path.glob("datasets--*"))


# --- lists that a mirror does not have -----------------------------------------------------------


def without_references(
    path: str, status: int, headers: Headers, body: bytes
) -> tuple[int, Headers, bytes]:
    """And without the headers in which the Hub says what is wrong."""
    headers = {name: value for name, value in headers.items() if not name.startswith("X-")}
    return (
        (404, headers, b'{"errors": [{"status": 404}]}')
        if path.endswith("/refs")
        else (status, headers, body)
    )


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 501])
def test_without_the_list_of_references_the_error_names_revision(served, mirror, tmp_path, status):
    mirror.change = lambda path, *answer: (status, {}, b"") if path.endswith("/refs") else answer
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path))
    assert text == (
        f"{served.repository_id}: list of tags and branches: {mirror.endpoint} answered with HTTP "
        f"{status}; if it is a mirror that has no "
        'such list, give revision= ("main", or another branch, a tag or a commit) to do without it'
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>sign in</html>"),
        (429, b""),
        (500, b""),
        (503, b""),
        (200, b"[]"),
        (200, b'{"tags": "v3.0"}'),
    ],
    ids=["HTML", "429", "500", "503", "list", "text"],
)
def test_however_the_list_of_references_fails_the_error_names_revision(
    served, mirror, small_digest, tmp_path, status, body
):
    mirror.change = lambda path, *answer: (status, {}, body) if path.endswith("/refs") else answer
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path))
    assert f"{served.repository_id}: list of tags and branches: " in text
    assert text.endswith(
        'give revision= ("main", or another branch, a tag or a commit) to do without it'
    )
    assert digest(opened(served, mirror.endpoint, tmp_path, revision="main")) == small_digest


@pytest.mark.parametrize(
    "references",
    [
        {"tags": [None, "v3.1", {"name": None}, {"name": 3}, {}, {"name": "v3.0"}], "branches": []},
        {"tags": [{"name": "v3.0", "targetCommit": None}]},
        {"tags": None, "branches": [{"name": "main"}, {"ref": "refs/heads/x"}]},
        {"branches": [{"name": "main"}]},
    ],
    ids=["odd tags", "no branches", "null", "no tags"],
)
def test_odd_entries_of_the_list_of_references_hide_no_others(
    served, mirror, small_digest, tmp_path, references
):
    mirror.change = lambda path, *answer: (
        (200, {}, json.dumps(references).encode()) if path.endswith("/refs") else answer
    )
    assert digest(opened(served, mirror.endpoint, tmp_path)) == small_digest


@pytest.mark.parametrize("revision", ["main", "v3.0", "commit"])
def test_with_a_revision_that_list_is_not_asked_for(
    served, mirror, small_digest, tmp_path, revision
):
    mirror.change = without_references
    revision = served.commit if revision == "commit" else revision
    assert digest(opened(served, mirror.endpoint, tmp_path, revision=revision)) == small_digest
    assert mirror.paths("/refs") == []


def test_a_missing_revision_where_that_list_is_missing_too(served, mirror, tmp_path):
    mirror.change = without_references
    text = refusal(lambda: opened(served, mirror.endpoint, tmp_path, revision="v9"))
    assert text == (
        f"{served.repository_id}@v9: {mirror.endpoint} answered with HTTP 404: it has no revision "
        f"'v9', or no such repository; {mirror.endpoint} does not list its tags and branches"
    )


def test_the_newest_version_may_be_a_branch(hub, small_dataset, small_digest, tmp_path):
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text("{}")
    for number, references in enumerate(
        ({"branches": ["v3.0"]}, {"branches": ["v3.1"], "tags": ["v2.1"]}, {"tags": ["v3.0"]})
    ):
        name = f"mirrors/branch-{number}"
        hub.add_repository(name, tmp_path / "old", tags=["v2.0"])
        commit = hub.add_commit(name, small_dataset, **({"branches": []} | references)).commit
        repository = lg.open_repository(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
        assert repository.commit == commit
        assert digest(repository) == small_digest


def test_a_tag_and_a_branch_of_one_name_that_differ_are_noted(served, hub, small_dataset, tmp_path):
    other = hub.add_commit(served.repository_id, small_dataset, branches=["v3.0"]).commit
    with pytest.warns(
        lg.LeRobotGrainWarning, match=r"revision v3\.0: there is a tag and a branch of this name"
    ):
        repository = opened(served, hub.endpoint, tmp_path)
    found = (
        huggingface_hub.HfApi(endpoint=hub.endpoint)
        .dataset_info(served.repository_id, revision="v3.0")
        .sha
    )
    assert repository.commit == found == other
    assert len(repository.notes) == 1
    text = refusal(lambda: opened(served, hub.endpoint, tmp_path, revision="v9"))
    assert text.endswith("its tags and branches: v3.0, main")


# --- Git LFS pointers ----------------------------------------------------------------------------

SENT = "a Git LFS pointer of 131 bytes, which stands for a file of 123456, in place of the file"


# Each file, and each kind of answer to a request for metadata and for others; the whole table is
# `long`.
ALWAYS = {
    (INFO, True, False),
    (TASKS, False, True),
    (EPISODES, True, True),
    (EPISODES, False, False),
    (DATA, True, False),
    (DATA, False, True),
    (VIDEO, True, True),
    (VIDEO, False, False),
}


@pytest.mark.parametrize(
    ("path", "has_length", "obeys_ranges"),
    table(
        itertools.product((INFO, TASKS, EPISODES, DATA, VIDEO), (True, False), (True, False)),
        ALWAYS.__contains__,
    ),
)
def test_a_mirror_that_sends_pointers(
    served, hub, mirror, small_dataset, small_digest, tmp_path, path, has_length, obeys_ranges
):
    mirror.contents = lambda file, data: POINTER if file == path else data
    mirror.obeys_ranges = lambda file: obeys_ranges or file != path
    if not has_length:
        # As if HEAD were answered by the original.
        mirror.head_length = lambda file, _size: str((small_dataset / file).stat().st_size)
    text = refusal(lambda: digest(opened(served, mirror.endpoint, tmp_path)), lg.LeRobotGrainError)
    assert text.startswith(f"{served.repository_id}@{served.commit[:12]}")
    assert path in text
    assert f" sent {SENT}" in text
    assert path not in kept_contents(tmp_path)
    assert_only_the_files_of_the_commit_are_kept(tmp_path, small_dataset)
    for entry in tmp_path.rglob("*.kept"):
        assert POINTER not in entry.read_bytes()
    assert digest(opened(served, hub.endpoint, tmp_path)) == small_digest


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (206, {"Content-Range": "bytes 0-130/131"}, True),
        (206, {"Content-Range": "bytes 0-4999/5000"}, False),
        (206, {"Content-Range": "bytes 0-4999/5001"}, False),
        (206, {"Content-Range": "bytes 0-9/*"}, False),
        (416, {"Content-Range": "bytes */131"}, True),
        (416, {}, False),
        (200, {"Content-Length": "131"}, True),
        (200, {"Content-Length": "1025"}, False),
        (200, {}, True),
        (302, {}, False),
    ],
)
def test_answers_that_may_be_pointers(status, headers, expected):
    source = RangeSource("http://localhost/x", {}, file_bytes=5000)
    with contextlib.suppress(RetryableError):
        accept_range(Response(status, headers), source=source, asked=ByteRange(0, 5000))
    assert source.may_be_pointer == expected


# --- without network -----------------------------------------------------------------------------


def test_branches_and_tags_of_versions_lie_in_one_folder_of_the_cache(tmp_path):
    repository = name_repository(
        "org/name", endpoint=None, cache_dir=tmp_path, token=False, options=OPTIONS
    )
    root = tmp_path / "datasets--org--name"
    for number, name in enumerate(("main", "v2.1", "feature/grip")):
        (root / "snapshots" / (str(number) * 40)).mkdir(parents=True)
        (root / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / name).write_text(str(number) * 40)
    found = {
        revision: cached_commit(repository, revision)
        for revision in (None, "main", "v2.1", "feature/grip", "v3.0")
    }
    assert found == {
        None: "1" * 40,
        "main": "0" * 40,
        "v2.1": "1" * 40,
        "feature/grip": "2" * 40,
        "v3.0": None,
    }
