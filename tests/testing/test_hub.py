"""The loopback Hub, through the real huggingface_hub client and, for what that hides, through plain
HTTP.
"""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import lerobot_grain
from lerobot_grain.testing._hub.loopback import Fault, LoopbackHub, mixed_faults

REPOSITORY = "robots/arm"
INFO = b'{"codebase_version": "v3.0"}'
# 1,024,000 bytes: above the size up to which LFS files are hashed, and four chunks of the server
VIDEO = bytes(range(256)) * 4000
DATA = b"PAR1" + b"\x01" * 992 + b"PAR1"
VIDEO_PATH = "videos/observation.images.top/chunk-000/file-000.mp4"
DATA_PATH = "data/chunk-000/file-000.parquet"
SECRET = "hf_secret"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("arm")
    write_files(
        root,
        {
            "meta/info.json": INFO,
            VIDEO_PATH: VIDEO,
            DATA_PATH: DATA,
            "README.md": b"# Arm\n",
            ".gitattributes": b"*.mp4 lfs\n",
        },
    )
    write_files(root, {".git/config": b"[core]", ".cache/huggingface/x": b"x"})
    return root


@pytest.fixture(scope="module")
def server(directory):
    with LoopbackHub(page_entries=4) as hub:
        hub.add_repository(REPOSITORY, directory, branches=["main", "feature/x"], tags=["v3.0"])
        hub.add_repository("robots/private", directory, private=True, token=SECRET)
        hub.add_repository("robots/gated", directory, gated=True, token=SECRET)
        hub.add_token("hf_other")
        yield hub


@pytest.fixture
def hub(server):
    yield server
    server.clear_faults()
    server.set_latency(0)
    server.set_bandwidth(None)
    server.set_url_lifetime(3600)
    server.set_rate_limit("api", requests=10**6)
    server.clear_requests()


@pytest.fixture
def commit(hub):
    return api(hub).dataset_info(REPOSITORY).sha


@pytest.fixture
def client():
    with httpx2.Client(timeout=5, headers={"Accept-Encoding": "identity"}) as client:
        yield client


@pytest.fixture
def url(hub, client):
    """Returns a signed URL of the video, with the log empty."""
    location = sign(hub, client, VIDEO_PATH)
    hub.clear_requests()
    return location


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for path, contents in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(contents)


def api(hub, token=False):
    return HfApi(endpoint=hub.endpoint, token=token)


def sign(hub, client, path):
    return client.head(f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/{path}").headers[
        "Location"
    ]


def get_range(client, url, value, **headers):
    return client.get(url, headers={"Range": value, **headers})


def rate_limit(headers):
    if not hasattr(huggingface_hub.utils, "parse_ratelimit_headers"):
        pytest.skip("huggingface_hub before 1.2 reads no rate limits")
    limit = huggingface_hub.utils.parse_ratelimit_headers(headers)
    assert limit is not None
    return limit


def is_running(process_id):
    try:
        # A process that has ended but was not waited for (nobody may, once its parent is dead) has
        # an empty command line.
        return Path(f"/proc/{process_id}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_seconds=5.0):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Through huggingface_hub


@pytest.mark.parametrize("revision", [None, "main", "feature/x", "v3.0", "sha"])
def test_repo_info_by_branch_tag_and_sha(hub, commit, revision):
    info = api(hub).repo_info(
        REPOSITORY, repo_type="dataset", revision=commit if revision == "sha" else revision
    )
    assert (info.id, info.author, info.private, info.gated) == (REPOSITORY, "robots", False, False)
    assert info.sha == commit
    assert len(commit) == 40
    assert [sibling.rfilename for sibling in info.siblings] == [
        ".gitattributes",
        "README.md",
        DATA_PATH,
        "meta/info.json",
        VIDEO_PATH,
    ]
    assert info.last_modified is not None


def test_repo_info_with_file_metadata(hub):
    siblings = {
        sibling.rfilename: sibling
        for sibling in api(hub).dataset_info(REPOSITORY, files_metadata=True).siblings
    }
    assert (siblings["meta/info.json"].size, siblings["meta/info.json"].lfs) == (len(INFO), None)
    assert (siblings[DATA_PATH].size, siblings[DATA_PATH].lfs.sha256) == (
        len(DATA),
        hashlib.sha256(DATA).hexdigest(),
    )


def test_refs(hub, commit):
    refs = api(hub).list_repo_refs(REPOSITORY, repo_type="dataset", include_pull_requests=True)
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.branches] == [
        ("main", "refs/heads/main", commit),
        ("feature/x", "refs/heads/feature/x", commit),
    ]
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [
        ("v3.0", "refs/tags/v3.0", commit)
    ]


def test_tree_recursive_in_pages(hub):
    entries = list(
        api(hub).list_repo_tree(
            REPOSITORY, recursive=True, revision="feature/x", repo_type="dataset"
        )
    )
    assert [entry.path for entry in entries] == [
        ".gitattributes",
        "README.md",
        "data",
        "data/chunk-000",
        DATA_PATH,
        "meta",
        "meta/info.json",
        "videos",
        "videos/observation.images.top",
        "videos/observation.images.top/chunk-000",
        VIDEO_PATH,
    ]
    assert len(hub.requests()) == 3
    files = {entry.path: entry for entry in entries if hasattr(entry, "size")}
    assert (
        files["meta/info.json"].blob_id == hashlib.sha1(b"blob %d\0" % len(INFO) + INFO).hexdigest()
    )
    assert [path for path, file in files.items() if file.lfs is None] == [
        ".gitattributes",
        "README.md",
        "meta/info.json",
    ]
    assert (files[DATA_PATH].size, files[DATA_PATH].lfs.sha256) == (
        len(DATA),
        hashlib.sha256(DATA).hexdigest(),
    )
    assert files[VIDEO_PATH].lfs.size == len(VIDEO)
    assert len(files[VIDEO_PATH].lfs.sha256) == 64


def test_tree_of_one_directory(hub):
    def list_tree(path, **options):
        return [
            entry.path
            for entry in api(hub).list_repo_tree(REPOSITORY, path, repo_type="dataset", **options)
        ]

    assert list_tree(None) == [".gitattributes", "README.md", "data", "meta", "videos"]
    assert list_tree("data") == ["data/chunk-000"]
    assert list_tree("data/chunk-000", expand=True) == [DATA_PATH]
    with pytest.raises(EntryNotFoundError):
        list_tree("dat")


def test_paths_info_ignores_what_is_missing(hub):
    found = api(hub).get_paths_info(
        REPOSITORY, ["meta/info.json", "data", "nothing.json"], revision="v3.0", repo_type="dataset"
    )
    assert [entry.path for entry in found] == ["meta/info.json", "data"]


@pytest.mark.parametrize(
    ("path", "contents", "kinds_by_branch"),
    [
        ("meta/info.json", INFO, ["resolver", "git_file", "git_file"]),
        (DATA_PATH, DATA, ["resolver", "cdn"]),
    ],
)
def test_download_by_branch_and_by_sha(hub, commit, tmp_path, path, contents, kinds_by_branch):
    arguments = {
        "repo_type": "dataset",
        "cache_dir": tmp_path,
        "endpoint": hub.endpoint,
        "token": False,
    }
    hub.clear_requests()
    by_branch = hf_hub_download(REPOSITORY, path, revision="feature/x", **arguments)
    assert Path(by_branch).read_bytes() == contents
    assert [record.kind for record in hub.requests() if record.kind != "other"] == kinds_by_branch
    hub.clear_requests()
    assert hf_hub_download(REPOSITORY, path, revision=commit, **arguments) == by_branch
    assert hub.requests() == []


def test_snapshot_over_plain_http_though_xet_is_installed(hub, commit, tmp_path):
    folder = Path(
        snapshot_download(
            REPOSITORY, repo_type="dataset", cache_dir=tmp_path, endpoint=hub.endpoint, token=False
        )
    )
    assert folder.name == commit
    assert (folder / VIDEO_PATH).read_bytes() == VIDEO
    assert (folder / "meta/info.json").read_bytes() == INFO
    assert {record.kind for record in hub.requests()} <= {
        "api",
        "resolver",
        "git_file",
        "cdn",
        "other",
    }
    assert not any("xet" in record.path and record.origin == "hub" for record in hub.requests())


def test_links_in_a_directory_are_followed(hub, tmp_path):
    write_files(tmp_path / "blobs", {"a": DATA})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.parquet").symlink_to("../blobs/a")
    hub.add_repository("robots/links", tmp_path / "snapshot")
    path = hf_hub_download(
        "robots/links",
        "a.parquet",
        repo_type="dataset",
        cache_dir=tmp_path / "cache",
        endpoint=hub.endpoint,
        token=False,
    )
    assert Path(path).read_bytes() == DATA


def test_file_metadata(hub, commit):
    def metadata(path):
        return get_hf_file_metadata(
            hf_hub_url(REPOSITORY, path, repo_type="dataset", endpoint=hub.endpoint), token=False
        )

    large = metadata(DATA_PATH)
    assert (large.commit_hash, large.size, large.etag) == (
        commit,
        len(DATA),
        hashlib.sha256(DATA).hexdigest(),
    )
    assert large.location.startswith(f"{hub.cdn_origin}/xet-bridge-us/")
    assert large.xet_file_data is None
    small = metadata("meta/info.json")
    assert (small.commit_hash, small.size) == (commit, len(INFO))
    assert small.location.startswith(
        f"{hub.endpoint}/api/resolve-cache/datasets/{REPOSITORY}/{commit}/meta/info.json"
    )


def test_missing_repository_revision_and_entry(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api(hub).dataset_info("robots/none")
    with pytest.raises(RepositoryNotFoundError) as error:
        api(hub, "hf_other").dataset_info("robots/none")
    assert error.value.response.status_code == 404
    with pytest.raises(RevisionNotFoundError):
        api(hub).dataset_info(REPOSITORY, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        api(hub).dataset_info(REPOSITORY, revision="a" * 40)
    with pytest.raises(EntryNotFoundError) as missing:
        hf_hub_download(
            REPOSITORY,
            "meta/none.json",
            repo_type="dataset",
            cache_dir=tmp_path,
            endpoint=hub.endpoint,
            token=False,
        )
    assert missing.value.response.headers["X-Repo-Commit"] == api(hub).dataset_info(REPOSITORY).sha


def test_private_repository(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError) as error:
        api(hub).dataset_info("robots/private")
    assert error.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError) as error:
        api(hub, "hf_other").dataset_info("robots/private")
    assert error.value.response.status_code == 404
    assert api(hub, SECRET).dataset_info("robots/private").private
    hub.clear_requests()
    arguments = {
        "repo_type": "dataset",
        "cache_dir": tmp_path,
        "endpoint": hub.endpoint,
        "token": SECRET,
    }
    path = hf_hub_download("robots/private", DATA_PATH, **arguments)
    assert Path(path).read_bytes() == DATA
    assert {(record.origin, record.had_authorization) for record in hub.requests()} == {
        ("hub", True),
        ("cdn", False),
    }


def test_unknown_token_is_refused_even_for_a_public_repository(hub):
    with pytest.raises(HfHubHTTPError, match="401") as error:
        api(hub, "hf_wrong").dataset_info(REPOSITORY)
    assert not isinstance(error.value, RepositoryNotFoundError)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_other", 403)])
def test_gated_repository_shows_its_listing_only(hub, tmp_path, token, status):
    assert api(hub, token).dataset_info("robots/gated").gated == "auto"
    for path in (DATA_PATH, "meta/info.json"):
        with pytest.raises(GatedRepoError) as error:
            hf_hub_download(
                "robots/gated",
                path,
                repo_type="dataset",
                cache_dir=tmp_path,
                endpoint=hub.endpoint,
                token=token,
            )
        assert error.value.response.status_code == status
    with pytest.raises(GatedRepoError):
        api(hub, token).auth_check("robots/gated", repo_type="dataset")
    api(hub, SECRET).auth_check("robots/gated", repo_type="dataset")


def test_gated_git_file_is_refused_at_its_second_address_too(hub, client):
    commit = api(hub).dataset_info("robots/gated").sha
    response = client.get(
        f"{hub.endpoint}/api/resolve-cache/datasets/robots/gated/{commit}/meta/info.json"
    )
    assert (response.status_code, response.headers["X-Error-Code"]) == (401, "GatedRepo")


def test_second_commit_moves_the_branch_and_keeps_the_first(hub, tmp_path):
    write_files(tmp_path / "one", {"a.parquet": b"one"})
    write_files(tmp_path / "two", {"a.parquet": b"second"})
    first = hub.add_repository("robots/moving", tmp_path / "one", tags=["v1"]).commit
    second = hub.add_commit("robots/moving", tmp_path / "two", tags=["v2"]).commit
    assert first != second
    assert [
        api(hub).dataset_info("robots/moving", revision=name).sha
        for name in ("main", "v1", "v2", first)
    ] == [
        second,
        first,
        second,
        first,
    ]

    def download(revision):
        cache = tmp_path / f"cache-{revision}"
        return Path(
            hf_hub_download(
                "robots/moving",
                "a.parquet",
                revision=revision,
                repo_type="dataset",
                cache_dir=cache,
                endpoint=hub.endpoint,
                token=False,
            )
        ).read_bytes()

    assert [download(revision) for revision in ("main", "v1", second)] == [
        b"second",
        b"one",
        b"second",
    ]


def test_commit_is_the_same_in_the_next_run(directory, commit):
    with LoopbackHub() as other:
        assert other.add_repository(REPOSITORY, directory).commit == commit
        assert other.add_commit(REPOSITORY, directory).commit != commit


# Plain HTTP: the hub


def test_redirects_of_the_resolver(hub, client, commit):
    base = f"{hub.endpoint}/datasets/{REPOSITORY}/resolve"
    large = client.get(f"{base}/feature%2Fx/{DATA_PATH}")
    assert (large.status_code, large.headers["X-Repo-Commit"], large.headers["X-Linked-Size"]) == (
        302,
        commit,
        str(len(DATA)),
    )
    assert large.headers["X-Linked-ETag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert large.text == f"Found. Redirecting to {large.headers['Location']}"
    assert "Link" not in large.headers
    small = client.head(f"{base}/v3.0/meta/info.json")
    assert (small.status_code, small.headers["X-Repo-Commit"]) == (307, commit)
    assert small.headers["Location"].startswith(
        f"/api/resolve-cache/datasets/{REPOSITORY}/{commit}/meta/info.json"
    )
    assert small.headers["Location"].endswith(f"&etag=%22{small.headers['ETag'][1:-1]}%22")
    followed = client.get(hub.endpoint + small.headers["Location"], headers={"Range": "bytes=2-5"})
    assert (followed.status_code, followed.content, followed.headers["X-Repo-Commit"]) == (
        206,
        INFO[2:6],
        commit,
    )


def test_every_hub_answer_has_the_common_headers(hub, client, url):
    for path in (
        f"/api/datasets/{REPOSITORY}",
        "/api/datasets/robots/none",
        f"/datasets/{REPOSITORY}/resolve/main/{DATA_PATH}",
        "/nowhere",
    ):
        headers = client.get(hub.endpoint + path).headers
        assert headers["X-Request-Id"].startswith("Root=1-")
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["X-HF-Warning"].startswith("unauthenticated; ")
        assert rate_limit(headers).remaining > 0
    assert "RateLimit" not in get_range(client, url, "bytes=0-0").headers


@pytest.mark.parametrize(
    "path",
    ["/", "/api/agent-harnesses", "/api/models/robots/arm", f"/api/datasets/{REPOSITORY}/nothing"],
)
def test_unknown_paths(hub, client, path):
    response = client.get(hub.endpoint + path)
    assert response.status_code == 404
    assert "X-Error-Code" not in response.headers


def test_a_path_cannot_leave_its_directory_nor_a_message_its_header(hub):
    host, port = hub.endpoint.removeprefix("http://").split(":")
    for path in (
        "../../../etc/passwd.json",
        "%2e%2e/%2e%2e/etc/hostname",
        "meta/../meta/info.json",
    ):
        assert send_raw(
            host, port, f"GET /datasets/{REPOSITORY}/resolve/main/{path} HTTP/1.1"
        ).startswith(b"HTTP/1.1 404 ")
    answer = send_raw(
        host, port, f"GET /api/datasets/{REPOSITORY}/revision/a%0d%0aX-Evil:%201 HTTP/1.1"
    )
    assert b"X-Error-Message: Invalid rev id: a??X-Evil: 1\r\n" in answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /", b"400"),
        ("GET / HTTP/1.1\r\nnonsense", b"400"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked", b"411"),
        ("GET / HTTP/1.1\r\nX: " + "x" * 70000, b"431"),
        ("DELETE /api/datasets/robots/arm HTTP/1.1", b"405"),
        ("GET /api/datasets/robots/arm/paths-info/main HTTP/1.1", b"405"),
    ],
    ids=["no version", "no colon", "chunked", "too large", "delete", "get of a post"],
)
def test_requests_that_are_refused(hub, head, status):
    host, port = hub.endpoint.removeprefix("http://").split(":")
    assert send_raw(host, port, head).split(b" ")[1] == status


def send_raw(host, port, head):
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            head.encode() + (b"\r\nConnection: close\r\n\r\n" if len(head) < 70000 else b"")
        )
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while received := connection.recv(65536):
                answer += received
        return answer


def test_requests_in_pieces_and_in_one_piece(hub):
    request = f"HEAD /api/datasets/{REPOSITORY} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    host, port = hub.endpoint.removeprefix("http://").split(":")
    hub.set_latency(0.02)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        for byte in request[:30]:
            connection.sendall(bytes([byte]))
        connection.sendall(request[30:] + request + request)
        answer = b""
        while answer.count(b"\r\n\r\n") < 3:
            answer += connection.recv(65536)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert len({record.connection_id for record in hub.requests()}) == 1


def test_rate_limit_counts_down_and_refuses(hub, client):
    hub.set_rate_limit("api", requests=2, window_seconds=300)
    path = f"{hub.endpoint}/api/datasets/{REPOSITORY}"
    answers = [client.get(path) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    limits = [rate_limit(answer.headers) for answer in answers]
    assert [
        (limit.resource_type, limit.remaining, limit.limit, limit.window_seconds)
        for limit in limits
    ] == [
        ("api", 1, 2, 300),
        ("api", 0, 2, 300),
        ("api", 0, 2, 300),
    ]
    assert (
        client.head(f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/{DATA_PATH}").status_code
        == 302
    )
    hub.set_rate_limit("api", requests=1, window_seconds=0.05)
    assert client.get(path).status_code == 200
    time.sleep(0.06)
    assert client.get(path).status_code == 200


# Plain HTTP: the CDN


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-300999", 1000, 301000),
        ("bytes=5-", 5, len(VIDEO)),
        ("bytes=-300", len(VIDEO) - 300, len(VIDEO)),
        ("bytes=-9999999", 0, len(VIDEO)),
        (f"bytes={len(VIDEO) - 1}-9999999", len(VIDEO) - 1, len(VIDEO)),
    ],
)
def test_range(hub, client, url, value, start, stop):
    response = get_range(client, url, value)
    assert (response.status_code, response.headers["Content-Range"]) == (
        206,
        f"bytes {start}-{stop - 1}/{len(VIDEO)}",
    )
    assert response.headers["Content-Length"] == str(stop - start)
    assert response.content == VIDEO[start:stop]
    (record,) = hub.requests()
    assert (record.origin, record.kind, record.method, record.status) == ("cdn", "cdn", "GET", 206)
    assert (record.file, record.range, record.body_bytes_sent) == (VIDEO_PATH, value, stop - start)


@pytest.mark.parametrize(
    "value", [f"bytes={len(VIDEO)}-", f"bytes={len(VIDEO)}-{len(VIDEO) + 5}", "bytes=-0"]
)
def test_range_past_the_end(client, url, value):
    response = get_range(client, url, value)
    assert (response.status_code, response.headers["Content-Range"]) == (
        416,
        f"bytes */{len(VIDEO)}",
    )
    assert "<Code>InvalidRange</Code>" in response.text


@pytest.mark.parametrize(
    "value", ["bytes=0-1,5-6", "items=0-1", "bytes=5-1", "bytes=-", "bytes=x-y"]
)
def test_ranges_that_are_ignored(client, url, value):
    response = get_range(client, url, value)
    assert (response.status_code, len(response.content)) == (200, len(VIDEO))


def test_head_and_whole_file(hub, client, url):
    head = client.head(url)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (
        200,
        str(len(VIDEO)),
        b"",
    )
    assert client.head(url, headers={"Range": "bytes=1-5"}).headers["Content-Length"] == "5"
    assert client.get(url).content == VIDEO
    assert [record.body_bytes_sent for record in hub.requests()] == [0, 0, len(VIDEO)]
    assert client.post(url).status_code == 405


def test_conditions(client, url):
    etag = client.head(url).headers["ETag"]
    assert get_range(client, url, "bytes=0-9", **{"If-Match": f'"x", {etag}'}).status_code == 206
    failed = get_range(client, url, "bytes=0-9", **{"If-Match": '"x"'})
    assert (failed.status_code, failed.headers["ETag"]) == (412, etag)
    assert get_range(client, url, "bytes=0-9", **{"If-Range": etag}).status_code == 206
    assert get_range(client, url, "bytes=0-9", **{"If-Range": '"x"'}).status_code == 200
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_signature_and_expiry(hub, client, url):
    def refusal(changed):
        response = client.get(changed, headers={"Range": "bytes=0-9"})
        assert (response.status_code, response.headers["Content-Type"]) == (403, "application/xml")
        return response.text

    fields = httpx2.URL(url).params
    assert 3590 < int(fields["Expires"]) - time.time() <= 3600
    assert fields["X-Amz-Expires"] == "3600"
    assert "SignatureError" in refusal(url[:-1] + ("0" if url[-1] != "0" else "1"))
    assert "SignatureError" in refusal(url.replace("Expires=", "Expires=9", 1))
    assert "SignatureError" in refusal(url.partition("?")[0])
    assert get_range(client, url, "bytes=0-9").status_code == 206
    hub.expire_urls()
    assert "Request has expired" in refusal(url)
    assert get_range(client, sign(hub, client, VIDEO_PATH), "bytes=0-9").status_code == 206
    hub.set_url_lifetime(0)
    assert "Request has expired" in refusal(sign(hub, client, VIDEO_PATH))


def test_files_that_change_after_they_were_listed_are_not_served(hub, client, tmp_path):
    write_files(tmp_path, {"a.parquet": b"one"})
    hub.add_repository("robots/changed", tmp_path)
    url = client.head(f"{hub.endpoint}/datasets/robots/changed/resolve/main/a.parquet").headers[
        "Location"
    ]
    assert client.get(url).content == b"one"
    (tmp_path / "a.parquet").write_bytes(b"other")
    response = client.get(url)
    assert response.status_code == 500
    assert (
        "has changed since its commit was added to the loopback Hub; add a commit of another "
        "directory" in response.text
    )


def test_log(hub, client, url):
    before = time.time()
    get_range(client, url, "bytes=0-9")
    get_range(client, url, "bytes=10-19")
    client.get(
        f"{hub.endpoint}/api/datasets/{REPOSITORY}", headers={"Authorization": f"Bearer {SECRET}"}
    )
    client.get(f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/meta%2Finfo.json")
    first, second, info, small = hub.requests()
    assert before <= first.time_seconds <= second.time_seconds <= time.time()
    assert first.connection_id == second.connection_id
    assert info.connection_id != first.connection_id
    assert first.path == httpx2.URL(url).path
    assert "Signature" not in repr(hub.requests())
    assert [record.had_authorization for record in hub.requests()] == [False, False, True, False]
    assert (info.origin, info.kind, info.path, info.file, info.range) == (
        "hub",
        "api",
        f"/api/datasets/{REPOSITORY}",
        None,
        None,
    )
    assert (small.kind, small.path, small.file) == (
        "resolver",
        f"/datasets/{REPOSITORY}/resolve/main/meta/info.json",
        "meta/info.json",
    )
    assert not any(record.faulted for record in hub.requests())
    hub.clear_requests()
    assert hub.requests() == []


def test_latency_and_bandwidth(hub, client, url):
    def seconds(*args):
        started = time.monotonic()
        assert get_range(*args).status_code == 206
        return time.monotonic() - started

    get_range(client, url, "bytes=0-9")
    hub.set_latency(0.1)
    assert seconds(client, url, "bytes=0-9") >= 0.1
    hub.set_latency(0)
    hub.set_bandwidth(100_000)
    assert seconds(client, url, "bytes=0-19999") >= 0.2
    hub.set_bandwidth(None)
    assert seconds(client, url, "bytes=0-999999") < 9  # of 10 with the limit


def test_latency_does_not_add_up_over_connections(hub, url):
    hub.set_latency(0.5)
    with contextlib.ExitStack() as clients:
        # Made before: to make one takes as long as a request on a busy machine.
        each = [clients.enter_context(httpx2.Client()) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            started = time.monotonic()
            answers = list(threads.map(lambda client: get_range(client, url, "bytes=0-9"), each))
            seconds = time.monotonic() - started
    assert [answer.status_code for answer in answers] == [206] * 8
    assert 0.5 <= seconds < 3.5  # of 4 if it added up


# Faults


def test_fault_status(hub, client, url):
    hub.add_fault(
        Fault(origin="cdn", status=503, headers={"Retry-After": "7"}, body=b"slow down\xff")
    )
    response = get_range(client, url, "bytes=0-9")
    assert (response.status_code, response.headers["Retry-After"], response.content) == (
        503,
        "7",
        b"slow down\xff",
    )
    assert get_range(client, url, "bytes=0-9").content == VIDEO[:10]
    assert [(record.status, record.faulted, record.file) for record in hub.requests()] == [
        (503, True, VIDEO_PATH),
        (206, False, VIDEO_PATH),
    ]


def test_fault_headers_only(hub, client):
    hub.add_fault(Fault(origin="hub", headers={"ratelimit": '"api";r=3;t=9'}))
    response = client.get(f"{hub.endpoint}/api/datasets/{REPOSITORY}")
    assert (response.status_code, response.json()["id"]) == (200, REPOSITORY)
    assert rate_limit(response.headers).remaining == 3


def test_fault_latency_and_bandwidth(hub, client, url):
    get_range(client, url, "bytes=0-0")
    for fault in (Fault(latency_seconds=0.1), Fault(bandwidth_bytes_per_second=100_000)):
        hub.add_fault(fault)
        started = time.monotonic()
        assert get_range(client, url, "bytes=0-9999").content == VIDEO[:10000]
        assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("at", [0, 10, 600_000])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("truncate_at", httpx2.RemoteProtocolError),
        ("reset_at", httpx2.ReadError),
        ("stall_at", httpx2.ReadTimeout),
    ],
)
def test_fault_in_the_body(hub, client, url, name, error, at):
    hub.add_fault(Fault(origin="cdn", **{name: at}))
    received = b""

    def receive():
        nonlocal received
        with client.stream(
            "GET", url, headers={"Range": "bytes=5-999999"}, timeout=0.5
        ) as response:
            assert (response.status_code, response.headers["Content-Length"]) == (206, "999995")
            for piece in response.iter_raw():
                received += piece

    with pytest.raises(error):
        receive()
    assert received == VIDEO[5 : 5 + at]
    (record,) = hub.requests()
    assert (record.status, record.body_bytes_sent, record.faulted) == (206, at, True)
    assert get_range(client, url, "bytes=5-9").content == VIDEO[5:10]


@pytest.mark.parametrize("name", ["truncate_at", "reset_at"])
def test_fault_in_the_body_waits_for_a_slow_reader(hub, url, name):
    hub.add_fault(Fault(truncate_at=900_000) if name == "truncate_at" else Fault(reset_at=900_000))
    address = httpx2.URL(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        connection.connect((address.host, address.port))
        connection.sendall(b"GET " + address.raw_path + b" HTTP/1.1\r\n\r\n")
        time.sleep(0.1)
        received = b""
        with (
            contextlib.suppress(ConnectionResetError)
            if name == "reset_at"
            else contextlib.nullcontext()
        ):
            while piece := connection.recv(65536):
                received += piece
    assert received.partition(b"\r\n\r\n")[2] == VIDEO[:900_000]


def test_fault_close_before(hub, client, url):
    hub.add_fault(Fault(close_before=True))
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending a response"):
        get_range(client, url, "bytes=0-9")
    (record,) = hub.requests()
    assert (record.status, record.body_bytes_sent, record.faulted) == (0, 0, True)


def test_fault_reset_before(hub, client, url):
    hub.add_fault(Fault(reset_before=True))
    with pytest.raises(httpx2.ReadError, match="reset"):
        get_range(client, url, "bytes=0-9")
    (record,) = hub.requests()
    assert (record.status, record.body_bytes_sent, record.faulted) == (0, 0, True)


def test_fault_size_change(hub, client, commit, url):
    resolver = f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/{VIDEO_PATH}"
    small = f"{hub.endpoint}/api/resolve-cache/datasets/{REPOSITORY}/{commit}/meta/info.json"
    hub.add_fault(Fault(size_change=-2, times=3))
    assert client.head(resolver).headers["X-Linked-Size"] == str(len(VIDEO) - 2)
    assert client.head(small).headers["Content-Length"] == str(len(INFO) - 2)
    response = get_range(client, url, "bytes=0-9")
    assert (response.headers["Content-Range"], response.content) == (
        f"bytes 0-9/{len(VIDEO) - 2}",
        VIDEO[:10],
    )
    assert client.head(resolver).headers["X-Linked-Size"] == str(len(VIDEO))


def test_probability_does_not_depend_on_the_order_of_requests(hub, client, url):
    def drawn(seed, numbers):
        hub.clear_faults()
        hub.add_fault(Fault(status=503, times=None, probability=0.3, seed=seed))
        return {
            number
            for number in numbers
            if get_range(client, url, f"bytes={number}-{number}").status_code == 503
        }

    first = drawn(0, range(100))
    assert 15 < len(first) < 45
    assert drawn(0, reversed(range(100))) == first
    assert drawn(1, range(100)) != first
    hub.clear_faults()
    hub.add_fault(Fault(status=503, times=None, probability=0.3))
    again = [get_range(client, url, "bytes=7-7").status_code for _ in range(100)]
    assert 15 < again.count(503) < 45


def test_mixed_faults(hub, client, url):
    for fault in mixed_faults(1.0, seed=3):
        assert fault.times is None
        if (
            not fault.latency_seconds
            and fault.stall_at is None
            and fault.bandwidth_bytes_per_second is None
        ):
            hub.add_fault(fault)
    for number in range(60):
        with contextlib.suppress(httpx2.HTTPError):
            get_range(client, url, f"bytes={number}-2000")
    records = hub.requests()
    assert 30 < sum(record.faulted for record in records) < 60
    assert {record.status for record in records} >= {0, 200, 206, 302, 403, 429, 500, 503}


def test_fault_ignore_range(hub, client, url):
    hub.add_fault(Fault(ignore_range=True))
    response = get_range(client, url, "bytes=0-9")
    assert (response.status_code, "Content-Range" in response.headers, response.content) == (
        200,
        False,
        VIDEO,
    )


@pytest.mark.parametrize(("missing", "length"), [(1, 9), (4, 6), (99, 1)])
def test_fault_short_206(hub, client, url, missing, length):
    hub.add_fault(Fault(short_206=missing))
    response = get_range(client, url, "bytes=100-109")
    assert (response.status_code, response.content) == (206, VIDEO[100 : 100 + length])
    assert response.headers["Content-Length"] == str(length)
    assert response.headers["Content-Range"] == f"bytes 100-{99 + length}/{len(VIDEO)}"


def test_fault_wrong_content_range(hub, client, url):
    hub.add_fault(Fault(wrong_content_range=True))
    response = get_range(client, url, "bytes=100-109")
    assert (response.content, response.headers["Content-Range"]) == (
        VIDEO[100:110],
        f"bytes 101-110/{len(VIDEO)}",
    )


@pytest.mark.parametrize(("at", "changed"), [(0, 0), (700_000, 700_000), (10**9, 799_999)])
def test_fault_corrupt_at(hub, client, url, at, changed):
    hub.add_fault(Fault(corrupt_at=at))
    received = get_range(client, url, "bytes=0-799999").content
    assert len(received) == 800_000
    assert [i for i in range(800_000) if received[i] != VIDEO[i]] == [changed]


def test_fault_in_a_git_file(hub, client, commit):
    hub.add_fault(Fault(path_regex="info[.]json", corrupt_at=0))
    response = client.get(
        f"{hub.endpoint}/api/resolve-cache/datasets/{REPOSITORY}/{commit}/meta/info.json"
    )
    assert response.content == bytes([INFO[0] ^ 0xFF]) + INFO[1:]


@pytest.mark.parametrize(
    ("matcher", "hit"),
    [
        ({}, ["resolve", "head", "a", "b"]),
        ({"origin": "hub"}, ["resolve"]),
        ({"origin": "cdn"}, ["head", "a", "b"]),
        ({"method": "GET"}, ["a", "b"]),
        ({"path_regex": r"\.mp4$"}, ["resolve", "head", "a", "b"]),
        ({"path_regex": "^/xet-bridge"}, ["head", "a", "b"]),
        ({"path_regex": r"\.parquet$"}, []),
        ({"range_regex": ""}, ["a", "b"]),
        ({"range_regex": "=5-"}, ["b"]),
        ({"skip": 1}, ["head", "a", "b"]),
        ({"skip": 1, "times": 2}, ["head", "a"]),
        ({"times": 0}, []),
    ],
)
def test_which_requests_a_fault_takes(hub, client, url, matcher, hit):
    hub.add_fault(Fault(status=503, **({"times": None} | matcher)))
    statuses = {
        "resolve": client.head(
            f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/{VIDEO_PATH}"
        ).status_code,
        "head": client.head(url).status_code,
        "a": get_range(client, url, "bytes=0-9").status_code,
        "b": get_range(client, url, "bytes=5-9").status_code,
    }
    assert [name for name, status in statuses.items() if status == 503] == hit


def test_faults_are_tried_in_order_and_can_be_cleared(hub, client, url):
    for fault in (Fault(status=500, skip=2), Fault(status=502), Fault(status=504, times=None)):
        hub.add_fault(fault)
    assert [get_range(client, url, "bytes=0-9").status_code for _ in range(4)] == [
        502,
        504,
        500,
        504,
    ]
    hub.clear_faults()
    assert get_range(client, url, "bytes=0-9").status_code == 206


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "without an action"),
        ({"status": 503, "origin": "moon"}, "expected 'hub', 'cdn', 's3', 'gcs' or None"),
        ({"status": 503, "path_regex": "("}, "no regular expression"),
        ({"status": 503, "skip": -1}, "skip of a fault is -1"),
        ({"truncate_at": 1, "reset_at": 1}, "truncate_at, reset_at"),
        ({"stall_at": 0, "close_before": True}, "stall_at, close_before"),
        ({"body": b"x", "latency_seconds": 1}, "no status"),
        ({"bandwidth_bytes_per_second": 0}, "more than 0"),
        ({"status": 503, "probability": 1.5}, "probability of a fault is 1.5, expected 0 to 1"),
        ({"close_before": True, "reset_before": True}, "close_before, reset_before"),
    ],
)
def test_faults_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fault(**arguments)


# The process


def test_wrong_arguments(hub, directory, tmp_path):
    cases = [
        (lambda: hub.add_repository(REPOSITORY, directory), "exists already"),
        (lambda: hub.add_repository("arm", directory), "expected 'org/name'"),
        (lambda: hub.add_repository("robots/x", tmp_path / "none"), "is no directory"),
        (
            lambda: hub.add_repository("robots/x", directory, tags="v3.0"),
            "expected a list of names",
        ),
        (lambda: hub.add_commit("robots/none", directory), "there is no repository robots/none"),
        (lambda: hub.set_latency(-1), "expected 0 or more"),
        (lambda: hub.set_bandwidth(0), "expected more than 0"),
        (lambda: hub.set_rate_limit("cdn", requests=1), "'api' or 'resolvers'"),
        (lambda: LoopbackHub(page_entries=0), "expected 1 or more"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert hub.requests() == []


def test_calls_from_several_threads(hub, client, url):
    get_range(client, url, "bytes=0-9")
    results: list[int] = []

    def ask():
        results.extend(len(hub.requests()) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 200


def test_close_ends_the_process_with_requests_under_way(directory):
    hub = LoopbackHub()
    hub.add_repository(REPOSITORY, directory)
    hub.add_fault(Fault(stall_at=0))
    host, port = hub.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(10) == b"HTTP/1.1 4"
        started = time.monotonic()
        hub.close()
        assert time.monotonic() - started < 4
    assert not is_running(hub.process_id)
    hub.close()
    with pytest.raises(RuntimeError, match="is closed"):
        hub.requests()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_a_forgotten_hub_is_stopped():
    process_id = LoopbackHub().process_id
    wait_until(lambda: not is_running(process_id))


def test_a_hub_that_died_is_reported():
    with LoopbackHub() as hub:
        os.kill(hub.process_id, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with status -9"):
            hub.requests()


@pytest.mark.parametrize(
    "with_fork", [False, True], ids=["alone", "with a forked child that keeps the pipe open"]
)
def test_the_process_ends_with_its_parent(with_fork):
    script = f"""
import os, time
import lerobot_grain
from lerobot_grain.testing._hub.loopback import LoopbackHub
hub = LoopbackHub()
child = 0
if {with_fork}:
    child = os.fork()
    if child == 0:
        time.sleep(60)
print(hub.process_id, child, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(lerobot_grain.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        server, child = map(int, parent.stdout.readline().split())
        assert is_running(server)
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_running(server))
        if child:
            os.kill(child, signal.SIGKILL)


def test_ctrl_c_does_not_reach_the_process(hub, client, url):
    os.kill(hub.process_id, signal.SIGINT)
    assert get_range(client, url, "bytes=0-9").status_code == 206


def test_the_process_imports_no_package_but_the_standard_library(hub):
    maps = Path(f"/proc/{hub.process_id}/maps").read_text()
    assert "site-packages" not in maps


def test_the_process_is_not_disturbed_by_modules_of_the_user(tmp_path, monkeypatch):
    write_files(
        tmp_path, {"json.py": b"raise ImportError", "sitecustomize.py": b"raise ImportError"}
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with LoopbackHub() as hub:
        assert hub.requests() == []
