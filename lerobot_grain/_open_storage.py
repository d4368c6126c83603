"""What a user may name as a data set: a directory, a data set repository on the Hub, or a bucket; and opening it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lerobot_grain._bucket_storage import BUCKET_SCHEME, HubBucket, commit_of_files, list_bucket, name_bucket
from lerobot_grain._errors import InvalidRequestError, StorageError
from lerobot_grain._hub_cache import cached_commit, cached_listing, snapshot_directory
from lerobot_grain._hub_repository import HubRepository, is_offline, name_repository
from lerobot_grain._hub_storage import HubSession
from lerobot_grain._remote_storage import BucketStorage, HubStorage
from lerobot_grain._storage import METADATA, DirectoryStorage, Storage, is_readable_path
from lerobot_grain._storage_options import StorageOptions

_HUB_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(.+))?")


def open_storage(
    repository: str | os.PathLike[str],
    *,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    options: StorageOptions,
) -> Storage:
    """Pins a data set and lists its metadata.

    On the Hub that takes three requests, two when `revision` is given, one when it is a commit hash; one less when huggingface_hub has
    downloaded that commit. With HF_HUB_OFFLINE=1 it takes none, and names mean what they meant when they were downloaded. Of a bucket all
    files are listed, with three requests or one for each 1,000.

    Args:
      repository: a directory (any path object, or a text that is absolute, begins with `./`, `../` or `~`, or names an existing directory),
        or a data set on the Hub: `org/name` or `hf://datasets/org/name@revision`, or in a bucket: `hf://buckets/org/name/folder`.
      revision: a branch, a tag or a commit of a data set on the Hub; None for the newest tag `v3.x`, `v2.1` or `v2.0`, or `main` when
        there is none.
      endpoint: address of the Hub; None for HF_ENDPOINT or https://huggingface.co.
      token: None for the token of the environment, if any; True if there must be one; False to send none; or the token.
      cache_dir: where metadata is kept; None for the cache of huggingface_hub. Pieces of other files are kept beside it, see
        `disk_cache_directory`.
      options: how bytes are read.

    Raises:
      InvalidRequestError: no such repository, revision, endpoint or token can exist.
      StorageError: it does not exist, is not accessible, or the Hub cannot be reached.
    """
    name = os.fspath(repository)
    if not isinstance(repository, str) or _looks_like_directory(name):
        if revision is not None:
            raise InvalidRequestError(f"{name} is a directory, which has no revision {revision!r}; leave it out")
        root = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(root):
            raise InvalidRequestError(f"{root} is not a directory; a data set on the Hub is named org/name")
        return DirectoryStorage(root, root, options)
    if name.startswith(BUCKET_SCHEME):
        return _open_bucket(name_bucket(name, revision=revision, endpoint=endpoint, cache_dir=cache_dir, token=token, options=options))
    repo_id, revision = _parse_hub_name(name, revision)
    hub_repository = name_repository(repo_id, endpoint=endpoint, cache_dir=cache_dir, token=token, options=options)
    if is_offline():
        return _open_offline(hub_repository, revision)
    session = HubSession(hub_repository)
    try:
        commit = session.commit_of(revision or session.default_revision())
        listing = cached_listing(hub_repository, commit)
        if listing is None:
            listing = session.list_files(commit, METADATA)
    except BaseException:
        session.close()
        raise
    storage = _make_hub_storage(hub_repository, commit, listing)
    storage._process_state[os.getpid()] = session
    return storage


def _open_bucket(bucket: HubBucket) -> Storage:
    if bucket.prefix and not is_readable_path(bucket.prefix[:-1]):
        raise InvalidRequestError(f"{bucket.at('')}: {bucket.prefix[:-1]!r} is no folder of a bucket")
    session = HubSession(bucket)
    try:
        files = [file for file in list_bucket(session, bucket) if is_readable_path(file.path)]
    except BaseException:
        session.close()
        raise
    description = bucket.at("")
    storage = BucketStorage(description, commit_of_files(files), bucket.options, bucket, {file.path: file for file in files})
    storage._process_state[os.getpid()] = session
    return storage


def _looks_like_directory(name: str) -> bool:
    return os.path.isabs(name) or name in (".", "..") or name.startswith(("./", "../", "~")) or ("://" not in name and os.path.isdir(name))


def _parse_hub_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """Returns repository and revision of `org/name` or `hf://datasets/org/name@revision`."""
    if match := _HUB_URI.fullmatch(name):
        repo_id, named_revision = match.groups()
        if named_revision and revision and named_revision != revision:
            raise InvalidRequestError(f"{name} names another revision than revision={revision!r}; give it once")
        return repo_id, named_revision or revision
    if "://" in name or name.count("/") != 1:
        raise InvalidRequestError(
            f"{name!r} is neither an existing directory nor a data set on the Hub, named org/name or hf://datasets/org/name@revision"
        )
    return name, revision


def _open_offline(repository: HubRepository, revision: str | None) -> HubStorage:
    commit = cached_commit(repository, revision)
    if commit is None:
        wanted = f"{repository.repo_id}@{revision or 'v3.x, v2.1, v2.0 or main'}"
        raise StorageError(
            f"{wanted}: HF_HUB_OFFLINE=1 and no such snapshot in the cache; unset it, or first run "
            f"hf download {repository.repo_id} --repo-type dataset" + (f" --revision {revision}" if revision else "")
        )
    listing = cached_listing(repository, commit)
    if listing is None:
        listing = _snapshot(repository, commit).list_metadata()
    return _make_hub_storage(repository, commit, listing)


def _make_hub_storage(repository: HubRepository, commit: str, listing: Mapping[str, int]) -> HubStorage:
    metadata = tuple(sorted((p, size) for p, size in listing.items() if p.startswith(f"{METADATA}/") and is_readable_path(p)))
    return HubStorage(repository.at(commit), commit, repository.options, repository, _snapshot(repository, commit), metadata)


def _snapshot(repository: HubRepository, commit: str) -> DirectoryStorage:
    root = snapshot_directory(repository, commit)
    return DirectoryStorage(f"{repository.at(commit)} in {root}", root, repository.options, commit)
