"""Counts the reads of an iterator: cheap enough to be always on."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeVar

from lerobot_grain._storage.base import Storage

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """The reads of an iterator so far, in this process.

    Attributes:
      examples: handed out.
      seconds: since the first one was asked for.
      bytes_fetched, requests: of the dataset's storage, since then; other iterators on the same
        `Repository` are counted too.
      retries, pause_seconds: attempts after the first, and the time between attempts and in rate
        limits, summed over threads; counted as `requests` are.
      bytes_needed: coded bytes of the GOPs and column chunks of the row groups that were read, once
        for every time they were needed anew.
      gops_decoded: GOPs that went through a decoder.
      gops_decoded_again: those of them that had been decoded not long before, and whose frames had
        gone.
      pictures_decoded: coded pictures that went through a decoder.
      frames_handed_out: camera frames in examples.
      waited_for_fetch_seconds, waited_for_decode_seconds: for which the consumer was held up.
      budget_used_bytes, budget_peak_bytes, budget_bytes: coded bytes, decoded frames, open
        decoders, sample tables and row groups that are held, at most were held, and may be held.
    """

    examples: int = 0
    seconds: float = 0.0
    bytes_fetched: int = 0
    requests: int = 0
    retries: int = 0
    pause_seconds: float = 0.0
    bytes_needed: int = 0
    gops_decoded: int = 0
    gops_decoded_again: int = 0
    pictures_decoded: int = 0
    frames_handed_out: int = 0
    waited_for_fetch_seconds: float = 0.0
    waited_for_decode_seconds: float = 0.0
    budget_used_bytes: int = 0
    budget_peak_bytes: int = 0
    budget_bytes: int = 0


class Meter:
    """Counts for `ReadStatistics`; for the consumer's thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._before = storage.statistics
        self._started_seconds = time.perf_counter()
        self._counts: Counter[str] = Counter()
        self._waited_seconds = {"fetch": 0.0, "decode": 0.0}

    def count(self, **counts: int) -> None:
        """Adds to attributes of `ReadStatistics`."""
        for name, number in counts.items():
            self._counts[name] += number

    def wait(self, future: Future[Value], reason: Literal["fetch", "decode"]) -> Value:
        """Returns the result of a future, and counts the time for which the consumer is held up."""
        if future.done():
            return future.result()
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self._waited_seconds[reason] += time.perf_counter() - started

    def statistics(self, *, used_bytes: int, peak_bytes: int, budget_bytes: int) -> ReadStatistics:
        now = self._storage.statistics
        return ReadStatistics(
            seconds=time.perf_counter() - self._started_seconds,
            bytes_fetched=now.bytes_received - self._before.bytes_received,
            requests=now.requests - self._before.requests,
            retries=now.retries - self._before.retries,
            pause_seconds=now.pause_seconds - self._before.pause_seconds,
            waited_for_fetch_seconds=self._waited_seconds["fetch"],
            waited_for_decode_seconds=self._waited_seconds["decode"],
            budget_used_bytes=used_bytes,
            budget_peak_bytes=peak_bytes,
            budget_bytes=budget_bytes,
            **self._counts,
        )
