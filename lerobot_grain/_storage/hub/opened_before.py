"""Keeps on disk what the Hub said when a dataset was opened: which commit a name of a revision
meant, how the repository is called now, and the list of `meta/` of the commit.

The next opening asks for the commit only; with HF_HUB_OFFLINE it asks for nothing. Kept once the
metadata is found to be well-formed, so a list that was sent wrongly does not stay.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import NamedTuple

from lerobot_grain._storage.disk.dataset_cache import DatasetCache
from lerobot_grain._storage.hub.address import (
    COMMIT,
    HubAddress,
    ListedFile,
    RepositoryAddress,
    disk_cache_directory,
)


class AskedName(NamedTuple):
    """By which name a dataset was opened.

    Attributes:
      repository: as it was asked for, before a redirect gave it another name.
      revision: a branch, a tag or a commit; empty for the default.
    """

    repository: RepositoryAddress
    revision: str


def dataset_cache(repository: HubAddress, commit: str) -> DatasetCache | None:
    """Returns what is kept on disk of a commit; None where the disk cache is switched off."""
    return _cache(repository, (repository.at(commit), commit))


def keep_opening(
    asked: AskedName | None, repository: HubAddress, commit: str, listing: Sequence[ListedFile]
) -> None:
    """Keeps what was asked for.

    Args:
      asked: the name, unless it was asked for by nothing that may change.
      repository: under its present name.
      commit: that is meant.
      listing: of its `meta/`.
    """
    cache = dataset_cache(repository, commit)
    if cache is None:
        return
    cache.put("", "meta", json.dumps(listing).encode())
    if asked is not None and (names := _cache_of_names(asked.repository)) is not None:
        told = json.dumps([repository.repo_id, commit]).encode()
        names.put(asked.repository.prefix, f"revision {asked.revision}", told)


def kept_listing(repository: HubAddress, commit: str) -> list[ListedFile] | None:
    """Returns the list of `meta/` of a commit; None where none was kept."""
    cache = dataset_cache(repository, commit)
    kept = None if cache is None else cache.get("", "meta")
    return None if kept is None else [ListedFile(*file) for file in json.loads(kept)]


def kept_commit(asked: AskedName) -> tuple[RepositoryAddress, str] | None:
    """Returns the repository, as it was called then, and the commit that a name meant when it was
    last opened; None where it never was.
    """
    cache = _cache_of_names(asked.repository)
    kept = (
        None if cache is None else cache.get(asked.repository.prefix, f"revision {asked.revision}")
    )
    if kept is None:
        return None
    repo_id, commit = json.loads(kept)
    assert COMMIT.fullmatch(commit)
    return dataclasses.replace(asked.repository, repo_id=repo_id), commit


def _cache_of_names(repository: HubAddress) -> DatasetCache | None:
    return _cache(repository, (repository.endpoint, repository.repo_id))


def _cache(repository: HubAddress, dataset: tuple[str, str]) -> DatasetCache | None:
    limit = repository.options.disk_cache_bytes
    return (
        DatasetCache(disk_cache_directory(repository.cache_dir), limit, dataset) if limit else None
    )
