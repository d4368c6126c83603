"""The frames of all cameras of all sources, within one budget.

The frames that a block of examples needs are decoded at once, together with the frames of the same
GOPs that are needed later, as far as the budget allows. When it does not allow all,
`_reading/frames/eviction` chooses; frames that it leaves out or drops are read and decoded again
later: slower, never wrong, never more memory.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.features import Depth
from lerobot_grain._format.info import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.frames.camera_reader import CameraReader
from lerobot_grain._reading.frames.eviction import frames_that_stay
from lerobot_grain._reading.frames.frame_store import FrameStore
from lerobot_grain._reading.frames.gop_decoder import DecodeCandidate, Decoding, GopDecoder
from lerobot_grain._reading.frames.gop_fetcher import FileKey
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._video.decoder import OpenVideo, load_decoder
from lerobot_grain._video.depth import DepthDecoder, load_depth_decoder
from lerobot_grain._video.rgb import RgbDecoder
from lerobot_grain._video.video_file import VideoFile

# Decode tasks are to take this long at least: each costs some tenths of a millisecond of Python,
# and opens a decoder; tasks half as long keep 64 threads busy for 0.6 of the time instead of 0.84,
# since all of them need Python's lock (`benchmarks/cores.py`). And there are to be so many for each
# thread in a block, so that no thread waits long for another one. A few threads do not, and their
# tasks are as large as they may be.
_MIN_TASK_SECONDS = 0.06
_TASKS_PER_THREAD = 2
# So much of a camera's frames is copied at a time.
_COPIED_BYTES = 4 << 20

# By camera, the entries of the frames that a block needs: int64 `(examples, time)`.
Entries = Mapping[str, Integers]


class Priority(enum.Enum):
    """Which things may be given up so that a block is decoded.

    Attributes:
      URGENT: it is handed out next: whatever is not needed for it, and the budget.
      SOON: decoded frames that are needed later.
      SPARE: nothing.
    """

    URGENT = enum.auto()
    SOON = enum.auto()
    SPARE = enum.auto()


def load_decoders(cameras: Sequence[Feature]) -> None:
    """Loads what decodes the videos of cameras, so that the first batch does not wait for it.

    Raises:
      LeRobotGrainError: torchcodec, PyTorch, PyAV or FFmpeg's shared libraries cannot be loaded.
    """
    for load in {load_depth_decoder if camera.is_depth else load_decoder for camera in cameras}:
        load()


class BlockFrames(NamedTuple):
    """The frames that a block needs of one source.

    Attributes:
      source: its number.
      block: the requests of its examples.
      entries: of their frames.
      places: int64 `(examples,)`, ascending: of its examples among all of the block.
    """

    source: int
    block: WindowBlock
    entries: Entries
    places: Integers


class FrameCopy(NamedTuple):
    """Frames of some examples of a source in a block, and where they go.

    Attributes:
      frames: of the block.
      examples: of the source.
      out: by key in examples, their frames, `(n, ...)`.
      places: int64 `(examples,)`, ascending: which of `out` they are.
    """

    frames: BlockFrames
    examples: slice
    out: Mapping[str, npt.NDArray[Any]]
    places: Integers


class _DecoderKey(NamedTuple):
    """Cameras for which this is the same have frames of one shape, made in one way."""

    shape: tuple[int, ...]
    depth: Depth | None
    image_size: tuple[int, int] | None


# A camera of a source: its number, and the key of the camera.
_CameraKey = tuple[int, str]


class FrameReader:
    """Reads the camera frames of blocks of window requests, of all sources.

    Args:
      context: of the stream; its `budget.frames` are kept to here.
      sources: in the order of their numbers.
    """

    def __init__(self, context: ReadContext, sources: Sequence[ReadSource]) -> None:
        self._context = context
        self._budget_bytes = context.budget.frames
        self._files: FutureCache[FileKey, VideoFile] = FutureCache(
            limit=context.budget.video_files, size=lambda file: file.nbytes
        )
        self._stores: dict[tuple[tuple[int, int, int], np.dtype[Any]], FrameStore] = {}
        self._decoders: dict[_DecoderKey, GopDecoder] = {}
        self._cameras = {
            (source.number, feature.key): CameraReader(
                context,
                source,
                feature,
                decoder=self._decoder(feature, source.image_size),
                files=self._files,
            )
            for source in sources
            for feature in source.selection.videos
        }
        self._keys_of_source = [
            [feature.key for feature in source.selection.videos] for source in sources
        ]
        self.peak_bytes = 0

    def _store(self, feature: Feature, image_size: tuple[int, int] | None) -> FrameStore:
        """Returns the memory for frames of a camera, which those of equal shape share."""
        height, width = image_size or feature.shape[:2]
        shape = (height, width, feature.num_channels)
        dtype = np.dtype(feature.frame_dtype)
        if (shape, dtype) not in self._stores:
            capacity = self._context.budget.num_slots(math.prod(shape) * dtype.itemsize)
            self._stores[shape, dtype] = FrameStore(shape, dtype, capacity)
        return self._stores[shape, dtype]

    def _decoder(self, feature: Feature, image_size: tuple[int, int] | None) -> GopDecoder:
        """Returns the decoder of a camera, which those of equal frames share."""
        store = self._store(feature, image_size)
        key = _DecoderKey(store.frames.shape[1:], feature.depth, image_size)
        if key not in self._decoders:
            if feature.depth is None:
                open_video: OpenVideo = functools.partial(RgbDecoder, image_size=image_size)
            else:
                open_video = functools.partial(
                    DepthDecoder, depth=feature.depth, image_size=image_size
                )
            self._decoders[key] = GopDecoder(self._context, open_video, store)
        return self._decoders[key]

    @functools.cached_property
    def have_one_form(self) -> bool:
        """Whether the frames of all sources have one form: cameras of equal names and shapes."""
        forms = {
            tuple((key, id(self._cameras[number, key].store)) for key in keys)
            for number, keys in enumerate(self._keys_of_source)
        }
        return len(forms) == 1

    @property
    def used_bytes(self) -> int:
        return (
            sum(camera.used_bytes for camera in self._cameras.values())
            + sum(store.used_bytes for store in self._stores.values())
            + self._files.total
        )

    @property
    def coded_bytes(self) -> int:
        return sum(camera.coded_bytes for camera in self._cameras.values())

    def example_bytes(self, source: int, block: WindowBlock) -> int:
        """Returns the bytes of the frames of one example of a source."""
        return sum(
            self._cameras[source, key].store.frame_bytes * block.outputs_of(key)[-1].columns.stop
            for key in self._keys_of_source[source]
        )

    def announce(self, source: int, block: WindowBlock) -> Entries:
        """Counts the frames that a block needs of a source next; asks for the sample tables of
        files that are not known yet.
        """
        return {
            key: self._cameras[source, key].announce(block) for key in self._keys_of_source[source]
        }

    def fetch(self, frames: BlockFrames) -> None:
        """Asks for the coded bytes of frames that were not asked for yet, or were dropped since."""
        for key, entries in frames.entries.items():
            self._cameras[frames.source, key].fetch(frames.block, entries)

    def decode(
        self,
        parts: Sequence[BlockFrames],
        number: int,
        coming: Callable[[], Sequence[Sequence[BlockFrames]]],
        *,
        priority: Priority,
    ) -> Decoding | None:
        """Starts decoding what a block needs, whose coded bytes were asked for.

        Args:
          parts: what the block needs of each source.
          number: of the block among those that were not handed out; those before it were started.
          coming: returns of all of these what they need of each source.
          priority: what may be given up for it.

        Returns:
          The tasks that were started; `None` if none was, because the budget is full of frames
          that are needed earlier.
        """
        wanted: dict[_CameraKey, list[DecodeCandidate]] = {}
        for source, block, all_entries, places in parts:
            for name, entries in all_entries.items():
                self._cameras[source, name].expect(block, entries)
                found = self._cameras[source, name].frames_to_decode(block, entries, places)
                if found:
                    wanted[source, name] = found
        wanted_bytes = sum(self._cameras[key].decoder.bytes_of(wanted[key]) for key in wanted)
        room = self._room_for(wanted_bytes)
        if wanted_bytes > room:
            if priority is Priority.SPARE:
                return None
            is_urgent = priority is Priority.URGENT
            chosen = self._choose(wanted, coming(), number, room, is_urgent=is_urgent)
            if chosen is None:
                return None
            wanted = chosen
        return self._start(self._with_waiting(wanted))

    def _with_waiting(
        self, wanted: dict[_CameraKey, list[DecodeCandidate]]
    ) -> dict[_CameraKey, list[DecodeCandidate]]:
        """Returns what is to be decoded, and what else of it stays in memory that is left."""
        if not any(self._cameras[key].staying.has_shared for key in wanted):
            return wanted
        for key in wanted:
            self._cameras[key].let_written_go()
        room = self._budget_bytes - self.used_bytes
        room -= sum(self._cameras[key].decoder.bytes_taken(items) for key, items in wanted.items())
        found = {}
        for key, items in wanted.items():
            camera = self._cameras[key]
            found[key] = camera.staying.with_waiting(items, room=room // camera.store.frame_bytes)
            room -= camera.decoder.bytes_of(found[key]) - camera.decoder.bytes_of(items)
        return found

    def _room_for(self, num_bytes: int) -> int:
        """Returns how many bytes of the budget are left: at least so many where frames that stay
        can go for it.
        """
        missing = num_bytes - (self._budget_bytes - self.used_bytes)
        for camera in self._cameras.values():
            if missing > 0:
                missing -= camera.let_go(missing)
        return self._budget_bytes - self.used_bytes

    def _start(self, wanted: Mapping[_CameraKey, list[DecodeCandidate]]) -> Decoding:
        """Starts decoding something."""
        by_decoder: dict[GopDecoder, list[DecodeCandidate]] = {}
        for key, items in wanted.items():
            by_decoder.setdefault(self._cameras[key].decoder, []).extend(items)
        seconds = sum(decoder.seconds_of(items) for decoder, items in by_decoder.items())
        task_seconds = math.inf
        if self._context.has_many_decoders:
            part_seconds = seconds / self._context.num_decoders / _TASKS_PER_THREAD
            task_seconds = max(_MIN_TASK_SECONDS, part_seconds)
        tasks = [
            task
            for decoder, items in by_decoder.items()
            for task in decoder.tasks(items, task_seconds=task_seconds)
        ]
        # Frames that are needed first are decoded first, of all cameras.
        started = [task.start() for task in sorted(tasks, key=lambda task: task.first_use)]
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return Decoding(seconds, started[::-1])

    def is_done(self, frames: BlockFrames, examples: slice) -> bool:
        """Returns whether `wait` would not wait."""
        return all(
            self._cameras[frames.source, key].is_done(entries[examples])
            for key, entries in frames.entries.items()
        )

    def wait(self, frames: BlockFrames, examples: slice) -> tuple[int, Exception] | None:
        """Waits for the frames of some examples of a source in a block.

        Returns:
          `None`, or the first of the source's examples that could not be read, and why.
        """
        problems = [
            problem
            for key, entries in frames.entries.items()
            if (problem := self._cameras[frames.source, key].wait(entries[examples])) is not None
        ]
        first = min(problems, key=lambda problem: problem[0], default=None)
        return None if first is None else (examples.start + first[0], first[1])

    def copy_frames(self, copies: Sequence[FrameCopy]) -> None:
        """Copies frames that were waited for.

        Raises:
          LeRobotGrainError: the frame cache has lost one of them, and it cannot be decoded; the
            reader must be closed. It is not looked for there again.
        """
        while lost := self._copy_found(copies):
            self._restore(lost)
        for frames, examples, _, _ in copies:
            for key, entries in frames.entries.items():
                self._cameras[frames.source, key].release(entries[examples])

    def _copy_found(self, copies: Sequence[FrameCopy]) -> list[tuple[FrameCopy, str, Integers]]:
        """Copies frames; returns those that the frame cache has lost, by copy and camera."""
        tasks: list[list[Callable[[], Integers]]] = [[]]
        owners: list[tuple[FrameCopy, str]] = []
        room = _COPIED_BYTES
        for each in copies:
            block = each.frames.block
            for key, output in block.outputs_of_all(each.frames.entries):
                array = each.out[output.key]
                entries = each.frames.entries[key][each.examples, output.columns]
                step = max(1, _COPIED_BYTES // max(1, array[:1].nbytes))
                for start in range(0, len(each.places), step):
                    piece = slice(start, start + step)
                    places = each.places[piece]
                    copy = self._cameras[each.frames.source, key].copy_frames
                    if room <= 0:
                        tasks.append([])
                        room = _COPIED_BYTES
                    tasks[-1].append(functools.partial(copy, entries[piece], array, places))
                    owners.append((each, key))
                    room -= len(places) * array[:1].nbytes
        if len(tasks) == 1:
            found = _run_all(tasks[0])
        else:
            running = [self._context.copiers.submit(_run_all, task) for task in tasks]
            found = [lost for done in running for lost in done.result()]
        return [(*owner, lost) for owner, lost in zip(owners, found, strict=True) if len(lost)]

    def _restore(self, lost: Sequence[tuple[FrameCopy, str, Integers]]) -> None:
        """Decodes frames that the frame cache has lost, whatever the budget.

        Raises:
          LeRobotGrainError: one of them cannot be decoded.
        """
        for each, key, entries in lost:
            camera = self._cameras[each.frames.source, key]
            block = each.frames.block[each.examples]
            needed = each.frames.entries[key][each.examples]
            camera.restore(block, needed, entries)
            # Alone: for frames that are needed later there may be no room.
            wanted = [
                item.only(item.is_now)
                for item in camera.frames_to_decode(block, needed, np.arange(len(block)))
            ]
            self._start({(each.frames.source, key): wanted})
            if (problem := camera.wait(needed)) is not None:
                raise problem[1]

    def shapes_of(self, source: int, key: str, block: WindowBlock) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of an example's values of a camera, by key."""
        shape: tuple[int, ...] = self._cameras[source, key].store.frames.shape[1:]
        return {
            output.key: (output.frames.shape[1], *shape) if output.has_time else shape
            for output in block.outputs_of(key)
        }

    def _choose(
        self,
        wanted: Mapping[_CameraKey, list[DecodeCandidate]],
        coming: Sequence[Sequence[BlockFrames]],
        number: int,
        room: int,
        *,
        is_urgent: bool,
    ) -> dict[_CameraKey, list[DecodeCandidate]] | None:
        """Returns the part of `wanted` that there is room for, after dropping decoded frames that
        are needed later than the rest of it.
        """
        # For each camera: the decoded frames that may go, and those that would be decoded for later
        # blocks.
        decoded: dict[_CameraKey, Integers] = {}
        later: dict[_CameraKey, Integers] = {}
        next_uses: list[Integers] = []
        sizes: list[Integers] = []
        uses: dict[_CameraKey, list[tuple[int, Integers]]] = {key: [] for key in self._cameras}
        for block_number, parts in enumerate(coming):
            for source, _, all_entries, _ in parts:
                for name, entries in all_entries.items():
                    uses[source, name].append((block_number, entries))
        for key, camera in self._cameras.items():
            next_use = camera.demand.next_uses(uses[key])
            droppable = camera.droppable()
            items = wanted.get(key, [])
            decoded[key] = droppable[next_use[droppable] > number]
            later[key] = np.concatenate(
                [item.entries[~item.is_now] for item in items] or [np.zeros(0, np.int64)]
            )
            entries = np.concatenate([decoded[key], later[key]])
            next_uses.append(next_use[entries])
            sizes.append(np.full(len(entries), camera.store.frame_bytes))
            room += camera.store.frame_bytes * (
                len(decoded[key]) - sum(int(item.is_now.sum()) for item in items)
            )
        if room < 0 and not is_urgent:
            return None
        stays = frames_that_stay(np.concatenate(next_uses), np.concatenate(sizes), room)
        chosen = {}
        begin = 0
        for key, camera in self._cameras.items():
            middle = begin + len(decoded[key])
            end = middle + len(later[key])
            camera.drop(decoded[key][~stays[begin:middle]])
            is_kept = np.zeros(len(camera.demand.slots), np.bool_)
            is_kept[later[key][stays[middle:end]]] = True
            if key in wanted:
                chosen[key] = [
                    item.only(item.is_now | is_kept[item.entries]) for item in wanted[key]
                ]
            begin = end
        return chosen


def _run_all(calls: Sequence[Callable[[], Integers]]) -> list[Integers]:
    return [call() for call in calls]
