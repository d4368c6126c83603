"""Repositories that were renamed or moved: the Hub redirects their old names, once, and everything
after that is asked by the new one.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import lerobot_grain as lg
from lerobot_grain.testing import HubRepository, LoopbackHub
from tests.support.mirror import Headers, Mirror
from tests.support.streams import digest
from tests.support.tables import table

TOKEN = "hf_secret"
OPTIONS = lg.StorageOptions(max_attempts=2, pause_seconds=0.001)
NUMBERS = itertools.count()


@pytest.fixture
def served(hub: LoopbackHub, small_dataset: Path) -> HubRepository:
    """The repository under its new name."""
    return hub.add_repository(f"new/name-{next(NUMBERS)}", small_dataset, tags=["v3.0"])


@pytest.fixture
def front(hub: LoopbackHub) -> Iterator[Mirror]:
    """A Hub whose redirects are set by each test."""
    with Mirror(hub.endpoint, serves_files=False) as running:
        yield running


def redirect(
    names: dict[str, str], *, status: int = 307, origin: str = "", kind: str = "datasets"
) -> Any:
    """Returns the route of a Hub that knows repositories by their old names."""

    def route(path: str) -> tuple[int, Headers, bytes] | None:
        for old, new in names.items():
            if f"{kind}/{old}/" in path:
                return (
                    status,
                    {"Location": origin + path.replace(f"{kind}/{old}/", f"{kind}/{new}/")},
                    b"Redirecting",
                )
        return None

    return route


def opened(name: str, endpoint: str, cache: Path, **changes: Any) -> lg.Repository:
    arguments = {
        "endpoint": endpoint,
        "token": TOKEN,
        "cache_dir": cache,
        "storage_options": OPTIONS,
    } | changes
    return lg.open_repository(name, **arguments)


def note_of(old: str, new: str, endpoint: str) -> str:
    return (
        f"{old}: {endpoint} redirects this name to {new}: the repository was renamed or moved, "
        "so use the new name"
    )


@pytest.fixture(autouse=True)
def known_token(hub: LoopbackHub) -> None:
    hub.add_token(TOKEN)


# Each status, and each kind of revision, once always.
@pytest.mark.parametrize(
    ("revision", "status"),
    table(
        itertools.product([None, "main", "v3.0", "commit"], [301, 302, 307, 308]),
        lambda case: case[0] is None or case[1] == 307,
    ),
)
def test_an_old_name_is_followed_once(served, front, small_digest, tmp_path, revision, status):
    front.route = redirect({"old/name": served.repository_id}, status=status)
    revision = served.commit if revision == "commit" else revision
    with pytest.warns(lg.LeRobotGrainWarning, match="redirects this name to new/name") as caught:
        repository = opened("old/name", front.endpoint, tmp_path, revision=revision)
    note = note_of("old/name", served.repository_id, front.endpoint)
    assert repository.notes == (note,)
    assert [str(warning.message) for warning in caught] == [f"{repository.description}: {note}"]
    assert repository.description == f"{served.repository_id}@{served.commit[:12]}"
    assert repository.commit == served.commit
    # The copy for another process holds the new name too.
    assert digest(pickle.loads(pickle.dumps(repository))) == digest(repository) == small_digest
    assert len(front.paths("/old/name")) == 1
    assert [path.name for path in tmp_path.glob("datasets--*")] == [
        f"datasets--{served.repository_id.replace('/', '--')}"
    ]


def test_the_new_name_needs_no_note(served, front, small_digest, tmp_path):
    repository = opened(served.repository_id, front.endpoint, tmp_path)
    assert repository.notes == ()
    assert digest(repository) == small_digest


@pytest.mark.parametrize("prefix", ["", "/artifactory/hf"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["with the mirror's path", "without it"])
def test_a_mirror_that_passes_redirects_on(served, hub, small_digest, tmp_path, prefix, is_whole):
    """Relative ones of the original lack the path of the mirror.

    The token comes along, to the mirror.
    """
    with Mirror(hub.endpoint, prefix=prefix) as mirror:
        names = {"old/name": served.repository_id}
        whole = redirect(names)
        mirror.route = (
            whole if is_whole else lambda path: redirect(names)(path.removeprefix(prefix))
        )
        with pytest.warns(lg.LeRobotGrainWarning, match="was renamed or moved"):
            repository = opened("old/name", mirror.endpoint, tmp_path)
        assert digest(repository) == small_digest
        assert len(mirror.paths("/old/name")) == 1
        assert all(asked.had_authorization for asked in mirror.log)


def test_absolute_redirects_of_the_same_origin(served, front, small_digest, tmp_path):
    front.route = redirect({"old/name": served.repository_id}, origin=front.origin)
    with pytest.warns(lg.LeRobotGrainWarning):
        assert digest(opened("old/name", front.endpoint, tmp_path)) == small_digest


def test_a_name_that_was_changed_twice(served, front, small_digest, tmp_path):
    front.route = redirect({"old/name": "middle/name", "middle/name": served.repository_id})
    with pytest.warns(lg.LeRobotGrainWarning):
        repository = opened("old/name", front.endpoint, tmp_path)
    assert repository.notes == (note_of("old/name", served.repository_id, front.endpoint),)
    assert digest(repository) == small_digest
    assert [len(front.paths(f"/{name}/name")) for name in ("old", "middle")] == [1, 1]


def test_letters_of_another_case(served, front, small_digest, tmp_path):
    """The Hub does not tell them apart in names, but redirects to those that were given."""
    name = served.repository_id.title()
    front.route = redirect({name: served.repository_id})
    with pytest.warns(lg.LeRobotGrainWarning, match=f"^{served.repository_id}@.*: {name}: "):
        assert digest(opened(name, front.endpoint, tmp_path)) == small_digest


def test_listings_of_several_pages(small_dataset, tmp_path):
    with LoopbackHub(page_entries=2) as hub, Mirror(hub.endpoint, serves_files=False) as front:
        served = hub.add_repository("new/name", small_dataset, tags=["v3.0"])
        front.route = redirect({"old/name": "new/name"})
        with pytest.warns(lg.LeRobotGrainWarning):
            repository = opened(
                "old/name", front.endpoint, tmp_path, token=None, revision=served.commit
            )
        assert len(front.paths("/tree/")) > 2
        assert len(front.paths("/old/name")) == 1
        assert sorted(repository.storage.list_metadata()) == sorted(
            path.relative_to(small_dataset).as_posix()
            for path in (small_dataset / "meta").rglob("*")
            if path.is_file()
        )


def test_a_repository_that_is_renamed_while_it_is_read(
    served, front, small_dataset, small_digest, tmp_path
):
    """Each process that goes on learns the new name at its first files."""
    repository = opened(served.repository_id, front.endpoint, tmp_path)
    front.route = redirect({served.repository_id: "moved/name"})
    front.rewrite = lambda path: path.replace(
        "datasets/moved/name/", f"datasets/{served.repository_id}/"
    )
    front.log.clear()
    again = pickle.loads(pickle.dumps(repository))
    path = again.episodes.videos["top"].files.paths[0]
    assert again.storage.read_tail(path, 10) == lg.open_repository(small_dataset).storage.read_tail(
        path, 10
    )
    assert len(front.paths(f"/{served.repository_id}/")) == 1
    assert digest(again) == small_digest
    assert len(front.paths(f"/{served.repository_id}/")) == 1


def test_buckets(hub, small_dataset, small_digest, tmp_path):
    hub.add_bucket("new/bucket", small_dataset)
    with Mirror(hub.endpoint, serves_files=False) as front:
        front.route = redirect({"old/bucket": "new/bucket"}, kind="buckets")
        with pytest.warns(
            lg.LeRobotGrainWarning, match="old/bucket: .* redirects this name to new/bucket"
        ):
            repository = opened("hf://buckets/old/bucket", front.endpoint, tmp_path, token=None)
        assert repository.description == "hf://buckets/new/bucket"
        assert digest(repository) == small_digest
        assert len(front.paths("/old/bucket")) == 1


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
def test_another_server_is_not_followed_and_gets_no_token(served, hub, front, tmp_path, revision):
    with Mirror(hub.endpoint) as elsewhere:
        front.route = redirect({"old/name": served.repository_id}, origin=elsewhere.origin)
        with pytest.raises(lg.StorageError) as caught:
            opened("old/name", front.endpoint, tmp_path, revision=revision)
        text = str(caught.value)
        assert text.startswith("old/name")
        assert (
            f": {front.endpoint} redirects to another server, "
            f"{elsewhere.origin}/api/datasets/{served.repository_id}/" in text
        )
        assert text.endswith(
            f"; if old/name is called {served.repository_id} now, open it by that name"
        )
        assert elsewhere.log == []


def test_another_server_for_files_is_not_followed_either(served, hub, front, tmp_path):
    repository = opened(served.repository_id, front.endpoint, tmp_path)
    path = repository.episodes.videos["top"].files.paths[0]
    with Mirror(hub.endpoint) as elsewhere:
        front.route = redirect({served.repository_id: "other/name"}, origin=elsewhere.origin)
        with pytest.raises(
            lg.StorageError,
            match=r"redirects to another server, .*; if \S+ is called other/name now, open it by "
            r"that name",
        ):
            repository.storage.read_tail(path, 10)
        assert elsewhere.log == []


@pytest.mark.parametrize(
    "names",
    [{"old/name": "old/name"}, {"old/name": "b/name", "b/name": "old/name"}],
    ids=["to itself", "there and back"],
)
@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
def test_circles_end(front, tmp_path, names, revision):
    front.route = redirect(names)
    with pytest.raises(
        lg.StorageError,
        match=r"^old/name.*: redirected in a circle, or more than 5 times: from http://127",
    ):
        opened("old/name", front.endpoint, tmp_path, revision=revision)
    assert len(front.log) == len(names)


def test_redirects_that_never_come_to_an_end(front, tmp_path):
    count = itertools.count()
    front.route = lambda path: (307, {"Location": f"{path}{next(count)}"}, b"")
    with pytest.raises(lg.StorageError, match=r"redirected in a circle, or more than 5 times"):
        opened("old/name", front.endpoint, tmp_path)
    assert len(front.log) == 6


def test_circles_of_files_end(served, front, tmp_path):
    repository = opened(served.repository_id, front.endpoint, tmp_path)
    path = repository.episodes.videos["top"].files.paths[0]
    front.route = redirect({served.repository_id: "b/name", "b/name": served.repository_id})
    with pytest.raises(lg.StorageError, match=rf": {path}: redirected in a circle"):
        repository.storage.size_bytes(path)


@pytest.mark.parametrize("name", ["../../api/evil", "no name/x", "a--b/c", "a", "-x/y"])
def test_names_that_cannot_be_are_not_taken(served, front, tmp_path, name):
    front.route = redirect({served.repository_id: quote(name, safe="/")})
    with pytest.raises(lg.StorageError, match=f"^{served.repository_id}: "):
        opened(served.repository_id, front.endpoint, tmp_path)
    # It is followed as any other redirect, and nothing is named by it.
    assert len(front.log) == 2
    assert not list(tmp_path.iterdir())


def test_other_redirects_of_the_api_are_followed(served, front, small_digest, tmp_path):
    """Such as to a trailing slash, by some mirrors."""
    front.route = lambda path: (
        (307, {"Location": f"{path}/"}, b"") if path.endswith("/refs") else None
    )
    front.rewrite = lambda path: path.rstrip("/")
    repository = opened(served.repository_id, front.endpoint, tmp_path)
    assert repository.notes == ()
    assert digest(repository) == small_digest
    assert [path.rpartition("/refs")[2] for path in front.paths("/refs")] == ["", "/"]
