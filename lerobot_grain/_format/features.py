"""One feature of `meta/info.json`: its dtype and shape, and what is said of the frames of a
camera. Pure.

Features as lerobot's `feature_utils.py` describes them, read as real files have them: camera shapes
may be `(channels, height, width)`, and what is said of a camera's video stands under `info`, under
`video_info`, or under both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lerobot_grain._base.arguments import is_int
from lerobot_grain._base.errors import DatasetFormatError, short_repr

# Dtypes of low-dimensional features, by their names in info.json, which are NumPy's.
NUMERIC_DTYPES = frozenset(
    (
        "bool",
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ),
)

# Far above all that is real; below, what is made of a description stays small: an array of a frame.
_MAX_DIMENSIONS = 32
_MAX_VALUES = 1 << 31
_MAX_GOP_LENGTH = 1 << 20

# Frames have so many channels: gray, RGB, or with alpha.
_CHANNELS = (1, 3, 4)

# The key under which examples have the text of their task, whatever the columns are called.
TASK_KEY = "task"

_MAX_METERS = 1e6

# The keys of a camera's description that say how its frames are coded: newer recorders use the
# first.
_ENCODINGS = ("info", "video_info")
_DEPTH_MARKS = ("is_depth_map", "video.is_depth_map")


@dataclass(frozen=True, slots=True)
class Depth:
    """The meaning of the values of a depth camera (`DepthEncoderConfig` of lerobot 0.6, with its
    defaults).

    Video holds codes of 12 bits: 0 is `min_meters`, 4095 is `max_meters`, and between them the
    depth plus `shift_meters` grows by equal factors, or the depth by equal steps. Embedded images
    hold depths as they are.

    Attributes:
      unit: `m` or `mm`: of the frames of examples, and of the dataset's statistics.
      min_meters, max_meters: of the codes.
      shift_meters: see above.
      is_logarithmic: whether it is factors, and not steps.
    """

    unit: str = "mm"
    min_meters: float = 0.01
    max_meters: float = 10.0
    shift_meters: float = 3.5
    is_logarithmic: bool = True


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of the dataset.

    Attributes:
      key: its name, such as `observation.state`.
      dtype: as in info.json: a NumPy dtype, `string`, `image`, `video` or `language`.
      shape: of one frame: as declared for low-dimensional features, `(height, width, channels)` for
        cameras.
      names: names of the components where they are given as one list, else `None`.
      depth: of a depth camera, what its values mean; else `None`.
      gop_length: frames from key frame to key frame that the recorder asked its encoder for
        (`video.g`); `None` where it is not said.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    depth: Depth | None = None
    gop_length: int | None = None

    @property
    def is_depth(self) -> bool:
        """Whether this is a depth camera."""
        return self.depth is not None

    @property
    def num_channels(self) -> int:
        """Channels of the frames of a camera as they are returned: 1 for depth, 3 for RGB."""
        return 1 if self.is_depth else 3

    @property
    def frame_dtype(self) -> str:
        """NumPy dtype of the frames of a camera as they are given."""
        return "float32" if self.is_depth else "uint8"

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def is_video(self) -> bool:
        return self.dtype == "video"

    @property
    def is_array(self) -> bool:
        """Numbers or bools, which are stored as such."""
        return self.dtype in NUMERIC_DTYPES

    @property
    def is_scalar(self) -> bool:
        """One number a frame: declared with shape `(1,)`, given as a scalar, as lerobot does."""
        return self.shape in ((), (1,))


def parse_feature(key: str, description: object, *, where: str, notes: list[str]) -> Feature:
    """Reads the description of a feature.

    Args:
      key: of the feature.
      description: its value in info.json.
      where: names the file in messages.
      notes: gets what is odd, and does not change what is read.

    Raises:
      DatasetFormatError: it is malformed, or of a kind that is not read.
    """
    if not isinstance(description, dict):
        raise DatasetFormatError(
            f"{where}: feature {key!r} is {short_repr(description)}; expected an object with "
            "dtype and shape"
        )
    dtype = description.get("dtype")
    if not isinstance(dtype, str) or (
        dtype not in NUMERIC_DTYPES and dtype not in ("string", "image", "video", "language")
    ):
        raise DatasetFormatError(
            f"{where}: feature {key!r} has dtype {short_repr(dtype)}; expected a NumPy dtype such "
            "as float32, or string, image, video, language"
        )
    shape = _checked_shape(key, description.get("shape"), where)
    names = description.get("names")
    listed = (
        tuple(names)
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
        else None
    )
    if dtype not in ("image", "video"):
        return Feature(key, dtype, tuple(shape), listed)
    if len(shape) != 3:
        raise DatasetFormatError(
            f"{where}: camera {key!r} has shape {short_repr(shape)}; expected [height, width, "
            "channels]"
        )
    encoding = _checked_encoding(key, description, where, notes)
    gop_length = encoding.get("video.g")
    return Feature(
        key,
        dtype,
        _channels_last(key, shape, listed, notes),
        listed,
        depth=_depth(key, encoding, where) if _is_depth(key, description, where, notes) else None,
        gop_length=gop_length
        if type(gop_length) is int and 1 <= gop_length <= _MAX_GOP_LENGTH
        else None,
    )


def _checked_shape(key: str, shape: object, where: str) -> list[int]:
    if not isinstance(shape, list) or not all(is_int(n, least=0) for n in shape):
        raise DatasetFormatError(
            f"{where}: feature {key!r} has shape {short_repr(shape)}; expected a list of integers "
            ">= 0"
        )
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) > _MAX_VALUES:
        raise DatasetFormatError(
            f"{where}: feature {key!r} has shape {short_repr(shape)}; expected at most "
            f"{_MAX_DIMENSIONS} dimensions and {_MAX_VALUES} values"
        )
    return shape


def camera_encoding(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the description of a camera says of its coded pictures: the fields of `info`,
    and of `video_info` those it has not.

    Nothing is checked: a part that is no object counts as empty.
    """
    newer, older = (
        part if isinstance(part := description.get(name), dict) else {} for name in _ENCODINGS
    )
    return {
        **older,
        **{name: value for name, value in newer.items() if value is not None or name not in older},
    }


def _checked_encoding(
    key: str, description: Mapping[str, Any], where: str, notes: list[str]
) -> dict[str, Any]:
    parts = {name: description[name] for name in _ENCODINGS if description.get(name)}
    for name, part in parts.items():
        if isinstance(part, dict):
            continue
        if name == "info" or len(parts) == 1:
            raise DatasetFormatError(
                f"{where}: camera {key!r} has info {short_repr(part)}; expected an object"
            )
        notes.append(
            f"camera {key!r} has {name} {short_repr(part)}, which is no object; only its info is "
            "used"
        )
    return camera_encoding(description)


def _is_depth(key: str, description: Mapping[str, Any], where: str, notes: list[str]) -> bool:
    """Returns whether one of the marks says that a camera is one of depth, as lerobot looks at
    them: whatever another one says.
    """
    found = False
    for name in _ENCODINGS:
        part = description.get(name)
        marks = {mark: part.get(mark) for mark in _DEPTH_MARKS} if isinstance(part, dict) else {}
        for mark, value in marks.items():
            # lerobot takes what counts as true in Python; of a text that says no the opposite would
            # be meant.
            if isinstance(value, str) and value.lower() == "true":
                notes.append(
                    f"camera {key!r} has {mark} {short_repr(value)} in {name}, a text; it is read "
                    "as a depth camera, as by lerobot"
                )
            elif value and (isinstance(value, str | list | dict) or value != 1):
                raise DatasetFormatError(
                    f"{where}: camera {key!r} has {mark} {short_repr(value)} in {name}; expected "
                    "true or false"
                )
            found = found or bool(value)
    return found


def _depth(key: str, encoding: Mapping[str, Any], where: str) -> Depth:
    defaults = Depth()
    unit = encoding.get("depth_unit", defaults.unit)
    if unit not in ("m", "mm"):
        raise DatasetFormatError(
            f'{where}: depth camera {key!r} has depth_unit {short_repr(unit)}; expected "m" or "mm"'
        )
    low = encoding.get("video.depth_min", defaults.min_meters)
    high = encoding.get("video.depth_max", defaults.max_meters)
    shift = encoding.get("video.shift", defaults.shift_meters)
    is_logarithmic = encoding.get("video.use_log", defaults.is_logarithmic)
    if (
        not all(type(n) in (int, float) and abs(n) <= _MAX_METERS for n in (low, high, shift))
        or not 0 <= low < high
    ):
        raise DatasetFormatError(
            f"{where}: depth camera {key!r} has video.depth_min {short_repr(low)}, "
            f"video.depth_max {short_repr(high)} and video.shift {short_repr(shift)}; expected "
            "numbers of meters, 0 <= depth_min < depth_max"
        )
    if type(is_logarithmic) is not bool or (is_logarithmic and low + shift <= 0):
        raise DatasetFormatError(
            f"{where}: depth camera {key!r} has video.use_log {short_repr(is_logarithmic)}, "
            f"video.depth_min {low} and video.shift {shift}; expected false, or true and "
            "depth_min + shift > 0"
        )
    return Depth(unit, float(low), float(high), float(shift), is_logarithmic)


def _channels_last(
    key: str, shape: list[int], names: tuple[str, ...] | None, notes: list[str]
) -> tuple[int, ...]:
    # Both orders are allowed by lerobot (validate_feature_image_or_video); the names tell, and
    # where there are none, or they cannot be right, the number of channels.
    first = shape[0] in _CHANNELS
    last = shape[2] in _CHANNELS
    channels_first = first and not last
    if names is not None and len(names) == 3:
        said_first = names[0] in ("channel", "channels")
        if first == last or said_first == channels_first:
            channels_first = said_first
        else:
            channels = shape[0] if channels_first else shape[2]
            notes.append(
                f"camera {key!r} has shape {shape} and names {list(names)}, which do not fit; "
                f"read with {channels} channels"
            )
    return (shape[1], shape[2], shape[0]) if channels_first else tuple(shape)
