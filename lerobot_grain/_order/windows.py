"""Windows: delta timestamps -> offsets in frames -> frames of the episode, with a pad mask.

Arithmetic only, before any byte is read.

A delta timestamp is a distance in seconds from the anchor (the row that an example is "at"); times
fps it must be a whole number of frames. Frames before the first or after the last one of the
episode are clamped to it and marked in the mask: `is_pad` true. That is what the map-style reader
of lerobot does, for low-dimensional features and cameras alike; there is no limit on the size of a
delta.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers, read_only
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.seconds import check_tolerance, offsets_of

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NamedFrames:
    """The frames of a window with a name: of one request, or of those of a block.

    Attributes:
      outputs: key in examples -> feature key.
      frames: int64 `([examples,] time)`, frames of the episode.
      is_pad: bool, of the same shape.
      seconds: float32, of the same shape: distance of the frame from the anchor.
      has_time: whether values have the time axis in examples; else `time` is 1, and they have not.
      stays: bool `([examples,])`: whether many examples have this frame, so that it is to be kept.
    """

    outputs: Mapping[str, str]
    frames: Integers
    is_pad: Mask
    seconds: npt.NDArray[np.float32]
    has_time: bool
    stays: Mask

    def __getitem__(self, examples: slice | int) -> NamedFrames:
        return replace(
            self,
            frames=self.frames[examples],
            is_pad=self.is_pad[examples],
            seconds=self.seconds[examples],
            stays=np.asarray(self.stays[examples]),
        )

    @property
    def form(self) -> tuple[Any, ...]:
        """The things that examples of one batch have in common."""
        return tuple(self.outputs.items()), self.frames.shape[-1], self.has_time


class Output(NamedTuple):
    """Values of a feature that examples have under one key.

    Attributes:
      key: in examples.
      frames: int64 `(examples, time)`, frames of the episode.
      has_time: whether values have the time axis; else `time` is 1.
      columns: where the frames are among those of all outputs of the feature.
      stays: as of `NamedFrames`; `None`: of none.
    """

    key: str
    frames: Integers
    has_time: bool
    columns: slice
    stays: Mask | None = None


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
      named: name -> window with a name, as `DeltaTimestamps` makes them.
    """

    row: int
    episode: int
    frame: int
    frames: Mapping[str, Integers]
    is_pad: Mapping[str, Mask]
    named: Mapping[str, NamedFrames] = field(default_factory=dict)


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
      named: name -> window with a name.
    """

    episodes: Integers
    anchor_frames: Integers
    frames: Mapping[str, Integers]
    is_pad: Mapping[str, Mask]
    named: Mapping[str, NamedFrames] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, examples: slice) -> WindowBlock:
        cut: dict[int, Integers] = {id(window): window[examples] for window in self.frames.values()}
        return WindowBlock(
            self.episodes[examples],
            self.anchor_frames[examples],
            {key: cut[id(window)] for key, window in self.frames.items()},
            {key: mask[examples] for key, mask in self.is_pad.items()},
            {name: window[examples] for name, window in self.named.items()},
        )

    def outputs_of(self, feature: str) -> list[Output]:
        """Returns everything that examples have of a feature: under its own key, and in windows
        with names.
        """
        own = self.frames.get(feature)
        found = [
            Output(
                feature,
                self.anchor_frames[:, None] if own is None else own,
                own is not None,
                slice(0, 1 if own is None else own.shape[1]),
            )
        ]
        for window in self.named.values():
            for key, of_feature in window.outputs.items():
                if of_feature == feature:
                    begin = found[-1].columns.stop
                    columns = slice(begin, begin + window.frames.shape[1])
                    found.append(Output(key, window.frames, window.has_time, columns, window.stays))
        return found

    def outputs_of_all(self, features: Iterable[str]) -> list[tuple[str, Output]]:
        """Returns the outputs of features, each with the key of the feature."""
        return [(key, output) for key in features for output in self.outputs_of(key)]

    def frames_of(self, feature: str) -> Integers:
        """Returns the frames of all outputs of a feature next to each other, int64 `(examples,
        time)`.
        """
        found = [output.frames for output in self.outputs_of(feature)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def window_values(self, mask_keys: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
        """Returns what examples have of windows besides the values: masks, and of those with names
        the seconds.

        Args:
          mask_keys: feature key or name of a window -> key of its mask.
        """
        found: dict[str, npt.NDArray[Any]] = {
            mask_keys[feature]: mask for feature, mask in self.is_pad.items()
        }
        for name, window in self.named.items():
            for key, values in (
                (mask_keys[name], window.is_pad),
                (f"{name}_seconds", window.seconds),
            ):
                found[key] = values if window.has_time else values[:, 0]
        return found


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
    def frames_by_key(self) -> dict[str, list[int]]:
        """Feature key -> distances of its window, in frames."""
        return {key: offsets.tolist() for key, offsets in self._offsets.items()}

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
        {name: _stacked([request.named[name] for request in requests]) for name in first.named},
    )


def _stacked(windows: Sequence[NamedFrames]) -> NamedFrames:
    """Returns windows of one name and form, of single requests, as that of a block."""
    return replace(
        windows[0],
        frames=np.stack([window.frames for window in windows]),
        is_pad=np.stack([window.is_pad for window in windows]),
        seconds=np.stack([window.seconds for window in windows]),
        stays=np.stack([window.stays for window in windows]),
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
    windows = {**block.frames, **{name: window.frames for name, window in block.named.items()}}
    if empty := [key for key, window in windows.items() if window.shape[1] == 0]:
        return 0, f"the window of {empty[0]!r} is empty; expected at least one frame"
    no_episode = positions < 0
    stops = lengths[np.where(no_episode, 0, positions)]
    is_bad = no_episode | (block.anchor_frames < 0) | (block.anchor_frames >= stops)
    for window in windows.values():
        is_bad |= ((window < 0) | (window >= stops[:, None])).any(axis=1)
    if not is_bad.any():
        return None
    index = int(np.argmax(is_bad))
    episode = block.episodes.item(index)
    if no_episode[index]:
        return index, f"there is no episode {episode}; the dataset has episodes {shown_episodes}"
    asked = {"frame": block.anchor_frames[index : index + 1]} | {
        f"{'named' if key in block.named else 'frames'}[{key!r}]": window[index]
        for key, window in windows.items()
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
    return (
        one.frames.keys() == other.frames.keys()
        and all(len(window) == len(other.frames[key]) for key, window in one.frames.items())
        and one.named.keys() == other.named.keys()
        and all(window.form == other.named[name].form for name, window in one.named.items())
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
    check_tolerance(tolerance_seconds)
    offsets = {}
    for key, deltas in delta_timestamps.items():
        subject = f"delta_timestamps[{key!r}]"
        if key not in known_keys:
            raise InvalidRequestError(
                f"{subject}: no such feature is read; there are {', '.join(known_keys)}"
            )
        offsets[key] = offsets_of(subject, deltas, fps=fps, tolerance_seconds=tolerance_seconds)
    return WindowOffsets(offsets)


def mask_keys(
    windows: Iterable[str],
    named: Mapping[str, Mapping[str, str]],
    *,
    selected: Collection[str],
    pad_keys: Mapping[str, str],
) -> dict[str, str]:
    """Returns windowed feature, or name of a window -> the key that the mask of its window has in
    examples: `{key}_is_pad`, or what `pad_keys` says.

    Args:
      windows: keys of the features with windows.
      named: name of a window -> key of its values in examples -> feature key.
      selected: keys of examples: features and texts.
      pad_keys: feature key, or name of a window -> key of its mask.

    Raises:
      InvalidRequestError: a mask, or the values of a window with a name, would have the key of
        something else that is in examples, or the feature of such a window is not selected.
    """
    taken = {key: f"the feature {key!r}, which is selected," for key in selected}
    for name, outputs in named.items():
        if unread := [key for key in outputs.values() if key not in selected]:
            raise InvalidRequestError(
                f"windows[{name!r}]: {unread[0]!r} is not among features=; there are "
                f"{', '.join(selected)}"
            )
        for key in (*outputs, f"{name}_seconds"):
            if key in taken:
                raise InvalidRequestError(
                    f"windows[{name!r}]: its values and {taken[key]} would both be {key!r} in "
                    "examples; give the window another name"
                )
            taken[key] = f"the values of windows[{name!r}]"
    masks: dict[str, str] = {}
    for key in (*windows, *named):
        mask = pad_keys.get(key, f"{key}_is_pad")
        if mask in taken:
            of_argument = "windows" if key in named else "delta_timestamps"
            subject = (
                f"pad_keys={{{key!r}: {mask!r}}}" if key in pad_keys else f"{of_argument}[{key!r}]"
            )
            is_feature = taken[mask].startswith("the feature")
            raise InvalidRequestError(
                f"{subject}: the mask of the window of {key!r} and {taken[mask]} would both be "
                f"{mask!r} in examples; give the mask another key, such as pad_keys={{{key!r}: "
                f"{key + '_window_is_pad'!r}}}"
                + (f", or leave {mask!r} out of features=[...]" if is_feature else "")
            )
        masks[key] = mask
        taken[mask] = f"the mask of {key!r}"
    return masks


def checked_pad_keys(
    pad_keys: Mapping[str, str] | None, *, known_keys: Sequence[str] | None
) -> dict[str, str]:
    """Returns what `pad_keys=` says.

    Args:
      known_keys: of features with windows, and names of windows; `None`: they are not known.

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
        if known_keys is not None and key not in known_keys:
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
