"""Checks a dataset before it is trained on: whether every row has its frame, where its files
disagree, and what it costs to stream.

Reads `meta/`, and the indices of the video and data files, side by side; no picture and no row. So
it takes seconds, and finds what only random access exposes: a file that ends too early, an episode
with a frame less than rows. What is wrong with one file: `_inspection/file_checks`. Nothing is
printed: that is `_cli/check`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    short_repr,
)
from lerobot_grain._format.episodes import FileSpans
from lerobot_grain._format.features import camera_encoding
from lerobot_grain._format.layout import INFO_PATH
from lerobot_grain._format.texts import UnreadableTexts
from lerobot_grain._inspection.file_checks import (
    DataFacts,
    Finding,
    VideoFacts,
    and_more,
    check_data_file,
    check_video_file,
    make_finding,
)
from lerobot_grain._order.shuffle import LONG_GOP, default_clip_length
from lerobot_grain._reading.daemon_pool import DaemonPool
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import select_episodes
from lerobot_grain._video.codecs.table import CODECS

# A row needs its whole row group. The 64 parts of the default shuffle read in 64 groups side by
# side, which at this size is the half of the default memory budget.
_LARGE_GROUP_BYTES = 12 << 20
# What encoders and boxes are called in `video.codec`, where it is not the name of the codec.
_CODEC_NAMES = {alias: codec.name for codec in CODECS.values() for alias in codec.aliases}


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraCost:
    """What the video of a camera is and costs, judged by the files that were checked.

    Attributes:
      key: of the camera.
      codecs, sizes: those that occur; sizes as (height, width).
      gop_length: the most common one, of equally common ones the longest; `gop_min` and `gop_max`
        are the extremes.
      bytes_per_frame: of coded video.
    """

    key: str
    codecs: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    gop_length: int
    gop_min: int
    gop_max: int
    bytes_per_frame: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsCost:
    """What the rows cost, embedded images included, judged by the files that were checked.

    Attributes:
      bytes_per_row: column -> bytes in the files, compressed.
      num_groups: row groups of the whole dataset.
      largest_group_bytes: of the columns that info.json declares.
    """

    bytes_per_row: Mapping[str, float]
    num_groups: int
    largest_group_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check` found.

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

    @property
    def is_fine(self) -> bool:
        """Whether no problem was found; there may be notes."""
        return not any(finding.is_problem for finding in self.findings)

    @property
    def bytes_per_example(self) -> float:
        """Of one row with one frame of every camera; each byte fetched once."""
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
) -> CheckReport:
    """Checks a dataset without reading a picture or a row: one or two small requests for every
    file, side by side.

    Args:
      repository: the opened dataset.
      max_files: of each camera, and of the data files, so many are checked, evenly spaced; `None`:
        all.
      on_progress: called with the number of files that were checked, and of those that will be.

    Raises:
      InvalidRequestError: `max_files` is not an int >= 1.
      StorageError: `meta/` cannot be read any more. A file that cannot be read is a finding.
    """
    if max_files is not None:
        check_int("max_files", max_files, least=1, of="check", otherwise=", or None for all")
    episodes = repository.episodes
    spans: dict[str | None, FileSpans] = {None: episodes.data}
    spans |= {key: video.files for key, video in episodes.videos.items()}
    files = [
        (feature, number)
        for feature, of_feature in spans.items()
        for number in _spread(len(of_feature.paths), max_files)
    ]
    rows: list[DataFacts] = []
    videos: dict[str, list[VideoFacts]] = {key: [] for key in episodes.videos}
    findings = _about_metadata(repository)
    for (feature, _), (of_file, facts) in zip(
        files, _checked(repository, files, on_progress), strict=True
    ):
        findings += of_file
        if isinstance(facts, VideoFacts):
            assert feature is not None
            videos[feature].append(facts)
        elif facts is not None:
            rows.append(facts)
    findings += _about_rows(rows)
    for key, facts_of_camera in videos.items():
        findings += [
            *_about_spans(repository, key),
            *_about_camera(repository, key, facts_of_camera),
        ]
    seen = {
        feature: {
            e
            for f, number in files
            if f == feature
            for e in spans[feature].episodes_in(number).tolist()
        }
        for feature in spans
    }
    unusable_features, unusable_episodes = _unusable(findings, seen)
    try:
        clip_length = default_clip_length(repository.gop_length())
    except LeRobotGrainError:
        # what is wrong with the file that it is found from is among the findings
        clip_length = None
    return CheckReport(
        dataset=repository.description,
        num_episodes=episodes.num_episodes,
        num_rows=episodes.num_rows,
        fps=repository.fps,
        num_files=sum(len(of_feature.paths) for of_feature in spans.values()),
        num_files_checked=len(files),
        findings=tuple(
            replace(finding, episodes=_numbers(finding.episodes, repository))
            for finding in sorted(findings, key=lambda finding: not finding.is_problem)
        ),
        unusable_features=unusable_features,
        unusable_episodes=_numbers(unusable_episodes, repository),
        cameras=tuple(_camera_cost(key, facts) for key, facts in videos.items() if facts),
        rows=_rows_cost(rows, len(episodes.data.paths)) if rows else None,
        clip_length=clip_length,
        num_clips=None if clip_length is None else int((-(-episodes.lengths // clip_length)).sum()),
        usable_episodes=np.delete(episodes.numbers, list(unusable_episodes)).tolist(),
    )


def _numbers(positions: Sequence[int], repository: Repository) -> tuple[int, ...]:
    """Returns the numbers of episodes by their positions in the episode table."""
    return tuple(repository.episodes.number_of(position) for position in positions)


def _spread(count: int, at_most: int | None) -> list[int]:
    """Returns numbers below `count`, evenly spaced, the first and the last among them."""
    wanted = count if at_most is None else min(count, at_most)
    return sorted(set(np.linspace(0, count - 1, wanted).round().astype(int).tolist()))


def _checked(
    repository: Repository,
    files: list[tuple[str | None, int]],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[list[Finding], VideoFacts | DataFacts | None]]:
    """Yields what is found in each file, in their order."""

    def check_file(
        file: tuple[str | None, int],
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


def _declared(repository: Repository) -> dict[str, Any]:
    """Returns info.json as it is: it was read when the repository was opened."""
    storage = repository.storage
    info: dict[str, Any] = json.loads(
        storage.read_metadata(INFO_PATH, max_bytes=storage.list_metadata()[INFO_PATH])
    )
    return info


def _about_metadata(repository: Repository) -> list[Finding]:
    findings = [make_finding("note", *note.split(": ", 1)) for note in repository.notes]
    everyone = np.arange(repository.episodes.num_episodes)
    for key, feature in repository.features.items():
        if feature.is_video and key not in repository.episodes.videos:
            text = (
                f"camera {key!r} has no video: there is no video_path, or the episode table "
                f"has no columns videos/{key}/..."
            )
            findings.append(
                make_finding(
                    "no_video", INFO_PATH, text, feature=key, episodes=everyone, is_problem=True
                )
            )
    for key, problem in repository.info.unreadable.items():
        findings.append(
            make_finding(
                "unreadable_feature",
                INFO_PATH,
                problem,
                feature=key,
                episodes=everyone,
                is_problem=True,
            )
        )
    for name, span in repository.info.splits.items():
        try:
            select_episodes(repository, name)
        except LeRobotGrainError as error:
            findings.append(
                make_finding(
                    "split",
                    INFO_PATH,
                    f"split {short_repr(name)}, {short_repr(span)}, cannot be selected: {error}",
                )
            )
    total = _declared(repository).get("total_tasks")
    if not isinstance(repository.tasks, UnreadableTexts) and total not in (
        None,
        len(repository.tasks),
    ):
        findings.append(
            make_finding(
                "total_tasks",
                INFO_PATH,
                f"total_tasks is {short_repr(total)}, the table of tasks has "
                f"{len(repository.tasks)}",
            )
        )
    return findings


def _about_spans(repository: Repository, key: str) -> list[Finding]:
    """Returns where `to_timestamp`, which is not used for reading, contradicts the number of rows
    or the next episode of the file.
    """
    if repository.info.major_version == 2:
        return []  # there every episode has a video file of its own, and no such column
    spans = repository.episodes.videos[key]
    where = "meta/episodes"
    name = f"videos/{key}/to_timestamp"
    half_a_frame = 0.5 / repository.fps
    number_of = repository.episodes.number_of
    try:
        stops = repository.episode_column(name).astype(np.float64)
    except (InvalidRequestError, DatasetFormatError, ValueError, TypeError):
        return [
            make_finding("durations", where, f"there is no column {name} of seconds", feature=key)
        ]
    findings = []
    starts = spans.from_timestamp_seconds
    off = stops - starts - repository.episodes.lengths / repository.fps
    if (odd := np.flatnonzero(~(np.abs(off) <= half_a_frame))).size:
        i = odd[0]
        text = (
            f"episode {number_of(i)} has {repository.episodes.lengths[i]} rows, but "
            f"{stops[i] - starts[i]:.6f} s of video until its to_timestamp, "
            f"{off[i] * repository.fps:+.1f} frames"
        )
        findings.append(
            make_finding("durations", where, f"{text}{and_more(odd)}", feature=key, episodes=odd)
        )
    by_start = np.lexsort((starts, spans.files.file_of_episode))
    before = by_start[:-1]
    after = by_start[1:]
    gaps = starts[after] - stops[before]
    together = spans.files.file_of_episode[before] == spans.files.file_of_episode[after]
    if (odd := np.flatnonzero(together & (np.abs(gaps) > half_a_frame))).size:
        i = odd[0]
        kind = "begins before the end" if gaps[i] < 0 else "does not begin at the end"
        text = (
            f"episode {number_of(after[i])} {kind} of episode {number_of(before[i])} in the "
            f"same file: {gaps[i]:+.6f} s"
        )
        findings.append(
            make_finding("spans", where, f"{text}{and_more(odd)}", feature=key, episodes=after[odd])
        )
    return findings


def _about_camera(repository: Repository, key: str, facts: list[VideoFacts]) -> list[Finding]:
    """Returns what is odd or costly about all files of a camera together, and what info.json says
    wrongly about them.
    """
    if not facts:
        return []
    path = f"videos/{key}"
    cost = _camera_cost(key, facts)
    findings = []
    encoding = camera_encoding(_declared(repository)["features"][key])
    codec = encoding.get("video.codec")
    rate = encoding.get("video.fps")
    if isinstance(codec, str) and cost.codecs != (_CODEC_NAMES.get(codec, codec),):
        findings.append(
            make_finding(
                "codec",
                INFO_PATH,
                f"camera {key!r} has video.codec {short_repr(codec)}; its files have "
                f"{', '.join(cost.codecs)}",
            )
        )
    if isinstance(rate, int | float) and rate != repository.fps:
        findings.append(
            make_finding(
                "frame_rate",
                INFO_PATH,
                f"camera {key!r} has video.fps {short_repr(rate)}; the dataset has fps "
                f"{repository.fps:g}",
            )
        )
    for what, number in (("codecs", len(cost.codecs)), ("frame sizes", len(cost.sizes))):
        if number > 1:
            findings.append(
                make_finding(
                    "several_encodings", path, f"its files have {number} {what}", feature=key
                )
            )
    if (number := len({each.format for each in facts})) > 1:
        text = (
            f"its {len(facts)} files have {number} parameter sets; pictures of different ones "
            "are not decoded together, which is slower"
        )
        findings.append(make_finding("several_encodings", path, text, feature=key))
    if cost.gop_length > LONG_GOP:
        text = (
            f"most key frames are {cost.gop_length} pictures apart; above {LONG_GOP} a "
            "shuffled stream may decode pictures more than once"
        )
        findings.append(make_finding("long_gops", path, text, feature=key))
    return findings


def _about_rows(facts: list[DataFacts]) -> list[Finding]:
    findings = []
    if undeclared := sorted({name for each in facts for name in each.undeclared}):
        text = (
            "columns that info.json does not declare, and that are not read: "
            f"{short_repr(undeclared)}"
        )
        findings.append(make_finding("undeclared_columns", "data", text))
    if (
        largest := max((each.largest_group_bytes for each in facts), default=0)
    ) > _LARGE_GROUP_BYTES:
        text = (
            f"a row group has {largest / 1e6:,.1f} MB, and every row of it needs all of them; "
            f"above {_LARGE_GROUP_BYTES >> 20} MiB a shuffled stream may fetch row groups more "
            "than once: give Shuffle(open_files=...), or fewer features="
        )
        findings.append(make_finding("large_row_groups", "data", text))
    return findings


def _camera_cost(key: str, facts: list[VideoFacts]) -> CameraCost:
    counts: Counter[int] = Counter()
    for each in facts:
        counts.update(each.gop_counts)
    return CameraCost(
        key=key,
        codecs=tuple(sorted({each.format.codec for each in facts})),
        sizes=tuple(sorted({each.format.frame_size for each in facts})),
        gop_length=max(counts, key=lambda length: (counts[length], length)),
        gop_min=min(counts),
        gop_max=max(counts),
        bytes_per_frame=sum(each.coded_bytes for each in facts)
        / sum(each.num_frames for each in facts),
    )


def _rows_cost(facts: list[DataFacts], num_files: int) -> RowsCost:
    columns: Counter[str] = Counter()
    for each in facts:
        columns.update(each.column_bytes)
    num_rows = sum(each.num_rows for each in facts)
    return RowsCost(
        bytes_per_row={key: nbytes / num_rows for key, nbytes in columns.items()},
        num_groups=round(sum(each.num_groups for each in facts) * num_files / len(facts)),
        largest_group_bytes=max(each.largest_group_bytes for each in facts),
    )
