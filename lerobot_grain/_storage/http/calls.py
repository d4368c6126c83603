"""One request and the time that is left for it: what `HttpClient.exchange` is given. And how a long
range is cut into requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._storage.http.connections import Connection
from lerobot_grain._storage.http.responses import Response, RetryableError
from lerobot_grain._storage.http.watchdog import watch

# A request of 128 MB cannot be held to the deadline of one of 64 KB.
_BYTES_PER_DEADLINE = 8 * 1024 * 1024
# No request is longer. The rows of a data file of 100 MB come in one, but a row group of embedded
# images may have gigabytes, and what comes in pieces is never asked for twice.
_MAX_REQUEST_BYTES = 128 * 1024 * 1024


def cut_into_requests(wanted: ByteRange) -> list[ByteRange]:
    """Returns the ranges that are read one after the other, each in a request."""
    return [
        ByteRange(start, min(start + _MAX_REQUEST_BYTES, wanted.stop))
        for start in range(wanted.start, wanted.stop, _MAX_REQUEST_BYTES)
    ]


def seconds_for(wanted: ByteRange, deadline_seconds: float) -> float:
    """Returns how long a request for a range may take, with its further attempts."""
    return deadline_seconds * -(-wanted.length // _BYTES_PER_DEADLINE)


class Deadline:
    """One request with its further attempts: the time that is left for them, how many were begun,
    and the connection in use.

    The time in which the process stood still does not count. Used by one thread, but for
    `interrupt`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.num_attempts = 0
        self.connection: Connection | None = None
        self._clock = watch().clock
        self._end = self._clock() + seconds

    def remaining_seconds(self) -> float:
        return self._end - self._clock()

    def now(self) -> float:
        """Returns the time by the clock of the deadline."""
        return self._clock()

    def leave_out_since(self, time_seconds: float) -> None:
        """The time since then, in which nothing was asked yet, does not count."""
        self._end += self._clock() - time_seconds

    def check(self) -> None:
        if self.remaining_seconds() <= 0:
            raise RetryableError(self.reason)

    @property
    def reason(self) -> str:
        return f"nothing came to an end within {self.seconds:g} s"

    def interrupt(self) -> None:
        """Breaks the connection that is in use: whoever waits for it gets an error."""
        if (connection := self.connection) is not None:
            connection.break_off()


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One request of an attempt.

    Attributes:
      method, url, headers: what is sent.
      subject: begins the messages of errors.
      deadline: of the request with its further attempts.
      accept: sees status and headers before any byte of the body is read. Returns how many bytes of
        it may come, or None if it is not wanted; or raises, and nothing is read.
    """

    method: str
    # No log shows a signature or a token.
    url: str = dataclasses.field(repr=False)
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    _: dataclasses.KW_ONLY
    subject: str
    deadline: Deadline
    accept: Callable[[Response], int | None]
