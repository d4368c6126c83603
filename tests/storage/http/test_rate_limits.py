"""When the next request may be sent, by a clock of the tests: nothing here sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lerobot_grain._storage.http import rate_limits
from lerobot_grain._storage.http.rate_limits import RateLimiter, limit_of, refusal_seconds

RESOLVER = limit_of("https://huggingface.co/datasets/org/name/resolve/main/a.mp4")
API = limit_of("https://huggingface.co/api/datasets/org/name/refs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass; what is added to a wait at random is its least."""
    now = [1000.0]
    monkeypatch.setattr(rate_limits.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rate_limits.random, "uniform", lambda low, _: low)

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def told(left: int, seconds: int, quota: int = 3000) -> dict[str, str]:
    return {
        "RateLimit": f'"resolvers";r={left};t={seconds}',
        "RateLimit-Policy": f'"fixed window";"resolvers";q={quota};w=300',
    }


def test_which_limit_counts_a_request() -> None:
    assert RESOLVER != API
    assert limit_of("https://HuggingFace.co:443/datasets/o/n/resolve/x/y?z=/resolve/") == RESOLVER
    assert limit_of("https://huggingface.co/api/x?path=/resolve/") == API
    assert limit_of("https://us.aws.cdn.hf.co/xet/resolve/a") != RESOLVER


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, told(0, 172), 172),
        (429, told(3, 172), None),
        (503, told(0, 172), None),
        (429, told(0, 172) | {"Retry-After": "7"}, 172),
        (503, {"Retry-After": " 7 "}, 7),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        (429, {"Retry-After": "-1"}, None),
        (429, {}, None),
    ],
)
def test_how_long_a_refusal_lasts(
    status: int, headers: dict[str, str], seconds: int | None
) -> None:
    assert refusal_seconds(status, headers) == seconds


def test_nobody_waits_while_a_tenth_is_left(clock: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    for left in (2999, 300):
        limiter.observe(RESOLVER, told(left, 200))
        assert [limiter.reserve(RESOLVER) for _ in range(3)] == [0, 0, 0]
    clock(1)


def test_what_is_left_is_spread_over_the_window(clock: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    limiter.observe(RESOLVER, told(99, 200))
    assert [limiter.reserve(RESOLVER) for _ in range(3)] == [2, 4, 6]
    assert limiter.reserve(API) == 0
    clock(5)
    assert limiter.reserve(RESOLVER) == 3
    limiter.observe(RESOLVER, told(49, 200))  # another process has used it too
    assert [limiter.reserve(RESOLVER) for _ in range(2)] == [5, 9]
    clock(100)
    assert [limiter.reserve(RESOLVER) for _ in range(2)] == [0, 4]
    limiter.observe(RESOLVER, told(2999, 300))
    assert limiter.reserve(RESOLVER) == 0


def test_nobody_waits_much_longer_than_the_window(clock: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    limiter.observe(RESOLVER, told(0, 100))
    assert [limiter.reserve(RESOLVER) for _ in range(3)] == [100.05] * 3
    clock(100.05)
    assert [limiter.reserve(RESOLVER) for _ in range(3)] == [0, 0, 0]


def test_answers_that_tell_no_quota_change_nothing() -> None:
    limiter = RateLimiter()
    limiter.observe(RESOLVER, {"RateLimit": '"resolvers";r=0;t=100'})
    limiter.observe(RESOLVER, {"RateLimit": "rubbish", "RateLimit-Policy": "q=3000"})
    assert limiter.reserve(RESOLVER) == 0


def test_a_hold_is_for_all_and_is_not_shortened(clock: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    assert limiter.held_seconds(RESOLVER) <= 0
    limiter.pause(RESOLVER, 10)
    limiter.pause(RESOLVER, 3)
    assert limiter.held_seconds(RESOLVER) == pytest.approx(10.05)
    assert limiter.held_seconds(API) <= 0
    clock(10.1)
    assert limiter.held_seconds(RESOLVER) <= 0
