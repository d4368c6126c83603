"""Reading one commit of a dataset repository on the Hugging Face Hub.

The idea: the Hub is asked once per file where its bytes are (one HEAD on
`/resolve/<commit>/<path>`), and the answer, a signed link to the CDN, serves every range of that
file for up to an hour. The Hub limits how often it may be asked; the CDN does not.

Rules:
* A name of a revision is sent once, to learn its commit. All other URLs hold the commit, so nothing
  that happens to the repository changes what is read.
* The token goes to the endpoint's own origin, never to the CDN, and no redirect takes it elsewhere.
* Every answer is checked: its commit, status 206, exactly the range asked for, the file's size, the
  same ETag, no compression, no byte too few or too many. One that is wrong is asked for again, as
  one that broke.
* The list of a commit counts for more than the headers of a response: mirrors report wrong lengths.
* A file of `meta/` is read whole and compared with its size and hash; only then it may be kept in
  the cache of huggingface_hub. That of a mirror which tells no hash is kept nowhere.
* A Git LFS pointer in place of a file is told by its contents, and never taken for the file.

A bucket is read by the same session; `_storage/hub/bucket_storage` says what differs. No Xet chunks
are read, and a range has no checksum: a flipped byte in rows or video is left to the decoders to
find.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import LeRobotGrainError, StorageError
from lerobot_grain._format.layout import newest_version_tag
from lerobot_grain._storage.git_files import (
    MAX_POINTER_BYTES,
    LfsPointer,
    blob_name,
    hash_in,
    hash_like,
    lfs_pointer,
)
from lerobot_grain._storage.http.calls import Call, Deadline, cut_into_requests, seconds_for
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS
from lerobot_grain._storage.http.client import MAX_HOPS, RequestCancelledError
from lerobot_grain._storage.http.responses import (
    REDIRECTS,
    LinkRefused,
    RangeSource,
    Response,
    RetryableError,
    cut,
    describe_url,
    host_of,
    lifetime_seconds,
    next_hop,
    origin_of,
    size_in,
)
from lerobot_grain._storage.http.session import Session
from lerobot_grain._storage.hub.address import (
    HubAddress,
    ListedFile,
    Refusal,
    is_offline,
)
from lerobot_grain._storage.hub.api import HubApi, circle

# New links for one range after the CDN said 403. Signing has been broken for hours at a time, so
# this must end.
_MAX_FRESH_LINKS = 2
# Readings of a file whose contents do not have their hash.
_MAX_READINGS = 3


@dataclasses.dataclass(slots=True, eq=False)
class _Link(RangeSource):
    """A place that the Hub named, how long it may be used (in time.monotonic), and the Hub's own
    ETag of the file (its SHA-256).
    """

    expires_at: float = 0.0
    content_id: str | None = None


class _UntoldSizeError(Exception):
    """A server that serves a file itself tells no size of it; the text says what it told."""


class HubSession(Session):
    """The requests of one process to one repository.

    Thread-safe; not picklable; not to be used after a fork.

    Attributes:
      api: asks the API of the Hub, and knows how the repository is called now.
    """

    def __init__(self, repository: HubAddress) -> None:
        if is_offline():
            raise repository.refusal(Refusal.OFFLINE, repository.repo_id)
        super().__init__(repository.options)
        self.api = HubApi(repository, self._client)
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        self._being_resolved: dict[str, Future[_Link]] = {}

    @property
    def _repository(self) -> HubAddress:
        return self.api.repository

    def default_revision(self) -> str:
        """Returns what `newest_version_tag` finds among tags and branches. One request."""
        tags, branches = self.api.references()
        name = newest_version_tag([*tags, *branches])
        if name in tags and name in branches and tags[name] != branches[name]:
            self.api.note(
                f"revision {name}: there is a tag and a branch of this name; what is read is what "
                "the Hub takes the name for"
            )
        return name

    def read_whole(self, version: str, file: ListedFile) -> tuple[bytes, str]:
        """Returns the contents of a small file, which have the size and hash that are known of it,
        and `blob_name` of them.

        The name is `""` where no hash is known: only the size was checked, and nobody else may take
        them for the file.

        Raises:
          StorageError: they could not be fetched, or are others.
        """
        subject = f"{self._repository.at(version)}: {file.path}"
        size = file.size_bytes
        for _ in range(_MAX_READINGS):
            contents = (
                self.read_range(version, file.path, ByteRange(0, size), file_bytes=size)
                if size
                else b""
            )
            told = file.content_hash or hash_in(self._link(version, file.path, size).content_id)
            if (name := blob_name(contents, told)) is not None:
                return contents, name if told else ""
        raise StorageError(
            f"{subject}: its contents have the hash {hash_like(contents, told)}, expected {told}, "
            f"also when read {_MAX_READINGS} times; something on the way changes them"
        )

    # The files, each in the version that is pinned: any number of threads.

    def size_bytes(self, version: str, path: str) -> int:
        """Returns the size of a file. One request for the first of all calls for this file."""
        known = self._links.get(path)  # the size outlives the link
        return (known or self._link(version, path, None)).file_bytes

    def read_range(
        self, version: str, path: str, wanted: ByteRange, *, file_bytes: int | None = None
    ) -> bytes:
        """Returns the bytes of `wanted`, which is not empty and inside of the file.

        One request, one more where a link is missing, and one for each further 128 MiB.

        Args:
          version, path: of the file.
          wanted: of its bytes.
          file_bytes: its size, where it was listed.
        """
        parts = [
            self._read_part(version, path, part, file_bytes) for part in cut_into_requests(wanted)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_part(
        self, version: str, path: str, wanted: ByteRange, file_bytes: int | None
    ) -> bytes:
        subject = f"{self._repository.at(version)}: {path} bytes {wanted}"
        seconds = seconds_for(wanted, self._repository.options.deadline_seconds)
        pieces: list[bytes] = []
        refused: _Link | None = None
        for _ in range(1 + _MAX_FRESH_LINKS):
            link = self._link(version, path, file_bytes, refused)

            def attempt(deadline: Deadline, link: _Link = link) -> bytes:
                return self._client.read_range(
                    link, wanted, pieces, subject=subject, deadline=deadline
                )

            try:
                return self._client.retry(subject, seconds, attempt)
            except LinkRefused as refusal:
                refused = link
                reason = str(refusal)
            except StorageError:
                self._forget(path, link)
                if (
                    pointer := self._pointer_at(link, subject, pieces if wanted.start == 0 else [])
                ) is not None:
                    raise StorageError(
                        f"{subject}: {host_of(link.url)} sent {pointer}, in place of the file of "
                        f"{link.file_bytes} bytes; a mirror without Git LFS does that: read from "
                        "one that has it, or from the Hub itself"
                    ) from None
                raise
        raise StorageError(
            f"{subject}: {reason} also for {_MAX_FRESH_LINKS} fresh links; the server may be out "
            "of order, or a proxy changes the links"
        )

    def _pointer_at(self, link: _Link, subject: str, received: list[bytes]) -> LfsPointer | None:
        """Returns the Git LFS pointer that was sent in place of a file, where the answers look like
        that. At most one request.
        """
        if (pointer := lfs_pointer(b"".join(received))) is not None or not link.may_be_pointer:
            return pointer
        body: list[bytes] = []

        def attempt(deadline: Deadline) -> Response:
            call = Call(
                "GET",
                link.url,
                {**link.headers, "Range": f"bytes=0-{MAX_POINTER_BYTES - 1}"},
                subject=subject,
                deadline=deadline,
                accept=lambda answer: MAX_POINTER_BYTES if answer.status in (200, 206) else None,
            )
            return self._client.exchange(call, body)

        with contextlib.suppress(StorageError, RetryableError):
            self._client.retry(subject, self._repository.options.deadline_seconds, attempt)
        return lfs_pointer(b"".join(body))

    def _forget(self, path: str, link: _Link) -> None:
        """Drops a link that has failed: what the Hub told with it may be wrong, or another CDN do
        better. The next read asks for another.
        """
        with self._lock:
            if self._links.get(path) is link:
                del self._links[path]

    def _link(
        self, version: str, path: str, file_bytes: int | None, refused: _Link | None = None
    ) -> _Link:
        """Returns a link to the file that is valid and not `refused`.

        One thread asks the Hub; all others that want the file wait.

        Its size is `file_bytes`, where that is known.
        """
        while True:
            with self._lock:
                known = self._links.get(path)
                if (
                    known is not None
                    and known is not refused
                    and time.monotonic() < known.expires_at
                ):
                    return known
                pending = self._being_resolved.get(path)
                if pending is None:
                    mine = self._being_resolved[path] = Future()
                    break
            while not pending.done():
                self._client.check_not_ended(f"{self._repository.at(version)}: {path}")
                futures.wait([pending], CHECK_SECONDS)
            problem = pending.exception()
            if problem is None:
                return pending.result()
            # If only the other thread was ended, this one asks itself.
            if isinstance(problem, LeRobotGrainError) and not isinstance(
                problem, RequestCancelledError
            ):
                raise type(problem)(str(problem))  # a new one: threads must not share a traceback
        try:
            link = self._resolve(version, path, file_bytes)
            if known is not None and (known.file_bytes, known.content_id) != (
                link.file_bytes,
                link.content_id,
            ):
                raise StorageError(
                    f"{self._repository.at(version)}: {path}: the file was changed: "
                    f"{link.file_bytes} bytes, before {known.file_bytes}"
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

    def _resolve(self, version: str, path: str, file_bytes: int | None) -> _Link:
        subject = f"{self._repository.at(version)}: {path}"
        try:
            return self._ask_for_link(version, path, file_bytes, subject)
        except _UntoldSizeError as problem:
            untold = str(problem)
        try:
            listed = self.api.listed_size(version, path)
        except RequestCancelledError:
            raise
        except StorageError:
            listed = None
        if listed is None:
            raise StorageError(
                f"{subject}: {untold}, and no list of files tells it either; a mirror that does "
                "not is of no use here"
            )
        return self._ask_for_link(version, path, listed, subject)

    def _ask_for_link(self, version: str, path: str, file_bytes: int | None, subject: str) -> _Link:
        def attempt(deadline: Deadline) -> _Link:
            asked = [self._repository.file_url(version, path)]
            is_first = True
            while len(asked) <= MAX_HOPS + 1:
                url = asked[-1]
                headers = self._repository.headers()
                call = Call(
                    "HEAD",
                    url,
                    headers,
                    subject=subject,
                    deadline=deadline,
                    accept=lambda _: None,
                )
                answer = self._client.exchange(call, [])
                self.api.check_refusal(answer, subject)
                location = answer.headers.get("Location")
                if answer.status in REDIRECTS and self.api.adopt_name(
                    url, next_hop(url, location, subject=subject), subject
                ):
                    target = self._repository.file_url(version, path)
                else:
                    self.api.check_version(
                        answer, version, "none" if is_first else version, subject
                    )
                    if answer.status == 200:
                        return _link_from(
                            answer, url, headers, file_bytes, "Content-Length", "ETag"
                        )
                    target = next_hop(url, location, subject=subject)
                    at_home = origin_of(target) == origin_of(self._repository.endpoint)
                    if not at_home or "X-Linked-Size" in answer.headers:
                        return _link_from(
                            answer,
                            target,
                            headers if at_home else {},
                            file_bytes,
                            "X-Linked-Size",
                            "X-Linked-ETag",
                        )
                    is_first = False
                if target in asked:
                    raise circle(subject, [*asked, target])
                asked.append(target)
            raise RetryableError(
                f"more than {MAX_HOPS} redirects, the last one to {describe_url(asked[-1])}"
            )

        return self._client.retry(subject, self._repository.options.deadline_seconds, attempt)


def _link_from(
    answer: Response,
    url: str,
    headers: Mapping[str, str],
    file_bytes: int | None,
    size_header: str,
    etag_header: str,
) -> _Link:
    if file_bytes is None and (file_bytes := size_in(answer, size_header, etag_header)) is None:
        untold = (
            f"the Hub told no size of the file ({size_header}: "
            f"{cut(answer.headers.get(size_header, 'none'))})"
        )
        raise _UntoldSizeError(untold) if answer.status == 200 else RetryableError(untold)
    return _Link(
        url,
        headers,
        file_bytes,
        expires_at=time.monotonic() + lifetime_seconds(url, answer.headers.get("Date")),
        content_id=answer.headers.get(etag_header),
    )
