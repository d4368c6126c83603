"""Makes the decode tasks of one camera, and holds what belongs to them: which slot a task writes,
what failed, open decoders, and how long a picture takes.

* Short GOPs, of any episodes and files, are decoded in groups: one small MP4 for many.
* A long GOP would fill the budget with frames that are needed much later. It is decoded in pieces:
  its decoder stays open and goes on where it stopped, until too many are open.

For one thread, the consumer's.
"""

from __future__ import annotations

import functools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._reading.frames.decoding import (
    DecodeJob,
    GopFrames,
    LongGopDecoder,
    PendingBytes,
    decode_groups,
    decode_jobs,
)
from lerobot_grain._reading.frames.frame_store import FrameDemand, FrameStore
from lerobot_grain._reading.frames.gop_fetcher import GopFetcher, GopKey
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._video.decoder import OpenVideo

# Wanted frames of one decode task, at most: the speed of sequential decoding is reached at 16 to
# 64. More where frames are small: a task takes Python's lock a dozen times, each time against a
# consumer that may hold it for milliseconds.
_PICTURES_PER_TASK = 64
_TASK_BYTES = 8 << 20
# Until it was measured, how long a decoder takes for a picture: 640x480 AV1 4 ms.
_SECONDS_PER_PIXEL = 13e-9
# How much of that figure each task that has ended decides.
_NEWEST_PART = 0.1
# Memory that an open decoder holds, in pictures of 12 bits a pixel: 5 MB at 640x480 (measured with
# 64 of them).
_PICTURES_OF_DECODER = 12
# GOPs that are remembered to count those that are decoded again; only a figure of the statistics.
_MAX_LATELY_DECODED = 100_000


class _Decoded(NamedTuple):
    """The result of a task: slot -> what is wrong with its frame, and the seconds that decoding
    took.
    """

    problems: dict[int, Exception]
    seconds: float


class _Task(NamedTuple):
    """A decode that was started, the coded bytes that it waits for, and how many pictures pass
    through the decoder.
    """

    decoded: Future[_Decoded]
    coded: Sequence[PendingBytes]
    num_pictures: int


class DecodeTask(NamedTuple):
    """A decode that is to be started.

    Attributes:
      first_use: number of the first example of the block that needs one of its frames.
      start: starts it, and returns its future.
    """

    first_use: int
    start: Callable[[], Future[Any]]


@dataclass(eq=False, slots=True)
class DecodeCandidate:
    """Frames that are to be decoded of a GOP.

    Attributes:
      gop: which, with the frames.
      entries: int64 `(n,)`, of the frames.
      is_now: bool `(n,)`: whether the block that is decoded next needs the frame.
      first_use: number of the first example of that block that needs one of them.
      is_last: whether no other frame of the GOP is known to be needed.
    """

    gop: GopFrames
    entries: Integers
    is_now: npt.NDArray[np.bool_]
    first_use: int
    is_last: bool

    def only(self, keep: npt.NDArray[np.bool_]) -> DecodeCandidate:
        """Returns this for a part of its frames."""
        gop = self.gop._replace(frames=self.gop.frames[keep])
        is_last = self.is_last and bool(keep.all())
        return DecodeCandidate(gop, self.entries[keep], self.is_now[keep], self.first_use, is_last)


class _ShortGop(NamedTuple):
    """A short GOP, its coded bytes, and how many of its pictures pass through the decoder."""

    item: DecodeCandidate
    coded: PendingBytes
    num_pictures: int


@dataclass(eq=False, slots=True)
class _OpenDecoder:
    """The decoder of a long GOP, which stays open between its pieces."""

    decoder: LongGopDecoder
    num_bytes: int
    next_frame: int  # of the file: where it goes on


class _Counts:
    """Counts GOPs that go through a decoder, and those that did so not long before.

    Args:
      meter: of the source.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._lately_decoded: set[tuple[int, int]] = set()

    def count(self, begun: Sequence[GopFrames], *, num_pictures: int) -> None:
        """Counts GOPs, and pictures that pass through decoders."""
        self.meter.count(
            gops_decoded=len(begun),
            gops_decoded_again=sum(map(self._was_decoded_lately, begun)),
            pictures_decoded=num_pictures,
        )

    def _was_decoded_lately(self, gop: GopFrames) -> bool:
        key = gop.file.number, gop.gop
        if key in self._lately_decoded:
            return True
        if len(self._lately_decoded) >= _MAX_LATELY_DECODED:
            self._lately_decoded.clear()
        self._lately_decoded.add(key)
        return False


class _OpenDecoders:
    """The open decoders of a camera.

    Args:
      limit: on the sum of their bytes.

    Attributes:
      used_bytes: the sum.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_gop: OrderedDict[GopKey, _OpenDecoder] = OrderedDict()  # least recently used first
        self.used_bytes = 0

    def find(self, key: GopKey) -> _OpenDecoder | None:
        """Returns the decoder of a GOP, if it is open."""
        found = self._by_gop.get(key)
        if found is not None:
            self._by_gop.move_to_end(key)
        return found

    def add(self, key: GopKey, opened: _OpenDecoder) -> None:
        """Keeps a decoder, and gives up the least recently used ones while all of them hold more
        than they may; their GOPs begin anew when needed.

        A decoder goes when the pieces that were asked of it are done.
        """
        while self._by_gop and self.used_bytes + opened.num_bytes > self._limit:
            _, oldest = self._by_gop.popitem(last=False)
            self.used_bytes -= oldest.num_bytes
        self.used_bytes += opened.num_bytes
        self._by_gop[key] = opened

    def close(self, key: GopKey) -> None:
        """Gives up the decoder of a GOP, if it is open."""
        if (closed := self._by_gop.pop(key, None)) is not None:
            self.used_bytes -= closed.num_bytes


class GopDecoder:
    """Decodes GOPs of one camera.

    Args:
      context: of the stream.
      meter: of the source.
      open_video: the decoder of the camera.
      demand: which frames are needed; slots are marked there.
      store: memory for frames.
      fetcher: has the coded bytes.
    """

    def __init__(
        self,
        context: ReadContext,
        meter: Meter,
        open_video: OpenVideo,
        *,
        demand: FrameDemand,
        store: FrameStore,
        fetcher: GopFetcher,
    ) -> None:
        self._context = context
        self._counts = _Counts(meter)
        self._open_video = open_video
        self._demand = demand
        self._store = store
        self._fetcher = fetcher
        self._open = _OpenDecoders(context.budget.open_decoders)
        self._tasks: dict[int, _Task] = {}  # that were not waited for yet
        self._problems: dict[int, Exception] = {}  # by slot
        self._picture_seconds = math.prod(store.frames.shape[1:3]) * _SECONDS_PER_PIXEL

    @property
    def decoder_bytes(self) -> int:
        """Bytes of the open decoders."""
        return self._open.used_bytes

    def seconds_of(self, wanted: Sequence[DecodeCandidate]) -> float:
        """Returns about how long decoding takes, on one core."""
        return self._picture_seconds * sum(len(item.entries) for item in wanted)

    def tasks(self, wanted: Sequence[DecodeCandidate], *, task_seconds: float) -> list[DecodeTask]:
        """Returns the tasks that decode something, all of which must be started, those of one GOP
        in the order of this list.

        Args:
          wanted: what to decode; from now on its frames have slots.
          task_seconds: about so long each task may take; less where it would hold too many frames.
        """
        tasks: list[DecodeTask] = []
        short: list[_ShortGop] = []
        begun: list[GopFrames] = []  # that go through a decoder from their start
        for item in sorted(wanted, key=lambda item: item.first_use):
            gop = item.gop
            key = gop.file.number, gop.episode, gop.gop
            coded = self._fetcher.gops[key]
            if not coded.is_long:
                num_pictures = gop.file.num_pictures(gop.gop, gop.frames)
                short.append(_ShortGop(item, coded.run.coded, num_pictures))
                begun.append(gop)
            else:
                task, is_begun = self._piece(key, coded.run.coded, item)
                tasks.append(task)
                if is_begun:
                    begun.append(gop)
            if item.is_last:
                self._open.close(key)
                self._fetcher.release_bytes(key, coded)
        self._counts.count(begun, num_pictures=sum(each.num_pictures for each in short))
        most = max(_PICTURES_PER_TASK, _TASK_BYTES // self._store.frame_bytes)
        groups = decode_groups(
            [each.item.gop for each in short],
            max_pictures=min(most, max(1, round(task_seconds / self._picture_seconds))),
        )
        return tasks + [self._group([short[index] for index in group]) for group in groups]

    def _group(self, gops: Sequence[_ShortGop]) -> DecodeTask:
        """Returns the task that decodes short GOPs that one small MP4 can hold."""
        slots, number = self._take_slots(np.concatenate([each.item.entries for each in gops]))
        jobs = []
        begin = 0
        for item, coded, _ in gops:
            end = begin + len(item.entries)
            jobs.append(DecodeJob(item.gop, coded, slots[begin:end]))
            begin = end
        return self._task(
            number,
            functools.partial(decode_jobs, jobs, self._store.frames, self._open_video),
            [each.coded for each in gops],
            num_pictures=sum(each.num_pictures for each in gops),
            first_use=gops[0].item.first_use,
        )

    def _piece(
        self, key: GopKey, coded: PendingBytes, wanted: DecodeCandidate
    ) -> tuple[DecodeTask, bool]:
        """Returns the task that decodes the next piece of a long GOP, and whether a decoder is
        opened for it.
        """
        gop = wanted.gop
        start = gop.file.frames_of(gop.gop).start
        opened = self._open.find(key)
        if is_new := opened is None:
            decoder = LongGopDecoder(coded, self._open_video)
            opened = _OpenDecoder(decoder, _decoder_bytes(gop), next_frame=start)
            self._open.add(key, opened)
        begin = gop.frames.item(0)
        end = gop.frames.item(-1) + 1
        num_pictures = end - (opened.next_frame if begin >= opened.next_frame else start)
        self._counts.meter.count(pictures_decoded=num_pictures)
        opened.next_frame = end
        slots, number = self._take_slots(wanted.entries)
        decode = functools.partial(opened.decoder.decode, gop, self._store.frames, slots)
        return self._task(
            number, decode, [coded], num_pictures=num_pictures, first_use=wanted.first_use
        ), is_new

    def _task(
        self,
        number: int,
        decode: Callable[[], dict[int, Exception]],
        coded: Sequence[PendingBytes],
        *,
        num_pictures: int,
        first_use: int,
    ) -> DecodeTask:
        """Returns the task with a number."""

        def start() -> Future[Any]:
            decoded = self._context.decoders.submit(_timed, decode, coded)
            self._tasks[number] = _Task(decoded, coded, num_pictures)
            return decoded

        return DecodeTask(first_use, start)

    def _take_slots(self, entries: Integers) -> tuple[Integers, int]:
        """Returns slots for frames that the next task is to decode, and its number."""
        slots, number = self._store.take(len(entries))
        self._demand.slots[entries] = slots
        self._demand.is_requested[entries] = True
        return slots, number

    def not_being_written(self, entries: Integers) -> Integers:
        """Returns those of the entries of frames with a slot that no task is writing, int64
        `(n,)`.
        """
        running = [number for number, task in self._tasks.items() if not task.decoded.done()]
        return (
            entries[~np.isin(self._store.task_of[self._demand.slots[entries]], running)]
            if running
            else entries
        )

    def is_done(self, slots: npt.NDArray[np.integer[Any]]) -> bool:
        """Returns whether the tasks that write slots, `(n,)`, have ended."""
        return all(
            self._tasks[number].decoded.done()
            for number in self._tasks.keys() & set(self._store.task_of[slots].tolist())
        )

    def wait(self, slots: npt.NDArray[np.integer[Any]]) -> dict[int, Exception]:
        """Waits for the tasks that write slots, `(n,)`; returns slot -> what is wrong with its
        frame, for all where something is.
        """
        for number in self._tasks.keys() & set(self._store.task_of[slots].tolist()):
            task = self._tasks.pop(number)
            is_fetched = task.decoded.done() or all(coded.payload.done() for coded in task.coded)
            problems, seconds = self._counts.meter.wait(
                task.decoded, "decode" if is_fetched else "fetch"
            )
            self._picture_seconds += _NEWEST_PART * (
                seconds / task.num_pictures - self._picture_seconds
            )
            # A frame that was dropped may have left its slot to another one.
            self._problems.update(
                {
                    slot: error
                    for slot, error in problems.items()
                    if self._store.task_of[slot] == number
                }
            )
        return self._problems

    def give_back(self, slots: Integers) -> None:
        """Gives back the slots of frames that are needed no more."""
        if self._problems:
            for slot in slots.tolist():
                self._problems.pop(slot, None)
        self._store.give_back(slots)


def _timed(decode: Callable[[], dict[int, Exception]], coded: Sequence[PendingBytes]) -> _Decoded:
    """Decodes, once the coded bytes are there."""
    for each in coded:
        each.wait()
    start = time.perf_counter()
    problems = decode()
    return _Decoded(problems, time.perf_counter() - start)


def _decoder_bytes(gop: GopFrames) -> int:
    """Returns the bytes that an open decoder of a GOP is counted as."""
    size = gop.file.table.format
    return size.height * size.width * 3 // 2 * _PICTURES_OF_DECODER
