"""Reading a dataset in a Storage Bucket of the Hugging Face Hub, `hf://buckets/org/name[/prefix]`.

The idea: a bucket has no commits, and files are overwritten in place. So its files are listed once,
when it is opened, and each is pinned by its size and by the hash of its contents that Xet uses.
Whenever the Hub is asked where a file's bytes are, it must answer for that hash.

Rules:
* Those of `_storage/listed_files`. The hash of the list does not change when the dataset is moved.
* Metadata is read as ranges like everything else, and kept nowhere: the cache of huggingface_hub is
  made of commits.

The requests, links and checks are those of `_storage/hub/session`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import InvalidRequestError, MissingFileError, StorageError
from lerobot_grain._format.layout import FOLDERS
from lerobot_grain._storage.hub.address import HubAddress, ListedFile, name_repository
from lerobot_grain._storage.hub.on_hub import OnHub
from lerobot_grain._storage.hub.session import HubSession
from lerobot_grain._storage.listed_files import CHANGED, listed_metadata, listed_size
from lerobot_grain._storage.options import StorageOptions

BUCKET_SCHEME = "hf://buckets/"
_BUCKET_URI = re.compile(r"hf://buckets/([^/]+/[^/]+)/?(.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class BucketAddress(HubAddress):
    """Names a dataset in a bucket; the version of each of its files is the hash that Xet uses."""

    kind = "buckets"
    noun = "bucket"
    version_header = "X-Xet-Hash"
    version_noun = "Xet hash"
    version_remedy = f"; {CHANGED}"

    def at(self, version: str) -> str:  # noqa: ARG002 (hashes say nothing to anyone)
        return f"{BUCKET_SCHEME}{self.name}"

    def tree_url(self, version: str, directory: str, *, recursive: bool = True) -> str:  # noqa: ARG002 (a bucket has one version)
        return self.api_url("tree", (self.prefix + directory).rstrip("/")) + (
            "?recursive=true" if recursive else ""
        )

    def file_url(self, version: str, path: str) -> str:  # noqa: ARG002 (the answer says which one it is)
        # With "/" quoted, as huggingface_hub asks for the same.
        return (
            f"{self.endpoint}/buckets/{self.repo_id}/resolve/{quote(self.prefix + path, safe='')}"
        )


def name_bucket(
    uri: str,
    *,
    revision: str | None,
    endpoint: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    options: StorageOptions,
) -> BucketAddress:
    """Returns a checked `BucketAddress` of `hf://buckets/org/name[/prefix]`.

    Raises:
      InvalidRequestError: no such bucket, endpoint or token can exist, or a revision is asked for.
    """
    match = _BUCKET_URI.fullmatch(uri)
    if match is None:
        raise InvalidRequestError(
            f"{uri!r} does not name a bucket, expected hf://buckets/org/name or "
            "hf://buckets/org/name/folder"
        )
    if revision is not None or "@" in match[1]:
        raise InvalidRequestError(
            f"{uri}: a bucket has no "
            f"revisions{'' if revision is None else f', so not {revision!r}'}; leave it out"
        )
    named = name_repository(
        match[1], endpoint=endpoint, cache_dir=cache_dir, token=token, options=options
    )
    folder = match[2].rstrip("/")
    prefix = f"{folder}/" if folder else ""
    return BucketAddress(
        named.repo_id, named.endpoint, named.cache_dir, named.token, named.options, prefix
    )


def list_bucket(session: HubSession, bucket: BucketAddress) -> list[ListedFile]:
    """Returns the files of the dataset, by path after the prefix, in order.

    Three requests, and one for each further 1,000 files.

    Raises:
      StorageError: the bucket does not exist, is not accessible, or lists files without a hash.
    """
    files = []
    for folder in FOLDERS:
        for file in session.api.list_tree("", folder):
            if not file.xet_hash:
                path = bucket.prefix + file.path
                raise StorageError(
                    f"{bucket.at('')}: {bucket.endpoint} lists {path} without a hash, so it "
                    "cannot be pinned"
                )
            files.append(file)
    return sorted(files)


@dataclasses.dataclass(frozen=True, slots=True)
class BucketStorage(OnHub):
    """The files that a bucket held when it was opened, each pinned by its size and hash.

    Their list travels with it, so that all processes read the same. A token does as with
    `HubStorage`.
    """

    description: str
    commit: str
    options: StorageOptions
    repository: BucketAddress
    files: Mapping[str, ListedFile] = dataclasses.field(repr=False, hash=False)
    _process_state: dict[int, HubSession] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.description,
            self.commit,
            self.options,
            self.repository,
            self.files,
        )

    def list_metadata(self) -> Mapping[str, int]:
        return listed_metadata(self.files)

    def size_bytes(self, path: str) -> int:
        return listed_size(self.description, self.files, path)

    def read_range(self, path: str, wanted: ByteRange) -> bytes:
        pinned = self.files[path]
        session = self._session()
        try:
            if (size := session.size_bytes(pinned.xet_hash, path)) != pinned.size_bytes:
                raise StorageError(
                    f"{self.description}: {path} has {size} bytes, {pinned.size_bytes} when it "
                    f"was listed; {CHANGED}"
                )
            return session.read_range(pinned.xet_hash, path, wanted)
        except MissingFileError:
            # It was there: no caller may take it for a file that the dataset does without.
            raise StorageError(f"{self.description}: {path} is gone; {CHANGED}") from None
