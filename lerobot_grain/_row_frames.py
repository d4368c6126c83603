"""Which frame of a video file belongs to which row of its episodes. Pure, but for the timestamps of rows, which a caller's function reads.

What is known: of each episode its number of rows and the second at which it starts in the file (`from_timestamp`); of the file the time
of every frame. What is not: whether any of these is right. Rates are rounded (29.97 is called 30), starts are computed from rows, rows are
dropped and the video is not cut. So a link is made only where the numbers leave one way to make it; all else is a problem, told by episode.

Rules, in this order:
1. Where a file has exactly one frame for each of its rows, the k-th row has the k-th frame, whatever the times are. Unless the times are
   right in themselves, and contradict that: every episode starts at a frame, the frames come at `fps`, and yet the numbers do not fit.
2. Else an episode starts at the frame at its `from_timestamp`, and where there is none, it is a problem.
3. An episode with as many frames, until the next one starts, as it has rows: the k-th row has the k-th frame. `timestamp` is not looked
   at, since many recorders write the time of a clock there.
4. An episode with more frames than rows: rows or frames were dropped. If its timestamps are whole multiples of 1 / fps they name the
   frames, as they do for lerobot, which takes the frame at `from_timestamp + timestamp`. If they are those of a clock, the k-th row has the
   k-th frame. Where the frames come at another rate, the two differ, and it is a problem unless there is a frame at each of these times.

Frames that no row has, between those of an episode, are hidden (`SampleTable.only`), so that frames of an episode follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._mp4 import SampleTable

Integers = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]
# Episodes, int64 (n,) -> of each the timestamps of its rows, float64 (rows,), or None where the data set has none.
ReadTimestamps = Callable[[Integers], Sequence[npt.NDArray[np.floating[Any]] | None]]

# A start may be off its frame by a millisecond, as which many write it, or by a tenth of a frame where that is less; lerobot's reader
# allows a tenth of a millisecond, which is always allowed.
_START_TOLERANCE_SECONDS, _START_TOLERANCE_FRAMES, _LEAST_TOLERANCE_SECONDS = 1e-3, 0.1, 1e-4
# A timestamp is a whole multiple of 1 / fps if it is as near: half a millisecond, as rounded to milliseconds, and a bit.
_WHOLE_TOLERANCE_SECONDS, _WHOLE_TOLERANCE_FRAMES = 6e-4, 0.05
# Timestamps are float32.
_TIMESTAMP_PRECISION = 1.2e-7


@dataclass(frozen=True, slots=True)
class RowFrames:
    """The link between the rows and the frames of one file.

    Attributes:
      table: of the file, with the frames that are left.
      first_frames: int64 `(episodes,)`: the frame of `table` that is frame 0 of each episode; the others follow it.
      problems: place of an episode -> what is wrong with it. Its first frame is then anything.
      named: int64 `(n,)`, ascending: places of the episodes whose frames their timestamps name, where they do not follow each other.
      rate: frames a second, on average; `None` for a file of one frame.
    """

    table: SampleTable
    first_frames: Integers
    problems: dict[int, str]
    named: Integers
    rate: float | None


def link_rows(
    table: SampleTable, *, episodes: Integers, starts: Seconds, lengths: Integers, fps: float, read_timestamps: ReadTimestamps
) -> RowFrames:
    """Links the rows of the episodes of a file to its frames.

    Args:
      table: of the file.
      episodes: int64 `(n,)`: positions in the episode table, in the order of rows.
      starts: float64 `(n,)`, seconds: where each should start in the file.
      lengths: int64 `(n,)`: rows of each.
      fps: of the data set.
      read_timestamps: called for the episodes of which there are more frames than rows, if any.

    Raises:
      LeRobotGrainError: what `read_timestamps` raises.
    """
    times = table.times_seconds()
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    order = np.argsort(starts, kind="stable")
    counted = np.empty(len(starts), np.int64)
    counted[order] = np.cumsum(lengths[order]) - lengths[order]
    nearest = table.frame_at(starts)
    tolerance = max(_LEAST_TOLERANCE_SECONDS, min(_START_TOLERANCE_SECONDS, _START_TOLERANCE_FRAMES / fps))
    is_at_frame = np.abs(times[nearest] - starts) <= tolerance
    is_rate_right = abs(times[-1] - times[0] - (len(times) - 1) / fps) <= 0.5 / fps
    if len(times) == lengths.sum():
        are_right = is_at_frame.all() and is_rate_right
        if np.array_equal(counted, nearest) or not (are_right or (np.diff(starts[order]) == 0).any()):
            return RowFrames(table, counted, {}, np.zeros(0, np.int64), rate)
    link = _Linker(table, times, nearest, starts, lengths, fps, rate)
    link.check_starts(is_at_frame, is_rate_right=is_rate_right)
    undecided = np.array([i for i in np.flatnonzero(link.available > lengths).tolist() if i not in link.problems], np.int64)
    if len(undecided):
        for i, timestamps in zip(undecided.tolist(), read_timestamps(episodes[undecided]), strict=True):
            link.name_frames(i, timestamps)
    return link.result()


class _Linker:
    """The link while it is made; episodes are called by their place in the file."""

    def __init__(
        self, table: SampleTable, times: Seconds, firsts: Integers, starts: Seconds, lengths: Integers, fps: float, rate: float | None
    ) -> None:
        self._table, self._times, self._firsts, self._starts, self._lengths = table, times, firsts, starts, lengths
        self._fps, self._rate = fps, rate
        self._stops = frames_until(firsts, len(times))
        self.available = self._stops - firsts
        self.problems: dict[int, str] = {}
        self._named: dict[int, Integers] = {}  # frames of the rows, where they do not follow each other

    def check_starts(self, is_at_frame: npt.NDArray[np.bool_], *, is_rate_right: bool) -> None:
        """Finds the episodes that do not start at a frame, or of which there are fewer frames than rows."""
        are_lacking = bool((self.available < self._lengths).any())
        for i in range(len(self._firsts)):
            start, first, last = self._starts[i], self._times[self._firsts[i]], self._times[-1]
            if not is_at_frame[i]:
                self.problems[i] = (
                    f"it should start at {start:.6f} s, but the nearest of the {len(self._times)} frames is at {first:.6f} s and the last "
                    f"one at {last:.6f} s{self._other_rate()}"
                )
            elif self.available[i] < self._lengths[i]:
                until = "the file ends" if self._stops[i] == len(self._times) else "the next episode starts"
                self.problems[i] = (
                    f"it has {self._lengths[i]} rows, but only {self.available[i]} frames from {start:.6f} s until {until}; which frame "
                    f"belongs to which row is not known{self._other_rate()}"
                )
            elif not is_rate_right and (are_lacking or not is_at_frame.all()):
                # Where other starts are wrong, that this one falls upon a frame means nothing.
                self.problems[i] = (
                    f"the {len(self._times)} frames of the file are not one for each of its {self._lengths.sum()} rows, and other episodes "
                    f"of it do not start where they should; which frame belongs to which row is not known{self._other_rate()}"
                )

    def name_frames(self, i: int, timestamps: npt.NDArray[np.floating[Any]] | None) -> None:
        """Decides which of the frames of an episode, of which there are more than rows, are those of the rows."""
        first, length, stop = self._firsts[i], int(self._lengths[i]), self._stops[i]
        more = f"it has {length} rows and {self.available[i]} frames from {self._starts[i]:.6f} s on"
        if timestamps is None:
            self.problems[i] = f"{more}, and no timestamps that would say which frame belongs to which row"
            return
        numbers, is_clock = _numbers_of_frames(timestamps, self._fps)
        if numbers[0] < 0 or (np.diff(numbers) <= 0).any():
            k = 0 if numbers[0] < 0 else int(np.argmax(np.diff(numbers) <= 0)) + 1
            self.problems[i] = (
                f"{more}, and its timestamps should name the frames, but that of row {k} is frame {numbers[k]}"
                + (f" after frame {numbers[k - 1]}" if k else "")
                + "; which frame belongs to which row is not known"
            )
            return
        if first + numbers[-1] >= stop and not self._is_other_rate(int(numbers[-1])):
            self.problems[i] = f"{more}, but the timestamp of its last row names frame {numbers[-1]}; which one it has is not known"
            return
        targets = self._times[first] + numbers / self._fps
        frames = self._table.frame_at(targets)
        counted = first + numbers
        if np.array_equal(frames, counted):
            pass  # by time and by number alike
        elif is_clock or np.abs(self._times[frames] - targets).max() > _LEAST_TOLERANCE_SECONDS or frames[-1] >= stop:
            self.problems[i] = f"{more}, which frame belongs to which row is not known{self._other_rate()}"
            return
        if frames[-1] - frames[0] != length - 1 or frames[0] != first:
            self._named[i] = frames

    def result(self) -> RowFrames:
        is_left = np.ones(len(self._times), np.bool_)
        for i, frames in self._named.items():
            is_left[self._firsts[i] : frames[-1]] = False
            is_left[frames] = True
        firsts = self._firsts.copy()
        for i, frames in self._named.items():
            firsts[i] = frames[0]
        table = self._table.only(np.flatnonzero(is_left))
        return RowFrames(table, np.cumsum(is_left)[firsts] - 1, self.problems, np.array(sorted(self._named), np.int64), self._rate)

    def _is_other_rate(self, num_frames: int) -> bool:
        return self._rate is not None and abs(num_frames / self._fps - num_frames / self._rate) > 0.5 / self._fps

    def _other_rate(self) -> str:
        """Returns the end of a text, where the rate of the file is not that of the data set."""
        if self._rate is None or not self._is_other_rate(len(self._times) - 1):
            return ""
        return f"; the frames of the file come at {self._rate:.6g} a second, info.json says fps {self._fps:g}"


def _numbers_of_frames(timestamps: npt.NDArray[np.floating[Any]], fps: float) -> tuple[Integers, bool]:
    """Returns the frames, counted from the start of the episode, that timestamps name, and whether they are those of a clock, which name
    none: then the k-th row has the k-th frame.
    """
    wanted = np.asarray(timestamps, np.float64) * fps
    whole = np.rint(wanted)
    limit = max(_LEAST_TOLERANCE_SECONDS * fps, min(_WHOLE_TOLERANCE_SECONDS * fps, _WHOLE_TOLERANCE_FRAMES))
    if (np.abs(wanted - whole) <= limit + np.abs(wanted) * _TIMESTAMP_PRECISION).all():
        return whole.astype(np.int64), False
    return np.arange(len(wanted)), True


def frames_until(first_frames: Integers, num_frames: int) -> Integers:
    """Returns int64 `(n,)`: the frame behind the last one of each episode of a file that has `num_frames`, given the first ones."""
    # Episodes of a file follow each other in the order of from_timestamp, which is the order of their rows in every file seen.
    by_start = np.argsort(first_frames, kind="stable")
    stops = np.empty(len(first_frames), np.int64)
    stops[by_start] = np.append(first_frames[by_start][1:], num_frames)
    return stops
