"""MP4: `moov` box -> sample table. Which bytes hold which picture, when it is presented, and which
ones it needs. The boxes of a track are read by `_video/sample_boxes`.

Here *sample* means an MP4 sample: one coded picture. A sample table gives byte offset, size, decode
time, presentation time (pts) and key flag of every sample, exactly, from one or two small reads; so
no file is ever scanned and no time is computed from an average frame rate.

Idea: the reader is a generator without I/O. It yields the byte ranges that it needs, is sent their
bytes, and returns the table:

    reader = read_sample_table(file_size_bytes, where="org/name@1a2b3c, videos/...mp4")
    wanted = next(reader)
    while ...: wanted = reader.send(bytes of wanted)   # StopIteration.value is the SampleTable

Box layouts are those of ISO/IEC 14496-12 (clause 8). Real files vary: lerobot leaves `moov` at the
end for files of one episode and puts it at the start when it concatenates; h264 and HEVC have an
edit list whose media_time is the delay of the first presented picture; pictures are stored in
decode order, which is not presentation order with B pictures.

Not read, and refused by name: fragmented files, several video tracks, several sample descriptions,
several edits, and matrices that do more than turn the frames by a quarter.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.boxes import Bytes, box_header, boxes, only_box
from lerobot_grain._video.codecs.track import read_video_format
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.sample_boxes import (
    read_edit,
    read_key_samples,
    read_offsets,
    read_sizes,
    read_times,
    sample_boxes,
    shown_samples,
)

# Holds the headers of `ftyp`, `free` and the next box in every file seen; one round trip instead of
# one per box.
_HEAD_BYTES = 4096
# `moov` is the last box where it is not the first: what follows `mdat` is read whole up to this
# size (20 bytes a picture: 200,000 pictures).
_TAIL_BYTES = 4 << 20
# Bytes at the end of a file that ends with `moov`, read at once if that is expected: 2,000 pictures
# and more.
_LAST_MOOV_BYTES = 64 << 10
# 20 bytes a picture: 3 million pictures, 30 hours at 30 fps. Larger ones are refused before
# anything is allocated.
_MAX_MOOV_BYTES = 64 << 20
_MAX_TOP_LEVEL_BOXES = 1000

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
    moov = None
    if is_moov_last:
        tail = yield ByteRange(max(0, file_size_bytes - _LAST_MOOV_BYTES), file_size_bytes)
        moov = _last_moov(tail)
    if moov is None:
        moov = yield from _find_moov(file_size_bytes, where)
    return _parse_moov(moov, file_size_bytes, where)


def _last_moov(tail: bytes) -> Bytes | None:
    """Returns the payload of the `moov` box that ends with a file; `None`: it is not there, or
    larger than the tail.
    """
    place = tail.rfind(b"moov") - 4
    # Also pictures may have these bytes: it must end with the file, and begin as every `moov` does.
    if (
        place >= 0
        and struct.unpack_from(">I", tail, place)[0] == len(tail) - place
        and tail[place + 12 : place + 16] == b"mvhd"
    ):
        return memoryview(tail)[place + 8 :]
    return None


def _find_moov(file_size_bytes: int, where: str) -> Generator[ByteRange, bytes, Bytes]:
    """Goes from box to box, from the start of the file on; yields byte ranges of it.

    Returns:
      The payload of the `moov` box.
    """
    # the bytes known are those from `start` on
    start = 0
    known = b""
    cursor = 0
    for _ in range(_MAX_TOP_LEVEL_BOXES):
        rest = file_size_bytes - cursor
        if rest < 8:
            raise DatasetFormatError(
                f"{where}: there is no moov box in its {file_size_bytes} bytes; the file is "
                "truncated, or its recording was never finished"
            )
        if cursor + min(16, rest) > start + len(known):
            length = min(_HEAD_BYTES, rest) if cursor == 0 else rest if rest <= _TAIL_BYTES else 16
            start = cursor
            known = yield ByteRange(cursor, cursor + length)
        kind, header, size = box_header(known, cursor - start, rest, where, cursor)
        _check_top_level_box(kind, cursor, size, where)
        if kind == "moov":
            moov = known[cursor - start : cursor - start + size]
            if len(moov) < size:
                moov += yield ByteRange(cursor + len(moov), cursor + size)
            return memoryview(moov)[header:]
        cursor += size
    raise DatasetFormatError(f"{where}: no moov box among the first {_MAX_TOP_LEVEL_BOXES} boxes")


def _check_top_level_box(kind: str, place: int, size: int, where: str) -> None:
    """Refuses the box at byte `place` if the file is no MP4, fragmented, or its `moov` too
    large.
    """
    if place == 0 and kind not in ("ftyp", "moov", "mdat", "free", "skip", "wide", "styp"):
        raise DatasetFormatError(
            f"{where}: not an MP4 file: it starts with a box {kind!r}; expected ftyp"
        )
    if kind in ("moof", "styp", "sidx"):
        raise DatasetFormatError(
            f"{where}: a fragmented MP4 (box {kind} at byte {place}); only files with one moov box "
            "are read"
        )
    if kind == "moov" and size > _MAX_MOOV_BYTES:
        raise DatasetFormatError(
            f"{where}: moov has {size} bytes; at most {_MAX_MOOV_BYTES} are read"
        )


def _parse_moov(moov: Bytes, file_size_bytes: int, where: str) -> SampleTable:
    try:
        return _parse_tracks(moov, file_size_bytes, where)
    except (struct.error, ValueError, IndexError) as error:
        # Every length is checked against its box where that is cheap; what is left is a box that is
        # too short for its own fields.
        raise DatasetFormatError(f"{where}: malformed moov box ({error})") from None


def _parse_tracks(moov: Bytes, file_size_bytes: int, where: str) -> SampleTable:
    movie, track, media = _only_video_track(moov, where)
    timescale = _timescale(media, where)
    tables = sample_boxes(media, where)
    video_format = read_video_format(tables["stsd"], movie, track, where)
    sizes = read_sizes(tables["stsz"], file_size_bytes, where)
    offsets = read_offsets(tables, sizes, file_size_bytes, where)
    decode_times, times = read_times(tables, len(sizes), where)
    is_shown = shown_samples(decode_times, times, read_edit(track, movie, timescale, where), where)
    pts = times - times[is_shown].min()
    keys = read_key_samples(tables.get("stss"), len(sizes), where)
    presentation = _presentation(pts, keys, is_shown, where)
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


def _only_video_track(moov: Bytes, where: str) -> tuple[bytes, Bytes, Bytes]:
    """Returns the payloads of `mvhd`, empty where there is none, of the `trak` with video, and of
    the `mdia` in it.
    """
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
    return movie, *tracks[0]


def _timescale(media: Bytes, where: str) -> int:
    """Returns ticks per second."""
    header = only_box(media, "mdhd", where, "mdia")
    timescale: int = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)[0]
    if timescale == 0:
        raise DatasetFormatError(f"{where}: the timescale is 0")
    return timescale


def _presentation(
    pts: Integers, keys: Integers, is_shown: npt.NDArray[np.bool_], where: str
) -> Integers:
    """Returns int64 `(frames,)`: the samples that are shown, in the order of their presentation
    times; refuses orders in which a row has no one frame, or a frame no key frame to begin at.
    """
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
    return presentation
