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
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import DatasetFormatError, InvalidRequestError, LeRobotGrainError
from lerobot_grain._kept import Kept
from lerobot_grain._plan import GopRead, VideoFile, decode_groups
from lerobot_grain._repository import Repository, sample_table
from lerobot_grain._rows import DataFile, RowGroup, Selection, columns_to_read, load_group, open_data_file
from lerobot_grain._schema import Feature
from lerobot_grain._storage import StorageOptions
from lerobot_grain._video import Coded, decode_group, decode_image
from lerobot_grain._windows import WindowRequest

Example = dict[str, Any]
Token = TypeVar("Token")
Value = TypeVar("Value")

# Examples whose GOPs are grouped into decode tasks at a time: enough pictures for sequential speed, few enough for an early first batch.
_EXAMPLES_PER_STEP = 32
# At most this many examples are decoded or fetched ahead, however large the budget is: more would not hide more latency.
_MAX_DECODED_AHEAD, _MAX_FETCHED_AHEAD = 128, 512
# Wanted frames of one decode task: the speed of sequential decoding is reached at 16 to 64.
_PICTURES_PER_TASK = 64
# Neighbouring GOPs are fetched in one request up to this size.
_MAX_FETCH_BYTES = 4 << 20
# Sample tables and footers that are kept; 26 bytes a picture.
_MAX_TABLE_BYTES = 256 << 20
_MAX_OPEN_DATA_FILES = 256
# GOPs that are remembered to count those that are decoded again; only a figure of the statistics.
_MAX_LATELY_DECODED = 100_000


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


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """What an iterator has read so far, in this process.

    Attributes:
      examples: handed out.
      seconds: since the first one was asked for.
      bytes_fetched, requests: of the data set's storage, since then; other iterators on the same `Repository` are counted too.
      bytes_needed: coded bytes of the GOPs and column chunks of the row groups that were read, each once for every time it was needed anew.
      gops_decoded: GOPs that went through a decoder.
      gops_decoded_again: those of them that had been decoded not long before, and whose frames had gone.
      pictures_decoded: coded pictures that went through a decoder.
      frames_handed_out: camera frames in examples.
      waited_for_fetch_seconds, waited_for_decode_seconds: for which the consumer was held up.
      budget_used_bytes, budget_peak_bytes, budget_bytes: coded bytes and decoded frames that are held, at most were held, and may be held.
    """

    examples: int = 0
    seconds: float = 0.0
    bytes_fetched: int = 0
    requests: int = 0
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


class _DecodeTask(NamedTuple):
    """A decode that was started, and the coded bytes that it waits for."""

    frames: Future[list[Any]]
    coded: list[Coded]


@dataclass(eq=False, slots=True)
class _Frame:
    """A frame of one camera that is known to be needed: by the examples numbered in `uses`, ascending."""

    uses: list[int] = field(default_factory=list)
    read: GopRead | None = None  # its GOP, from fetching until decoding
    task: _DecodeTask | None = None  # decodes it, and is to give it at `slot`
    slot: int = 0


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
        self._coded: dict[GopRead, Coded] = {}
        self._coded_bytes = self._decoded_bytes = 0
        self._videos: Kept[tuple[str, int], VideoFile] = Kept(limit=_MAX_TABLE_BYTES, size=lambda file: file.nbytes)
        self._data_files: Kept[int, DataFile] = Kept(limit=_MAX_OPEN_DATA_FILES, size=lambda _: 1)
        self._groups: Kept[tuple[int, int], RowGroup] = Kept(limit=self._budget_bytes // 8, size=lambda rows: rows.nbytes)
        self._started_seconds = time.perf_counter()
        self._storage_before = repository.storage.statistics
        self._counts: Counter[str] = Counter()
        self._waited_seconds = {"fetch": 0.0, "decode": 0.0}
        self._budget_peak_bytes = 0
        self._lately_decoded: OrderedDict[tuple[str, int, int], None] = OrderedDict()
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

    @cached_property
    def _example_bytes(self) -> int:
        """Bytes of the frames of one example."""
        return sum(len(window) * self._frame_bytes(key) for key, window in self._pending[0].frames.items())

    @cached_property
    def _examples_per_step(self) -> int:
        """Examples whose GOPs are grouped into decode tasks: whole steps, so that there is something to group."""
        return max(1, min(_EXAMPLES_PER_STEP, self._budget_bytes // 4 // max(1, self._example_bytes)))

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
        self._counts["examples"] += 1
        return example, pending.token

    def statistics(self) -> ReadStatistics:
        """Returns what was read so far."""
        now = self._repository.storage.statistics
        return ReadStatistics(
            seconds=time.perf_counter() - self._started_seconds,
            bytes_fetched=now.bytes_received - self._storage_before.bytes_received,
            requests=now.requests - self._storage_before.requests,
            waited_for_fetch_seconds=self._waited_seconds["fetch"],
            waited_for_decode_seconds=self._waited_seconds["decode"],
            budget_used_bytes=self._coded_bytes + self._decoded_bytes,
            budget_peak_bytes=self._budget_peak_bytes,
            budget_bytes=self._budget_bytes,
            **self._counts,
        )

    def close(self) -> None:
        """Stops all threads. Tasks that have not begun are dropped; those that have are waited for."""
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=True)

    # Planning

    def _run_ahead(self) -> None:
        """Starts what can be started: fetches and decodes, as far ahead as the budget allows, and at least what the next example needs."""
        while self._num_decoded < min(_MAX_DECODED_AHEAD, len(self._pending)):
            step = min(self._examples_per_step, len(self._pending) - self._num_decoded)
            if self._num_decoded > 0 and self._decoded_bytes + step * self._example_bytes > self._budget_bytes:
                break
            while self._num_fetched < self._num_decoded + step:
                self._fetch_next()
            self._decode_step(step)
        while self._num_fetched < min(_MAX_FETCHED_AHEAD, len(self._pending)) and self._coded_bytes < self._budget_bytes // 8:
            self._fetch_next()

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
        file = self._wait(self._data_file(int(self._repository.episodes.data.file_of_episode[request.episode])))
        offset = self._repository.episodes.data_offsets.item(request.episode)
        low, high = request.span
        first = file.table.group_of_row(offset + low)
        if offset + high < file.table.group_starts[first + 1]:
            pending.groups = [self._row_group(file, first)]
            return
        windows = [np.array([request.frame]), *request.frames.values()]
        numbers = {file.table.group_of_row(offset + frame) for frame in np.unique(np.concatenate(windows)).tolist()}
        pending.groups = [self._row_group(file, number) for number in sorted(numbers)]

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
        file = self._wait(self._video_file(key, int(self._repository.episodes.videos[key].files.file_of_episode[episode])))
        first = file.first_frame(episode)
        reads: list[GopRead] = []
        for gop in sorted({file.gop_of(first + index) for index in missing}):
            self._read_neighbours(file, episode, gop, first, reads)
        payloads = self._fetchers.submit(self._repository.storage.read_ranges, file.path, [read.byte_range for read in reads])
        for slot, read in enumerate(reads):
            self._coded[read] = Coded(payloads, slot)
            self._coded_bytes += read.byte_range.length
            self._counts["bytes_needed"] += read.byte_range.length

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
            for key, needed in pending.frames.items():
                self._fetch_video(pending, key)
                for frame in needed:
                    if frame.read is not None and frame.read not in wanted:
                        wanted[frame.read] = self._wanted_frames(frame.read, horizon)
        self._num_decoded += step
        for group in decode_groups(wanted.items(), max_pictures=_PICTURES_PER_TASK):
            coded = [self._coded.pop(read) for read, _ in group]
            self._coded_bytes -= sum(read.byte_range.length for read, _ in group)
            task = _DecodeTask(self._decoders.submit(decode_group, group, coded, self._image_size), coded)
            slot = 0
            for read, frames in group:
                first = read.file.first_frame(read.episode)
                known = self._frames[read.file.camera, read.episode]
                for index in read.file.frames_of(read.gop):
                    if (known_frame := known.get(index - first)) is not None and known_frame.read is read:
                        known_frame.read = None
                for index in frames:
                    wanted_frame = known[index - first]
                    wanted_frame.task, wanted_frame.slot = task, slot
                    slot += 1
                self._decoded_bytes += len(frames) * self._frame_bytes(read.file.camera)
                self._count_decoded(read, frames)
        self._budget_peak_bytes = max(self._budget_peak_bytes, self._coded_bytes + self._decoded_bytes)
        if self._decoded_bytes > self._budget_bytes:
            self._drop_farthest(horizon)

    def _count_decoded(self, read: GopRead, frames: list[int]) -> None:
        self._counts["gops_decoded"] += 1
        self._counts["pictures_decoded"] += read.file.num_pictures(read.gop, frames)
        key = (read.file.camera, read.file.number, read.gop)
        self._counts["gops_decoded_again"] += key in self._lately_decoded
        self._lately_decoded[key] = None
        self._lately_decoded.move_to_end(key)
        if len(self._lately_decoded) > _MAX_LATELY_DECODED:
            self._lately_decoded.popitem(last=False)

    def _wanted_frames(self, read: GopRead, horizon: int) -> list[int]:
        """Returns the frames of the file that a GOP is to give: all that are known to be needed, those of this step if memory is short."""
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
            if frame.task is not None and frame.uses[0] > horizon and frame.task.frames.done()
        ]
        for _, camera, frame in sorted(decoded, key=lambda item: -item[0]):
            if self._decoded_bytes <= self._budget_bytes:
                break
            assert frame.task is not None
            frame.task.frames.result()[frame.slot] = None
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
        def load() -> Future[RowGroup]:
            columns = columns_to_read(file, self._selection)
            self._counts["bytes_needed"] += sum(chunk.length for chunk in file.table.ranges(group, columns))
            return self._fetchers.submit(load_group, self._repository, file, group, self._selection)

        return self._groups.get((file.number, group), load)

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
            self._counts["frames_handed_out"] += len(pixels)
        for key, mask in request.is_pad.items():
            example[f"{key}_is_pad"] = mask.copy()
        return example

    def _put_rows(self, example: Example, pending: _Pending[Token]) -> None:
        request = pending.request
        groups = [self._wait(group) for group in pending.groups]
        offset = self._repository.episodes.data_offsets.item(request.episode)
        anchor = offset + request.frame
        # The group that holds the anchor; a window may reach into others.
        holder = groups[0] if len(groups) == 1 else next(group for group in reversed(groups) if group.first_row <= anchor)
        place = anchor - holder.first_row
        for feature in self._selection.columns:
            key = feature.key
            window = request.frames.get(key)
            if window is None:
                value = holder.columns[key][place]
                if feature.is_camera:
                    value = self._picture(feature, value, request)
                # A vector is a view of the row group, which must not be handed out; a scalar is not.
                example[key] = value.copy() if isinstance(value, np.ndarray) else value
                continue
            values = _values_at(groups, feature, window + offset)
            if feature.is_camera:
                values = np.stack([self._picture(feature, value, request) for value in values])
            example[key] = values
        if self._selection.with_task:
            example["task"] = holder.tasks[place]

    def _picture(self, feature: Feature, encoded: Any, request: WindowRequest) -> npt.NDArray[np.uint8]:
        where = f"{self._repository.description}, episode {request.episode}, camera {feature.key}"
        pixels = decode_image(encoded, image_size=self._image_size, where=where)
        self._check_shape(feature, pixels, request.episode)
        return pixels

    def _check_shape(self, feature: Feature, pixels: npt.NDArray[np.uint8], episode: int) -> None:
        expected = (*(self._image_size or feature.shape[:2]), 3)
        if pixels.shape != expected:
            raise DatasetFormatError(
                f"{self._repository.description}, episode {episode}, camera {feature.key}: a frame has shape {pixels.shape}; "
                f"info.json declares {expected}"
            )

    def _pixels(self, feature: Feature, pending: _Pending[Token], frame: _Frame) -> npt.NDArray[np.uint8]:
        assert frame.task is not None
        pixels = self._decoded(frame.task)[frame.slot]
        if isinstance(pixels, Exception):
            raise pixels
        self._check_shape(feature, pixels, pending.request.episode)
        # Handed out itself at its last use only: the consumer may write to what it is given.
        last = len(frame.uses) == 1 and feature.key not in pending.request.frames
        found: npt.NDArray[np.uint8] = pixels if last else pixels.copy()
        return found

    def _decoded(self, task: _DecodeTask) -> list[Any]:
        if not task.frames.done():
            fetched = all(coded.payloads.done() for coded in task.coded)
            self._wait(task.frames, "decode" if fetched else "fetch")
        return task.frames.result()

    def _wait(self, future: Future[Value], reason: str = "fetch") -> Value:
        """Returns the result of a future, and counts the time for which the consumer is held up."""
        if future.done():
            return future.result()
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self._waited_seconds[reason] += time.perf_counter() - started

    def _release(self, feature: Feature, pending: _Pending[Token]) -> None:
        episode = pending.request.episode
        known = self._frames[feature.key, episode]
        for index, found in zip(_window(pending, feature.key), pending.frames[feature.key], strict=True):
            frame = found
            if not frame.uses or frame.uses[0] != pending.number:
                continue  # a second time in the same window
            frame.uses.pop(0)
            if not frame.uses:
                assert frame.task is not None
                self._decoded_bytes -= self._frame_bytes(feature.key)
                frame.task.frames.result()[frame.slot] = None
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
