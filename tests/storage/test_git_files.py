"""Directories that were cloned without Git LFS, and files that are empty: told by their contents,
whatever the file.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain._storage.git_files import LfsPointer, lfs_pointer
from lerobot_grain.testing import Camera, LoopbackHub, write_dataset

TOP = "observation.images.top"
V3 = {
    "info": "meta/info.json",
    "episodes": "meta/episodes/chunk-000/file-000.parquet",
    "tasks": "meta/tasks.parquet",
    "data": "data/chunk-000/file-000.parquet",
    "video": f"videos/{TOP}/chunk-000/file-000.mp4",
}
V2 = {
    "info": "meta/info.json",
    "episodes": "meta/episodes.jsonl",
    "tasks": "meta/tasks.jsonl",
    "data": "data/chunk-000/episode_000000.parquet",
    "video": f"videos/chunk-000/{TOP}/episode_000000.mp4",
}
FILES = [
    *(pytest.param("v3.0", path, id=f"v3-{name}") for name, path in V3.items()),
    *(pytest.param("v2.1", path, id=f"v2-{name}") for name, path in V2.items()),
]
SPEC = "version https://git-lfs.github.com/spec/v1"
POINTER = f"{SPEC}\noid sha256:{'ab' * 32}\nsize 123456\n"
POINTERS = {
    "usual": (POINTER, "a Git LFS pointer of 131 bytes, which stands for a file of 123456"),
    "old": (
        POINTER.replace("git-lfs.github.com", "hawser.github.com"),
        "a Git LFS pointer of 130 bytes, which stands for a file of 123456",
    ),
    "with extensions": (
        POINTER.replace("oid", f"ext-0-foo sha256:{'cd' * 32}\noid"),
        "a Git LFS pointer of 213 bytes, which stands for a file of 123456",
    ),
    "with other ends of lines": (
        POINTER.replace("\n", "\r\n"),
        "a Git LFS pointer of 134 bytes, which stands for a file of 123456",
    ),
    "cut off": (SPEC, "a Git LFS pointer of 42 bytes"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lfs")
    camera = Camera(key=TOP, height=32, width=80, gop=4, codec="h264")
    return {
        version: write_dataset(
            root / version, episode_lengths=[6, 5], fps=10, cameras=(camera,), version=version
        ).directory
        for version in ("v3.0", "v2.1")
    }


@pytest.fixture
def copies(written: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {
        version: Path(shutil.copytree(directory, tmp_path / version))
        for version, directory in written.items()
    }


def read(repository: Any, **arguments: Any) -> int:
    return sum(
        1 for _ in lg.LeRobotIterDataset(repository, shuffle=None, num_epochs=1, **arguments)
    )


def refusal(
    repository: Any, kind: type[lg.LeRobotGrainError] = lg.DatasetFormatError, **arguments: Any
) -> str:
    with pytest.raises(kind) as caught:
        read(repository, **arguments)
    assert caught.value.__cause__ is None
    # If only one feature needs the table, the message ends with the rest that can be read.
    return str(caught.value).partition(". To read all but ")[0]


@pytest.mark.parametrize(("version", "path"), FILES)
def test_a_pointer_in_a_directory(copies, version, path):
    directory = copies[version]
    (directory / path).write_text(POINTER)
    assert refusal(directory) == (
        f"{directory}, {path}: it is a Git LFS pointer of 131 bytes, which stands for a file of "
        f"123456: the directory was cloned without Git LFS; run `git lfs pull` in {directory}"
    )


@pytest.mark.parametrize(("pointer", "text"), POINTERS.values(), ids=POINTERS)
@pytest.mark.parametrize("path", [V3["tasks"], V3["video"]], ids=["tasks", "video"])
def test_pointers_of_all_kinds(copies, path, pointer, text):
    (copies["v3.0"] / path).write_bytes(pointer.encode())
    assert f"{path}: it is {text}: the directory was cloned without Git LFS" in refusal(
        copies["v3.0"]
    )


def test_what_is_no_pointer():
    for contents in (
        b"",
        b" " + POINTER.encode(),
        POINTER.encode().ljust(1025),
        b"version https://example.com/spec/v1\n",
        b"version 1",
    ):
        assert lfs_pointer(contents) is None
    assert lfs_pointer(POINTER.encode().ljust(1024)) == LfsPointer(1024, 123456)
    assert str(LfsPointer(7, None)) == "a Git LFS pointer of 7 bytes"


@pytest.mark.parametrize(
    ("version", "path"), [("v3.0", "meta/stats.json"), ("v2.1", "meta/episodes_stats.jsonl")]
)
def test_a_pointer_in_place_of_statistics(copies, version, path):
    """Opening notes it, where it reads them; rows are read nevertheless."""
    directory = copies[version]
    (directory / path).write_text(POINTER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lg.LeRobotGrainWarning)
        repository = lg.open_repository(directory)
    assert [
        f"{path}: it is a Git LFS pointer of 131 bytes" in note for note in repository.notes
    ] == [True] * (version == "v3.0")
    assert read(repository) == 11
    with pytest.raises(
        lg.DatasetFormatError,
        match=re.escape(f"{directory}, {path}: it is a Git LFS pointer of 131 bytes"),
    ):
        _ = repository.stats


def test_a_pointer_that_is_not_needed_does_no_harm(copies):
    directory = copies["v3.0"]
    for path in ("meta/notes.json", "README.md"):
        (directory / path).write_text(POINTER)
    assert read(directory) == 11


def test_check_names_every_pointer(copies):
    directory = copies["v2.1"]
    data, video = (
        V2[name].replace("episode_000000", "episode_000001") for name in ("data", "video")
    )
    for path in (data, video):
        (directory / path).write_text(POINTER)
    report = lg.check(lg.open_repository(directory))
    found = {finding.path: finding for finding in report.findings if finding.is_problem}
    assert found.keys() == {data, video}
    for path, finding in found.items():
        assert finding.kind == "refused_file"
        assert finding.text.startswith(
            f"{path}: it is a Git LFS pointer of 131 bytes, which stands for a file of 123456: "
        )
        assert finding.episodes == (1,)


@pytest.mark.parametrize(
    ("version", "path"),
    [file for file in FILES if file.id != "v2-episodes" and file.id != "v2-tasks"],
)
def test_an_empty_file_in_a_directory(copies, version, path):
    directory = copies[version]
    (directory / path).write_bytes(b"")
    text = refusal(directory)
    assert text.startswith(f"{directory}, {path}: ")
    assert text.endswith("; the file is empty (0 bytes): what wrote or copied it was interrupted")
    assert text.count("is empty") == 1


# --- on the Hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "path"), FILES)
def test_a_repository_that_was_uploaded_from_a_clone_without_git_lfs(
    hub: LoopbackHub, copies, tmp_path, version, path
):
    """There the pointer is the file, with its size and hash; it is kept nowhere."""
    (copies[version] / path).write_text(POINTER)
    name = f"lfs/{version}-{path.replace('/', '-')}"
    commit = hub.add_repository(name, copies[version], tags=[version]).commit
    for _ in range(2):
        assert refusal(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache") == (
            f"{name}@{commit[:12]}, {path}: the server sent a Git LFS pointer of 131 bytes, which "
            f"stands for a file of 123456, in place of the file: {hub.endpoint} is a mirror "
            "without Git LFS, or the dataset was uploaded from a clone without it; read it from "
            "the Hub itself, or run `git lfs pull` in that clone and upload it again"
        )
    kept = [
        file
        for folder in ("cache", "kept")
        for file in (tmp_path / folder).rglob("*")
        if file.is_file()
    ]
    assert kept or path == "meta/info.json"
    assert all(POINTER.encode() not in file.read_bytes() for file in kept)


@pytest.mark.parametrize("path", [V3["data"], V3["video"], V3["tasks"]])
def test_an_empty_file_on_the_hub(hub: LoopbackHub, copies, tmp_path, path):
    (copies["v3.0"] / path).write_bytes(b"")
    name = f"lfs/empty-{path.replace('/', '-')}"
    commit = hub.add_repository(name, copies["v3.0"], tags=["v3.0"]).commit
    text = refusal(name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert text.startswith(f"{name}@{commit[:12]}, {path}: ")
    assert text.endswith("; the file is empty (0 bytes): what wrote or copied it was interrupted")


@pytest.mark.parametrize("path", [V3["data"], V3["video"]])
def test_a_pointer_in_a_bucket(hub: LoopbackHub, copies, tmp_path, path):
    (copies["v3.0"] / path).write_text(POINTER)
    name = f"lfs/bucket-{path.replace('/', '-')}"
    hub.add_bucket(name, copies["v3.0"])
    text = refusal(f"hf://buckets/{name}", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert text.startswith(
        f"hf://buckets/{name}, {path}: the server sent a Git LFS pointer of 131 bytes"
    )


@pytest.mark.parametrize("path", [V3["info"], V3["tasks"], V3["data"], V3["video"]])
def test_a_pointer_in_the_cache_of_huggingface_hub(
    hub: LoopbackHub, copies, tmp_path, monkeypatch, path
):
    """Offline, where no list of the commit was kept, only its contents tell it."""
    name = f"lfs/cached-{path.replace('/', '-')}"
    commit = hub.add_repository(name, copies["v3.0"], tags=["v3.0"]).commit
    cache = tmp_path / "cache"
    for file in huggingface_hub.HfApi(endpoint=hub.endpoint).list_repo_files(
        name, repo_type="dataset"
    ):
        huggingface_hub.hf_hub_download(
            name, file, repo_type="dataset", revision="v3.0", endpoint=hub.endpoint, cache_dir=cache
        )
    place = (cache / f"datasets--{name.replace('/', '--')}" / "snapshots" / commit / path).resolve()
    place.write_text(POINTER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refusal(name, endpoint=hub.endpoint, cache_dir=cache) == (
        f"{name}@{commit[:12]}, {path}: its copy {place} is a Git LFS pointer of 131 bytes, which "
        "stands for a file of 123456; delete that, and it will be read from the Hub again"
    )
