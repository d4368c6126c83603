"""`meta/info.json` -> a typed description of the data set: version, fps, features, file templates.

Pure: bytes in, a frozen value or `DatasetFormatError` out. The format is the one of lerobot 0.4 to 0.6 (v3.x; `DatasetInfo` in its
`datasets/utils.py`, features as in `feature_utils.py`) and of the versions before it (v2.0 and v2.1), read as real files have it: fps may
be a float, unknown keys are ignored, camera shapes may be `(channels, height, width)`.

Where a field cannot be meant as it stands, and it is plain what is meant, that is taken and a note says so. A note never stands for
something that could change a value: that is an error.
"""

from __future__ import annotations

import json
import math
import re
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lerobot_grain._errors import DatasetFormatError, shown

# Dtypes of low-dimensional features, by their names in info.json, which are NumPy's.
NUMERIC_DTYPES = frozenset(
    ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

# lerobot's templates by the major version of the format, for data sets that name none, and the fields of templates that are numbers. Some
# converters leave those of v2.x in info.json. They cannot be meant: the episode table of v3.0 numbers files, not episodes.
_PATHS = {
    2: {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    3: {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
_NUMBERS_OF_TEMPLATES = {2: ("episode_chunk", "episode_index"), 3: ("chunk_index", "file_index")}
_CHUNKS_SIZE = 1000

# Far above all that is real; below, what is made of a description stays small: a path for every file, an array of a frame.
_MAX_KEY_LENGTH, _MAX_TEMPLATE_LENGTH, _MAX_TEMPLATE_FIELDS = 256, 512, 8
_MAX_DIMENSIONS, _MAX_VALUES = 32, 1 << 31
_MIN_FPS, _MAX_FPS = 1e-6, 1e6
_MAX_GOP_LENGTH, _MAX_CHUNKS_SIZE = 1 << 20, 1 << 40

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(\..{0,40})?")

# Pictures have so many channels: grey, RGB, or with alpha.
_CHANNELS = (1, 3, 4)

# The key under which examples have the text of their task, whatever the columns are called.
TASK_KEY = "task"

_MAX_METRES = 1e6


@dataclass(frozen=True, slots=True)
class Depth:
    """What the values of a depth camera mean (`DepthEncoderConfig` of lerobot 0.6, with its defaults).

    Video holds codes of 12 bits: 0 is `min_metres`, 4095 is `max_metres`, and between them the depth plus `shift_metres` grows by equal
    factors, or the depth by equal steps. Embedded pictures hold depths as they are.

    Attributes:
      unit: `m` or `mm`: of the frames of examples, and of the data set's statistics.
      min_metres, max_metres: of the codes.
      shift_metres: see above.
      is_logarithmic: whether it is factors, and not steps.
    """

    unit: str = "mm"
    min_metres: float = 0.01
    max_metres: float = 10.0
    shift_metres: float = 3.5
    is_logarithmic: bool = True


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of the data set.

    Attributes:
      key: its name, such as `observation.state`.
      dtype: as in info.json: a NumPy dtype, `string`, `image`, `video` or `language`.
      shape: of one frame: as declared for low-dimensional features, `(height, width, channels)` for cameras.
      names: names of the components where they are given as one list, else `None`.
      depth: of a depth camera, what its values mean; else `None`.
      gop_length: pictures from key frame to key frame that the recorder asked its encoder for (`video.g`); `None` where it is not said.
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
        """Of the frames of a camera as they are given: 1 for depth, 3 for RGB."""
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


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A checked file template of info.json, such as `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`.

    In v2.x every episode is a file, which has its number: `data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet`.
    """

    text: str

    def path(self, *, chunk_index: int, file_index: int, video_key: str = "") -> str:
        return self.text.format(
            chunk_index=chunk_index, file_index=file_index, episode_chunk=chunk_index, episode_index=file_index, video_key=video_key
        )


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What `meta/info.json` says.

    Attributes:
      codebase_version: such as `v3.0`; 2.0, 2.1 or 3.x.
      fps: frames per second of every feature.
      features: by key, in the order of the file.
      total_episodes, total_frames: as declared; `None` where they are missing. The episode table decides.
      data_path, video_path: templates of the files; `video_path` is `None` for data sets without video.
      robot_type: free text, or `None`.
      splits: name -> text such as `0:50`; a list of such texts as `0:50, 60:80`.
      chunks_size: of v2.x, where each episode is a file: episodes in a folder.
      notes: what was repaired, or is odd, and does not change what is read.
    """

    codebase_version: str
    fps: float
    features: Mapping[str, Feature]
    total_episodes: int | None
    total_frames: int | None
    data_path: PathTemplate
    video_path: PathTemplate | None
    robot_type: str | None
    splits: Mapping[str, str]
    chunks_size: int = _CHUNKS_SIZE
    notes: tuple[str, ...] = ()

    @property
    def major_version(self) -> int:
        """2, where each episode is a file and `meta/` holds lines of JSON, or 3."""
        return _version_numbers(self.codebase_version)[0]


def parse_info(raw: bytes, *, where: str) -> DatasetInfo:
    """Reads `meta/info.json`.

    Args:
      raw: the contents of the file.
      where: names the file in messages, such as `org/name@1a2b3c, meta/info.json`.

    Raises:
      DatasetFormatError: not JSON, not v2.0, v2.1 or v3.x, or a field that is needed is missing or malformed.
    """
    try:
        info = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetFormatError(f"{where}: not valid JSON ({error}); expected the description of a LeRobotDataset") from None
    if not isinstance(info, dict):
        raise DatasetFormatError(f"{where}: found a JSON {type(info).__name__}; expected an object with codebase_version, fps and features")
    version = _check_version(info, where)
    major, _ = _version_numbers(version)
    fps = _fps(info, where)
    notes: list[str] = []
    features = _features(info, where, notes)
    _note_other_rates(info, fps, notes)
    return DatasetInfo(
        codebase_version=version,
        fps=fps,
        features=features,
        total_episodes=_count(info, "total_episodes", where),
        total_frames=_count(info, "total_frames", where),
        data_path=_template(info.get("data_path", _PATHS[major]["data_path"]), "data_path", major, where, notes),
        video_path=_video_path(info, features, major, where, notes),
        robot_type=info.get("robot_type") if isinstance(info.get("robot_type"), str) else None,
        splits=_splits(info, where),
        chunks_size=_chunks_size(info, where) if major == 2 else _CHUNKS_SIZE,
        notes=tuple(notes),
    )


def _check_version(info: Mapping[str, Any], where: str) -> str:
    version = info.get("codebase_version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise DatasetFormatError(f'{where}: codebase_version is {shown(version)}; expected "v3.0"')
    numbers = _version_numbers(version)
    if numbers < (2, 0):
        raise DatasetFormatError(
            f"{where}: this is a LeRobotDataset {version}; expected v2.0, v2.1 or v3.x. Convert it with lerobot's scripts, or look for a "
            "newer revision of it"
        )
    if (2, 1) < numbers < (3, 0) or numbers >= (4, 0):
        raise DatasetFormatError(f"{where}: this is a LeRobotDataset {version}; this version of lerobot_grain reads v2.0, v2.1 and v3.x")
    storage_format = info.get("storage_format")
    if storage_format not in (None, "parquet"):
        raise DatasetFormatError(f"{where}: storage_format is {shown(storage_format)}; only parquet tables with MP4 video are read")
    return version


def _version_numbers(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    assert match is not None
    return int(match[1]), int(match[2])


def _fps(info: Mapping[str, Any], where: str) -> float:
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not (0 < fps <= sys.float_info.max):
        raise DatasetFormatError(f"{where}: fps is {shown(fps)}; expected a number > 0")
    if not _MIN_FPS <= fps <= _MAX_FPS:
        raise DatasetFormatError(f"{where}: fps is {fps}; expected at least {_MIN_FPS:g} and at most {_MAX_FPS:g} frames per second")
    return float(fps)


def _count(info: Mapping[str, Any], field: str, where: str) -> int | None:
    value = info.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf) or value != int(value):
        raise DatasetFormatError(f"{where}: {field} is {shown(value)}; expected an integer >= 0")
    return int(value)


def _chunks_size(info: Mapping[str, Any], where: str) -> int:
    size = _count(info, "chunks_size", where)
    if size is None:
        return _CHUNKS_SIZE
    if not 1 <= size <= _MAX_CHUNKS_SIZE:
        raise DatasetFormatError(f"{where}: chunks_size is {shown(size)}; expected episodes in a folder, such as {_CHUNKS_SIZE}")
    return size


def _splits(info: Mapping[str, Any], where: str) -> Mapping[str, str]:
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise DatasetFormatError(f'{where}: splits is {shown(splits)}; expected an object such as {{"train": "0:50"}}')
    return {name: _split(span) for name, span in splits.items()}


def _split(span: object) -> str:
    if isinstance(span, list) and span and all(isinstance(piece, str) for piece in span):
        return ", ".join(span)
    return span if isinstance(span, str) else shown(span)


def _features(info: Mapping[str, Any], where: str, notes: list[str]) -> Mapping[str, Feature]:
    declared = info.get("features")
    if not isinstance(declared, dict) or not declared:
        raise DatasetFormatError(
            f"{where}: features is {type(declared).__name__}; expected a non-empty object of feature key -> description"
        )
    features = {key: _feature(key, description, where, notes) for key, description in declared.items()}
    if features.pop(TASK_KEY, None) is not None:
        notes.append(f"feature {TASK_KEY!r} is not read: examples have the text from the table of tasks under that key, as in lerobot")
    return features


def _note_other_rates(info: Mapping[str, Any], fps: float, notes: list[str]) -> None:
    rates = {key: description["fps"] for key, description in info["features"].items() if description.get("fps") not in (None, fps)}
    if rates:
        key, rate = next(iter(rates.items()))
        notes.append(
            f"{len(rates)} features have an fps of their own, such as {shown(key)}: {shown(rate)}; it is not used, all have that of the "
            f"data set, {fps:g}"
        )


def _feature(key: str, description: object, where: str, notes: list[str]) -> Feature:
    if len(key) > _MAX_KEY_LENGTH:
        raise DatasetFormatError(f"{where}: feature {shown(key)} has a key of {len(key)} characters; expected at most {_MAX_KEY_LENGTH}")
    if not isinstance(description, dict):
        raise DatasetFormatError(f"{where}: feature {key!r} is {shown(description)}; expected an object with dtype and shape")
    dtype, shape = description.get("dtype"), description.get("shape")
    if not isinstance(dtype, str) or (dtype not in NUMERIC_DTYPES and dtype not in ("string", "image", "video", "language")):
        raise DatasetFormatError(
            f"{where}: feature {key!r} has dtype {shown(dtype)}; expected a NumPy dtype such as float32, or string, image, video, language"
        )
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise DatasetFormatError(f"{where}: feature {key!r} has shape {shown(shape)}; expected a list of integers >= 0")
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) > _MAX_VALUES:
        raise DatasetFormatError(
            f"{where}: feature {key!r} has shape {shown(shape)}; expected at most {_MAX_DIMENSIONS} dimensions and {_MAX_VALUES} values"
        )
    names = description.get("names")
    listed = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    if dtype not in ("image", "video"):
        return Feature(key, dtype, tuple(shape), listed)
    if len(shape) != 3:
        raise DatasetFormatError(f"{where}: camera {key!r} has shape {shown(shape)}; expected [height, width, channels]")
    encoding = description.get("info") or description.get("video_info") or {}
    if not isinstance(encoding, dict):
        raise DatasetFormatError(f"{where}: camera {key!r} has info {shown(encoding)}; expected an object")
    gop_length = encoding.get("video.g")
    return Feature(
        key,
        dtype,
        _channels_last(key, shape, listed, notes),
        listed,
        depth=_depth(key, encoding, where) if encoding.get("is_depth_map") or encoding.get("video.is_depth_map") else None,
        gop_length=gop_length if type(gop_length) is int and 1 <= gop_length <= _MAX_GOP_LENGTH else None,
    )


def _depth(key: str, encoding: Mapping[str, Any], where: str) -> Depth:
    defaults = Depth()
    unit = encoding.get("depth_unit", defaults.unit)
    if unit not in ("m", "mm"):
        raise DatasetFormatError(f'{where}: depth camera {key!r} has depth_unit {shown(unit)}; expected "m" or "mm"')
    low = encoding.get("video.depth_min", defaults.min_metres)
    high = encoding.get("video.depth_max", defaults.max_metres)
    shift = encoding.get("video.shift", defaults.shift_metres)
    is_logarithmic = encoding.get("video.use_log", defaults.is_logarithmic)
    if not all(type(n) in (int, float) and abs(n) <= _MAX_METRES for n in (low, high, shift)) or not 0 <= low < high:
        raise DatasetFormatError(
            f"{where}: depth camera {key!r} has video.depth_min {shown(low)}, video.depth_max {shown(high)} and "
            f"video.shift {shown(shift)}; expected numbers of metres, 0 <= depth_min < depth_max"
        )
    if type(is_logarithmic) is not bool or (is_logarithmic and low + shift <= 0):
        raise DatasetFormatError(
            f"{where}: depth camera {key!r} has video.use_log {shown(is_logarithmic)}, video.depth_min {low} and video.shift {shift}; "
            "expected false, or true and depth_min + shift > 0"
        )
    return Depth(unit, float(low), float(high), float(shift), is_logarithmic)


def _channels_last(key: str, shape: list[int], names: tuple[str, ...] | None, notes: list[str]) -> tuple[int, ...]:
    # Both orders are allowed by lerobot (validate_feature_image_or_video); the names tell, and where there are none, or they cannot be
    # right, the number of channels.
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    channels_first = first and not last
    if names is not None and len(names) == 3:
        said_first = names[0] in ("channel", "channels")
        if first == last or said_first == channels_first:
            channels_first = said_first
        else:
            channels = shape[0] if channels_first else shape[2]
            notes.append(f"camera {key!r} has shape {shape} and names {list(names)}, which do not fit; read with {channels} channels")
    return (shape[1], shape[2], shape[0]) if channels_first else tuple(shape)


def _video_path(info: Mapping[str, Any], features: Mapping[str, Feature], major: int, where: str, notes: list[str]) -> PathTemplate | None:
    text = info.get("video_path")
    if text is None:
        if (camera := next((key for key, feature in features.items() if feature.is_video), None)) is None:
            return None
        text = _PATHS[major]["video_path"]
        notes.append(f"video_path is {'null' if 'video_path' in info else 'missing'}, but {camera!r} is a video; {text!r} is used")
    return _template(text, "video_path", major, where, notes)


def _template(text: object, field: str, major: int, where: str, notes: list[str]) -> PathTemplate:
    """Checks a template, so that formatting it can neither fail, read attributes, nor make a text of any size."""
    numbers, usual = _NUMBERS_OF_TEMPLATES[major], _PATHS[major]
    expected = f"expected a relative path with the fields video_key, {numbers[0]} and {numbers[1]}, such as {usual['data_path']}"
    if major == 3 and text == _PATHS[2][field]:
        notes.append(f"{field} is {text!r}, that of a LeRobotDataset v2.x; {usual[field]!r} is used")
        text = usual[field]
    if not isinstance(text, str):
        raise DatasetFormatError(f"{where}: {field} is {shown(text)}; {expected}")
    if len(text) > _MAX_TEMPLATE_LENGTH or text.count("{") > 2 * _MAX_TEMPLATE_FIELDS:
        raise DatasetFormatError(f"{where}: {field} is {shown(text)}, of {len(text)} characters; {expected}")
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DatasetFormatError(f"{where}: {field} is {text!r} ({error}); {expected}") from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        spec_of_kind = r"(0?\d?d)?" if name in numbers else ""
        if name not in ("video_key", *numbers) or conversion or not re.fullmatch(spec_of_kind, spec or ""):
            raise DatasetFormatError(
                f"{where}: {field} is {text!r}, with a field {{{name}{'!' + conversion if conversion else ''}:{spec}}}; {expected}"
            )
    return PathTemplate(text)
