"""Counts the reads of an iterator: cheap enough to be always on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeVar

from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.options import StorageStatistics

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
      bytes_from_disk_cache: of video, rows and indices that were asked for and lay in the disk
        cache, so they were not fetched; counted as `requests` are.
      bytes_needed: coded bytes of the GOPs and column chunks of the row groups that were read, once
        for every time they were needed anew.
      gops_decoded: GOPs that went through a decoder.
      gops_decoded_again: those of them that had been decoded not long before, and whose frames had
        gone.
      pictures_decoded: coded pictures that went through a decoder.
      frames_handed_out: camera frames in examples.
      frames_from_cache: those of them that came from the frame cache on disk.
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
    bytes_from_disk_cache: int = 0
    bytes_needed: int = 0
    gops_decoded: int = 0
    gops_decoded_again: int = 0
    pictures_decoded: int = 0
    frames_handed_out: int = 0
    frames_from_cache: int = 0
    waited_for_fetch_seconds: float = 0.0
    waited_for_decode_seconds: float = 0.0
    budget_used_bytes: int = 0
    budget_peak_bytes: int = 0
    budget_bytes: int = 0


class Meter:
    """Counts what is read of one dataset; for the consumer's thread.

    Attributes:
      storage: of the dataset.
      before: what had been read of it.
      started_seconds: when that was.
      counts: for the attributes of `ReadStatistics`.
      waited_seconds: for `fetch` and for `decode`.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.before = storage.statistics
        self.started_seconds = time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.waited_seconds = {"fetch": 0.0, "decode": 0.0}

    def count(self, **counts: int) -> None:
        """Adds to attributes of `ReadStatistics`."""
        for name, number in counts.items():
            self.counts[name] += number

    def wait(self, future: Future[Value], reason: Literal["fetch", "decode"]) -> Value:
        """Returns the result of a future, and counts the time for which the consumer is held up."""
        if future.done():
            return future.result()
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_seconds[reason] += time.perf_counter() - started


def sum_of(
    meters: Sequence[Meter], *, used_bytes: int, peak_bytes: int, budget_bytes: int
) -> ReadStatistics:
    """Returns what some meters, at least one, have counted together."""
    # A storage that several datasets have in common counts once.
    distinct = {id(meter.storage): meter for meter in meters}.values()
    fetched = StorageStatistics(
        *map(
            sum,
            zip(
                *(_difference(each.storage.statistics, each.before) for each in distinct),
                strict=True,
            ),
        )
    )
    counts: Counter[str] = Counter()
    for meter in meters:
        counts.update(meter.counts)
    return ReadStatistics(
        seconds=time.perf_counter() - min(meter.started_seconds for meter in meters),
        bytes_fetched=fetched.bytes_received,
        requests=fetched.requests,
        retries=fetched.retries,
        pause_seconds=fetched.pause_seconds,
        bytes_from_disk_cache=fetched.bytes_from_disk_cache,
        waited_for_fetch_seconds=sum(meter.waited_seconds["fetch"] for meter in meters),
        waited_for_decode_seconds=sum(meter.waited_seconds["decode"] for meter in meters),
        budget_used_bytes=used_bytes,
        budget_peak_bytes=peak_bytes,
        budget_bytes=budget_bytes,
        **counts,
    )


def _difference(now: StorageStatistics, before: StorageStatistics) -> list[float]:
    return [later - earlier for later, earlier in zip(now, before, strict=True)]
