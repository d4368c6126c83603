"""Decode tasks: GOPs whose coded bytes were asked for -> frames in slots. These wait for bytes, and
are called from the decode threads.

GOPs of equal format are put into groups (`decode_groups`), and each group is decoded as one small
MP4 (`decode_jobs`). The decoder of a long GOP stays open between tasks, under a lock
(`LongGopDecoder`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.daemon_pool import holding_off_exit
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.decoder import FrameDecoder, Frames, OpenVideo
from lerobot_grain._video.small_mp4 import Unit, coded_unit, small_mp4, stitchable
from lerobot_grain._video.video_file import VideoFile


class GopFrames(NamedTuple):
    """One GOP of a file, and the frames that are wanted of it.

    Attributes:
      file: which holds it.
      episode: whose frames are wanted.
      gop: its number in the file.
      frames: int64 `(n,)`: the wanted frames of the file, ascending.
    """

    file: VideoFile
    episode: int
    gop: int
    frames: Integers

    def __str__(self) -> str:
        return (
            f"{self.file.where}: episode {self.file.number_of(self.episode)}, camera "
            f"{self.file.camera}, GOP {self.gop}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class PendingBytes:
    """Coded bytes of a file from byte `start` on, once they are there."""

    payload: Future[bytes]
    start: int

    def wait(self) -> None:
        """Waits until they are there, or could not be read."""
        # Not `concurrent.futures.wait`, which waits forever for one that a closed pool cancels.
        with contextlib.suppress(Exception):
            self.payload.result()

    def bytes_of(self, wanted: ByteRange) -> memoryview:
        """Returns the bytes of a range of the file; waits for them."""
        return memoryview(self.payload.result())[
            wanted.start - self.start : wanted.stop - self.start
        ]


class DecodeJob(NamedTuple):
    """A part of a decode task: what is wanted of a GOP, its coded bytes, and int64 `(n,)`, the
    slots that its frames are written to.
    """

    wanted: GopFrames
    coded: PendingBytes
    slots: Integers


def decode_groups(gops: Iterable[GopFrames], *, max_pictures: int) -> list[list[int]]:
    """Puts GOPs into groups that one small MP4 can hold: equal formats, up to about `max_pictures`
    wanted frames.

    Args:
      gops: in the order of their first use.

    Returns:
      The places in `gops` of each group.
    """
    groups: list[list[int]] = []
    open_groups: dict[VideoFormat, int] = {}
    pictures: dict[VideoFormat, int] = {}
    for place, gop in enumerate(gops):
        kind = gop.file.table.format
        if kind not in open_groups or pictures[kind] + len(gop.frames) > max_pictures:
            open_groups[kind] = len(groups)
            pictures[kind] = 0
            groups.append([])
        groups[open_groups[kind]].append(place)
        pictures[kind] += len(gop.frames)
    return groups


def decode_jobs(
    jobs: Sequence[DecodeJob], into: Frames, open_video: OpenVideo
) -> dict[int, Exception]:
    """Decodes GOPs that share a sample description; waits for their bytes.

    Args:
      jobs: what to decode.
      into: `(slots, height, width, channels)`; the wanted frames are written there.
      open_video: the decoder of the camera.

    Returns:
      Slot -> what is wrong with its frame; empty if all is well.
    """
    try:
        _decode_together(jobs, into, open_video)
    except Exception as error:
        if len(jobs) == 1:
            return dict.fromkeys(jobs[0].slots.tolist(), error)
        # One GOP of the group is bad: alone, each gives its frames or its own error.
        problems = {}
        for job in jobs:
            problems.update(decode_jobs([job], into, open_video))
        return problems
    return {}


def _decode_together(jobs: Sequence[DecodeJob], into: Frames, open_video: OpenVideo) -> None:
    units = []
    coded = []
    for job in jobs:
        file = job.wanted.file
        unit = file.unit(job.wanted.gop, job.wanted.frames)
        units.append(unit)
        coded.append(
            coded_unit(file.table, unit, job.coded.bytes_of(unit.byte_range), where=job.wanted)
        )
    for places in stitchable(coded):
        before = np.cumsum([0, *(len(units[place].samples) for place in places)])
        first = jobs[places[0]].wanted
        where = f"{first}" if len(places) == 1 else f"{first} and {len(places) - 1} more"
        track = first.file.table.format
        numbers = np.concatenate(
            [
                units[place].wanted + count
                for place, count in zip(places, before[:-1].tolist(), strict=True)
            ]
        )
        with holding_off_exit():
            video = open_video(
                small_mp4(track, [coded[place] for place in places]), where, track.rotation
            )
            video.read(numbers, into, np.concatenate([jobs[place].slots for place in places]))
            del video


class LongGopDecoder:
    """One long GOP, decoded in pieces by a decoder that stays open between them.

    Args:
      coded: its bytes; the first piece waits for them.
      open_video: the decoder of the camera.
    """

    def __init__(self, coded: PendingBytes, open_video: OpenVideo) -> None:
        self._coded = coded
        self._open_video = open_video
        self._lock = threading.Lock()
        self._video: FrameDecoder | None = None
        self._unit: Unit | None = None  # all frames of the GOP, of which the small MP4 is made

    def decode(self, wanted: GopFrames, into: Frames, slots: Integers) -> dict[int, Exception]:
        """Decodes frames of the GOP, as `decode_jobs` does. Going back begins the GOP anew."""
        first = wanted.file.frames_of(wanted.gop)
        try:
            with self._lock:
                if self._video is None:
                    self._unit = wanted.file.unit(wanted.gop, first)
                    self._video = self._open(wanted, self._unit)
                assert self._unit is not None
                with holding_off_exit():
                    self._video.read(self._unit.wanted[wanted.frames - first.start], into, slots)
        except Exception as error:
            return dict.fromkeys(slots.tolist(), error)
        return {}

    def _open(self, wanted: GopFrames, unit: Unit) -> FrameDecoder:
        file = wanted.file
        coded = coded_unit(file.table, unit, self._coded.bytes_of(unit.byte_range), where=wanted)
        mp4 = small_mp4(file.table.format, [coded])
        with holding_off_exit():
            return self._open_video(mp4, f"{wanted}", file.table.format.rotation)
