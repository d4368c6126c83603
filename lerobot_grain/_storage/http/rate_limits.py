"""When the next request may be sent: rate limits, heard of in one answer and kept by all threads.

The Hub counts requests in fixed windows of five minutes, one count for URLs with `/resolve/` and
one for the API, and tells in every answer what is left: `RateLimit: "resolvers";r=2999;t=172` with
`RateLimit-Policy: "fixed window";"resolvers";q=3000;w=300`.

Rules:
* Much is left: nobody waits. Less than a tenth: what is left is spread evenly over the time to the
  end of the window, so that a stream becomes slow and does not stand still for minutes.
* Nothing is left, or a server says "later" (`Retry-After`): everybody waits until then, and a
  little longer, so that hundreds of workers do not return in the same second.
* One limit does not hold up requests that another one counts: those to the CDN, above all.

It sends nothing and does not sleep: it says how long to wait.
"""

from __future__ import annotations

import dataclasses
import random
import re
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from lerobot_grain._storage.http.responses import origin_of

# (server, whether it is a `/resolve/` URL)
Limit = tuple[tuple[str, str, int | None], bool]

# The Hub counts requests in fixed windows of 300 s, so no honest answer asks for more than that.
# A longer one is not waited for.
LONGEST_LIMIT_SECONDS = 330
# A stream that stays above this part of its quota never notices the limit.
_LOW_PART = 0.1

_RATE_LIMIT = re.compile(r"\br\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})")
_QUOTA = re.compile(r"\bq\s*=\s*(\d{1,9})")
_SECONDS = re.compile(r"\d{1,9}")


def limit_of(url: str) -> Limit:
    """Returns which limit counts a request."""
    return origin_of(url), "/resolve/" in urlsplit(url).path


def refusal_seconds(status: int, headers: Mapping[str, str]) -> int | None:
    """Returns for how long an answer with an error status asks to be left alone; None if it does
    not say.

    `Retry-After` with a date is not read, as in huggingface_hub; the pause between attempts has to
    do.
    """
    told = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    if status == 429 and told and int(told[1]) == 0:
        return int(told[2])
    retry_after = headers.get("Retry-After", "").strip()
    return int(retry_after) if _SECONDS.fullmatch(retry_after) else None


@dataclasses.dataclass(slots=True)
class _Pace:
    """Requests at least `interval_seconds` apart until the window ends; times in time.monotonic."""

    interval_seconds: float
    next_at: float
    ends_at: float


class RateLimiter:
    """The limits of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_at: dict[Limit, float] = {}
        self._paces: dict[Limit, _Pace] = {}
        self._said_until: dict[Limit, float] = {}

    def pause(self, limit: Limit, seconds: float) -> None:
        """Lets no request pass for `seconds` and a little longer."""
        with self._lock:
            self._open_at[limit] = max(
                self._open_at.get(limit, 0.0), time.monotonic() + _later(seconds)
            )

    def observe(self, limit: Limit, headers: Mapping[str, str]) -> None:
        """Takes note of what an answer tells of its limit."""
        told = _RATE_LIMIT.search(headers.get("RateLimit", ""))
        quota = _QUOTA.search(headers.get("RateLimit-Policy", ""))
        if told is None or quota is None:
            return
        left = int(told[1])
        seconds = int(told[2])
        if seconds > LONGEST_LIMIT_SECONDS:
            return
        now = time.monotonic()
        with self._lock:
            if left >= _LOW_PART * int(quota[1]):
                self._paces.pop(limit, None)
                return
            interval = seconds / (left + 1)
            before = self._paces.get(limit)
            self._paces[limit] = _Pace(
                interval, before.next_at if before else now + interval, now + seconds
            )

    def reserve(self, limit: Limit) -> float:
        """Returns in how many seconds the next request may be sent, and counts it: the next caller
        comes after it.
        """
        now = time.monotonic()
        with self._lock:
            pace = self._paces.get(limit)
            if pace is None:
                return 0.0
            if now >= pace.ends_at:
                del self._paces[limit]
                return 0.0
            start = max(now, pace.next_at)
            pace.next_at = start + pace.interval_seconds
            return start - now if start < pace.ends_at else _later(pace.ends_at - now)

    def is_to_be_said(self, limit: Limit, seconds: float) -> bool:
        """Returns whether a wait is one that nobody was told of: longer than those that were."""
        until = time.monotonic() + seconds
        with self._lock:
            if until <= self._said_until.get(limit, 0.0) + 1.0:
                return False
            self._said_until[limit] = until
            return True

    def held_seconds(self, limit: Limit) -> float:
        """Returns for how long no request may pass; zero or less when one may.

        It may be longer when asked again.
        """
        return self._open_at.get(limit, 0.0) - time.monotonic()


def _later(seconds: float) -> float:
    return seconds + random.uniform(0.05, 0.1 + 0.1 * seconds)
