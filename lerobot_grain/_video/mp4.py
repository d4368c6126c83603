"""MP4: `moov` box -> sample table. Which bytes hold which picture, when it is presented, and which
ones it needs.

Here *sample* means an MP4 sample: one coded picture. A sample table gives byte offset, size, decode
time, presentation time (pts) and key flag of every sample, exactly, from one or two small reads; so
no file is ever scanned and no time is computed from an average frame rate.

Idea: the reader is a generator without I/O. It yields the byte ranges that it needs, is sent their
bytes, and returns the table:

    reader = read_sample_table(file_size_bytes, where="org/name@1a2b3c, videos/...mp4")
    wanted = next(reader)
    while ...: wanted = reader.send(bytes of wanted)   # StopIteration.value is the SampleTable

Box layouts are those of ISO/IEC 14496-12 (clause 8). What real files do: lerobot leaves `moov` at
the end for files of one episode and puts it at the start when it concatenates; h264 and HEVC have
an edit list whose media_time is the delay of the first presented picture; pictures are stored in
decode order, which is not presentation order with B pictures.

The edit list decides which pictures are frames, as it does in FFmpeg (`mov_fix_index` in its
`libavformat/mov.c`), and so in torchcodec, PyAV and lerobot: a picture that begins before the edit,
or at its end or later, is decoded where others need it, but never shown. A cut through a picture,
as `ffmpeg -ss` leaves it, hides that picture. Times count from the first frame that is shown, as
the frame numbers of torchcodec's approximate mode do, which lerobot reads with.

Not read, and refused by name: fragmented files, several video tracks, several sample descriptions,
several edits, and matrices that do more than turn the picture by a quarter.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.boxes import Bytes, box_header, boxes, only_box
from lerobot_grain._video.codecs.track import read_video_format
from lerobot_grain._video.codecs.video_format import VideoFormat

# Holds the headers of `ftyp`, `free` and the next box in every file seen; one round trip instead of
# one per box.
_HEAD_BYTES = 4096
# `moov` is the last box where it is not the first: what follows `mdat` is read whole up to this
# size (20 bytes a picture: 200,000 pictures).
_TAIL_BYTES = 4 << 20
# Of a file that ends with `moov`, asked for at once where that is expected: 2,000 pictures and
# more.
_LAST_MOOV_BYTES = 64 << 10
# 20 bytes a picture: 3 million pictures, 30 hours at 30 fps. Larger ones are refused before
# anything is allocated.
_MAX_MOOV_BYTES = 64 << 20
_MAX_PICTURES = 4_000_000
_MAX_TOP_LEVEL_BOXES = 1000
# Players' edit lists have a few.
_MAX_EDITS = 1000
# What must not be there twice: which one counts would be a guess.
_TABLES = frozenset(("stsd", "stts", "ctts", "stss", "stsc", "stsz", "stco", "co64"))

SampleTableReader = Generator[ByteRange, bytes, "SampleTable"]


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The video samples of one MP4 file, in decode order. All arrays are read-only.

    Attributes:
      format: of the samples.
      timescale: ticks per second of `pts`.
      offsets, sizes: int64 `(samples,)`, bytes: where each sample lies in the file.
      pts: int64 `(samples,)`, ticks: presentation times, edit list applied.
      key_samples: int64 `(gops,)`, samples that are key frames, ascending; the first is 0. GOP i is
        `[key_samples[i], key_samples[i + 1])`.
      presentation: int64 `(frames,)`: the samples that are shown, in the order of their pts:
        `presentation[f]` is the sample of frame f of the file. Hidden samples are only decoded.
      is_plain: whether every sample is a frame, they are stored in the order of presentation, and
        their bytes in the order of samples.
    """

    format: VideoFormat
    timescale: int
    offsets: Integers
    sizes: Integers
    pts: Integers
    key_samples: Integers
    presentation: Integers
    is_plain: bool

    @property
    def num_frames(self) -> int:
        return len(self.presentation)

    @property
    def num_samples(self) -> int:
        return len(self.pts)

    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Returns float64 `(frames,)`: when each frame is presented, ascending."""
        return self.pts[self.presentation] / self.timescale

    def only(self, frames: Integers) -> SampleTable:
        """Returns the table with some of its frames, int64 `(n,)`, ascending, as frames 0, 1, 2,
        ...; the others are hidden.
        """
        if len(frames) == self.num_frames:
            return self
        presentation = self.presentation[frames]
        presentation.flags.writeable = False
        return replace(self, presentation=presentation, is_plain=False)

    def frame_at(self, seconds: npt.NDArray[np.float64]) -> Integers:
        """Returns int64 `(n,)`: the frames of the file that are presented nearest to the times,
        float64 `(n,)`.
        """
        times = self.pts[self.presentation]
        ticks = np.asarray(seconds, np.float64) * self.timescale
        after = (
            np.clip(np.searchsorted(times, ticks), 1, len(times) - 1)
            if len(times) > 1
            else np.zeros(len(ticks), np.int64)
        )
        before = np.maximum(after - 1, 0)
        return np.where(
            np.abs(times[before] - ticks) <= np.abs(times[after] - ticks), before, after
        )

    def gop_starts(self) -> Integers:
        """Returns int64 `(gops + 1,)`: of each GOP the first frame for which decoding starts there;
        then the number of frames.
        """
        return np.append(
            np.searchsorted(self.pts[self.presentation], self.pts[self.key_samples]),
            self.num_frames,
        )

    def gop_of_frame(self, frames: Integers) -> Integers:
        """Returns int64 `(n,)`: the GOP to start decoding at for frames of the file: the last whose
        key frame is not presented later.
        """
        return (
            np.searchsorted(
                self.pts[self.key_samples], self.pts[self.presentation[frames]], side="right"
            )
            - 1
        )

    def gop_lengths(self) -> Integers:
        """Returns int64 `(gops,)`: pictures of each GOP."""
        return np.diff(self.key_samples, append=self.num_samples)


def read_sample_table(
    file_size_bytes: int, *, where: str, is_moov_last: bool = False
) -> SampleTableReader:
    """Finds and reads the `moov` box of a file.

    Args:
      file_size_bytes: size of the whole file.
      where: names the file in messages.
      is_moov_last: whether to look for `moov` at the end of the file first: one read for most files
        of one episode.

    Yields:
      Byte ranges of the file; send the bytes of each, exactly.

    Returns:
      The sample table of its only video track.

    Raises:
      DatasetFormatError: not an MP4 file, truncated, or one that is not supported.
    """
    if is_moov_last:
        tail = yield ByteRange(max(0, file_size_bytes - _LAST_MOOV_BYTES), file_size_bytes)
        place = tail.rfind(b"moov") - 4
        # Also pictures may have these bytes: it must end with the file, and begin as every `moov`
        # does.
        if (
            place >= 0
            and struct.unpack_from(">I", tail, place)[0] == len(tail) - place
            and tail[place + 12 : place + 16] == b"mvhd"
        ):
            return _parse_moov(memoryview(tail)[place + 8 :], file_size_bytes, where)
    # the bytes known are those from `start` on
    start = 0
    known = b""
    cursor = 0
    for _ in range(_MAX_TOP_LEVEL_BOXES):
        if file_size_bytes - cursor < 8:
            raise DatasetFormatError(
                f"{where}: there is no moov box in its {file_size_bytes} bytes; the file is "
                "truncated, or its recording was never finished"
            )
        if cursor + min(16, file_size_bytes - cursor) > start + len(known):
            rest = file_size_bytes - cursor
            length = min(_HEAD_BYTES, rest) if cursor == 0 else rest if rest <= _TAIL_BYTES else 16
            start = cursor
            known = yield ByteRange(cursor, cursor + length)
        kind, header, size = box_header(
            known, cursor - start, file_size_bytes - cursor, where, cursor
        )
        if cursor == 0 and kind not in ("ftyp", "moov", "mdat", "free", "skip", "wide", "styp"):
            raise DatasetFormatError(
                f"{where}: not an MP4 file: it starts with a box {kind!r}; expected ftyp"
            )
        if kind in ("moof", "styp", "sidx"):
            raise DatasetFormatError(
                f"{where}: a fragmented MP4 (box {kind} at byte {cursor}); only files with one "
                "moov box are read"
            )
        if kind == "moov":
            if size > _MAX_MOOV_BYTES:
                raise DatasetFormatError(
                    f"{where}: moov has {size} bytes; at most {_MAX_MOOV_BYTES} are read"
                )
            moov = known[cursor - start : cursor - start + size]
            if len(moov) < size:
                moov += yield ByteRange(cursor + len(moov), cursor + size)
            return _parse_moov(memoryview(moov)[header:], file_size_bytes, where)
        cursor += size
    raise DatasetFormatError(f"{where}: no moov box among the first {_MAX_TOP_LEVEL_BOXES} boxes")


def _parse_moov(moov: Bytes, file_size_bytes: int, where: str) -> SampleTable:
    try:
        return _parse_tracks(moov, file_size_bytes, where)
    except (struct.error, ValueError, IndexError) as error:
        # Every length is checked against its box where that is cheap; what is left is a box that is
        # too short for its own fields.
        raise DatasetFormatError(f"{where}: malformed moov box ({error})") from None


def _parse_tracks(moov: Bytes, file_size_bytes: int, where: str) -> SampleTable:
    tracks = []
    movie = b""
    for kind, payload in boxes(moov, where, "moov"):
        if kind == "mvhd":
            movie = bytes(payload)
        if kind == "mvex":
            raise DatasetFormatError(
                f"{where}: a fragmented MP4 (moov holds mvex); only files with one complete moov "
                "box are read"
            )
        if kind == "trak":
            media = only_box(payload, "mdia", where, "trak")
            if only_box(media, "hdlr", where, "mdia")[8:12] == b"vide":
                tracks.append((payload, media))
    if len(tracks) != 1:
        raise DatasetFormatError(f"{where}: found {len(tracks)} video tracks; expected one")
    track, media = tracks[0]
    header = only_box(media, "mdhd", where, "mdia")
    (timescale,) = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)
    if timescale == 0:
        raise DatasetFormatError(f"{where}: the timescale is 0")
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
    video_format = read_video_format(tables["stsd"], movie, track, where)
    sizes = _sizes(tables["stsz"], file_size_bytes, where)
    offsets = _offsets(tables, sizes, file_size_bytes, where)
    decode_times = np.cumsum(_run_lengths(tables["stts"], ">u4", len(sizes), "stts", where))
    decode_times = np.concatenate(([0], decode_times[:-1]))
    times = decode_times
    if "ctts" in tables:
        # Version 0 is unsigned by the standard; writers put negative offsets there all the same,
        # and FFmpeg reads both as signed.
        times = times + _run_lengths(tables["ctts"], ">i4", len(sizes), "ctts", where)
    is_shown = _shown(decode_times, times, _edit_of(track, movie, timescale, where), where)
    pts = times - times[is_shown].min()
    keys = _keys(tables.get("stss"), len(sizes), where)
    presentation = np.argsort(pts, kind="stable")
    presentation = presentation[is_shown[presentation]]
    if (np.diff(pts[presentation]) == 0).any():
        raise DatasetFormatError(
            f"{where}: two pictures have the same presentation time; which one a row belongs to "
            "is not known"
        )
    if (np.diff(pts[keys]) < 0).any():
        raise DatasetFormatError(
            f"{where}: key frames are not presented in the order in which they are stored; this "
            "is not supported"
        )
    if pts[presentation[0]] < pts[0]:
        raise DatasetFormatError(
            f"{where}: a picture is presented before the first key frame; what it needs is not in "
            "the file"
        )
    for array in (offsets, sizes, pts, keys, presentation):
        array.flags.writeable = False
    return SampleTable(
        format=video_format,
        timescale=timescale,
        offsets=offsets,
        sizes=sizes,
        pts=pts,
        key_samples=keys,
        presentation=presentation,
        is_plain=len(presentation) == len(pts)
        and bool((np.diff(presentation) == 1).all() and (np.diff(offsets) > 0).all()),
    )


def _sizes(stsz: Bytes, file_size_bytes: int, where: str) -> Integers:
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


def _offsets(
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


class _Edit(NamedTuple):
    """What an edit list shows of the media: [start, start + length), after a wait; all in ticks of
    the media.
    """

    start: int
    length: int
    wait: int


def _edit_of(track: Bytes, movie: bytes, timescale: int, where: str) -> _Edit | None:
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
    return _Edit(
        start,
        *(
            (2 * ticks * timescale + movie_timescale) // (2 * movie_timescale)
            for ticks in (length, wait)
        ),
    )


def _shown(
    decode_times: Integers, times: Integers, edit: _Edit | None, where: str
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


def _keys(stss: Bytes | None, count: int, where: str) -> Integers:
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
