"""Which frame of a video file belongs to which row of its episodes.

Pure, but for the timestamps of rows, which a caller's function reads.

Known are: of each episode its number of rows and the second at which it starts in the file
(`from_timestamp`); of the file the time of every frame. Unknown is whether any of these is right.
Rates are rounded (29.97 is called 30), starts are computed from rows, rows are dropped and the
video is not cut. So a link is made only where the numbers leave one way to make it; all else is a
problem, told by episode.

Rules, in this order:
1. If a file has exactly one frame for each of its rows, the k-th row has the k-th frame,
   whatever the times are. Unless the times are right in themselves, and contradict that: every
   episode starts at a frame, the frames come at `fps`, and yet the numbers do not fit. Nor
   where the starts are in another order than the rows and off by more than a frame: what is wrong
   may be the order.
2. Else an episode starts at the frame at its `from_timestamp`, and where there is none, it is a
   problem.
3. An episode with as many frames, until the next one starts, as it has rows: the k-th row has the
   k-th frame. `timestamp` is not looked at, since many recorders write the time of a clock there.
4. An episode with more frames than rows: rows or frames were dropped. If there is a frame at each
   `from_timestamp + timestamp`, these are the frames, as for lerobot. If timestamps are whole
   multiples of 1 / fps, they name the frames by number; where the frames come at another rate, the
   two differ, and it is a problem. If they are those of a clock, the k-th row has the k-th frame,
   unless that clock has gaps of as many frames as are left over.
5. If it shows that starts were computed from rows, although there are more frames than rows,
   nothing is known of the file: an episode with as many frames as rows, but timestamps that name
   frames after its last.

Frames that no row has, between those of an episode, are hidden (`SampleTable.only`), so that frames
of an episode follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.mp4 import SampleTable

Seconds = npt.NDArray[np.float64]
# Episodes, int64 (n,) -> of each the timestamps of its rows, float64 (rows,), or None where the
# dataset has none.
ReadTimestamps = Callable[[Integers], Sequence[npt.NDArray[np.floating[Any]] | None]]

# A start may be off its frame by a millisecond, as which many write it, or by a tenth of a frame
# where that is less; lerobot's reader allows a tenth of a millisecond, which is always allowed.
_START_TOLERANCE_SECONDS = 1e-3
_START_TOLERANCE_FRAMES = 0.1
_LEAST_TOLERANCE_SECONDS = 1e-4
# A timestamp is a whole multiple of 1 / fps if it is as near: half a millisecond, as rounded to
# milliseconds, and a bit.
_WHOLE_TOLERANCE_SECONDS = 6e-4
_WHOLE_TOLERANCE_FRAMES = 0.05
# Timestamps are float32.
_TIMESTAMP_PRECISION = 1.2e-7
# Larger ones, such as seconds since 1970, are then all whole multiples, and none names a frame.
_LARGEST_ERROR_FRAMES = 0.05


@dataclass(frozen=True, slots=True)
class RowFrames:
    """The link between the rows and the frames of one file.

    Attributes:
      table: of the file, with the frames that are left.
      first_frames: int64 `(episodes,)`: the frame of `table` that is frame 0 of each episode; the
        others follow it.
      problems: place of an episode -> what is wrong with it. Its first frame is then anything.
      named: int64 `(n,)`, ascending: places of the episodes whose frames their timestamps name,
        where they do not follow each other.
      rate: frames a second, on average; `None` for a file of one frame.
    """

    table: SampleTable
    first_frames: Integers
    problems: dict[int, str]
    named: Integers
    rate: float | None


def link_rows(
    table: SampleTable,
    *,
    episodes: Integers,
    starts: Seconds,
    lengths: Integers,
    fps: float,
    read_timestamps: ReadTimestamps,
) -> RowFrames:
    """Links the rows of the episodes of a file to its frames.

    Args:
      table: of the file.
      episodes: int64 `(n,)`: positions in the episode table, in the order of rows.
      starts: float64 `(n,)`, seconds: where each should start in the file.
      lengths: int64 `(n,)`: rows of each.
      fps: of the dataset.
      read_timestamps: called for the episodes of a file that has more frames than rows, if it does.
        A `DatasetFormatError` becomes the problem of the episodes that need them.

    Raises:
      LeRobotGrainError: any other that `read_timestamps` raises.
    """
    times = table.times_seconds()
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    order = np.argsort(starts, kind="stable")
    counted = np.empty(len(starts), np.int64)
    counted[order] = np.cumsum(lengths[order]) - lengths[order]
    nearest = table.frame_at(starts)
    tolerance = max(
        _LEAST_TOLERANCE_SECONDS, min(_START_TOLERANCE_SECONDS, _START_TOLERANCE_FRAMES / fps)
    )
    is_at_frame = np.abs(times[nearest] - starts) <= tolerance
    is_rate_right = abs(times[-1] - times[0] - (len(times) - 1) / fps) <= 0.5 / fps
    if len(times) == lengths.sum():
        are_right = is_at_frame.all() and is_rate_right
        is_ordered = bool((np.diff(order) > 0).all()) or _are_where_counted(
            starts, counted, times, fps
        )
        if np.array_equal(counted, nearest) or not (
            are_right or not is_ordered or (np.diff(starts[order]) == 0).any()
        ):
            return RowFrames(table, counted, {}, np.zeros(0, np.int64), rate)
    link = _Linker(_FileTimes(table, times, fps, rate), nearest, starts, lengths)
    link.check_starts(is_at_frame, is_rate_right=is_rate_right)
    undecided = np.array(
        [i for i in np.flatnonzero(link.available >= lengths).tolist() if i not in link.problems],
        np.int64,
    )
    if (link.available[undecided] > lengths[undecided]).any():
        for i, timestamps in zip(
            undecided.tolist(), _timestamps_of(episodes[undecided], read_timestamps), strict=True
        ):
            link.name_frames(i, timestamps)
    return link.result()


def _are_where_counted(starts: Seconds, counted: Integers, times: Seconds, fps: float) -> bool:
    """Returns whether starts are, to a frame, those of the frames that they are counted to have, by
    the times of the frames or computed from rows.
    """
    return bool(
        (np.abs(starts - times[counted]) * fps <= 1).all()
        or (np.abs(starts - counted / fps) * fps <= 1).all()
    )


def _timestamps_of(
    episodes: Integers, read: ReadTimestamps
) -> list[npt.NDArray[np.floating[Any]] | DatasetFormatError | None]:
    """Returns of each episode its timestamps, or why they cannot be read."""
    try:
        return [*read(episodes)]
    except DatasetFormatError as error:
        if len(episodes) == 1:
            return [error]
        return [
            found
            for i in range(len(episodes))
            for found in _timestamps_of(episodes[i : i + 1], read)
        ]


class _FileTimes(NamedTuple):
    """When the frames of a file come.

    Attributes:
      table: of the file.
      times: float64 `(frames,)`, seconds.
      fps: of the dataset.
      rate: of the file, as of `RowFrames`.
    """

    table: SampleTable
    times: Seconds
    fps: float
    rate: float | None


class _Linker:
    """The link while it is made; episodes are called by their place in the file."""

    def __init__(
        self,
        file: _FileTimes,
        firsts: Integers,
        starts: Seconds,
        lengths: Integers,
    ) -> None:
        self._file = file
        self._firsts = firsts
        self._starts = starts
        self._lengths = lengths
        self._stops = frames_until(firsts, len(file.times))
        self.available = self._stops - firsts
        self.problems: dict[int, str] = {}
        # frames of the rows, where they do not follow each other
        self._named: dict[int, Integers] = {}

    def check_starts(self, is_at_frame: npt.NDArray[np.bool_], *, is_rate_right: bool) -> None:
        """Finds the episodes that do not start at a frame, or of which there are fewer frames than
        rows.
        """
        are_lacking = bool((self.available < self._lengths).any())
        # As many frames as rows, and yet two episodes start at one frame: then the others may start
        # anywhere.
        is_contradictory = (
            bool((self.available == 0).any()) and len(self._file.times) == self._lengths.sum()
        )
        for i in range(len(self._firsts)):
            start = self._starts[i]
            first = self._file.times[self._firsts[i]]
            last = self._file.times[-1]
            if not is_at_frame[i]:
                self.problems[i] = (
                    f"it should start at {start:.6f} s, but the nearest of the "
                    f"{len(self._file.times)} frames is at {first:.6f} s and the last one at "
                    f"{last:.6f} s{self._other_rate()}"
                )
            elif self.available[i] < self._lengths[i]:
                until = (
                    "the file ends"
                    if self._stops[i] == len(self._file.times)
                    else "the next episode starts"
                )
                self.problems[i] = (
                    f"it has {self._lengths[i]} rows, but only {self.available[i]} frames from "
                    f"{start:.6f} s until {until}; which frame belongs to which row is not "
                    f"known{self._other_rate()}"
                )
            elif is_contradictory and self.available[i] > self._lengths[i]:
                self.problems[i] = (
                    f"it has {self._lengths[i]} rows, but {self.available[i]} frames from "
                    f"{start:.6f} s on, while two episodes of the file start at one frame; which "
                    "frame belongs to which row is not known"
                )
            elif not is_rate_right and (are_lacking or not is_at_frame.all()):
                # If other starts are wrong, it means nothing that this one falls upon a frame.
                self.problems[i] = (
                    f"the {len(self._file.times)} frames of the file are not one for each of its "
                    f"{self._lengths.sum()} rows, and other episodes of it do not start where "
                    "they should; which frame belongs to which row is not "
                    f"known{self._other_rate()}"
                )

    def name_frames(
        self, i: int, timestamps: npt.NDArray[np.floating[Any]] | DatasetFormatError | None
    ) -> None:
        """Decides which of the frames of an episode are those of its rows."""
        if self.available[i] == self._lengths[i]:
            self._check_counted(i, timestamps)
            return
        more = (
            f"it has {self._lengths[i]} rows and {self.available[i]} frames from "
            f"{self._starts[i]:.6f} s on"
        )
        if timestamps is None:
            self.problems[i] = (
                f"{more}, and no timestamps that would say which frame belongs to which row"
            )
            return
        if isinstance(timestamps, DatasetFormatError):
            self.problems[i] = (
                f"{more}, and the timestamps that would say which frame belongs to which row "
                f"cannot be read: {timestamps}"
            )
            return
        if not (is_finite := np.isfinite(timestamps)).all():
            row = int(np.argmin(is_finite))
            self.problems[i] = (
                f"{more}, and its timestamps should name the frames, but that of row {row} is "
                f"{timestamps[row]}"
            )
            return
        frames = self._frames_at(i, timestamps)
        if frames is None:
            frames = self._frames_numbered(i, np.asarray(timestamps, np.float64), more)
        if frames is not None and (
            frames[-1] - frames[0] != self._lengths[i] - 1 or frames[0] != self._firsts[i]
        ):
            self._named[i] = frames

    def _check_counted(
        self, i: int, timestamps: npt.NDArray[np.floating[Any]] | DatasetFormatError | None
    ) -> None:
        """Finds whether timestamps of an episode with one frame a row name other frames, in a file
        that has more frames than rows.
        """
        if (
            timestamps is None
            or isinstance(timestamps, DatasetFormatError)
            or not np.isfinite(timestamps).all()
        ):
            return
        numbers = _whole_numbers(np.asarray(timestamps, np.float64), self._file.fps)
        if (
            numbers is not None
            and numbers[0] >= 0
            and (np.diff(numbers) > 0).all()
            and self._lengths[i] <= numbers[-1] < len(self._file.times)
        ):
            for each in range(len(self._firsts)):
                self.problems.setdefault(
                    each,
                    f"the file has {len(self._file.times)} frames for {self._lengths.sum()} "
                    f"rows, and the episode that starts at {self._starts[i]:.6f} s has "
                    f"{self._lengths[i]} of both, but the timestamp of its last row names frame "
                    f"{numbers[-1]}; which frame belongs to which row is not known",
                )

    def _frames_at(self, i: int, timestamps: npt.NDArray[np.floating[Any]]) -> Integers | None:
        """Returns the frames at `from_timestamp + timestamp`; `None` where there is not one at
        each, another for each row.
        """
        offsets = np.asarray(timestamps, np.float64)
        targets = self._file.times[self._firsts[i]] + offsets
        frames = self._file.table.frame_at(targets)
        limits = _LEAST_TOLERANCE_SECONDS + np.minimum(
            np.abs(offsets) * _TIMESTAMP_PRECISION, _LARGEST_ERROR_FRAMES / self._file.fps
        )
        is_there = (np.abs(self._file.times[frames] - targets) <= limits).all() and (
            np.diff(frames) > 0
        ).all()
        return (
            frames
            if is_there and frames[0] >= self._firsts[i] and frames[-1] < self._stops[i]
            else None
        )

    def _frames_numbered(self, i: int, timestamps: Seconds, more: str) -> Integers | None:
        """Returns the frames that timestamps name by number, or those that follow each other if
        they are a clock's; `None`: a problem.
        """
        first = self._firsts[i]
        available = self.available[i]
        numbers = _whole_numbers(timestamps, self._file.fps)
        if is_clock := numbers is None or numbers[0] >= available:
            numbers = np.arange(len(timestamps))
            gaps = np.rint(np.diff(timestamps) * self._file.fps) - 1
            if gaps.sum() == available - self._lengths[i]:
                self.problems[i] = (
                    f"{more}, and its timestamps have gaps of as many frames; which frame belongs "
                    "to which row is not known"
                )
                return None
        if numbers[0] < 0 or (np.diff(numbers) <= 0).any():
            k = 0 if numbers[0] < 0 else int(np.argmax(np.diff(numbers) <= 0)) + 1
            self.problems[i] = (
                f"{more}, and its timestamps should name the frames, but that of row {k} is frame "
                f"{numbers[k]}"
                + (f" after frame {numbers[k - 1]}" if k else "")
                + "; which frame belongs to which row is not known"
            )
            return None
        if numbers[-1] >= available and not self._is_other_rate(int(numbers[-1])):
            self.problems[i] = (
                f"{more}, but the timestamp of its last row names frame {numbers[-1]}; which one "
                "it has is not known"
            )
            return None
        targets = self._file.times[first] + numbers / self._file.fps
        frames = self._file.table.frame_at(targets)
        are_there = (
            frames[-1] < self._stops[i]
            and np.abs(self._file.times[frames] - targets).max() <= _LEAST_TOLERANCE_SECONDS
        )
        if not (np.array_equal(frames, first + numbers) or (are_there and not is_clock)):
            self.problems[i] = (
                f"{more}, which frame belongs to which row is not known{self._other_rate()}"
            )
            return None
        return frames

    def result(self) -> RowFrames:
        is_left = np.ones(len(self._file.times), np.bool_)
        for i, frames in self._named.items():
            is_left[self._firsts[i] : frames[-1]] = False
            is_left[frames] = True
        firsts = self._firsts.copy()
        for i, frames in self._named.items():
            firsts[i] = frames[0]
        table = self._file.table.only(np.flatnonzero(is_left))
        return RowFrames(
            table,
            np.cumsum(is_left)[firsts] - 1,
            self.problems,
            np.array(sorted(self._named), np.int64),
            self._file.rate,
        )

    def _is_other_rate(self, num_frames: int) -> bool:
        return (
            self._file.rate is not None
            and abs(num_frames / self._file.fps - num_frames / self._file.rate)
            > 0.5 / self._file.fps
        )

    def _other_rate(self) -> str:
        """Returns the end of a text, where the rate of the file is not that of the dataset."""
        if self._file.rate is None or not self._is_other_rate(len(self._file.times) - 1):
            return ""
        return (
            f"; the frames of the file come at {self._file.rate:.6g} a second, info.json says fps "
            f"{self._file.fps:g}"
        )


def _whole_numbers(timestamps: Seconds, fps: float) -> Integers | None:
    """Returns the frames, counted from the start of the episode, that timestamps name; `None` where
    they are those of a clock, which name
    none.
    """
    wanted = timestamps * fps
    errors = np.abs(wanted) * _TIMESTAMP_PRECISION
    limit = max(
        _LEAST_TOLERANCE_SECONDS * fps, min(_WHOLE_TOLERANCE_SECONDS * fps, _WHOLE_TOLERANCE_FRAMES)
    )
    whole = np.rint(wanted)
    if errors.max() > _LARGEST_ERROR_FRAMES or (np.abs(wanted - whole) > limit + errors).any():
        return None
    return whole.astype(np.int64)


def frames_until(first_frames: Integers, num_frames: int) -> Integers:
    """Returns int64 `(n,)`: the frame after the last one of each episode of a file that has
    `num_frames`, given the first ones.
    """
    # Episodes of a file follow each other in the order of from_timestamp, which is the order of
    # their rows in every file seen.
    by_start = np.argsort(first_frames, kind="stable")
    stops = np.empty(len(first_frames), np.int64)
    stops[by_start] = np.append(first_frames[by_start][1:], num_frames)
    return stops
