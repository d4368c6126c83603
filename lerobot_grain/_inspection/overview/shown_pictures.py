"""Reads the frames of a camera that a person looks at, at the size of a page.

A few rows are read at a time, and their frames are scaled down before the next ones are read: so
many frames can be shown, of cameras of any size, in bounded memory. A camera that cannot be read is
part of the result, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    MissingFileError,
)
from lerobot_grain._datasets.read_rows import read_rows
from lerobot_grain._inspection.overview.shown import MOST_PIXELS, Pictures, Values
from lerobot_grain._repository.repository import Repository
from lerobot_grain._video.images import nearest

# Frames that are held at their full size, of those that are read together; one row at least. 72
# frames of 640x480.
_FULL_SIZE_BYTES = 64 << 20


def mask_key(key: str) -> str:
    """Returns the key of the mask of a window: no feature has it, as some have `{key}_is_pad`."""
    return f"{key} of the page is padding"


def read_pictures(
    repository: Repository, camera: str, rows: Sequence[int], deltas: Sequence[float] | None
) -> list[Pictures]:
    """Returns the frames of a camera at some rows, or why they cannot be read: a broken file is one
    of the rows that are stored in it.

    Args:
      repository: the opened dataset.
      camera: its key.
      rows: their numbers.
      deltas: seconds of the window of each row, in any order; `None`: the row alone.

    Raises:
      InvalidRequestError: there is no such row, or a delta is no whole number of frames.
    """
    seconds = [0.0] if deltas is None else sorted(deltas)
    feature = repository.features[camera]
    bytes_per_frame = math.prod(feature.shape) * (1 if feature.depth is None else 4)
    together = max(1, _FULL_SIZE_BYTES // (bytes_per_frame * len(seconds)))
    found: list[Pictures] = []
    try:
        for start in range(0, len(rows), together):
            found += _read_files(repository, camera, rows[start : start + together], seconds)
    except InvalidRequestError:
        raise
    except LeRobotGrainError as error:
        found += [_broken(repository, camera, error)] * (len(rows) - len(found))
    return found


def over_time(pictures: Sequence[Pictures], seconds: Values) -> Pictures:
    """Returns the pictures of one camera at several rows as one row of them, with those that can be
    read.
    """
    good = [number for number, each in enumerate(pictures) if each.problem is None]
    if not good:
        return pictures[0]
    first = pictures[good[0]]
    limits = [each.depth_limits for each in pictures if each.depth_limits is not None]
    return Pictures(
        key=first.key,
        size=first.size,
        unit=first.unit,
        seconds=seconds[good],
        is_pad=np.zeros(len(good), np.bool_),
        frames=np.concatenate([pictures[number].frames for number in good]),
        depth_limits=(min(near for near, _ in limits), max(far for _, far in limits))
        if limits
        else None,
        problem=next((each.problem for each in pictures if each.problem is not None), None),
    )


def _read_files(
    repository: Repository, camera: str, rows: Sequence[int], seconds: Sequence[float]
) -> list[Pictures]:
    """Returns the frames of rows that are read together, or row by row where a file is broken."""
    try:
        examples = read_rows(
            repository,
            rows,
            features=[camera],
            delta_timestamps={camera: seconds},
            pad_keys={camera: mask_key(camera)},
        )
    except (DatasetFormatError, MissingFileError) as error:
        if len(rows) > 1:
            return [
                found for row in rows for found in _read_files(repository, camera, [row], seconds)
            ]
        return [_broken(repository, camera, error)]
    found = []
    for example in examples:
        is_pad = example[mask_key(camera)]
        found.append(_scaled_down(repository, camera, example[camera], is_pad, seconds))
        # The closed stream is a cycle, and holds its examples until the garbage is collected; of
        # the last one it has another dict.
        example.clear()
    return found


def _scaled_down(
    repository: Repository, camera: str, frames: Values, is_pad: Values, seconds: Sequence[float]
) -> Pictures:
    """Returns frames `(time, height, width, channels)`, at most `MOST_PIXELS` high and wide."""
    height, width = frames.shape[1:3]
    unit = _unit(repository, camera)
    limits = None if unit is None else _depth_limits(frames)
    share = MOST_PIXELS / max(height, width)
    if share < 1:
        size = (max(1, round(height * share)), max(1, round(width * share)))
        scale = _scaled_color if unit is None else _scaled_depth
        frames = np.stack([scale(frame, size) for frame in frames])
    return Pictures(
        key=camera,
        size=(height, width),
        unit=unit,
        seconds=np.array(seconds),
        is_pad=np.asarray(is_pad),
        frames=frames,
        depth_limits=limits,
    )


def _scaled_color(frame: Values, size: tuple[int, int]) -> Values:
    image = Image.fromarray(frame)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0))


def _scaled_depth(frame: Values, size: tuple[int, int]) -> Values:
    return nearest(frame[..., 0], size)[..., None]


def _depth_limits(frames: Values) -> tuple[float, float] | None:
    """Returns the nearest and the farthest depth; 0 is none."""
    seen = frames[np.isfinite(frames) & (frames > 0)]
    return (float(seen.min()), float(seen.max())) if seen.size else None


def _broken(repository: Repository, camera: str, error: LeRobotGrainError) -> Pictures:
    nothing = np.zeros(0)
    return Pictures(
        key=camera,
        size=(0, 0),
        unit=_unit(repository, camera),
        seconds=nothing,
        is_pad=nothing,
        frames=nothing,
        problem=str(error),
    )


def _unit(repository: Repository, camera: str) -> str | None:
    depth = repository.features[camera].depth
    return None if depth is None else depth.unit
