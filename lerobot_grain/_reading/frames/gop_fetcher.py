"""The coded bytes of one camera: which were asked for, and what they are asked for together with.

A GOP is asked for together with its neighbors in the file that are known to be needed. If the
coded bytes of all the camera's video are few, they are kept: an episode is fetched whole, at its
first use, and later epochs fetch nothing. Small frames are decoded faster than a Hub answers a
request for each clip, or even for each episode: so short episodes that lie side by side in a file,
and that the stream will need too, come in one request. A small file of one episode, as v2.x has
them, is fetched whole, with the table of where its frames are, and kept with that.

Rules:
* For one thread, the consumer's; the fetch threads run tasks that know everything they need.
* A failed request for several episodes fails for all of them, each time at the example that needs
  it; a defect in one episode does not affect its neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.fetch_groups import episodes_fetched_together
from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frames.decoding import PendingBytes
from lerobot_grain._reading.frames.frame_store import FrameDemand
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext, ReadSource
from lerobot_grain._reading.video_files import MAX_FETCH_BYTES, open_video
from lerobot_grain._storage.base import Storage
from lerobot_grain._video.video_file import VideoFile

# The key of a GOP: number of the file, episode, number in the file.
GopKey = tuple[int, int, int]


# Neighboring GOPs are fetched in one request this many frames before and after the one that is
# needed first.
_MAX_FETCH_FRAMES = 64
# A GOP of fewer frames is never long (`MemoryBudget.long_gop`): an open decoder takes more than
# they.
_MIN_LONG_GOP = 24


class FileKey(NamedTuple):
    """The key of a video file: number of the source, key of the camera, number of the file."""

    source: int
    camera: str
    number: int


@dataclass(eq=False, slots=True)
class GopRun:
    """GOPs that follow each other in a file and were asked for in one request."""

    coded: PendingBytes
    num_bytes: int
    gops: range
    num_waiting: int  # GOPs that are not done with
    is_kept: bool  # forever


class FetchedGop(NamedTuple):
    """A GOP whose coded bytes were asked for, until all frames that are known to be needed of it
    are being decoded.
    """

    run: GopRun
    is_long: bool


class NearGops(NamedTuple):
    """The GOPs of an episode that may be fetched with the one that is needed.

    Attributes:
      gop: the one that is needed.
      gops: all of them.
      starts: int64 `(len(gops) + 1,)`: the first frame of each that belongs to the episode, and
        the frame after the last one.
    """

    gop: int
    gops: range
    starts: Integers

    def places_of(self, gops: range) -> slice:
        """Returns where the frames of some of them lie among the frames of all of them."""
        first = self.starts[0]
        return slice(
            self.starts[gops.start - self.gops.start] - first,
            self.starts[gops.stop - self.gops.start] - first,
        )

    def have_frames(self, is_frame: npt.NDArray[np.bool_]) -> list[bool]:
        """Returns of each GOP whether one of its frames is marked, bool `(frames of all,)`."""
        # Not of GOPs of which all frames are hidden: there `reduceat` gives that of the next frame.
        found: list[bool] = (
            np.logical_or.reduceat(is_frame, self.starts[:-1] - self.starts[0])
            & (np.diff(self.starts) > 0)
        ).tolist()
        return found


def near_gops(file: VideoFile, episode_frames: range, frame: int, reach: int) -> NearGops:
    """Returns the GOPs that hold frames of an episode, up to `reach` frames from one of them."""
    first = episode_frames.start
    stop = episode_frames.stop
    low, gop, high = file.gops_of(
        np.array([max(first, frame - reach), frame, min(stop - 1, frame + reach)])
    ).tolist()
    starts = file.gop_starts[low : high + 2].copy()
    # The first and the last GOP may hold frames of other episodes.
    starts[0] = max(starts.item(0), first)
    starts[-1] = min(starts.item(-1), stop)
    return NearGops(gop, range(low, high + 1), starts)


def run_around(gop: int, gops: range, may_join: Callable[[int], bool]) -> range:
    """Returns the longest run of GOPs around one of which all others may join it."""
    begin = gop
    end = gop + 1
    while begin > gops.start and may_join(begin - 1):
        begin -= 1
    while end < gops.stop and may_join(end):
        end += 1
    return range(begin, end)


def shortened(gops: range, gop: int, file: VideoFile) -> tuple[range, ByteRange]:
    """Returns the part of a run around one of its GOPs that one request may bring, and its
    bytes.
    """
    wanted = file.byte_range_of(gops)
    while wanted.length > MAX_FETCH_BYTES and len(gops) > 1:
        gops = range((gops.start + gop + 1) // 2, (gop + gops.stop + 1) // 2)
        wanted = file.byte_range_of(gops)
    return gops, wanted


class GopFetcher:
    """The coded bytes of one camera.

    Args:
      context: of the stream.
      source: of the camera.
      camera: its key.
      demand: which frames are needed; those whose bytes are asked for are marked there.
      frame_bytes: of a decoded frame.
      files: of all cameras.

    Attributes:
      gops: what was asked for.
      coded_bytes: that go when they are decoded.
      kept_bytes: that stay.
    """

    def __init__(
        self,
        context: ReadContext,
        source: ReadSource,
        camera: str,
        *,
        demand: FrameDemand,
        frame_bytes: int,
        files: FutureCache[FileKey, VideoFile],
    ) -> None:
        self._context = context
        self._source = source
        self._camera = camera
        self._demand = demand
        self._frame_bytes = frame_bytes
        self._files = files
        # number of a file -> `episodes_fetched_together`
        self._together: dict[int, dict[int, list[int]]] = {}
        self.gops: dict[GopKey, FetchedGop] = {}
        self.coded_bytes = self.kept_bytes = 0

    def open(self, number: int) -> Future[VideoFile]:
        """Returns a file of the camera; asks for the table of where its frames are, if that is not
        known.
        """
        return self._files.get(
            FileKey(self._source.number, self._camera, number),
            lambda: self._context.fetchers.submit(
                open_video,
                self._source.repository,
                self._camera,
                number,
                keep_bytes=self._context.budget.kept_video,
            ),
        )

    def fetch(self, episode: int, frame: int, *, on_disk: CameraFrames | None) -> None:
        """Asks for the GOP of a frame of an episode, and for those around it that are needed too.

        Args:
          episode: which.
          frame: of the episode.
          on_disk: the decoded frames of the camera there, where they are kept.

        Raises:
          LeRobotGrainError: the file could not be opened, or does not hold the frames of the
            episode.
        """
        episodes = self._source.repository.episodes
        number = episodes.videos[self._camera].files.file_of_episode.item(episode)
        file = self._source.meter.wait(self.open(number), "fetch")
        file.check(episode)
        first = file.first_frame(episode)
        length = episodes.lengths.item(episode)
        is_kept = file.contents is None and file.estimated_bytes <= self._context.budget.kept_video
        near = near_gops(
            file,
            range(first, first + length),
            first + frame,
            reach=length if is_kept else _MAX_FETCH_FRAMES,
        )
        demand = self._demand
        frames = np.arange(near.starts.item(0), near.starts.item(-1)) - first
        entries = demand.find(frames + episodes.first_rows.item(episode))
        is_needed = (demand.uses[entries] > 0) & ~demand.is_requested[entries]
        if on_disk is not None:
            # Neighbors that lie there are not decoded, so nobody asks for their bytes.
            neighbors = is_needed.copy()
            neighbors[near.places_of(range(near.gop, near.gop + 1))] = False
            if neighbors.any():
                found = on_disk.find(np.full(neighbors.sum(), episode), frames[neighbors])
                is_needed[neighbors] = ~found
        gops = self._ask_for(file, episode, near, is_needed, is_kept=is_kept)
        asked = near.places_of(gops)
        demand.is_requested[entries[asked][is_needed[asked]]] = True

    def _ask_for(
        self,
        file: VideoFile,
        episode: int,
        near: NearGops,
        is_needed: npt.NDArray[np.bool_],
        *,
        is_kept: bool,
    ) -> range:
        """Asks for a GOP and those that come with it, unless it was asked for; returns those of
        `near` that are asked for now.

        Args:
          is_needed: bool `(frames of near,)`: which frames are needed, and not asked for.
        """
        there = self.gops.get((file.number, episode, near.gop))
        if there is not None:
            if not is_kept:
                return range(near.gop, near.gop + 1)
            return range(
                max(near.gops.start, there.run.gops.start),
                min(near.gops.stop, there.run.gops.stop),
            )
        if is_kept and self._fetch_together(file, episode):
            return near.gops
        gop_is_needed = near.have_frames(is_needed)

        def may_join(gop: int) -> bool:
            return (is_kept or gop_is_needed[gop - near.gops.start]) and (
                file.number,
                episode,
                gop,
            ) not in self.gops

        run = run_around(near.gop, near.gops, may_join)
        gops, wanted = shortened(run, near.gop, file)
        self._fetch_run(file, [(episode, gops)], wanted, is_kept=is_kept)
        return gops

    def _fetch_together(self, file: VideoFile, episode: int) -> bool:
        """Asks for an episode that is kept and those that it is fetched together with; returns
        whether there are such.
        """
        if file.number not in self._together:
            self._together[file.number] = episodes_fetched_together(
                file,
                self._source.needed_every_epoch,
                piece_bytes=self._source.repository.storage.options.cost_bytes,
            )
        episodes = self._together[file.number][episode]
        if len(episodes) == 1:
            return False
        first_gops, last_gops = file.gops_of_episodes(np.array(episodes))
        members = [
            (each, range(first, last + 1))
            for each, first, last in zip(
                episodes, first_gops.tolist(), last_gops.tolist(), strict=True
            )
        ]
        wanted = file.byte_range_of(range(members[0][1].start, members[-1][1].stop))
        # If the bytes are not in the order of the frames, those of neighbors may lie far from
        # each other.
        if wanted.length > MAX_FETCH_BYTES:
            return False
        self._fetch_run(file, members, wanted, is_kept=True)
        return True

    def _fetch_run(
        self,
        file: VideoFile,
        members: Sequence[tuple[int, range]],
        wanted: ByteRange,
        *,
        is_kept: bool,
    ) -> None:
        """Asks for GOPs that follow each other: of each episode, in the order of the file, a range
        of them.
        """
        if file.contents is None:
            coded = PendingBytes(
                self._context.fetchers.submit(
                    _read_range, self._source.repository.storage, file.path, wanted
                ),
                wanted.start,
            )
            num_bytes = wanted.length
        else:
            coded = PendingBytes(Future(), 0)
            coded.payload.set_result(file.contents)
            num_bytes = 0  # counted, and kept, with the file
        all_gops = range(members[0][1].start, members[-1][1].stop)
        run = GopRun(coded, num_bytes, all_gops, sum(len(gops) for _, gops in members), is_kept)
        lengths = np.diff(file.gop_starts[all_gops.start : all_gops.stop + 1])
        is_long = (
            (lengths >= _MIN_LONG_GOP)
            & (lengths * self._frame_bytes > self._context.budget.long_gop)
        ).tolist()
        for episode, gops in members:
            for gop in gops:
                self.gops[file.number, episode, gop] = FetchedGop(
                    run, is_long[gop - all_gops.start]
                )
        if is_kept:
            self.kept_bytes += run.num_bytes
        else:
            self.coded_bytes += run.num_bytes
        self._source.meter.count(bytes_needed=wanted.length)

    def release_bytes(self, key: GopKey, coded: FetchedGop) -> None:
        """Gives up the coded bytes of a GOP unless they are kept."""
        if coded.run.is_kept:
            return
        del self.gops[key]
        coded.run.num_waiting -= 1
        if coded.run.num_waiting == 0:
            self.coded_bytes -= coded.run.num_bytes


def _read_range(storage: Storage, path: str, wanted: ByteRange) -> bytes:
    return storage.read_ranges(path, [wanted])[0]
