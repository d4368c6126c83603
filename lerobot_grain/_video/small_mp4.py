"""Coded pictures of any places and files -> one small MP4 in memory, which a decoder reads straight
through.

A *unit* is a run of samples that can be decoded on its own: it begins with a key frame. Units of
equal format, from any episodes and files, go one after the other into one MP4 with fresh timing, so
random access is decoded at the speed of sequential decoding.

Rules:
* Leading pictures of a unit's first key frame (presented before it, so they may need the GOP
  before) are left out. A frame that is a leading picture belongs to the GOP before its key frame
  (`SampleTable.gop_of_frame`), whose unit then runs on into the next GOP.
* The coded picture decides whether a unit can be stitched, not the key flag: the first picture of
  each unit is looked at (`_video/codecs/bitstreams`), and refused if it is not one that resets the
  decoder.
* Units that bring headers of their own along (parameter sets, sequence headers) are stitched only
  to those that bring the same: a unit without any would be decoded with those of the unit before
  it.
* HEVC's CRA pictures do not reset a decoder that is running: stitched as they are, decoders drop
  and shift pictures without an error. The first picture of a unit is therefore turned from CRA into
  BLA_N_LP (ITU-T H.265, 7.4.2.2: the same slice header syntax, and the decoder starts anew).
* FFmpeg from 7.1 on keeps its reference pictures over a BLA picture. If one of them has the same
  number (POC), it drops the BLA picture and predicts the rest of the unit from the picture of
  another file, without an error. A unit that begins with a CRA or BLA picture therefore gets a
  decoder, and so a small MP4, of its own (`stitchable`). IDR pictures clear them in every version.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.boxes import box
from lerobot_grain._video.codecs.bitstreams import HAS_NAL_UNITS, NotAStartError, later_headers
from lerobot_grain._video.codecs.table import start_of
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.mp4 import SampleTable

# Ticks per second, and per picture, as lerobot and FFmpeg write them; any values serve, since
# frames are addressed by number.
TIMESCALE = 15360
TICKS_PER_FRAME = 512
FRAMES_PER_SECOND = TIMESCALE / TICKS_PER_FRAME

# Made once: there is one unit for every few pictures.
_PLACES = np.arange(1024)
_PLACES.flags.writeable = False


class Unit(NamedTuple):
    """Samples of one file that can be decoded on their own, and the frames that are wanted of them.

    Attributes:
      samples: int64 `(n,)`, samples in decode order; the first is a key frame.
      ranks: int64 `(n,)`: place of each sample in the order of presentation inside the unit.
      wanted: int64 `(k,)`, ascending: ranks of the wanted frames.
      byte_range: the bytes of the file that hold all samples.
    """

    samples: Integers
    ranks: Integers
    wanted: Integers
    byte_range: ByteRange


def unit_of_frames(table: SampleTable, gop: int, frames: Integers) -> Unit:
    """Returns the unit that gives `frames`, int64 `(k,)`, ascending frames of the file, all with
    `gop_of_frame` == gop.
    """
    key = table.key_samples.item(gop)
    if table.is_plain:
        # Stored in the order of presentation: no leading pictures, a picture's rank is its place.
        last = frames.item(-1)
        places = (
            _PLACES[: last + 1 - key] if last - key < len(_PLACES) else np.arange(last + 1 - key)
        )
        whole = ByteRange(
            table.offsets.item(key), table.offsets.item(last) + table.sizes.item(last)
        )
        return Unit(places + key, places, frames - key, whole)
    last = table.presentation[frames].max()
    samples = np.arange(key, last + 1)
    samples = samples[table.pts[samples] >= table.pts[key]]
    by_pts = np.argsort(table.pts[samples])
    ranks = np.empty(len(samples), np.int64)
    ranks[by_pts] = np.arange(len(samples))
    wanted = np.searchsorted(table.pts[samples][by_pts], table.pts[table.presentation[frames]])
    start = int(table.offsets[samples].min())
    stop = int((table.offsets[samples] + table.sizes[samples]).max())
    return Unit(samples, ranks, wanted, ByteRange(start, stop))


class CodedUnit(NamedTuple):
    """The bytes of a unit, ready for `small_mp4`.

    Attributes:
      pieces: its samples, in decode order, one after the other; where they lie so in the file, in
        few pieces.
      sizes: int64 `(n,)`, bytes of each sample.
      ranks: as those of the unit.
      headers: what the first sample brings along; only units with equal ones can be decoded
        together. `None`: the unit is to be decoded alone, since a later sample brings some, which
        would hold for what is decoded after it, or since its first picture does not make every
        decoder forget what was decoded before it.
    """

    pieces: Sequence[bytes | memoryview]
    sizes: Integers
    ranks: Integers
    headers: bytes | None


def coded_unit(
    table: SampleTable, unit: Unit, payload: bytes | memoryview, *, where: object
) -> CodedUnit:
    """Cuts the bytes of `unit.byte_range` into its samples.

    Args:
      table: of the file.
      unit: of it.
      payload: the bytes.
      where: its `str` names the unit in messages.

    Raises:
      DatasetFormatError: the first picture is not one that a decoder can start at.
    """
    view = memoryview(payload)
    first = unit.samples.item(0)
    count = len(unit.samples)
    sizes = table.sizes[first : first + count] if table.is_plain else table.sizes[unit.samples]
    lengths = sizes.tolist()
    pieces: list[bytes | memoryview]
    if table.is_plain and table.format.codec not in HAS_NAL_UNITS and sum(lengths) == len(view):
        pieces = [view[: lengths[0]], view[lengths[0] :]]
    else:
        starts = (table.offsets[unit.samples] - unit.byte_range.start).tolist()
        pieces = [view[start : start + size] for start, size in zip(starts, lengths, strict=True)]
    try:
        sample, headers, forgets = start_of(table.format, pieces[0])
        is_alone = not forgets or not later_headers(table.format, pieces[1:]) <= {headers}
    except NotAStartError as error:
        raise DatasetFormatError(f"{where}, bytes {unit.byte_range}: {error}") from None
    pieces[0] = sample
    return CodedUnit(pieces, sizes, unit.ranks, None if is_alone else headers)


def stitchable(units: Sequence[CodedUnit]) -> list[list[int]]:
    """Returns the places in `units` of those that one small MP4 can hold, for each small MP4, in
    the order of their first units.
    """
    # In nearly all datasets all of a group bring the same headers: then it is one.
    places: dict[object, list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault(object() if unit.headers is None else unit.headers, []).append(place)
    return list(places.values())


def small_mp4(video: VideoFormat, units: Sequence[CodedUnit]) -> bytes:
    """Returns an MP4 file of units.

    Args:
      video: the format that the files of all units have.
      units: what it is to hold, which are `stitchable`. Frame r of a unit is frame r + (samples of
        the units before it) of the MP4.
    """
    sizes = np.concatenate([unit.sizes for unit in units])
    # One tick a picture. Presentation is delayed by as much as the worst picture needs, so that no
    # picture is presented before it is decoded.
    starts = np.repeat(*_starts_and_lengths(units))
    composition = np.concatenate([unit.ranks for unit in units]) - (np.arange(len(sizes)) - starts)
    delay = int(-composition.min())
    composition += delay
    start, end = _around_sizes(video, len(sizes), composition.tobytes(), delay)
    return b"".join(
        [
            start,
            sizes.astype(">u4").tobytes(),
            end,
            struct.pack(">I4s", 8 + int(sizes.sum()), b"mdat"),
            *(piece for unit in units for piece in unit.pieces),
        ]
    )


# There are a few thousand small MP4s a second on a large host, of a few formats and lengths.
@functools.lru_cache(maxsize=256)
def _around_sizes(
    video: VideoFormat, count: int, composition: bytes, delay: int
) -> tuple[bytes, bytes]:
    """Returns all of an MP4 before its media, in two parts: the sizes of its samples go between
    them.

    Args:
      video: its format.
      count: of samples.
      composition: int64 `(count,)`: by how many pictures each is presented later than decoded.
      delay: added to all of these.
    """
    offsets = np.frombuffer(composition, np.int64)
    timing = [_full_box("stts", struct.pack(">III", 1, count, TICKS_PER_FRAME))]
    if offsets.any():
        runs = np.ones((count, 2), ">u4")
        runs[:, 1] = offsets * TICKS_PER_FRAME
        timing.append(_full_box("ctts", struct.pack(">I", count) + runs.tobytes()))
    # Only the first picture is flagged as a key frame: torchcodec seeks, and so flushes its
    # decoder, whenever a wanted frame has another key frame than the one before it; here it is to
    # run straight through.
    timing.append(_full_box("stss", struct.pack(">II", 1, 1)))
    timing.append(_full_box("stsc", struct.pack(">IIII", 1, 1, count, 1)))
    sizes = _full_box("stsz", struct.pack(">II", 0, count) + bytes(4 * count))
    tables = b"".join([*timing, sizes])
    # The length of moov does not depend on where the media begin.
    media_offset = len(_FTYP + _moov(video, tables, count=count, delay=delay, media_offset=0)) + 8
    whole = _FTYP + _moov(video, tables, count=count, delay=delay, media_offset=media_offset)
    place = whole.rindex(sizes) + len(sizes) - 4 * count
    return whole[:place], whole[place + 4 * count :]


def _starts_and_lengths(units: Sequence[CodedUnit]) -> tuple[Integers, Integers]:
    lengths = np.array([len(unit.sizes) for unit in units])
    return np.cumsum(lengths) - lengths, lengths


def _moov(video: VideoFormat, tables: bytes, *, count: int, delay: int, media_offset: int) -> bytes:
    duration = count * TICKS_PER_FRAME
    of_movie, of_track = video.matrices
    movie = _full_box(
        "mvhd",
        struct.pack(">IIIIIH10x", 0, 0, TIMESCALE, duration, 0x10000, 0x100)
        + of_movie
        + struct.pack(">24xI", 2),
    )
    dimensions = struct.pack(">II", video.width << 16, video.height << 16)
    track = _full_box(
        "tkhd",
        struct.pack(">IIIII8xHHHH", 0, 0, 1, 0, duration, 0, 0, 0, 0) + of_track + dimensions,
        flags=3,
    )
    media = _full_box("mdhd", struct.pack(">IIIIHH", 0, 0, TIMESCALE, duration, 0x55C4, 0))
    media += _full_box("hdlr", struct.pack(">I4s12xx", 0, b"vide"))
    data = box("dinf", _full_box("dref", struct.pack(">I", 1) + _full_box("url ", b"", flags=1)))
    samples = box(
        "stbl",
        video.sample_description + tables + _full_box("stco", struct.pack(">II", 1, media_offset)),
    )
    media += box("minf", _full_box("vmhd", bytes(8), flags=1) + data + samples)
    # The delay is taken off again: frame i is presented at exactly i ticks, which is how the
    # decoder is asked for it.
    edit = box(
        "edts", _full_box("elst", struct.pack(">IIiHH", 1, duration, delay * TICKS_PER_FRAME, 1, 0))
    )
    return box("moov", movie + box("trak", track + edit + box("mdia", media)))


def _full_box(kind: str, payload: bytes, *, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags) + payload)


_FTYP = box("ftyp", b"isom\x00\x00\x02\x00isomiso2")
