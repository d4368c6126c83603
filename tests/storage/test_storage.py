"""Storages, over a directory and over a Hub on loopback: what they read, what they refuse, and what
they do when the network fails.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import httpx2
import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    MissingFileError,
    StorageError,
)
from lerobot_grain._storage.base import check_path
from lerobot_grain._storage.directory import DirectoryStorage
from lerobot_grain._storage.http import calls, responses
from lerobot_grain._storage.http import client as http_client
from lerobot_grain._storage.http.cancellation import CancelScope
from lerobot_grain._storage.http.connections import connections
from lerobot_grain._storage.http.rate_limits import RateLimiter
from lerobot_grain._storage.hub import client_cache
from lerobot_grain._storage.hub.api import _folders_in
from lerobot_grain._storage.hub.commit_storage import HubStorage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain._storage.options import StorageOptions, StorageStatistics
from lerobot_grain.testing._hub.loopback import Fault, LoopbackHub
from tests.support.installed import tries_again

REPOSITORY = "robots/arm"
INFO = b'{"codebase_version": "v3.0"}'
TASKS = b"PAR1" + bytes(500) + b"PAR1"
VIDEO = bytes(i * i % 251 for i in range(300_000))
VIDEO_PATH = "videos/top/file-000.mp4"
ODD_PATH = "data/ü%20 &+;=@.bin"
SECRET = "hf_secretsecretsecret"
# Small numbers, so that what is given up is given up soon; and no cache, since the same bytes are
# asked for again and again.
OPTIONS = StorageOptions(
    disk_cache_bytes=0,
    merge_gap_bytes=100,
    merge_max_bytes=50_000,
    read_timeout_seconds=0.3,
    deadline_seconds=5.0,
    max_attempts=4,
    pause_seconds=0.01,
)
ONE_GET = {"origin": "cdn", "method": "GET"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("arm")
    write_files(
        root,
        {
            "meta/info.json": INFO,
            "meta/tasks.parquet": TASKS,
            "meta/episodes/chunk-000/file-000.parquet": TASKS * 2,
        },
    )
    write_files(
        root,
        {
            VIDEO_PATH: VIDEO,
            "videos/top/file-001.mp4": VIDEO[::-1],
            ODD_PATH: VIDEO[:99],
            "small.json": INFO * 9,
        },
    )
    return root


@pytest.fixture(scope="module")
def server(directory):
    with LoopbackHub(page_entries=3) as hub:
        hub.add_repository(REPOSITORY, directory, branches=["main", "wip"], tags=["v2.1", "v3.0"])
        hub.add_repository("robots/private", directory, private=True, token=SECRET)
        hub.add_repository("robots/gated", directory, gated=True, token=SECRET)
        hub.add_token("hf_stranger")
        yield hub


@pytest.fixture
def hub(server):
    yield server
    server.clear_faults()
    server.set_latency(0)
    server.set_url_lifetime(3600)
    server.clear_requests()


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No token and no cache of the user, no telemetry."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def open_hub(hub):
    with contextlib.ExitStack() as stack:

        def open_it(
            repository=REPOSITORY, *, revision=None, token=None, cache_dir=None, options=OPTIONS
        ):
            storage = open_storage(
                repository,
                revision=revision,
                endpoint=hub.endpoint,
                token=token,
                cache_dir=cache_dir,
                options=options,
            )
            stack.callback(storage.close)
            return storage

        yield open_it


@pytest.fixture(params=["directory", "hub"])
def storage(request, directory):
    if request.param == "hub":
        return request.getfixturevalue("open_hub")()
    return open_directory(directory)


def open_directory(directory, **changes):
    arguments = {
        "revision": None,
        "endpoint": None,
        "token": None,
        "cache_dir": None,
        "options": OPTIONS,
    }
    return open_storage(directory, **(arguments | changes))


def write_files(root, contents):
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def video_requests(hub):
    return [record for record in hub.requests() if record.file == VIDEO_PATH]


def read(storage, start, stop, path=VIDEO_PATH):
    return storage.read_ranges(path, [ByteRange(start, stop)])[0]


def in_threads(count, work):
    start = threading.Barrier(count)

    def run(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def assert_no_secrets(error, *more):
    """Whatever follows from an error: its text, its pickle, and what is chained to it and would be
    printed.
    """
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    for text in (str(error), repr(error), pickle.dumps(error).decode("latin-1"), *more):
        for secret in ("Signature=", "Policy=", SECRET, "Bearer"):
            assert secret not in text


class TestBothKinds:
    def test_lists_metadata_only_with_sizes(self, storage):
        expected = {
            "meta/episodes/chunk-000/file-000.parquet": 2 * len(TASKS),
            "meta/info.json": len(INFO),
            "meta/tasks.parquet": len(TASKS),
        }
        assert storage.list_metadata() == expected
        assert list(storage.list_metadata()) == sorted(expected)

    def test_reads_metadata_files(self, storage):
        assert storage.read_metadata("meta/info.json", max_bytes=len(INFO)) == INFO
        assert storage.read_metadata("meta/tasks.parquet", max_bytes=10_000) == TASKS

    def test_refuses_metadata_longer_than_allowed(self, storage):
        with pytest.raises(DatasetFormatError) as caught:
            storage.read_metadata("meta/info.json", max_bytes=len(INFO) - 1)
        assert (
            str(caught.value)
            == f"{storage.description}: meta/info.json has 28 bytes, expected at most 27"
        )

    def test_missing_metadata(self, storage):
        with pytest.raises(
            MissingFileError,
            match=re.escape(f"{storage.description}: there is no file meta/stats.json"),
        ):
            storage.read_metadata("meta/stats.json", max_bytes=100)

    def test_ranges_come_in_the_order_asked(self, storage):
        ranges = [
            ByteRange(200_000, 200_010),
            ByteRange(5, 25),
            ByteRange(9, 9),
            ByteRange(0, 10),
            ByteRange(299_990, 300_000),
            ByteRange(5, 25),
        ]
        assert storage.read_ranges(VIDEO_PATH, ranges) == [VIDEO[r.start : r.stop] for r in ranges]

    def test_no_ranges(self, storage):
        assert storage.read_ranges(VIDEO_PATH, []) == []
        assert storage.read_ranges(VIDEO_PATH, [ByteRange(7, 7)]) == [b""]

    def test_whole_file_longer_than_a_merge(self, storage):
        assert read(storage, 0, len(VIDEO)) == VIDEO

    def test_small_files_that_no_cdn_serves(self, storage):
        assert read(storage, 28, 56, path="small.json") == INFO
        assert storage.size_bytes("small.json") == 9 * len(INFO)

    def test_names_that_need_quoting(self, storage):
        assert read(storage, 3, 5, path=ODD_PATH) == VIDEO[3:5]

    @pytest.mark.parametrize("length", [0, 1, 8, 300_000, 300_001])
    def test_tail(self, storage, length):
        assert storage.read_tail(VIDEO_PATH, length) == (VIDEO[max(0, 300_000 - length) :], 300_000)

    def test_size(self, storage):
        assert storage.size_bytes(VIDEO_PATH) == 300_000

    def test_range_past_the_end(self, storage):
        with pytest.raises(StorageError) as caught:
            storage.read_ranges(VIDEO_PATH, [ByteRange(0, 1), ByteRange(299_999, 300_001)])
        assert (
            str(caught.value) == f"{storage.description}: {VIDEO_PATH} bytes [299999, 300001): "
            "the file has only 300000 bytes"
        )

    @pytest.mark.parametrize("wanted", [ByteRange(-1, 5), ByteRange(5, 4)])
    def test_backward_ranges(self, storage, wanted):
        with pytest.raises(
            InvalidRequestError,
            match=re.escape(f"{VIDEO_PATH} bytes {wanted}: expected 0 <= start <= stop"),
        ):
            storage.read_ranges(VIDEO_PATH, [wanted])
        with pytest.raises(InvalidRequestError, match="the last -1 bytes"):
            storage.read_tail(VIDEO_PATH, -1)

    def test_missing_file(self, storage):
        for call in (
            storage.size_bytes,
            lambda path: read(storage, 0, 1, path=path),
            lambda path: storage.read_tail(path, 8),
        ):
            with pytest.raises(
                MissingFileError, match=rf"^{re.escape(storage.description)}: .*no (such )?file"
            ) as caught:
                call("videos/top/file-999.mp4")
            assert "videos/top/file-999.mp4" in str(caught.value)

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "..",
            "a\\..\\b",
            "a\0b",
            "a?b",
            "a#b",
            "hf://a/b",
            "a\nb",
            "a\x7f",
            "\ud800",
        ],
    )
    def test_paths_that_lead_elsewhere(self, storage, path):
        for call in (
            lambda: storage.size_bytes(path),
            lambda: read(storage, 0, 1, path=path),
            lambda: storage.read_tail(path, 8),
            lambda: storage.read_metadata(path, max_bytes=100),
        ):
            with pytest.raises(
                DatasetFormatError, match="is not the path of a file of a dataset"
            ) as caught:
                call()
            assert str(caught.value).startswith(f"{storage.description}: ")

    def test_pickles(self, storage):
        read(storage, 0, 10)
        copied = pickle.loads(pickle.dumps(storage))
        assert copied == storage
        assert hash(copied) == hash(storage)
        assert copied.statistics == StorageStatistics()
        assert copied.list_metadata() == storage.list_metadata()
        assert read(copied, 5, 10) == VIDEO[5:10]
        copied.close()

    def test_counts(self, storage):
        before = storage.statistics
        storage.read_ranges(
            VIDEO_PATH, [ByteRange(0, 10), ByteRange(20, 30), ByteRange(1000, 1010)]
        )
        after = storage.statistics
        assert after.requests - before.requests == (
            2 if isinstance(storage, DirectoryStorage) else 3
        )
        assert after.bytes_received - before.bytes_received == 40
        assert after.request_seconds > before.request_seconds
        assert after.retries == 0

    def test_reads_again_after_close(self, storage):
        storage.close()
        storage.close()
        assert read(storage, 0, 10) == VIDEO[:10]

    def test_many_threads(self, storage):
        def work(number):
            return all(
                read(storage, i * 997, i * 997 + 500) == VIDEO[i * 997 : i * 997 + 500]
                for i in range(number, 300, 8)
            )

        assert all(in_threads(8, work))


def test_forbidden_names_in_meta_are_not_listed(tmp_path):
    write_files(tmp_path, {"meta/info.json": INFO, "meta/info.json#1": b"x", "meta/a\\b": b"x"})
    assert list(open_directory(tmp_path).list_metadata()) == ["meta/info.json"]


class TestOpening:
    @pytest.mark.parametrize(
        "spell", [lambda d: d, str, lambda d: os.path.relpath(d), lambda d: f"{d}/."]
    )
    def test_directories(self, directory, spell):
        storage = open_directory(spell(directory))
        assert storage == open_directory(directory)
        assert storage.description == str(directory)
        assert storage.commit is None

    def test_directory_relative_and_of_the_user(self, directory, monkeypatch):
        monkeypatch.chdir(directory.parent)
        monkeypatch.setenv("HOME", str(directory.parent))
        for name in (directory.name, f"./{directory.name}", f"~/{directory.name}"):
            assert open_directory(name).description == str(directory)

    def test_an_existing_directory_comes_before_the_hub(self, directory, tmp_path, monkeypatch):
        (tmp_path / "robots").mkdir()
        (tmp_path / "robots/arm").symlink_to(directory)
        monkeypatch.chdir(tmp_path)
        assert isinstance(open_directory(REPOSITORY), DirectoryStorage)

    def test_links_in_a_directory_are_followed(self, directory, tmp_path):
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/episodes").symlink_to(directory / "meta/episodes")
        (tmp_path / "meta/info.json").symlink_to(directory / "meta/info.json")
        storage = open_directory(tmp_path)
        assert list(storage.list_metadata()) == [
            "meta/episodes/chunk-000/file-000.parquet",
            "meta/info.json",
        ]
        assert storage.read_metadata("meta/info.json", max_bytes=100) == INFO

    def test_directory_without_meta(self, tmp_path):
        assert open_directory(tmp_path).list_metadata() == {}

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (
                "/no/such/directory",
                r"^/no/such/directory is not a directory; a dataset on the Hub is named org/name",
            ),
            ("./nothing", r"nothing is not a directory"),
            (
                "https://huggingface.co/datasets/org/name",
                r"neither an existing directory nor a dataset on the Hub, named org/name",
            ),
            ("name", r"^'name' is neither"),
            ("datasets/a/b", r"^'datasets/a/b' is neither"),
            ("org/name/../other", r"^org/name/../other: '../other' is no folder of a repository$"),
            ("org/..", r"^'org/\.\.' cannot be the name of a repository"),
            ("org/na me", r"cannot be the name of a repository"),
            ("hf://datasets/org", r"is neither"),
        ],
    )
    def test_names_that_name_nothing(self, name, text):
        with pytest.raises(InvalidRequestError, match=text):
            open_directory(name)

    def test_a_directory_has_no_revision(self, directory):
        with pytest.raises(
            InvalidRequestError, match=r"is a directory, which has no revision 'main'; leave it out"
        ):
            open_directory(directory, revision="main")

    @pytest.mark.parametrize(
        "endpoint",
        [
            "huggingface.co",
            "ftp://x",
            "https://",
            "https://user:pass@host",
            "http://[::1",
            "http://h:port",
            "http://h?x",
        ],
    )
    def test_endpoints_that_are_none(self, endpoint):
        with pytest.raises(InvalidRequestError, match="expected the address of a Hub") as caught:
            open_directory("org/name", endpoint=endpoint)
        assert "pass" not in str(caught.value)

    @pytest.mark.parametrize("token", ["", f"{SECRET}\n", f" {SECRET}", f"{SECRET}é"])
    def test_tokens_that_are_none(self, token):
        with pytest.raises(
            InvalidRequestError, match="token: expected printable characters"
        ) as caught:
            open_directory("org/name", endpoint="http://localhost:1", token=token)
        assert_no_secrets(caught.value)

    def test_required_token_that_is_missing(self, hub):
        with pytest.raises(
            InvalidRequestError,
            match=r"^robots/arm: token=True, but there is none: set HF_TOKEN or run "
            r'"hf auth login"$',
        ):
            open_directory(REPOSITORY, endpoint=hub.endpoint, token=True)

    def test_pins_the_newest_tag_of_a_version_that_is_read(
        self, hub, directory, tmp_path, open_hub
    ):
        versions = {}
        write_files(tmp_path, {"meta/info.json": INFO})
        versions["v3.2"] = hub.add_repository(
            "robots/tags", tmp_path, tags=["v3.2", "v2.9", "v30.0", "v3.x"]
        ).commit
        versions["v3.10"] = hub.add_commit(
            "robots/tags", directory, branches=["wip"], tags=["v3.10", "v4.0"]
        ).commit
        write_files(tmp_path / "new", {"meta/info.json": INFO * 2})
        versions["main"] = hub.add_commit("robots/tags", tmp_path / "new", tags=["v2.1"]).commit
        assert len(set(versions.values())) == 3
        storage = open_hub("robots/tags")
        assert storage.commit == versions["v3.10"]
        assert storage.description == f"robots/tags@{storage.commit[:12]}"
        for revision, commit in versions.items():
            assert open_hub("robots/tags", revision=revision).commit == commit
            assert open_hub(f"hf://datasets/robots/tags@{revision}").commit == commit
            assert open_hub("robots/tags", revision=commit).commit == commit

    def test_the_branch_main_when_there_is_no_such_tag(self, hub, directory, open_hub):
        commit = hub.add_repository(
            "robots/old", directory, branches=["main"], tags=["v2.2", "v1.6"]
        ).commit
        assert open_hub("robots/old").commit == commit

    def test_a_revision_given_twice(self):
        with pytest.raises(
            InvalidRequestError, match="names another revision than revision='v2'; give it once"
        ):
            open_directory("hf://datasets/org/name@v1", revision="v2")

    @pytest.mark.parametrize(("revision", "count"), [(None, 2), ("main", 1), ("commit", 0)])
    def test_number_of_requests(self, hub, open_hub, revision, count):
        commit = open_hub().commit
        hub.clear_requests()
        open_hub(revision=commit if revision == "commit" else revision)
        # the listing has two pages, of three entries each
        assert [r.kind for r in hub.requests()] == ["api"] * (count + 2)

    def test_no_meta_on_the_hub(self, hub, tmp_path, open_hub):
        write_files(tmp_path, {"README.md": b"x"})
        hub.add_repository("robots/empty", tmp_path)
        assert open_hub("robots/empty").list_metadata() == {}


class TestRefusals:
    @pytest.mark.parametrize("repository", ["robots/nothing", "robots/private"])
    def test_missing_or_private_looks_the_same(self, hub, open_hub, repository):
        for token, hint in (
            (None, 'found none: set HF_TOKEN or run "hf auth login"'),
            ("hf_stranger", "the token that was sent gives no access"),
        ):
            for revision in (None, "main", "0" * 40):
                with pytest.raises(StorageError) as caught:
                    open_hub(repository, token=token, revision=revision)
                expected = (
                    f"there is no dataset {repository} on {hub.endpoint}, or it is private, "
                    f"which looks the same without access ({hint})"
                )
                assert str(caught.value).endswith(expected)
                assert_no_secrets(caught.value)

    def test_private_with_its_token(self, open_hub, monkeypatch):
        assert read(open_hub("robots/private", token=SECRET), 0, 10) == VIDEO[:10]
        monkeypatch.setenv("HF_TOKEN", SECRET)
        assert read(open_hub("robots/private"), 0, 10) == VIDEO[:10]
        assert read(open_hub("robots/private", token=True), 0, 10, path="small.json") == INFO[:10]
        with pytest.raises(StorageError, match="or it is private"):
            open_hub("robots/private", token=False)

    @pytest.mark.parametrize("token", [None, "hf_stranger"])
    def test_gated(self, hub, open_hub, token):
        storage = open_hub("robots/gated", token=token)
        hint = (
            "the token that was sent gives no access"
            if token
            else 'found none: set HF_TOKEN or run "hf auth login"'
        )
        expected = (
            f"robots/gated is gated: ask for access on its page "
            f"{hub.endpoint}/datasets/robots/gated and pass a token ({hint})"
        )
        for call in (
            lambda: read(storage, 0, 1),
            lambda: storage.read_metadata("meta/info.json", max_bytes=100),
            lambda: storage.read_metadata("meta/tasks.parquet", max_bytes=1000),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            assert str(caught.value).endswith(expected)
            assert_no_secrets(caught.value)

    def test_gated_with_its_token(self, open_hub):
        storage = open_hub("robots/gated", token=SECRET)
        assert storage.read_metadata("meta/tasks.parquet", max_bytes=1000) == TASKS
        assert read(storage, 0, 10) == VIDEO[:10]

    def test_token_that_nobody_knows(self, hub, open_hub):
        with pytest.raises(StorageError) as caught:
            open_hub(token="hf_unknown")
        assert str(caught.value).startswith(
            f"robots/arm: {hub.endpoint} does not accept the token: make a new one"
        )

    def test_wrong_revision(self, open_hub):
        with pytest.raises(StorageError) as caught:
            open_hub(revision="v9")
        assert (
            str(caught.value)
            == "robots/arm@v9: the repository has no revision 'v9'; its tags and branches: "
            "v2.1, v3.0, main, wip"
        )
        with pytest.raises(
            StorageError,
            match="robots/arm@000000000000: meta/: the repository has no such revision",
        ):
            open_hub(revision="0" * 40)

    def test_disabled(self, hub, open_hub):
        hub.add_fault(
            Fault(
                origin="hub",
                status=403,
                headers={"X-Error-Message": "Access to this resource is disabled."},
                times=None,
            )
        )
        with pytest.raises(
            StorageError,
            match="access to robots/arm has been disabled by the Hub or its owner, see http",
        ):
            open_hub()

    def test_another_status(self, hub, open_hub):
        hub.add_fault(Fault(origin="hub", status=418))
        with pytest.raises(
            StorageError,
            match=r"^robots/arm: list of tags and branches: http://localhost:\d+ answered with "
            r"HTTP 418; if ",
        ):
            open_hub()

    @pytest.mark.parametrize(
        "body", [b"<html>", b"[1, 2]", b'{"tags": [], "branches": 3}', b"[" * 100_000]
    )
    def test_answers_of_the_api_that_are_not_understood(self, hub, open_hub, body):
        for path in ("refs$", "revision/", "tree/"):
            hub.clear_faults()
            hub.add_fault(Fault(origin="hub", path_regex=path, status=200, body=body, times=None))
            with pytest.raises(StorageError, match=r"not JSON|not understood|no commit hash"):
                open_hub()


class TestRequests:
    def test_one_question_for_eight_threads_then_one_request_for_each_merged_range(
        self, hub, open_hub
    ):
        storage = open_hub()
        hub.set_latency(0.05)
        hub.clear_requests()
        ranges = [ByteRange(0, 100), ByteRange(150, 200), ByteRange(1000, 1100)]
        assert (
            in_threads(8, lambda _: storage.read_ranges(VIDEO_PATH, ranges))
            == [[VIDEO[r.start : r.stop] for r in ranges]] * 8
        )
        records = video_requests(hub)
        assert [r.method for r in records].count("HEAD") == 1
        assert (
            sorted(r.range for r in records if r.origin == "cdn")
            == ["bytes=0-199"] * 8 + ["bytes=1000-1099"] * 8
        )

    def test_a_question_that_fails_fails_for_all_who_wait(self, hub, open_hub):
        storage = open_hub()
        hub.set_latency(0.05)
        hub.clear_requests()

        def work(_):
            with pytest.raises(
                StorageError,
                match=r"videos/none\.mp4: the repository has no such file at this revision",
            ) as caught:
                storage.size_bytes("videos/none.mp4")
            return caught.value

        assert len(set(map(id, in_threads(4, work)))) == 4
        assert len(hub.requests()) == 1

    def test_the_token_goes_to_the_hub_only(self, hub, open_hub, caplog):
        caplog.set_level(logging.INFO)
        storage = open_hub("robots/private", token=SECRET)
        hub.clear_requests()
        read(storage, 0, 10)
        read(storage, 0, 10, path="small.json")
        storage.read_metadata("meta/tasks.parquet", max_bytes=1000)
        assert {(r.origin, r.had_authorization) for r in hub.requests()} == {
            ("hub", True),
            ("cdn", False),
        }
        assert "xet-bridge-us" in caplog.text
        assert "Signature" not in caplog.text
        assert SECRET not in caplog.text + repr(storage)

    def test_a_redirect_to_another_origin_loses_the_token(self, hub, open_hub):
        storage = open_hub("robots/private", token=SECRET)
        storage.size_bytes("small.json")
        hub.clear_requests()
        hub.add_fault(
            Fault(
                origin="hub",
                method="GET",
                status=302,
                headers={"Location": f"{hub.cdn_origin}/elsewhere"},
            )
        )
        assert read(storage, 0, 10, path="small.json") == INFO[:10]
        assert [(r.method, r.origin, r.had_authorization) for r in hub.requests()][:2] == [
            ("GET", "hub", True),
            ("GET", "cdn", False),
        ]

    def test_no_compression_is_asked_for(self, linked, monkeypatch):
        sent = []
        send = httpx2.Client.send

        def noted(client, request, **options):
            sent.append(request)
            return send(client, request, **options)

        monkeypatch.setattr(httpx2.Client, "send", noted)
        read(linked, 0, 10)
        linked._session().size_bytes(linked.commit, "small.json")
        assert {request.headers["Accept-Encoding"] for request in sent} == {"identity"}

    def test_connections_are_used_again_and_not_more_than_allowed(self, hub, open_hub):
        storage = open_hub(options=StorageOptions(num_connections=3))
        storage.size_bytes(VIDEO_PATH)
        hub.set_latency(0.02)
        hub.clear_requests()
        in_threads(12, lambda i: read(storage, i * 1000, i * 1000 + 10))
        records = hub.requests()
        assert len(records) == 12
        assert len({r.connection_id for r in records}) <= 3
        assert records[-1].time_seconds - records[0].time_seconds > 2.5 * 0.02

    def test_waiting_for_a_connection_is_no_failure(self, hub, open_hub):
        storage = open_hub(
            options=StorageOptions(num_connections=1, deadline_seconds=0.3, max_attempts=1)
        )
        storage.size_bytes(VIDEO_PATH)
        hub.set_latency(0.05)
        assert in_threads(8, lambda i: read(storage, i, i + 1)) == [
            VIDEO[i : i + 1] for i in range(8)
        ]

    def test_metadata_comes_from_the_cache_the_second_time(self, hub, open_hub, tmp_path):
        storage = open_hub(cache_dir=tmp_path / "other")
        assert storage.read_metadata("meta/info.json", max_bytes=100) == INFO
        hub.clear_requests()
        assert (
            pickle.loads(pickle.dumps(storage)).read_metadata("meta/info.json", max_bytes=100)
            == INFO
        )
        assert hub.requests() == []
        cached = next((tmp_path / "other").rglob("info.json"))
        cached.write_bytes(INFO[:-1])
        with pytest.raises(
            StorageError,
            match=r"meta/info.json: its copy .*/blobs/\w+ has 27 bytes, expected 28; delete that",
        ):
            storage.read_metadata("meta/info.json", max_bytes=100)

    def test_a_cache_that_cannot_be_written(self, open_hub, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(
            StorageError,
            match=r"^robots/arm@\w{12}: meta/info.json: cannot be kept in .*/file: "
            r"Not a directory$",
        ):
            open_hub(cache_dir=tmp_path / "file").read_metadata("meta/info.json", max_bytes=100)

    def test_moved_branch_has_no_effect(self, hub, tmp_path, open_hub):
        for name, contents in (("old", b"old" * 100), ("new", b"new" * 100)):
            write_files(tmp_path / name, {"meta/info.json": contents, "a.mp4": contents})
        hub.add_repository("robots/moving", tmp_path / "old")
        storage = open_hub("robots/moving", revision="main")
        hub.add_commit("robots/moving", tmp_path / "new")
        assert read(storage, 0, 6, path="a.mp4") == b"oldold"
        assert storage.read_metadata("meta/info.json", max_bytes=1000) == b"old" * 100
        assert read(open_hub("robots/moving", revision="main"), 0, 6, path="a.mp4") == b"newnew"

    def test_a_link_is_not_used_after_its_end(self, hub, open_hub):
        storage = open_hub()
        hub.set_url_lifetime(20)  # less than the margin: good for the next request only
        assert read(storage, 0, 10) + read(storage, 10, 20) == VIDEO[:20]
        hub.set_url_lifetime(3600)
        assert read(storage, 0, 10) + read(storage, 10, 20) == VIDEO[:20]
        # One question for the size, one for each of the first two reads, and one for the third,
        # which brought a link that lasts.
        assert [r.method for r in video_requests(hub)] == ["HEAD"] + ["HEAD", "GET"] * 3 + ["GET"]
        assert storage.statistics.retries == 0

    def test_an_unreachable_hub(self):
        with pytest.raises(
            StorageError,
            match=r"^robots/arm: list of tags and branches: gave up after \d+ attempt\(s\), the "
            r"last one failed with: ConnectError at",
        ):
            # Attempts without a connection count for nothing but the deadline.
            open_directory(
                REPOSITORY,
                endpoint="http://localhost:9",
                options=StorageOptions(max_attempts=1, deadline_seconds=1.5),
            )


@pytest.fixture
def linked(hub, open_hub):
    """A storage that already has a link to the video."""
    storage = open_hub()
    storage.size_bytes(VIDEO_PATH)
    hub.clear_requests()
    return storage


class TestTrouble:
    @pytest.mark.parametrize(
        ("fault", "first_byte"),
        [
            (Fault(**ONE_GET, status=503, times=2), 1000),
            (Fault(**ONE_GET, status=500), 1000),
            (Fault(**ONE_GET, status=408), 1000),
            (Fault(**ONE_GET, status=429), 1000),
            (Fault(**ONE_GET, close_before=True), 1000),
            (Fault(**ONE_GET, truncate_at=700), 1700),
            (Fault(**ONE_GET, reset_at=700), 1700),
            (Fault(**ONE_GET, stall_at=700), 1700),
            (Fault(**ONE_GET, stall_at=0), 1000),
        ],
        ids=[
            "503 twice",
            "500",
            "408",
            "429",
            "closed",
            "truncated",
            "reset",
            "stalled",
            "stalled at once",
        ],
    )
    def test_is_tried_again_and_goes_on_where_it_broke(self, hub, linked, fault, first_byte):
        hub.add_fault(fault)
        assert read(linked, 1000, 3000) == VIDEO[1000:3000]
        assert hub.requests()[-1].range == f"bytes={first_byte}-2999"
        assert len(hub.requests()) == 1 + fault.times
        assert linked.statistics.retries == fault.times

    def test_long_ranges_are_split(self, hub, linked, monkeypatch):
        monkeypatch.setattr(calls, "_MAX_REQUEST_BYTES", 1000)
        hub.add_fault(Fault(**ONE_GET, skip=1, reset_at=300))
        assert read(linked, 500, 2700) == VIDEO[500:2700]
        assert [r.range for r in hub.requests()] == [
            "bytes=500-1499",
            "bytes=1500-2499",
            "bytes=1800-2499",
            "bytes=2500-2699",
        ]

    def test_a_drip_is_replaced_by_a_new_connection(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, bandwidth_bytes_per_second=1000))
        before = linked.statistics.bytes_received
        assert read(linked, 0, 50_000) == VIDEO[:50_000]
        assert linked.statistics.retries >= 1
        assert linked.statistics.bytes_received - before == 50_000

    def test_a_few_bytes_that_drip_are_told_by_what_others_bring(self, hub, open_hub):
        """4,000 bytes at 1,000 a second would come in time, but far later than from another
        connection.
        """
        storage = open_hub(options=StorageOptions(pause_seconds=0.01, disk_cache_bytes=0))
        for start in range(0, 50_000, 5000):
            read(storage, start, start + 5000)
        hub.add_fault(Fault(**ONE_GET, bandwidth_bytes_per_second=1000))
        assert read(storage, 0, 4000) == VIDEO[:4000]
        assert storage.statistics.retries == 1

    def test_on_a_slow_link_nothing_drips(self, hub, linked):
        transport = linked._session()._client
        transport._pace.bytes_per_second = 1e6
        hub.set_bandwidth(100_000)
        try:
            for start in range(20):
                read(linked, start, start + 5000)
        finally:
            hub.set_bandwidth(None)
        assert 30_000 < transport._pace.bytes_per_second < 400_000
        assert linked.statistics.retries == 0

    def test_patience_follows_what_answers_take(self, hub, linked):
        before = linked._session()._client._pace.seconds
        for start in range(40):
            read(linked, start, start + 1)
        usual = linked._session()._client._pace.seconds
        assert 0 < usual < before
        hub.set_latency(0.1)
        for start in range(20):
            read(linked, start, start + 1)
        assert linked._session()._client._pace.seconds > max(usual, 0.05)

    def test_a_truncated_answer_without_length_is_seen(self, hub, linked):
        hub.add_fault(Fault(origin="cdn", headers={"Content-Length": "0"}, times=None))
        with pytest.raises(
            StorageError,
            match=r"answered with 0 bytes, encoding 'identity'; expected 2000 bytes as they are",
        ):
            read(linked, 1000, 3000)

    def test_an_answer_without_length_that_ends_early_goes_on(self, linked, monkeypatch):
        """As a chunked answer may, whose end a truncated one also has."""
        asked = []

        def send(_client, _connection, call, body):
            asked.append(call.headers["Range"])
            start, stop = int(call.headers["Range"][6:].partition("-")[0]), 3000
            answer = responses.Response(206, {"Content-Range": f"bytes {start}-{stop - 1}/300000"})
            assert call.accept(answer) == stop - start
            body.append(VIDEO[start : min(start + 800, stop)])
            return answer

        monkeypatch.setattr(http_client.HttpClient, "_send", send)
        assert read(linked, 1000, 3000) == VIDEO[1000:3000]
        assert asked == ["bytes=1000-2999", "bytes=1800-2999", "bytes=2600-2999"]

    def test_gives_up_after_max_attempts(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, status=503, times=None))
        with pytest.raises(StorageError) as caught:
            read(linked, 1000, 3000)
        assert str(caught.value) == (
            f"{linked.description}: {VIDEO_PATH} bytes [1000, 3000): "
            "gave up after 4 attempt(s), the last one failed with: HTTP 503 from 127.0.0.1"
        )
        assert len(hub.requests()) == 4
        assert_no_secrets(caught.value)

    def test_gives_up_at_the_deadline(self, hub, open_hub):
        storage = open_hub(options=StorageOptions(deadline_seconds=0.3))
        storage.size_bytes(VIDEO_PATH)
        hub.add_fault(Fault(**ONE_GET, bandwidth_bytes_per_second=1000, times=None))
        started = time.monotonic()
        with pytest.raises(
            StorageError,
            match=r"gave up after 1 attempt\(s\), .*nothing came to an end within 0.3 s",
        ):
            read(storage, 0, 100_000)
        assert time.monotonic() - started < 30  # of 100 that all bytes would take

    def test_a_long_range_has_more_time(self, hub, open_hub, monkeypatch):
        monkeypatch.setattr(calls, "_BYTES_PER_DEADLINE", 1000)
        storage = open_hub(options=StorageOptions(deadline_seconds=0.2, max_attempts=1))
        storage.size_bytes(VIDEO_PATH)
        hub.add_fault(Fault(**ONE_GET, bandwidth_bytes_per_second=100_000))
        assert read(storage, 0, 40_000) == VIDEO[:40_000]  # 0.4 seconds

    @pytest.mark.parametrize(
        ("fault", "text"),
        [
            (
                Fault(**ONE_GET, ignore_range=True),
                r"ignores byte ranges \(HTTP 200 with the whole file, expected 206\)",
            ),
            (
                Fault(**ONE_GET, short_206=5),
                r"Content-Range 'bytes 1000-2994/300000', expected 'bytes 1000-2999/300000'$",
            ),
            (
                Fault(**ONE_GET, wrong_content_range=True),
                r"Content-Range 'bytes 1001-3000/300000', expected",
            ),
            (
                Fault(**ONE_GET, headers={"Content-Range": "bytes 1000-2999/300001"}),
                r"expected 'bytes 1000-2999/300000'; the file was changed$",
            ),
            (
                Fault(**ONE_GET, headers={"Content-Range": "bytes 1000-2999/*"}),
                r"Content-Range 'bytes 1000-2999/\*', expected",
            ),
            (
                Fault(**ONE_GET, headers={"Content-Encoding": "gzip"}),
                r"answered with 2000 bytes, encoding 'gzip'",
            ),
            (Fault(**ONE_GET, status=206, body=b"x"), r"Content-Range 'none', expected"),
            (Fault(**ONE_GET, status=418), r"HTTP 418 from 127.0.0.1 also for 2 fresh links"),
            (Fault(**ONE_GET, status=404), r"HTTP 404 from 127.0.0.1 also for 2 fresh links"),
            (
                Fault(**ONE_GET, status=204),
                r"http://127.0.0.1:\d+/xet-bridge-us/\S+ answered with HTTP 204, expected 206$",
            ),
            (Fault(**ONE_GET, status=416), r"answered with HTTP 416, expected 206$"),
            (
                Fault(**ONE_GET, size_change=7),
                r"Content-Range 'bytes 1000-2999/300007', expected .*; the file was changed$",
            ),
            (
                Fault(**ONE_GET, status=302, headers={"Location": "/again"}),
                r"more than 5 redirects, the last one to http://127\S+/again$",
            ),
        ],
    )
    def test_wrong_answers_are_asked_for_again_before_they_are_errors(
        self, hub, linked, fault, text
    ):
        hub.add_fault(fault)
        assert read(linked, 1000, 3000) == VIDEO[1000:3000]
        hub.add_fault(dataclasses.replace(fault, times=None))
        with pytest.raises(StorageError, match=text) as caught:
            read(linked, 1000, 3000)
        assert str(caught.value).startswith(
            f"{linked.description}: {VIDEO_PATH} bytes [1000, 3000): "
        )
        assert len(hub.requests()) <= 6 * 6
        assert_no_secrets(caught.value)

    @pytest.mark.parametrize(
        ("location", "text"),
        [({"Location": "file:///etc/passwd"}, "redirects to file:"), ({}, "redirects to nowhere")],
    )
    def test_redirects_away_from_http_are_errors_at_once(self, hub, linked, location, text):
        hub.add_fault(Fault(**ONE_GET, status=302, headers=location))
        with pytest.raises(
            StorageError, match=rf"{text}, expected an http or https address$"
        ) as caught:
            read(linked, 1000, 3000)
        assert len(hub.requests()) == 1
        assert_no_secrets(caught.value)

    def test_a_whole_file_may_come_as_such(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, ignore_range=True))
        assert (
            linked._session().read_range(linked.commit, VIDEO_PATH, ByteRange(0, len(VIDEO)))
            == VIDEO
        )
        assert len(hub.requests()) == 1

    def test_a_link_that_failed_is_asked_for_again(self, hub, open_hub):
        """Otherwise a wrong size, told once, would be believed for an hour."""
        storage = open_hub()
        hub.add_fault(Fault(method="HEAD", size_change=-1))
        assert storage.size_bytes(VIDEO_PATH) == 299_999
        with pytest.raises(
            StorageError,
            match=r"Content-Range 'bytes 0-9/300000', expected 'bytes 0-9/299999'; the file was "
            r"changed$",
        ):
            read(storage, 0, 10)
        assert (read(storage, 0, 10), storage.size_bytes(VIDEO_PATH)) == (VIDEO[:10], 300_000)

    def test_of_a_whole_file_little_is_read(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, ignore_range=True, times=None))
        with pytest.raises(StorageError, match="ignores byte ranges"):
            read(linked, 0, 10)
        assert linked.statistics.bytes_received < 10_000

    def test_redirects_of_the_cdn_are_followed(self, hub, linked):
        read(linked, 0, 1)
        target = linked._session()._links[VIDEO_PATH].url
        hub.add_fault(
            Fault(**ONE_GET, status=307, headers={"Location": target.removeprefix(hub.cdn_origin)})
        )
        assert read(linked, 1000, 3000) == VIDEO[1000:3000]

    def test_changed_etag(self, hub, linked):
        read(linked, 0, 10)
        hub.add_fault(Fault(**ONE_GET, headers={"ETag": '"other"'}, times=None))
        with pytest.raises(
            StorageError,
            match=r'the file was changed while it was read \(ETag "other", before "\w+"\)$',
        ):
            read(linked, 0, 10)

    def test_changed_size_at_a_new_link(self, hub, linked):
        hub.expire_urls()
        hub.add_fault(Fault(origin="hub", method="HEAD", headers={"X-Linked-Size": "299999"}))
        with pytest.raises(
            StorageError, match=rf"{VIDEO_PATH}: the file was changed: 299999 bytes, before 300000$"
        ):
            read(linked, 0, 10)

    def test_expired_link(self, hub, linked):
        hub.expire_urls()
        assert read(linked, 1000, 3000) == VIDEO[1000:3000]
        assert [(r.method, r.status) for r in hub.requests()] == [
            ("GET", 403),
            ("HEAD", 302),
            ("GET", 206),
        ]

    def test_expired_link_in_many_threads(self, hub, linked):
        hub.expire_urls()
        hub.set_latency(0.05)
        assert in_threads(8, lambda i: read(linked, i, i + 5)) == [
            VIDEO[i : i + 5] for i in range(8)
        ]
        assert [r.method for r in hub.requests()].count("HEAD") == 1

    def test_links_that_are_always_refused(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, status=403, times=None))
        with pytest.raises(
            StorageError,
            match=r"bytes \[0, 10\): HTTP 403 from 127.0.0.1 also for 2 fresh links; the server "
            r"may be",
        ) as caught:
            read(linked, 0, 10)
        assert [r.method for r in hub.requests()] == ["GET", "HEAD", "GET", "HEAD", "GET"]
        assert_no_secrets(caught.value)

    @pytest.mark.parametrize(
        ("fault", "text"),
        [
            (
                Fault(method="HEAD", headers={"X-Repo-Commit": "f" * 40}),
                rf"answered for commit {'f' * 40}, expected \w{{40}}$",
            ),
            (
                Fault(method="HEAD", status=302, headers={"Location": "http://x/"}),
                r"answered for commit none, expected \w{40}$",
            ),
            (
                Fault(method="HEAD", headers={"X-Linked-Size": "-1"}),
                r"the Hub told no size of the file \(X-Linked-Size: -1\)$",
            ),
            (
                Fault(method="HEAD", headers={"Location": "gopher://x"}),
                r"redirects to gopher:, expected an http or https address$",
            ),
            (
                Fault(method="HEAD", headers={"Location": "http://[::1"}),
                r"redirects to nowhere, expected|Invalid URL in location header",
            ),
        ],
    )
    def test_wrong_answers_to_the_question_for_a_link(self, hub, open_hub, fault, text):
        storage = open_hub()
        hub.add_fault(dataclasses.replace(fault, times=None))
        with pytest.raises(StorageError, match=text) as caught:
            storage.size_bytes(VIDEO_PATH)
        assert str(caught.value).startswith(f"{storage.description}: {VIDEO_PATH}: ")
        hub.clear_faults()
        assert storage.size_bytes(VIDEO_PATH) == 300_000

    def test_trouble_while_opening(self, hub, open_hub):
        for path in ("refs$", "revision/", "tree/"):
            hub.add_fault(Fault(origin="hub", path_regex=path, status=503))
            hub.add_fault(Fault(origin="hub", path_regex=path, close_before=True))
        assert open_hub().statistics.retries == 6

    @pytest.mark.parametrize("path", ["meta/info.json", "meta/tasks.parquet"])
    def test_trouble_while_downloading_metadata(self, hub, open_hub, path):
        storage = open_hub()
        hub.add_fault(Fault(method="GET", path_regex=path, status=503))
        hub.add_fault(Fault(method="GET", path_regex=path, reset_at=0))
        assert len(storage.read_metadata(path, max_bytes=1000)) == storage.list_metadata()[path]
        assert storage.statistics.retries == 2

    @pytest.mark.parametrize("path", ["meta/info.json", "meta/tasks.parquet"])
    def test_metadata_has_the_hash_that_the_hub_tells(self, hub, open_hub, path, tmp_path):
        storage = open_hub()
        hub.add_fault(Fault(method="GET", path_regex=path, corrupt_at=9, times=2))
        assert storage.read_metadata(path, max_bytes=1000) in (INFO, TASKS)
        assert pickle.loads(pickle.dumps(storage)).read_metadata(path, max_bytes=1000) in (
            INFO,
            TASKS,
        )
        hub.add_fault(Fault(method="GET", path_regex=path, corrupt_at=9, times=3))
        with pytest.raises(
            StorageError,
            match=rf"{path}: its contents have the hash \w{{40,64}}, expected \w{{40,64}}, also "
            rf"when read 3 times",
        ):
            open_hub(cache_dir=tmp_path / "other").read_metadata(path, max_bytes=1000)
        assert not list((tmp_path / "other").rglob("*.*"))

    def test_what_was_cached_is_what_huggingface_hub_finds(self, open_hub, tmp_path):
        storage = open_hub()
        for path, data in (("meta/info.json", INFO), ("meta/tasks.parquet", TASKS)):
            storage.read_metadata(path, max_bytes=1000)
            found = huggingface_hub.try_to_load_from_cache(
                REPOSITORY,
                path,
                cache_dir=tmp_path / "hub",
                revision=storage.commit,
                repo_type="dataset",
            )
            assert os.path.realpath(found).startswith(
                str(tmp_path / "hub/datasets--robots--arm/blobs")
            )
            with open(found, "rb") as file:
                assert file.read() == data
        (repository,) = huggingface_hub.scan_cache_dir(tmp_path / "hub").repos
        assert (repository.repo_id, repository.nb_files) == (REPOSITORY, 2)

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        "special",
        [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)],
        ids=["pipe", "directory", "device"],
    )
    def test_a_copy_that_is_no_file(self, open_hub, special):
        """The link in the snapshot is to be deleted, never what it leads to."""
        storage = open_hub()
        storage.read_metadata("meta/info.json", max_bytes=1000)
        for path in ("meta/info.json", VIDEO_PATH):
            link = os.path.join(storage.snapshot.root, path)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            if os.path.lexists(link):
                os.unlink(link)
            special(link)
            text = (
                rf"{path}: its copy {link} leads to .*, which is no file; delete the former "
                rf"\(rm {link}\), and "
            )
            with pytest.raises(StorageError, match=text):
                storage.read_tail(path, 1)
        with pytest.raises(StorageError, match="delete the former"):
            storage.read_metadata("meta/info.json", max_bytes=1000)

    def test_unfinished_files_of_killed_processes_are_deleted_after_a_day(self, open_hub, tmp_path):
        storage = open_hub()
        storage.read_metadata("meta/info.json", max_bytes=1000)
        (root,) = (tmp_path / "hub").glob("datasets--*")
        link = os.path.join(storage.snapshot.root, "meta")
        old = root / f"blobs/{'a' * 40}.0123abcd.incomplete"
        new = root / f"blobs/{'b' * 40}.0123abcd.incomplete"
        others = [root / "blobs/notes.incomplete", root / f"blobs/{'c' * 40}"]
        for path in (old, new, *others):
            path.write_bytes(b"half")
        for path in (old, *others):
            os.utime(path, (1, 1))
        old_link = os.path.join(link, "x.json.89abcdef.incomplete")
        os.symlink("nowhere", old_link)
        os.utime(old_link, (1, 1), follow_symlinks=False)
        client_cache._cleaned.clear()
        storage.read_metadata("meta/tasks.parquet", max_bytes=1000)
        assert not old.exists()
        assert not os.path.lexists(old_link)
        assert all(path.exists() for path in (new, *others))

    ESCAPES = "\x1b[2J\x07" + "x" * 50_000

    @pytest.mark.parametrize(
        ("fault", "call"),
        [
            (
                {"method": "HEAD", "headers": {"X-Repo-Commit": "x" * 50_000}},
                lambda open_it: open_it().size_bytes(VIDEO_PATH),
            ),
            (
                {"method": "HEAD", "headers": {"X-Linked-Size": "x" * 50_000}},
                lambda open_it: open_it().size_bytes(VIDEO_PATH),
            ),
            (
                {"method": "HEAD", "headers": {"Location": f"http://{'x' * 5000}.org/"}},
                lambda open_it: read(open_it(), 0, 1),
            ),
            (
                {"method": "HEAD", "headers": {"Location": f"{'x' * 50_000}://a/"}},
                lambda open_it: read(open_it(), 0, 1),
            ),
            (
                {"method": "HEAD", "headers": {"Location": "http://a.org:99999/"}},
                lambda open_it: read(open_it(), 0, 1),
            ),
            (
                {
                    "path_regex": "/refs",
                    "status": 200,
                    "body": json.dumps(
                        {"branches": [{"name": ESCAPES, "targetCommit": ""}], "tags": []}
                    ).encode(),
                },
                lambda open_it: open_it(revision="none"),
            ),
        ],
        ids=["commit", "size", "host", "scheme", "port", "references"],
    )
    def test_texts_of_the_hub_are_cut_in_messages(self, hub, open_hub, fault, call):
        hub.add_fault(Fault(**fault, times=None))
        with pytest.raises(StorageError) as caught:
            call(open_hub)
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()

    def test_names_of_folders_are_cut(self):
        (name,) = _folders_in({"siblings": [{"rfilename": f"{self.ESCAPES}/meta/info.json"}]})
        assert len(name) < 250
        assert name.isprintable()

    @tries_again
    def test_signed_links_are_not_logged_by_huggingface_hub_either(self, hub, open_hub, caplog):
        open_hub()
        hub.add_fault(Fault(**ONE_GET, status=429, headers={"RateLimit": '"resolvers";r=0;t=0'}))
        huggingface_hub.hf_hub_download(
            REPOSITORY, "meta/tasks.parquet", repo_type="dataset", endpoint=hub.endpoint
        )
        assert "Error 429 thrown while requesting GET http://127.0.0.1" in caplog.text
        assert "Signature" not in caplog.text

    def test_close_while_a_read_is_under_way(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, stall_at=5, times=None))
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(read, linked, 0, 1000)
            while not hub.requests():
                time.sleep(0.01)
            linked.close()
            with pytest.raises(
                StorageError, match=r"bytes \[0, 1000\): the storage was closed while it was in use"
            ):
                under_way.result()

    def test_metadata_that_cannot_be_downloaded(self, hub, open_hub):
        storage = open_hub("robots/private", token=SECRET)
        hub.add_fault(Fault(**ONE_GET, status=403, times=None))
        with pytest.raises(StorageError, match=r"meta/tasks\.parquet") as caught:
            storage.read_metadata("meta/tasks.parquet", max_bytes=1000)
        assert_no_secrets(caught.value)


class TestRateLimit:
    @pytest.fixture
    def refused(self, monkeypatch):
        """Set once a server has told that it is to be left alone."""
        found = threading.Event()
        pause = RateLimiter.pause

        def paused(*arguments):
            pause(*arguments)
            found.set()

        monkeypatch.setattr(RateLimiter, "pause", paused)
        return found

    def test_closes_one_gate_for_all_threads_but_not_for_the_cdn(self, hub, open_hub, refused):
        storage = open_hub()
        assert read(storage, 0, 10) == VIDEO[:10]
        hub.clear_requests()
        hub.add_fault(Fault(origin="hub", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}))

        def work(number):
            assert number == 0 or refused.wait(30)
            if number < 2:
                return storage.size_bytes(["videos/top/file-001.mp4", "small.json"][number])
            return read(storage, 5, 10)

        assert in_threads(3, work) == [300_000, 9 * len(INFO), VIDEO[5:10]]
        records = [r for r in hub.requests() if r.origin == "hub"]
        of_cdn = next(r for r in hub.requests() if r.origin == "cdn")
        assert of_cdn.time_seconds < records[1].time_seconds
        assert records[0].status == 429
        assert all(r.time_seconds - records[0].time_seconds > 1 for r in records[1:])
        assert len(records) == 4  # one refused, and again; two for a small file
        assert storage.statistics.pause_seconds > 1.5

    def test_retry_after(self, hub, linked):
        hub.add_fault(Fault(**ONE_GET, status=503, headers={"Retry-After": "0"}))
        assert read(linked, 0, 10) == VIDEO[:10]
        first, second = hub.requests()
        # the least that is added to what is asked for
        assert second.time_seconds - first.time_seconds > 0.05

    def test_longer_than_any_window(self, hub, open_hub):
        storage = open_hub()
        hub.add_fault(
            Fault(origin="hub", status=429, headers={"RateLimit": '"resolvers";r=0;t=1000'})
        )
        with pytest.raises(
            StorageError,
            match=r"localhost refuses requests for the next 1000 s \(HTTP 429\); ask less often, "
            r"or with a token",
        ):
            storage.size_bytes(VIDEO_PATH)

    def test_a_long_wait_is_said_once_and_counted(
        self, hub, open_hub, monkeypatch, caplog, refused
    ):
        monkeypatch.setattr(http_client, "_SAID_SECONDS", 0.2)
        monkeypatch.setattr(http_client.random, "uniform", lambda low, _: low)
        storage = open_hub()
        hub.add_fault(Fault(origin="hub", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}))
        paths = ["videos/top/file-001.mp4", "small.json", VIDEO_PATH]

        def ask(number):
            assert number == 0 or refused.wait(30)
            return storage.size_bytes(paths[number])

        assert in_threads(3, ask) == [300_000, 9 * len(INFO), 300_000]
        (said,) = [
            record.getMessage() for record in caplog.records if "waiting for" in record.getMessage()
        ]
        assert said.endswith(": waiting for 1 s, as long as localhost asks to be left alone")
        assert storage.statistics.pause_seconds > 2

    def test_slows_down_before_it_is_reached(self, hub, open_hub):
        storage = open_hub()
        low = {
            "RateLimit": '"resolvers";r=9;t=3',
            "RateLimit-Policy": '"fixed window";"resolvers";q=3000;w=300',
        }
        hub.add_fault(Fault(origin="hub", path_regex="/resolve/", headers=low, times=None))
        for path in (VIDEO_PATH, "videos/top/file-001.mp4", "small.json"):
            storage.size_bytes(path)
        times = [record.time_seconds for record in hub.requests() if record.kind == "resolver"]
        assert times[1] - times[0] > 0.25
        assert times[2] - times[0] > 0.5  # not times[1]: the second one may come late
        paused = storage.statistics.pause_seconds
        read(storage, 0, 10)  # of the CDN, which is not limited
        assert storage.statistics.pause_seconds - paused < 0.25


class TestScopes:
    STUBBORN = dataclasses.replace(OPTIONS, read_timeout_seconds=60, deadline_seconds=120)

    def test_ends_the_requests_of_its_threads_only(self, hub, open_hub):
        storage = open_hub(options=self.STUBBORN)
        storage.size_bytes(VIDEO_PATH)
        hub.clear_requests()
        hub.add_fault(Fault(**ONE_GET, stall_at=7, times=2))
        scope = CancelScope()
        with (
            ThreadPoolExecutor(1, initializer=scope.enter) as pool,
            ThreadPoolExecutor(1) as others,
        ):
            mine = pool.submit(read, storage, 0, 1000)
            theirs = others.submit(read, storage, 500, 900)
            while len(hub.requests()) < 2:
                time.sleep(0.01)
            started = time.monotonic()
            assert scope.end()
            with pytest.raises(
                StorageError, match=r"bytes \[0, 1000\): the reader was closed while it was in use$"
            ):
                mine.result()
            assert theirs.result() == VIDEO[500:900]
            assert time.monotonic() - started < 30  # of 60 that a stall is waited for
            with pytest.raises(StorageError, match="the reader was closed"):
                pool.submit(read, storage, 0, 10).result()
        assert read(storage, 0, 10) == VIDEO[:10]

    def test_ends_waiting_for_a_rate_limit_and_between_attempts(self, hub, open_hub):
        for fault in (
            Fault(
                method="HEAD",
                status=429,
                headers={"RateLimit": '"resolvers";r=0;t=100'},
                times=None,
            ),
            Fault(method="HEAD", status=503, times=None),
        ):
            storage = open_hub(options=dataclasses.replace(self.STUBBORN, pause_seconds=60))
            hub.clear_requests()
            hub.add_fault(fault)
            scope = CancelScope()
            with ThreadPoolExecutor(2, initializer=scope.enter) as pool:
                # the second waits for the first
                waiting = [pool.submit(storage.size_bytes, VIDEO_PATH) for _ in range(2)]
                while not hub.requests():
                    time.sleep(0.01)
                assert scope.end()
                for future in waiting:
                    with pytest.raises(StorageError, match="the reader was closed"):
                        future.result()
            hub.clear_faults()

    def test_who_waits_for_a_link_of_an_ended_thread_asks_itself(self, hub, open_hub):
        storage = open_hub(options=self.STUBBORN)
        hub.clear_requests()
        hub.add_fault(Fault(method="HEAD", latency_seconds=1000))
        scope = CancelScope()
        with (
            ThreadPoolExecutor(1, initializer=scope.enter) as pool,
            ThreadPoolExecutor(1) as others,
        ):
            mine = pool.submit(storage.size_bytes, VIDEO_PATH)
            while not hub.requests():
                time.sleep(0.01)
            theirs = others.submit(storage.size_bytes, VIDEO_PATH)
            time.sleep(0.1)
            assert scope.end()
            assert theirs.result() == 300_000
            assert isinstance(mine.exception(), StorageError)

    def test_nothing_under_way(self):
        scope = CancelScope()
        assert scope.end()
        assert scope.is_ended


class TestOtherProcesses:
    # Without the package's __init__, which takes three seconds to import Grain and torch that
    # reading does not need.
    CODE = (
        "import pickle, sys, types\nsys.modules['lerobot_grain'] = "
        "types.ModuleType('lerobot_grain')\nsys.modules['lerobot_grain'].__path__ = "
        "[sys.argv[2]]\nfrom lerobot_grain._base.byte_ranges import ByteRange\nstorage = "
        "pickle.load(sys.stdin.buffer)\ncontents = storage.read_metadata('meta/info.json', "
        "max_bytes=100) + storage.read_ranges(sys.argv[1], [ByteRange(0, 10)])[0]\n"
        "sys.stdout.buffer.write(contents)\n"
    )

    def test_a_storage_sent_to_another_process_asks_the_api_nothing(self, hub, open_hub, tmp_path):
        storage = open_hub("robots/private", token=SECRET)
        read(storage, 0, 10)
        hub.clear_requests()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", self.CODE, VIDEO_PATH, os.path.dirname(lg.__file__)],
            input=pickle.dumps(storage),
            env=environment,
            capture_output=True,
        )
        assert (done.returncode, done.stdout) == (0, INFO + VIDEO[:10]), done.stderr
        assert {r.kind for r in hub.requests()} == {"resolver", "git_file", "cdn"}

    def test_what_a_pickle_holds(self, open_hub, monkeypatch):
        explicit = open_hub("robots/private", token=SECRET)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        found = open_hub("robots/private")
        for storage in (explicit, found):
            read(storage, 0, 10)
            assert SECRET not in repr(storage)
            assert b"Signature" not in pickle.dumps(storage)
        assert SECRET.encode() in pickle.dumps(explicit)  # nobody else could tell the other process
        assert SECRET.encode() not in pickle.dumps(found)

    def test_a_forgotten_storage_closes_its_sockets(self, hub):
        storage = open_storage(
            REPOSITORY,
            revision="main",
            endpoint=hub.endpoint,
            token=None,
            cache_dir=None,
            options=OPTIONS,
        )
        read(storage, 0, 10)
        origins = storage._session()._client._origins
        idle = [
            each.client
            for key, of_server in connections()._idle.items()
            if key[0] in origins
            for each in of_server
        ]
        assert idle
        del storage
        gc.collect()
        assert all(client.is_closed for client in idle)


class TestOffline:
    @pytest.fixture
    def cached(self, hub, tmp_path):
        """A storage of a snapshot that was downloaded by tag, all but one file."""
        huggingface_hub.snapshot_download(
            REPOSITORY,
            repo_type="dataset",
            revision="v3.0",
            endpoint=hub.endpoint,
            cache_dir=tmp_path / "hub",
            ignore_patterns=["*001.mp4"],
        )

    def open_offline(self, hub, monkeypatch, **changes):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        hub.clear_requests()
        return open_directory(REPOSITORY, **({"endpoint": hub.endpoint} | changes))

    @pytest.mark.usefixtures("cached")
    def test_reads_a_cached_snapshot(self, hub, open_hub, monkeypatch):
        online = open_hub()
        storage = self.open_offline(hub, monkeypatch)
        assert (storage.commit, storage.description) == (online.commit, online.description)
        assert storage.list_metadata() == online.list_metadata()
        assert read(storage, 0, 10) == VIDEO[:10]
        for revision in ("v3.0", online.commit):
            assert self.open_offline(hub, monkeypatch, revision=revision) == storage
        assert hub.requests() == []

    @pytest.mark.usefixtures("cached")
    def test_a_file_that_is_not_cached(self, hub, monkeypatch):
        storage = self.open_offline(hub, monkeypatch)
        with pytest.raises(
            StorageError,
            match=r"file-001.mp4 in the cache; with HF_HUB_OFFLINE=1 .* run hf download "
            r"robots/arm --repo-type dataset --revision \w{40}$",
        ):
            storage.size_bytes("videos/top/file-001.mp4")

    def test_a_snapshot_that_is_not_cached(self, hub, monkeypatch):
        for revision, end in (
            (None, "robots/arm --repo-type dataset"),
            ("main", "robots/arm --repo-type dataset --revision main"),
            ("../x", "../x"),
        ):
            with pytest.raises(
                StorageError,
                match="HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset it, or first run "
                "hf download",
            ) as caught:
                self.open_offline(hub, monkeypatch, revision=revision)
            assert str(caught.value).endswith(end)

    def test_a_storage_that_was_opened_online(self, open_hub, monkeypatch):
        storage = pickle.loads(pickle.dumps(open_hub()))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            MissingFileError,
            match=r"file-000.mp4 in the cache; with HF_HUB_OFFLINE=1 it cannot be fetched, so "
            r"unset that",
        ):
            storage.size_bytes(VIDEO_PATH)


class TestDirectoryTrouble:
    def test_file_that_shrank(self, directory, monkeypatch):
        storage = open_directory(directory)
        earlier = types.SimpleNamespace(st_mode=stat.S_IFREG, st_size=400_000)
        monkeypatch.setattr(os, "fstat", lambda _: earlier)
        with pytest.raises(StorageError) as caught:
            read(storage, 299_000, 301_000)
        monkeypatch.undo()
        assert (
            str(caught.value)
            == f"{directory}: {VIDEO_PATH} bytes [299000, 301000): the file ended after 1000 of "
            "2000 bytes; was it changed?"
        )

    def test_a_read_asks_for_nothing_by_path_but_the_file(self, directory, monkeypatch):
        # Each would take as long as the read where the directory is far away.
        storage = open_directory(directory)
        asked = []
        status = os.stat

        def noted(path):
            asked.append(path)
            return status(path)

        monkeypatch.setattr(os, "stat", noted)
        assert read(storage, 100, 200) == VIDEO[100:200]
        assert asked == []
        storage.list_metadata()
        files = [path for path in asked if os.path.basename(path) == "info.json"]
        assert len(files) == 1

    def test_reads_that_come_in_pieces(self, directory, monkeypatch):
        pread = os.pread
        monkeypatch.setattr(
            os,
            "pread",
            lambda descriptor, length, offset: pread(descriptor, min(length, 7), offset),
        )
        assert read(open_directory(directory), 100, 200) == VIDEO[100:200]

    def test_no_file_but_a_directory(self, directory):
        with pytest.raises(StorageError, match=r": videos/top cannot be read: Is a directory$"):
            read(open_directory(directory), 0, 1, path="videos/top")

    @pytest.mark.timeout(20)
    def test_no_file_but_a_pipe_or_a_device(self, tmp_path):
        write_files(tmp_path, {"meta/info.json": INFO, "data/a.parquet": TASKS})
        os.mkfifo(tmp_path / "data/pipe")
        (tmp_path / "data/device").symlink_to("/dev/zero")
        os.mkfifo(tmp_path / "meta/pipe")
        storage = open_directory(tmp_path)
        assert list(storage.list_metadata()) == ["meta/info.json"]
        for path in ("data/pipe", "data/device"):
            with pytest.raises(
                StorageError,
                match=rf": {path} cannot be read: it is a pipe, a socket or a device, and no file$",
            ):
                read(storage, 0, 1, path=path)
            with pytest.raises(StorageError):
                storage.read_range("data/pipe", ByteRange(0, 1))

    def test_broken_link(self, tmp_path):
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/info.json").symlink_to("nothing")
        with pytest.raises(StorageError, match=r"there is no file meta/info\.json"):
            open_directory(tmp_path).list_metadata()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_connections": 0}, "num_connections=0: expected a whole number of at least 1"),
        ({"num_connections": 1.5}, "num_connections=1.5: expected a whole number of at least 1"),
        ({"num_connections": True}, "num_connections=True: expected a whole number of at least 1"),
        ({"merge_gap_bytes": -1}, "merge_gap_bytes=-1: expected a whole number of at least 0"),
        ({"merge_max_bytes": None}, "merge_max_bytes=None: expected a whole number of at least 0"),
        (
            {"connect_timeout_seconds": 0},
            "connect_timeout_seconds=0: expected a number of seconds of at least 0.001",
        ),
        (
            {"read_timeout_seconds": float("nan")},
            "read_timeout_seconds=nan: expected a number of seconds of at least 0.001",
        ),
        (
            {"deadline_seconds": float("inf")},
            "deadline_seconds=inf: expected a number of seconds of at least 0.001",
        ),
        ({"max_attempts": 0}, "max_attempts=0: expected a whole number of at least 1"),
        ({"disk_cache_bytes": -1}, "disk_cache_bytes=-1: expected a whole number of at least 0"),
        (
            {"disk_cache_bytes": 1e9},
            "disk_cache_bytes=1000000000.0: expected a whole number of at least 0",
        ),
        ({"pause_seconds": 0}, "pause_seconds=0: expected a number of seconds of at least 0.001"),
    ],
)
def test_options_that_make_no_sense(changes, text):
    with pytest.raises(InvalidRequestError) as caught:
        StorageOptions(**changes)
    assert str(caught.value) == text


def test_options_that_do():
    assert (
        StorageOptions(merge_gap_bytes=0, merge_max_bytes=0, deadline_seconds=1).deadline_seconds
        == 1
    )


def test_redirects_from_https_to_http_are_refused():
    with pytest.raises(
        StorageError, match=r"^x: https://a/b redirects from https to http at c, which is refused$"
    ):
        responses.next_hop("https://a/b?Signature=1", "http://c/?Signature=2", subject="x")
    assert responses.next_hop("http://a/b", "//c/d", subject="x") == "http://c/d"


@pytest.mark.parametrize(
    ("url", "date", "expected"),
    [
        ("http://x/", None, 3570),
        ("http://x/?X-Amz-Expires=600&Expires=x", None, 570),
        ("http://x/?Expires=1000&X-Amz-Expires=3600", "Thu, 01 Jan 1970 00:10:00 GMT", 370),
        ("http://x/?Expires=1000", "Thu, 01 Jan 1970 01:00:00 GMT", -2630),
        ("http://x/?Expires=99999999999", "rubbish", 3570),
    ],
)
def test_how_long_a_link_lasts(url, date, expected):
    assert responses.lifetime_seconds(url, date) == expected


def test_redaction():
    assert (
        responses.redact("at https://h/p?Signature=1&x=2 and 'http://i/q#f', end")
        == "at https://h/p and 'http://i/q', end"
    )
    assert responses.describe_url("https://user:pass@h:1/p?q#f") == "https://h:1/p"


def test_good_paths():
    for path in (
        "meta/info.json",
        "a",
        "videos/observation.images.top/chunk-000/file-000.mp4",
        "a b/ü%.x",
        ".hidden",
        "a/..b",
    ):
        check_path("x", path)


def test_hub_storage_is_a_value(open_hub):
    storage = open_hub()
    assert isinstance(storage, HubStorage)
    with pytest.raises(AttributeError):
        storage.commit = "x"
