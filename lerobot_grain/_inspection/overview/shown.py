"""Values for people to look at: curves, pictures and texts of an example or an episode.

`_inspection/overview/shown_rows` reads them, `_cli/page` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lerobot_grain._inspection.locate import RowLocation

Values = npt.NDArray[Any]

# Numbers of a vector that are shown.
MOST_DIMENSIONS = 32
# Of the longer side of a picture: twice its width on the page, for screens of many pixels.
MOST_PIXELS = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """A numeric feature over time.

    Attributes:
      key: of the feature.
      names: `(dimensions,)`.
      seconds: float64 `(time,)`, ascending, from the row of the example, or from the start of the
        episode.
      values: float64 `(time, dimensions)`, of the first `MOST_DIMENSIONS` names.
      is_pad: bool `(time,)`: past an end of the episode.
    """

    key: str
    names: tuple[str, ...]
    seconds: Values
    values: Values
    is_pad: Values

    @property
    def is_constant(self) -> bool:
        """Whether it is one number that does not change, so that there is no curve to see."""
        return self.values.shape[1] == 1 and bool((self.values == self.values[0]).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Frames of a camera over time.

    Attributes:
      key: of the camera.
      size: (height, width) of the frames as they are read.
      unit: `m` or `mm` of depth; else `None`.
      seconds, is_pad: as of `Curves`.
      frames: uint8 `(time, height, width, 3)`, or float32 `(time, height, width, 1)` for depth;
        larger ones are scaled down to `MOST_PIXELS`.
      depth_limits: the nearest and the farthest depth of the frames as they are read; `None`: there
        is none in them, or they are not depth.
      problem: why there are none, and then all arrays are empty, or why some are left out.
    """

    key: str
    size: tuple[int, int]
    unit: str | None
    seconds: Values
    is_pad: Values
    frames: Values
    depth_limits: tuple[float, float] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An example with its windows, or an episode.

    Attributes:
      row: of the example; `None`: this is an episode.
      episode, length: number of the episode, and its frames.
      frame: of the example, in the episode; `None`: this is an episode.
      curves, pictures: the features over time.
      words: key -> texts, and numbers at one frame.
      places: where rows that are shown are stored: that of the example, or those of an episode's
        pictures.
    """

    row: int | None
    episode: int
    length: int
    frame: int | None
    curves: tuple[Curves, ...]
    pictures: tuple[Pictures, ...]
    words: Mapping[str, str]
    places: tuple[RowLocation, ...]
