"""Costs of streaming a dataset, for its rows and each camera, from facts about its files. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lerobot_grain._inspection.file_checks import DataFacts, VideoFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraCost:
    """The video of a camera and its costs, judged by the files that were checked.

    Attributes:
      key: of the camera.
      codecs, sizes: those that occur; sizes as (height, width).
      gop_length: the most common one, of equally common ones the longest; `gop_min` and `gop_max`
        are the extremes.
      bytes_per_frame: of coded video.
      frame_rates: those that occur, ascending.
      pictures_alone: coded pictures that are decoded for a frame on average, where no other frame
        of its GOP is wanted: half a GOP and half a picture. A stream wants all, and decodes one.
    """

    key: str
    codecs: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    gop_length: int
    gop_min: int
    gop_max: int
    bytes_per_frame: float
    frame_rates: tuple[float, ...]
    pictures_alone: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsCost:
    """The costs of the rows, embedded images included, judged by the files that were checked.

    Attributes:
      bytes_per_row: column -> bytes in the files, compressed.
      num_groups: row groups of the whole dataset.
      largest_group_bytes: of the columns that info.json declares.
    """

    bytes_per_row: Mapping[str, float]
    num_groups: int
    largest_group_bytes: int


def camera_cost(key: str, facts: list[VideoFacts]) -> CameraCost:
    """Adds up the facts about video files of a camera, of at least one."""
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
        frame_rates=tuple(sorted({each.frame_rate for each in facts if each.frame_rate})),
        pictures_alone=sum(count * length * (length + 1) / 2 for length, count in counts.items())
        / sum(count * length for length, count in counts.items()),
    )


def rows_cost(facts: list[DataFacts], num_files: int) -> RowsCost:
    """Adds up the facts about data files, at least one of the `num_files` of the dataset."""
    columns: Counter[str] = Counter()
    for each in facts:
        columns.update(each.column_bytes)
    num_rows = sum(each.num_rows for each in facts)
    return RowsCost(
        bytes_per_row={key: nbytes / num_rows for key, nbytes in columns.items()},
        num_groups=round(sum(each.num_groups for each in facts) * num_files / len(facts)),
        largest_group_bytes=max(each.largest_group_bytes for each in facts),
    )
