"""Runs the plan ahead of the consumer: fetches, decodes and assembles examples, strictly in order. The only threads of the package.

The order of windows is known long before they are needed, and this makes use of it. Every request passes three horizons, nearest last:

1. *known* (`add`): only integers. Every frame is counted with its uses, so it is known which frames a GOP will have to give, and when.
2. *fetched*: the coded bytes of its GOPs and its row groups are asked for.
3. *decoded*: GOPs of many episodes and files are decoded together, a few batches ahead; a frame is kept until its last known use.

Rules:
* One thread, the consumer's, plans; the pools only run tasks that know everything they need. So the order of completion does not matter.
* An error belongs to the example that needs what failed: it is kept, and raised when that example is taken.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from lerobot_grain._errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._frame_reader import FrameReader, NumberedRequest
from lerobot_grain._repository import Repository
from lerobot_grain._row_reader import PendingRows, RowReader
from lerobot_grain._rows import Selection
from lerobot_grain._statistics import Meter, ReadStatistics
from lerobot_grain._storage import StorageOptions
from lerobot_grain._windows import WindowRequest

Example = dict[str, Any]
Token = TypeVar("Token")

# Examples whose GOPs are grouped into decode tasks at a time: enough pictures for sequential speed, few enough for an early first batch.
_EXAMPLES_PER_STEP = 32
# At most this many examples are decoded or fetched ahead, however large the budget is: more would not hide more latency.
_MAX_DECODED_AHEAD, _MAX_FETCHED_AHEAD = 128, 512


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How examples are read; changes speed and memory, never what is read.

    Attributes:
      memory_budget_bytes: for coded bytes, decoded frames and rows that wait to be handed out.
      num_decode_threads: `None`: one per core that this process may use.
      storage: connections, merging of byte ranges, timeouts and retries.

    Raises:
      InvalidRequestError: a value is out of its range.
    """

    memory_budget_bytes: int = 3 << 29
    num_decode_threads: int | None = None
    storage: StorageOptions = field(default_factory=StorageOptions)

    def __post_init__(self) -> None:
        for name in ("memory_budget_bytes", "num_decode_threads"):
            value = getattr(self, name)
            if value is None and name == "num_decode_threads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidRequestError(f"ReadOptions({name}={value!r}): expected an int >= 1")


@dataclass(eq=False, slots=True)
class _Pending(Generic[Token]):
    """An example that was asked for and not taken yet."""

    numbered: NumberedRequest
    token: Token
    rows: PendingRows = field(default_factory=PendingRows)
    error: Exception | None = None


class ReadAhead(Generic[Token]):
    """Reads examples in the order in which they were added.

    Args:
      repository: the data set.
      selection: what is read of it.
      image_size: (height, width) that cameras are resized to, or `None`.
      options: memory and threads.
      known_examples: add this many requests ahead of `take`, where there are so many.
    """

    def __init__(
        self, repository: Repository, selection: Selection, *, image_size: tuple[int, int] | None, options: ReadOptions, known_examples: int
    ) -> None:
        self._known_examples = known_examples
        self._budget_bytes = options.memory_budget_bytes
        self._pending: deque[_Pending[Token]] = deque()
        self._num_fetched = self._num_decoded = self._next_number = 0
        self._meter = Meter(repository.storage)
        self._fetchers = ThreadPoolExecutor(options.storage.num_connections, "lerobot_grain fetch")
        self._decoders = ThreadPoolExecutor(options.num_decode_threads or _num_cores(), "lerobot_grain decode")
        self._rows = RowReader(
            repository,
            selection,
            image_size=image_size,
            memory_bytes=options.memory_budget_bytes // 8,
            fetchers=self._fetchers,
            meter=self._meter,
        )
        self._frames = FrameReader(
            repository,
            selection,
            image_size=image_size,
            budget_bytes=options.memory_budget_bytes,
            fetchers=self._fetchers,
            decoders=self._decoders,
            meter=self._meter,
        )

    @property
    def wants_more(self) -> bool:
        """Whether another request should be added before the next `take`."""
        return len(self._pending) < self._known_examples

    @property
    def is_empty(self) -> bool:
        return not self._pending

    def add(self, request: WindowRequest, token: Token) -> None:
        """Adds the request of the next example; `token` comes back with it."""
        # What tells where the bytes lie is asked for as soon as a file is known to be needed, long before its first frame is.
        self._rows.know(request)
        self._pending.append(_Pending(self._frames.know(self._next_number, request), token))
        self._next_number += 1

    def take(self) -> tuple[Example, Token]:
        """Returns the next example, and its token.

        Raises:
          LeRobotGrainError: something that this example needs could not be read; the reader must be closed.
        """
        self._run_ahead()
        pending = self._pending[0]
        if pending.error is not None:
            raise pending.error
        request = pending.numbered.request
        example: Example = {}
        self._rows.put(example, request, pending.rows)
        self._frames.put(example, pending.numbered)
        for key, mask in request.is_pad.items():
            example[f"{key}_is_pad"] = mask.copy()
        self._pending.popleft()
        self._num_fetched -= 1
        self._num_decoded -= 1
        self._meter.count(examples=1)
        return example, pending.token

    def statistics(self) -> ReadStatistics:
        """Returns what was read so far."""
        return self._meter.statistics(
            used_bytes=self._frames.used_bytes, peak_bytes=self._frames.peak_bytes, budget_bytes=self._budget_bytes
        )

    def close(self) -> None:
        """Stops all threads. Tasks that have not begun are dropped; those that have are waited for."""
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=True)

    def _run_ahead(self) -> None:
        """Starts what can be started: fetches and decodes, as far ahead as the budget allows, and at least what the next example needs."""
        while self._num_decoded < min(_MAX_DECODED_AHEAD, len(self._pending)):
            step = min(self._examples_per_step, len(self._pending) - self._num_decoded)
            if self._num_decoded > 0 and self._frames.used_bytes + step * self._example_bytes > self._budget_bytes:
                break
            while self._num_fetched < self._num_decoded + step:
                self._fetch_next()
            self._decode_next(step)
        while self._num_fetched < min(_MAX_FETCHED_AHEAD, len(self._pending)) and self._frames.coded_bytes < self._budget_bytes // 8:
            self._fetch_next()

    @cached_property
    def _example_bytes(self) -> int:
        return self._frames.example_bytes(self._pending[0].numbered.frames)

    @cached_property
    def _examples_per_step(self) -> int:
        """Examples whose GOPs are grouped into decode tasks: whole steps, so that there is something to group."""
        return max(1, min(_EXAMPLES_PER_STEP, self._budget_bytes // 4 // max(1, self._example_bytes)))

    def _fetch_next(self) -> None:
        pending = self._pending[self._num_fetched]
        self._num_fetched += 1
        try:
            pending.rows = self._rows.fetch(pending.numbered.request)
            self._frames.fetch(pending.numbered.request, pending.numbered.frames)
        except LeRobotGrainError as error:
            pending.error = error

    def _decode_next(self, step: int) -> None:
        started = []
        for position in range(self._num_decoded, self._num_decoded + step):
            pending = self._pending[position]
            try:
                # Frames that were dropped since they were fetched are fetched again.
                self._frames.fetch(pending.numbered.request, pending.numbered.frames)
            except LeRobotGrainError as error:
                pending.error = error
            if pending.error is None:
                started.append(pending.numbered)
        self._num_decoded += step
        if started:
            self._frames.decode(started)


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
