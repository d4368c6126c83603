"""Names of datasets in object stores: a bucket, a prefix, and how the store is asked for them.

Nothing is asked of a store here. `s3` and `gcs` have what differs between the two.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._storage.http.responses import Response
from lerobot_grain._storage.objects.credentials import Credentials
from lerobot_grain._storage.options import StorageOptions

# The rules of both stores for names that can still be made; old ones may have capitals.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", re.ASCII)


class ListedObject(NamedTuple):
    """A file as a listing of a store has it.

    Attributes:
      path: below the dataset.
      size_bytes: of its contents.
      pin: by which the store is asked for this version of it and no other: the entity tag without
        its quotes, or the generation.
      contents: tells its contents from others, also where they are copied to another bucket.
    """

    path: str
    size_bytes: int
    pin: str
    contents: str


def listed_bytes(size: object) -> int:
    """Returns the size of a file of a listing, which is a text of digits or an int.

    Raises:
      ValueError: it is no size.
    """
    text = str(size)
    if isinstance(size, bool) or not (text.isascii() and text.isdecimal()):
        raise ValueError("a size that is none")
    return int(text)


class Page(NamedTuple):
    """A page of a listing.

    Attributes:
      objects: with their whole names as paths.
      folders: common prefixes, where they were asked for.
      following: where the next page goes on; empty: this is the last one.
    """

    objects: list[ListedObject]
    folders: list[str]
    following: str


@dataclasses.dataclass(frozen=True, slots=True)
class StoreAddress(abc.ABC):
    """Names a dataset in a bucket of an object store, and how it is read.

    The token is what the user gave: None (credentials of the environment, if there are any), True
    (there must be some), False (anonymously), or a text. Only the last is part of the pickle, and
    it is never part of a message.

    Attributes:
      scheme: how its names begin.
      extra: of our package, which installs what finds credentials.
      bucket: its name.
      prefix: of the files of the dataset, with a `/` at its end; empty: it is the whole bucket.
      endpoint: where the store is.
      token: see above.
      options: how bytes are read.
      cache_root: the directory of what is kept on disk.
    """

    scheme: ClassVar[str]
    extra: ClassVar[str]

    bucket: str
    prefix: str
    endpoint: str
    token: str | bool | None = dataclasses.field(repr=False)
    options: StorageOptions = dataclasses.field(repr=False)
    cache_root: str = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """`s3://bucket/prefix`."""
        return f"{self.scheme}{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def place(self) -> str:
        """Its place, for messages: the bucket and the endpoint."""
        return f"bucket {self.bucket} at {self.endpoint}"

    @abc.abstractmethod
    def find_credentials(self) -> Credentials:
        """Returns what requests are signed with. May ask services of the cloud, and take long.

        Raises:
          InvalidRequestError: there must be some, and are none.
          StorageError: they cannot be got.
        """

    @abc.abstractmethod
    def list_url(self, folder: str, following: str, *, recursive: bool = True) -> str:
        """Returns the address of a page of the list of all files below `folder` of the dataset,
        which ends with `/`, or is empty; if not `recursive`, of the folders in it.
        """

    @abc.abstractmethod
    def object_url(self, file: ListedObject) -> str:
        """Returns the address of the bytes of a file."""

    @abc.abstractmethod
    def condition(self, file: ListedObject) -> Mapping[str, str]:
        """Returns the headers that let the store answer for no other version of a file."""

    @abc.abstractmethod
    def parse_page(self, body: bytes) -> Page:
        """Returns a page of a listing.

        Raises:
          ValueError, KeyError: it is none.
        """

    @abc.abstractmethod
    def version_in(self, answer: Response) -> str | None:
        """Returns the `pin` of the version that an answer is about; None if it does not say."""

    @abc.abstractmethod
    def code_in(self, body: bytes) -> str:
        """Returns the code of an error, or what the store says of it; empty if it says nothing."""

    def moved(self, answer: Response, body: bytes) -> tuple[Self | None, str]:  # noqa: ARG002 (S3 alone has regions)
        """Returns the address at which the store wants to be asked, and what to say where that must
        not be done; `(None, "")` if an answer says nothing of the kind.
        """
        return None, ""


def parts_of(uri: str, scheme: str, *, revision: str | None) -> tuple[str, str]:
    """Returns the bucket and the prefix (with a `/` at its end, or empty) that a URI names.

    Raises:
      InvalidRequestError: it names none, or a revision is asked for.
    """
    bucket, _, folder = uri.removeprefix(scheme).partition("/")
    folder = folder.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidRequestError(
            f"{uri!r} does not name a dataset in a bucket, expected {scheme}bucket/folder"
        )
    if revision is not None:
        raise InvalidRequestError(
            f"{uri}: a bucket has no revisions, so not {revision!r}; leave it out"
        )
    return bucket, f"{folder}/" if folder else ""
