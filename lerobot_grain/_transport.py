"""HTTP requests that are bounded, counted and tried again: the layer between `_hub_storage` and the network.

The idea: one function, `_send`, talks HTTP; everything around it decides when. A caller passes an *attempt* to `Transport.retry` and uses
`Transport.exchange` inside it; what may succeed later raises `TransientFailure`, what cannot raises `StorageError`.

Rules:
* At most `num_connections` requests are under way. Waiting for one of these slots, or for the end of a rate limit, does not count against
  the deadline of a request: a long queue is no failure.
* A rate limit (429, or Retry-After) closes one gate per origin, for all threads at once. A limit of the Hub does not hold up its CDN.
* Redirects are never followed here, and a body is never decompressed: a range of a compressed answer would be a range of something else.
* Texts hold scheme, host and path of a URL, never its query (a signed link is a key to the file for an hour) and never a header.

It knows nothing of repositories. Forking after the first request is not supported: a client's connections cannot be shared by two
processes.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2

from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._errors import InvalidRequestError, StorageError

_T = TypeVar("_T")

# Worth another try, as huggingface_hub has it (its `http_backoff`): request timeout, rate limit, and errors of a server or a gateway.
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
# 0.25, 0.5, 1, 2, 4, 8 seconds, each times 0.5 to 1.5, so that workers that failed together do not come back together.
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0
# The Hub counts requests in fixed windows of 300 s, so no honest answer asks for more than that.
_LONGEST_RATE_LIMIT_SECONDS = 330
# Idle connections are dropped by the Hub's CDN after about a minute; with httpx2's 5 s, requests 6 s apart opened a connection each.
_KEEPALIVE_SECONDS = 60.0
# A body nobody wants (the text of an error) is read to its end up to this size, since the connection can then be used again.
_UNWANTED_BODY_BYTES = 16 * 1024
# A link is used until 30 s before its end: a request that waits in a queue must still find it valid.
_LINK_MARGIN_SECONDS = 30.0
# The Hub signs for an hour; an unsigned link is asked for again as often.
_LONGEST_LINK_SECONDS = 3600.0
# Redirects of one request; the Hub needs two at most.
MAX_HOPS = 5

_CONTENT_RANGE = re.compile(r"bytes \d+-\d+/(\d{1,18})")
_RATE_LIMIT = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})")
_SECONDS = re.compile(r"\d{1,9}")
# Also of a relative one, as redirects may have it.
_URL_QUERY = re.compile(r"(/[^\s?#'\"]*)[?#][^\s'\"]*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """How bytes are read.

    Attributes:
      num_connections: requests under way at the same time, for each data set and process.
      merge_gap_bytes: two ranges of one call are read in one request when at most this many bytes lie between them. About latency x
        bandwidth of one connection; 256 KiB made a prototype 2.8 times faster at 50 ms, for 2.8 times the bytes at worst.
      merge_max_bytes: no request becomes longer than this by merging.
      connect_timeout_seconds: until a connection stands.
      read_timeout_seconds: until the next bytes of an answer arrive.
      deadline_seconds: for one request with all its further attempts, and once more for every 8 MiB of it. Catches a server that sends a
        byte now and then.
      max_attempts: how often one request is sent before it counts as failed.
      disk_cache_bytes: what may be kept on disk from one run to the next, so that it is not fetched again: the indices of video and
        parquet files, and the rows of large row groups; never pictures. For all data sets together; 0 keeps nothing. Of a directory
        or bucket nothing is kept.
    """

    num_connections: int = 32
    merge_gap_bytes: int = 256 * 1024
    merge_max_bytes: int = 4 * 1024 * 1024
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 20.0
    deadline_seconds: float = 120.0
    max_attempts: int = 6
    disk_cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            allowed = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            smallest = 0 if field.name.startswith(("merge_", "disk_")) else 1 if whole else 0.001
            if not allowed or not smallest <= value < float("inf"):
                kind = "a whole number" if whole else "a number of seconds"
                raise InvalidRequestError(f"{field.name}={value!r}: expected {kind} of at least {smallest}")


class StorageStatistics(NamedTuple):
    """What one process has read so far from one storage.

    Attributes:
      requests: HTTP requests sent (for a directory: reads of a file).
      bytes_received: bytes of contents and listings that arrived, with those of failed attempts and of the gaps between merged ranges.
      retries: attempts after the first.
      request_seconds: time inside requests, summed over threads.
      pause_seconds: time between attempts and behind rate limits, summed over threads.
    """

    requests: int = 0
    bytes_received: int = 0
    retries: int = 0
    request_seconds: float = 0.0
    pause_seconds: float = 0.0


class Counters:
    """Adds up a `StorageStatistics`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = StorageStatistics()

    def add(self, more: StorageStatistics) -> None:
        with self._lock:
            now = self._sum
            self._sum = StorageStatistics(
                now.requests + more.requests,
                now.bytes_received + more.bytes_received,
                now.retries + more.retries,
                now.request_seconds + more.request_seconds,
                now.pause_seconds + more.pause_seconds,
            )

    def snapshot(self) -> StorageStatistics:
        return self._sum


class TransientFailure(Exception):  # noqa: N818 (an error only when all attempts met one)
    """An attempt failed in a way that the next one may not; the text says how, free of secrets."""


class LinkRefused(Exception):  # noqa: N818 (the caller's cue to ask for another link)
    """A server refuses a link (HTTP 401 or 403): expired, or signed wrongly."""


@dataclasses.dataclass(slots=True, eq=False)
class RangeSource:
    """Where the bytes of one file are, and what is known of them.

    Attributes:
      url: may be signed, so it never stands in a text.
      headers: sent along as long as redirects stay at the origin of `url`.
      file_bytes: the size of the whole file; every answer must agree.
      etag: of the first answer; every later one must agree.
    """

    url: str
    headers: Mapping[str, str]
    file_bytes: int
    etag: str | None = None


class Answer(NamedTuple):
    """Status and headers of an answer; the body went where `Transport.exchange` was told to put it. `headers` ignores case."""

    status: int
    headers: Mapping[str, str]


class Deadline:
    """The time that is left for one request and its further attempts. Used by one thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining_seconds(self) -> float:
        return self._end - time.monotonic()

    def extend(self, seconds: float) -> None:
        self._end += seconds

    def check(self) -> None:
        if self.remaining_seconds() <= 0:
            raise TransientFailure(f"nothing came to an end within {self.seconds:g} s")


def redact(text: str) -> str:
    """Returns `text` with the query and fragment of every URL in it cut off, whole ones and paths alike."""
    return _URL_QUERY.sub(r"\1", text)


def describe_url(url: str) -> str:
    """Returns scheme, host, port and path: what may stand in a message."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Returns (scheme, host, port) in a form that compares equal for the same server."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(scheme)


def next_hop(url: str, location: str | None, *, subject: str) -> str:
    """Returns where a redirect leads.

    Raises:
      StorageError: it leads nowhere, away from HTTP, or from https to http (where anyone on the way could read and change the bytes).
    """
    try:
        target = urljoin(url, location or "")
        scheme, host, _ = origin_of(target)
    except ValueError:
        target = scheme = host = ""
    if not location or scheme not in ("http", "https") or not host:
        found = f"{scheme}:" if location and scheme else "nowhere"
        raise StorageError(f"{subject}: {describe_url(url)} redirects to {found}, expected an http or https address")
    if origin_of(url)[0] == "https" and scheme == "http":
        raise StorageError(f"{subject}: {describe_url(url)} redirects from https to http at {host}, which is refused")
    return target


def lifetime_seconds(url: str, date: str | None) -> float:
    """Returns how long a signed link may be used from now on; zero or less when it is good for the next request only.

    Args:
      url: with `Expires` (CloudFront: a time) or `X-Amz-Expires` (S3: seconds) in its query, or none of them.
      date: the `Date` of the answer that brought it: `Expires` is a time of the server's clock, and ours may be wrong by hours.
    """
    query = parse_qs(urlsplit(url).query)
    try:
        now = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        now = time.time()
    seconds = [_LONGEST_LINK_SECONDS]
    for name, counted_from in (("Expires", now), ("X-Amz-Expires", 0.0)):
        seconds += [float(value) - counted_from for value in query.get(name, []) if value.isdecimal()]
    return min(seconds) - _LINK_MARGIN_SECONDS


def _accept_range(answer: Answer, *, source: RangeSource, asked: ByteRange, subject: str) -> int | None:
    """Returns the length of the body if the answer is exactly the range `asked`, None if its status says something else.

    Raises:
      StorageError: it is a body, but another one. RFC 9110 allows a server to ignore a range and send everything; CloudFront does for
        compressed answers.
    """
    if answer.status == 200:
        raise StorageError(f"{subject}: {describe_url(source.url)} ignores byte ranges (HTTP 200 with the whole file, expected 206)")
    if answer.status != 206:
        return None
    found = answer.headers.get("Content-Range", "none")
    expected = f"bytes {asked.start}-{asked.stop - 1}/{source.file_bytes}"
    if found != expected:
        told = _CONTENT_RANGE.fullmatch(found)
        changed = "; the file was changed" if told and int(told[1]) != source.file_bytes else ""
        raise StorageError(f"{subject}: answered with Content-Range {found!r}, expected {expected!r}{changed}")
    encoding = answer.headers.get("Content-Encoding", "identity")
    length = answer.headers.get("Content-Length", str(asked.length))
    if encoding != "identity" or length != str(asked.length):
        raise StorageError(f"{subject}: answered with {length} bytes, encoding {encoding!r}; expected {asked.length} bytes as they are")
    etag = answer.headers.get("ETag")
    if source.etag is None:
        source.etag = etag
    elif etag != source.etag:
        raise StorageError(f"{subject}: the file was changed while it was read (ETag {etag}, before {source.etag})")
    return asked.length


def untrusted_certificate(error: BaseException | None) -> str | None:
    """Returns what to say of a server when `error` comes from a certificate that was not accepted, else None. Asking again is of no use."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"shows a certificate that is not trusted ({error.verify_message}); if it is a mirror or proxy of yours, let SSL_CERT_FILE "
                "or SSL_CERT_DIR name its certificate authority"
            )
        error = error.__cause__ or error.__context__
    return None


class _WithoutQueries(logging.Filter):
    """Takes signatures out of logs: other libraries log URLs, httpcore2 also headers with URLs in them."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_WITHOUT_QUERIES = _WithoutQueries()
# By name, because a filter does not see what comes from the loggers below its own.
_LOGGERS = (
    "httpx2",
    *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
    *(f"huggingface_hub.{part}" for part in ("utils._http", "file_download")),
)


class _Gate:
    """Holds requests back until a rate limit has passed, origin by origin, whichever thread heard of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_at: dict[tuple[str, str, int | None], float] = {}

    def hold(self, origin: tuple[str, str, int | None], seconds: float) -> None:
        with self._lock:
            self._open_at[origin] = max(self._open_at.get(origin, 0.0), time.monotonic() + seconds)

    def wait(self, origin: tuple[str, str, int | None]) -> float:
        waited = 0.0
        # Again and again, because another thread may have been told to wait longer in the meantime.
        while (left := self._open_at.get(origin, 0.0) - time.monotonic()) > 0:
            time.sleep(left)
            waited += left
        return waited


class Transport:
    """One HTTP client, its gate, its slots and its counters. For one process; thread-safe."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.counters = Counters()
        self._gate = _Gate()
        self._slots = threading.BoundedSemaphore(options.num_connections)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_WITHOUT_QUERIES)  # adding it twice does nothing
        self._client = httpx2.Client(
            follow_redirects=False,
            trust_env=True,  # proxies and certificates of the environment
            limits=httpx2.Limits(
                max_connections=options.num_connections,
                max_keepalive_connections=options.num_connections,
                keepalive_expiry=_KEEPALIVE_SECONDS,
            ),
        )

    def close(self) -> None:
        self._client.close()

    def retry(self, subject: str, seconds: float, attempt: Callable[[Deadline], _T]) -> _T:
        """Calls `attempt` until it returns, at most `max_attempts` times and `seconds` long.

        Args:
          subject: what is being done to what; begins the error message.
          seconds: for all attempts together, not counting waits for a slot or a rate limit.
          attempt: returns, or raises `TransientFailure` for another try; any other exception passes through.

        Raises:
          StorageError: all attempts failed.
        """
        deadline = Deadline(seconds)
        pause = _FIRST_PAUSE_SECONDS
        attempts = 0
        while True:
            attempts += 1
            try:
                return attempt(deadline)
            except TransientFailure as failure:
                reason = str(failure)
            jittered = pause * random.uniform(0.5, 1.5)
            if attempts == self.options.max_attempts or jittered >= deadline.remaining_seconds():
                raise StorageError(f"{subject}: gave up after {attempts} attempt(s), the last one failed with: {reason}")
            time.sleep(jittered)
            self.counters.add(StorageStatistics(retries=1, pause_seconds=jittered))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        subject: str,
        deadline: Deadline,
        accept: Callable[[Answer], int | None],
        body: list[bytes],
    ) -> Answer:
        """Sends one request and reads its answer.

        Args:
          subject: begins the messages of errors.
          accept: sees status and headers before any byte of the body is read. Returns how many bytes of it may come, or None if it is not
            wanted; or raises, and nothing is read.
          body: the wanted bytes are appended here as they come, so they are not lost when the connection breaks.

        Raises:
          TransientFailure: timeout, broken connection, or a status that says "later". Also when `deadline` has passed.
          StorageError: it cannot be sent at all, the body is longer than accepted, or the rate limit lasts longer than any window of the
            Hub.
        """
        origin = origin_of(url)
        queued = time.monotonic()
        paused = self._gate.wait(origin)
        with self._slots:
            sent = time.monotonic()
            deadline.extend(sent - queued)
            deadline.check()
            received = sum(map(len, body))
            try:
                answer = self._send(method, url, headers, subject=subject, deadline=deadline, accept=accept, body=body)
            finally:
                seconds = time.monotonic() - sent
                received = sum(map(len, body)) - received
                self.counters.add(StorageStatistics(1, received, request_seconds=seconds, pause_seconds=paused))
        if answer.status in _TRANSIENT_STATUSES:
            self._heed_rate_limit(answer, origin, subject)
            raise TransientFailure(f"HTTP {answer.status} from {origin[1]}")
        return answer

    def read_range(self, source: RangeSource, wanted: ByteRange, pieces: list[bytes], *, subject: str, deadline: Deadline) -> bytes:
        """Makes one attempt to read `wanted`, which is not empty, and returns its bytes.

        Args:
          pieces: the bytes from `wanted.start` on that earlier attempts got; what this one gets is appended, even if it fails.

        Raises:
          TransientFailure: the next attempt, with the same `pieces`, goes on where this one ended.
          LinkRefused: the link is of no use (any more).
          StorageError: the answer is not what was asked for.
        """
        url, headers = source.url, source.headers
        for _ in range(MAX_HOPS + 1):
            missing = ByteRange(wanted.start + sum(map(len, pieces)), wanted.stop)
            answer = self.exchange(
                "GET",
                url,
                {**headers, "Range": f"bytes={missing.start}-{missing.stop - 1}"},
                subject=subject,
                deadline=deadline,
                accept=functools.partial(_accept_range, source=source, asked=missing, subject=subject),
                body=pieces,
            )
            if answer.status in (301, 302, 303, 307, 308):
                target = next_hop(url, answer.headers.get("Location"), subject=subject)
                headers = headers if origin_of(target) == origin_of(url) else {}
                url = target
                continue
            if answer.status in (401, 403):
                raise LinkRefused(f"HTTP {answer.status} from {origin_of(url)[1]}")
            if answer.status != 206:
                raise StorageError(f"{subject}: {describe_url(url)} answered with HTTP {answer.status}, expected 206")
            if (received := sum(map(len, pieces))) < wanted.length:
                raise TransientFailure(f"the answer ended after {received} of {wanted.length} bytes")
            return b"".join(pieces)
        raise StorageError(f"{subject}: more than {MAX_HOPS} redirects, the last one to {describe_url(url)}")

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        subject: str,
        deadline: Deadline,
        accept: Callable[[Answer], int | None],
        body: list[bytes],
    ) -> Answer:
        """The only place that talks HTTP: to replace httpx2, replace this."""
        left = max(deadline.remaining_seconds(), 0.001)
        options = self.options
        timeout = httpx2.Timeout(
            connect=min(options.connect_timeout_seconds, left),
            read=min(options.read_timeout_seconds, left),
            write=min(options.read_timeout_seconds, left),
            pool=None,  # `_slots` lets no more requests in than the pool has connections
        )
        try:
            request = self._client.build_request(method, url, headers={"Accept-Encoding": "identity", **headers}, timeout=timeout)
            response = self._client.send(request, stream=True)
            try:
                answer = Answer(response.status_code, response.headers)
                limit = None if answer.status in _TRANSIENT_STATUSES else accept(answer)
                received = 0
                for chunk in response.iter_raw():
                    received += len(chunk)
                    if limit is not None:
                        if received > limit:
                            raise StorageError(f"{subject}: {origin_of(url)[1]} sent more than the {limit} bytes expected")
                        body.append(chunk)
                    elif received > _UNWANTED_BODY_BYTES:
                        break
                    deadline.check()
                return answer
            finally:
                response.close()
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            if reason := untrusted_certificate(error):
                failure: Exception = StorageError(f"{subject}: {origin_of(url)[1]} {reason}")
            else:
                failure = TransientFailure(f"{type(error).__name__} at {origin_of(url)[1]}: {redact(str(error))}")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            # Without its text, which may quote a header or the URL.
            failure = StorageError(f"{subject}: cannot ask {describe_url(url)} ({type(error).__name__})")
        except RuntimeError:
            if not self._client.is_closed:
                raise
            failure = StorageError(f"{subject}: the storage was closed while it was in use")
        # Outside of the handlers, so that no error is chained to it that holds the request, and with it the token.
        raise failure

    def _heed_rate_limit(self, answer: Answer, origin: tuple[str, str, int | None], subject: str) -> None:
        """Closes the gate of `origin` for as long as `answer` asks for, if it does."""
        limited = _RATE_LIMIT.search(answer.headers.get("RateLimit", "")) if answer.status == 429 else None
        retry_after = answer.headers.get("Retry-After", "").strip()
        if limited is None and not _SECONDS.fullmatch(retry_after):
            return  # no number given: the pause between attempts has to do
        seconds = int(limited.group(1) if limited else retry_after)
        if seconds > _LONGEST_RATE_LIMIT_SECONDS:
            raise StorageError(
                f"{subject}: {origin[1]} refuses requests for the next {seconds} s (HTTP {answer.status}); "
                "ask less often, or with a token, which has a higher limit"
            )
        # Later than told by up to a tenth, so that hundreds of workers do not return in the same second.
        self._gate.hold(origin, seconds + random.uniform(0.05, 0.1 + 0.1 * seconds))
