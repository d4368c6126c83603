"""Reading a dataset in a bucket of an object store over HTTP.

The idea: an object store is asked for each range directly, with a condition on the version that was
listed. Requests, retries, deadlines and canceling are those of the Hub (`_storage/http`); a library
of the store would have its own, which cannot be ended from here.

Rules:
* Every answer is checked as one of the CDN of the Hub is: status 206, exactly the range, the size
  that was listed, no compression. And it must be about the version that was listed.
* A version that is there no more (412, 404) is an error at once.
* If a store refuses credentials (400, 401, 403), they are got anew, twice at most, as links of the
  Hub are. Credentials that are the same again are not tried again.
* No redirect is followed. One to another region is an error by name, or, if nobody chose a region,
  the region of the bucket is taken.
* No message holds a key, a token or a signature.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import StorageError
from lerobot_grain._format.layout import FOLDERS
from lerobot_grain._storage.http.calls import Call, Deadline, cut_into_requests, seconds_for
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS
from lerobot_grain._storage.http.responses import (
    RangeSource,
    Response,
    RetryableError,
    accept_range,
    host_of,
)
from lerobot_grain._storage.http.session import Session
from lerobot_grain._storage.listed_files import CHANGED
from lerobot_grain._storage.objects.address import ListedObject, Page, StoreAddress
from lerobot_grain._storage.objects.credentials import Credentials, in_time

_T = TypeVar("_T")

# New credentials for one request after the store refused the ones before.
_MAX_RENEWALS = 2
# A page of 1,000 names of the greatest length, 1,024 bytes, three times as long when they are
# quoted, and a text of an error.
_MAX_PAGE_BYTES = 8 << 20
_MAX_ERROR_BYTES = 64 << 10
# What S3 says of a signature whose time is more than 15 minutes off.
_CLOCK_IS_WRONG = "RequestTimeTooSkewed"


class _RefusedError(Exception):
    """The store refuses a request; asking again in the same way is of no use.

    Attributes:
      answer, body: of the store.
      is_of_file: whether the bytes of a listed file were asked for.
    """

    def __init__(self, answer: Response, body: bytes, *, is_of_file: bool) -> None:
        super().__init__()
        self.answer = answer
        self.body = body
        self.is_of_file = is_of_file


class StoreSession(Session):
    """The requests of one process to one bucket.

    Thread-safe; not picklable; not to be used after a fork.

    Attributes:
      address: of the dataset, in the region that was found.
    """

    def __init__(self, address: StoreAddress) -> None:
        super().__init__(address.options)
        self.address = address
        self._credentials: Credentials | None = None
        # With the entity tags of the first answers: all that tells versions apart at a server that
        # ignores conditions.
        self._sources: dict[str, RangeSource] = {}
        self._lock = threading.Lock()

    def list_files(self) -> list[ListedObject]:
        """Returns the files of the dataset, in order of their paths below the prefix.

        Three requests, and one for each further 1,000 files.

        Raises:
          StorageError: the bucket does not exist, is not accessible, or lists files that cannot be
            pinned.
        """
        prefix = self.address.prefix
        files = []
        for folder in FOLDERS:
            for file in (file for page in self._pages(f"{folder}/") for file in page.objects):
                if not file.pin:
                    raise StorageError(
                        f"{self.address.name}: {self.address.endpoint} lists {file.path} without "
                        "an entity tag, so it cannot be pinned"
                    )
                files.append(file._replace(path=file.path.removeprefix(prefix)))
        return sorted(files)

    def folders(self) -> list[str]:
        """Returns the names of the folders below the prefix."""
        return [
            folder.removeprefix(self.address.prefix).rstrip("/")
            for page in self._pages("", recursive=False)
            for folder in page.folders
        ]

    def _pages(self, folder: str, *, recursive: bool = True) -> Iterator[Page]:
        following = ""
        seen = {following}
        while True:
            page = self._page(folder, following, recursive=recursive)
            yield page
            following = page.following
            if not following:
                return
            if following in seen:
                # The rest of the list would be missing, and the dataset would look shorter.
                raise StorageError(
                    f"{self._subject_of_list(folder)}: {self.address.endpoint} named the same "
                    f"next page twice after {len(seen)} pages; expected a list that comes to an end"
                )
            seen.add(following)

    def _subject_of_list(self, folder: str) -> str:
        return f"{self.address.name}: the list of {folder or 'its folders'}"

    def _page(self, folder: str, following: str, *, recursive: bool) -> Page:
        subject = self._subject_of_list(folder)

        def attempt(deadline: Deadline, credentials: Credentials) -> Page:
            url = self.address.list_url(folder, following, recursive=recursive)
            body: list[bytes] = []
            call = Call(
                "GET",
                url,
                credentials.headers(url),
                subject=subject,
                deadline=deadline,
                accept=lambda answer: (
                    _MAX_PAGE_BYTES if answer.status == 200 else _limit_of_error(answer)
                ),
            )
            answer = self._client.exchange(call, body)
            if answer.status != 200:
                raise _RefusedError(answer, b"".join(body), is_of_file=False)
            try:
                return self.address.parse_page(b"".join(body))
            except (ValueError, KeyError):
                raise RetryableError(
                    f"{host_of(url)} answered with something that is no list of files"
                ) from None

        return self._ask(subject, self.address.options.deadline_seconds, attempt)

    def read_range(self, file: ListedObject, wanted: ByteRange) -> bytes:
        """Returns the bytes of `wanted`, which is not empty and inside of the file.

        One request, and one for each further 128 MiB.

        Raises:
          StorageError: they could not be read, or the file is another one than was listed.
        """
        parts = [self._read_part(file, part) for part in cut_into_requests(wanted)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_part(self, file: ListedObject, wanted: ByteRange) -> bytes:
        subject = f"{self.address.name}: {file.path} bytes {wanted}"
        pieces: list[bytes] = []

        def attempt(deadline: Deadline, credentials: Credentials) -> bytes:
            return self._attempt(
                file, wanted, pieces, credentials, subject=subject, deadline=deadline
            )

        seconds = seconds_for(wanted, self.address.options.deadline_seconds)
        return self._ask(subject, seconds, attempt)

    def _source_of(self, file: ListedObject) -> RangeSource:
        source = self._sources.get(file.path)
        if source is None:
            made = RangeSource(self.address.object_url(file), {}, file.size_bytes)
            source = self._sources.setdefault(file.path, made)
        return source

    def _attempt(
        self,
        file: ListedObject,
        wanted: ByteRange,
        pieces: list[bytes],
        credentials: Credentials,
        *,
        subject: str,
        deadline: Deadline,
    ) -> bytes:
        """Makes one attempt to read a range, from where the attempts before it broke."""
        source = self._source_of(file)
        missing = ByteRange(wanted.start + sum(map(len, pieces)), wanted.stop)
        received: list[bytes] = []
        is_range = False

        def accept(answer: Response) -> int | None:
            nonlocal is_range
            if answer.status not in (200, 206):
                return _limit_of_error(answer)
            version = self.address.version_in(answer)
            if version not in (None, file.pin):
                raise RetryableError(f"answered for another version of the file; {CHANGED}")
            # A version that was told is enough: entity tags may change with the metadata.
            known = source if version is None else RangeSource(source.url, {}, file.size_bytes)
            length = accept_range(answer, source=known, asked=missing)
            is_range = True
            return length

        call = Call(
            "GET",
            source.url,
            {
                **credentials.headers(source.url),
                **self.address.condition(file),
                "Range": f"bytes={missing.start}-{missing.stop - 1}",
            },
            subject=subject,
            deadline=deadline,
            accept=accept,
        )
        try:
            answer = self._client.exchange(call, received)
        finally:
            if is_range:
                pieces.extend(received)
        if not is_range:
            raise _RefusedError(answer, b"".join(received), is_of_file=True)
        if (length := sum(map(len, pieces))) < wanted.length:
            raise RetryableError(f"the answer ended after {length} of {wanted.length} bytes")
        return b"".join(pieces)

    def _ask(
        self, subject: str, seconds: float, attempt: Callable[[Deadline, Credentials], _T]
    ) -> _T:
        """Calls `attempt` as `HttpClient.retry` does, and again with new credentials, or in another
        region.
        """
        credentials = self._current_credentials(subject)
        for renewals in range(1 + _MAX_RENEWALS):
            self._freshen(credentials, subject)
            used = credentials.secret()
            try:
                return self._client.retry(
                    subject, seconds, functools.partial(_with, attempt, credentials)
                )
            except _RefusedError as refusal:
                refused = refusal
            moved, remedy = self.address.moved(refused.answer, refused.body)
            if remedy:
                raise StorageError(f"{subject}: {remedy}")
            if moved is not None:
                self.address = moved
                # They have addresses in the region before.
                self._sources = {}
            elif refused.answer.status not in (400, 401, 403) or renewals == _MAX_RENEWALS:
                break
            renewed = self._renewed(credentials, used, subject, always=moved is not None)
            if renewed is None:
                break
            credentials = renewed
        raise self._error(refused, subject, credentials)

    def _error(
        self, refusal: _RefusedError, subject: str, credentials: Credentials
    ) -> StorageError:
        status = refusal.answer.status
        code = self.address.code_in(refusal.body)
        told = f"HTTP {status}{f', {code}' if code else ''}"
        if status == 412 or (status == 404 and code != "NoSuchBucket" and refusal.is_of_file):
            what = "was overwritten" if status == 412 else "is gone"
            return StorageError(f"{subject}: the file {what} ({told}); {CHANGED}")
        if status == 416 and refusal.is_of_file:
            return StorageError(
                f"{subject}: the file is shorter than was listed ({told}); {CHANGED}"
            )
        if status == 404:
            return StorageError(f"{subject}: there is no {self.address.place} ({told})")
        if code == _CLOCK_IS_WRONG:
            return StorageError(
                f"{subject}: {self.address.endpoint} refuses requests of another time than its own "
                f"({told}); set the clock of this machine"
            )
        if status in (401, 403):
            return StorageError(
                f"{subject}: access to the {self.address.place} is denied ({told}); credentials: "
                f"{credentials.source}; reading takes the permissions to list the bucket and to "
                "get its objects"
            )
        return StorageError(
            f"{subject}: {self.address.endpoint} answered with {told}; credentials: "
            f"{credentials.source}"
        )

    def _current_credentials(self, subject: str) -> Credentials:
        if (known := self._credentials) is not None:
            return known
        with self._locked(subject):
            if self._credentials is None:
                self._credentials = self._found(subject)
            return self._credentials

    def _freshen(self, credentials: Credentials, subject: str) -> None:
        """Lets credentials that run out be got anew, by one thread."""
        if credentials.is_fresh():
            return
        with self._locked(subject):
            if not credentials.is_fresh():
                self._in_time(credentials.refresh, subject)

    def _renewed(
        self, refused: Credentials, used: object, subject: str, *, always: bool
    ) -> Credentials | None:
        """Returns other credentials than those that were refused, or None if there are none.

        Args:
          refused: they may have been refreshed since.
          used: their secret when they were refused.
          subject: begins the error message.
          always: the same ones, too, for another region.
        """
        with self._locked(subject):
            if self._credentials is not refused:
                return self._credentials  # another thread was refused, too
            if not always and refused.secret() != used:
                return refused  # another thread refreshed them
            found = self._found(subject)
            if not always and found.secret() == used:
                return None
            self._credentials = found
            return found

    def _found(self, subject: str) -> Credentials:
        return self._in_time(self.address.find_credentials, subject)

    def _in_time(self, work: Callable[[], _T], subject: str) -> _T:
        return in_time(
            work,
            subject=subject,
            seconds=self.address.options.deadline_seconds,
            check=functools.partial(self._client.check_not_ended, subject),
        )

    @contextlib.contextmanager
    def _locked(self, subject: str) -> Iterator[None]:
        while not self._lock.acquire(timeout=CHECK_SECONDS):
            self._client.check_not_ended(subject)
        try:
            yield
        finally:
            self._lock.release()


def _limit_of_error(answer: Response) -> int | None:
    """Returns how many bytes the text of an error may have; None if it is too long to be read."""
    length = int(answer.headers.get("Content-Length", 0))
    return _MAX_ERROR_BYTES if length <= _MAX_ERROR_BYTES else None


def _with(
    attempt: Callable[[Deadline, Credentials], _T], credentials: Credentials, deadline: Deadline
) -> _T:
    return attempt(deadline, credentials)
