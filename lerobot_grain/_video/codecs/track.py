"""Reads what a decoder has to be told of a video track: codec, size, headers, and how the frames
is turned. Pure.

A sample description (`stsd`) has one sample entry; its name tells the codec, and for `mp4v` the
descriptors in it do. The matrices of the movie and of the track together say how a frame is
turned for display, as phones that are held upright have it; torchcodec, and so lerobot, gives
frames turned.
"""

from __future__ import annotations

import struct

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.boxes import Bytes, box, boxes, only_box
from lerobot_grain._video.codecs.table import CODEC_OF_SAMPLE_ENTRY
from lerobot_grain._video.codecs.video_format import IDENTITY, VideoFormat

# `mp4v` stands for whatever the object type in its `esds` box says (the registration authority's
# list; FFmpeg's `ff_mp4_obj_type`).
_MPEG4_OBJECT_TYPE = 0x20
_OBJECT_TYPES = {
    0x21: "H.264",
    0x23: "HEVC",
    0x6A: "MPEG-1",
    0x6C: "MJPEG",
    0x6D: "PNG",
    0x6E: "JPEG 2000",
    0xA3: "VC-1",
    0xA4: "Dirac",
    **dict.fromkeys(range(0x60, 0x66), "MPEG-2"),
    0xB1: "VP9",
}
# Fields of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3).
_VISUAL_FIELDS_BYTES = 78
# The first four numbers of a matrix (a, b, c, d of 14496-12, 8.3.2), by their signs, and the
# degrees that the frames are turned by clockwise. The others mirror them, or do nothing that has a
# name.
_TURNS = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}


def read_video_format(stsd: Bytes, movie: bytes, track: Bytes, where: str) -> VideoFormat:
    """Reads the format of a video track.

    Args:
      stsd, movie, track: payloads of the boxes `stsd`, `mvhd` (empty where there is none) and
        `trak`.
      where: names the file in messages.

    Raises:
      DatasetFormatError: a codec, a sample description or a matrix that is not supported.
    """
    entries = list(boxes(stsd[8:], where, "stsd"))
    if len(entries) != 1:
        raise DatasetFormatError(
            f"{where}: found {len(entries)} sample descriptions; an encoding that changes "
            "half-way is not supported"
        )
    kind, entry = entries[0]
    if kind not in CODEC_OF_SAMPLE_ENTRY:
        raise DatasetFormatError(
            f"{where}: unsupported codec {kind!r}; expected one of "
            f"{', '.join(CODEC_OF_SAMPLE_ENTRY)}"
        )
    width, height = struct.unpack_from(">HH", entry, 24)
    children = list(boxes(entry[_VISUAL_FIELDS_BYTES:], where, kind))
    if kind == "mp4v" and (
        other := _other_codec([payload for name, payload in children if name == "esds"])
    ):
        raise DatasetFormatError(
            f"{where}: unsupported codec {other} in a sample entry mp4v; expected MPEG-4 Part 2 "
            "there"
        )
    # FFmpeg writes the bit rate of each file here (btrt), which no decoder needs: without it, files
    # of one encoder have equal descriptions, and their GOPs can be decoded together.
    kept = [box(name, payload) for name, payload in children if name != "btrt"]
    description = box(
        "stsd", bytes(stsd[:8]) + box(kind, b"".join([entry[:_VISUAL_FIELDS_BYTES], *kept]))
    )
    matrices, rotation = _matrices(movie, track, where)
    return VideoFormat(
        CODEC_OF_SAMPLE_ENTRY[kind].name, width, height, description, matrices, rotation
    )


def _other_codec(esds_boxes: list[Bytes]) -> str | None:
    """Returns the codec that the descriptors of a sample entry `mp4v` name, if it is not MPEG-4
    Part 2.
    """
    if not esds_boxes:
        return None
    # ISO/IEC 14496-1, 7.2.6: descriptors of tag, length (7 bits a byte) and fields. An
    # ES_Descriptor (3) holds its number and flags, then a DecoderConfigDescriptor (4), which begins
    # with the object type.
    esds = bytes(esds_boxes[0])
    cursor = 4
    for tag, num_fields in ((3, 3), (4, 0)):
        if cursor >= len(esds) or esds[cursor] != tag:
            return None  # FFmpeg then goes by the sample entry
        cursor += 1
        while cursor < len(esds) and esds[cursor] & 0x80:
            cursor += 1
        cursor += 1
        if tag == 3 and cursor + 2 < len(esds):
            flags = esds[cursor + 2]
            num_fields += (
                2 * (flags >> 7 & 1)
                + (1 + esds[cursor + 3] if flags & 0x40 else 0)
                + 2 * (flags >> 5 & 1)
            )
        cursor += num_fields
    kind = esds[cursor] if cursor < len(esds) else _MPEG4_OBJECT_TYPE
    return (
        None
        if kind == _MPEG4_OBJECT_TYPE
        else _OBJECT_TYPES.get(kind, f"of object type 0x{kind:02x}")
    )


def _matrices(movie: bytes, track: Bytes, where: str) -> tuple[tuple[bytes, bytes], int]:
    """Returns the matrices of movie and track, and the degrees clockwise by which both together
    turn the frames.
    """
    header = bytes(only_box(track, "tkhd", where, "trak"))
    # 14496-12, 8.2.2 and 8.3.2: after the times, whose width depends on the version, and other
    # fields.
    places = (
        (movie, 48 if movie[:1] == b"\1" else 36),
        (header, 52 if header[:1] == b"\1" else 40),
    )
    found = [data[place : place + 36] for data, place in places]
    of_movie, of_track = (matrix if len(matrix) == 36 else IDENTITY for matrix in found)
    if of_movie == of_track == IDENTITY:
        return (IDENTITY, IDENTITY), 0
    a, b, _, c, d, *_ = struct.unpack(">9i", of_track)
    e, f, _, g, h, *_ = struct.unpack(">9i", of_movie)
    product = (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)
    if not any(product):
        # written by tools that leave the field empty; players show the frames as they are
        return (IDENTITY, IDENTITY), 0
    # Written by rounding sines and cosines: what is less than a thousandth of the largest turns
    # nothing.
    least = max(abs(number) for number in product) // 1000
    signs = tuple((number > least) - (number < -least) for number in product)
    if signs not in _TURNS:
        raise DatasetFormatError(
            f"{where}: its matrix {tuple(n / 2**32 for n in product)} mirrors or distorts the "
            "frames; expected one that turns them by 0, 90, 180 or 270 degrees"
        )
    return (of_movie, of_track), _TURNS[signs]
