"""Windows: delta timestamps -> offsets in frames -> frames of the episode, with a pad mask.

Arithmetic only, before any byte is read.

A delta timestamp is a distance in seconds from the anchor (the row that an example is "at"); times
fps it must be a whole number of frames. Frames before the first or after the last one of the
episode are clamped to it and marked in the mask: `is_pad` true. That is what the map-style reader
of lerobot does, for low-dimensional features and cameras alike; there is no limit on the size of a
delta.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers, read_only
from lerobot_grain._base.errors import InvalidRequestError

Mask = npt.NDArray[np.bool_]

# lerobot's default: a delta may be off a whole number of frames by this many seconds.
TOLERANCE_SECONDS = 1e-4
_MAX_OFFSET = 1 << 40


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """The frames that one example needs: its anchor and, for every feature with delta timestamps,
    the frames of its window.

    Attributes:
      row: row of the anchor.
      episode: its episode (the dataset's own number).
      frame: its frame in the episode, from 0.
      frames: feature key -> int64 `(time,)`, frames of the episode in the order of the deltas,
        clamped to the episode.
      is_pad: feature key -> bool `(time,)`, true where the frame was clamped.
    """

    row: int
    episode: int
    frame: int
    frames: Mapping[str, Integers]
    is_pad: Mapping[str, Mask]


@dataclass(frozen=True, slots=True)
class WindowBlock:
    """The requests of several examples that follow each other, as arrays.

    All windows of a feature have the same length.

    Attributes:
      episodes: int64 `(examples,)`, positions in the episode table.
      anchor_frames: int64 `(examples,)`, frames of the anchors in their episodes.
      frames: feature key -> int64 `(examples, time)`, as `WindowRequest.frames`. Features with
        equal windows share the array.
      is_pad: feature key -> bool `(examples, time)`.
    """

    episodes: Integers
    anchor_frames: Integers
    frames: Mapping[str, Integers]
    is_pad: Mapping[str, Mask]

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, examples: slice) -> WindowBlock:
        cut: dict[int, Integers] = {id(window): window[examples] for window in self.frames.values()}
        return WindowBlock(
            self.episodes[examples],
            self.anchor_frames[examples],
            {key: cut[id(window)] for key, window in self.frames.items()},
            {key: mask[examples] for key, mask in self.is_pad.items()},
        )


class WindowOffsets:
    """The offsets of every windowed feature, as `request` and `block` need them. Immutable."""

    def __init__(self, offsets: Mapping[str, Integers]) -> None:
        self._offsets = dict(offsets)
        # Features with equal offsets share the arrays of a request.
        distinct: dict[tuple[int, ...], list[str]] = {}
        for key, values in self._offsets.items():
            distinct.setdefault(tuple(values.tolist()), []).append(key)
        self._distinct = [
            (
                min(values),
                max(values),
                np.array(values, np.int64),
                keys,
                read_only(np.zeros(len(values), np.bool_)),
            )
            for values, keys in distinct.items()
        ]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._offsets)

    @property
    def lengths(self) -> dict[str, int]:
        """Feature key -> frames of its window."""
        return {key: len(offsets) for key, offsets in self._offsets.items()}

    def request(self, *, row: int, episode: int, frame: int, length: int) -> WindowRequest:
        """Returns the windows of the anchor `frame` in an episode of `length` frames."""
        frames: dict[str, Integers] = {}
        is_pad: dict[str, Mask] = {}
        for least, most, values, keys, no_pad in self._distinct:
            wanted = values + frame
            if frame + least >= 0 and frame + most < length:
                mask = no_pad
            else:
                mask = read_only((wanted < 0) | (wanted >= length))
                np.clip(wanted, 0, length - 1, out=wanted)
            wanted.flags.writeable = False
            for key in keys:
                frames[key] = wanted
                is_pad[key] = mask
        return WindowRequest(row, episode, frame, frames, is_pad)

    def block(self, *, episodes: Integers, frames: Integers, lengths: Integers) -> WindowBlock:
        """Returns the windows of anchors.

        Args:
          episodes, frames: int64 `(examples,)`, of the anchors.
          lengths: int64 `(examples,)`, of their episodes.
        """
        windows: dict[str, Integers] = {}
        is_pad: dict[str, Mask] = {}
        for _, _, values, keys, _ in self._distinct:
            wanted = frames[:, None] + values
            clamped = np.clip(wanted, 0, lengths[:, None] - 1)
            mask = wanted != clamped
            for key in keys:
                windows[key] = clamped
                is_pad[key] = mask
        return WindowBlock(episodes, frames, windows, is_pad)


def stack_requests(requests: Sequence[WindowRequest]) -> WindowBlock:
    """Returns the block of requests that fit together (`same_windows`); its episodes are numbers,
    as those of the requests.
    """
    first = requests[0]
    return WindowBlock(
        np.array([request.episode for request in requests], np.int64),
        np.array([request.frame for request in requests], np.int64),
        {key: np.stack([request.frames[key] for request in requests]) for key in first.frames},
        {key: np.stack([request.is_pad[key] for request in requests]) for key in first.is_pad},
    )


def first_invalid(
    block: WindowBlock, positions: Integers, lengths: Integers, *, shown_episodes: str
) -> tuple[int, str] | None:
    """Returns the first request that asks for what is not there, and what that is; `None` if there
    is none.

    Args:
      block: requests that somebody made, with the numbers of their episodes.
      positions: int64 `(examples,)`, where these are in the episode table; -1: they are not.
      lengths: int64 `(episodes,)`, of the episodes of the dataset.
      shown_episodes: which episodes there are, for the message.
    """
    if empty := [key for key, window in block.frames.items() if window.shape[1] == 0]:
        return 0, f"the window of {empty[0]!r} is empty; expected at least one frame"
    no_episode = positions < 0
    stops = lengths[np.where(no_episode, 0, positions)]
    is_bad = no_episode | (block.anchor_frames < 0) | (block.anchor_frames >= stops)
    for window in block.frames.values():
        is_bad |= ((window < 0) | (window >= stops[:, None])).any(axis=1)
    if not is_bad.any():
        return None
    index = int(np.argmax(is_bad))
    episode = block.episodes.item(index)
    if no_episode[index]:
        return index, f"there is no episode {episode}; the dataset has episodes {shown_episodes}"
    asked = {"frame": block.anchor_frames[index : index + 1]} | {
        f"frames[{key!r}]": window[index] for key, window in block.frames.items()
    }
    name, frames = next(
        (name, frames)
        for name, frames in asked.items()
        if ((frames < 0) | (frames >= stops[index])).any()
    )
    return (
        index,
        f"{name} is {frames.tolist()}; expected frames of episode {episode}, which are 0 to "
        f"{stops.item(index) - 1}",
    )


def same_windows(one: WindowRequest, other: WindowRequest) -> bool:
    """Returns whether two requests have windows of the same features and lengths."""
    return one.frames.keys() == other.frames.keys() and all(
        len(window) == len(other.frames[key]) for key, window in one.frames.items()
    )


def window_offsets(
    delta_timestamps: Mapping[str, Sequence[float]],
    *,
    fps: float,
    tolerance_seconds: float,
    known_keys: Sequence[str],
) -> WindowOffsets:
    """Returns the offsets, in frames, of delta timestamps in seconds.

    Raises:
      InvalidRequestError: a key is not in `known_keys`, has no delta, or a delta is not a whole
        number of frames within
      `tolerance_seconds`.
    """
    if not (isinstance(tolerance_seconds, int | float) and 0 <= tolerance_seconds < math.inf):
        raise InvalidRequestError(
            f"tolerance_seconds={tolerance_seconds!r}: expected a number of seconds >= 0"
        )
    offsets = {}
    for key, deltas in delta_timestamps.items():
        if key not in known_keys:
            raise InvalidRequestError(
                f"delta_timestamps[{key!r}]: no such feature is read; there are "
                f"{', '.join(known_keys)}"
            )
        if isinstance(deltas, str) or not isinstance(deltas, Iterable):
            raise InvalidRequestError(
                f"delta_timestamps[{key!r}] is {deltas!r}; expected a list of deltas in seconds, "
                "such as [0.0]"
            )
        deltas = list(deltas)
        if not deltas:
            raise InvalidRequestError(
                f"delta_timestamps[{key!r}] is empty; expected at least one delta in seconds, "
                "such as [0.0]"
            )
        values = [
            _offset(key, delta, fps=fps, tolerance_seconds=tolerance_seconds) for delta in deltas
        ]
        offsets[key] = read_only(np.array(values, np.int64))
    return WindowOffsets(offsets)


def mask_keys(
    windows: Iterable[str], *, selected: Iterable[str], pad_keys: Mapping[str, str]
) -> dict[str, str]:
    """Returns windowed feature -> the key that the mask of its window has in examples:
    `{key}_is_pad`, or what `pad_keys` says.

    Args:
      windows: keys of the features with windows.
      selected: keys of examples: features and texts.
      pad_keys: feature key -> key of its mask.

    Raises:
      InvalidRequestError: a mask would have the key of something else that is in examples.
    """
    masks: dict[str, str] = {}
    taken = set(selected)
    for key in windows:
        mask = pad_keys.get(key, f"{key}_is_pad")
        if mask in taken:
            named = (
                f"pad_keys={{{key!r}: {mask!r}}}"
                if key in pad_keys
                else f"delta_timestamps[{key!r}]"
            )
            other = next(
                (f"the mask of {other!r}" for other, its in masks.items() if its == mask),
                f"the feature {mask!r}, which is selected,",
            )
            raise InvalidRequestError(
                f"{named}: the mask of the window of {key!r} and {other} would both be {mask!r} "
                f"in examples; give the mask another key, such as pad_keys={{{key!r}: "
                f"{key + '_window_is_pad'!r}}}"
                + ("" if mask in masks.values() else f", or leave {mask!r} out of features=[...]")
            )
        masks[key] = mask
        taken.add(mask)
    return masks


def checked_pad_keys(
    pad_keys: Mapping[str, str] | None, *, known_keys: Sequence[str]
) -> dict[str, str]:
    """Returns what `pad_keys=` says.

    Raises:
      InvalidRequestError: it is no mapping of one of `known_keys`, those with windows, to a text
        that is not empty.
    """
    if pad_keys is None:
        return {}
    if not isinstance(pad_keys, Mapping):
        raise InvalidRequestError(
            f"pad_keys={pad_keys!r}: expected a mapping, such as {{'action': "
            f"'action_window_is_pad'}}"
        )
    for key, mask in pad_keys.items():
        if key not in known_keys:
            raise InvalidRequestError(
                f"pad_keys[{key!r}]: there is no window of it; there are those of "
                f"{', '.join(known_keys) or 'no feature'}"
            )
        if not isinstance(mask, str) or not mask:
            raise InvalidRequestError(
                f"pad_keys[{key!r}] is {mask!r}; expected the key that the mask of its window has "
                "in examples"
            )
    return dict(pad_keys)


def _offset(key: str, delta: float, *, fps: float, tolerance_seconds: float) -> int:
    frames = _frames(delta, fps)
    if not math.isfinite(frames):
        raise InvalidRequestError(
            f"delta_timestamps[{key!r}] holds {delta!r}; expected a finite number of seconds"
        )
    offset = round(frames)
    if abs(frames - offset) / fps > tolerance_seconds:
        below = math.floor(frames)
        raise InvalidRequestError(
            f"delta_timestamps[{key!r}]: {float(delta)!r} s is {frames:.6g} frames at {fps:g} "
            "fps; expected a whole number of frames within "
            f"tolerance_seconds={tolerance_seconds:g}. The nearest ones are {below / fps!r} s "
            f"({below} frames) and {(below + 1) / fps!r} s ({below + 1} frames)"
        )
    # Farther than any episode reaches, and far from the end of the integers.
    return max(-_MAX_OFFSET, min(_MAX_OFFSET, offset))


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
