"""Names of datasets on the Hub, a repository or a bucket: checked, with their addresses and their
errors.

Nothing is asked of the Hub here.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
import importlib.metadata
import os
import re
from typing import ClassVar, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, validate_repo_id  # type: ignore[attr-defined]  # documented there, but not in its __all__

from lerobot_grain._base.arguments import is_token
from lerobot_grain._base.errors import InvalidRequestError, MissingFileError, StorageError
from lerobot_grain._base.versions import hub_is_offline
from lerobot_grain._storage.http.responses import checked_endpoint
from lerobot_grain._storage.options import StorageOptions

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


class ListedFile(NamedTuple):
    """A file as a listing of the Hub has it.

    Attributes:
      path: below the dataset or, in `cached_listing`, the repository.
      size_bytes: of its contents.
      xet_hash: the hash of its contents that Xet uses; empty where the listing has none.
      content_hash: as `blob_name` takes it.
    """

    path: str
    size_bytes: int
    xet_hash: str = ""
    content_hash: str = ""


class Refusal(enum.Enum):
    """Why the Hub does not give what is asked for, as its answers say (`hub/api`), or why it is not
    asked.
    """

    GATED = enum.auto()
    MISSING_REPOSITORY = enum.auto()
    MISSING_REVISION = enum.auto()
    MISSING_FILE = enum.auto()
    DISABLED = enum.auto()
    BAD_TOKEN = enum.auto()
    OFFLINE = enum.auto()
    OTHER = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class HubAddress(abc.ABC):
    """Names something on the Hub that holds files, and how it is read: a dataset, or a bucket.

    One *version* of each file is read.

    The token is what the user gave: None (of the environment, the normal case), True, False, or the
    token itself. Only in the last case it is part of the pickle, because another process could not
    find it otherwise; it is never part of a text.

    Attributes:
      kind: how its addresses begin: `datasets` or `buckets`.
      noun: what it is called in messages.
      version_header: says, in the answer from `file_url`, which version of the file it is about.
      version_noun: what a version is called in messages.
      version_remedy: what to do when the answer is about another one.
      repo_id: `org/name`.
      endpoint: where the Hub is.
      cache_dir: the cache of huggingface_hub.
      token: see above.
      options: how bytes are read.
      prefix: the folder that the dataset lies in, with a `/` at its end; empty: it is the whole
        repository.
      notes: what about the name is odd, or is to be said.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    version_header: ClassVar[str]
    version_noun: ClassVar[str]
    version_remedy: ClassVar[str]

    repo_id: str
    endpoint: str
    cache_dir: str
    token: str | bool | None = dataclasses.field(repr=False)
    options: StorageOptions = dataclasses.field(repr=False)
    prefix: str = ""
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @abc.abstractmethod
    def at(self, version: str) -> str:
        """Returns how it is called in messages about `version`."""

    @abc.abstractmethod
    def tree_url(self, version: str, directory: str, *, recursive: bool = True) -> str:
        """Returns the address of the first page of the list of all files below `directory` of the
        dataset, or only of those in it.
        """

    @abc.abstractmethod
    def file_url(self, version: str, path: str) -> str:
        """Returns the address at which the Hub says where the bytes of a file are."""

    @property
    def name(self) -> str:
        """`org/name`, or `org/name/folder`."""
        return f"{self.repo_id}/{self.prefix}".rstrip("/")

    def download_command(self, revision: str | None) -> str:
        """Returns the command with which a user puts it into the cache of huggingface_hub."""
        chosen = f" --revision {revision}" if revision else ""
        return f"hf download {self.repo_id} --repo-type dataset{chosen}" + (
            f" --include '{self.prefix}*'" if self.prefix else ""
        )

    @property
    def cache_root(self) -> str:
        """The folder of the repository in the cache of huggingface_hub."""
        return os.path.join(self.cache_dir, "datasets--" + self.repo_id.replace("/", "--"))

    def headers(self) -> dict[str, str]:
        """Returns the headers for the endpoint.

        To be called for each request: a token may have been refreshed in the meantime.
        """
        try:
            return build_hf_headers(
                token=self.token, library_name="lerobot_grain", library_version=_library_version()
            )
        except hub_errors.LocalTokenNotFoundError:
            raise InvalidRequestError(
                f'{self.repo_id}: token=True, but there is none: set HF_TOKEN or run "hf auth '
                'login"'
            ) from None

    def api_url(self, *parts: str) -> str:
        return "/".join(
            [
                f"{self.endpoint}/api/{self.kind}/{self.repo_id}",
                *(quote(part, safe="") for part in parts if part),
            ]
        )

    def renamed_by(self, asked: str, target: str) -> str | None:
        """Returns the name that a redirect gives the repository; None if it does not only change
        the name.

        Args:
          asked: an address of the repository.
          target: where the redirect leads. A mirror that has a path may pass on a target of the
            original, without its own path.
        """
        before, _, after = (
            asked.removeprefix(self.endpoint)
            .partition("?")[0]
            .partition(f"/{self.kind}/{self.repo_id}/")
        )
        pattern = (
            f".*{re.escape(before)}/{self.kind}/({_REPO_ID.pattern})/{re.escape(unquote(after))}"
        )
        found = re.fullmatch(pattern, unquote(urlsplit(target).path), re.ASCII) if after else None
        try:
            validate_repo_id(name := found[1] if found else "")
        except hub_errors.HFValidationError:
            return None
        return name if name != self.repo_id else None

    def refusal(self, kind: Refusal, subject: str, detail: str = "") -> StorageError:
        """Returns the error for a refusal; `detail` is the text of `Refusal.OTHER`."""
        page = f"{self.endpoint}/{self.kind}/{self.repo_id}"
        match kind:
            case Refusal.GATED:
                text = (
                    f"{self.repo_id} is gated: ask for access on its page {page} and pass a "
                    f"token ({self._token_hint()})"
                )
            case Refusal.MISSING_REPOSITORY:
                text = (
                    f"there is no {self.noun} {self.repo_id} on {self.endpoint}, or it is "
                    f"private, which looks the same without access ({self._token_hint()})"
                )
            case Refusal.MISSING_REVISION:
                text = "the repository has no such revision"
            case Refusal.MISSING_FILE:
                return MissingFileError(
                    f"{subject}: the repository has no such file at this revision"
                )
            case Refusal.DISABLED:
                text = (
                    f"access to {self.repo_id} has been disabled by the Hub or its owner, see "
                    f"{page}"
                )
            case Refusal.BAD_TOKEN:
                text = (
                    f"{self.endpoint} does not accept the token: make a new one, or pass "
                    f"token=False for a public {self.noun}"
                )
            case Refusal.OFFLINE:
                text = f"HF_HUB_OFFLINE=1 forbids to read from {self.endpoint}: unset it"
            case Refusal.OTHER:
                text = detail
        return StorageError(f"{subject}: {text}")

    def _token_hint(self) -> str:
        if "authorization" in self.headers():
            return "the token that was sent gives no access"
        return 'found none: set HF_TOKEN or run "hf auth login"'


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryAddress(HubAddress):
    """Names a dataset repository; the version of each of its files is a commit."""

    kind = "datasets"
    noun = "dataset"
    version_header = "X-Repo-Commit"
    version_noun = "commit"
    version_remedy = ""

    def at(self, version: str) -> str:
        return f"{self.name}@{version[:12]}"

    def tree_url(self, version: str, directory: str, *, recursive: bool = True) -> str:
        query = "?recursive=true&expand=false" if recursive else "?expand=false"
        return self.api_url("tree", version, (self.prefix + directory).rstrip("/")) + query

    def file_url(self, version: str, path: str) -> str:
        return (
            f"{self.endpoint}/datasets/{self.repo_id}/resolve/{version}/{quote(self.prefix + path)}"
        )


def name_repository(
    repo_id: str,
    *,
    endpoint: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    options: StorageOptions,
) -> RepositoryAddress:
    """Returns a checked `RepositoryAddress`; what is None is taken from the environment, as
    huggingface_hub does it.

    Raises:
      InvalidRequestError: no such repository, endpoint or token can exist.
    """
    try:
        validate_repo_id(repo_id)
    except hub_errors.HFValidationError as error:
        raise InvalidRequestError(
            f"{repo_id!r} cannot be the name of a repository: {error}"
        ) from None
    endpoint = checked_endpoint(
        endpoint or huggingface_hub.constants.ENDPOINT,
        of="a Hub",
        example="https://huggingface.co",
    )
    if isinstance(token, str) and not is_token(token):
        raise InvalidRequestError(
            "token: expected printable characters without blanks around them; pass None for the "
            "one of the environment"
        )
    directory = os.path.abspath(
        os.path.expanduser(cache_dir or huggingface_hub.constants.HF_HUB_CACHE)
    )
    return RepositoryAddress(repo_id, endpoint, directory, token, options)


def disk_cache_directory(cache_dir: str | os.PathLike[str] | None = None) -> str:
    """Returns where video, rows and indices are kept, for what is given as the cache of
    huggingface_hub; `None`: the usual one.

    It is what LEROBOT_GRAIN_CACHE says; else a folder in HF_HOME, next to the usual cache, or
    inside of another cache that the user chose.
    """
    constants = huggingface_hub.constants
    usual = os.path.abspath(os.path.expanduser(constants.HF_HUB_CACHE))
    chosen = usual if cache_dir is None else os.path.abspath(os.path.expanduser(cache_dir))
    parent = constants.HF_HOME if chosen == usual else chosen
    root = os.environ.get("LEROBOT_GRAIN_CACHE") or os.path.join(parent, "lerobot_grain")
    return os.path.abspath(os.path.expanduser(root))


def frame_cache_directory() -> str:
    """Returns where decoded frames are kept if nothing else is said: next to pieces of files."""
    return os.path.join(disk_cache_directory(), "frames")


def is_offline() -> bool:
    """Returns whether HF_HUB_OFFLINE forbids to use the network."""
    return hub_is_offline()


@functools.cache
def _library_version() -> str:
    try:
        return importlib.metadata.version("lerobot_grain")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
