"""One video file with the episodes that it holds: frames of episodes -> GOPs of the file -> byte
ranges. Pure.

Which frame belongs to which row: `_video/row_frames`. A defect of an episode is found when its file
is opened, and raised before one of its frames is returned.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.episodes import EpisodeTable
from lerobot_grain._video.mp4 import SampleTable
from lerobot_grain._video.row_frames import ReadTimestamps, link_rows
from lerobot_grain._video.small_mp4 import Unit, unit_of_frames


class EpisodeExtents(NamedTuple):
    """The places of episodes in a video file.

    Attributes:
      episodes: int64 `(n,)`, ascending.
      first_gops, last_gops: int64 `(n,)`: the first and the last GOP that holds frames of each.
      starts: int64 `(n,)`: first byte of its first GOP.
      lengths: int64 `(n,)`: bytes of all its GOPs.
      has_problem: bool `(n,)`: whether `check` finds fault with it.
    """

    episodes: Integers
    first_gops: Integers
    last_gops: Integers
    starts: Integers
    lengths: Integers
    has_problem: npt.NDArray[np.bool_]


class _Held(NamedTuple):
    """The episodes that a file holds.

    Attributes:
      episodes: int64 `(n,)`, ascending.
      first_frames: int64 `(n,)`: the frame of the file that is frame 0 of each.
      lengths: int64 `(n,)`: rows of each.
      first_frame_of: episode -> its first frame.
      number_of: episode -> the number by which messages call it.
    """

    episodes: Integers
    first_frames: Integers
    lengths: Integers
    first_frame_of: dict[int, int]
    number_of: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class VideoFile:
    """One video file with the episodes that it holds; made by `linked`.

    Attributes:
      table: the sample table, without the frames that lie between those of an episode and belong to
        no row.
      path: of the file.
      camera: key of its camera.
      number: of the file among those of its camera.
      where: names the file in messages.
      contents: the whole file, where it was read whole.
      gop_starts: int64 `(GOPs + 1,)`, as of `SampleTable.gop_starts`: GOPs follow each other in
        presentation order.
      problems: episode -> what is wrong with it, for the episodes whose rows cannot be linked to
        frames.
      named: int64 `(n,)`: the episodes whose frames their timestamps name, where they do not follow
        each other.
      num_hidden: frames that lie between those of such an episode and belong to no row.
      rate: frames a second, on average; `None` for a file of one frame.
      estimated_bytes: of the camera's coded video in all files, judged by this one.
    """

    table: SampleTable
    path: str
    camera: str
    number: int
    where: str
    contents: bytes | None
    gop_starts: Integers
    problems: dict[int, str]
    named: Integers
    num_hidden: int
    rate: float | None
    estimated_bytes: int
    _held: _Held

    @classmethod
    def linked(
        cls,
        table: SampleTable,
        *,
        path: str,
        camera: str,
        number: int,
        episodes: EpisodeTable,
        fps: float,
        read_timestamps: ReadTimestamps,
        where: str,
        contents: bytes | None = None,
    ) -> VideoFile:
        """Links the rows of the episodes of a file to its frames.

        Args:
          table: its sample table.
          path, camera, number, where, contents: as the attributes.
          episodes: the episode table of the dataset.
          fps: of the dataset.
          read_timestamps: as for `link_rows`.

        Raises:
          LeRobotGrainError: timestamps are needed, and cannot be read.
        """
        spans = episodes.videos[camera]
        held = spans.files.episodes_in(number)
        lengths = episodes.lengths[held]
        link = link_rows(
            table,
            episodes=held,
            starts=spans.from_timestamp_seconds[held],
            lengths=lengths,
            fps=fps,
            read_timestamps=read_timestamps,
        )
        by_number = np.argsort(held)
        return cls(
            table=link.table,
            path=path,
            camera=camera,
            number=number,
            where=where,
            contents=contents,
            gop_starts=link.table.gop_starts(),
            problems={held.item(place): problem for place, problem in link.problems.items()},
            named=held[link.named],
            num_hidden=table.num_frames - link.table.num_frames,
            rate=link.rate,
            estimated_bytes=int(link.table.sizes.sum())
            * int(episodes.lengths.sum())
            // max(1, int(lengths.sum())),
            _held=_Held(
                held[by_number],
                link.first_frames[by_number],
                lengths[by_number],
                dict(zip(held.tolist(), link.first_frames.tolist(), strict=True)),
                dict(zip(held.tolist(), episodes.numbers_of(held).tolist(), strict=True)),
            ),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the index, and of the contents."""
        table = self.table
        arrays = (
            table.offsets,
            table.sizes,
            table.pts,
            table.key_samples,
            table.presentation,
            self.gop_starts,
        )
        return sum(array.nbytes for array in arrays) + len(self.contents or b"")

    def check(self, episode: int) -> None:
        """Checks that the frames of an episode are there.

        Raises:
          DatasetFormatError: the file does not hold a frame for every row of the episode.
        """
        if (problem := self.problems.get(episode)) is not None:
            raise DatasetFormatError(
                f"{self.where}: episode {self.number_of(episode)}, camera {self.camera}: {problem}"
            )

    def number_of(self, episode: int) -> int:
        """Returns the number by which messages call an episode."""
        return self._held.number_of[episode]

    def first_frame(self, episode: int) -> int:
        """Returns the frame of the file that is frame 0 of an episode that `check` finds."""
        return self._held.first_frame_of[episode]

    def first_frames(self, episodes: Integers) -> Integers:
        """Returns int64 `(n,)`: `first_frame` of each."""
        return self._held.first_frames[np.searchsorted(self._held.episodes, episodes)]

    def gops_of_episodes(self, episodes: Integers) -> tuple[Integers, Integers]:
        """Returns the first and the last GOP of each of the episodes, int64 `(n,)`; of one that
        `check` finds fault with, any.
        """
        places = np.searchsorted(self._held.episodes, episodes)
        first = self._held.first_frames[places]
        return self.gops_of(first), self.gops_of(
            np.minimum(first + self._held.lengths[places], self.table.num_frames) - 1
        )

    def episode_extents(self) -> EpisodeExtents:
        """Returns where the GOPs of each episode of the file lie; of an episode that `check` finds
        fault with, any.
        """
        first_gops, last_gops = self.gops_of_episodes(self._held.episodes)
        keys = np.append(self.table.key_samples, self.table.num_samples)
        before = np.append(0, np.cumsum(self.table.sizes))
        return EpisodeExtents(
            self._held.episodes,
            first_gops,
            last_gops,
            self.table.offsets[self.table.key_samples[first_gops]],
            before[keys[last_gops + 1]] - before[keys[first_gops]],
            np.isin(self._held.episodes, list(self.problems)),
        )

    def gops_of(self, frames: Integers) -> Integers:
        """Returns int64 `(n,)`: the GOPs to start decoding at for frames of the file."""
        return np.searchsorted(self.gop_starts, frames, side="right") - 1

    def frames_of(self, gop: int) -> range:
        """Returns the frames of the file for which decoding starts at a GOP."""
        return range(self.gop_starts.item(gop), self.gop_starts.item(gop + 1))

    def unit(self, gop: int, frames: Sequence[int] | Integers) -> Unit:
        """Returns the samples that give ascending `frames` of `frames_of(gop)`."""
        return unit_of_frames(self.table, gop, np.asarray(frames, np.int64))

    def num_pictures(self, gop: int, frames: Sequence[int] | Integers) -> int:
        """Returns the number of pictures that have to be decoded for ascending `frames` of
        `frames_of(gop)`.
        """
        return (
            int(frames[-1]) + 1 - self.table.key_samples.item(gop)
            if self.table.is_plain
            else len(self.unit(gop, frames).samples)
        )

    def byte_range(self, gop: int) -> ByteRange:
        """Returns the bytes that `unit` needs for any frames of a GOP."""
        if not self.table.is_plain:
            return self.unit(gop, self.frames_of(gop)).byte_range
        first = self.gop_starts.item(gop)
        last = self.gop_starts.item(gop + 1) - 1
        return ByteRange(
            self.table.offsets.item(first),
            self.table.offsets.item(last) + self.table.sizes.item(last),
        )

    def byte_range_of(self, gops: range) -> ByteRange:
        """Returns the bytes that `unit` needs for any frames of GOPs that follow each other, of
        which one at least holds frames.
        """
        if self.table.is_plain:
            return self.byte_range(gops[0]).cover(self.byte_range(gops[-1]))
        # A unit that runs on into the next GOP, for its leading pictures, may end after that GOP's
        # own. All frames of a GOP may be hidden.
        return functools.reduce(
            ByteRange.cover, [self.byte_range(gop) for gop in gops if self.frames_of(gop)]
        )
