"""The frames of all cameras, within one budget.

The frames that a block of examples needs are decoded at once, together with the frames of the same
GOPs that are needed later, as far as the budget allows. When it does not allow all,
`_reading/frames/eviction` chooses; frames that it leaves out or drops are read and decoded again
later: slower, never wrong, never more memory.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.info import Feature
from lerobot_grain._order.windows import WindowBlock
from lerobot_grain._reading.frames.camera_reader import CameraReader
from lerobot_grain._reading.frames.eviction import frames_that_stay
from lerobot_grain._reading.frames.gop_decoder import DecodeCandidate
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._video.decoder import load_decoder
from lerobot_grain._video.depth import load_depth_decoder
from lerobot_grain._video.video_file import VideoFile

# Decode tasks are to take this long at least: each costs half a millisecond of Python, and opens a
# decoder. And there are to be so many for each thread in a block that is decoded, so that none is
# waited for by all.
_MIN_TASK_SECONDS = 0.02
_TASKS_PER_THREAD = 2
# So much of a camera's frames is copied at a time.
_COPIED_BYTES = 4 << 20

# By camera, the entries of the frames that a block needs: int64 `(examples, time)`.
Entries = Mapping[str, Integers]


class Priority(enum.Enum):
    """What may be given up so that a block is decoded.

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


class FrameReader:
    """Reads the camera frames of blocks of window requests.

    Args:
      context: of the stream; its `budget.frames` are kept to here.
    """

    def __init__(self, context: ReadContext) -> None:
        self._context = context
        self._budget_bytes = context.budget.frames
        self._files: FutureCache[tuple[str, int], VideoFile] = FutureCache(
            limit=context.budget.video_files, size=lambda file: file.nbytes
        )
        self._cameras = {
            feature.key: CameraReader(context, feature, self._files)
            for feature in context.selection.videos
        }
        self.peak_bytes = 0

    @property
    def used_bytes(self) -> int:
        return sum(camera.used_bytes for camera in self._cameras.values()) + self._files.total

    @property
    def coded_bytes(self) -> int:
        return sum(camera.coded_bytes for camera in self._cameras.values())

    def example_bytes(self, block: WindowBlock) -> int:
        """Returns the bytes of the frames of one example."""
        return sum(
            camera.store.frame_bytes * (block.frames[key].shape[1] if key in block.frames else 1)
            for key, camera in self._cameras.items()
        )

    def announce(self, block: WindowBlock) -> Entries:
        """Counts the frames that the next block needs; asks for the sample tables of files that are
        not known yet.
        """
        return {key: camera.announce(block) for key, camera in self._cameras.items()}

    def fetch(self, block: WindowBlock, entries: Entries) -> None:
        """Asks for the coded bytes of frames that were not asked for yet, or were dropped since."""
        for key, camera in self._cameras.items():
            camera.fetch(block, entries[key])

    def decode(
        self, block: WindowBlock, coming: Sequence[Entries], number: int, *, priority: Priority
    ) -> float | None:
        """Starts decoding what a block needs.

        Args:
          block: whose coded bytes were asked for.
          coming: the entries of all blocks that were not handed out.
          number: of `block` among them; those before it were started.
          priority: what may be given up for it.

        Returns:
          About how many seconds of a core it takes; `None` if it was not started, because the
          budget is full of frames that are needed earlier.
        """
        wanted = {
            key: camera.frames_to_decode(block, coming[number][key])
            for key, camera in self._cameras.items()
        }
        room = self._budget_bytes - self.used_bytes
        if (
            sum(
                len(item.entries) * self._cameras[key].store.frame_bytes
                for key, items in wanted.items()
                for item in items
            )
            > room
        ):
            if priority is Priority.SPARE:
                return None
            is_urgent = priority is Priority.URGENT
            chosen = self._choose(wanted, coming, number, room, is_urgent=is_urgent)
            if chosen is None:
                return None
            wanted = chosen
        seconds = sum(camera.seconds_of(wanted[key]) for key, camera in self._cameras.items())
        task_seconds = max(
            _MIN_TASK_SECONDS, seconds / self._context.num_decoders / _TASKS_PER_THREAD
        )
        tasks = [
            task
            for key, camera in self._cameras.items()
            for task in camera.decode_tasks(wanted[key], task_seconds=task_seconds)
        ]
        # What is needed first is decoded first, of all cameras.
        for task in sorted(tasks, key=lambda task: task.first_use):
            task.start()
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return seconds

    def is_done(self, entries: Entries, examples: slice) -> bool:
        """Returns whether `wait` would not wait."""
        return all(camera.is_done(entries[key][examples]) for key, camera in self._cameras.items())

    def wait(self, entries: Entries, examples: slice) -> tuple[int, Exception] | None:
        """Waits for the frames of some examples of a block.

        Returns:
          `None`, or the first example of the block that cannot be had, and why.
        """
        problems = [
            problem
            for key, camera in self._cameras.items()
            if (problem := camera.wait(entries[key][examples])) is not None
        ]
        first = min(problems, key=lambda problem: problem[0], default=None)
        return None if first is None else (examples.start + first[0], first[1])

    def copy_frames(
        self, out: Mapping[str, npt.NDArray[Any]], entries: Entries, examples: slice
    ) -> None:
        """Copies the frames of some examples of a block, which were waited for, to `out`: camera ->
        `(examples, ..., channels)`.
        """
        pieces = [
            functools.partial(camera.copy_frames, entries[key][examples][piece], out[key][piece])
            for key, camera in self._cameras.items()
            for piece in _pieces(len(out[key]), out[key].nbytes)
        ]
        if len(pieces) > len(self._cameras):
            for copy in [self._context.copiers.submit(piece) for piece in pieces]:
                copy.result()
        else:
            for piece in pieces:
                piece()
        for key, camera in self._cameras.items():
            camera.release(entries[key][examples])

    def shape_of(self, key: str, block: WindowBlock) -> tuple[int, ...]:
        """Returns the shape of an example's value: `(height, width, channels)`, or with the time in
        front.
        """
        shape: tuple[int, ...] = self._cameras[key].store.frames.shape[1:]
        return (block.frames[key].shape[1], *shape) if key in block.frames else shape

    def _choose(
        self,
        wanted: Mapping[str, list[DecodeCandidate]],
        coming: Sequence[Entries],
        number: int,
        room: int,
        *,
        is_urgent: bool,
    ) -> dict[str, list[DecodeCandidate]] | None:
        """Returns the part of `wanted` that there is room for, after dropping decoded frames that
        are needed later than the rest of it.
        """
        # For each camera: the decoded frames that may go, and those that would be decoded for later
        # blocks.
        decoded: dict[str, Integers] = {}
        later: dict[str, Integers] = {}
        next_uses: list[Integers] = []
        sizes: list[Integers] = []
        for key, camera in self._cameras.items():
            next_use = camera.demand.next_uses([entries[key] for entries in coming])
            droppable = camera.droppable()
            decoded[key] = droppable[next_use[droppable] > number]
            later[key] = np.concatenate(
                [item.entries[~item.is_now] for item in wanted[key]] or [np.zeros(0, np.int64)]
            )
            entries = np.concatenate([decoded[key], later[key]])
            next_uses.append(next_use[entries])
            sizes.append(np.full(len(entries), camera.store.frame_bytes))
            room += camera.store.frame_bytes * (
                len(decoded[key]) - sum(int(item.is_now.sum()) for item in wanted[key])
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
            chosen[key] = [item.only(item.is_now | is_kept[item.entries]) for item in wanted[key]]
            begin = end
        return chosen


def _pieces(count: int, num_bytes: int) -> Iterator[slice]:
    """Cuts examples that take so many bytes into pieces to copy."""
    step = max(1, count * _COPIED_BYTES // max(1, num_bytes))
    return (slice(start, start + step) for start in range(0, count, step))
