"""Checks of a dataset as a whole: of `meta/`, of the spans of episodes in video files, and of all
files of a camera, or of the rows, together.

Not here: checks of one file (`_inspection/file_checks`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lerobot_grain._base.errors import (
    DatasetFormatError,
    InvalidRequestError,
    LeRobotGrainError,
    short_repr,
)
from lerobot_grain._format.features import camera_encoding
from lerobot_grain._format.layout import INFO_PATH
from lerobot_grain._format.texts import UnreadableTexts
from lerobot_grain._inspection.costs import camera_cost
from lerobot_grain._inspection.file_checks import (
    DataFacts,
    Finding,
    VideoFacts,
    and_more,
    make_finding,
)
from lerobot_grain._order.shuffle import LONG_GOP
from lerobot_grain._repository.repository import Repository
from lerobot_grain._repository.selection import select_episodes
from lerobot_grain._video.codecs.table import CODECS

# A row needs its whole row group. The 64 parts of the default shuffle read in 64 groups side by
# side, which at this size is the half of the default memory budget.
_LARGE_GROUP_BYTES = 12 << 20
# Names of encoders and boxes that stand in `video.codec` in place of the codec's.
_CODEC_NAMES = {alias: codec.name for codec in CODECS.values() for alias in codec.aliases}


def _declared(repository: Repository) -> dict[str, Any]:
    """Returns info.json as it is: it was read when the repository was opened."""
    storage = repository.storage
    info: dict[str, Any] = json.loads(
        storage.read_metadata(INFO_PATH, max_bytes=storage.list_metadata()[INFO_PATH])
    )
    return info


def about_metadata(repository: Repository) -> list[Finding]:
    """Returns where the files of `meta/` contradict each other, and their notes.

    Raises:
      StorageError: they cannot be read any more.
    """
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


def about_spans(repository: Repository, key: str) -> list[Finding]:
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


def about_camera(repository: Repository, key: str, facts: list[VideoFacts]) -> list[Finding]:
    """Returns what is odd or costly about all files of a camera together, and what info.json says
    wrongly about them.
    """
    if not facts:
        return []
    path = f"videos/{key}"
    cost = camera_cost(key, facts)
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
            f"its {len(facts)} files have {number} parameter sets; frames of different ones "
            "are not decoded together, which is slower"
        )
        findings.append(make_finding("several_encodings", path, text, feature=key))
    if cost.gop_length > LONG_GOP:
        text = (
            f"most key frames are {cost.gop_length} frames apart; above {LONG_GOP} a "
            "shuffled stream may decode frames more than once"
        )
        findings.append(make_finding("long_gops", path, text, feature=key))
    return findings


def about_rows(facts: list[DataFacts]) -> list[Finding]:
    """Returns what is odd or costly about all data files together."""
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
