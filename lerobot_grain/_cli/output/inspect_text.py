"""The text that `lerobot-grain inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator

from lerobot_grain._cli.output.report import Part, Table
from lerobot_grain._cli.output.units import duration, shape_text, size
from lerobot_grain._inspection.overview.dataset_summary import (
    CameraSummary,
    DatasetSummary,
    EpisodeLengths,
    FeatureSummary,
)

# Tasks, and names of components, that are shown; --json has all.
_SHOWN_TASKS = 10
_SHOWN_NAMES = 8
_BAR_WIDTH = 40


def summary_parts(summary: DatasetSummary) -> Iterator[Part]:
    """Yields a summary as lines and tables."""
    yield (
        f"{summary.dataset}: LeRobotDataset {summary.version}"
        + (f", robot {summary.robot}" if summary.robot else "")
        + f"\n{summary.num_episodes:,} episodes, {summary.num_rows:,} rows at {summary.fps:g} fps, "
        + duration(summary.seconds)
    )
    if summary.splits:
        yield "splits: " + ", ".join(f"{name} {span}" for name, span in summary.splits.items())
    if summary.cameras:
        yield "\ncameras:"
        yield Table(
            header=("key", "size", "codec", "GOP", "fps", "bytes a frame"),
            rows=[_camera_row(camera) for camera in summary.cameras],
            numbers=(5,),
        )
    yield "\nfeatures:"
    yield Table(
        header=("key", "dtype", "shape", "bytes a row", "names"),
        rows=[_feature_row(feature) for feature in summary.features],
        numbers=(3,),
    )
    for key, problem in summary.unreadable.items():
        yield f"  {key} cannot be read: {problem}"
    yield f"\ntasks: {len(summary.tasks):,}"
    yield Table(rows=[(task,) for task in summary.tasks[:_SHOWN_TASKS]])
    if len(summary.tasks) > _SHOWN_TASKS:
        yield f"  ... and {len(summary.tasks) - _SHOWN_TASKS:,} more; --json has them all"
    yield "\nepisode lengths, in frames:"
    yield from _length_parts(summary.lengths, summary.fps)
    yield "\nan epoch, each byte fetched once" + (
        f"; estimated from {summary.num_files_read:,} of {summary.num_files:,} files:"
        if summary.cost.is_sample
        else ":"
    )
    yield Table(rows=_cost_rows(summary))
    for note in summary.notes:
        yield f"note: {note}"
    if summary.num_problems:
        yield (
            f"\n{summary.num_problems:,} problem{'s' * (summary.num_problems > 1)} found; "
            "`lerobot-grain check` says which"
        )


def _camera_row(camera: CameraSummary) -> tuple[str, ...]:
    sizes = {camera.size} if camera.video is None else {camera.size, *camera.video.sizes}
    pixels = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
    if camera.unit is not None:
        pixels += f", depth in {camera.unit}"
    amount = "" if camera.bytes_per_frame is None else f"{camera.bytes_per_frame:,.0f}"
    if camera.video is None:
        kind = "embedded images" if camera.kind == "image" else "no file could be opened"
        return camera.key, pixels, kind, "", "", amount
    video = camera.video
    gop = str(video.gop_length)
    if video.gop_min < video.gop_max:
        gop += f" ({video.gop_min} to {video.gop_max})"
    rates = " and ".join(f"{rate:g}" for rate in video.frame_rates)
    return camera.key, pixels, ", ".join(video.codecs), gop, rates, amount


def _feature_row(feature: FeatureSummary) -> tuple[str, ...]:
    names = ", ".join(feature.names[:_SHOWN_NAMES])
    if len(feature.names) > _SHOWN_NAMES:
        names += f", ... ({len(feature.names)})"
    amount = "" if feature.bytes_per_row is None else f"{feature.bytes_per_row:,.1f}"
    return feature.key, feature.dtype, shape_text(feature.shape), amount, names


def _length_parts(lengths: EpisodeLengths, fps: float) -> Iterator[Part]:
    yield (
        f"  shortest {lengths.shortest:,}, median {lengths.median:,.0f}, mean {lengths.mean:,.1f}, "
        f"longest {lengths.longest:,} ({duration(lengths.longest / fps)})"
    )
    most = max(each.count for each in lengths.histogram)
    rows = []
    for each in lengths.histogram:
        span = f"{each.start:,}" + (f" to {each.stop - 1:,}" if each.stop - each.start > 1 else "")
        # A bar for every episode that is there, be it one of thousands.
        bar = "#" * max(round(each.count / most * _BAR_WIDTH), each.count > 0)
        rows.append((span, f"{each.count:,}", bar))
    yield Table(rows=rows, numbers=(0, 1))


def _cost_rows(summary: DatasetSummary) -> list[tuple[str, str]]:
    cost = summary.cost
    total = cost.video_bytes + cost.row_bytes
    of_each = f": video {size(cost.video_bytes)}, rows {size(cost.row_bytes)}"
    rows = [("bytes", size(total) + (of_each if cost.video_bytes else ""))]
    if cost.requests is not None:
        rows.append(("requests", f"at most about {cost.requests:,}"))
    if cost.pictures:
        alone = [f"{camera.video.pictures_alone:.1f}" for camera in summary.cameras if camera.video]
        rows.append(
            (
                "decoded",
                f"{cost.pictures:,} pictures, one a frame"
                + (f"; a frame without its neighbors takes {', '.join(alone)}" if alone else ""),
            )
        )
    if cost.clip_length is not None:
        rows.append(("clip_length", f"{cost.clip_length} frames, the default of Shuffle here"))
    if cost.largest_group_bytes is not None:
        rows.append(
            ("row group", f"at most {size(cost.largest_group_bytes)}; a row needs all of it")
        )
    return rows
