"""What of a data set already lies in the cache of huggingface_hub, found without network.

The idea: `hf download` leaves each file of a commit at `snapshots/<commit>/<path>`, names the commits that branches and tags stood for in
`refs/`, and keeps the list of the whole commit, with sizes, in `trees/<commit>.json`. A commit never changes, so none of it goes stale
but the names.

Rules:
* A snapshot may be incomplete; only the list says what the commit holds. Caches filled by `hf_hub_download`, or by older versions
  of huggingface_hub, have no list.
* Nothing is written here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import huggingface_hub
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from lerobot_grain._hub_storage import COMMIT, HubRepository, newest_version_tag


def snapshot_directory(repository: HubRepository, commit: str) -> str:
    """Returns where the files of a commit lie, if any do."""
    return os.path.join(_directory_of(repository), "snapshots", commit)


def cached_commit(repository: HubRepository, revision: str | None) -> str | None:
    """Returns the commit of a revision (None: of the newest tag `v3.x`, or of `main`) when it was last downloaded by that name.

    None where it never was, or nothing is left of its files.
    """
    references = os.path.join(_directory_of(repository), "refs")
    try:
        commit = revision or newest_version_tag(os.listdir(references))
        if not COMMIT.fullmatch(commit):
            with open(os.path.join(references, *commit.split("/")), encoding="ascii") as file:
                commit = file.read().strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) and os.path.isdir(snapshot_directory(repository, commit)) else None


def cached_listing(repository: HubRepository, commit: str) -> Mapping[str, int] | None:
    """Returns path -> size in bytes of all files of a commit, None where the cache has no such list."""
    try:
        return _listing(repository.repo_id, repository.cache_dir, commit)
    except CachedRepoTreeNotFoundError:
        return None


# What was not found is looked for again, because a download may bring it. A list of 100,000 files takes about 20 MB.
@functools.lru_cache(maxsize=8)
def _listing(repo_id: str, cache_dir: str, commit: str) -> Mapping[str, int]:
    files = huggingface_hub.get_cached_repo_tree(repo_id, repo_type="dataset", revision=commit, cache_dir=cache_dir)
    return {file.path: file.size for file in files}


def _directory_of(repository: HubRepository) -> str:
    return os.path.join(repository.cache_dir, "datasets--" + repository.repo_id.replace("/", "--"))
