"""Opens the storage that a user names: a directory, a dataset repository on the Hub or a folder of
one, a bucket, or a prefix of an object store.

Rules:
* A directory that exists comes first: `org/name` may be one.
* After `@` in a URI come a revision and then a folder: `hf://datasets/org/name@v3.0/arm`, as
  huggingface_hub reads it. A branch may have slashes in its name too (`@feature/grip`), so the
  first part that the Hub knows as a revision is taken.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._format.layout import INFO_PATH, METADATA, default_revisions
from lerobot_grain._storage.base import Storage, is_readable_path
from lerobot_grain._storage.directory import DirectoryStorage
from lerobot_grain._storage.hub.address import (
    HubAddress,
    ListedFile,
    RepositoryAddress,
    disk_cache_directory,
    is_offline,
    name_repository,
)
from lerobot_grain._storage.hub.bucket_storage import (
    BUCKET_SCHEME,
    BucketAddress,
    BucketStorage,
    list_bucket,
    name_bucket,
)
from lerobot_grain._storage.hub.client_cache import (
    cached_commit,
    cached_listing,
    snapshot_directory,
)
from lerobot_grain._storage.hub.commit_storage import HubStorage
from lerobot_grain._storage.hub.opened_before import AskedName, kept_commit, kept_listing
from lerobot_grain._storage.hub.session import HubSession
from lerobot_grain._storage.listed_files import commit_of_files
from lerobot_grain._storage.objects.gcs import GCS_SCHEME, name_gcs
from lerobot_grain._storage.objects.object_storage import open_objects
from lerobot_grain._storage.objects.s3 import S3_SCHEME, name_s3
from lerobot_grain._storage.options import StorageOptions

_STORES = {S3_SCHEME: name_s3, GCS_SCHEME: name_gcs}
_HUB_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/].*)|/(.*))?")
# Revisions that have slashes in their names for huggingface_hub too.
_SPECIAL_REVISION = re.compile(r"refs/(?:convert/\w+|pr/\d+)(?=/|$)")
# How addresses of pages on the Hub begin: `datasets/org/name` is no folder of a repository
# `datasets/org`.
_KINDS = ("datasets", "models", "spaces", "buckets")


class _HubName(NamedTuple):
    """The repository that a text names, and which folder of it goes with which revision, in the
    order in which they are tried.
    """

    repo_id: str
    folders: Mapping[str | None, str]


def open_storage(
    repository: str | os.PathLike[str] | Storage,
    *,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    options: StorageOptions,
) -> Storage:
    """Pins a dataset and lists its metadata.

    On the Hub that takes three requests, two when `revision` is given, one when it is a commit
    hash; one less when huggingface_hub has downloaded that commit, or it was opened before. With
    HF_HUB_OFFLINE=1 it takes none, and names mean what they meant when they were downloaded or,
    else, last opened. All files of a bucket are listed, with three requests or one for each 1,000.

    Args:
      repository: a directory (any path object, or a text that is absolute, begins with `./`, `../`
        or `~`, or names an existing directory), or a dataset on the Hub: `org/name` or
        `hf://datasets/org/name@revision`, with `/folder` where it lies in one, or in a bucket:
        `hf://buckets/org/name/folder`; or in an object store: `s3://bucket/folder`,
        `gs://bucket/folder`; or a storage, which is returned as it is.
      revision: a branch, a tag or a commit of a dataset on the Hub; None for the newest tag or
        branch `v3.x`, `v2.1` or `v2.0`, or `main` when there is none.
      endpoint: address of the Hub; None for HF_ENDPOINT or https://huggingface.co. Of an object
        store: its address; None for what its usual settings say.
      token: None for the token of the environment, if any; True if there must be one; False to send
        none; or the token. Of an object store: its credentials.
      cache_dir: where metadata is kept; None for the cache of huggingface_hub. Pieces of other
        files are kept next to it, see `disk_cache_directory`.
      options: how bytes are read.

    Raises:
      InvalidRequestError: no such repository, revision, endpoint or token can exist.
      StorageError: it does not exist, is not accessible, or the Hub cannot be reached.
    """
    if isinstance(repository, Storage):
        if not (revision is endpoint is token is cache_dir is None):
            raise InvalidRequestError(
                f"{repository.description}: revision, endpoint, token and cache_dir say how a name "
                "is opened, and a storage was given; leave them out"
            )
        return repository
    name = os.fspath(repository)
    if not isinstance(repository, str) or _looks_like_directory(name):
        return _open_directory(name, revision, options)
    if (name_store := _STORES.get(name[: name.find("://") + 3])) is not None:
        return open_objects(
            name_store(
                name,
                revision=revision,
                endpoint=endpoint,
                token=token,
                options=options,
                cache_root=disk_cache_directory(cache_dir),
            )
        )
    if name.startswith(BUCKET_SCHEME):
        return _open_bucket(
            name_bucket(
                name,
                revision=revision,
                endpoint=endpoint,
                cache_dir=cache_dir,
                token=token,
                options=options,
            )
        )
    hub_name = _parse_hub_name(name, revision or None)
    named = name_repository(
        hub_name.repo_id, endpoint=endpoint, cache_dir=cache_dir, token=token, options=options
    )
    if is_offline():
        return _open_offline(named, hub_name)
    try:
        return _open_online(named, hub_name)
    except StorageError as error:
        if "://" in name or not any(hub_name.folders.values()):
            raise
        # Most names with more than one slash are paths.
        raise type(error)(f"{error}; nor is {name} a directory here") from None


def _open_directory(name: str, revision: str | None, options: StorageOptions) -> DirectoryStorage:
    if revision is not None:
        raise InvalidRequestError(
            f"{name} is a directory, which has no revision {revision!r}; leave it out"
        )
    root = os.path.abspath(os.path.expanduser(name))
    if not os.path.isdir(root):
        raise InvalidRequestError(
            f"{root} is not a directory; a dataset on the Hub is named org/name"
        )
    return DirectoryStorage(root, root, options)


def _open_online(named: RepositoryAddress, name: _HubName) -> Storage:
    session = HubSession(named)
    try:
        return _open_on_hub(session, named, name)
    except BaseException:
        session.close()
        raise


def _open_on_hub(session: HubSession, named: RepositoryAddress, name: _HubName) -> Storage:
    revisions = list(name.folders)
    if revisions == [None]:
        found = None
        commit = session.api.commit_of(session.default_revision())[1]
    else:
        found, commit = session.api.commit_of(
            *(revision for revision in revisions if revision is not None)
        )
    prefix = _prefix(name.folders[found])
    session.api.repository = repository = dataclasses.replace(session.api.repository, prefix=prefix)
    listing = _known_files(repository, commit)
    if listing is None:
        listing = session.api.list_tree(commit, METADATA)
        repository = session.api.repository  # by its new name
    asked = AskedName(dataclasses.replace(named, prefix=prefix), found or "")
    storage = _make_hub_storage(repository, commit, listing, asked)
    storage.use(session)
    if prefix and INFO_PATH not in storage.list_metadata():
        raise StorageError(_without_dataset(storage) + storage.elsewhere())
    return storage


def _open_bucket(bucket: BucketAddress) -> Storage:
    if bucket.prefix and not is_readable_path(bucket.prefix[:-1]):
        raise InvalidRequestError(
            f"{bucket.at('')}: {bucket.prefix[:-1]!r} is no folder of a bucket"
        )
    session = HubSession(bucket)
    try:
        files = [file for file in list_bucket(session, bucket) if is_readable_path(file.path)]
    except BaseException:
        session.close()
        raise
    bucket = dataclasses.replace(
        bucket, repo_id=session.api.repository.repo_id, notes=session.api.repository.notes
    )
    storage = BucketStorage(
        bucket.at(""),
        commit_of_files((file.path, file.size_bytes, file.xet_hash) for file in files),
        bucket.options,
        bucket,
        {file.path: file for file in files},
    )
    storage.use(session)
    return storage


def _looks_like_directory(name: str) -> bool:
    return (
        os.path.isabs(name)
        or name in (".", "..")
        or name.startswith(("./", "../", "~"))
        or ("://" not in name and os.path.isdir(name))
    )


def _parse_hub_name(name: str, revision: str | None) -> _HubName:
    """Returns what `org/name`, `org/name/folder` or
    `hf://datasets/org/name@revision/folder` names.
    """
    if match := _HUB_URI.fullmatch(name):
        repo_id = match[1]
        after_at = (match[2] or "").rstrip("/")
        folder = (match[3] or "").rstrip("/")
    else:
        parts = name.rstrip("/").split("/")
        repo_id = "/".join(parts[:2])
        after_at = ""
        folder = "/".join(parts[2:])
        if "://" in name or "/" not in repo_id or (folder and parts[0] in _KINDS):
            raise InvalidRequestError(
                f"{name!r} is neither an existing directory nor a dataset on the Hub, named "
                "org/name, org/name/folder or hf://datasets/org/name@revision"
            )
    folders: dict[str | None, str] = {revision: folder}
    if after_at:
        folders = dict(_revisions_in(after_at))
        if revision is not None:
            if revision not in folders:
                raise InvalidRequestError(
                    f"{name} names another revision than revision={revision!r}; give it once"
                )
            folders = {revision: folders[revision]}
    for folder in folders.values():
        if folder and not is_readable_path(folder):
            raise InvalidRequestError(f"{name}: {folder!r} is no folder of a repository")
    return _HubName(repo_id, folders)


def _revisions_in(after_at: str) -> Iterable[tuple[str, str]]:
    """Yields (revision, folder) for all that `revision/folder` may mean, the most likely first."""
    special = _SPECIAL_REVISION.match(after_at)
    parts = after_at.split("/")
    for count in range(len(special[0].split("/")) if special else 1, len(parts) + 1):
        yield unquote("/".join(parts[:count])), "/".join(parts[count:])


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _open_offline(named: RepositoryAddress, name: _HubName) -> HubStorage:
    for revision, folder in name.folders.items():
        asked = AskedName(dataclasses.replace(named, prefix=_prefix(folder)), revision or "")
        if (meant := _meant_offline(asked)) is not None:
            repository, commit = meant
            break
    else:
        revision, folder = next(iter(name.folders.items()))
        named_first = dataclasses.replace(named, prefix=_prefix(folder))
        wanted = f"{named.repo_id}@{revision or default_revisions()}"
        raise StorageError(
            f"{wanted}: HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset it, or first "
            f"run {named_first.download_command(revision)}"
        )
    listing = _known_files(repository, commit)
    if listing is None:
        listing = [
            ListedFile(path, size)
            for path, size in _snapshot(repository, commit).list_metadata().items()
        ]
    storage = _make_hub_storage(repository, commit, listing)
    if repository.prefix and INFO_PATH not in storage.list_metadata():
        raise StorageError(
            f"{_without_dataset(storage)} in the cache; with HF_HUB_OFFLINE=1 it cannot be "
            "fetched, so unset that, or first run "
            f"{repository.download_command(commit)}{storage.elsewhere()}"
        )
    return storage


def _meant_offline(asked: AskedName) -> tuple[RepositoryAddress, str] | None:
    """Returns the repository and the commit that a name means while the Hub must not be asked."""
    commit = cached_commit(asked.repository, asked.revision or None)
    downloaded = None if commit is None else (asked.repository, commit)
    if downloaded is not None and INFO_PATH in _snapshot(*downloaded).list_metadata():
        return downloaded
    # Something else of the repository may have been downloaded.
    return kept_commit(asked) or downloaded


def _without_dataset(storage: HubStorage) -> str:
    folder = storage.folder
    remedy = (
        " (a revision stands before the folder: "
        f"hf://datasets/{storage.repository.repo_id}@REVISION/FOLDER)"
        if "@" in folder
        else ""
    )
    return (
        f"{storage.description}: the repository has no dataset in its folder {folder}: there "
        f"is no {folder}/{INFO_PATH}{remedy}"
    )


def _cached_files(repository: HubAddress, commit: str) -> list[ListedFile] | None:
    """Returns the files of `meta/` in the list of the commit in the cache of huggingface_hub; None
    if there is none.
    """
    listing = cached_listing(repository, commit)
    prefix = repository.prefix
    if listing is None:
        return None
    beginning = f"{prefix}{METADATA}/"
    return [
        file._replace(path=path.removeprefix(prefix))
        for path, file in listing.items()
        if path.startswith(beginning)
    ]


def _known_files(repository: HubAddress, commit: str) -> list[ListedFile] | None:
    """Returns the files of `meta/` of a commit, if the list was downloaded or kept."""
    downloaded = _cached_files(repository, commit)
    return kept_listing(repository, commit) if downloaded is None else downloaded


def _make_hub_storage(
    repository: HubAddress,
    commit: str,
    listing: Iterable[ListedFile],
    asked: AskedName | None = None,
) -> HubStorage:
    metadata = tuple(
        sorted(
            file
            for file in listing
            if file.path.startswith(f"{METADATA}/") and is_readable_path(file.path)
        )
    )
    return HubStorage(
        repository.at(commit),
        commit,
        repository.options,
        repository,
        _snapshot(repository, commit),
        metadata,
        asked,
    )


def _snapshot(repository: HubAddress, commit: str) -> DirectoryStorage:
    root = os.path.join(snapshot_directory(repository, commit), *repository.prefix.split("/")[:-1])
    return DirectoryStorage(f"{repository.at(commit)} in {root}", root, repository.options, commit)
