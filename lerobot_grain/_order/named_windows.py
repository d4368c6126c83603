"""Windows with a name: values that stand under a key of their own in examples, such as the goal of
an episode next to its present.

    windows={"goal": Window(["observation.images.top", "observation.state"], LastFrame())}

Each has a feature, or several that share its frames, and frames: fixed distances in seconds, as
delta timestamps are, or one frame drawn from the future of the episode (`_order/draws`).

If windows hold valid rows only, distances are treated as in `_order/valid_windows`; draws are
made among the valid frames, as if there were no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._order.draws import (
    Draw,
    FrameDraw,
    GeometricDraw,
    LastFrame,
    UniformDraw,
    frame_draw,
    words_of,
)
from lerobot_grain._order.philox import Words
from lerobot_grain._order.seconds import check_tolerance, offsets_of
from lerobot_grain._order.valid_windows import ValidRuns
from lerobot_grain._order.windows import Mask, NamedFrames, WindowBlock, WindowOffsets


@dataclass(frozen=True, slots=True)
class Window:
    """Values of features at other frames than the row of the example, under a name of their own.

        windows={
            "goal": Window("observation.images.top", UniformDraw(0.5, 2.0)),
            "before": Window(["observation.images.top", "observation.state"], [-0.5]),
        }

    Examples have them under the name, or, where `features` is a list, under `{name}.{feature}`.
    With them come `{name}_is_pad`, true where the frame is not the one that was asked for,
    because the episode has none there, and `{name}_seconds`, float32: how long after the row of the
    example the frame is. Values of a draw have no time axis; those of a list of seconds have one,
    also for a list of one.

    Attributes:
      features: key of a feature, or a list of several, which then have the same frames.
      frames: distances in seconds from the row of the example, or `UniformDraw`, `GeometricDraw` or
        `LastFrame`.

    Raises:
      InvalidRequestError: `features` is no key and no list of some, each once; or `frames` is
        neither a list nor a draw. (Whether seconds are whole frames is known, and said, where the
        dataset is.)
    """

    features: str | Sequence[str]
    frames: Sequence[float] | Draw

    def __post_init__(self) -> None:
        frames = self.frames
        is_list = isinstance(frames, Iterable) and not isinstance(frames, str)
        if not is_list and not isinstance(frames, Draw):
            raise InvalidRequestError(
                f"Window(frames={frames!r}): expected a list of seconds, such as [0.0], or a draw: "
                "UniformDraw(0.5, 2.0), GeometricDraw(2.0) or LastFrame()"
            )
        features = self.features
        if isinstance(features, str):
            return
        if (
            not isinstance(features, Sequence)
            or not features
            or not all(isinstance(key, str) for key in features)
            or len(set(features)) < len(features)
        ):
            raise InvalidRequestError(
                f"Window(features={features!r}): expected the key of a feature, or a list of "
                "different ones"
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the features."""
        return (self.features,) if isinstance(self.features, str) else tuple(self.features)

    def outputs(self, name: str) -> dict[str, str]:
        """Returns key in examples -> feature key, of the window with a name."""
        if isinstance(self.features, str):
            return {name: self.features}
        return {f"{name}.{key}": key for key in self.features}


class NamedWindows:
    """The windows with names of a dataset, in frames. Immutable.

    Args:
      windows: by name.
      fps: of the dataset.
      tolerance_seconds: as of `window_offsets`.
      known_keys: of the features that are read.
      longest: frames of the longest episode.

    Attributes:
      outputs: name -> key in examples -> feature key.

    Raises:
      InvalidRequestError: a name is that of a feature or no text, a feature is not among
        `known_keys`, or times are not whole frames.
    """

    def __init__(
        self,
        windows: Mapping[str, Window],
        *,
        fps: float,
        tolerance_seconds: float,
        known_keys: Sequence[str],
        longest: int,
    ) -> None:
        check_tolerance(tolerance_seconds)
        check_windows(windows, known_keys)
        self._fps = fps
        self.outputs = {name: window.outputs(name) for name, window in windows.items()}
        offsets: dict[str, Integers] = {}
        self._draws: dict[str, FrameDraw] = {}
        for name, window in windows.items():
            subject = f"windows[{name!r}]"
            if isinstance(window.frames, UniformDraw | GeometricDraw | LastFrame):
                self._draws[name] = frame_draw(
                    window.frames,
                    subject=subject,
                    fps=fps,
                    tolerance_seconds=tolerance_seconds,
                    longest=longest,
                )
            else:
                offsets[name] = offsets_of(
                    subject, window.frames, fps=fps, tolerance_seconds=tolerance_seconds
                )
        self._offsets = WindowOffsets(offsets)

    @property
    def lengths(self) -> dict[str, int | None]:
        """Name -> frames of the window; `None` of a draw, whose values have no time axis."""
        fixed = self._offsets.lengths
        return {name: fixed.get(name) for name in self.outputs}

    @property
    def definition(self) -> dict[str, Any]:
        """Name -> keys, and the distances in frames or the draw, for JSON: windows that are equal
        in it have equal frames.
        """
        fixed = self._offsets.frames_by_key
        return {
            name: {
                "outputs": outputs,
                "frames": fixed[name] if name in fixed else self._draws[name].definition,
            }
            for name, outputs in self.outputs.items()
        }

    @property
    def random_names(self) -> tuple[str, ...]:
        """Names of the windows whose frames depend on the position."""
        return tuple(name for name, draw in self._draws.items() if not draw.is_last)

    def frames(
        self,
        block: WindowBlock,
        *,
        first_rows: Integers,
        lengths: Integers,
        positions: Integers | None,
        seed: int,
        valid: ValidRuns | None,
    ) -> dict[str, NamedFrames]:
        """Returns the frames of the windows, by name.

        Args:
          block: the examples.
          first_rows, lengths: int64 `(examples,)`: row of frame 0 of the episode of each, and its
            frames.
          positions: int64 `(examples,)`: own positions of the examples in their dataset's order;
            `None`: there are no `random_names`.
          seed: of that order.
          valid: which rows windows may hold; `None`: all.
        """
        fixed = self._offsets.block(
            episodes=block.episodes, frames=block.anchor_frames, lengths=lengths
        )
        if valid is not None:
            fixed = valid.padded(fixed, first_rows)
        nowhere = np.zeros(len(block), np.bool_)
        found = {
            name: (fixed.frames[name], fixed.is_pad[name], nowhere) for name in self._offsets.keys
        }
        last_rows = first_rows + lengths - 1
        rows = first_rows + block.anchor_frames
        for name, draw in self._draws.items():
            words = (
                np.zeros(len(block), np.uint64)
                if draw.is_last or positions is None
                else words_of(name, positions, seed=seed)
            )
            drawn, is_pad, stays = _draw(draw, words, rows, last_rows, valid)
            found[name] = (drawn - first_rows)[:, None], is_pad[:, None], stays
        anchors = block.anchor_frames[:, None]
        return {
            name: NamedFrames(
                outputs=outputs,
                frames=found[name][0],
                is_pad=found[name][1],
                seconds=((found[name][0] - anchors) / self._fps).astype(np.float32),
                has_time=name not in self._draws,
                stays=found[name][2],
            )
            for name, outputs in self.outputs.items()
        }


def check_windows(windows: Mapping[str, Window], known_keys: Sequence[str]) -> None:
    """Checks the names of windows and the features that they are of.

    Raises:
      InvalidRequestError: as of `NamedWindows`.
    """
    if not isinstance(windows, Mapping):
        raise InvalidRequestError(
            f"windows={windows!r}: expected a mapping, such as {{'goal': "
            "Window('observation.state', LastFrame())}"
        )
    for name, window in windows.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(
                f"windows[{name!r}]: expected the name of the window, a text that is not empty"
            )
        if not isinstance(window, Window):
            raise InvalidRequestError(
                f"windows[{name!r}] is {window!r}; expected a Window, such as "
                "Window('observation.state', LastFrame())"
            )
        if name in known_keys:
            raise InvalidRequestError(
                f"windows[{name!r}]: there is a feature {name!r}; give the window another name"
            )
        if unknown := [key for key in window.keys if key not in known_keys]:
            raise InvalidRequestError(
                f"windows[{name!r}]: no feature {unknown[0]!r} is read; there are "
                f"{', '.join(known_keys)}"
            )


def _draw(
    draw: FrameDraw, words: Words, rows: Integers, last_rows: Integers, valid: ValidRuns | None
) -> tuple[Integers, Mask, Mask]:
    """Draws rows of the episodes of examples.

    Args:
      draw: in frames.
      words: uint64 `(examples,)`.
      rows, last_rows: int64 `(examples,)`: of the example, and the last one of its episode.
      valid: which rows may be drawn; `None`: all.

    Returns:
      int64 `(examples,)`, the rows; bool, whether there was none to draw; bool, whether it is the
      last of those that may be drawn up to the end of the episode.
    """
    ends = last_rows if draw.last is None else np.minimum(rows + draw.last, last_rows)
    if valid is None:
        starts = rows + draw.first
        counts = ends + 1 - starts
        there = np.where(counts > 0, starts + draw.drawn(words, np.maximum(counts, 1)), ends)
    else:
        # The same among the valid rows, by their numbers.
        starts = valid.numbers_of(rows + draw.first)
        counts = valid.numbers_of(ends + 1) - starts
        numbers = starts + draw.drawn(words, np.maximum(counts, 1))
        # If there is none, the nearest one on the way to the example; else its own row.
        there = np.maximum(valid.last_before(ends + 1), rows)
        has_some = counts > 0
        there[has_some] = valid.rows_of(numbers[has_some])
    if draw.last is not None:
        # Rows of one clip need it, or of few.
        return there, counts <= 0, np.zeros(len(rows), np.bool_)
    is_end = there == last_rows if valid is None else there == valid.last_before(last_rows + 1)
    return there, counts <= 0, is_end
