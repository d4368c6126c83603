"""How long an attempt waits, by what is usual."""

from __future__ import annotations

import pytest

from lerobot_grain._storage.http.pace import UsualPace


@pytest.mark.parametrize(
    ("timeout_seconds", "usual_seconds", "expected"),
    [
        (20, 0.1, [1, 5, 10, 20, 20, 20]),
        (8, 3, [2, 2, 4, 8]),
        (1, 0.5, [1, 1, 1, 1]),
        (20, 0.01, [0.5]),
    ],
)
def test_the_first_attempts_are_less_patient(
    timeout_seconds: float, usual_seconds: float, expected: list[float]
) -> None:
    pace = UsualPace()
    pace.seconds = usual_seconds
    attempts = range(1, 1 + len(expected))
    assert [pace.patience_seconds(timeout_seconds, number) for number in attempts] == expected


def test_only_the_first_attempts_are_cut_when_they_drip() -> None:
    pace = UsualPace()
    assert pace.is_drip(9_000, 1.0, 1)
    assert not pace.is_drip(11_000, 1.0, 1)
    assert not pace.is_drip(9_000, 1.0, 4)


def test_short_bodies_tell_no_rate() -> None:
    pace = UsualPace()
    usual = pace.bytes_per_second
    pace.note_body(100, 100, 1.0)
    assert pace.bytes_per_second == usual
    pace.note_body(10_000, 10_000, 1.0)
    assert pace.bytes_per_second < usual
