"""Says what a dataset is: its cameras, features, episodes and tasks, and what an epoch costs.

Declarations come from `meta/`; encodings and bytes from the indices of the files, as `check` reads
them, of some files where there are many. No frame and no row is read. Nothing is printed: that is
`_cli/inspect`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.texts import UnreadableTexts
from lerobot_grain._inspection.check import CheckReport, check
from lerobot_grain._inspection.costs import CameraCost
from lerobot_grain._repository.repository import Repository

# Bars of the histogram: as many as a screen has room for next to the rest.
_MOST_BINS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSummary:
    """A camera: what is declared, and what its files are.

    Attributes:
      key: of the feature.
      kind: `video` or `image`, which is embedded in the data files.
      size: declared (height, width).
      unit: `m` or `mm` of a depth camera; else `None`.
      bytes_per_frame: coded; `None` where no file could be opened.
      video: what its files are; `None` for embedded images, and where no file could be opened.
    """

    key: str
    kind: str
    size: tuple[int, int]
    unit: str | None
    bytes_per_frame: float | None
    video: CameraCost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSummary:
    """A feature that is no camera.

    Attributes:
      key, dtype, shape: as declared.
      names: of its components; empty where they are not given.
      bytes_per_row: in the files, compressed; `None` where no data file could be opened.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    bytes_per_row: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """A bar of the histogram: `count` episodes have `start` to `stop - 1` frames."""

    start: int
    stop: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLengths:
    """Frames of the episodes.

    Attributes:
      shortest, longest: the extremes.
      median, mean: of all.
      histogram: bars of equal width, ascending, without a gap.
    """

    shortest: int
    median: float
    mean: float
    longest: int
    histogram: tuple[LengthBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCost:
    """The costs of streaming each row once, every byte fetched once.

    Attributes:
      is_sample: some files were looked at, so bytes are estimates.
      video_bytes: of all cameras; row_bytes: of the data files, embedded images among them.
      requests: at most about so many; `None` where it is not known.
      pictures: that are decoded: one for every frame of every camera that can be read.
      clip_length: the default of `Shuffle`, in frames; `None` where it is not known.
      largest_group_bytes: of the largest row group; `None` where no data file could be opened.
    """

    is_sample: bool
    video_bytes: int
    row_bytes: int
    requests: int | None
    pictures: int
    clip_length: int | None
    largest_group_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """Describes a dataset.

    Attributes:
      dataset: its name and commit.
      version: of the format, such as `v3.0`; `robot` as it is declared.
      fps, num_rows, num_episodes: of the dataset; seconds: of all episodes.
      splits: name -> range of episodes.
      tasks: the texts, by their numbers.
      cameras, features: in the order in which they are declared.
      unreadable: feature -> why it cannot be read.
      lengths: of the episodes.
      num_files, num_files_read: data and video files, and those whose index was read.
      cost: of an epoch.
      num_problems: that `check` finds in these files.
      notes: irregularities of `meta/` that change nothing.
    """

    dataset: str
    version: str
    robot: str | None
    fps: float
    num_rows: int
    num_episodes: int
    seconds: float
    splits: Mapping[str, str]
    tasks: tuple[str, ...]
    cameras: tuple[CameraSummary, ...]
    features: tuple[FeatureSummary, ...]
    unreadable: Mapping[str, str]
    lengths: EpisodeLengths
    num_files: int
    num_files_read: int
    cost: EpochCost
    num_problems: int
    notes: tuple[str, ...]


def summarize(
    repository: Repository,
    *,
    max_files: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> DatasetSummary:
    """Returns what a dataset is.

    Args:
      repository: the opened dataset.
      max_files, on_progress: as of `check`.

    Raises:
      InvalidRequestError: `max_files` is not an int >= 1.
      StorageError: `meta/` cannot be read any more.
    """
    report = check(repository, max_files=max_files, on_progress=on_progress)
    info = repository.info
    cameras = _cameras(repository, report)
    tasks = {} if isinstance(repository.tasks, UnreadableTexts) else repository.tasks
    return DatasetSummary(
        dataset=repository.description,
        version=info.codebase_version,
        robot=info.robot_type,
        fps=repository.fps,
        num_rows=report.num_rows,
        num_episodes=report.num_episodes,
        seconds=int(repository.episodes.lengths.sum()) / repository.fps,
        splits=dict(info.splits),
        tasks=tuple(tasks[number] for number in sorted(tasks)),
        cameras=cameras,
        features=_features(repository, report),
        unreadable=dict(info.unreadable),
        lengths=episode_lengths(repository.episodes.lengths),
        num_files=report.num_files,
        num_files_read=report.num_files_checked,
        cost=_cost(report, cameras),
        num_problems=sum(finding.is_problem for finding in report.findings),
        notes=repository.notes,
    )


def _cameras(repository: Repository, report: CheckReport) -> tuple[CameraSummary, ...]:
    videos = {cost.key: cost for cost in report.cameras}
    images = {} if report.rows is None else report.rows.bytes_per_row
    found = []
    for key in repository.cameras:
        feature = repository.features[key]
        height, width = feature.shape[:2]
        video = videos.get(key)
        found.append(
            CameraSummary(
                key=key,
                kind=feature.dtype,
                size=(height, width),
                unit=None if feature.depth is None else feature.depth.unit,
                bytes_per_frame=images.get(key) if video is None else video.bytes_per_frame,
                video=video,
            )
        )
    return tuple(found)


def _features(repository: Repository, report: CheckReport) -> tuple[FeatureSummary, ...]:
    sizes = {} if report.rows is None else report.rows.bytes_per_row
    return tuple(
        FeatureSummary(
            key=key,
            dtype=feature.dtype,
            shape=feature.shape,
            names=feature.names or (),
            bytes_per_row=sizes.get(key),
        )
        for key, feature in repository.features.items()
        if not feature.is_camera
    )


def _cost(report: CheckReport, cameras: Sequence[CameraSummary]) -> EpochCost:
    num_rows = report.num_rows
    rows = report.rows
    of_video = sum(cost.bytes_per_frame for cost in report.cameras)
    return EpochCost(
        is_sample=report.num_files_checked < report.num_files,
        video_bytes=round(of_video * num_rows),
        row_bytes=0 if rows is None else round(sum(rows.bytes_per_row.values()) * num_rows),
        requests=report.requests_per_epoch,
        pictures=num_rows * sum(camera.bytes_per_frame is not None for camera in cameras),
        clip_length=report.clip_length,
        largest_group_bytes=None if rows is None else rows.largest_group_bytes,
    )


def episode_lengths(lengths: Integers) -> EpisodeLengths:
    """Returns the lengths of episodes, int64 `(episodes,)`, at least one, in figures.

    Bars are of equal width, a whole number of frames; the first begins at the shortest episode.
    There are fewer of few episodes.
    """
    shortest = int(lengths.min())
    num_bins = min(_MOST_BINS, math.ceil(2 * math.sqrt(len(lengths))))
    width = -(-(int(lengths.max()) - shortest + 1) // num_bins)
    counts = np.bincount((lengths - shortest) // width)
    return EpisodeLengths(
        shortest=shortest,
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        histogram=tuple(
            LengthBin(
                start=shortest + number * width,
                stop=shortest + (number + 1) * width,
                count=count,
            )
            for number, count in enumerate(counts.tolist())
        ),
    )
