"""The coded bytes of one camera: which were asked for, and what they are asked for together with.

A GOP is asked for together with its neighbours in the file that are known to be needed. Where the
coded bytes of all the camera's video are few, they are kept: an episode is fetched whole, at its
first use, and later epochs fetch nothing. Small pictures are decoded faster than a Hub answers a
request for each clip, or even for each episode: so short episodes that lie side by side in a file,
and that the stream will need too, come in one request. A small file of one episode, as v2.x has
them, is fetched whole, with what tells where its pictures lie, and kept with that.

Rules:
* For one thread, the consumer's; the fetch threads run tasks that know everything they need.
* What a request brings for several episodes fails for all of them, each time at the example that
  needs it; what is wrong with an episode itself is nothing to its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._reading.fetch_groups import episodes_fetched_together
from lerobot_grain._reading.frames.decoding import LongGopDecoder, PendingBytes
from lerobot_grain._reading.frames.frame_store import FrameDemand
from lerobot_grain._reading.future_cache import FutureCache
from lerobot_grain._reading.read_context import ReadContext
from lerobot_grain._reading.video_files import MAX_FETCH_BYTES, open_video
from lerobot_grain._storage.base import Storage
from lerobot_grain._video.video_file import VideoFile

# Of a GOP: number of the file, episode, number in the file.
GopKey = tuple[int, int, int]

# Neighbouring GOPs are fetched in one request this many frames before and behind the one that is
# needed first.
_MAX_FETCH_FRAMES = 64
# A GOP of fewer frames is never long (`MemoryBudget.long_gop`): an open decoder takes more than
# they.
_MIN_LONG_GOP = 24


@dataclass(eq=False, slots=True)
class GopRun:
    """GOPs that follow each other in a file and were asked for in one request."""

    coded: PendingBytes
    num_bytes: int
    gops: range
    num_waiting: int  # GOPs that are not done with
    is_kept: bool  # forever


@dataclass(eq=False, slots=True)
class FetchedGop:
    """A GOP whose coded bytes were asked for, until all frames that are known to be needed of it
    are being decoded.
    """

    run: GopRun
    is_long: bool
    decoder: LongGopDecoder | None = None
    decoder_bytes: int = 0
    next_frame: int = 0  # of the file: where an open decoder goes on


class GopFetcher:
    """The coded bytes of one camera.

    Args:
      context: of the stream.
      camera: its key.
      demand: which frames are needed; those whose bytes are asked for are marked there.
      frame_bytes: of a decoded frame.
      files: of all cameras, by (camera, number of the file).

    Attributes:
      gops: what was asked for.
      coded_bytes: that go when they are decoded.
      kept_bytes: that stay.
    """

    def __init__(
        self,
        context: ReadContext,
        camera: str,
        *,
        demand: FrameDemand,
        frame_bytes: int,
        files: FutureCache[tuple[str, int], VideoFile],
    ) -> None:
        self._context = context
        self._camera = camera
        self._demand = demand
        self._frame_bytes = frame_bytes
        self._files = files
        self._file_of_episode = context.repository.episodes.videos[camera].files.file_of_episode
        # number of a file -> `episodes_fetched_together`
        self._together: dict[int, dict[int, list[int]]] = {}
        self.gops: dict[GopKey, FetchedGop] = {}
        self.coded_bytes = self.kept_bytes = 0

    def open(self, number: int) -> Future[VideoFile]:
        """Returns a file of the camera; asks for what tells where its pictures lie, if that is not
        known.
        """
        return self._files.get(
            (self._camera, number),
            lambda: self._context.fetchers.submit(
                open_video,
                self._context.repository,
                self._camera,
                number,
                keep_bytes=self._context.budget.kept_video,
            ),
        )

    def fetch(self, episode: int, frame: int) -> None:
        """Asks for the GOP of a frame of an episode, and for those around it that are needed too.

        Raises:
          LeRobotGrainError: the file could not be opened, or does not hold the frames of the
            episode.
        """
        number = self._file_of_episode.item(episode)
        file = self._context.meter.wait(self.open(number), "fetch")
        file.check(episode)
        first = file.first_frame(episode)
        stop = first + self._context.repository.episodes.lengths.item(episode)
        frame += first
        is_kept = file.contents is None and file.estimated_bytes <= self._context.budget.kept_video
        reach = stop if is_kept else _MAX_FETCH_FRAMES
        low, gop, high = file.gops_of(
            np.array([max(first, frame - reach), frame, min(stop - 1, frame + reach)])
        ).tolist()
        starts = file.gop_starts[low : high + 2].copy()
        # The first and the last GOP may hold frames of other episodes.
        starts[0] = max(starts.item(0), first)
        starts[-1] = min(starts.item(-1), stop)
        demand = self._demand
        entries = demand.find(
            np.arange(starts.item(0), starts.item(-1))
            + (self._context.repository.episodes.first_rows.item(episode) - first)
        )
        is_needed = (demand.uses[entries] > 0) & ~demand.is_requested[entries]
        if (there := self.gops.get((number, episode, gop))) is not None:
            begin, end = (
                (max(low, there.run.gops.start), min(high + 1, there.run.gops.stop))
                if is_kept
                else (gop, gop + 1)
            )
        elif is_kept and self._fetch_together(file, episode):
            begin = low
            end = high + 1
        else:
            # Not of GOPs of which all frames are hidden: there `reduceat` gives that of the next
            # frame.
            gop_is_needed = (
                np.logical_or.reduceat(is_needed, starts[:-1] - starts[0]) & (np.diff(starts) > 0)
            ).tolist()
            begin = gop
            end = gop + 1
            while (
                begin > low
                and (is_kept or gop_is_needed[begin - 1 - low])
                and (number, episode, begin - 1) not in self.gops
            ):
                begin -= 1
            while (
                end <= high
                and (is_kept or gop_is_needed[end - low])
                and (number, episode, end) not in self.gops
            ):
                end += 1
            wanted = file.byte_range_of(range(begin, end))
            while wanted.length > MAX_FETCH_BYTES and end - begin > 1:
                begin = (begin + gop + 1) // 2
                end = (gop + end + 1) // 2
                wanted = file.byte_range_of(range(begin, end))
            self._fetch_run(file, [(episode, range(begin, end))], wanted, is_kept=is_kept)
        asked = slice(starts[begin - low] - starts[0], starts[end - low] - starts[0])
        demand.is_requested[entries[asked][is_needed[asked]]] = True

    def _fetch_together(self, file: VideoFile, episode: int) -> bool:
        """Asks for an episode that is kept and those that it is fetched together with; returns
        whether there are such.
        """
        if file.number not in self._together:
            self._together[file.number] = episodes_fetched_together(
                file,
                self._context.needed_every_epoch,
                piece_bytes=self._context.repository.storage.options.cost_bytes,
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
        # Where the bytes are not in the order of the pictures, those of neighbours may lie far from
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
                    _read_range, self._context.repository.storage, file.path, wanted
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
        self._context.meter.count(bytes_needed=wanted.length)

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
