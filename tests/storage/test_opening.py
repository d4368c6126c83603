"""Several datasets in the folders of one repository: each is read, pinned, cached and told apart
like a dataset of its own.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain._storage.opening import _parse_hub_name, open_storage
from lerobot_grain.testing import Camera, HubRepository, LoopbackHub, WrittenDataset, write_dataset
from tests.support.installed import keeps_lists_of_files
from tests.support.streams import digest, streams_in_process

NAME = "folders/both-arms"
# The same lengths: only contents tell them apart.
FOLDERS = {"left": 1, "right": 2, "sets/2026/gripper": 3}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenDataset]:
    root = tmp_path_factory.mktemp("folders") / "root"
    camera = Camera(key="top", height=32, width=80, gop=4, codec="h264")
    found = {
        folder: write_dataset(
            root / folder, episode_lengths=[8, 5], fps=10, cameras=(camera,), seed=seed
        )
        for folder, seed in FOLDERS.items()
    }
    (root / "notes").mkdir()
    (root / "notes" / "README.md").write_text("nothing to train on")
    return found


@pytest.fixture(scope="module")
def root(written: dict[str, WrittenDataset]) -> Path:
    return written["left"].directory.parent


@pytest.fixture(scope="module")
def expected(written: dict[str, WrittenDataset]) -> dict[str, str]:
    found = {folder: digest(of_folder.directory) for folder, of_folder in written.items()}
    assert len(set(found.values())) == 3
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="module")
def served(server: LoopbackHub, root: Path) -> HubRepository:
    return server.add_repository(
        NAME, root, branches=["main", "feature/grip", "refs/pr/7"], tags=["v3.0"]
    )


@pytest.fixture
def hub(server: LoopbackHub) -> LoopbackHub:
    server.clear_requests()
    return server


def opened(hub: LoopbackHub, name: str, cache: Path, **changes: Any) -> lg.Repository:
    return lg.open_repository(
        name, **({"endpoint": hub.endpoint, "token": False, "cache_dir": cache} | changes)
    )


def kinds_of_requests(hub: LoopbackHub) -> list[str]:
    return [record.path.split("/")[5] for record in hub.requests() if record.kind == "api"]


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_dataset(hub, served, expected, tmp_path, folder):
    repository = opened(hub, f"{NAME}/{folder}", tmp_path)
    assert kinds_of_requests(hub) == ["refs", "revision", "tree"]
    assert repository.description == f"{NAME}/{folder}@{served.commit[:12]}"
    assert (repository.commit, repository.folder) == (served.commit, folder)
    assert repository.notes == ()
    assert digest(repository) == expected[folder]
    assert digest(pickle.loads(pickle.dumps(repository))) == expected[folder]
    assert {record.file.startswith(f"{folder}/") for record in hub.requests() if record.file} == {
        True
    }
    # huggingface_hub finds it there.
    where = {"cache_dir": tmp_path, "revision": served.commit, "repo_type": "dataset"}
    path = huggingface_hub.try_to_load_from_cache(NAME, f"{folder}/meta/info.json", **where)
    assert path == str(
        tmp_path
        / "datasets--folders--both-arms"
        / "snapshots"
        / served.commit
        / folder
        / "meta"
        / "info.json"
    )


@pytest.mark.parametrize(
    ("name", "revision", "folder"),
    [
        ("left", "v3.0", "left"),
        ("left/", None, "left"),
        ("@v3.0/left", None, "left"),
        ("@v3.0/sets/2026/gripper/", None, "sets/2026/gripper"),
        ("@main/right", "main", "right"),
        ("@COMMIT/right", None, "right"),
        ("@refs/pr/7/left", None, "left"),
        ("@feature/grip/left", None, "left"),
        ("@feature%2Fgrip/left", None, "left"),
        ("@feature/grip/sets/2026/gripper", "feature/grip", "sets/2026/gripper"),
    ],
)
def test_names_of_folders_and_revisions(hub, served, expected, tmp_path, name, revision, folder):
    uri = f"hf://datasets/{NAME}{name}" if name.startswith("@") else f"hf://datasets/{NAME}/{name}"
    repository = opened(hub, uri.replace("COMMIT", served.commit), tmp_path, revision=revision)
    assert repository.description == f"{NAME}/{folder}@{served.commit[:12]}"
    assert digest(repository) == expected[folder]


@pytest.mark.parametrize(
    ("name", "revision", "found"),
    [
        ("org/name", None, {None: ""}),
        ("org/name", "v3.0", {"v3.0": ""}),
        ("org/name/a/b", "x/y", {"x/y": "a/b"}),
        ("hf://datasets/org/name", None, {None: ""}),
        ("hf://datasets/org/name/", None, {None: ""}),
        ("hf://datasets/org/name/a", "main", {"main": "a"}),
        ("hf://datasets/org/name@v3.0", None, {"v3.0": ""}),
        ("hf://datasets/org/name@v3.0", "v3.0", {"v3.0": ""}),
        ("hf://datasets/org/name@a/b/c", None, {"a": "b/c", "a/b": "c", "a/b/c": ""}),
        ("hf://datasets/org/name@a/b/c", "a/b", {"a/b": "c"}),
        ("hf://datasets/org/name@refs/pr/1/b", None, {"refs/pr/1": "b", "refs/pr/1/b": ""}),
        (
            "hf://datasets/org/name@refs/convert/parquet/b",
            None,
            {"refs/convert/parquet": "b", "refs/convert/parquet/b": ""},
        ),
        ("hf://datasets/org/name@a%2Fb/c", None, {"a/b": "c", "a/b/c": ""}),
    ],
)
def test_what_a_name_may_mean(name, revision, found):
    parsed = _parse_hub_name(name, revision)
    assert parsed.repo_id == "org/name"
    assert list(parsed.folders.items()) == list(found.items())


def test_branches_with_slashes_are_still_revisions(hub, written, tmp_path):
    name = "folders/plain"
    hub.add_repository(name, written["left"].directory, branches=["main", "feature/grip"])
    found = [
        opened(hub, f"hf://datasets/{name}{at}", tmp_path).description
        for at in ("", "@main", "@feature/grip")
    ]
    assert len(set(found)) == 1


def test_a_directory_comes_first(hub, written, expected, tmp_path, monkeypatch):
    shutil.copytree(written["right"].directory, tmp_path / NAME / "left")
    monkeypatch.chdir(tmp_path)
    assert digest(f"{NAME}/left") == expected["right"]
    assert hub.requests() == []


def test_each_has_its_own_pieces_on_disk(hub, served, expected, tmp_path):
    """The data files have equal paths and sizes, and the commit is the same."""
    for _ in range(2):
        for folder in FOLDERS:
            assert (
                digest(opened(hub, f"{NAME}/{folder}", tmp_path, revision=served.commit))
                == expected[folder]
            )


def test_a_state_of_one_folder_is_not_that_of_another(hub, served, tmp_path):
    shuffle = lg.Shuffle(seed=1, num_parts=2, buffer_size=8)
    left, right = (
        lg.LeRobotIterDataset(opened(hub, f"{NAME}/{folder}", tmp_path), shuffle=shuffle)
        for folder in ("left", "right")
    )
    iterator, other = iter(left), iter(right)
    next(iterator)
    state = iterator.get_state()
    assert state["commit"] == f"{served.commit}/left"
    with pytest.raises(
        lg.StateMismatchError,
        match=rf"taken with commit = '{served.commit}/left', this stream has "
        rf"'{served.commit}/right'",
    ):
        other.set_state(state)
    again = iter(left)
    again.set_state(state)
    assert next(again)["index"] == next(iterator)["index"]
    for each in (iterator, other, again):
        each.close()


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param(True, marks=keeps_lists_of_files, id="listed"),
        pytest.param(False, id="not listed"),
    ],
)
def test_the_cache_of_huggingface_hub(hub, served, expected, tmp_path, listed):
    where: dict[str, Any] = {
        "repo_type": "dataset",
        "revision": "v3.0",
        "endpoint": hub.endpoint,
        "cache_dir": tmp_path,
    }
    if listed:
        huggingface_hub.snapshot_download(NAME, allow_patterns=["right/*", "sets/*"], **where)
    else:
        for file in huggingface_hub.HfApi(endpoint=hub.endpoint).list_repo_files(
            NAME, repo_type="dataset"
        ):
            if not file.startswith("left/"):
                huggingface_hub.hf_hub_download(NAME, file, **where)
    for folder in ("right", "sets/2026/gripper"):
        hub.clear_requests()
        assert (
            digest(opened(hub, f"{NAME}/{folder}", tmp_path, revision=served.commit))
            == expected[folder]
        )
        assert {record.kind for record in hub.requests()} == (
            set() if listed else {"api", "resolver"}
        )
    snapshot = tmp_path / "datasets--folders--both-arms" / "snapshots" / served.commit
    video = snapshot / "right" / "videos" / "top" / "chunk-000" / "file-000.mp4"
    place = video.resolve()
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(
        lg.StorageError,
        match=rf"^{NAME}/right@\w{{12}}: videos/top/chunk-000/file-000.mp4: its copy {place} has "
        rf"\d+ bytes",
    ):
        digest(opened(hub, f"{NAME}/right", tmp_path, revision=served.commit))


@keeps_lists_of_files
def test_offline(hub, served, expected, tmp_path):
    huggingface_hub.snapshot_download(
        NAME,
        repo_type="dataset",
        revision="v3.0",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
        ignore_patterns=["left/*", "right/videos/*"],
    )
    gripper = "sets/2026/gripper"
    names = [
        f"{NAME}/{gripper}",
        f"hf://datasets/{NAME}@v3.0/{gripper}",
        *(f"{NAME}/{name}" for name in ("right", "left", "middle")),
        NAME,
    ]
    hub.clear_requests()
    tasks = [
        {"repository": name, "endpoint": hub.endpoint, "cache_dir": str(tmp_path / "cache")}
        for name in names
    ]
    *good, without_video, missing, unknown, whole = streams_in_process(
        tasks, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    )
    assert hub.requests() == []
    assert good == [{"digest": expected[gripper]}] * 2
    at = f"@{served.commit[:12]}"
    command = f"hf download {NAME} --repo-type dataset --revision {served.commit} --include"
    assert without_video["error"] == "MissingFileError"
    assert (
        f"{NAME}/right{at}: there is no file videos/top/chunk-000/file-000.mp4 in the cache; "
        in without_video["text"]
    )
    assert without_video["text"].endswith(f"{command} 'right/*'")
    assert missing["error"] == "MissingFileError"
    assert missing["text"].startswith(
        f"{NAME}/left{at}: there is no file meta/info.json in the cache; with HF_HUB_OFFLINE=1 it "
        "cannot be"
    )
    assert missing["text"].endswith(f"{command} 'left/*'")
    hint = f"; datasets lie in folders of it, so open {NAME}/right"
    assert unknown["error"] == "StorageError"
    assert unknown["text"] == (
        f"{NAME}/middle{at}: the repository has no dataset in its folder middle: there is no "
        "middle/meta/info.json in the cache; with HF_HUB_OFFLINE=1 it cannot be fetched, so unset "
        f"that, or first run {command} 'middle/*'{hint}"
    )
    assert whole["error"] == "DatasetFormatError"
    assert (
        whole["text"]
        == f"{NAME}{at}: there is no meta/info.json; this is not a LeRobotDataset{hint}"
    )


def test_gated_and_private(hub, root, tmp_path):
    hub.add_repository("folders/private", root, private=True, token="hf_owner")
    assert opened(hub, "folders/private/left", tmp_path, token="hf_owner").folder == "left"
    with pytest.raises(lg.StorageError) as caught:
        opened(hub, "folders/private/left", tmp_path)
    assert "there is no dataset folders/private on" in str(caught.value)
    assert str(caught.value).endswith("; nor is folders/private/left a directory here")


# --- what is refused -----------------------------------------------------------------------------

HINT = (
    f"; datasets lie in folders of it, so open {NAME}/left or {NAME}/right or "
    f"{NAME}/sets/2026/gripper"
)


@pytest.mark.parametrize(
    ("revision", "requests"),
    [(None, ["refs", "revision", "tree"]), ("commit", ["tree", "revision"])],
)
def test_a_repository_whose_datasets_lie_in_folders(hub, served, tmp_path, revision, requests):
    with pytest.raises(lg.DatasetFormatError) as caught:
        opened(hub, NAME, tmp_path, revision=served.commit if revision else None)
    assert (
        str(caught.value)
        == f"{NAME}@{served.commit[:12]}: there is no meta/info.json; this is not a "
        f"LeRobotDataset{HINT}"
    )
    assert kinds_of_requests(hub) == requests


@pytest.mark.parametrize("folder", ["middle", "notes", "sets", "left/meta", "lef"])
@pytest.mark.parametrize(
    ("revision", "requests"), [("v3.0", ["revision", "tree"]), ("commit", ["tree", "revision"])]
)
def test_a_folder_without_a_dataset(hub, served, tmp_path, folder, revision, requests):
    with pytest.raises(lg.StorageError) as caught:
        opened(
            hub,
            f"hf://datasets/{NAME}/{folder}",
            tmp_path,
            revision=served.commit if revision == "commit" else revision,
        )
    assert str(caught.value) == (
        f"{NAME}/{folder}@{served.commit[:12]}: the repository has no dataset in its folder "
        f"{folder}: there is no {folder}/meta/info.json{HINT}"
    )
    assert kinds_of_requests(hub) == requests


@pytest.mark.usefixtures("served")
def test_a_revision_after_the_folder(hub, tmp_path):
    text = (
        rf"no left@v3\.0/meta/info\.json \(a revision stands before the folder: "
        rf"hf://datasets/{NAME}@REVISION/FOLDER\); datasets lie in"
    )
    with pytest.raises(lg.StorageError, match=text):
        opened(hub, f"hf://datasets/{NAME}/left@v3.0", tmp_path)


def test_a_directory_whose_datasets_lie_in_folders(root, tmp_path):
    with pytest.raises(lg.DatasetFormatError) as caught:
        lg.open_repository(root)
    assert str(caught.value) == (
        f"{root}: there is no meta/info.json; this is not a LeRobotDataset; datasets lie in "
        f"folders of it, so open {root}/left or {root}/right"
    )
    # One level farther down they are found, too, and no deeper.
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "robots").symlink_to(root)
    (shelf / "a file").touch()
    with pytest.raises(lg.DatasetFormatError) as caught:
        lg.open_repository(shelf)
    assert str(caught.value).endswith(f"so open {shelf}/robots/left or {shelf}/robots/right")
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "shelf").symlink_to(shelf)
    with pytest.raises(lg.DatasetFormatError, match=r"this is not a LeRobotDataset$"):
        lg.open_repository(tmp_path / "above")


@pytest.mark.usefixtures("served")
def test_a_revision_that_is_none(hub, tmp_path):
    with pytest.raises(lg.StorageError) as caught:
        opened(hub, f"hf://datasets/{NAME}@nothing/left", tmp_path)
    assert str(caught.value) == (
        f"{NAME}@nothing/left: the repository has no revision 'nothing' or 'nothing/left'; its "
        "tags and branches: v3.0, main, feature/grip, refs/pr/7"
    )


@pytest.mark.parametrize(
    ("name", "revision", "text"),
    [
        ("org/name/../x", None, "'../x' is no folder of a repository"),
        ("org/name/a//b", None, "'a//b' is no folder of a repository"),
        ("org/name/a?b", None, r"'a\?b' is no folder of a repository"),
        ("hf://datasets/org/name@main/..", None, "'..' is no folder of a repository"),
        (
            "hf://datasets/org/name@v3.0/a",
            "v2.1",
            "names another revision than revision='v2.1'; give it once",
        ),
        (
            "datasets/org/name",
            None,
            "'datasets/org/name' is neither an existing directory nor a dataset on the Hub",
        ),
        ("https://huggingface.co/datasets/org/name", None, "is neither an existing directory"),
        ("hf://datasets/org", None, "is neither an existing directory"),
        ("hf://datasets/org/name@", None, "is neither an existing directory"),
        ("or g/name/a", None, "cannot be the name of a repository"),
    ],
)
def test_names_that_name_nothing(name, revision, text):
    with pytest.raises(lg.InvalidRequestError, match=text):
        open_storage(
            name,
            revision=revision,
            endpoint=None,
            token=None,
            cache_dir=None,
            options=lg.StorageOptions(),
        )
