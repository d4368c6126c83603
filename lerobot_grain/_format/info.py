"""`meta/info.json` -> a typed description of the dataset: version, fps, features, file templates.

Pure: bytes in, a frozen value or `DatasetFormatError` out. The format is the one of lerobot 0.4 to
0.6 (v3.x; `DatasetInfo` in its `datasets/utils.py`) and of the versions before it (v2.0 and v2.1),
read as real files have it: fps may be a float, unknown keys are ignored. Single features:
`_format/features`.

If a field is wrong as it stands but its meaning is plain, the plain meaning is used and a note says
so. A note never stands for something that could change a value: that is an error.
"""

from __future__ import annotations

import json
import math
import re
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lerobot_grain._base.errors import DatasetFormatError, short_repr
from lerobot_grain._format.features import NUMERIC_DTYPES, TASK_KEY, Depth, Feature, parse_feature
from lerobot_grain._format.layout import TEMPLATE_NUMBERS, TEMPLATES, is_read, versions_read

__all__ = [
    "NUMERIC_DTYPES",
    "TASK_KEY",
    "DatasetInfo",
    "Depth",
    "Feature",
    "PathTemplate",
    "parse_info",
]

_CHUNKS_SIZE = 1000

# Far above all that is real; below, what is made of a description stays small: a path for every
# file.
_MAX_KEY_LENGTH = 256
_MAX_TEMPLATE_LENGTH = 512
_MAX_TEMPLATE_FIELDS = 8
_MIN_FPS = 1e-6
_MAX_FPS = 1e6
_MAX_CHUNKS_SIZE = 1 << 40

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(\..{0,40})?")


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A checked file template of info.json, such as
    `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`.

    In v2.x every episode is a file, which has its number:
    `data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet`.
    """

    text: str

    def path(self, *, chunk_index: int, file_index: int, video_key: str = "") -> str:
        return self.text.format(
            chunk_index=chunk_index,
            file_index=file_index,
            episode_chunk=chunk_index,
            episode_index=file_index,
            video_key=video_key,
        )


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The contents of `meta/info.json`.

    Attributes:
      codebase_version: such as `v3.0`; 2.0, 2.1 or 3.x.
      fps: frames per second of every feature.
      features: those that can be read, by key, in the order of the file.
      total_episodes, total_frames: as declared; `None` where they are missing. The episode table
        decides.
      data_path, video_path: templates of the files; `video_path` is `None` for datasets without
        video.
      robot_type: free text, or `None`.
      splits: name -> text such as `0:50`; a list of such texts as `0:50, 60:80`.
      chunks_size: of v2.x, where each episode is a file: episodes in a folder.
      notes: what was repaired, or is odd, and does not change what is read.
      unreadable: key of each other feature -> what is wrong with it; it raises where the feature
        is selected.
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
    unreadable: Mapping[str, str] = field(default_factory=dict)

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
      DatasetFormatError: not JSON, not v2.0, v2.1 or v3.x, or a field that is needed is missing or
        malformed.
    """
    try:
        info = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetFormatError(
            f"{where}: not valid JSON ({error}); expected the description of a LeRobotDataset"
        ) from None
    if not isinstance(info, dict):
        raise DatasetFormatError(
            f"{where}: found a JSON {type(info).__name__}; expected an object with "
            "codebase_version, fps and features"
        )
    version = _check_version(info, where)
    major, _ = _version_numbers(version)
    fps = _fps(info, where)
    notes: list[str] = []
    features, unreadable = _features(info, where, notes)
    _note_other_rates(info, fps, notes)
    return DatasetInfo(
        codebase_version=version,
        fps=fps,
        features=features,
        total_episodes=_count(info, "total_episodes", where),
        total_frames=_count(info, "total_frames", where),
        data_path=_template(
            info.get("data_path", TEMPLATES[major]["data_path"]), "data_path", major, where, notes
        ),
        video_path=_video_path(info, features, major, where, notes),
        robot_type=info.get("robot_type") if isinstance(info.get("robot_type"), str) else None,
        splits=_splits(info, where),
        chunks_size=_chunks_size(info, where) if major == 2 else _CHUNKS_SIZE,
        notes=tuple(notes),
        unreadable=unreadable,
    )


def _check_version(info: Mapping[str, Any], where: str) -> str:
    version = info.get("codebase_version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise DatasetFormatError(
            f'{where}: codebase_version is {short_repr(version)}; expected "v3.0"'
        )
    numbers = _version_numbers(version)
    if numbers < (2, 0):
        raise DatasetFormatError(
            f"{where}: this is a LeRobotDataset {version}; expected {versions_read('or')}. "
            "Convert it with lerobot's scripts, or look for a newer revision of it"
        )
    if not is_read(*numbers):
        raise DatasetFormatError(
            f"{where}: this is a LeRobotDataset {version}; this version of lerobot_grain reads "
            f"{versions_read('and')}"
        )
    storage_format = info.get("storage_format")
    if storage_format not in (None, "parquet"):
        raise DatasetFormatError(
            f"{where}: storage_format is {short_repr(storage_format)}; only parquet tables with "
            "MP4 video are read"
        )
    return version


def _version_numbers(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    assert match is not None
    return int(match[1]), int(match[2])


def _fps(info: Mapping[str, Any], where: str) -> float:
    fps = info.get("fps")
    if (
        isinstance(fps, bool)
        or not isinstance(fps, int | float)
        or not (0 < fps <= sys.float_info.max)
    ):
        raise DatasetFormatError(f"{where}: fps is {short_repr(fps)}; expected a number > 0")
    if not _MIN_FPS <= fps <= _MAX_FPS:
        raise DatasetFormatError(
            f"{where}: fps is {fps}; expected at least {_MIN_FPS:g} and at most {_MAX_FPS:g} "
            "frames per second"
        )
    return float(fps)


def _count(info: Mapping[str, Any], field: str, where: str) -> int | None:
    value = info.get(field)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value < math.inf)
        or value != int(value)
    ):
        raise DatasetFormatError(
            f"{where}: {field} is {short_repr(value)}; expected an integer >= 0"
        )
    return int(value)


def _chunks_size(info: Mapping[str, Any], where: str) -> int:
    size = _count(info, "chunks_size", where)
    if size is None:
        return _CHUNKS_SIZE
    if not 1 <= size <= _MAX_CHUNKS_SIZE:
        raise DatasetFormatError(
            f"{where}: chunks_size is {short_repr(size)}; expected episodes in a folder, such as "
            f"{_CHUNKS_SIZE}"
        )
    return size


def _splits(info: Mapping[str, Any], where: str) -> Mapping[str, str]:
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise DatasetFormatError(
            f'{where}: splits is {short_repr(splits)}; expected an object such as {{"train": '
            f'"0:50"}}'
        )
    return {name: _split(span) for name, span in splits.items()}


def _split(span: object) -> str:
    if isinstance(span, list) and span and all(isinstance(piece, str) for piece in span):
        return ", ".join(span)
    return span if isinstance(span, str) else short_repr(span)


def _features(
    info: Mapping[str, Any], where: str, notes: list[str]
) -> tuple[dict[str, Feature], dict[str, str]]:
    """Returns the features that can be read; and of the others what is wrong with them."""
    declared = info.get("features")
    if not isinstance(declared, dict) or not declared:
        raise DatasetFormatError(
            f"{where}: features is {type(declared).__name__}; expected a non-empty object of "
            "feature key -> description"
        )
    features: dict[str, Feature] = {}
    unreadable: dict[str, str] = {}
    for key, description in declared.items():
        if len(key) > _MAX_KEY_LENGTH:
            raise DatasetFormatError(
                f"{where}: feature {short_repr(key)} has a key of {len(key)} characters; expected "
                f"at most {_MAX_KEY_LENGTH}"
            )
        try:
            features[key] = parse_feature(key, description, where=where, notes=notes)
        except DatasetFormatError as error:
            unreadable[key] = str(error).removeprefix(f"{where}: ")
    if TASK_KEY in declared:
        features.pop(TASK_KEY, None)
        unreadable.pop(TASK_KEY, None)
        notes.append(
            f"feature {TASK_KEY!r} is not read: examples have the text from the table of tasks "
            "under that key, as in lerobot"
        )
    if unreadable and not features:
        raise DatasetFormatError(f"{where}: {next(iter(unreadable.values()))}")
    return features, unreadable


def _note_other_rates(info: Mapping[str, Any], fps: float, notes: list[str]) -> None:
    described = {
        key: description
        for key, description in info["features"].items()
        if isinstance(description, dict)
    }
    rates = {
        key: description["fps"]
        for key, description in described.items()
        if description.get("fps") not in (None, fps)
    }
    if rates:
        key, rate = next(iter(rates.items()))
        notes.append(
            f"{len(rates)} features have an fps of their own, such as {short_repr(key)}: "
            f"{short_repr(rate)}; it is not used, all have that of the dataset, {fps:g}"
        )


def _video_path(
    info: Mapping[str, Any],
    features: Mapping[str, Feature],
    major: int,
    where: str,
    notes: list[str],
) -> PathTemplate | None:
    text = info.get("video_path")
    if text is None:
        if (
            camera := next((key for key, feature in features.items() if feature.is_video), None)
        ) is None:
            return None
        text = TEMPLATES[major]["video_path"]
        notes.append(
            f"video_path is {'null' if 'video_path' in info else 'missing'}, but {camera!r} is a "
            f"video; {text!r} is used"
        )
    return _template(text, "video_path", major, where, notes)


def _template(text: object, field: str, major: int, where: str, notes: list[str]) -> PathTemplate:
    """Checks a template, so that formatting it can neither fail, read attributes, nor make a text
    of any size.
    """
    # Some converters leave the templates of v2.x in info.json. They cannot be meant: the episode
    # table of v3.0 numbers files, not episodes.
    numbers = TEMPLATE_NUMBERS[major]
    usual = TEMPLATES[major]
    expected = (
        f"expected a relative path with the fields video_key, {numbers[0]} and "
        f"{numbers[1]}, such as {usual['data_path']}"
    )
    if major == 3 and text == TEMPLATES[2][field]:
        notes.append(
            f"{field} is {text!r}, that of a LeRobotDataset v2.x; {usual[field]!r} is used"
        )
        text = usual[field]
    if not isinstance(text, str):
        raise DatasetFormatError(f"{where}: {field} is {short_repr(text)}; {expected}")
    if len(text) > _MAX_TEMPLATE_LENGTH or text.count("{") > 2 * _MAX_TEMPLATE_FIELDS:
        raise DatasetFormatError(
            f"{where}: {field} is {short_repr(text)}, of {len(text)} characters; {expected}"
        )
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DatasetFormatError(f"{where}: {field} is {text!r} ({error}); {expected}") from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        spec_of_kind = r"(0?\d?d)?" if name in numbers else ""
        if (
            name not in ("video_key", *numbers)
            or conversion
            or not re.fullmatch(spec_of_kind, spec or "")
        ):
            raise DatasetFormatError(
                f"{where}: {field} is {text!r}, with a field "
                f"{{{name}{'!' + conversion if conversion else ''}:{spec}}}; {expected}"
            )
    return PathTemplate(text)
