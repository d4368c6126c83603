"""The boxes of an MP4 track that describe its samples (ISO/IEC 14496-12, clause 8) -> arrays. Pure.

`_video/mp4` makes the sample table of them.

The edit list decides which pictures are frames, as it does in FFmpeg (`mov_fix_index` in its
`libavformat/mov.c`), and so in torchcodec, PyAV and lerobot: a picture that begins before the edit,
or at its end or later, is decoded where others need it, but never shown. A cut through a picture,
as `ffmpeg -ss` leaves it, hides that picture. Times count from the first frame that is shown, as
the frame numbers of torchcodec's approximate mode do, which lerobot reads with.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.boxes import Bytes, boxes, only_box

# 30 hours at 30 fps and more; larger counts are refused before anything is allocated.
_MAX_PICTURES = 4_000_000
# Players' edit lists have a few.
_MAX_EDITS = 1000
# Boxes that must not be there twice: which one counts would be a guess.
_TABLES = frozenset(("stsd", "stts", "ctts", "stss", "stsc", "stsz", "stco", "co64"))


def sample_boxes(media: Bytes, where: str) -> dict[str, Bytes]:
    """Returns type -> payload of the boxes in `stbl`, of which those that are needed are there.

    Args:
      media: payload of the `mdia` box of a track.
      where: names the file in messages, here and below.

    Raises:
      DatasetFormatError: one is missing, or there twice. Everything below raises it for a box that
        is malformed or contradicts another one, and NumPy's and struct's errors for one that is too
        short for its fields.
    """
    information = only_box(only_box(media, "minf", where, "mdia"), "stbl", where, "minf")
    tables: dict[str, Bytes] = {}
    for kind, payload in boxes(information, where, "stbl"):
        if kind in tables and kind in _TABLES:
            raise DatasetFormatError(f"{where}: stbl holds two boxes {kind}; expected one")
        tables[kind] = payload
    for kind in ("stsd", "stts", "stsc", "stsz"):
        if kind not in tables:
            raise DatasetFormatError(
                f"{where}: stbl holds no box {kind}; found {', '.join(tables)[:400]}"
            )
    return tables


def read_sizes(stsz: Bytes, file_size_bytes: int, where: str) -> Integers:
    """Returns int64 `(samples,)`: bytes of each sample."""
    constant, count = struct.unpack_from(">II", stsz, 4)
    # A sample is at least one byte, so a larger count is a lie; a constant size takes no place in
    # the box, so the count is bounded, too.
    if (
        count == 0
        or count > min(file_size_bytes, _MAX_PICTURES)
        or (constant == 0 and len(stsz) < 12 + 4 * count)
    ):
        raise DatasetFormatError(
            f"{where}: stsz says {count} samples in a box of {len(stsz)} bytes and a file of "
            f"{file_size_bytes}"
        )
    if constant:
        return np.full(count, constant, np.int64)
    return np.frombuffer(stsz, ">u4", count, 12).astype(np.int64)


def read_offsets(
    tables: dict[str, Bytes], sizes: Integers, file_size_bytes: int, where: str
) -> Integers:
    """Returns the byte offset of every sample: samples are stored in chunks, one after the other
    inside each (ISO/IEC 14496-12, 8.7.4).
    """
    if ("stco" in tables) == ("co64" in tables):
        raise DatasetFormatError(f"{where}: expected one of the boxes stco and co64")
    chunk_offsets = (
        _array(tables["stco"], ">u4", 1, "stco", where)
        if "stco" in tables
        else _array(tables["co64"], ">u8", 1, "co64", where)
    )
    chunk_offsets = chunk_offsets[:, 0].astype(np.int64)
    runs = _array(tables["stsc"], ">u4", 3, "stsc", where).astype(np.int64)
    first_chunks = runs[:, 0] - 1
    if (
        len(runs) == 0
        or first_chunks[0] != 0
        or (np.diff(first_chunks) <= 0).any()
        or first_chunks[-1] >= len(chunk_offsets)
    ):
        raise DatasetFormatError(
            f"{where}: stsc does not describe the {len(chunk_offsets)} chunks in order"
        )
    samples_per_chunk = np.repeat(runs[:, 1], np.diff(first_chunks, append=len(chunk_offsets)))
    if samples_per_chunk.sum() != len(sizes):
        raise DatasetFormatError(
            f"{where}: the chunks hold {samples_per_chunk.sum()} samples, stsz {len(sizes)}"
        )
    ends = np.cumsum(sizes)
    first_samples = np.cumsum(samples_per_chunk) - samples_per_chunk
    chunk_starts = np.concatenate(([0], ends))[first_samples]
    offsets = np.repeat(chunk_offsets - chunk_starts, samples_per_chunk) + ends - sizes
    # Not offsets + sizes, which may be beyond the end of the integers.
    if (bad := np.flatnonzero((offsets < 0) | (offsets > file_size_bytes - sizes))).size:
        start = int(offsets[bad[0]])
        size = int(sizes[bad[0]])
        raise DatasetFormatError(
            f"{where}: picture {bad[0]} of {len(sizes)} should lie at bytes [{start}, "
            f"{start + size}), but the file has {file_size_bytes}; it is truncated"
        )
    return offsets


def read_times(tables: dict[str, Bytes], count: int, where: str) -> tuple[Integers, Integers]:
    """Returns decode times and composition times of `count` samples in ticks, int64 `(samples,)`
    each.
    """
    ends = np.cumsum(_run_lengths(tables["stts"], ">u4", count, "stts", where))
    decode_times = np.concatenate(([0], ends[:-1]))
    if "ctts" not in tables:
        return decode_times, decode_times
    # Version 0 is unsigned by the standard; but writers put negative offsets there, and
    # FFmpeg reads both as signed.
    offsets = _run_lengths(tables["ctts"], ">i4", count, "ctts", where)
    return decode_times, decode_times + offsets


class Edit(NamedTuple):
    """The part of the media that an edit list shows: [start, start + length), after a wait; all in
    ticks of the media.
    """

    start: int
    length: int
    wait: int


def read_edit(track: Bytes, movie: bytes, timescale: int, where: str) -> Edit | None:
    """Returns the one edit of a track; `None` where there is no edit list, which shows
    everything.
    """
    edits = [payload for kind, payload in boxes(track, where, "trak") if kind == "edts"]
    entries = _edits(only_box(edits[0], "elst", where, "edts")) if edits else []
    if not entries:
        return None
    (movie_timescale,) = (
        struct.unpack_from(">I", movie, 20 if movie[:1] == b"\1" else 12)
        if len(movie) >= 24
        else (0,)
    )
    if movie_timescale == 0:
        raise DatasetFormatError(
            f"{where}: an edit list, but no timescale of the movie (mvhd); expected ticks per "
            "second above 0"
        )
    *waits, (length, start) = entries
    if start < 0 or any(media_time != -1 for _, media_time in waits):
        raise DatasetFormatError(
            f"{where}: an edit list of {len(entries)} entries starting at {entries[0][1]}; only "
            "one edit, with or without a wait before it, is supported"
        )
    # Rounded to the nearest tick, as FFmpeg does it (`av_rescale`).
    wait = sum(length for length, _ in waits)
    return Edit(
        start,
        *(
            (2 * ticks * timescale + movie_timescale) // (2 * movie_timescale)
            for ticks in (length, wait)
        ),
    )


def shown_samples(
    decode_times: Integers, times: Integers, edit: Edit | None, where: str
) -> npt.NDArray[np.bool_]:
    """Returns bool `(samples,)`: which samples are frames, of their decode and composition times in
    ticks, int64 `(samples,)`.
    """
    if edit is None:
        return np.ones(len(times), np.bool_)
    is_shown: npt.NDArray[np.bool_] = (times >= edit.start) & (times - edit.start < edit.length)
    if is_shown.any():
        # FFmpeg counts decode times from the first sample inside the edit, and takes off the least
        # presentation time that comes out if that is above 0. It forgets a least time below 0 at
        # the next sample; what it then presents before 0 s no frame number reaches.
        presented = times[is_shown] - decode_times[is_shown][0] + edit.wait
        negative = np.flatnonzero(presented < 0)
        since = presented[negative[-1] + 1 :] if len(negative) else presented
        least = max(0, int(since.min()) - edit.wait) if len(since) else 0
        is_shown[is_shown] = presented - least >= edit.wait
    if not is_shown.any():
        raise DatasetFormatError(
            f"{where}: an edit list that shows {edit.length} ticks from {edit.start} on, where "
            f"there is no picture; they begin at {times.min()} to {times.max()}"
        )
    return is_shown


def _edits(elst: Bytes) -> list[tuple[int, int]]:
    """Returns (duration in ticks of the movie, start in ticks of the media, -1 for a wait) of each
    entry of an edit list.
    """
    (count,) = struct.unpack_from(">I", elst, 4)
    if count > _MAX_EDITS:
        raise ValueError(f"{count} edits")
    layout = struct.Struct(">QqI" if elst[0] == 1 else ">IiI")
    return [layout.unpack_from(elst, 8 + layout.size * i)[:2] for i in range(count)]


def read_key_samples(stss: Bytes | None, count: int, where: str) -> Integers:
    """Returns int64 `(gops,)`: the samples that are key frames, ascending; without the box all."""
    if stss is None:
        return np.arange(count)
    keys = _array(stss, ">u4", 1, "stss", where)[:, 0].astype(np.int64) - 1
    if len(keys) == 0 or keys[0] != 0 or (np.diff(keys) <= 0).any() or keys[-1] >= count:
        raise DatasetFormatError(
            f"{where}: stss does not list key frames in order, beginning with the first of the "
            f"{count} pictures"
        )
    return keys


def _run_lengths(box: Bytes, value_type: str, count: int, kind: str, where: str) -> Integers:
    """Returns int64 `(count,)`: the values of a box of (length, value) runs."""
    lengths = _array(box, ">u4", 2, kind, where)[:, 0].astype(np.int64)
    values = _array(box, value_type, 2, kind, where)[:, 1].astype(np.int64)
    if lengths.sum() != count:
        raise DatasetFormatError(f"{where}: {kind} describes {lengths.sum()} samples, stsz {count}")
    return np.repeat(values, lengths)


def _array(box: Bytes, dtype: str, columns: int, kind: str, where: str) -> npt.NDArray[Any]:
    """Returns the table `(entries, columns)` of a box: version and flags (4 bytes), number of
    entries (4 bytes), then the entries.
    """
    (entries,) = struct.unpack_from(">I", box, 4)
    item = np.dtype(dtype).itemsize
    if len(box) < 8 + entries * columns * item:
        raise DatasetFormatError(
            f"{where}: {kind} says {entries} entries in a box of {len(box)} bytes"
        )
    return np.frombuffer(box, dtype, entries * columns, 8).reshape(entries, columns)
