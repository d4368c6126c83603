"""Reading one commit of a data set repository on the Hugging Face Hub.

The idea: the Hub is asked once per file where its bytes are (one HEAD on `/resolve/<commit>/<path>`), and the answer, a signed link to the
CDN, serves every range of that file for up to an hour. The Hub limits how often it may be asked; the CDN does not.

Rules:
* A name of a revision is sent once, to learn its commit. All other URLs hold the commit, so nothing that happens to the repository
  changes what is read.
* The token goes to the endpoint's own origin, never to the CDN, and no redirect takes it elsewhere.
* Every answer is checked: its commit, status 206, exactly the range asked for, the file's size, the same ETag, no compression, no byte too
  few or too many. One that is wrong is asked for again, as one that broke.
* A file of `meta/` is read whole, compared with the hash that the Hub tells, and kept in the cache of huggingface_hub.

A bucket is read by the same session; `_bucket_storage` says what differs. No Xet chunks are read, and a range has no checksum: a flipped
byte in rows or video is left to the decoders to find.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future
from typing import Any, NamedTuple

from lerobot_grain._answers import (
    Answer,
    LinkRefused,
    RangeSource,
    TransientFailure,
    describe_url,
    lifetime_seconds,
    next_hop,
    origin_of,
)
from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._disk_cache import DiskCache
from lerobot_grain._errors import LeRobotGrainError, StorageError
from lerobot_grain._hub_cache import hash_in, hash_of, keep_file
from lerobot_grain._hub_repository import COMMIT, HubRepository, disk_cache_directory, is_offline, newest_version_tag
from lerobot_grain._request_scope import CHECK_SECONDS
from lerobot_grain._storage_options import StorageStatistics
from lerobot_grain._transport import MAX_HOPS, Deadline, RequestsEndedError, Transport

# New links for one range after the CDN said 403. Signing has been broken for hours at a time, so this must end.
_MAX_FRESH_LINKS = 2
# The Hub sends 1,000 entries a page, about 200 bytes each; both limits are far above what a `meta/` needs.
_MAX_JSON_BYTES = 32 * 1024 * 1024
_MAX_PAGES = 1000
# A request of 128 MB cannot be held to the deadline of one of 64 KB.
_BYTES_PER_DEADLINE = 8 * 1024 * 1024
# No request is longer. The rows of a data file of 100 MB come in one, but a row group of embedded pictures may have gigabytes, and what
# comes in pieces is never asked for twice.
_MAX_REQUEST_BYTES = 128 * 1024 * 1024
# Readings of a file whose contents do not have their hash.
_MAX_READINGS = 3

_SIZE = re.compile(r"\d{1,18}")
_NEXT_PAGE = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class ListedFile(NamedTuple):
    """A file as a listing of the Hub has it: the hash of its contents that Xet uses is empty where the listing has none."""

    path: str
    size_bytes: int
    xet_hash: str


@dataclasses.dataclass(slots=True, eq=False)
class _Link(RangeSource):
    """A place that the Hub named, how long it may be used (in time.monotonic), and the Hub's own ETag of the file (its SHA-256)."""

    expires_at: float = 0.0
    content_id: str | None = None


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


class HubSession:
    """The requests of one process to one repository. Thread-safe; not picklable; not to be used after a fork.

    Attributes:
      disk_cache: keeps what was read for other processes and runs.
    """

    def __init__(self, repository: HubRepository) -> None:
        if is_offline():
            repository.fail("offline", repository.repo_id)
        self._repository = repository
        self._transport = Transport(repository.options)
        self.disk_cache = DiskCache(disk_cache_directory(repository.cache_dir), repository.options.disk_cache_bytes)
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
            answer, entries = self._get_json(url, subject, version)
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

    def download(self, commit: str, path: str) -> None:
        """Puts a whole small file into the cache of huggingface_hub."""
        repository = self._repository
        subject = f"{repository.at(commit)}: {path}"
        for _ in range(_MAX_READINGS):
            size = self._link(commit, path).file_bytes
            data = self.read_range(commit, path, ByteRange(0, size)) if size else b""
            told = hash_in(self._link(commit, path).content_id)
            found = hash_of(data, like=told or "")
            if told is None or found == told:
                try:
                    return keep_file(repository.cache_root, commit, path, data, found)
                except OSError as error:
                    raise StorageError(f"{subject}: cannot be kept in {repository.cache_dir}: {error.strerror}") from None
        raise StorageError(
            f"{subject}: its contents have the hash {found}, expected {told}, also when read {_MAX_READINGS} times; "
            "something on the way changes them"
        )

    def _references(self) -> dict[str, list[str]]:
        subject = f"{self._repository.repo_id}: list of tags and branches"
        answer, found = self._get_json(self._repository.api_url("refs"), subject)
        self._check_kind(answer, self._repository.repo_id)
        try:
            return {kind: [str(reference["name"]) for reference in found[kind]] for kind in ("tags", "branches")}
        except (KeyError, TypeError):
            raise StorageError(f"{subject}: {self._repository.endpoint} sent one that is not understood") from None

    def _get_json(self, url: str, subject: str, version: str | None = None) -> tuple[Answer, Any]:
        """Returns the answer and, if it is a good one, its parsed body. It must not be that for another version than `version`."""

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
            if version is not None:
                self._check_version(answer, version, version, subject)
            try:
                return answer, json.loads(b"".join(body))
            except (ValueError, RecursionError):
                problem = f"{describe_url(url)} answered with something that is not JSON"
            raise TransientFailure(problem)

        return self._transport.retry(subject, self._repository.options.deadline_seconds, attempt)

    def _check_kind(self, answer: Answer, subject: str) -> None:
        if kind := _kind_of_answer(answer):
            self._repository.fail(kind, subject, f"{self._repository.endpoint} answered with HTTP {answer.status}")

    def _check_version(self, answer: Answer, version: str, default: str, subject: str) -> None:
        repository = self._repository
        if (found := answer.headers.get(repository.version_header, default)) != version:
            told = f"{repository.endpoint} answered for {repository.version_noun} {found}, expected {version}"
            if repository.version_remedy and found != "none":
                raise StorageError(f"{subject}: {told}{repository.version_remedy}")
            raise TransientFailure(told)

    # The files, each in the version that is pinned: any number of threads.

    def size_bytes(self, version: str, path: str) -> int:
        """Returns the size of a file. One request for the first of all calls for this file."""
        known = self._links.get(path)  # the size outlives the link
        return (known or self._link(version, path)).file_bytes

    def knows(self, path: str) -> bool:
        """Returns whether `size_bytes` costs no request."""
        return path in self._links

    def read_range(self, version: str, path: str, wanted: ByteRange) -> bytes:
        """Returns the bytes of `wanted`, which is not empty and inside of the file.

        One request, one more where a link is missing, and one for each further 128 MiB.
        """
        starts = range(wanted.start, wanted.stop, _MAX_REQUEST_BYTES)
        parts = [self._read_part(version, path, ByteRange(start, min(start + _MAX_REQUEST_BYTES, wanted.stop))) for start in starts]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_part(self, version: str, path: str, wanted: ByteRange) -> bytes:
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
            except StorageError:
                self._forget(path, link)
                raise
        raise StorageError(
            f"{subject}: {reason} also for {_MAX_FRESH_LINKS} fresh links; the server may be out of order, or a proxy changes the links"
        )

    def _forget(self, path: str, link: _Link) -> None:
        """Drops a link that has failed: what the Hub told with it may be wrong, or another CDN do better. Who reads again asks again."""
        with self._lock:
            if self._links.get(path) is link:
                del self._links[path]

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
            while not pending.done():
                self._transport.check_not_ended(f"{self._repository.at(version)}: {path}")
                futures.wait([pending], CHECK_SECONDS)
            problem = pending.exception()
            if problem is None:
                return pending.result()
            # Where only the other thread was ended, this one asks itself.
            if isinstance(problem, LeRobotGrainError) and not isinstance(problem, RequestsEndedError):
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
                self._check_version(answer, version, version if url != first else "none", subject)
                if answer.status == 200:
                    return _link_from(answer, url, headers, "Content-Length", "ETag")
                target = next_hop(url, answer.headers.get("Location"), subject=subject)
                at_home = origin_of(target) == origin_of(repository.endpoint)
                if not at_home or "X-Linked-Size" in answer.headers:
                    return _link_from(answer, target, headers if at_home else {}, "X-Linked-Size", "X-Linked-ETag")
                url = target
            raise TransientFailure(f"more than {MAX_HOPS} redirects, the last one to {describe_url(url)}")

        return self._transport.retry(subject, repository.options.deadline_seconds, attempt)


def _link_from(answer: Answer, url: str, headers: Mapping[str, str], size_header: str, etag_header: str) -> _Link:
    size = answer.headers.get(size_header, "none")
    if not _SIZE.fullmatch(size):
        raise TransientFailure(f"the Hub told no size of the file ({size_header}: {size})")
    return _Link(
        url,
        headers,
        int(size),
        expires_at=time.monotonic() + lifetime_seconds(url, answer.headers.get("Date")),
        content_id=answer.headers.get(etag_header),
    )
