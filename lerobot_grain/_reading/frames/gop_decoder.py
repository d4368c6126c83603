"""Makes decode tasks, and holds what belongs to them: which slot a task writes, what failed, and
how long a frame takes. Cameras whose frames have one shape and are made in one way have a decoder
in common, whatever dataset they are of: so a task has enough to decode where many are mixed.

* Short GOPs, of any episodes and files, are decoded in groups: one small MP4 for many.
* A long GOP would fill the budget with frames that are needed much later. It is decoded in pieces:
  its decoder stays open and goes on where it stopped, until too many are open.

For one thread, the consumer's.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._reading.frame_cache.frame_writer import (
    DecodedFrames,
    FrameWriter,
    HeldFrames,
)
from lerobot_grain._reading.frames.camera_gops import CameraGops, OpenDecoder, decoder_bytes
from lerobot_grain._reading.frames.decoding import (
    DecodeJob,
    GopFrames,
    LongGopDecoder,
    PendingBytes,
    decode_groups,
    decode_jobs,
)
from lerobot_grain._reading.frames.frame_store import FrameStore
from lerobot_grain._reading.frames.gop_fetcher import GopKey
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._video.decoder import OpenVideo

# Returns slot -> what is wrong with its frame.
_Decode = Callable[[], dict[int, Exception]]

# Wanted frames of one decode task, at most: the speed of sequential decoding is reached at 16 to
# 64. More where frames are small: a task takes Python's lock a dozen times, each time against a
# consumer that may hold it for milliseconds.
_PICTURES_PER_TASK = 64
_TASK_BYTES = 8 << 20
# Until it was measured, how long a decoder takes for a frame: 640x480 AV1 4 ms.
_SECONDS_PER_PIXEL = 13e-9
# How much of that figure each task that has ended decides.
_NEWEST_PART = 0.1


class _Decoded(NamedTuple):
    """The result of a task: slot -> what is wrong with its frame, and the seconds that decoding
    took.
    """

    problems: dict[int, Exception]
    seconds: float


# Keeps the frames of a task on disk.
_Keep = Callable[[_Decoded], None]


class _Task(NamedTuple):
    """A decode that was started, the coded bytes that it waits for, and how many coded pictures
    pass through the decoder.
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
class Decoding:
    """The decoding of what a block needed, when it was started.

    Attributes:
      seconds: about so long it takes on one core.
      unfinished: the tasks, the last one first; those that are finished leave.
    """

    seconds: float
    unfinished: list[Future[Any]]

    @property
    def is_finished(self) -> bool:
        """Whether all tasks have ended."""
        while self.unfinished and self.unfinished[-1].done():
            self.unfinished.pop()
        return not self.unfinished


@dataclass(eq=False, slots=True)
class DecodeCandidate:
    """Frames that are to be decoded of a GOP.

    Attributes:
      camera: whose GOP.
      gop: which, with the frames.
      entries: int64 `(n,)`, of the frames.
      is_now: bool `(n,)`: whether the block that is decoded next needs the frame.
      first_use: number of the first example of that block that needs one of them.
      is_last: whether no other frame of the GOP is known to be needed.
    """

    camera: CameraGops
    gop: GopFrames
    entries: Integers
    is_now: npt.NDArray[np.bool_]
    first_use: int
    is_last: bool

    def only(self, keep: npt.NDArray[np.bool_]) -> DecodeCandidate:
        """Returns this for a part of its frames."""
        return replace(
            self,
            gop=self.gop._replace(frames=self.gop.frames[keep]),
            entries=self.entries[keep],
            is_now=self.is_now[keep],
            is_last=self.is_last and bool(keep.all()),
        )


class _ShortGop(NamedTuple):
    """A short GOP, its coded bytes, and how many of its coded pictures pass through the decoder."""

    item: DecodeCandidate
    coded: PendingBytes
    num_pictures: int


class GopDecoder:
    """Decodes GOPs of cameras whose frames have one shape and are made in one way.

    Args:
      context: of the stream.
      open_video: the decoder of the cameras.
      store: memory for their frames.
    """

    def __init__(self, context: ReadContext, open_video: OpenVideo, store: FrameStore) -> None:
        self.store = store
        self._pool = context.decoders
        self._open_video = open_video
        self._tasks: dict[int, _Task] = {}  # that were not waited for yet
        self._problems: dict[int, Exception] = {}  # by slot
        self._writer: FrameWriter | None = None
        if context.frame_cache is not None:
            self._writer = context.frame_cache.writer
            if store.is_held is None:
                store.is_held = np.zeros(len(store.frames), np.bool_)
        self._picture_seconds = math.prod(store.frames.shape[1:3]) * _SECONDS_PER_PIXEL

    def seconds_of(self, wanted: Sequence[DecodeCandidate]) -> float:
        """Returns about how long decoding takes, on one core."""
        return self._picture_seconds * sum(len(item.entries) for item in wanted)

    def bytes_of(self, wanted: Sequence[DecodeCandidate]) -> int:
        """Returns the bytes of the frames."""
        return self.store.frame_bytes * sum(len(item.entries) for item in wanted)

    def bytes_taken(self, wanted: Sequence[DecodeCandidate]) -> int:
        """Returns the bytes of the frames, and of the decoders that are opened for long GOPs."""
        return self.bytes_of(wanted) + sum(item.camera.opening_bytes(item.gop) for item in wanted)

    def tasks(self, wanted: Sequence[DecodeCandidate], *, task_seconds: float) -> list[DecodeTask]:
        """Returns the tasks that decode something, all of which must be started, those of one GOP
        in the order of this list.

        Args:
          wanted: what to decode; from now on its frames have slots.
          task_seconds: about so long each task may take; less where it would hold too many frames.
        """
        tasks: list[DecodeTask] = []
        short: list[_ShortGop] = []
        begun: dict[CameraGops, list[GopFrames]] = {}  # that go through a decoder from their start
        pictures: Counter[CameraGops] = Counter()
        for item in sorted(wanted, key=lambda item: item.first_use):
            gop = item.gop
            camera = item.camera
            key = gop.file.number, gop.episode, gop.gop
            coded = camera.fetcher.gops[key]
            if not coded.is_long:
                num_pictures = gop.file.num_pictures(gop.gop, gop.frames)
                short.append(_ShortGop(item, coded.run.coded, num_pictures))
                pictures[camera] += num_pictures
                begun.setdefault(camera, []).append(gop)
            else:
                task, is_begun = self._piece(key, coded.run.coded, item)
                tasks.append(task)
                if is_begun:
                    begun.setdefault(camera, []).append(gop)
                if item.is_last:
                    camera.decoders.close(key)
            if item.is_last:
                camera.fetcher.release_bytes(key, coded)
        for camera, gops in begun.items():
            camera.counts.count(gops, num_pictures=pictures[camera])
        most = max(_PICTURES_PER_TASK, _TASK_BYTES // self.store.frame_bytes)
        groups = decode_groups(
            [each.item.gop for each in short],
            max_pictures=max(1, round(min(most, task_seconds / self._picture_seconds))),
        )
        return tasks + [self._group([short[index] for index in group]) for group in groups]

    def _group(self, gops: Sequence[_ShortGop]) -> DecodeTask:
        """Returns the task that decodes short GOPs that one small MP4 can hold."""
        slots, number = self.store.take(sum(len(each.item.entries) for each in gops))
        _mark([each.item for each in gops], slots)
        jobs = []
        begin = 0
        for item, coded, _ in gops:
            end = begin + len(item.entries)
            jobs.append(DecodeJob(item.gop, coded, slots[begin:end]))
            begin = end
        decode = functools.partial(decode_jobs, jobs, self.store.frames, self._open_video)
        return self._task(
            number,
            decode,
            [each.coded for each in gops],
            keep=self._keeping(
                [(each.item, job.slots) for each, job in zip(gops, jobs, strict=True)]
            ),
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
        opened = wanted.camera.decoders.find(key)
        begin = gop.frames.item(0)
        end = gop.frames.item(-1) + 1
        if is_new := opened is None:
            decoder = LongGopDecoder(coded, self._open_video)
            opened = OpenDecoder(decoder, decoder_bytes(gop), next_frame=start)
            wanted.camera.decoders.add(key, opened)
        num_pictures = end - (opened.next_frame if begin >= opened.next_frame else start)
        wanted.camera.counts.meter.count(pictures_decoded=num_pictures)
        opened.next_frame = end
        slots, number = self.store.take(len(wanted.entries))
        _mark([wanted], slots)
        decode = functools.partial(opened.decoder.decode, gop, self.store.frames, slots)
        return self._task(
            number,
            decode,
            [coded],
            keep=self._keeping([(wanted, slots)]),
            num_pictures=num_pictures,
            first_use=wanted.first_use,
        ), is_new

    def _keeping(self, wanted: Sequence[tuple[DecodeCandidate, Integers]]) -> _Keep | None:
        """Returns what keeps decoded frames on disk, where that is asked for.

        Args:
          wanted: what a task decodes, and the slots of its frames.
        """
        writer = self._writer
        if writer is None:
            return None
        decoded = []
        for item, slots in wanted:
            if (on_disk := item.camera.on_disk) is not None:
                gop = item.gop
                frames = gop.frames - gop.file.first_frame(gop.episode)
                decoded.append(DecodedFrames(on_disk.episode(gop.episode), frames, slots))
        assert self.store.is_held is not None
        memory = HeldFrames.of(self.store.frames, self.store.is_held)

        def keep(result: _Decoded) -> None:
            writer.offer(
                memory,
                [each.without(result.problems) for each in decoded],
                decode_seconds=result.seconds,
            )

        return keep

    def _task(
        self,
        number: int,
        decode: _Decode,
        coded: Sequence[PendingBytes],
        *,
        keep: _Keep | None,
        num_pictures: int,
        first_use: int,
    ) -> DecodeTask:
        """Returns the task with a number."""

        def start() -> Future[Any]:
            decoded = self._pool.submit(_timed, decode, coded, keep)
            self._tasks[number] = _Task(decoded, coded, num_pictures)
            return decoded

        return DecodeTask(first_use, start)

    def not_being_written(self, slots: Integers) -> npt.NDArray[np.bool_]:
        """Returns of slots, int64 `(n,)`, whether no task is writing them, bool `(n,)`."""
        running = [number for number, task in self._tasks.items() if not task.decoded.done()]
        return ~np.isin(self.store.task_of[slots], running)

    def is_done(self, slots: npt.NDArray[np.integer[Any]]) -> bool:
        """Returns whether the tasks that write slots, `(n,)`, have ended."""
        return all(
            self._tasks[number].decoded.done()
            for number in self._tasks.keys() & set(self.store.task_of[slots].tolist())
        )

    def wait(self, slots: npt.NDArray[np.integer[Any]], meter: Meter) -> dict[int, Exception]:
        """Waits for the tasks that write slots, `(n,)`, and counts the time.

        Returns:
          Slot -> what is wrong with its frame, for all where something is.
        """
        for number in self._tasks.keys() & set(self.store.task_of[slots].tolist()):
            task = self._tasks.pop(number)
            is_fetched = task.decoded.done() or all(coded.payload.done() for coded in task.coded)
            problems, seconds = meter.wait(task.decoded, "decode" if is_fetched else "fetch")
            self._picture_seconds += _NEWEST_PART * (
                seconds / task.num_pictures - self._picture_seconds
            )
            # A frame that was dropped may have left its slot to another one.
            self._problems.update(
                {
                    slot: error
                    for slot, error in problems.items()
                    if self.store.task_of[slot] == number
                }
            )
        return self._problems

    def give_back(self, slots: Integers) -> None:
        """Gives back the slots of frames that are needed no more."""
        if self._problems:
            for slot in slots.tolist():
                self._problems.pop(slot, None)
        self.store.give_back(slots)


def _mark(items: Sequence[DecodeCandidate], slots: Integers) -> None:
    """Notes in which slots the frames of GOPs will be, which follow each other."""
    if all(item.camera is items[0].camera for item in items):
        parts = [(items[0].camera, np.concatenate([item.entries for item in items]), slots)]
    else:
        stops = itertools.accumulate(len(item.entries) for item in items)
        parts = [
            (item.camera, item.entries, slots[stop - len(item.entries) : stop])
            for item, stop in zip(items, stops, strict=True)
        ]
    for camera, entries, into in parts:
        camera.demand.slots[entries] = into
        camera.demand.is_requested[entries] = True


def _timed(decode: _Decode, coded: Sequence[PendingBytes], keep: _Keep | None) -> _Decoded:
    """Decodes, once the coded bytes are there, and keeps the frames."""
    for each in coded:
        each.wait()
    start = time.perf_counter()
    problems = decode()
    result = _Decoded(problems, time.perf_counter() - start)
    if keep is not None:
        keep(result)
    return result
