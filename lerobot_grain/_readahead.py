"""Runs the plan ahead of the consumer: fetches, decodes and assembles examples, strictly in order. The only threads of the package.

The order of windows is known long before they are needed, and this makes use of it. Every request passes three horizons, nearest last:

1. *known* (`add`): only integers. Every frame is counted with its uses, so it is known which frames a GOP will have to give, and when.
2. *fetched*: the coded bytes of its GOPs are asked for, together with those of neighbouring GOPs whose frames are known to be needed.
3. *decoded*: GOPs of many episodes and files are decoded together, a few batches ahead; a frame is kept until its last known use.

Rules:
* One consumer's thread plans; the pools only run tasks that know everything they need. So there are no locks, and the order of completion
  does not matter.
* An error belongs to the example that needs what failed: it is kept, and raised when that example is taken.
* When decoded frames outgrow their share of the memory budget, those whose next use is farthest away go, and are read and decoded again
  later.
* No array is handed out twice, and none is written to after it was handed out.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import DatasetFormatError, InvalidRequestError, LeRobotGrainError
from lerobot_grain._plan import GopRead, VideoFile, decode_groups
from lerobot_grain._repository import Repository, sample_table
from lerobot_grain._rows import DataFile, RowGroup, Selection, load_group, open_data_file, rows_of_frames
from lerobot_grain._schema import Feature
from lerobot_grain._small_mp4 import coded_samples, small_mp4
from lerobot_grain._storage import StorageOptions
from lerobot_grain._video import decode_frames, decode_image
from lerobot_grain._windows import WindowRequest

Example = dict[str, Any]
Token = TypeVar("Token")
Key = TypeVar("Key")
Value = TypeVar("Value")

# Examples whose GOPs are grouped into decode tasks at a time: enough pictures for sequential speed, few enough for an early first batch.
_EXAMPLES_PER_STEP = 16
# At most this many examples are decoded or fetched ahead, however large the budget is: more would not hide more latency.
_MAX_DECODED_AHEAD, _MAX_FETCHED_AHEAD = 128, 512
# Wanted frames of one decode task: the speed of sequential decoding is reached at 16 to 64.
_PICTURES_PER_TASK = 32
# Neighbouring GOPs are fetched in one request up to this size.
_MAX_FETCH_BYTES = 4 << 20
# Sample tables and footers that are kept; 26 bytes a picture.
_MAX_TABLE_BYTES = 256 << 20
_MAX_OPEN_DATA_FILES = 256


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

    memory_budget_bytes: int = 1 << 30
    num_decode_threads: int | None = None
    storage: StorageOptions = field(default_factory=StorageOptions)

    def __post_init__(self) -> None:
        for name in ("memory_budget_bytes", "num_decode_threads"):
            value = getattr(self, name)
            if value is None and name == "num_decode_threads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidRequestError(f"ReadOptions({name}={value!r}): expected an int >= 1")


class _Kept(Generic[Key, Value]):
    """Futures of what is costly to make, the least recently used ones dropped above a limit."""

    def __init__(self, *, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size = limit, size
        self._futures: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._unsized: list[Key] = []
        self._total = 0

    def get(self, key: Key, make: Callable[[], Future[Value]]) -> Future[Value]:
        found = self._futures.get(key)
        if found is not None:
            self._futures.move_to_end(key)
            return found
        self._drop()
        found = self._futures[key] = make()
        self._unsized.append(key)
        return found

    def _drop(self) -> None:
        for key in [key for key in self._unsized if self._futures[key].done()]:
            future = self._futures[key]
            self._sizes[key] = self._size(future.result()) if future.exception() is None else 0
            self._total += self._sizes[key]
            self._unsized.remove(key)
        while self._total > self._limit and self._sizes:
            oldest = next(key for key in self._futures if key in self._sizes)
            self._total -= self._sizes.pop(oldest)
            del self._futures[oldest]


@dataclass(eq=False, slots=True)
class _Frame:
    """A frame of one camera that is known to be needed: by the examples numbered in `uses`, ascending."""

    uses: list[int] = field(default_factory=list)
    read: GopRead | None = None  # its GOP, from fetching until decoding
    task: Future[list[Any]] | None = None  # decodes it, and is to give it at `slot`
    slot: int = 0


@dataclass(eq=False, slots=True)
class _Coded:
    """Coded bytes of a GOP: the element `slot` of what `payloads` will give."""

    payloads: Future[list[bytes]]
    slot: int


@dataclass(eq=False, slots=True)
class _Pending(Generic[Token]):
    """An example that was asked for and not taken yet."""

    number: int
    request: WindowRequest
    token: Token
    frames: dict[str, list[_Frame]]
    groups: list[Future[RowGroup]] = field(default_factory=list)
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
        self._repository, self._selection, self._image_size = repository, selection, image_size
        self._known_examples = known_examples
        self._reads_rows = bool(selection.columns or selection.with_task)
        self._budget_bytes = options.memory_budget_bytes
        self._pending: deque[_Pending[Token]] = deque()
        self._num_fetched = self._num_decoded = self._next_number = 0
        # (camera, episode) -> frame -> what is known of it.
        self._frames: dict[tuple[str, int], dict[int, _Frame]] = {}
        self._coded: dict[GopRead, _Coded] = {}
        self._coded_bytes = self._decoded_bytes = 0
        self._videos: _Kept[tuple[str, int], VideoFile] = _Kept(limit=_MAX_TABLE_BYTES, size=lambda file: file.nbytes)
        self._data_files: _Kept[int, DataFile] = _Kept(limit=_MAX_OPEN_DATA_FILES, size=lambda _: 1)
        self._groups: _Kept[tuple[int, int], RowGroup] = _Kept(limit=self._budget_bytes // 8, size=lambda rows: rows.nbytes)
        self._fetchers = ThreadPoolExecutor(options.storage.num_connections, "lerobot_grain fetch")
        threads = options.num_decode_threads or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )
        self._decoders = ThreadPoolExecutor(threads, "lerobot_grain decode")

    @property
    def wants_more(self) -> bool:
        """Whether another request should be added before the next `take`."""
        return len(self._pending) < self._known_examples

    @property
    def is_empty(self) -> bool:
        return not self._pending

    def add(self, request: WindowRequest, token: Token) -> None:
        """Adds the request of the next example; `token` comes back with it."""
        frames = {}
        number = self._next_number
        # What tells where the bytes lie is asked for as soon as a file is known to be needed, long before its first frame is.
        if self._reads_rows:
            self._data_file(int(self._repository.episodes.data.file_of_episode[request.episode]))
        for feature in self._selection.videos:
            self._video_file(feature.key, int(self._repository.episodes.videos[feature.key].files.file_of_episode[request.episode]))
            known = self._frames.setdefault((feature.key, request.episode), {})
            window = request.frames.get(feature.key)
            needed = []
            for index in [request.frame] if window is None else window.tolist():
                frame = known.get(index)
                if frame is None:
                    frame = known[index] = _Frame()
                if not frame.uses or frame.uses[-1] != number:
                    frame.uses.append(number)
                needed.append(frame)
            frames[feature.key] = needed
        self._next_number += 1
        self._pending.append(_Pending(number, request, token, frames))

    def take(self) -> tuple[Example, Token]:
        """Returns the next example, and its token.

        Raises:
          LeRobotGrainError: something that this example needs could not be read; the reader must be closed.
        """
        self._run_ahead()
        pending = self._pending[0]
        if pending.error is not None:
            raise pending.error
        example = self._assemble(pending)
        self._pending.popleft()
        self._num_fetched -= 1
        self._num_decoded -= 1
        return example, pending.token

    def close(self) -> None:
        """Stops all threads. Tasks that have not begun are dropped; those that have are waited for."""
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=True)

    # Planning

    def _run_ahead(self) -> None:
        """Starts what can be started: fetches and decodes, as far ahead as the budget allows, and at least what the next example needs."""
        decoded_ahead = _MAX_DECODED_AHEAD if self._decoded_bytes < self._budget_bytes // 2 else 1
        while self._num_decoded < min(decoded_ahead, len(self._pending)):
            # Whole steps, so that there is something to group.
            step = min(self._examples_per_step(), len(self._pending) - self._num_decoded)
            while self._num_fetched < self._num_decoded + step:
                self._fetch_next()
            self._decode_step(step)
            decoded_ahead = _MAX_DECODED_AHEAD if self._decoded_bytes < self._budget_bytes // 2 else 1
        while self._num_fetched < min(_MAX_FETCHED_AHEAD, len(self._pending)) and self._coded_bytes < self._budget_bytes // 4:
            self._fetch_next()

    def _examples_per_step(self) -> int:
        frames = self._pending[0].frames
        example_bytes = sum(len(window) * self._frame_bytes(key) for key, window in frames.items())
        return max(1, min(_EXAMPLES_PER_STEP, self._budget_bytes // 4 // max(1, example_bytes)))

    def _fetch_next(self) -> None:
        pending = self._pending[self._num_fetched]
        self._num_fetched += 1
        try:
            self._fetch_rows(pending)
            for key in pending.frames:
                self._fetch_video(pending, key)
        except LeRobotGrainError as error:
            pending.error = error

    def _fetch_rows(self, pending: _Pending[Token]) -> None:
        if not self._reads_rows:
            return
        request = pending.request
        file = self._data_file(int(self._repository.episodes.data.file_of_episode[request.episode])).result()
        distinct = {id(frames): frames for frames in request.frames.values()}.values()
        wanted = np.concatenate([[request.frame], *distinct])
        low, high = rows_of_frames(self._repository, request.episode, np.array([wanted.min(), wanted.max()])).tolist()
        first, last = file.table.group_of_row(low), file.table.group_of_row(high)
        numbers = list(range(first, last + 1))
        if len(numbers) > 2:
            rows = rows_of_frames(self._repository, request.episode, np.unique(wanted))
            numbers = sorted({file.table.group_of_row(row) for row in rows.tolist()})
        pending.groups = [self._row_group(file, number) for number in numbers]

    def _fetch_video(self, pending: _Pending[Token], key: str) -> None:
        """Asks for the coded bytes of the frames of a window that were not asked for yet, or were dropped since."""
        missing = [
            index
            for index, frame in zip(_window(pending, key), pending.frames[key], strict=True)
            if frame.read is None and frame.task is None
        ]
        if not missing:
            return
        episode = pending.request.episode
        file = self._video_file(key, int(self._repository.episodes.videos[key].files.file_of_episode[episode])).result()
        first = file.first_frame(episode)
        reads: list[GopRead] = []
        for gop in sorted({file.gop_of(first + index) for index in missing}):
            self._read_neighbours(file, episode, gop, first, reads)
        payloads = self._fetchers.submit(self._repository.storage.read_ranges, file.path, [read.byte_range for read in reads])
        for slot, read in enumerate(reads):
            self._coded[read] = _Coded(payloads, slot)
            self._coded_bytes += read.byte_range.length

    def _read_neighbours(self, file: VideoFile, episode: int, gop: int, first: int, reads: list[GopRead]) -> None:
        """Appends reads of a GOP and of those around it whose frames are known to be needed, up to a size."""
        known = self._frames[file.camera, episode]
        size = 0
        for step in (1, -1):
            number = gop if step == 1 else gop - 1
            while 0 <= number < len(file.table.keys) and size < _MAX_FETCH_BYTES:
                waiting = [known[frame - first] for frame in file.frames_of(number) if frame - first in known]
                waiting = [frame for frame in waiting if frame.read is None and frame.task is None]
                if not waiting:
                    break
                read = GopRead(file, episode, number, file.byte_range(number))
                size += read.byte_range.length
                reads.append(read)
                for frame in waiting:
                    frame.read = read
                number += step

    def _decode_step(self, step: int) -> None:
        """Starts decoding what the next `step` examples need."""
        horizon = self._pending[self._num_decoded + step - 1].number
        wanted: dict[GopRead, list[int]] = {}
        for position in range(self._num_decoded, self._num_decoded + step):
            pending = self._pending[position]
            if pending.error is not None:
                continue
            for key, frames in pending.frames.items():
                self._fetch_video(pending, key)
                for frame in frames:
                    if frame.read is not None and frame.read not in wanted:
                        wanted[frame.read] = self._wanted_frames(frame.read, horizon)
        self._num_decoded += step
        for group in decode_groups(wanted.items(), max_pictures=_PICTURES_PER_TASK):
            coded = [self._coded.pop(read) for read, _ in group]
            self._coded_bytes -= sum(read.byte_range.length for read, _ in group)
            task = self._decoders.submit(_decode_group, group, coded, self._image_size)
            slot = 0
            for read, frames in group:
                first = read.file.first_frame(read.episode)
                known = self._frames[read.file.camera, read.episode]
                for index in read.file.frames_of(read.gop):
                    frame = known.get(index - first)
                    if frame is not None and frame.read is read:
                        frame.read = None
                for index in frames:
                    frame = known[index - first]
                    frame.task, frame.slot = task, slot
                    slot += 1
                self._decoded_bytes += len(frames) * self._frame_bytes(read.file.camera)
        if self._decoded_bytes > self._budget_bytes:
            self._drop_farthest(horizon)

    def _wanted_frames(self, read: GopRead, horizon: int) -> list[int]:
        """Returns the frames of the file that decoding a GOP is to give: all that are known to be needed, but those of this step if memory is short."""
        first = read.file.first_frame(read.episode)
        known = self._frames[read.file.camera, read.episode]
        frames = [
            index for index in read.file.frames_of(read.gop) if (frame := known.get(index - first)) is not None and frame.read is read
        ]
        if self._decoded_bytes + len(frames) * self._frame_bytes(read.file.camera) > self._budget_bytes:
            frames = [index for index in frames if known[index - first].uses[0] <= horizon]
        return frames

    def _drop_farthest(self, horizon: int) -> None:
        """Forgets decoded frames that no started example needs, those first whose next use is farthest away, until the budget holds."""
        decoded = [
            (frame.uses[0], camera, frame)
            for (camera, _), frames in self._frames.items()
            for frame in frames.values()
            if frame.task is not None and frame.uses[0] > horizon and frame.task.done()
        ]
        for _, camera, frame in sorted(decoded, key=lambda item: -item[0]):
            if self._decoded_bytes <= self._budget_bytes:
                break
            assert frame.task is not None
            frame.task.result()[frame.slot] = None
            frame.task = None
            self._decoded_bytes -= self._frame_bytes(camera)

    def _frame_bytes(self, camera: str) -> int:
        height, width = self._image_size or self._repository.features[camera].shape[:2]
        return height * width * 3

    # Files that are kept open

    def _video_file(self, camera: str, number: int) -> Future[VideoFile]:
        return self._videos.get((camera, number), lambda: self._fetchers.submit(_open_video, self._repository, camera, number))

    def _data_file(self, number: int) -> Future[DataFile]:
        return self._data_files.get(number, lambda: self._fetchers.submit(open_data_file, self._repository, number))

    def _row_group(self, file: DataFile, group: int) -> Future[RowGroup]:
        return self._groups.get(
            (file.number, group), lambda: self._fetchers.submit(load_group, self._repository, file, group, self._selection)
        )

    # Handing out

    def _assemble(self, pending: _Pending[Token]) -> Example:
        request = pending.request
        example: Example = {}
        if pending.groups:
            self._put_rows(example, pending)
        for feature in self._selection.videos:
            pixels = [self._pixels(feature, pending, frame) for frame in pending.frames[feature.key]]
            example[feature.key] = np.stack(pixels) if feature.key in request.frames else pixels[0]
            self._release(feature, pending)
        for key, mask in request.is_pad.items():
            example[f"{key}_is_pad"] = mask.copy()
        return example

    def _put_rows(self, example: Example, pending: _Pending[Token]) -> None:
        request = pending.request
        groups = [group.result() for group in pending.groups]
        anchor = int(rows_of_frames(self._repository, request.episode, np.array([request.frame]))[0])
        where = f"{self._repository.description}, episode {request.episode}"
        for feature in self._selection.columns:
            window = request.frames.get(feature.key)
            rows = np.array([anchor]) if window is None else rows_of_frames(self._repository, request.episode, window)
            values = _values_at(groups, feature, rows)
            if feature.is_camera:
                values = np.stack([_decode_embedded(feature, value, self._image_size, where) for value in values])
            example[feature.key] = values if window is not None else values[0]
        if self._selection.with_task:
            holder = next(group for group in groups if 0 <= anchor - group.first_row < len(group.tasks))
            example["task"] = holder.tasks[anchor - holder.first_row]

    def _pixels(self, feature: Feature, pending: _Pending[Token], frame: _Frame) -> npt.NDArray[np.uint8]:
        assert frame.task is not None
        pixels = frame.task.result()[frame.slot]
        if isinstance(pixels, Exception):
            raise pixels
        expected = (*(self._image_size or feature.shape[:2]), 3)
        if pixels.shape != expected:
            raise DatasetFormatError(
                f"{self._repository.description}, episode {pending.request.episode}, camera {feature.key}: a frame has shape {pixels.shape}; "
                f"info.json declares {expected}"
            )
        # Handed out itself at its last use only: the consumer may write to what it is given.
        last = len(frame.uses) == 1 and feature.key not in pending.request.frames
        found: npt.NDArray[np.uint8] = pixels if last else pixels.copy()
        return found

    def _release(self, feature: Feature, pending: _Pending[Token]) -> None:
        episode = pending.request.episode
        known = self._frames[feature.key, episode]
        for index, frame in zip(_window(pending, feature.key), pending.frames[feature.key], strict=True):
            if not frame.uses or frame.uses[0] != pending.number:
                continue  # a second time in the same window
            frame.uses.pop(0)
            if not frame.uses:
                assert frame.task is not None
                self._decoded_bytes -= self._frame_bytes(feature.key)
                frame.task.result()[frame.slot] = None
                del known[index]
        if not known:
            del self._frames[feature.key, episode]


def _window(pending: _Pending[Any], key: str) -> list[int]:
    """Returns the frames of the episode that a camera's window consists of."""
    window = pending.request.frames.get(key)
    return [pending.request.frame] if window is None else window.tolist()


def _open_video(repository: Repository, camera: str, number: int) -> VideoFile:
    path = repository.episodes.videos[camera].files.paths[number]
    return VideoFile(
        sample_table(repository.storage, path),
        path=path,
        camera=camera,
        number=number,
        episodes=repository.episodes,
        fps=repository.fps,
        where=f"{repository.description}, {path}",
    )


def _decode_group(group: list[tuple[GopRead, list[int]]], coded: list[_Coded], image_size: tuple[int, int] | None) -> list[Any]:
    """Returns the wanted frames of all GOPs of a group, one after the other; an exception in the place of each that cannot be had."""
    try:
        return _decode_together(group, coded, image_size)
    except Exception as error:
        if len(group) == 1:
            return [error] * len(group[0][1])
    # One GOP of the group is bad: alone, each gives its frames or its own error.
    return [frame for item, payload in zip(group, coded, strict=True) for frame in _decode_group([item], [payload], image_size)]


def _decode_together(group: list[tuple[GopRead, list[int]]], coded: list[_Coded], image_size: tuple[int, int] | None) -> list[Any]:
    units, wanted, num_pictures, places = [], [], 0, []
    for (read, frames), payload in zip(group, coded, strict=True):
        where = f"{read.file.where}: episode {read.episode}, camera {read.file.camera}, GOP {read.gop}"
        unit = read.file.unit(read.gop, frames)
        start = unit.byte_range.start - read.byte_range.start
        data = payload.payloads.result()[payload.slot][start : start + unit.byte_range.length]
        units.append((coded_samples(read.file.table, unit, data, where=where), unit.ranks))
        wanted += (unit.wanted + num_pictures).tolist()
        num_pictures += len(unit.samples)
        places.append(where)
    table = group[0][0].file.table
    where = places[0] if len(group) == 1 else f"{places[0]} and {len(group) - 1} more"
    return decode_frames(small_mp4(table, units), wanted, num_frames=num_pictures, image_size=image_size, where=where)


def _values_at(groups: list[RowGroup], feature: Feature, rows: npt.NDArray[np.int64]) -> Any:
    """Returns the values of rows of a data file: an array `(rows, *shape)`, or a list of str or bytes."""
    if len(groups) == 1:
        column = groups[0].columns[feature.key]
        places = rows - groups[0].first_row
        return column[places] if isinstance(column, np.ndarray) else [column[place] for place in places.tolist()]
    values = []
    for row in rows.tolist():
        holder = next(group for group in reversed(groups) if group.first_row <= row)
        values.append(holder.columns[feature.key][row - holder.first_row])
    return np.stack(values) if isinstance(groups[0].columns[feature.key], np.ndarray) else values


def _decode_embedded(feature: Feature, encoded: bytes, image_size: tuple[int, int] | None, where: str) -> npt.NDArray[np.uint8]:
    pixels = decode_image(encoded, image_size=image_size, where=f"{where}, camera {feature.key}")
    expected = (*(image_size or feature.shape[:2]), 3)
    if pixels.shape != expected:
        raise DatasetFormatError(f"{where}, camera {feature.key}: a picture has shape {pixels.shape}; info.json declares {expected}")
    return pixels
