"""Fetches and decodes the frames of one camera ahead, and keeps each until its last known use.

Idea: every frame that a coming example needs is known, with its uses. A GOP is fetched (`_reading/frames/gop_fetcher`), decoded at its
first use for all of its frames that are known to be needed, and each frame goes after its last use.

* Short GOPs, of any episodes and files, are decoded in groups: one small MP4 for many.
* A long GOP would fill the budget with frames that are needed much later. It is decoded in pieces: its decoder stays open and goes on
  where it stopped.

Rules:
* One thread, the consumer's, plans; pools run tasks that know everything they need. Only a long GOP's decoder is shared by tasks, under
  its own lock.
* A slot of the store is given back when no task can write to it any more: after the task that does was waited for, or is done.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import LeRobotGrainError
from lerobot_grain._format.info import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.frames.decoding import DecodeJob, GopFrames, LongGopDecoder, PendingBytes, decode_groups, decode_jobs
from lerobot_grain._reading.frames.frame_store import FAILED, NO_SLOT, FrameDemand, FrameStore
from lerobot_grain._reading.frames.gop_fetcher import FetchedGop, GopFetcher, GopKey
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.options import MemoryBudget
from lerobot_grain._reading.read_statistics import Meter
from lerobot_grain._repository.repository import Repository
from lerobot_grain._video.decoder import Frames, OpenVideo
from lerobot_grain._video.depth import DepthDecoder
from lerobot_grain._video.rgb import RgbDecoder
from lerobot_grain._video.video_file import VideoFile

Integers = npt.NDArray[np.int64]

# Wanted frames of one decode task: the speed of sequential decoding is reached at 16 to 64. More where frames are small: a task takes
# Python's lock a dozen times, each time against a consumer that may hold it for milliseconds.
_PICTURES_PER_TASK, _TASK_BYTES = 64, 8 << 20
# What an open decoder holds, in pictures of 12 bits a pixel: 5 MB at 640x480 (measured with 64 of them).
_PICTURES_OF_DECODER = 12
# GOPs that are remembered to count those that are decoded again; only a figure of the statistics.
_MAX_LATELY_DECODED = 100_000


class _Task(NamedTuple):
    """A decode that was started, and the coded bytes that it waits for."""

    problems: Future[dict[int, Exception]]
    coded: list[PendingBytes]


@dataclass(eq=False, slots=True)
class DecodeCandidate:
    """Frames that are to be decoded of a GOP.

    Attributes:
      gop: which, with the frames.
      entries: int64 `(n,)`, of the frames.
      is_now: bool `(n,)`: whether the block that is decoded next needs the frame.
      is_last: whether no other frame of the GOP is known to be needed.
    """

    gop: GopFrames
    entries: Integers
    is_now: npt.NDArray[np.bool_]
    is_last: bool

    def only(self, keep: npt.NDArray[np.bool_]) -> DecodeCandidate:
        """Returns this for a part of its frames."""
        gop = self.gop._replace(frames=self.gop.frames[keep])
        return DecodeCandidate(gop, self.entries[keep], self.is_now[keep], self.is_last and bool(keep.all()))


class CameraReader:
    """Reads the frames of one camera.

    Args:
      repository: the data set.
      feature: the camera.
      image_size: (height, width) to resize to, or `None`.
      budget: of memory; the caller keeps to what it has for all cameras together.
      needed_every_epoch: as for `GopFetcher`.
      fetchers, decoders: where reading and decoding run.
      files: of all cameras, by (camera, number of the file).
      meter: counts.
    """

    def __init__(
        self,
        repository: Repository,
        feature: Feature,
        *,
        image_size: tuple[int, int] | None,
        budget: MemoryBudget,
        needed_every_epoch: npt.NDArray[np.bool_],
        fetchers: Executor,
        decoders: Executor,
        files: FutureCache[tuple[str, int], VideoFile],
        meter: Meter,
    ) -> None:
        self._repository = repository
        self._open_video: OpenVideo
        if feature.depth is None:
            self._open_video = functools.partial(RgbDecoder, image_size=image_size)
        else:
            self._open_video = functools.partial(DepthDecoder, depth=feature.depth, image_size=image_size)
        self._budget = budget
        self._decoders, self._meter = decoders, meter
        self._camera = feature.key
        self._episodes = repository.episodes
        self._file_of_episode = repository.episodes.videos[feature.key].files.file_of_episode
        height, width = image_size or feature.shape[:2]
        self.demand = FrameDemand()
        shape, dtype = (height, width, feature.num_channels), np.dtype(feature.frame_dtype)
        self.store = FrameStore(shape, dtype, budget.num_slots(math.prod(shape) * dtype.itemsize))
        self._fetcher = GopFetcher(
            repository,
            feature.key,
            demand=self.demand,
            needed_every_epoch=needed_every_epoch,
            frame_bytes=self.store.frame_bytes,
            budget=budget,
            fetchers=fetchers,
            files=files,
            meter=meter,
        )
        self._open: OrderedDict[GopKey, FetchedGop] = OrderedDict()  # those with an open decoder, the least recently used first
        self._tasks: dict[int, _Task] = {}  # that were not waited for yet
        self._num_tasks = 0
        self._problems_of_entries: dict[int, Exception] = {}
        self._problems_of_slots: dict[int, Exception] = {}
        self._lately_decoded: set[tuple[int, int]] = set()
        self._num_gops = self._num_gops_again = 0  # since `start` was called
        self.decoder_bytes = 0

    @property
    def coded_bytes(self) -> int:
        """Coded bytes that go when they are decoded."""
        return self._fetcher.coded_bytes

    @property
    def used_bytes(self) -> int:
        return self._fetcher.coded_bytes + self._fetcher.kept_bytes + self.decoder_bytes + self.store.used_bytes

    def announce(self, block: WindowBlock) -> Integers:
        """Counts the frames that a block needs; returns their entries, int64 `(examples, time)`.

        What tells where the bytes lie is asked for as soon as a file is known to be needed, long before its first frame is.
        """
        for number in set(self._file_of_episode[block.episodes].tolist()):
            self._fetcher.open(number)
        return self.demand.add(self._episodes.first_rows[block.episodes][:, None] + self._window(block))

    # Fetching

    def fetch(self, block: WindowBlock, entries: Integers) -> None:
        """Asks for the coded bytes of frames that were not asked for yet, or were dropped since."""
        flat = entries.reshape(-1)
        missing = np.flatnonzero(~self.demand.is_requested[flat])
        if len(missing) == 0:
            return
        frames = self._window(block).reshape(-1)
        for index in missing.tolist():
            entry = flat.item(index)
            if self.demand.is_requested[entry]:
                continue  # with another one
            try:
                self._fetcher.fetch(block.episodes.item(index // entries.shape[1]), frames.item(index))
            except LeRobotGrainError as error:
                self.demand.slots[entry], self.demand.is_requested[entry] = FAILED, True
                self._problems_of_entries[entry] = error

    # Decoding

    def frames_to_decode(self, block: WindowBlock, entries: Integers) -> list[DecodeCandidate]:
        """Returns what is to be decoded for a block: of every GOP that it needs, the frames that are known to be needed.

        Of long GOPs those up to the last one that the block needs.
        """
        flat = entries.reshape(-1)
        waiting = np.flatnonzero(self.demand.slots[flat] == NO_SLOT)
        if len(waiting) == 0:
            return []
        is_now = np.zeros(len(self.demand.slots), np.bool_)
        is_now[flat[waiting]] = True
        episodes = block.episodes[waiting // entries.shape[1]]
        frames = self._window(block).reshape(-1)[waiting]
        numbers = self._file_of_episode[episodes]
        wanted: list[DecodeCandidate] = []
        for number in sorted(set(numbers.tolist())):
            members = numbers == number
            file = self._meter.wait(self._fetcher.open(number), "fetch")
            wanted += self._frames_of_file(file, episodes[members], frames[members], is_now)
        return wanted

    def _frames_of_file(
        self, file: VideoFile, episodes: Integers, frames: Integers, is_now: npt.NDArray[np.bool_]
    ) -> list[DecodeCandidate]:
        frames = frames + file.first_frames(episodes)
        num_gops = len(file.gop_starts)
        distinct, inverse = np.unique(episodes * num_gops + file.gops_of(frames), return_inverse=True)
        episodes, gops = np.divmod(distinct, num_gops)
        last = np.zeros(len(distinct), np.int64)
        np.maximum.at(last, inverse, frames)
        # All frames of these GOPs that belong to the episode, one GOP after the other.
        first = file.first_frames(episodes)
        starts = np.maximum(file.gop_starts[gops], first)
        lengths = np.minimum(file.gop_starts[gops + 1], first + self._episodes.lengths[episodes]) - starts
        stops = np.cumsum(lengths)
        gop_of = np.repeat(np.arange(len(distinct)), lengths)
        candidates = np.arange(stops[-1]) + (starts - (stops - lengths))[gop_of]
        entries = self.demand.find(candidates + (self._episodes.first_rows[episodes] - first)[gop_of])
        needed = np.flatnonzero((self.demand.uses[entries] > 0) & (self.demand.slots[entries] == NO_SLOT))
        candidates, entries, gop_of = candidates[needed], entries[needed], gop_of[needed]
        bounds = np.searchsorted(gop_of, np.arange(len(distinct) + 1)).tolist()
        now = is_now[entries]
        wanted = []
        for i, (episode, gop) in enumerate(zip(episodes.tolist(), gops.tolist(), strict=True)):
            begin, end = bounds[i], bounds[i + 1]
            is_last = True
            if self._fetcher.gops[file.number, episode, gop].is_long:
                last_end = begin + int(np.searchsorted(candidates[begin:end], last[i], side="right"))
                end, is_last = last_end, last_end == end
            part = slice(begin, end)
            wanted.append(DecodeCandidate(GopFrames(file, episode, gop, candidates[part]), entries[part], now[part], is_last))
        return wanted

    def start(self, wanted: Sequence[DecodeCandidate]) -> None:
        """Starts decoding."""
        short = []
        num_pictures = self._num_gops = self._num_gops_again = 0
        for item in wanted:
            key = item.gop.file.number, item.gop.episode, item.gop.gop
            coded = self._fetcher.gops[key]
            if coded.is_long:
                self._start_piece(key, coded, item)
            else:
                short.append((item, coded))
                self._count(item.gop)
                num_pictures += item.gop.file.num_pictures(item.gop.gop, item.gop.frames)
            if item.is_last:
                self._release_gop(key, coded)
        self._meter.count(gops_decoded=self._num_gops, gops_decoded_again=self._num_gops_again, pictures_decoded=num_pictures)
        for group in decode_groups(
            [item.gop for item, _ in short], max_pictures=max(_PICTURES_PER_TASK, _TASK_BYTES // self.store.frame_bytes)
        ):
            items = [short[index] for index in group]
            slots = self._take_slots(np.concatenate([item.entries for item, _ in items]))
            jobs, begin = [], 0
            for item, coded in items:
                end = begin + len(item.entries)
                jobs.append(DecodeJob(item.gop, coded.run.coded, slots[begin:end]))
                begin = end
            problems = self._decoders.submit(decode_jobs, jobs, self.store.frames, self._open_video)
            self._tasks[self._num_tasks] = _Task(problems, [coded.run.coded for _, coded in items])

    def _start_piece(self, key: GopKey, coded: FetchedGop, wanted: DecodeCandidate) -> None:
        """Starts decoding the next piece of a long GOP."""
        gop = wanted.gop
        start = gop.file.frames_of(gop.gop).start
        if coded.decoder is None:
            coded.decoder_bytes = gop.file.table.format.height * gop.file.table.format.width * 3 // 2 * _PICTURES_OF_DECODER
            self._close_decoders(coded.decoder_bytes)
            coded.decoder, coded.next_frame = LongGopDecoder(coded.run.coded, self._open_video), start
            self.decoder_bytes += coded.decoder_bytes
            self._open[key] = coded
            self._count(gop)
        self._open.move_to_end(key)
        begin, end = gop.frames.item(0), gop.frames.item(-1) + 1
        self._meter.count(pictures_decoded=end - (coded.next_frame if begin >= coded.next_frame else start))
        coded.next_frame = end
        slots = self._take_slots(wanted.entries)
        problems = self._decoders.submit(coded.decoder.decode, gop, self.store.frames, slots)
        self._tasks[self._num_tasks] = _Task(problems, [coded.run.coded])

    def _take_slots(self, entries: Integers) -> Integers:
        """Returns slots for frames that the next task is to decode."""
        slots = self.store.take(len(entries))
        self.demand.slots[entries] = slots
        self.demand.is_requested[entries] = True
        self._num_tasks += 1
        self.store.task_of[slots] = self._num_tasks
        return slots

    def _release_gop(self, key: GopKey, coded: FetchedGop) -> None:
        """Gives up the decoder of a GOP, and its coded bytes unless they are kept."""
        if coded.decoder is not None:
            del self._open[key]
            coded.decoder = None
            self.decoder_bytes -= coded.decoder_bytes
        self._fetcher.release_bytes(key, coded)

    def _close_decoders(self, more_bytes: int) -> None:
        """Gives up the least recently used decoders while all of them hold more than they may; their GOPs begin anew when needed.

        A decoder goes when the pieces that were asked of it are done.
        """
        while self._open and self.decoder_bytes + more_bytes > self._budget.open_decoders:
            _, coded = self._open.popitem(last=False)
            coded.decoder = None
            self.decoder_bytes -= coded.decoder_bytes

    def _count(self, gop: GopFrames) -> None:
        """Counts a GOP that goes through a decoder."""
        key = gop.file.number, gop.gop
        self._num_gops += 1
        if key in self._lately_decoded:
            self._num_gops_again += 1
        elif len(self._lately_decoded) >= _MAX_LATELY_DECODED:
            self._lately_decoded.clear()
        self._lately_decoded.add(key)

    # Dropping

    def droppable(self) -> Integers:
        """Returns the entries of decoded frames that no task is writing, int64 `(n,)`."""
        entries = np.flatnonzero(self.demand.slots >= 0)
        running = [number for number, task in self._tasks.items() if not task.problems.done()]
        return entries[~np.isin(self.store.task_of[self.demand.slots[entries]], running)] if running else entries

    def drop(self, entries: Integers) -> None:
        """Forgets decoded frames; they are fetched and decoded again when they are needed."""
        self._give_back(self.demand.slots[entries].astype(np.int64))
        self.demand.slots[entries] = NO_SLOT
        self.demand.is_requested[entries] = False

    # Handing out

    def wait(self, entries: Integers) -> tuple[int, Exception] | None:
        """Waits for the frames of examples, entries int64 `(examples, time)`.

        Returns:
          `None`, or the first example that cannot be had, and why.
        """
        slots = self.demand.slots[entries]
        for number in self._tasks.keys() & set(self.store.task_of[slots[slots >= 0]].tolist()):
            task = self._tasks.pop(number)
            is_fetched = task.problems.done() or all(coded.payload.done() for coded in task.coded)
            problems = self._meter.wait(task.problems, "decode" if is_fetched else "fetch")
            # A frame that was dropped may have left its slot to another one.
            self._problems_of_slots.update({slot: error for slot, error in problems.items() if self.store.task_of[slot] == number})
        if self._problems_of_slots or self._problems_of_entries:
            for example, window in enumerate(zip(entries.tolist(), slots.tolist(), strict=True)):
                for entry, slot in zip(*window, strict=True):
                    problem = self._problems_of_entries.get(entry) if slot == FAILED else self._problems_of_slots.get(slot)
                    if problem is not None:
                        return example, problem
        return None

    def copy_frames(self, entries: Integers, out: Frames) -> None:
        """Copies the frames of examples, which were waited for, entries int64 `(examples, time)`, to `out`: one after the other."""
        slots = self.demand.slots[entries.reshape(-1)]
        # "clip", because "raise" would go through a copy.
        np.take(self.store.frames, slots, axis=0, out=out.reshape(len(slots), *self.store.frames.shape[1:]), mode="clip")
        self._meter.count(frames_handed_out=len(slots))

    def release(self, entries: Integers) -> None:
        """Counts a use of each of the frames; those that are needed no more go."""
        self._give_back(self.demand.use(entries.reshape(-1)))

    def _give_back(self, slots: Integers) -> None:
        if self._problems_of_slots:
            for slot in slots.tolist():
                self._problems_of_slots.pop(slot, None)
        self.store.give_back(slots)

    # Windows

    def _window(self, block: WindowBlock) -> Integers:
        """Returns int64 `(examples, time)`: the frames of the episode that the camera's windows consist of."""
        return block.windows.get(self._camera, block.frames[:, None])
