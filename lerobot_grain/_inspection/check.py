"""Checks a dataset before it is trained on: whether every row has its frame, where its files
disagree, and what it costs to stream.

Reads `meta/`, and the indices of the video and data files, side by side; no frame and no row. So
it takes seconds, and finds what only random access exposes: a file that ends too early, an episode
with a frame less than rows. A defect of one file: `_inspection/file_checks`; with the dataset as a
whole: `_inspection/dataset_checks`; of weights and valid rows: `_inspection/row_selection`. Nothing
is printed: that is `_cli/check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lerobot_grain._base.arguments import check_int, check_opened
from lerobot_grain._base.arrays import evenly_spread
from lerobot_grain._base.errors import LeRobotGrainError
from lerobot_grain._datasets.sampling.selected_rows import ValidRowsArgument, WeightsArgument
from lerobot_grain._format.episodes import FileSpans
from lerobot_grain._inspection.costs import CameraCost, RowsCost, camera_cost, rows_cost
from lerobot_grain._inspection.dataset_checks import (
    about_camera,
    about_metadata,
    about_rows,
    about_spans,
)
from lerobot_grain._inspection.file_checks import (
    DataFacts,
    Finding,
    VideoFacts,
    check_data_file,
    check_video_file,
)
from lerobot_grain._inspection.row_selection import RowCounts, RowSelection, count_rows
from lerobot_grain._order.shuffle import default_clip_length
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import EpisodeSelection

# Feature, `None` for data files, and number of the file.
_File = tuple[str | None, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The findings of `check`.

    Attributes:
      dataset: its name and commit.
      num_episodes, num_rows, fps: of the dataset.
      num_files, num_files_checked: data and video files.
      findings: problems first.
      unusable_features: no episode can be read with them; leave them out of `features=`.
      unusable_episodes: numbers of the episodes that cannot be read with all other features,
        ascending.
      cameras: costs of the video of each camera of which a file could be opened.
      rows: costs of the rows; `None` where no data file could be opened.
      clip_length: the default of `Shuffle`, which follows from the GOPs; `None` where a video that
        it is found from cannot be read.
      num_clips: of that length, in an epoch; `None` where that is.
      usable_episodes: numbers of the other episodes, ascending, for `episodes=`. Those in files
        that were not checked are among them.
      selection: the rows that the arguments of `check` select; `None` where they select all, or
        weights or valid rows are wrong. Costs are of all rows.
    """

    dataset: str
    num_episodes: int
    num_rows: int
    fps: float
    num_files: int
    num_files_checked: int
    findings: tuple[Finding, ...]
    unusable_features: tuple[str, ...]
    unusable_episodes: tuple[int, ...]
    cameras: tuple[CameraCost, ...]
    rows: RowsCost | None
    clip_length: int | None
    num_clips: int | None
    usable_episodes: list[int]
    selection: RowCounts | None = None

    @property
    def is_fine(self) -> bool:
        """Whether no problem was found; there may be notes."""
        return not any(finding.is_problem for finding in self.findings)

    @property
    def bytes_per_example(self) -> float:
        """Bytes of one row with one frame of every camera; each byte fetched once."""
        return sum(camera.bytes_per_frame for camera in self.cameras) + (
            sum(self.rows.bytes_per_row.values()) if self.rows else 0
        )

    @property
    def bytes_per_epoch(self) -> int:
        """All of it once."""
        return round(self.bytes_per_example * self.num_rows)

    @property
    def requests_per_epoch(self) -> int | None:
        """At most about so many: one for every clip of every camera, one for every row group, two
        for the index of every file.
        """
        if self.num_clips is None:
            return None
        return (
            self.num_clips * len(self.cameras)
            + (self.rows.num_groups if self.rows else 0)
            + 2 * self.num_files
        )


def check(
    repository: Repository,
    *,
    max_files: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    episodes: EpisodeSelection = None,
    drop_first_frames: int = 0,
    drop_last_frames: int = 0,
    weights: WeightsArgument = None,
    valid_rows: ValidRowsArgument = None,
    stride: int = 1,
) -> CheckReport:
    """Checks a dataset without reading a frame or a row: one or two small requests for every
    file, side by side.

    Args:
      repository: the opened dataset.
      max_files: of each camera, and of the data files, so many are checked, evenly spaced; `None`:
        all.
      on_progress: called with the number of files that were checked, and of those that will be.
      episodes, drop_first_frames, drop_last_frames, weights, valid_rows, stride: as of
        `LeRobotIterDataset`: how many rows a stream with them has is counted, and wrong weights and
        valid rows are findings. A feature of these is read: one column of the data files. All files
        are checked, whatever is selected.

    Raises:
      InvalidRequestError: `max_files` is not an int >= 1; an argument of the selection is out of
        its range; `episodes` names an episode, or another one a feature or a table, that is not
        there.
      DatasetFormatError: such a table is too large.
      StorageError: `meta/` cannot be read any more. A file that cannot be read is a finding.
    """
    check_opened(repository, of="check")
    if max_files is not None:
        check_int("max_files", max_files, least=1, of="check", otherwise=", or None for all")
    selection = RowSelection(
        episodes=episodes,
        drop_first_frames=drop_first_frames,
        drop_last_frames=drop_last_frames,
        weights=weights,
        valid_rows=valid_rows,
        stride=stride,
    )
    if selection.is_everything:
        return _check(repository, max_files, on_progress)
    counts, wrong = count_rows(repository, selection)
    report = _check(repository, max_files, on_progress)
    return replace(report, selection=counts, findings=(*wrong, *report.findings))


def _check(
    repository: Repository,
    max_files: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> CheckReport:
    """Returns the report without a selection."""
    spans = _spans(repository)
    files = [
        (feature, number)
        for feature, of_feature in spans.items()
        for number in evenly_spread(len(of_feature.paths), max_files).tolist()
    ]
    findings = about_metadata(repository)
    found = _check_files(repository, files, on_progress)
    findings += found.findings
    findings += about_rows(found.rows)
    for key, facts in found.videos.items():
        findings += about_spans(repository, key)
        findings += about_camera(repository, key, facts)
    unusable_features, unusable_episodes = _unusable(findings, _seen_episodes(spans, files))
    episodes = repository.episodes
    clip_length = _clip_length(repository)
    return CheckReport(
        dataset=repository.description,
        num_episodes=episodes.num_episodes,
        num_rows=episodes.num_rows,
        fps=repository.fps,
        num_files=sum(len(of_feature.paths) for of_feature in spans.values()),
        num_files_checked=len(files),
        findings=_problems_first(findings, repository),
        unusable_features=unusable_features,
        unusable_episodes=_numbers(unusable_episodes, repository),
        cameras=tuple(camera_cost(key, facts) for key, facts in found.videos.items() if facts),
        rows=rows_cost(found.rows, len(episodes.data.paths)) if found.rows else None,
        clip_length=clip_length,
        num_clips=None if clip_length is None else int((-(-episodes.lengths // clip_length)).sum()),
        usable_episodes=np.delete(episodes.numbers, list(unusable_episodes)).tolist(),
    )


def _spans(repository: Repository) -> dict[str | None, FileSpans]:
    """Returns in which files the episodes lie: `None`: the data files; and those of each camera
    with video.
    """
    episodes = repository.episodes
    return {None: episodes.data, **{key: video.files for key, video in episodes.videos.items()}}


def _problems_first(findings: list[Finding], repository: Repository) -> tuple[Finding, ...]:
    """Returns the findings with numbers of episodes in place of positions."""
    return tuple(
        replace(finding, episodes=_numbers(finding.episodes, repository))
        for finding in sorted(findings, key=lambda finding: not finding.is_problem)
    )


def _clip_length(repository: Repository) -> int | None:
    try:
        return default_clip_length(repository.gop_length())
    except LeRobotGrainError:
        # what is wrong with the file that it is found from is among the findings
        return None


def _numbers(positions: Sequence[int], repository: Repository) -> tuple[int, ...]:
    """Returns the numbers of episodes by their positions in the episode table."""
    return tuple(repository.episodes.number_of(position) for position in positions)


def _results(
    repository: Repository,
    files: list[_File],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[list[Finding], VideoFacts | DataFacts | None]]:
    """Yields what is found in each file, in their order."""

    def check_file(
        file: _File,
    ) -> tuple[list[Finding], VideoFacts | DataFacts | None]:
        feature, number = file
        return (
            check_data_file(repository, number)
            if feature is None
            else check_video_file(repository, feature, number)
        )

    threads = DaemonPool(repository.storage.options.num_connections, "lerobot_grain check")
    try:
        for done, result in enumerate(threads.map(check_file, files), 1):
            yield result
            if on_progress is not None:
                on_progress(done, len(files))
    finally:
        threads.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Checked:
    """Everything that single files say.

    Attributes:
      findings: in the order of the files.
      rows: facts about the data files that could be opened.
      videos: facts about the video files that could be opened, of each camera with video.
    """

    findings: list[Finding]
    rows: list[DataFacts]
    videos: dict[str, list[VideoFacts]]


def _check_files(
    repository: Repository,
    files: list[_File],
    on_progress: Callable[[int, int], None] | None,
) -> _Checked:
    checked = _Checked([], [], {key: [] for key in repository.episodes.videos})
    results = _results(repository, files, on_progress)
    for (feature, _), (findings, facts) in zip(files, results, strict=True):
        checked.findings.extend(findings)
        if isinstance(facts, VideoFacts):
            assert feature is not None
            checked.videos[feature].append(facts)
        elif facts is not None:
            checked.rows.append(facts)
    return checked


def _seen_episodes(
    spans: Mapping[str | None, FileSpans], files: list[_File]
) -> dict[str | None, set[int]]:
    """Returns the episodes in the files that were checked, by the feature of the files."""
    seen: dict[str | None, set[int]] = {feature: set() for feature in spans}
    for feature, number in files:
        seen[feature].update(spans[feature].episodes_in(number).tolist())
    return seen


def _unusable(
    findings: list[Finding], seen: Mapping[str | None, set[int]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the features without a usable episode, and the episodes that are not usable with the
    others.

    Args:
      seen: the episodes in the files that were checked, of each camera with video; `None`: of the
        data files.
    """
    broken: dict[str | None, set[int]] = {}
    for finding in findings:
        if finding.is_problem:
            broken.setdefault(finding.feature, set()).update(finding.episodes)
    features = tuple(
        key
        for key, episodes in broken.items()
        if key is not None and episodes >= seen.get(key, seen[None])
    )
    left = [episodes for key, episodes in broken.items() if key not in features]
    return features, tuple(sorted(set().union(*left)))
