"""Fetches and decodes camera frames ahead, and keeps each until its last known use.

Idea: every frame that a coming example needs is known with its uses. A GOP is fetched together with its neighbours in the file that are
known to be needed, decoded at its first use for all of its frames that are known to be needed, and each frame goes after its last use.

* Short GOPs, of any episodes and files, are decoded in groups: one small MP4 for many.
* A long GOP would fill the budget with frames that are needed much later. It is decoded in pieces: its decoder stays open and goes on
  where it stopped.

Rules:
* One thread, the consumer's, plans; pools run tasks that know everything they need. Only a long GOP's decoder is shared by tasks, under
  its own lock.
* When decoded frames outgrow the budget, those whose next use is farthest away are dropped, and read and decoded again later.
* No array is handed out twice, and none is written to after it was handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import DatasetFormatError
from lerobot_grain._kept import Kept
from lerobot_grain._plan import GopRead, VideoFile, decode_groups
from lerobot_grain._repository import Repository, sample_table
from lerobot_grain._rows import Selection
from lerobot_grain._schema import Feature
from lerobot_grain._statistics import Meter
from lerobot_grain._video import Coded, OpenGop, decode_group
from lerobot_grain._windows import WindowRequest

# Wanted frames of one decode task: the speed of sequential decoding is reached at 16 to 64.
_PICTURES_PER_TASK = 64
# Neighbouring GOPs are fetched in one request up to this size.
_MAX_FETCH_BYTES = 4 << 20
# Sample tables that are kept; 26 bytes a picture.
_MAX_TABLE_BYTES = 256 << 20
# A GOP is long if its frames are more than this part of the budget: 64 of them, one in every part of the order, would fill half of it.
_LONG_GOP_PART = 128
# What an open decoder holds, in pictures of 12 bits a pixel: 5 MB at 640x480 (measured with 64 of them).
_PICTURES_OF_DECODER = 12
# GOPs that are remembered to count those that are decoded again; only a figure of the statistics.
_MAX_LATELY_DECODED = 100_000


class _DecodeTask(NamedTuple):
    """A decode that was started, and the coded bytes that it waits for."""

    frames: Future[list[Any]]
    coded: list[Coded]


@dataclass(eq=False, slots=True)
class _Read:
    """A GOP whose coded bytes were asked for, until all frames that wait for it are being decoded."""

    gop: GopRead
    coded: Coded
    waiting: int = 0
    is_long: bool = False
    decoder: OpenGop | None = None
    next_frame: int = 0  # of the file: where an open decoder goes on


@dataclass(eq=False, slots=True)
class KnownFrame:
    """A frame of one camera that is known to be needed: by the examples numbered in `uses`, ascending."""

    uses: list[int] = field(default_factory=list)
    read: _Read | None = None  # its GOP, from fetching until decoding
    task: _DecodeTask | None = None  # decodes it, and is to give it at `slot`
    slot: int = 0


class NumberedRequest(NamedTuple):
    """A window request with its number in the stream and, by camera, the frames of its window."""

    number: int
    request: WindowRequest
    frames: dict[str, list[KnownFrame]]


class FrameReader:
    """Reads the camera frames of window requests.

    Args:
      repository: the data set.
      selection: which cameras.
      image_size: (height, width) that frames are resized to, or `None`.
      budget_bytes: for coded bytes, decoded frames and open decoders.
      fetchers, decoders: where reading and decoding run.
      meter: counts.
    """

    def __init__(
        self,
        repository: Repository,
        selection: Selection,
        *,
        image_size: tuple[int, int] | None,
        budget_bytes: int,
        fetchers: Executor,
        decoders: Executor,
        meter: Meter,
    ) -> None:
        self._repository, self._cameras, self._image_size = repository, selection.videos, image_size
        self._budget_bytes, self._fetchers, self._decoders, self._meter = budget_bytes, fetchers, decoders, meter
        # (camera, episode) -> frame -> what is known of it.
        self._known: dict[tuple[str, int], dict[int, KnownFrame]] = {}
        # (camera, file, GOP, episode) -> long GOPs that frames wait for, the least recently used first.
        self._long: OrderedDict[tuple[str, int, int, int], _Read] = OrderedDict()
        self._files: Kept[tuple[str, int], VideoFile] = Kept(limit=_MAX_TABLE_BYTES, size=lambda file: file.nbytes)
        self._lately_decoded: OrderedDict[tuple[str, int, int], None] = OrderedDict()
        self.coded_bytes = self.decoded_bytes = self._decoder_bytes = self.peak_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self.coded_bytes + self.decoded_bytes + self._decoder_bytes

    def example_bytes(self, frames: dict[str, list[KnownFrame]]) -> int:
        """Returns the bytes of the frames of one example."""
        return sum(len(window) * self._frame_bytes(key) for key, window in frames.items())

    def know(self, number: int, request: WindowRequest) -> NumberedRequest:
        """Counts the frames of the request with the next number; asks for the sample tables of files that are not known yet."""
        frames = {}
        for feature in self._cameras:
            self._file(feature.key, request.episode)
            known = self._known.setdefault((feature.key, request.episode), {})
            needed = []
            for index in _window(request, feature.key):
                frame = known.get(index)
                if frame is None:
                    frame = known[index] = KnownFrame()
                if not frame.uses or frame.uses[-1] != number:
                    frame.uses.append(number)
                needed.append(frame)
            frames[feature.key] = needed
        return NumberedRequest(number, request, frames)

    def fetch(self, request: WindowRequest, frames: dict[str, list[KnownFrame]]) -> None:
        """Asks for the coded bytes of frames that were not asked for yet, or were dropped since.

        Raises:
          LeRobotGrainError: a sample table could not be read, or a file does not hold the frames of the episode.
        """
        for key, window in frames.items():
            indices = _window(request, key)
            missing = [index for index, frame in zip(indices, window, strict=True) if frame.read is None and frame.task is None]
            if missing:
                self._fetch_camera(key, request.episode, missing)

    def decode(self, requests: Sequence[NumberedRequest]) -> None:
        """Starts decoding what the next requests need."""
        last_number = requests[-1].number
        wanted: dict[_Read, int] = {}  # to the last frame of the file that is needed now
        for _, request, windows in requests:
            for key, window in windows.items():
                for index, frame in zip(_window(request, key), window, strict=True):
                    if (read := frame.read) is not None:
                        wanted[read] = max(wanted.get(read, 0), read.gop.file.first_frame(read.gop.episode) + index)
        groups = []
        for read, limit in wanted.items():
            if read.is_long:
                self._decode_piece(read, self._frames_to_decode(read, last_number, limit=limit))
            else:
                groups.append((read, self._frames_to_decode(read, last_number, limit=None)))
        reads = {read.gop: read for read, _ in groups}
        for group in decode_groups([(read.gop, frames) for read, frames in groups], max_pictures=_PICTURES_PER_TASK):
            coded = [reads[gop].coded for gop, _ in group]
            task = _DecodeTask(self._decoders.submit(decode_group, group, coded, self._image_size), coded)
            slot = 0
            for gop, frames in group:
                slot = self._start(reads[gop], frames, task, slot)
                self._retire(reads[gop])
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        if self.used_bytes > self._budget_bytes:
            self._drop_farthest(last_number)

    def put(self, example: dict[str, Any], numbered: NumberedRequest) -> None:
        """Adds the camera frames of a request to its example; waits for them.

        Raises:
          LeRobotGrainError: a frame could not be had.
        """
        number, request, windows = numbered
        for feature in self._cameras:
            is_window = feature.key in request.frames
            pixels = [self._pixels(feature, request, frame, is_window=is_window) for frame in windows[feature.key]]
            example[feature.key] = np.stack(pixels) if is_window else pixels[0]
            self._release(feature.key, number, request, windows[feature.key])
            self._meter.count(frames_handed_out=len(pixels))

    # Fetching

    def _fetch_camera(self, key: str, episode: int, missing: list[int]) -> None:
        file = self._meter.wait(self._file(key, episode), "fetch")
        first = file.first_frame(episode)
        found: dict[int, GopRead] = {}
        for gop in sorted({file.gop_of(first + index) for index in missing}):
            size = 0
            for numbers in (range(gop, len(file.table.keys)), range(gop - 1, -1, -1)):
                for number in numbers:
                    if size >= _MAX_FETCH_BYTES or number in found or not self._waiting(file, episode, number):
                        break
                    if (opened := self._long.get((key, file.number, number, episode))) is not None:
                        self._attach(opened, self._waiting(file, episode, number))
                        break
                    found[number] = GopRead(file, episode, number, file.byte_range(number))
                    size += found[number].byte_range.length
        if not found:
            return
        payloads = self._fetchers.submit(self._repository.storage.read_ranges, file.path, [gop.byte_range for gop in found.values()])
        for slot, (number, gop_read) in enumerate(found.items()):
            read = _Read(gop_read, Coded(payloads, slot), is_long=self._is_long(file, number))
            self._attach(read, self._waiting(file, episode, number))
            self.coded_bytes += gop_read.byte_range.length
            self._meter.count(bytes_needed=gop_read.byte_range.length)
            if read.is_long:
                self._long[key, file.number, number, episode] = read

    def _waiting(self, file: VideoFile, episode: int, gop: int) -> list[KnownFrame]:
        """Returns the frames of a GOP that are known to be needed, and neither asked for nor decoded."""
        known = self._known[file.camera, episode]
        first = file.first_frame(episode)
        frames = [known[index - first] for index in file.frames_of(gop) if index - first in known]
        return [frame for frame in frames if frame.read is None and frame.task is None]

    def _attach(self, read: _Read, waiting: list[KnownFrame]) -> None:
        for frame in waiting:
            frame.read = read
        read.waiting += len(waiting)

    def _is_long(self, file: VideoFile, gop: int) -> bool:
        return len(file.frames_of(gop)) * self._frame_bytes(file.camera) > self._budget_bytes // _LONG_GOP_PART

    # Decoding

    def _frames_to_decode(self, read: _Read, last_number: int, *, limit: int | None) -> list[int]:
        """Returns the frames of the file that decoding is to give: all up to `limit` that wait, those needed now if memory is short."""
        gop = read.gop
        known = self._known[gop.file.camera, gop.episode]
        first = gop.file.first_frame(gop.episode)
        candidates = gop.file.frames_of(gop.gop)
        if limit is not None:
            candidates = range(candidates.start, limit + 1)
        frames = [index for index in candidates if (frame := known.get(index - first)) is not None and frame.read is read]
        if self.used_bytes + len(frames) * self._frame_bytes(gop.file.camera) > self._budget_bytes:
            frames = [index for index in frames if known[index - first].uses[0] <= last_number]
        return frames

    def _decode_piece(self, read: _Read, frames: list[int]) -> None:
        """Starts decoding the next piece of a long GOP, and ends it with its last frame."""
        gop = read.gop
        if read.decoder is None:
            self._close_decoders(keep=read)
            read.decoder = OpenGop(gop, read.coded, self._image_size)
            read.next_frame = gop.file.frames_of(gop.gop).start
            self._decoder_bytes += self._bytes_of_decoder(read)
            self._count_gop(gop)
        self._long.move_to_end((gop.file.camera, gop.file.number, gop.gop, gop.episode))
        going_on = frames[0] >= read.next_frame
        self._meter.count(pictures_decoded=frames[-1] + 1 - (read.next_frame if going_on else gop.file.frames_of(gop.gop).start))
        read.next_frame = frames[-1] + 1
        task = _DecodeTask(self._decoders.submit(read.decoder.frames, frames), [read.coded])
        self._start(read, frames, task, 0)
        if read.waiting == 0:
            self._retire(read)

    def _start(self, read: _Read, frames: list[int], task: _DecodeTask, slot: int) -> int:
        """Lets frames wait for a task that gives them from `slot` on; returns the slot behind them."""
        gop = read.gop
        known = self._known[gop.file.camera, gop.episode]
        first = gop.file.first_frame(gop.episode)
        for index in frames:
            frame = known[index - first]
            frame.read, frame.task, frame.slot = None, task, slot
            slot += 1
        read.waiting -= len(frames)
        self.decoded_bytes += len(frames) * self._frame_bytes(gop.file.camera)
        if not read.is_long:
            self._count_gop(gop)
            self._meter.count(pictures_decoded=gop.file.num_pictures(gop.gop, frames))
        return slot

    def _retire(self, read: _Read) -> None:
        """Gives up the coded bytes and the decoder of a GOP; frames that still wait for it are asked for again when they are needed."""
        gop = read.gop
        if read.waiting:
            first = gop.file.first_frame(gop.episode)
            for index in gop.file.frames_of(gop.gop):
                frame = self._known[gop.file.camera, gop.episode].get(index - first)
                if frame is not None and frame.read is read:
                    frame.read = None
        self.coded_bytes -= gop.byte_range.length
        if read.is_long:
            del self._long[gop.file.camera, gop.file.number, gop.gop, gop.episode]
            if read.decoder is not None:
                self._decoder_bytes -= self._bytes_of_decoder(read)

    def _close_decoders(self, *, keep: _Read) -> None:
        """Gives up the least recently used decoders while all of them hold more than half of the budget; their GOPs begin anew when needed.

        A decoder goes when the pieces that were asked of it are done.
        """
        for read in list(self._long.values()):
            if self._decoder_bytes + self._bytes_of_decoder(keep) <= self._budget_bytes // 2:
                break
            if read.decoder is not None and read is not keep:
                read.decoder = None
                self._decoder_bytes -= self._bytes_of_decoder(read)

    def _drop_farthest(self, last_number: int) -> None:
        """Forgets decoded frames that no started example needs, those first whose next use is farthest away, until the budget holds."""
        decoded = [
            (frame.uses[0], camera, frame)
            for (camera, _), frames in self._known.items()
            for frame in frames.values()
            if frame.task is not None and frame.uses[0] > last_number and frame.task.frames.done()
        ]
        for _, camera, frame in sorted(decoded, key=lambda item: -item[0]):
            if self.used_bytes <= self._budget_bytes:
                break
            assert frame.task is not None
            frame.task.frames.result()[frame.slot] = None
            frame.task = None
            self.decoded_bytes -= self._frame_bytes(camera)

    def _count_gop(self, gop: GopRead) -> None:
        key = (gop.file.camera, gop.file.number, gop.gop)
        self._meter.count(gops_decoded=1, gops_decoded_again=int(key in self._lately_decoded))
        self._lately_decoded[key] = None
        self._lately_decoded.move_to_end(key)
        if len(self._lately_decoded) > _MAX_LATELY_DECODED:
            self._lately_decoded.popitem(last=False)

    # Handing out

    def _pixels(self, feature: Feature, request: WindowRequest, frame: KnownFrame, *, is_window: bool) -> npt.NDArray[np.uint8]:
        assert frame.task is not None
        fetched = all(coded.payloads.done() for coded in frame.task.coded)
        pixels = self._meter.wait(frame.task.frames, "decode" if fetched else "fetch")[frame.slot]
        if isinstance(pixels, Exception):
            raise pixels
        expected = (*(self._image_size or feature.shape[:2]), 3)
        if pixels.shape != expected:
            raise DatasetFormatError(
                f"{self._repository.description}, episode {request.episode}, camera {feature.key}: a frame has shape {pixels.shape}; "
                f"info.json declares {expected}"
            )
        # Handed out itself at its last use only: the consumer may write to what it is given. A window is copied anyway.
        found: npt.NDArray[np.uint8] = pixels if is_window or len(frame.uses) == 1 else pixels.copy()
        return found

    def _release(self, key: str, number: int, request: WindowRequest, window: list[KnownFrame]) -> None:
        known = self._known[key, request.episode]
        for index, frame in zip(_window(request, key), window, strict=True):
            if not frame.uses or frame.uses[0] != number:
                continue  # a second time in the same window
            frame.uses.pop(0)
            if not frame.uses:
                assert frame.task is not None
                self.decoded_bytes -= self._frame_bytes(key)
                frame.task.frames.result()[frame.slot] = None
                del known[index]
        if not known:
            del self._known[key, request.episode]

    # Sizes and files

    def _frame_bytes(self, camera: str) -> int:
        height, width = self._image_size or self._repository.features[camera].shape[:2]
        return height * width * 3

    def _bytes_of_decoder(self, read: _Read) -> int:
        table = read.gop.file.table
        return table.height * table.width * 3 // 2 * _PICTURES_OF_DECODER

    def _file(self, camera: str, episode: int) -> Future[VideoFile]:
        number = self._repository.episodes.videos[camera].files.file_of_episode.item(episode)
        return self._files.get((camera, number), lambda: self._fetchers.submit(_open_video, self._repository, camera, number))


def _window(request: WindowRequest, key: str) -> list[int]:
    """Returns the frames of the episode that a camera's window consists of."""
    window = request.frames.get(key)
    return [request.frame] if window is None else window.tolist()


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
