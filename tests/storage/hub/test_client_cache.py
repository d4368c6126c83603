"""Datasets in the cache of huggingface_hub: complete, incomplete and damaged snapshots, with the
network and without it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import HubRepository, LoopbackHub, RequestRecord
from tests.support.installed import keeps_lists_of_files
from tests.support.streams import DATA_AND_VIDEO, digest, streams_in_process

VIDEO = "videos/top/chunk-000/file-001.mp4"
EPISODES = "meta/episodes/chunk-000/file-001.parquet"


@pytest.fixture
def served(hub: LoopbackHub, small_dataset: Path, request: pytest.FixtureRequest) -> HubRepository:
    """The dataset on the Hub, under a name of the test's own."""
    name = "offline/" + "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")
    return hub.add_repository(name, small_dataset, tags=["v3.0"])


@pytest.fixture
def requests(hub: LoopbackHub) -> Callable[[], list[RequestRecord]]:
    """Returns the requests since the last call."""

    def since_the_last_call() -> list[RequestRecord]:
        found = hub.requests()
        hub.clear_requests()
        return found

    return since_the_last_call


def download(
    hub: LoopbackHub,
    served: HubRepository,
    cache: Path,
    *,
    without: tuple[str, ...] = (),
    listed: bool = True,
) -> Path:
    """Fills the cache, with a list of the whole commit or, as downloading file by file does,
    without; returns the snapshot.
    """
    where: dict[str, Any] = {
        "repo_type": "dataset",
        "revision": "v3.0",
        "endpoint": hub.endpoint,
        "cache_dir": cache,
    }
    if listed:
        return Path(
            huggingface_hub.snapshot_download(
                served.repository_id, ignore_patterns=list(without), **where
            )
        )
    for file in huggingface_hub.HfApi(endpoint=hub.endpoint).list_repo_files(
        served.repository_id, repo_type="dataset"
    ):
        if file not in without:
            huggingface_hub.hf_hub_download(served.repository_id, file, **where)
    return (
        cache / f"datasets--{served.repository_id.replace('/', '--')}" / "snapshots" / served.commit
    )


def shorten(path: Path) -> int:
    size = path.stat().st_size
    os.truncate(path, size - 1)
    return size


@keeps_lists_of_files
def test_a_complete_snapshot_needs_no_network(served, hub, requests, small_digest, tmp_path):
    download(hub, served, tmp_path)
    requests()
    where = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    assert digest(served.repository_id, revision=served.commit, **where) == small_digest
    assert requests() == []
    # Only the Hub knows which commit a name stands for today.
    assert digest(served.repository_id, revision="v3.0", **where) == small_digest
    assert [r.path.rpartition("/")[2] for r in requests()] == ["v3.0"]
    assert digest(served.repository_id, **where) == small_digest
    assert [r.path.rpartition("/")[2] for r in requests()] == ["refs", "v3.0"]


def test_without_a_listing_each_cached_file_is_asked_for_its_size_once(
    served, hub, requests, small_digest, tmp_path
):
    download(hub, served, tmp_path, listed=False)
    requests()
    assert (
        digest(
            served.repository_id, revision=served.commit, endpoint=hub.endpoint, cache_dir=tmp_path
        )
        == small_digest
    )
    found = requests()
    assert [r.kind for r in found if r.kind != "resolver"] == ["api"]
    assert sorted(r.file for r in found if r.kind == "resolver") == DATA_AND_VIDEO


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_what_a_snapshot_lacks_comes_over_the_network(
    served, hub, requests, small_digest, tmp_path, listed
):
    snapshot = download(hub, served, tmp_path, without=(VIDEO, EPISODES), listed=listed)
    assert not (snapshot / VIDEO).exists()
    requests()
    assert (
        digest(
            served.repository_id, revision=served.commit, endpoint=hub.endpoint, cache_dir=tmp_path
        )
        == small_digest
    )
    assert {r.file for r in requests() if r.kind == "cdn"} == {VIDEO, EPISODES}


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
@pytest.mark.parametrize("path", [VIDEO, EPISODES])
def test_a_damaged_cached_file_is_named(served, hub, tmp_path, path, listed):
    snapshot = download(hub, served, tmp_path, listed=listed)
    size = shorten(snapshot / path)
    with pytest.raises(lg.StorageError) as caught:
        digest(
            served.repository_id, revision=served.commit, endpoint=hub.endpoint, cache_dir=tmp_path
        )
    assert str(caught.value) == (
        f"{served.repository_id}@{served.commit[:12]}: {path}: its copy "
        f"{(snapshot / path).resolve()} has {size - 1} bytes, expected {size}; delete that, and "
        "it will be read from the Hub again"
    )
    (snapshot / path).resolve().unlink()
    digest(served.repository_id, revision=served.commit, endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_cache_that_is_filled_or_emptied_while_it_is_read(
    served, hub, requests, small_dataset, tmp_path
):
    """Rows come from wherever they are at the moment, and are the same."""
    where = {"endpoint": hub.endpoint, "cache_dir": tmp_path, "revision": served.commit}
    off = lg.StorageOptions(disk_cache_bytes=0)
    repository = lg.open_repository(served.repository_id, storage_options=off, **where)
    local = lg.open_repository(small_dataset)
    path = repository.episodes.videos["top"].files.paths[0]
    size = local.storage.size_bytes(path)
    for present, kinds in ((False, {"resolver", "cdn"}), (True, set()), (False, {"cdn"})):
        if present:
            download(hub, served, tmp_path)
        else:
            for snapshots in tmp_path.glob("*/snapshots"):
                shutil.rmtree(snapshots)
        requests()
        assert repository.storage.size_bytes(path) == size
        assert repository.storage.read_tail(path, 100) == local.storage.read_tail(path, 100)
        assert {r.kind for r in requests()} == kinds


@keeps_lists_of_files
def test_reads_of_the_cache_are_counted(served, hub, tmp_path):
    download(hub, served, tmp_path)
    repository = lg.open_repository(
        served.repository_id, endpoint=hub.endpoint, cache_dir=tmp_path, revision=served.commit
    )
    before = repository.storage.statistics
    repository.storage.read_tail(VIDEO, 100)
    assert repository.storage.statistics.requests == before.requests + 1
    assert repository.storage.statistics.bytes_received == before.bytes_received + 100


@keeps_lists_of_files
def test_hub_offline(served, hub, requests, small_digest, tmp_path):
    """With HF_HUB_OFFLINE=1, in a process of its own, for that is read at import: no request, the
    same examples, errors with a remedy.
    """
    complete, partial, damaged, unlisted = (
        tmp_path / name for name in ("complete", "partial", "damaged", "unlisted")
    )
    download(hub, served, complete)
    download(hub, served, partial, without=(VIDEO,))
    size = shorten(download(hub, served, damaged) / VIDEO)
    shorten(download(hub, served, unlisted, listed=False) / VIDEO)
    requests()
    revisions = [None, "v3.0", served.commit, "main"]
    caches = [complete, complete, complete, complete, partial, damaged, unlisted]
    tasks = [
        {
            "repository": served.repository_id,
            "revision": revision,
            "endpoint": hub.endpoint,
            "cache_dir": str(cache),
        }
        for revision, cache in itertools.zip_longest(revisions, caches)
    ]
    *good, main, missing, short, without_size = streams_in_process(
        tasks, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    )
    assert requests() == []
    assert good == [{"digest": small_digest}] * 3
    name = f"{served.repository_id}@{served.commit[:12]}"
    assert main["error"] == "StorageError"
    assert main["text"].startswith(
        f"{served.repository_id}@main: HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset "
        "it, or first run"
    )
    assert missing["error"] == "MissingFileError"
    assert (
        f"{name}: there is no file {VIDEO} in the cache; with HF_HUB_OFFLINE=1 it cannot be fetched"
        in missing["text"]
    )
    assert missing["text"].endswith(
        f"hf download {served.repository_id} --repo-type dataset --revision {served.commit}"
    )
    assert short["error"] == "StorageError"
    assert f"has {size - 1} bytes, expected {size}; delete that" in short["text"]
    # Nothing to compare the size with, but MP4 files tell where they end.
    assert without_size["error"] == "DatasetFormatError"
    assert VIDEO in without_size["text"]
