"""Reads what a person looks at: a few examples with what is around them, or one whole episode.

Everything is read as a stream reads it (`read_rows`), and each row is located (`locate`). A camera
that cannot be read is named with its reason, and the rest is shown, because that is when people
look. Nothing is drawn: that is `_cli/page`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError, LeRobotGrainError
from lerobot_grain._datasets.frame_order import FrameOrderIterDataset
from lerobot_grain._datasets.read_rows import read_rows
from lerobot_grain._inspection.locate import RowLocation, locate_frames
from lerobot_grain._inspection.overview.shown import MOST_DIMENSIONS, Curves, Shown, Values
from lerobot_grain._inspection.overview.shown_pictures import (
    mask_key,
    over_time,
    read_pictures,
)
from lerobot_grain._order.shuffle import Shuffle
from lerobot_grain._reading.batches import Example
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import text_keys

Windows = Mapping[str, Sequence[float]]

# Numbers that count rows: stated once, and no curves.
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index")
# On either side of a row, where no windows are given.
_AROUND_SECONDS = 1.0
# A curve has no more points than a screen has pixels for.
_MOST_POINTS = 600
_MOST_CHARACTERS = 2000


def first_rows(repository: Repository, *, count: int, seed: int) -> list[int]:
    """Returns the first rows of a shuffled epoch of the whole dataset, at most all of it.

    They are those of a stream with this seed, unless the video that its clip length follows from
    cannot be read: then no stream has an order, and the rows are shuffled one by one.
    """
    shuffle = Shuffle(seed=seed)
    try:
        repository.gop_length()
    except LeRobotGrainError:
        shuffle = Shuffle(seed=seed, clip_length=1)
    order = FrameOrderIterDataset(repository, shuffle=shuffle).order.rows
    found: list[int] = order.epoch(0).rows(np.arange(min(count, order.num_rows))).tolist()
    return found


def rows_of_episode(repository: Repository, number: int, *, count: int) -> list[int]:
    """Returns at most so many rows of an episode, evenly spread, the first and the last among them.

    Raises:
      InvalidRequestError: there is no such episode.
    """
    start, length = _span(repository, number)
    rows: list[int] = (start + _spread(length, count)).tolist()
    return rows


def _span(repository: Repository, number: int) -> tuple[int, int]:
    """Returns the first row of an episode, and its length."""
    episodes = repository.episodes
    position = episodes.positions_of(np.array([number])).item()
    if position < 0:
        raise InvalidRequestError(
            f"{repository.description}: there is no episode {number}; there are "
            f"{episodes.shown_numbers}"
        )
    return episodes.first_rows.item(position), episodes.lengths.item(position)


def row_places(
    repository: Repository, rows: Iterable[int], cameras: Sequence[str]
) -> tuple[RowLocation, ...]:
    """Returns where rows are stored, with the cameras that can be read.

    Raises:
      InvalidRequestError: there is no such row.
      DatasetFormatError, StorageError: the data file cannot be read.
    """
    return tuple(_place(repository, row, cameras) for row in rows)


def _place(repository: Repository, row: int, cameras: Sequence[str]) -> RowLocation:
    try:
        return locate_frames(repository, row, cameras)
    except LeRobotGrainError:
        if not cameras:
            raise
        readable = []
        for camera in cameras:
            try:
                locate_frames(repository, row, [camera])
            except LeRobotGrainError:
                continue
            readable.append(camera)
        return locate_frames(repository, row, readable)


def windows_around(
    repository: Repository, features: Iterable[str], *, frames_per_camera: int
) -> dict[str, list[float]]:
    """Returns windows of one second before a row to one after it: cameras at a few frames of it,
    evenly spread, other numbers at all.
    """
    fps = repository.fps
    most = max(1, round(_AROUND_SECONDS * fps))
    few = np.linspace(-most, most, frames_per_camera).round().astype(int)
    # The row itself is among them.
    few[np.abs(few).argmin()] = 0
    few = np.unique(few)
    windows = {}
    for key in features:
        feature = repository.features.get(key)
        if feature is None or key in _COUNTERS:
            continue
        if feature.is_camera:
            windows[key] = [frame / fps for frame in few.tolist()]
        elif feature.is_array:
            windows[key] = [frame / fps for frame in range(-most, most + 1)]
    return windows


def read_examples(
    repository: Repository,
    rows: Sequence[int],
    *,
    cameras: Sequence[str],
    windows: Windows,
) -> list[Shown]:
    """Reads examples at some rows.

    Args:
      repository: the opened dataset.
      rows: their numbers.
      cameras: the keys of those that are shown; all other features are.
      windows: `delta_timestamps` of the examples.

    Raises:
      InvalidRequestError: there is no such row, or a window is not one of a feature that is shown.
      DatasetFormatError, StorageError: rows cannot be read; of cameras it is part of the result.
    """
    keys = _other_features(repository)
    if unknown := [key for key in windows if key not in keys and key not in cameras]:
        raise InvalidRequestError(
            f"{repository.description}: there is no feature {unknown[0]!r} to show a window of; "
            f"there are {', '.join([*keys, *cameras])}"
        )
    examples = read_rows(
        repository,
        rows,
        features=keys,
        delta_timestamps={key: deltas for key, deltas in windows.items() if key in keys},
        pad_keys={key: mask_key(key) for key in windows if key in keys},
    )
    pictures = {key: read_pictures(repository, key, rows, windows.get(key)) for key in cameras}
    places = row_places(repository, rows, cameras)
    return [
        Shown(
            row=place.row,
            episode=place.episode,
            frame=place.frame,
            length=place.episode_length,
            curves=tuple(
                _curves(repository, key, example, deltas)
                for key, deltas in windows.items()
                if key in keys and repository.features[key].is_array
            ),
            pictures=tuple(pictures[key][number] for key in cameras),
            words=_words(example, windows),
            places=(place,),
        )
        for number, (example, place) in enumerate(zip(examples, places, strict=True))
    ]


def read_episode(
    repository: Repository, number: int, *, cameras: Sequence[str], frames_per_camera: int
) -> Shown:
    """Reads an episode: its numbers at every frame, or evenly spaced ones of a long episode, and of
    each camera a few frames, the first and the last among them.

    Raises:
      InvalidRequestError: there is no such episode.
      DatasetFormatError, StorageError: as of `read_examples`.
    """
    start, length = _span(repository, number)
    points = _spread(length, _MOST_POINTS)
    few = _spread(length, frames_per_camera)
    examples = read_rows(
        repository, (start + points).tolist(), features=_other_features(repository)
    )
    rows = (start + few).tolist()
    seconds = points / repository.fps
    return Shown(
        row=None,
        episode=number,
        frame=None,
        length=length,
        curves=tuple(
            Curves(
                key=key,
                names=_names(repository, key),
                seconds=seconds,
                values=_flat([example[key] for example in examples]),
                is_pad=np.zeros(len(points), np.bool_),
            )
            for key, feature in repository.features.items()
            if feature.is_array and key not in _COUNTERS
        ),
        pictures=tuple(
            over_time(read_pictures(repository, key, rows, None), few / repository.fps)
            for key in cameras
        ),
        words=_words_of_all(examples),
        places=row_places(repository, rows, cameras),
    )


def _spread(length: int, most: int) -> npt.NDArray[np.int64]:
    """Returns frames of an episode, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def _other_features(repository: Repository) -> list[str]:
    """Returns what is read besides cameras: features that can be, and the texts of tasks."""
    keys = [key for key, feature in repository.features.items() if not feature.is_camera]
    return [*keys, *text_keys(repository)]


def _names(repository: Repository, key: str) -> tuple[str, ...]:
    feature = repository.features[key]
    size = int(np.prod(feature.shape))
    names = feature.names
    if names is not None and len(names) == size:
        return names
    return ("value",) if size == 1 else tuple(map(str, range(size)))


def _flat(values: Any) -> Values:
    """Returns float64 `(time, dimensions)` of the dimensions that are shown."""
    found = np.asarray(values)
    return found.reshape(len(found), -1)[:, :MOST_DIMENSIONS].astype(np.float64)


def _curves(repository: Repository, key: str, example: Example, deltas: Sequence[float]) -> Curves:
    order = np.argsort(deltas, kind="stable")
    return Curves(
        key=key,
        names=_names(repository, key),
        seconds=np.asarray(deltas, np.float64)[order],
        values=_flat(example[key])[order],
        is_pad=np.asarray(example[mask_key(key)])[order],
    )


def _words(example: Example, windows: Windows) -> dict[str, str]:
    """Returns all of an example that is neither a curve nor a mask, as text."""
    masks = set(map(mask_key, windows))
    return {
        key: _as_text(value)
        for key, value in example.items()
        if key not in masks and (key not in windows or np.asarray(value).dtype.kind not in "biuf")
    }


def _words_of_all(examples: Sequence[Example]) -> dict[str, str]:
    """Returns the texts of the frames of an episode, each once."""
    found: dict[str, dict[str, None]] = {}
    for example in examples:
        for key, value in example.items():
            if isinstance(value, str | list):
                found.setdefault(key, {})[_as_text(value)] = None
    return {key: _cut(" | ".join(text for text in texts if text)) for key, texts in found.items()}


def _as_text(value: Any) -> str:
    """Returns a value as text: a number short, language as JSON."""
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _cut(np.array2string(value, precision=4, separator=", ", threshold=64))
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _cut(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, list):
        return _cut(" | ".join(dict.fromkeys(_as_text(each) for each in value)))
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
