"""Draws of one frame from the future of an episode: a goal.

A draw is made with one 64-bit word, which a stream of Philox gives for the example's position and
the name of the window (`words_of`). So it is the same on every machine, on resume, and on any
number of shards; and it is known as far ahead as the order is.

Rules:
* Frames are numbered among those that may be drawn, which follow each other: draws are integers
  below their count. If there is none, the caller takes the last frame of the episode.
* Everything is computed with integers: a float could round differently on another machine.

People hold checkpoints of streams with draws, so they cannot change:
docs/architecture/order.md, "Draws".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lerobot_grain._base.arrays import Integers, read_only, short_hash
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.philox import Stream, Words, below, words_at
from lerobot_grain._order.seconds import is_seconds, whole_frames

_MAX_WORD = (1 << 64) - 1
# Powers of 1 - 1 / mean are computed with so many bits, so that their last 64 are right even after
# 2**63 steps of rounding down.
_POWER_BITS = 128


@dataclass(frozen=True, slots=True)
class UniformDraw:
    """Each frame between two times after the row of the example, both included, with the same
    probability.

    Frames after the end of the episode are not drawn. If all are after it, the last frame of
    the episode is taken, and its mask is true.

    Attributes:
      from_seconds, to_seconds: whole frames, 0 <= from_seconds <= to_seconds.

    Raises:
      InvalidRequestError: they are not such numbers. (Whether they are whole frames is known, and
        said, where the dataset is.)
    """

    from_seconds: float
    to_seconds: float

    def __post_init__(self) -> None:
        for name in ("from_seconds", "to_seconds"):
            if not is_seconds(value := getattr(self, name)) or value < 0:
                raise InvalidRequestError(
                    f"UniformDraw({name}={value!r}): expected a finite number of seconds >= 0"
                )
        if self.from_seconds > self.to_seconds:
            raise InvalidRequestError(
                f"UniformDraw({self.from_seconds!r}, {self.to_seconds!r}): from_seconds is after "
                "to_seconds; expected from_seconds <= to_seconds"
            )


@dataclass(frozen=True, slots=True)
class GeometricDraw:
    """The frame n frames after the row of the example with probability (1 - p)^(n - 1) p, n = 1, 2,
    ..., where p is one frame divided by the mean: a discounted future state.

    A draw after the end of the episode gives its last frame. If the row of the example is the last
    frame itself, that is taken, and its mask is true.

    Attributes:
      mean_seconds: of the distance in an episode that does not end; at least one frame.

    Raises:
      InvalidRequestError: it is not a finite number > 0.
    """

    mean_seconds: float

    def __post_init__(self) -> None:
        if not is_seconds(self.mean_seconds) or self.mean_seconds <= 0:
            raise InvalidRequestError(
                f"GeometricDraw(mean_seconds={self.mean_seconds!r}): expected a finite number of "
                "seconds > 0"
            )


@dataclass(frozen=True, slots=True)
class LastFrame:
    """The last frame of the episode; its mask is true where the row of the example is that."""


Draw = UniformDraw | GeometricDraw | LastFrame


@dataclass(frozen=True, slots=True)
class FrameDraw:
    """A draw in frames.

    Attributes:
      first: distance from the row of the example to the first frame that may be drawn.
      last: the same of the last one; `None`: the last frame of the episode.
      thresholds: uint64 `(n,)`, of `GeometricDraw`.
      is_last: whether it is always the last of the frames that may be drawn.
    """

    first: int
    last: int | None
    thresholds: Words | None = None
    is_last: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """The draw for JSON."""
        thresholds = self.thresholds
        return {
            "first": self.first,
            "last": self.last,
            "is_last": self.is_last,
            "thresholds": None if thresholds is None else short_hash(thresholds),
        }

    def drawn(self, words: Words, counts: Integers) -> Integers:
        """Returns which of the frames that may be drawn are drawn, int64 `(n,)`.

        Args:
          words: uint64 `(n,)`.
          counts: int64 `(n,)`, >= 1: how many frames may be drawn.
        """
        if self.is_last:
            return counts - 1
        if self.thresholds is None:
            return below(words, counts)
        found = np.searchsorted(self.thresholds, words, side="right")
        # After the end of the table is the rest of the probability.
        return np.where(found < len(self.thresholds), np.minimum(found, counts - 1), counts - 1)


def frame_draw(
    draw: Draw, *, subject: str, fps: float, tolerance_seconds: float, longest: int
) -> FrameDraw:
    """Returns a draw in frames.

    Args:
      draw: in seconds.
      subject: names it in messages.
      fps, tolerance_seconds: as of `window_offsets`.
      longest: frames of the longest episode.

    Raises:
      InvalidRequestError: times are not whole numbers of frames within `tolerance_seconds`, or the
        mean is less than a frame.
    """
    if isinstance(draw, LastFrame):
        return FrameDraw(1, None, is_last=True)
    if isinstance(draw, UniformDraw):
        first, last = (
            whole_frames(
                f"{subject}: UniformDraw", value, fps=fps, tolerance_seconds=tolerance_seconds
            )
            for value in (draw.from_seconds, draw.to_seconds)
        )
        return FrameDraw(first, last)
    mean = Fraction(float(draw.mean_seconds)) * Fraction(fps)
    if mean < 1 - Fraction(tolerance_seconds) * Fraction(fps):
        raise InvalidRequestError(
            f"{subject}: GeometricDraw(mean_seconds={draw.mean_seconds!r}) is "
            f"{float(mean):.6g} frames at {fps:g} fps; expected at least one frame, "
            f"{1 / fps!r} s"
        )
    return FrameDraw(1, None, geometric_thresholds(max(mean, Fraction(1)), longest - 1))


def geometric_thresholds(mean: Fraction, most: int) -> Words:
    """Returns the thresholds T_n of a geometric draw, uint64 `(n,)`, ascending: n frames ahead, or
    less, are drawn where a word is below T_n.

    Args:
      mean: in frames, >= 1.
      most: how many are needed; fewer, where the rest would all be the same.
    """
    numerator = mean.numerator - mean.denominator
    power = 1 << _POWER_BITS
    found: list[int] = []
    while len(found) < most and (not found or found[-1] < _MAX_WORD):
        power = power * numerator // mean.numerator
        found.append(min(_MAX_WORD, ((1 << _POWER_BITS) - power) >> (_POWER_BITS - 64)))
    return read_only(np.array(found, np.uint64))


def words_of(name: str, positions: Integers, *, seed: int) -> Words:
    """Returns the words with which the frames of the window with a name are drawn, uint64 `(n,)`.

    Args:
      name: of the window.
      positions: int64 `(n,)`, >= 0: own positions of the examples in their dataset's order.
      seed: of that.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    key = int.from_bytes(digest[:8], "little")
    return words_at(positions, Stream.WINDOW, seed=seed, epoch=key)
