"""Coded pictures of any places and files -> one small MP4 in memory, which a decoder reads straight through.

A *unit* is a run of samples that can be decoded on its own: it begins with a key frame. Units with equal sample description, from any
episodes and files, go one after the other into one MP4 with fresh timing, so random access is decoded at the speed of sequential
decoding.

Rules:
* Leading pictures of a unit's first key frame (presented before it, so they may need the GOP before) are left out. A frame that is a
  leading picture belongs to the GOP before its key frame (`SampleTable.gop_of_frame`), whose unit then runs on into the next GOP.
* What can be stitched is told by the coded picture, not by the key flag: the first picture of each unit is looked at, and refused if it
  is not one that resets the decoder.
* HEVC's CRA pictures do not reset a decoder that is running: stitched as they are, decoders drop and shift pictures without an error. The
  first picture of a unit is therefore turned from CRA into BLA_N_LP (ITU-T H.265, 7.4.2.2: the same slice header syntax, and the decoder
  starts anew).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._errors import DatasetFormatError
from lerobot_grain._mp4 import SampleTable, box

Integers = npt.NDArray[np.int64]

# NAL unit types of ITU-T H.265, table 7-1.
_HEVC_BLA_W_LP, _HEVC_BLA_N_LP, _HEVC_IDR_N_LP, _HEVC_CRA, _HEVC_LAST_PICTURE_TYPE = 16, 18, 20, 21, 31
# NAL unit types of ITU-T H.264, table 7-1: coded slices are 1 to 5, of an IDR picture 5.
_H264_IDR, _H264_LAST_PICTURE_TYPE = 5, 5

# Ticks per second, and per picture, as lerobot and FFmpeg write them; any values serve, since frames are addressed by number.
TIMESCALE, TICKS_PER_FRAME = 15360, 512
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
    """Returns the unit that gives `frames`, int64 `(k,)`, ascending frames of the file, all with `gop_of_frame` == gop."""
    key = table.keys.item(gop)
    if table.is_plain:
        # Stored in the order of presentation: no leading pictures, a picture's rank is its place.
        last = frames.item(-1)
        places = _PLACES[: last + 1 - key] if last - key < len(_PLACES) else np.arange(last + 1 - key)
        whole = ByteRange(table.offsets.item(key), table.offsets.item(last) + table.sizes.item(last))
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
      pieces: its samples, in decode order, one after the other; where they lie so in the file, in few pieces.
      sizes: int64 `(n,)`, bytes of each sample.
      ranks: as those of the unit.
    """

    pieces: Sequence[bytes | memoryview]
    sizes: Integers
    ranks: Integers


def coded_unit(table: SampleTable, unit: Unit, payload: bytes | memoryview, *, where: object) -> CodedUnit:
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
    first, count = unit.samples.item(0), len(unit.samples)
    sizes = table.sizes[first : first + count] if table.is_plain else table.sizes[unit.samples]
    lengths = sizes.tolist()
    pieces: list[bytes | memoryview]
    if table.is_plain and sum(lengths) == len(view):
        pieces = [view[: lengths[0]], view[lengths[0] :]]
    else:
        starts = (table.offsets[unit.samples] - unit.byte_range.start).tolist()
        pieces = [view[start : start + size] for start, size in zip(starts, lengths, strict=True)]
    try:
        pieces[0] = _reset_picture(table, pieces[0])
    except _NotAStartError as error:
        raise DatasetFormatError(f"{where}, bytes {unit.byte_range}: {error}") from None
    return CodedUnit(pieces, sizes, unit.ranks)


def small_mp4(table: SampleTable, units: Sequence[CodedUnit]) -> bytes:
    """Returns an MP4 file of units of files that share the sample description of `table`.

    Args:
      table: of one of the files.
      units: what it is to hold. Frame r of a unit is frame r + (samples of the units before it) of the MP4.
    """
    sizes = np.concatenate([unit.sizes for unit in units])
    # One tick a picture. Presentation is delayed by as much as the worst picture needs, so that no picture is presented before it is
    # decoded.
    starts = np.repeat(*_starts_and_lengths(units))
    composition = np.concatenate([unit.ranks for unit in units]) - (np.arange(len(sizes)) - starts)
    delay = int(-composition.min())
    composition += delay
    count = len(sizes)
    timing = [_full_box("stts", struct.pack(">III", 1, count, TICKS_PER_FRAME))]
    if composition.any():
        runs = np.ones((count, 2), ">u4")
        runs[:, 1] = composition * TICKS_PER_FRAME
        timing.append(_full_box("ctts", struct.pack(">I", count) + runs.tobytes()))
    # Only the first picture is flagged as a key frame: torchcodec seeks, and so flushes its decoder, whenever a wanted frame has another
    # key frame than the one before it; here it is to run straight through.
    timing.append(_full_box("stss", struct.pack(">II", 1, 1)))
    sizes_box = _full_box("stsz", struct.pack(">II", 0, count) + sizes.astype(">u4").tobytes())
    tables = b"".join([*timing, _full_box("stsc", struct.pack(">IIII", 1, 1, count, 1)), sizes_box])
    # The length of moov does not depend on where the media begin.
    media_offset = len(_FTYP + _moov(table, tables, count=count, delay=delay, media_offset=0)) + 8
    start = _FTYP + _moov(table, tables, count=count, delay=delay, media_offset=media_offset)
    return b"".join([start, struct.pack(">I4s", 8 + int(sizes.sum()), b"mdat"), *(piece for unit in units for piece in unit.pieces)])


def _starts_and_lengths(units: Sequence[CodedUnit]) -> tuple[Integers, Integers]:
    lengths = np.array([len(unit.sizes) for unit in units])
    return np.cumsum(lengths) - lengths, lengths


_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _moov(table: SampleTable, tables: bytes, *, count: int, delay: int, media_offset: int) -> bytes:
    duration = count * TICKS_PER_FRAME
    movie = _full_box("mvhd", struct.pack(">IIIIIH10x", 0, 0, TIMESCALE, duration, 0x10000, 0x100) + _MATRIX + struct.pack(">24xI", 2))
    dimensions = struct.pack(">II", table.width << 16, table.height << 16)
    track = _full_box("tkhd", struct.pack(">IIIII8xHHHH", 0, 0, 1, 0, duration, 0, 0, 0, 0) + _MATRIX + dimensions, flags=3)
    media = _full_box("mdhd", struct.pack(">IIIIHH", 0, 0, TIMESCALE, duration, 0x55C4, 0))
    media += _full_box("hdlr", struct.pack(">I4s12xx", 0, b"vide"))
    data = box("dinf", _full_box("dref", struct.pack(">I", 1) + _full_box("url ", b"", flags=1)))
    samples = box("stbl", table.sample_description + tables + _full_box("stco", struct.pack(">II", 1, media_offset)))
    media += box("minf", _full_box("vmhd", bytes(8), flags=1) + data + samples)
    # The delay is taken off again: frame i is presented at exactly i ticks, which is how the decoder is asked for it.
    edit = box("edts", _full_box("elst", struct.pack(">IIiHH", 1, duration, delay * TICKS_PER_FRAME, 1, 0)))
    return box("moov", movie + box("trak", track + edit + box("mdia", media)))


def _full_box(kind: str, payload: bytes, *, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags) + payload)


_FTYP = box("ftyp", b"isom\x00\x00\x02\x00isomiso2")


class _NotAStartError(Exception):
    """What is wrong with the first picture of a unit."""


def _reset_picture(table: SampleTable, sample: bytes | memoryview) -> bytes | memoryview:
    """Returns the first picture of a unit such that a running decoder starts anew at it."""
    if table.codec == "hevc":
        return _reset_hevc(table, bytes(sample))
    if table.codec == "h264":
        _check_h264(table, sample)
    elif table.codec == "av1":
        _check_av1(sample)
    elif table.codec == "mpeg4":
        _check_mpeg4(bytes(sample))
    elif table.codec == "vp9":
        _check_vp9(sample)
    return sample


def _nal_units(table: SampleTable, sample: bytes | memoryview) -> Iterable[int]:
    """Yields the offset of the first byte of every NAL unit of a sample: each follows its length (ISO/IEC 14496-15)."""
    # The byte with lengthSizeMinusOne: hvcC, 22nd byte of its payload; avcC, 5th.
    kind, place = (b"hvcC", 21) if table.codec == "hevc" else (b"avcC", 4)
    configuration = table.sample_description.find(kind)
    if configuration < 0 or configuration + 4 + place >= len(table.sample_description):
        raise _NotAStartError(f"the sample description has no {kind.decode()} box; the file cannot be decoded")
    length_bytes = (table.sample_description[configuration + 4 + place] & 3) + 1
    cursor = 0
    while cursor + length_bytes < len(sample):
        length = int.from_bytes(sample[cursor : cursor + length_bytes], "big")
        cursor += length_bytes
        if length == 0 or cursor + length > len(sample):
            raise _NotAStartError(
                f"a NAL unit of {length} bytes in a picture with {len(sample) - cursor} bytes left; the picture is damaged"
            )
        yield cursor
        cursor += length


def _reset_hevc(table: SampleTable, sample: bytes) -> bytes:
    rewritten, num_pictures = None, 0
    for offset in _nal_units(table, sample):
        kind = sample[offset] >> 1 & 0x3F
        if kind > _HEVC_LAST_PICTURE_TYPE:
            continue  # parameter sets, SEI
        num_pictures += 1
        if kind == _HEVC_CRA:
            rewritten = rewritten or bytearray(sample)
            rewritten[offset] = sample[offset] & 0x81 | _HEVC_BLA_N_LP << 1
        elif not _HEVC_BLA_W_LP <= kind <= _HEVC_IDR_N_LP:
            raise _NotAStartError(
                f"flagged as key frame, but its NAL unit type is {kind}; expected IDR (19, 20), CRA (21) or BLA (16 to 18)"
            )
    if num_pictures == 0:
        raise _NotAStartError("flagged as key frame, but it holds no picture")
    return sample if rewritten is None else bytes(rewritten)


def _check_h264(table: SampleTable, sample: bytes | memoryview) -> None:
    kinds = [sample[offset] & 0x1F for offset in _nal_units(table, sample)]
    pictures = [kind for kind in kinds if 1 <= kind <= _H264_LAST_PICTURE_TYPE]
    if not pictures or any(kind != _H264_IDR for kind in pictures):
        raise _NotAStartError(
            f"flagged as key frame, but it is not an IDR picture (NAL unit types {kinds}); H.264 with open GOPs is not supported"
        )


# OBU types of the AV1 specification, section 6.2.2.
_AV1_FRAME_HEADER, _AV1_FRAME = 3, 6


def _check_av1(sample: bytes | memoryview) -> None:
    cursor = 0
    while cursor < len(sample):
        header = sample[cursor]
        cursor += 2 if header & 4 else 1  # an extension byte follows
        size, shift = len(sample) - cursor, 0
        if header & 2:  # a size field follows: leb128 (section 4.10.5)
            size = 0
            while cursor < len(sample) and shift < 56:
                byte = sample[cursor]
                cursor += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        if header >> 3 & 0xF in (_AV1_FRAME_HEADER, _AV1_FRAME):
            # The frame header begins with show_existing_frame (1 bit) and frame_type (2 bits), 0 is KEY_FRAME (section 5.9.2).
            if cursor < len(sample) and sample[cursor] >> 5 == 0:
                return
            break
        cursor += size
    raise _NotAStartError("flagged as key frame, but it does not begin with an AV1 key frame")


def _check_mpeg4(sample: bytes) -> None:
    # ISO/IEC 14496-2, 6.2.5: vop_start_code, then vop_coding_type (2 bits), 0 is an I-VOP.
    start = sample.find(b"\x00\x00\x01\xb6")
    if start < 0 or start + 4 >= len(sample) or sample[start + 4] >> 6 != 0:
        raise _NotAStartError("flagged as key frame, but it does not begin with an MPEG-4 intra picture")


def _check_vp9(sample: bytes | memoryview) -> None:
    # VP9 bitstream specification, 6.2: frame_marker (2 bits, 2), profile (2 bits, the lower one first), a reserved bit in profile 3,
    # show_existing_frame (1 bit), frame_type (1 bit), 0 is KEY_FRAME.
    header = sample[0] if len(sample) else 0
    place = 1 if header >> 4 & 3 == 3 else 2
    if header >> 6 != 2 or header >> place & 3 != 0:
        raise _NotAStartError("flagged as key frame, but it does not begin with a VP9 key frame")
