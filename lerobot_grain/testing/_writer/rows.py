"""The values of the rows of a written dataset: features, default formulas, and what was written.

The default world is a point that circles clockwise around the middle of the frame, with a radius
and a start of its own in every episode.

* `observation.state[0:2]` is the point, in [0.1, 0.9]; cameras show it
  (`disc_center` of `_writer/pictures`).
* `action[0:2]` is its velocity in units per second, `SPEED * (0.5 - y, x - 0.5)`: a function of the
  point alone, so it can be learned from one frame, and following it from anywhere keeps circling.
* `action[j]`, j >= 2, is `sin(pi * (x * cos(j) + y * sin(j)))`, also a function of the point alone.
* `observation.state[j]`, j >= 2, is a slow sine in [0.1, 0.9] with a phase of its own in every
  episode; no frame shows it.

Rules:
* Every value is a pure function of (seed, episode index, frame index); nothing depends on the order
  of the calls.
* Values are computed per episode in float64 and rounded once to the feature's dtype.

Not here: files (`_writer/dataset`, `_writer/metadata`) and frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer.video import Camera

SPEED = 2 * np.pi / 4
"""Angular speed of the point in radians per second: one turn in 4 s, the pace of a slow arm."""

RowValues = Callable[[int, int], Mapping[str, npt.ArrayLike]]
"""`(episode_index, length) -> {feature: (length, *shape)}`.

Features that it leaves out get their default values.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A low-dimensional column, as `info.json` declares it.

    Attributes:
      dtype: `"float32"`, `"float64"`, an integer, `"bool"` or `"string"`.
      shape: `(1,)` for a scalar (stored without a list), `(n,)` for a vector, up to 5 dimensions
        otherwise. Strings are `(1,)`.
      names: names of the elements of a vector, or None.
    """

    dtype: str
    shape: tuple[int, ...] = (1,)
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype != "string" and np.dtype(self.dtype).kind not in "fiub":
            raise InvalidRequestError(
                f"feature dtype {self.dtype!r} is not one of float, int, uint, bool or string"
            )
        if not 1 <= len(self.shape) <= 5 or min(self.shape) < 1:
            raise InvalidRequestError(
                f"feature shape {self.shape} must have 1 to 5 positive dimensions"
            )
        if self.dtype == "string" and self.shape != (1,):
            raise InvalidRequestError(f"a string feature must have shape (1,), not {self.shape}")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(object if self.dtype == "string" else self.dtype)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's value: `()` for a scalar."""
        return () if self.shape == (1,) else self.shape


EXTRA_FEATURES: Mapping[str, Feature] = {
    "next.reward": Feature(dtype="float32"),
    "next.done": Feature(dtype="bool"),
    "observation.note": Feature(dtype="string"),
    "observation.matrix": Feature(dtype="float32", shape=(2, 3)),
}
"""One feature of each kind that is stored differently: scalar, bool, string, 2-D."""

DEFAULT_FEATURES: Mapping[str, Feature] = {
    "timestamp": Feature(dtype="float32"),
    "frame_index": Feature(dtype="int64"),
    "episode_index": Feature(dtype="int64"),
    "index": Feature(dtype="int64"),
    "task_index": Feature(dtype="int64"),
}
"""The five columns of every LeRobot dataset, in the recorder's order."""


def point_path(*, seed: int, episode_index: int, length: int, fps: int) -> npt.NDArray[np.float64]:
    """Returns where the circling point is, float64 (length, 2) in [0.1, 0.9]."""
    rng = np.random.default_rng([seed, episode_index, 0])
    radius = rng.uniform(0.1, 0.4)
    start = rng.uniform(0, 2 * np.pi)
    angle = start + SPEED * np.arange(length) / fps
    return 0.5 + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def expert_action(point: npt.NDArray[np.floating], action_size: int) -> npt.NDArray[np.float64]:
    """Returns the action that the dataset shows at `point`.

    Args:
      point: (..., 2) in [0, 1].
      action_size: number of elements.

    Returns:
      float64 (..., action_size).
    """
    x = np.asarray(point[..., 0], np.float64)
    y = np.asarray(point[..., 1], np.float64)
    velocity = [SPEED * (0.5 - y), SPEED * (x - 0.5)]
    others = [np.sin(np.pi * (x * np.cos(j) + y * np.sin(j))) for j in range(2, action_size)]
    return np.stack((velocity + others)[:action_size], axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDataset:
    """The values that were written, and so those that a reader must return.

    Attributes:
      directory: of the dataset.
      fps: frames per second.
      cameras: in the order of `info.json`; the position is the camera index in the barcodes.
      tasks: texts by task index.
      episode_lengths: int64 (episodes,).
      rows: all values by feature, (total_frames, *shape) in the stored dtype, objects for strings.
        Read-only. Scalars have no extra axis.
      episodes: the columns of `meta/episodes` but `tasks` and statistics, (episodes,) each; of v2.x
        `episode_index` and `length`. Read-only.
    """

    directory: Path
    fps: int
    cameras: tuple[Camera, ...]
    tasks: tuple[str, ...]
    episode_lengths: npt.NDArray[np.int64]
    rows: Mapping[str, npt.NDArray[Any]]
    episodes: Mapping[str, npt.NDArray[Any]]

    @property
    def total_frames(self) -> int:
        return int(self.episode_lengths.sum())

    def row(self, episode_index: int, frame_index: int) -> int:
        """Returns the number of a frame in the dataset."""
        if not (
            0 <= episode_index < len(self.episode_lengths)
            and 0 <= frame_index < self.episode_lengths[episode_index]
        ):
            raise InvalidRequestError(
                f"episode {episode_index} frame {frame_index} was not written; "
                f"{len(self.episode_lengths)} episodes were"
            )
        return int(self.episode_lengths[:episode_index].sum()) + frame_index

    def expected_row(self, episode_index: int, frame_index: int) -> dict[str, Any]:
        """Returns every low-dimensional value of one frame, and its `task` text.

        Vectors and matrices are arrays of the stored dtype, scalars are NumPy scalars, strings are
        str. Cameras are left out: their barcode is (episode_index, frame_index, camera index).
        """
        row = self.row(episode_index, frame_index)
        values = {name: column[row] for name, column in self.rows.items()}
        return values | {"task": self.tasks[int(values["task_index"])]}


def episode_rows(
    features: Mapping[str, Feature],
    *,
    episode_index: int,
    first_row: int,
    length: int,
    fps: int,
    seed: int,
    num_tasks: int,
    row_values: RowValues | None,
) -> dict[str, npt.NDArray[Any]]:
    """Returns all values of one episode, each (length, *row_shape) in the dtype of its feature.

    Raises:
      InvalidRequestError: `row_values` returned an unknown feature, a fixed column or a wrong
        shape.
    """
    given = {} if row_values is None else dict(row_values(episode_index, length))
    for name in given:
        if name not in features or name in ("frame_index", "episode_index", "index"):
            known = sorted(set(features) - {"frame_index", "episode_index", "index"})
            raise InvalidRequestError(
                f"row_values returned {name!r} for episode {episode_index}; it may return {known}"
            )
    frame = np.arange(length)
    path = point_path(seed=seed, episode_index=episode_index, length=length, fps=fps)
    rows = {}
    for number, (name, feature) in enumerate(features.items()):
        match name:
            case _ if name in given:
                value = np.asarray(given[name])
            case "timestamp":
                value = frame / fps
            case "frame_index":
                value = frame
            case "episode_index":
                value = np.full(length, episode_index)
            case "index":
                value = first_row + frame
            case "task_index":
                value = np.full(length, episode_index % num_tasks)
            case "observation.state":
                value = np.concatenate(
                    [path, _slow_sines(feature, episode_index, length, fps, seed)], axis=1
                )[:, : feature.shape[0]]
            case "action":
                value = expert_action(path, feature.shape[0])
            case "next.reward":
                value = frame / length
            case "next.done":
                value = frame == length - 1
            case _:
                value = _generic(feature, number, episode_index, length)
        rows[name] = _checked(value, feature, name=name, episode_index=episode_index, length=length)
    return rows


def declared_columns(
    state_size: int, action_size: int, features: Mapping[str, Feature]
) -> dict[str, Feature]:
    """Returns all columns of a dataset but the cameras, in the recorder's order.

    Raises:
      InvalidRequestError: a size is negative, or a feature is one that is always written.
    """
    if state_size < 0 or action_size < 0:
        raise InvalidRequestError(
            f"state_size {state_size} and action_size {action_size} must not be negative"
        )
    columns = {}
    for name, letter, size in (
        ("observation.state", "s", state_size),
        ("action", "a", action_size),
    ):
        if size:
            columns[name] = Feature(
                dtype="float32", shape=(size,), names=tuple(f"{letter}{i}" for i in range(size))
            )
    if taken := set(features) & {*columns, *DEFAULT_FEATURES}:
        raise InvalidRequestError(
            f"features {sorted(taken)} are always written and cannot be declared again"
        )
    return {**columns, **features, **DEFAULT_FEATURES}


def shown_points(
    rows: Mapping[str, npt.NDArray[Any]], *, seed: int, fps: int
) -> npt.NDArray[np.float64]:
    """Returns what the disc of the frames shows: the state that was written, or the circling
    point where there is no such state.
    """
    state = rows.get("observation.state")
    if state is not None and state.ndim == 2 and state.shape[1] >= 2:
        return state[:, :2].astype(np.float64)
    return point_path(
        seed=seed, episode_index=int(rows["episode_index"][0]), length=len(rows["index"]), fps=fps
    )


def _slow_sines(
    feature: Feature, episode_index: int, length: int, fps: int, seed: int
) -> npt.NDArray[np.float64]:
    """Returns the elements of the state that no frame shows, float64 (length, size)."""
    phases = np.random.default_rng([seed, episode_index, 2]).uniform(0, 2 * np.pi, feature.shape[0])
    return 0.5 + 0.4 * np.sin(phases + np.arange(length)[:, None] / fps)


def _generic(feature: Feature, number: int, episode_index: int, length: int) -> npt.NDArray[Any]:
    """Returns values for a feature that has no formula: different in every row and element, so that
    a mix-up shows.
    """
    if feature.dtype == "string":
        return np.array([f"note {episode_index}-{frame}" for frame in range(length)], object)
    elements = int(np.prod(feature.row_shape))
    counter = (episode_index * 1000 + np.arange(length))[:, None] * elements + np.arange(elements)
    kind = feature.numpy_dtype.kind
    value = (
        np.sin(counter + number)
        if kind == "f"
        else counter % 2 == 0
        if kind == "b"
        else counter % 100
    )
    return value.reshape(length, *feature.row_shape)


def _checked(
    value: npt.NDArray[Any], feature: Feature, *, name: str, episode_index: int, length: int
) -> npt.NDArray[Any]:
    expected = (length, *feature.row_shape)
    # A scalar may come as (length, 1), the shape info.json declares.
    if value.shape == (length, *feature.shape):
        value = value.reshape(expected)
    if value.shape != expected:
        raise InvalidRequestError(
            f"row_values returned {name!r} of shape {value.shape} for episode {episode_index}, "
            f"expected {expected}"
        )
    return value.astype(feature.numpy_dtype)
