"""Seconds that users give -> whole numbers of frames.

A distance in seconds, times fps, must be a whole number of frames, up to a tolerance. Arithmetic
only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lerobot_grain._base.arrays import Integers, read_only
from lerobot_grain._base.errors import InvalidRequestError

# lerobot's default: a delta may be off a whole number of frames by this many seconds.
TOLERANCE_SECONDS = 1e-4
_MAX_OFFSET = 1 << 40


def check_tolerance(tolerance_seconds: float) -> None:
    """Checks `tolerance_seconds=`."""
    if not (isinstance(tolerance_seconds, int | float) and 0 <= tolerance_seconds < math.inf):
        raise InvalidRequestError(
            f"tolerance_seconds={tolerance_seconds!r}: expected a number of seconds >= 0"
        )


def offsets_of(
    subject: str, deltas: Iterable[float], *, fps: float, tolerance_seconds: float
) -> Integers:
    """Returns the offsets of a window, in frames, int64 `(time,)`.

    Raises:
      InvalidRequestError: as of `window_offsets`; the message begins with `subject`.
    """
    if isinstance(deltas, str) or not isinstance(deltas, Iterable):
        raise InvalidRequestError(
            f"{subject} is {deltas!r}; expected a list of deltas in seconds, such as [0.0]"
        )
    deltas = list(deltas)
    if not deltas:
        raise InvalidRequestError(
            f"{subject} is empty; expected at least one delta in seconds, such as [0.0]"
        )
    values = [
        whole_frames(subject, delta, fps=fps, tolerance_seconds=tolerance_seconds)
        for delta in deltas
    ]
    return read_only(np.array(values, np.int64))


def whole_frames(subject: str, delta: float, *, fps: float, tolerance_seconds: float) -> int:
    """Returns a number of seconds in frames.

    Raises:
      InvalidRequestError: it is not a finite number, or not a whole number of frames.
    """
    frames = _frames(delta, fps)
    if not math.isfinite(frames):
        raise InvalidRequestError(f"{subject} holds {delta!r}; expected a finite number of seconds")
    offset = round(frames)
    if abs(frames - offset) / fps > tolerance_seconds:
        below = math.floor(frames)
        raise InvalidRequestError(
            f"{subject}: {float(delta)!r} s is {frames:.6g} frames at {fps:g} "
            "fps; expected a whole number of frames within "
            f"tolerance_seconds={tolerance_seconds:g}. The nearest ones are {below / fps!r} s "
            f"({below} frames) and {(below + 1) / fps!r} s ({below + 1} frames)"
        )
    # Farther than any episode reaches, and far from the end of the integers.
    return max(-_MAX_OFFSET, min(_MAX_OFFSET, offset))


def is_seconds(value: object) -> bool:
    """Returns whether a value is a finite number of seconds."""
    return math.isfinite(_frames(value, 1.0))


def _frames(delta: object, fps: float) -> float:
    """Returns a delta in frames; NaN for what is not a number of seconds."""
    # NumPy's numbers are welcome (`np.arange(16) / fps`); a bool is a mistake, and so is a
    # timedelta64, an integer to NumPy.
    if isinstance(delta, bool | np.timedelta64) or not isinstance(
        delta, int | float | np.integer | np.floating
    ):
        return math.nan
    try:
        return float(delta) * fps
    except OverflowError:
        return math.nan
