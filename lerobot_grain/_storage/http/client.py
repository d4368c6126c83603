"""HTTP requests that are bounded, counted and tried again: the layer between `_storage/hub/session`
and the network.

The idea: one function, `_send`, talks HTTP; everything around it decides when. A caller passes an
*attempt* to `HttpClient.retry` and uses `HttpClient.exchange` inside it; what may succeed later
raises `RetryableError`, what cannot raises `StorageError`.

Rules:
* At most `num_connections` requests of a dataset are under way. Waiting for one of these slots, for
  a connection of the process, or for the end of a rate limit, does not count against the deadline
  of a request: a long queue is no failure. Nor does time in which the process stood still
  (`_storage/http/watchdog`).
* At its deadline the connection of a request is broken, wherever the request then waits.
* Redirects are never followed here, and a body is never decompressed: a range of a compressed
  answer would be a range of something else.
* A request ends with its scope (`_storage/http/cancellation`) or with the client, wherever it is.

It knows nothing of repositories. Forking after the first request is not supported: a client's
connections cannot be shared by two processes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import StorageError
from lerobot_grain._storage.http.calls import Call, Deadline
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS, CancelScope, scope_of_thread
from lerobot_grain._storage.http.connections import Connection, connections
from lerobot_grain._storage.http.logs import keep_queries_out_of_logs
from lerobot_grain._storage.http.pace import UsualPace
from lerobot_grain._storage.http.rate_limits import (
    LONGEST_LIMIT_SECONDS,
    Limit,
    RateLimiter,
    limit_of,
    refusal_seconds,
)
from lerobot_grain._storage.http.responses import (
    REDIRECTS,
    LinkRefused,
    RangeSource,
    Response,
    RetryableError,
    accept_range,
    cut,
    describe_url,
    host_of,
    next_hop,
    origin_of,
    redact,
    untrusted_certificate,
)
from lerobot_grain._storage.http.watchdog import watch
from lerobot_grain._storage.options import Counters, StorageOptions, StorageStatistics

_T = TypeVar("_T")
_LOGGER = logging.getLogger("lerobot_grain")

# Worth another try, as huggingface_hub has it (its `http_backoff`): request timeout, rate limit,
# and errors of a server or a gateway.
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_SECONDS = 8.0
# The head of an answer may take so many times the read timeout: between its bytes there may be
# pauses, but it is short.
_HEAD_PATIENCE = 4
# A wait that is longer than this is said, once; and so is a server to which no connection is made,
# after about as long.
_SAID_SECONDS = 3.0
_SAID_UNREACHABLE = 5
# A body nobody wants (the text of an error) is read to its end up to this size, since the
# connection can then be used again.
_UNWANTED_BODY_BYTES = 16 * 1024
# Redirects of one request; the Hub needs two at most.
MAX_HOPS = 5


class RequestCancelledError(StorageError):
    """The request was given up because its scope or the client was closed."""


class UnreachableError(RetryableError):
    """No connection was made: refused, no such name, no route.

    It costs nothing, so only the deadline limits how often it is tried.
    """


class HttpClient:
    """The requests of one dataset: their limits, their slots and their counters.

    For one process; thread-safe.
    """

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.counters = Counters()
        self._rate_limiter = RateLimiter()
        self._pace = UsualPace()
        self._slots = threading.BoundedSemaphore(options.num_connections)
        self._all = CancelScope()
        self._origins: set[tuple[str, str, int | None]] = set()
        keep_queries_out_of_logs()

    def close(self) -> None:
        """Ends all requests, and closes the connections to the servers that were asked."""
        self._all.end()
        connections().close_idle(self._origins)

    def check_not_ended(self, subject: str) -> None:
        """Raises `RequestCancelledError` in a thread whose requests were ended."""
        scope = scope_of_thread()
        if self._all.is_ended:
            raise RequestCancelledError(f"{subject}: the storage was closed while it was in use")
        if scope is not None and scope.is_ended:
            raise RequestCancelledError(f"{subject}: the reader was closed while it was in use")

    def retry(self, subject: str, seconds: float, attempt: Callable[[Deadline], _T]) -> _T:
        """Calls `attempt` until it returns, at most `max_attempts` times and `seconds` long.

        Args:
          subject: what is being done to what; begins the error message.
          seconds: for all attempts together, not counting waits for a slot or a rate limit.
          attempt: returns, or raises `RetryableError` for another try; any other exception passes
            through.

        Raises:
          StorageError: all attempts failed.
        """
        scope = scope_of_thread()
        deadline = Deadline(seconds)
        pause = self.options.pause_seconds
        num_unreachable = 0
        reason = ""
        with (
            self._all.request(deadline),
            scope.request(deadline) if scope is not None else contextlib.nullcontext(),
        ):
            while True:
                self.check_not_ended(subject)
                deadline.num_attempts += 1
                try:
                    return attempt(deadline)
                except RetryableError as failure:
                    # That the time was up says less than why it was.
                    if num_unreachable == 0 or str(failure) != deadline.reason:
                        reason = str(failure)
                    if isinstance(failure, UnreachableError):
                        deadline.num_attempts -= 1
                        num_unreachable += 1
                        if num_unreachable == _SAID_UNREACHABLE:
                            left = deadline.remaining_seconds()
                            _LOGGER.warning(
                                "%s: %s; trying again for up to %.0f s", subject, reason, left
                            )
                self.check_not_ended(subject)
                # So that workers that failed together do not come back together.
                jittered = pause * random.uniform(0.5, 1.5)
                if (
                    deadline.num_attempts == self.options.max_attempts
                    or jittered >= deadline.remaining_seconds()
                ):
                    count = deadline.num_attempts + num_unreachable
                    raise StorageError(
                        f"{subject}: gave up after {count} attempt(s), the last one failed with: "
                        f"{reason}"
                    )
                self._sleep(jittered, subject)
                self.counters.add(StorageStatistics(retries=1, pause_seconds=jittered))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _sleep(self, seconds: float, subject: str) -> None:
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            self.check_not_ended(subject)
            # without a request under way nobody else looks at it, and it would take the pause for a
            # standstill
            watch().clock()
            time.sleep(min(left, CHECK_SECONDS))

    def _wait_for_turn(self, limit: Limit, subject: str) -> float:
        """Waits until a rate limit allows the next request; returns the seconds."""
        started = time.monotonic()
        self._wait_for(limit, self._rate_limiter.reserve(limit), subject)
        # Again and again, because another thread may have been told to wait longer in the meantime.
        while (left := self._rate_limiter.held_seconds(limit)) > 0:
            self._wait_for(limit, left, subject)
        return time.monotonic() - started

    def _wait_for(self, limit: Limit, seconds: float, subject: str) -> None:
        if seconds > _SAID_SECONDS and self._rate_limiter.is_to_be_said(limit, seconds):
            _LOGGER.warning(
                "%s: waiting for %.0f s, as long as %s asks to be left alone",
                subject,
                seconds,
                cut(limit[0][1]),
            )
        self._sleep(seconds, subject)

    def exchange(self, call: Call, body: list[bytes]) -> Response:
        """Sends one request and reads its answer.

        Args:
          call: what is sent, until when, and which answers are read.
          body: the wanted bytes are appended here as they come, so they are not lost when the
            connection breaks.

        Raises:
          RetryableError: timeout, broken connection, a status that says "later", or an answer that
            would not end before the deadline.
          StorageError: it cannot be sent at all, the body is longer than accepted, or the rate
            limit lasts longer than any window of the Hub.
        """
        limit = limit_of(call.url)
        queued = call.deadline.now()
        paused = self._wait_for_turn(limit, call.subject)
        with self._slots:
            self.check_not_ended(call.subject)
            sent = time.monotonic()
            call.deadline.leave_out_since(queued)
            call.deadline.check()
            received = sum(map(len, body))
            try:
                answer = self._on_connection(call, body)
            finally:
                seconds = time.monotonic() - sent
                received = sum(map(len, body)) - received
                self.counters.add(
                    StorageStatistics(1, received, request_seconds=seconds, pause_seconds=paused)
                )
        self._rate_limiter.observe(limit, answer.headers)
        if answer.status in _TRANSIENT_STATUSES:
            raise self._refused(call, answer, limit)
        return answer

    def _refused(self, call: Call, answer: Response, limit: Limit) -> Exception:
        """Returns what to raise for a status that says "later"; lets all wait as long as the
        server asks.
        """
        host = host_of(call.url)
        told_seconds = refusal_seconds(answer.status, answer.headers)
        if told_seconds is not None and told_seconds > LONGEST_LIMIT_SECONDS:
            return StorageError(
                f"{call.subject}: {host} refuses requests for the next {told_seconds} s (HTTP "
                f"{answer.status}); ask less often, or with a token, which has a higher limit"
            )
        if told_seconds is not None:
            self._rate_limiter.pause(limit, told_seconds)
        return RetryableError(f"HTTP {answer.status} from {host}")

    def read_range(
        self,
        source: RangeSource,
        wanted: ByteRange,
        pieces: list[bytes],
        *,
        subject: str,
        deadline: Deadline,
    ) -> bytes:
        """Makes one attempt to read `wanted`, which is not empty, and returns its bytes.

        Args:
          pieces: the bytes from `wanted.start` on that earlier attempts got; what this one gets is
            appended, even if it fails.

        Raises:
          RetryableError: the answer is not what was asked for, or broke; the next attempt, with the
            same `pieces`, continues after them.
          LinkRefused: the link is of no use (any more).
          StorageError: it leads away from HTTP, or from https to http.
        """
        url = source.url
        headers = source.headers
        for _ in range(MAX_HOPS + 1):
            missing = ByteRange(wanted.start + sum(map(len, pieces)), wanted.stop)
            call = Call(
                "GET",
                url,
                {**headers, "Range": f"bytes={missing.start}-{missing.stop - 1}"},
                subject=subject,
                deadline=deadline,
                accept=functools.partial(accept_range, source=source, asked=missing),
            )
            answer = self.exchange(call, pieces)
            if answer.status in REDIRECTS:
                target = next_hop(url, answer.headers.get("Location"), subject=subject)
                headers = headers if origin_of(target) == origin_of(url) else {}
                url = target
                continue
            if 400 <= answer.status < 500 and answer.status != 416:
                raise LinkRefused(f"HTTP {answer.status} from {host_of(url)}")
            if answer.status not in (200, 206):
                raise RetryableError(
                    f"{describe_url(url)} answered with HTTP {answer.status}, expected 206"
                )
            if (received := sum(map(len, pieces))) < wanted.length:
                raise RetryableError(f"the answer ended after {received} of {wanted.length} bytes")
            return b"".join(pieces)
        raise RetryableError(f"more than {MAX_HOPS} redirects, the last one to {describe_url(url)}")

    def _on_connection(self, call: Call, body: list[bytes]) -> Response:
        """Sends a request on a connection that is broken at the deadline, wherever it then
        waits.
        """
        deadline = call.deadline
        self._origins.add(origin_of(call.url))
        check = functools.partial(self.check_not_ended, call.subject)
        queued = deadline.now()
        with connections().lease(
            call.url, at_most=self.options.num_connections, check=check
        ) as connection:
            deadline.leave_out_since(queued)
            deadline.connection = connection
            try:
                with watch().after(max(deadline.remaining_seconds(), 0.001), connection.break_off):
                    self.check_not_ended(call.subject)  # again, now that it can be broken
                    return self._send(connection, call, body)
            finally:
                deadline.connection = None

    def _send(self, connection: Connection, call: Call, body: list[bytes]) -> Response:
        """The only place that talks HTTP: to replace httpx2, replace this and
        `_storage/http/connections`.
        """
        deadline = call.deadline
        left = max(deadline.remaining_seconds(), 0.001)
        patience = min(
            self._pace.patience_seconds(self.options.read_timeout_seconds, deadline.num_attempts),
            left,
        )
        connect_seconds = min(self.options.connect_timeout_seconds, left)
        timeout = httpx2.Timeout(connect=connect_seconds, read=patience, write=patience, pool=None)
        try:
            request = connection.client.build_request(
                call.method,
                call.url,
                headers={"Accept-Encoding": "identity", **call.headers},
                timeout=timeout,
                extensions={"trace": connection.note},
            )
            sent = time.monotonic()
            # Waiting for the head of an answer must not take all the time of further attempts: a
            # drip of bytes renews a read timeout.
            with watch().after(connect_seconds + _HEAD_PATIENCE * patience, connection.break_off):
                response = connection.client.send(request, stream=True)
            self._pace.note_beginning(time.monotonic() - sent)
            try:
                answer = Response(response.status_code, response.headers)
                limit = None if answer.status in _TRANSIENT_STATUSES else call.accept(answer)
                self._read_body(response, call, body, limit, sent=sent, patience=patience)
                return answer
            finally:
                response.close()
        except (
            httpx2.TimeoutException,
            httpx2.NetworkError,
            httpx2.RemoteProtocolError,
            httpx2.ProxyError,
        ) as error:
            failure = _failure(error, call)
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            # Without its text, which may quote a header or the URL.
            failure = StorageError(
                f"{call.subject}: cannot ask {describe_url(call.url)} ({type(error).__name__})"
            )
        # Outside of the handlers, so that no error is chained to it that holds the request, and
        # with it the token.
        raise failure

    def _read_body(
        self,
        response: httpx2.Response,
        call: Call,
        body: list[bytes],
        limit: int | None,
        *,
        sent: float,
        patience: float,
    ) -> None:
        """Appends the body of an answer to `body`, as it comes; with the limit `None` throws it
        away.

        Raises:
          RetryableError: it would not end in time, or drips.
          StorageError: it is longer than the limit.
        """
        deadline = call.deadline
        server = cut(response.request.url.host)
        length = int(response.headers.get("Content-Length", 0))
        received = 0
        begun = time.monotonic()
        try:
            for chunk in response.iter_raw():
                received += len(chunk)
                if limit is not None:
                    if received > limit:
                        raise StorageError(
                            f"{call.subject}: {server} sent more than the {limit} bytes expected"
                        )
                    body.append(chunk)
                elif received > _UNWANTED_BODY_BYTES:
                    return
                deadline.check()
                seconds = time.monotonic() - begun
                drips = self._pace.is_drip(received, seconds, deadline.num_attempts)
                allowed = min(deadline.remaining_seconds(), patience if drips else math.inf)
                if seconds > patience and (length - received) * seconds > received * allowed:
                    raise RetryableError(
                        f"{server} sent {received} of {length} bytes in {seconds:.3g} s, too "
                        "slowly to end in time"
                    )
        finally:
            # Also of those that were given up: when a link has become slow, nothing on it drips.
            if limit is not None:
                self._pace.note_body(received, length, time.monotonic() - sent)


def _failure(error: Exception, call: Call) -> Exception:
    """Returns what to raise for an error of the network."""
    host = host_of(call.url)
    if reason := untrusted_certificate(error):
        return StorageError(f"{call.subject}: {host} {reason}")
    if call.deadline.remaining_seconds() <= 0:
        return RetryableError(call.deadline.reason)
    text = f"{type(error).__name__} at {host}: {cut(redact(str(error)))}"
    return (
        UnreachableError(text)
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        else RetryableError(text)
    )
