"""The contents and defects of one file of a dataset, judged by its index: the `moov` of a video,
the footer of a data file.

Rules:
* The reader's own modules decide which files are refused, and their message is the finding. Only
  what it takes without a word is looked at here.
* A *problem* is what training would run into: examples that cannot be read, or frames that may
  not belong to their rows. Everything else is a *note*: what is odd, costly, or not as it is
  declared, but is read.
* Findings are values in the order of the file; nothing is printed or raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError, MissingFileError
from lerobot_grain._format.info import NUMERIC_DTYPES, Feature
from lerobot_grain._parquet.columns import (
    element_dtype,
    example_column,
    to_encoded_images,
    to_numpy,
    to_strings,
)
from lerobot_grain._parquet.table import ParquetTable
from lerobot_grain._reading.rows.data_files import open_data_file
from lerobot_grain._reading.video_files import open_video
from lerobot_grain._repository.repository import Repository
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.row_frames import frames_until
from lerobot_grain._video.video_file import VideoFile

# lerobot's own tolerance (`tolerance_s`): its reader refuses what is further off.
_TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that `check` found.

    Attributes:
      kind: a short name that does not change, such as `missing_file`; docs/check.md has them all.
      is_problem: examples cannot be read, or their frames may not belong to their rows. Otherwise
        it is odd or costly, and is read.
      path: the file, from the top of the dataset; of weights or valid rows, the table that was
        given, or empty.
      feature: key of the feature that it concerns; `None`: all of them.
      episodes: numbers of the episodes that it concerns, ascending; empty where it is not about
        episodes. (Positions in the episode table until `check` hands them out.)
      text: what was found and what was expected.
    """

    kind: str
    is_problem: bool
    path: str
    feature: str | None = None
    episodes: tuple[int, ...] = ()
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """One video file.

    Attributes:
      format: as in its sample table.
      num_frames, coded_bytes: of the whole file.
      frame_rate: frames a second, by the median distance of two; `None` for a file of one frame.
      gop_counts: coded pictures of a GOP -> how many GOPs have so many.
    """

    format: VideoFormat
    num_frames: int
    coded_bytes: int
    frame_rate: float | None
    gop_counts: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """One data file.

    Attributes:
      num_rows, num_groups: of the file.
      column_bytes: declared column -> its bytes in the file.
      largest_group_bytes: of the declared columns of one row group.
      undeclared: columns that info.json does not declare.
    """

    num_rows: int
    num_groups: int
    column_bytes: Mapping[str, int]
    largest_group_bytes: int
    undeclared: tuple[str, ...]


def check_video_file(
    repository: Repository, camera: str, number: int
) -> tuple[list[Finding], VideoFacts | None]:
    """Checks one video file; there are no facts where it cannot be opened."""
    spans = repository.episodes.videos[camera].files
    held = spans.episodes_in(number)
    try:
        file = open_video(repository, camera, number)
    except LeRobotGrainError as error:
        return [_unreadable(error, repository, spans.paths[number], camera, held)], None
    table = file.table
    findings = [
        *_frames_of_rows(file, repository, held),
        *_frame_size(file, repository, held),
        *_as_shown(file),
    ]
    counts = np.bincount(table.gop_lengths())
    facts = VideoFacts(
        format=table.format,
        num_frames=table.num_frames,
        coded_bytes=int(table.sizes.sum()),
        frame_rate=_frame_rate(table.times_seconds()),
        gop_counts={int(length): int(counts[length]) for length in np.flatnonzero(counts)},
    )
    return findings, facts


def check_data_file(repository: Repository, number: int) -> tuple[list[Finding], DataFacts | None]:
    """Checks one data file; there are no facts where it cannot be opened."""
    spans = repository.episodes.data
    path = spans.paths[number]
    held = spans.episodes_in(number)
    columns = [feature for feature in repository.features.values() if not feature.is_video]
    try:
        table = open_data_file(repository, number).table
        present = [feature.key for feature in columns if feature.key in table.leaves]
        column_bytes = dict.fromkeys(present, 0)
        largest = 0
        for group in range(table.metadata.num_row_groups):
            of_group = {
                key: sum(chunk.length for chunk in table.ranges(group, [key])) for key in present
            }
            largest = max(largest, sum(of_group.values()))
            column_bytes = {key: column_bytes[key] + of_group[key] for key in present}
    except LeRobotGrainError as error:
        return [_unreadable(error, repository, path, None, held)], None
    facts = DataFacts(
        num_rows=table.num_rows,
        num_groups=table.metadata.num_row_groups,
        column_bytes=column_bytes,
        largest_group_bytes=largest,
        undeclared=tuple(
            sorted(
                set(table.leaves)
                - {feature.key for feature in columns}
                - set(repository.info.unreadable)
            )
        ),
    )
    return [finding for feature in columns for finding in _column(table, feature, held)], facts


def make_finding(
    kind: str,
    path: str,
    text: str,
    *,
    feature: str | None = None,
    episodes: Integers | None = None,
    is_problem: bool = False,
) -> Finding:
    """Returns a finding about a file; `episodes`, int64 `(n,)`, in any order."""
    numbers = () if episodes is None else tuple(sorted(episodes.tolist()))
    return Finding(
        kind=kind,
        is_problem=is_problem,
        path=path,
        feature=feature,
        episodes=numbers,
        text=f"{path}: {text}",
    )


def and_more(episodes: Integers) -> str:
    """Returns the end of a text about the first of some episodes."""
    return (
        f" (and {len(episodes) - 1} more episode{'s' * (len(episodes) > 2)})"
        if len(episodes) > 1
        else ""
    )


def _frame_rate(times: npt.NDArray[np.float64]) -> float | None:
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    # To a thousandth: times are rounded to the ticks of the file.
    return round(1 / apart, 3) if apart > 0 else None


def _unreadable(
    error: LeRobotGrainError, repository: Repository, path: str, feature: str | None, held: Integers
) -> Finding:
    kinds: dict[type, str] = {MissingFileError: "missing_file", DatasetFormatError: "refused_file"}
    # Every message begins with the name of the dataset, and most go on with the path.
    text = str(error).removeprefix(repository.description).lstrip(",: ").removeprefix(f"{path}: ")
    text = text.replace(f"there is no file {path}", "there is no such file")
    return make_finding(
        kinds.get(type(error), "unreadable_file"),
        path,
        text,
        feature=feature,
        episodes=held,
        is_problem=True,
    )


def _frame_size(file: VideoFile, repository: Repository, held: Integers) -> list[Finding]:
    size = file.table.format.frame_size
    declared = repository.features[file.camera].shape[:2]
    if size == declared:
        return []
    text = (
        f"its frames are {size[0]}x{size[1]} (height x width), info.json declares "
        f"{declared[0]}x{declared[1]}; only with image_size= they are read"
    )
    return [
        make_finding(
            "frame_size", file.path, text, feature=file.camera, episodes=held, is_problem=True
        )
    ]


def _as_shown(file: VideoFile) -> list[Finding]:
    """Returns what the headers of the file change about its frames."""
    findings = []
    if hidden := file.table.num_samples - file.table.num_frames - file.num_hidden:
        text = (
            f"its edit list hides {hidden} of its {file.table.num_samples} coded pictures, "
            "here as in FFmpeg"
        )
        findings.append(make_finding("hidden_frames", file.path, text, feature=file.camera))
    if rotation := file.table.format.rotation:
        text = f"its header turns frames by {rotation} degrees clockwise; they are given turned"
        findings.append(make_finding("rotation", file.path, text, feature=file.camera))
    return findings


def _about_video(
    file: VideoFile, kind: str, episodes: Integers, text: str, *, is_problem: bool = False
) -> Finding:
    """Returns a finding about some episodes, with a text about the first of them."""
    return make_finding(
        kind,
        file.path,
        text + and_more(episodes),
        feature=file.camera,
        episodes=episodes,
        is_problem=is_problem,
    )


def _frames_of_rows(file: VideoFile, repository: Repository, held: Integers) -> list[Finding]:
    """Returns what is wrong with the link between rows and frames."""
    findings = []
    if file.problems:
        wrong = np.array(sorted(file.problems))
        findings.append(
            _about_video(
                file,
                "frames",
                wrong,
                f"episode {file.number_of(wrong.item(0))}: {file.problems[wrong.item(0)]}",
                is_problem=True,
            )
        )
    good = held[~np.isin(held, list(file.problems))]
    if len(good) == 0:
        return findings
    first_frames = file.first_frames(held)
    left_over = (
        frames_until(first_frames, file.table.num_frames)
        - first_frames
        - repository.episodes.lengths[held]
    )
    left_over = left_over[np.isin(held, good)]
    findings += _unused_frames(file, good, int(first_frames.min()), left_over)
    findings += _starts_of_episodes(file, repository, good)
    return findings + _times_of_frames(file, repository, good[~np.isin(good, file.named)])


def _unused_frames(
    file: VideoFile, episodes: Integers, num_before: int, left_over: Integers
) -> list[Finding]:
    """Returns the frames that belong to no row: before the first episode, between those of one, and
    after one, int64 `(episodes,)`.
    """
    findings = []
    num_frames = file.table.num_frames + file.num_hidden
    if len(file.named):
        text = (
            f"episode {file.number_of(file.named.item(0))} has fewer rows than frames, and its "
            f"timestamps name the frames of its rows; {file.num_hidden} frames of the file belong "
            "to no row"
        )
        findings.append(_about_video(file, "dropped_rows", file.named, text))
    if unused := int(num_before + left_over.sum()):
        most = left_over.argmax()
        after = f"{left_over[most]} of them after episode {file.number_of(episodes.item(most))}"
        place = after if left_over[most] else "all of them before the first episode"
        text = f"{unused} of its {num_frames} frames belong to no row, {place}"
        findings.append(
            make_finding(
                "unused_frames",
                file.path,
                text,
                feature=file.camera,
                episodes=episodes[left_over > 0],
            )
        )
    return findings


def _starts_of_episodes(
    file: VideoFile, repository: Repository, episodes: Integers
) -> list[Finding]:
    """Returns the episodes that are read, int64 `(n,)`, and do not begin where and as they
    should.
    """
    findings = []
    table = file.table
    # If the first rows of an episode were dropped, another frame is the first.
    regular = episodes[~np.isin(episodes, file.named)]
    first = file.first_frames(regular)
    starts = repository.episodes.videos[file.camera].from_timestamp_seconds[regular]
    times = table.times_seconds()[first]
    if (late := np.flatnonzero(np.abs(times - starts) > _TOLERANCE_SECONDS)).size:
        i = late[0]
        text = (
            f"episode {file.number_of(regular.item(i))} should start at {starts[i]:.6f} s; its "
            f"first frame is the one at {times[i]:.6f} s; lerobot refuses it"
        )
        findings.append(_about_video(file, "from_timestamp", regular[late], text))
    if (odd := regular[~np.isin(table.presentation[first], table.key_samples) & (first > 0)]).size:
        text = (
            f"episode {file.number_of(odd.item(0))} does not begin at a key frame, as an episode "
            "that was recorded on its own does; if the episodes before it have more frames than "
            "the table says, its frames are theirs"
        )
        findings.append(_about_video(file, "key_frame", odd, text))
    return findings


def _times_of_frames(file: VideoFile, repository: Repository, episodes: Integers) -> list[Finding]:
    """Returns which episodes, int64 `(n,)`, that have a frame for every row, have frames that are
    not `1 / fps` apart.
    """
    table = file.table
    fps = repository.fps
    if len(episodes) == 0:
        return []
    times = table.times_seconds()
    first = file.first_frames(episodes)
    lengths = repository.episodes.lengths[episodes]
    drift = _drift_seconds(times, first, lengths, fps)
    if not (drift > _TOLERANCE_SECONDS).any():
        return []
    i = drift.argmax()
    seconds = (times[first[i] + lengths[i] - 1] - times[first[i]]) / (lengths[i] - 1)
    text = (
        f"a frame of episode {file.number_of(episodes.item(i))} is {drift[i]:.6f} s from where "
        f"{fps:g} fps put it; its frames are {seconds:.6f} s apart on average ({1 / seconds:g} "
        "fps); the k-th row is given the k-th frame; lerobot refuses it"
    )
    return [_about_video(file, "frame_times", episodes[drift > _TOLERANCE_SECONDS], text)]


def _drift_seconds(
    times: npt.NDArray[np.float64], first: Integers, lengths: Integers, fps: float
) -> npt.NDArray[np.float64]:
    """Returns float64 `(episodes,)`: how far, at most, a frame of each episode is from frame / fps
    after its first one.
    """
    begins = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
    found = times[np.repeat(first, lengths) + within] - np.repeat(times[first], lengths)
    return np.maximum.reduceat(np.abs(found - within / fps), begins)


def _column(table: ParquetTable, feature: Feature, episodes: Integers) -> list[Finding]:
    """Returns what is wrong with the column of a feature, as far as its type tells."""

    def finding(kind: str, text: str, *, is_problem: bool) -> list[Finding]:
        concerned = episodes if is_problem else None
        return [
            make_finding(
                kind,
                table.path,
                text,
                feature=feature.key,
                episodes=concerned,
                is_problem=is_problem,
            )
        ]

    if feature.key not in table.leaves:
        return finding(
            "missing_column",
            f"there is no column {feature.key!r}, which info.json declares",
            is_problem=True,
        )
    if feature.dtype == "language":
        return []
    kind = table.schema.field(feature.key).type
    convert = (
        to_encoded_images
        if feature.is_camera
        else to_strings
        if feature.dtype == "string"
        else to_numpy
    )
    example = example_column(kind, feature)
    try:
        if example is not None:
            convert(example, feature, where=table.path)
    except DatasetFormatError:
        text = (
            f"column {feature.key!r} is of type {kind}; info.json declares {feature.dtype} "
            f"{feature.shape}"
        )
        return finding("column_type", text, is_problem=True)
    if feature.dtype in NUMERIC_DTYPES and (stored := element_dtype(kind)) != feature.dtype:
        text = (
            f"column {feature.key!r} holds {stored}; info.json declares {feature.dtype}, which "
            "its values are converted to"
        )
        return finding("column_type", text, is_problem=False)
    return []
