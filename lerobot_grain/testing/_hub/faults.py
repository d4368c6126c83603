"""Decides which requests get a fault, and turns the right answer into the wrong one.

Pure but for the counting, on which also depends what is drawn with a probability: how an answer is
to be sent wrongly is written down in a `Delivery`, which the server carries out.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from lerobot_grain.testing._hub.http import Answer, FileSlice, Request, with_headers
from lerobot_grain.testing._hub.messages import Fault, Origin

Ending = Literal["keep", "close", "reset", "stall", "drop", "reset_before"]
# Endings before the first byte of the answer.
BEFORE_THE_ANSWER: tuple[Ending, ...] = ("drop", "reset_before")


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer goes over the connection.

    Attributes:
      answer: what is sent.
      delay_seconds: wait before the first byte.
      bandwidth_bytes_per_second: limit for the body; None for no limit.
      stop_at: length of the body after which `ending` comes; None for the whole body.
      ending: what happens then; `"keep"` leaves the connection open for the next request. `"drop"`
        closes it before the first byte, `"reset_before"` resets it.
      corrupt_at: offset of the byte of the body to invert, or None.
    """

    answer: Answer
    delay_seconds: float
    bandwidth_bytes_per_second: float | None
    stop_at: int | None = None
    ending: Ending = "keep"
    corrupt_at: int | None = None


class _Rule:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._path = re.compile(fault.path_regex)
        self._range = re.compile(fault.range_regex) if fault.range_regex is not None else None
        self._skips_left = fault.skip
        self._times_left = fault.times
        self._drawn: Counter[tuple[str, str, str | None]] = Counter()

    def takes(self, origin: Origin, request: Request, file: str | None) -> bool:
        """Returns whether the fault is to be applied to this request, and counts it."""
        fault = self.fault
        range_header = request.headers.get("range")
        if (
            self._times_left == 0
            or fault.origin not in (None, origin)
            or fault.method not in (None, request.method)
        ):
            return False
        if not (self._path.search(request.path) or self._path.search(file or "")):
            return False
        if self._range is not None and (
            range_header is None or not self._range.search(range_header)
        ):
            return False
        if fault.probability < 1 and not self._draw((request.method, request.path, range_header)):
            return False
        if self._skips_left > 0:
            self._skips_left -= 1
            return False
        if self._times_left is not None:
            self._times_left -= 1
        return True

    def _draw(self, request: tuple[str, str, str | None]) -> bool:
        self._drawn[request] += 1
        return (
            random.Random(f"{self.fault.seed} {request} {self._drawn[request]}").random()
            < self.fault.probability
        )


class FaultRules:
    """The faults in force, in the order in which they were added."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def add(self, fault: Fault) -> None:
        self._rules.append(_Rule(fault))

    def clear(self) -> None:
        self._rules.clear()

    def choose(self, origin: Origin, request: Request, file: str | None) -> Fault | None:
        for rule in self._rules:
            if rule.takes(origin, request, file):
                return rule.fault
        return None


def apply_fault(
    fault: Fault, request: Request, delivery: Delivery, answer_again: Callable[[Request], Answer]
) -> Delivery:
    """Returns how to answer `request` wrongly, where `delivery` would be right.

    `answer_again` answers a changed request.
    """
    answer = delivery.answer
    if fault.ignore_range:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("range", "if-range")
        }
        answer = answer_again(replace(request, headers=headers))
    if fault.status is not None:
        answer = replace(answer, status=fault.status, headers={}, body=fault.body)
    if answer.status == 206 and isinstance(answer.body, FileSlice):
        answer = _spoil_range(fault, answer, answer.body)
    if "X-Linked-Size" in answer.headers:
        answer = with_headers(
            answer, {"X-Linked-Size": str(int(answer.headers["X-Linked-Size"]) + fault.size_change)}
        )
    elif fault.size_change and request.method == "HEAD":
        answer = with_headers(
            answer, {"Content-Length": str(answer.body_bytes + fault.size_change)}
        )
    ending, stop_at = _choose_ending(fault)
    limits = [
        limit
        for limit in (delivery.bandwidth_bytes_per_second, fault.bandwidth_bytes_per_second)
        if limit is not None
    ]
    return Delivery(
        with_headers(answer, dict(fault.headers)),
        delivery.delay_seconds + fault.latency_seconds,
        min(limits, default=None),
        stop_at=stop_at,
        ending=ending,
        corrupt_at=fault.corrupt_at,
    )


def _choose_ending(fault: Fault) -> tuple[Ending, int | None]:
    if fault.truncate_at is not None:
        return "close", fault.truncate_at
    if fault.reset_at is not None:
        return "reset", fault.reset_at
    if fault.stall_at is not None:
        return "stall", fault.stall_at
    if fault.reset_before:
        return "reset_before", 0
    return ("drop", 0) if fault.close_before else ("keep", None)


def _spoil_range(fault: Fault, answer: Answer, body: FileSlice) -> Answer:
    stop = max(body.start + 1, body.stop - (fault.short_206 or 0))
    shift = 1 if fault.wrong_content_range else 0
    claimed = {
        "Content-Range": "bytes "
        f"{body.start + shift}-{stop - 1 + shift}/{body.size_bytes + fault.size_change}"
    }
    return with_headers(replace(answer, body=body._replace(stop=stop)), claimed)
