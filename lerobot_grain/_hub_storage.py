"""Reading one commit of a data set repository on the Hugging Face Hub.

The idea: the Hub is asked once per file where its bytes are (one HEAD on `/resolve/<commit>/<path>`), and the answer, a signed link to the
CDN, serves every range of that file for up to an hour. The Hub limits how often it may be asked; the CDN does not.

Rules:
* A name of a revision is sent once, to learn its commit. All other URLs hold the commit, so nothing that happens to the repository
  changes what is read.
* The token goes to the endpoint's own origin, never to the CDN, and no redirect takes it elsewhere.
* Every answer is checked: its commit, status 206, exactly the range asked for, the file's size, the same ETag, no compression, no byte too
  few or too many.
* Errors of huggingface_hub are translated, never chained: their texts hold signed links, and their pickles the token.

A bucket is read by the same session; `_bucket_storage` says what differs. No Xet chunks are read, and no checksums verified (a flipped
byte is left to the decoders to find).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, NamedTuple, NoReturn
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, validate_repo_id  # type: ignore[attr-defined]  # documented there, but not in its __all__

from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._errors import InvalidRequestError, LeRobotGrainError, MissingFileError, StorageError
from lerobot_grain._transport import (
    MAX_HOPS,
    Answer,
    Deadline,
    LinkRefused,
    RangeSource,
    StorageOptions,
    StorageStatistics,
    TransientFailure,
    Transport,
    describe_url,
    lifetime_seconds,
    next_hop,
    origin_of,
)

# New links for one range after the CDN said 403. Signing has been broken for hours at a time, so this must end.
_MAX_FRESH_LINKS = 2
# The Hub sends 1,000 entries a page, about 200 bytes each; both limits are far above what a `meta/` needs.
_MAX_JSON_BYTES = 32 * 1024 * 1024
_MAX_PAGES = 1000
# A request of 200 MB cannot be held to the deadline of one of 64 KB.
_BYTES_PER_DEADLINE = 8 * 1024 * 1024

COMMIT = re.compile(r"[0-9a-f]{40}")
# No user and password, which would come back in messages; a path, because mirrors may have one.
_ENDPOINT = re.compile(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[\w./~-]*)?")
# Of the versions of the format that are read.
_VERSION_TAG = re.compile(r"v(2\.[01]|3\.[0-9]{1,9}(\.[0-9]{1,9})?)")
_SIZE = re.compile(r"\d{1,18}")
_NEXT_PAGE = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class ListedFile(NamedTuple):
    """A file as a listing of the Hub has it: the hash of its contents that Xet uses is empty where the listing has none."""

    path: str
    size_bytes: int
    xet_hash: str


@dataclasses.dataclass(frozen=True, slots=True)
class HubRepository(abc.ABC):
    """Names something on the Hub that holds files, and how it is read: a data set, or a bucket. Of each file one *version* is read.

    The token is what the user gave: None (of the environment, the normal case), True, False, or the token itself. Only in the last case it
    is part of the pickle, because another process could not find it otherwise; it is never part of a text.

    Attributes:
      kind: how its addresses begin: `datasets` or `buckets`.
      noun: what it is called in messages.
      version_header: says, in the answer from `file_url`, which version of the file it is about.
      version_noun: what a version is called in messages.
      version_remedy: what to do when the answer is about another one.
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

    @abc.abstractmethod
    def at(self, version: str) -> str:
        """Returns how it is called in messages about `version`."""

    @abc.abstractmethod
    def tree_url(self, version: str, directory: str) -> str:
        """Returns the address of the first page of the list of all files below `directory`."""

    @abc.abstractmethod
    def file_url(self, version: str, path: str) -> str:
        """Returns the address at which the Hub says where the bytes of a file are."""

    def headers(self) -> dict[str, str]:
        """Returns the headers for the endpoint. To be called for each request: a token may have been refreshed in the meantime."""
        try:
            return build_hf_headers(token=self.token, library_name="lerobot_grain", library_version=_library_version())
        except hub_errors.LocalTokenNotFoundError:
            raise InvalidRequestError(f'{self.repo_id}: token=True, but there is none: set HF_TOKEN or run "hf auth login"') from None

    def api_url(self, *parts: str) -> str:
        return "/".join([f"{self.endpoint}/api/{self.kind}/{self.repo_id}", *(quote(part, safe="") for part in parts)])

    def fail(self, kind: str, subject: str, detail: str = "") -> NoReturn:
        """Raises the error for what `_kind_of_answer` or `kind_of_error` returned; `detail` is the text for what has none here."""
        page = f"{self.endpoint}/{self.kind}/{self.repo_id}"
        texts = {
            "gated": f"{self.repo_id} is gated: ask for access on its page {page} and pass a token ({self._token_hint()})",
            "missing repository": (
                f"there is no {self.noun} {self.repo_id} on {self.endpoint}, or it is private, which looks the same without access "
                f"({self._token_hint()})"
            ),
            "missing revision": "the repository has no such revision",
            "missing file": "the repository has no such file at this revision",
            "disabled": f"access to {self.repo_id} has been disabled by the Hub or its owner, see {page}",
            "bad token": f"{self.endpoint} does not accept the token: make a new one, or pass token=False for a public {self.noun}",
            "offline": f"HF_HUB_OFFLINE=1 forbids to read from {self.endpoint}: unset it",
        }
        failure = MissingFileError if kind == "missing file" else StorageError
        raise failure(f"{subject}: {texts.get(kind, detail or kind)}") from None

    def _token_hint(self) -> str:
        if "authorization" in self.headers():
            return "the token that was sent gives no access"
        return 'found none: set HF_TOKEN or run "hf auth login"'


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetRepository(HubRepository):
    """Names a data set repository; the version of each of its files is a commit."""

    kind = "datasets"
    noun = "data set"
    version_header = "X-Repo-Commit"
    version_noun = "commit"
    version_remedy = ""

    def at(self, version: str) -> str:
        return f"{self.repo_id}@{version[:12]}"

    def tree_url(self, version: str, directory: str) -> str:
        return self.api_url("tree", version, directory) + "?recursive=true&expand=false"

    def file_url(self, version: str, path: str) -> str:
        return f"{self.endpoint}/datasets/{self.repo_id}/resolve/{version}/{quote(path)}"


def name_repository(
    repo_id: str, *, endpoint: str | None, cache_dir: str | os.PathLike[str] | None, token: str | bool | None, options: StorageOptions
) -> DatasetRepository:
    """Returns a checked `DatasetRepository`; what is None is taken from the environment, as huggingface_hub does it.

    Raises:
      InvalidRequestError: no such repository, endpoint or token can exist.
    """
    try:
        validate_repo_id(repo_id)
    except hub_errors.HFValidationError as error:
        raise InvalidRequestError(f"{repo_id!r} cannot be the name of a repository: {error}") from None
    endpoint = (endpoint or huggingface_hub.constants.ENDPOINT).rstrip("/")
    if not _ENDPOINT.fullmatch(endpoint):
        raise InvalidRequestError(
            f"endpoint {endpoint.rpartition('@')[2]!r}: expected the address of a Hub, such as https://huggingface.co"
        )
    if isinstance(token, str) and (not token.isascii() or not token.isprintable() or token != token.strip() or not token):
        raise InvalidRequestError(
            "token: expected printable characters without blanks around them; pass None for the one of the environment"
        )
    directory = os.path.abspath(os.path.expanduser(cache_dir or huggingface_hub.constants.HF_HUB_CACHE))
    return DatasetRepository(repo_id, endpoint, directory, token, options)


def newest_version_tag(tags: list[str]) -> str:
    """Returns the newest of `v3.x`, `v2.1` and `v2.0` by number, or "main" when there is none of them.

    As lerobot does: a tag stands for a version of the format, and moves when a data set is uploaded again. `main` may be anything.
    """
    found = [tag for tag in tags if _VERSION_TAG.fullmatch(tag)]
    return max(found, key=lambda tag: [int(number) for number in tag[1:].split(".")], default="main")


@dataclasses.dataclass(slots=True, eq=False)
class _Link(RangeSource):
    """A place that the Hub named, how long it may be used (in time.monotonic), and the Hub's own ETag of the file (its SHA-256)."""

    expires_at: float = 0.0
    content_id: str | None = None


@functools.cache
def _library_version() -> str:
    try:
        return importlib.metadata.version("lerobot_grain")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _kind_of_answer(answer: Answer) -> str | None:
    """Returns what an answer of the Hub complains about, or None. `X-Error-Code` is its own word, as huggingface_hub reads it."""
    code = answer.headers.get("X-Error-Code")
    message = answer.headers.get("X-Error-Message", "")
    by_code = {
        "GatedRepo": "gated",
        "RepoNotFound": "missing repository",
        "RevisionNotFound": "missing revision",
        "EntryNotFound": "missing file",
    }
    if answer.status < 400:
        return None
    if code in by_code:
        return by_code[code]
    if message == "Access to this resource is disabled.":
        return "disabled"
    if answer.status == 401:
        # huggingface_hub tells these two apart in the same way: without access, everything looks missing.
        return "bad token" if message == "Invalid credentials in Authorization header" else "missing repository"
    return f"HTTP {answer.status}"


# In this order, because GatedRepoError is a RepositoryNotFoundError.
_KIND_OF_ERROR: tuple[tuple[type[BaseException], str], ...] = (
    (hub_errors.GatedRepoError, "gated"),
    (hub_errors.RepositoryNotFoundError, "missing repository"),
    (hub_errors.RevisionNotFoundError, "missing revision"),
    (hub_errors.RemoteEntryNotFoundError, "missing file"),
    (hub_errors.DisabledRepoError, "disabled"),
    (hub_errors.OfflineModeIsEnabled, "offline"),
)


def is_offline() -> bool:
    """Returns whether HF_HUB_OFFLINE forbids to use the network."""
    return huggingface_hub.is_offline_mode()


def kind_of_error(error: BaseException) -> str | None:
    """Returns the kind for `HubRepository.fail` of an error of huggingface_hub, or None when it may be worth another attempt."""
    for error_type, kind in _KIND_OF_ERROR:
        if isinstance(error, error_type):
            return kind
    if isinstance(error, hub_errors.HfHubHTTPError):
        answer = Answer(error.response.status_code, error.response.headers)
        return None if answer.status in (408, 429) or answer.status >= 500 else _kind_of_answer(answer)
    return None


class HubSession:
    """The requests of one process to one repository. Thread-safe; not picklable; not to be used after a fork."""

    def __init__(self, repository: HubRepository) -> None:
        if is_offline():
            repository.fail("offline", repository.repo_id)
        self._repository = repository
        self._transport = Transport(repository.options)
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        self._being_resolved: dict[str, Future[_Link]] = {}
        # A session that is simply forgotten closes its sockets too. Not at exit, where a forked child would run what its parent set up.
        self._finalizer = weakref.finalize(self, self._transport.close)
        self._finalizer.atexit = False

    def close(self) -> None:
        self._finalizer()

    def statistics(self) -> StorageStatistics:
        return self._transport.counters.snapshot()

    # The API: only while a data set is being opened.

    def default_revision(self) -> str:
        """Returns what `newest_version_tag` finds. One request."""
        return newest_version_tag(self._references()["tags"])

    def commit_of(self, revision: str) -> str:
        """Returns the commit that a branch, a tag or a commit stands for now. One request, none for a whole commit hash.

        The list of references holds hashes too, but whether the one of an annotated tag is that of the tag or of the commit is not
        documented.
        """
        if COMMIT.fullmatch(revision):
            return revision
        subject = f"{self._repository.repo_id}@{revision}"
        answer, found = self._get_json(self._repository.api_url("revision", revision), subject)
        if _kind_of_answer(answer) == "missing revision":
            known = self._references()
            names = ", ".join(known["tags"] + known["branches"]) or "none"
            raise StorageError(f"{subject}: the repository has no revision {revision!r}; its tags and branches: {names}")
        self._check_kind(answer, subject)
        sha = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
            raise StorageError(f"{subject}: {self._repository.endpoint} told no commit hash for the revision")
        return sha

    def list_files(self, commit: str, directory: str) -> dict[str, int]:
        """Returns path -> size in bytes of all files under `directory`, as `list_tree` does."""
        return {file.path: file.size_bytes for file in self.list_tree(commit, directory)}

    def list_tree(self, version: str, directory: str) -> list[ListedFile]:
        """Returns all files under `directory`, none if it does not exist. One request for each 1,000 entries."""
        subject = f"{self._repository.at(version)}: {directory}/"
        url = first = self._repository.tree_url(version, directory)
        files: list[ListedFile] = []
        for _ in range(_MAX_PAGES):
            answer, entries = self._get_json(url, subject)
            if _kind_of_answer(answer) == "missing file":
                return files
            self._check_kind(answer, subject)
            for entry in entries if isinstance(entries, list) else [None]:
                match entry:
                    case {"type": "file", "path": str(path), "size": int(size), **rest} if size >= 0:
                        files.append(ListedFile(path, size, str(rest.get("xetHash", ""))))
                    case {"type": "directory"}:
                        pass
                    case _:
                        raise StorageError(f"{subject}: {self._repository.endpoint} sent a listing that is not understood")
            following = _NEXT_PAGE.search(answer.headers.get("Link", ""))
            if following is None:
                return files
            # Only the query of the link, which holds the cursor: a mirror may pass on links of the original, and the token must stay here.
            url = f"{first.partition('?')[0]}?{following[1].partition('?')[2]}"
        raise StorageError(f"{subject}: more than {_MAX_PAGES} pages of files, expected a few")

    def download(self, commit: str, path: str) -> str:
        """Returns where a whole small file lies in the cache of huggingface_hub, after downloading it if need be."""
        repository = self._repository
        subject = f"{repository.at(commit)}: {path}"

        def attempt(_: Deadline) -> str:
            try:
                return huggingface_hub.hf_hub_download(
                    repository.repo_id,
                    path,
                    repo_type="dataset",
                    revision=commit,
                    cache_dir=repository.cache_dir,
                    endpoint=repository.endpoint,
                    token=repository.token,
                    library_name="lerobot_grain",
                    library_version=_library_version(),
                )
            except Exception as error:
                problem = error
            # Outside of the handler, so that nothing secret is chained to what is raised.
            cause = problem.__cause__ if isinstance(problem, hub_errors.LocalEntryNotFoundError) and problem.__cause__ else problem
            if isinstance(cause, hub_errors.LocalTokenNotFoundError):
                repository.headers()
            if kind := kind_of_error(cause):
                repository.fail(kind, subject)
            if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, (ConnectionError, TimeoutError)):
                raise StorageError(f"{subject}: cannot be kept in {repository.cache_dir}: {cause.strerror}")
            raise TransientFailure(_name_of(cause))

        return self._transport.retry(f"{subject}: download", repository.options.deadline_seconds, attempt)

    def _references(self) -> dict[str, list[str]]:
        subject = f"{self._repository.repo_id}: list of tags and branches"
        answer, found = self._get_json(self._repository.api_url("refs"), subject)
        self._check_kind(answer, self._repository.repo_id)
        try:
            return {kind: [str(reference["name"]) for reference in found[kind]] for kind in ("tags", "branches")}
        except (KeyError, TypeError):
            raise StorageError(f"{subject}: {self._repository.endpoint} sent one that is not understood") from None

    def _get_json(self, url: str, subject: str) -> tuple[Answer, Any]:
        """Returns the answer and, if it is a good one, its parsed body."""

        def attempt(deadline: Deadline) -> tuple[Answer, Any]:
            body: list[bytes] = []
            answer = self._transport.exchange(
                "GET",
                url,
                self._repository.headers(),
                subject=subject,
                deadline=deadline,
                accept=lambda answer: _MAX_JSON_BYTES if answer.status == 200 else None,
                body=body,
            )
            if answer.status != 200:
                return answer, None
            try:
                return answer, json.loads(b"".join(body))
            except (ValueError, RecursionError):
                raise StorageError(f"{subject}: {describe_url(url)} answered with something that is not JSON") from None

        return self._transport.retry(subject, self._repository.options.deadline_seconds, attempt)

    def _check_kind(self, answer: Answer, subject: str) -> None:
        if kind := _kind_of_answer(answer):
            self._repository.fail(kind, subject, f"{self._repository.endpoint} answered with HTTP {answer.status}")

    # The files, each in the version that is pinned: any number of threads.

    def size_bytes(self, version: str, path: str) -> int:
        """Returns the size of a file. One request for the first of all calls for this file."""
        known = self._links.get(path)  # the size outlives the link
        return (known or self._link(version, path)).file_bytes

    def read_range(self, version: str, path: str, wanted: ByteRange) -> bytes:
        """Returns the bytes of `wanted`, which is not empty and inside of the file. One request, one more where a link is missing."""
        subject = f"{self._repository.at(version)}: {path} bytes {wanted}"
        seconds = self._repository.options.deadline_seconds * -(-wanted.length // _BYTES_PER_DEADLINE)
        pieces: list[bytes] = []
        refused: _Link | None = None
        for _ in range(1 + _MAX_FRESH_LINKS):
            link = self._link(version, path, refused)

            def attempt(deadline: Deadline, link: _Link = link) -> bytes:
                return self._transport.read_range(link, wanted, pieces, subject=subject, deadline=deadline)

            try:
                return self._transport.retry(subject, seconds, attempt)
            except LinkRefused as refusal:
                refused, reason = link, str(refusal)
        raise StorageError(
            f"{subject}: {reason} also for {_MAX_FRESH_LINKS} fresh links; the server may be out of order, or a proxy changes the links"
        )

    def _link(self, version: str, path: str, refused: _Link | None = None) -> _Link:
        """Returns a link to the file that is valid and not `refused`. One thread asks the Hub, all others who want the file wait."""
        while True:
            with self._lock:
                known = self._links.get(path)
                if known is not None and known is not refused and time.monotonic() < known.expires_at:
                    return known
                pending = self._being_resolved.get(path)
                if pending is None:
                    mine = self._being_resolved[path] = Future()
                    break
            problem = pending.exception()
            if problem is None:
                return pending.result()
            if isinstance(problem, LeRobotGrainError):
                raise type(problem)(str(problem))  # a new one: threads must not share a traceback
        try:
            link = self._resolve(version, path)
            if known is not None and (known.file_bytes, known.content_id) != (link.file_bytes, link.content_id):
                raise StorageError(
                    f"{self._repository.at(version)}: {path}: the file was changed: {link.file_bytes} bytes, before {known.file_bytes}"
                )
        except BaseException as error:
            with self._lock:
                del self._being_resolved[path]
            mine.set_exception(error)
            raise
        with self._lock:
            self._links[path] = link
            del self._being_resolved[path]
        mine.set_result(link)
        return link

    def _resolve(self, version: str, path: str) -> _Link:
        repository = self._repository
        subject = f"{repository.at(version)}: {path}"
        first = repository.file_url(version, path)

        def attempt(deadline: Deadline) -> _Link:
            url = first
            headers = repository.headers()
            for _ in range(MAX_HOPS + 1):
                answer = self._transport.exchange("HEAD", url, headers, subject=subject, deadline=deadline, accept=lambda _: None, body=[])
                self._check_kind(answer, subject)
                found = answer.headers.get(repository.version_header, version if url != first else "none")
                if found != version:
                    remedy = "" if found == "none" else repository.version_remedy
                    told = f"answered for {repository.version_noun} {found}, expected {version}{remedy}"
                    raise StorageError(f"{subject}: {repository.endpoint} {told}")
                if answer.status == 200:
                    return _link_from(answer, url, headers, "Content-Length", "ETag", subject)
                target = next_hop(url, answer.headers.get("Location"), subject=subject)
                at_home = origin_of(target) == origin_of(repository.endpoint)
                if not at_home or "X-Linked-Size" in answer.headers:
                    return _link_from(answer, target, headers if at_home else {}, "X-Linked-Size", "X-Linked-ETag", subject)
                url = target
            raise StorageError(f"{subject}: more than {MAX_HOPS} redirects, the last one to {describe_url(url)}")

        return self._transport.retry(subject, repository.options.deadline_seconds, attempt)


def _name_of(error: BaseException) -> str:
    """Returns what may be said of an error of another library: its type and, of an answer, the status. The text may hold a link."""
    status = f" (HTTP {error.response.status_code})" if isinstance(error, hub_errors.HfHubHTTPError) else ""
    return f"{type(error).__name__}{status}"


def _link_from(answer: Answer, url: str, headers: Mapping[str, str], size_header: str, etag_header: str, subject: str) -> _Link:
    size = answer.headers.get(size_header, "none")
    if not _SIZE.fullmatch(size):
        raise StorageError(f"{subject}: the Hub told no size of the file ({size_header}: {size})")
    return _Link(
        url,
        headers,
        int(size),
        expires_at=time.monotonic() + lifetime_seconds(url, answer.headers.get("Date")),
        content_id=answer.headers.get(etag_header),
    )
