"""Reads from a coded picture whether a decoder can start at it, and which headers it has. Bits
only, no I/O.

Each codec of the table (`_video/codecs/table`) has a function here that looks at the first picture
of a unit, `*_start`: one whose first pictures nobody looks at could be stitched wrongly without an
error.

Headers are what a decoder remembers from one picture to the next: parameter sets (H.264, HEVC),
sequence headers (AV1), and the layers above a picture (MPEG-4 Part 2). Most files have them in the
sample description alone. Files that were joined from recordings of different encoder settings have
them in their samples, too, under the same numbers: there each picture needs its own. VP9 has none.

Rule: NAL units follow their lengths (ISO/IEC 14496-15); inside of one, a start code begins another
one, as FFmpeg reads it (`ff_h2645_packet_split`): cameras of phones write messages, parameter sets
and the picture so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lerobot_grain._video.codecs.video_format import VideoFormat

Bytes = bytes | memoryview

# NAL unit types of ITU-T H.265, table 7-1.
_HEVC_BLA_W_LP = 16
_HEVC_BLA_N_LP = 18
_HEVC_IDR_W_RADL = 19
_HEVC_IDR_N_LP = 20
_HEVC_CRA = 21
_HEVC_LAST_PICTURE_TYPE = 31
_HEVC_HEADERS = (32, 33, 34)  # parameter sets of video, sequence, picture
# NAL unit types of ITU-T H.264, table 7-1: coded slices are 1 to 5, of an IDR picture 5.
_H264_IDR = 5
_H264_LAST_PICTURE_TYPE = 5
# parameter sets of sequence and picture, the extension and the subset of the former
_H264_HEADERS = (7, 8, 13, 15)
# OBU types of the AV1 specification, section 6.2.2.
_AV1_SEQUENCE_HEADER = 1
_AV1_FRAME_HEADER = 3
_AV1_FRAME = 6
_START_CODE = b"\0\0\1"
# Codecs whose samples consist of NAL units, any of which may be a header.
HAS_NAL_UNITS = frozenset(("h264", "hevc"))


class NotAStartError(Exception):
    """The defect of the first picture of a unit."""


class Start(NamedTuple):
    """The first picture of a unit.

    Attributes:
      sample: such that a decoder starts anew at it.
      headers: those that it brings along; empty where the sample description has all.
      forgets: whether a decoder that is running forgets all pictures before it, whichever decoder
        it is.
    """

    sample: Bytes
    headers: bytes
    forgets: bool = True


def later_headers(video: VideoFormat, samples: Iterable[Bytes]) -> set[bytes]:
    """Returns what the samples of a unit after its first bring along: that holds for what is
    decoded after the unit, too.
    """
    if video.codec not in HAS_NAL_UNITS:
        return set()
    place = _length_bytes(video)
    wanted = _HEVC_HEADERS if video.codec == "hevc" else _H264_HEADERS
    found = set()
    for sample in samples:
        # Nearly every sample begins with a slice of its picture; the others are looked at more
        # closely.
        if len(sample) > place and _is_picture(video, _kind(video, sample[place])):
            continue
        try:
            found.add(
                b"".join(
                    _header(sample, begin, stop)
                    for kind, begin, stop in _nal_units(video, sample)
                    if kind in wanted
                )
            )
        except NotAStartError:
            found.add(b"damaged")  # the decoder will say so; nothing else is to be decoded after it
    return found - {b""}


def _length_bytes(video: VideoFormat) -> int:
    """Returns the number of bytes of the length before each NAL unit."""
    # The byte with lengthSizeMinusOne: hvcC, 22nd byte of its payload; avcC, 5th.
    kind, place = (b"hvcC", 21) if video.codec == "hevc" else (b"avcC", 4)
    configuration = video.sample_description.find(kind)
    if configuration < 0 or configuration + 4 + place >= len(video.sample_description):
        raise NotAStartError(
            f"the sample description has no {kind.decode()} box; the file cannot be decoded"
        )
    return (video.sample_description[configuration + 4 + place] & 3) + 1


def _kind(video: VideoFormat, first_byte: int) -> int:
    return first_byte >> 1 & 0x3F if video.codec == "hevc" else first_byte & 0x1F


def _is_picture(video: VideoFormat, kind: int) -> bool:
    return (
        kind <= _HEVC_LAST_PICTURE_TYPE
        if video.codec == "hevc"
        else 1 <= kind <= _H264_LAST_PICTURE_TYPE
    )


def _nal_units(video: VideoFormat, sample: Bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (type, first byte, end) of every NAL unit of a sample."""
    length_bytes = _length_bytes(video)
    # As FFmpeg tells start codes from lengths (`decode_nal_units` of its `libavcodec/h264dec.c`).
    begins_with_code = (
        video.codec == "h264"
        and length_bytes == 4
        and len(sample) > 8
        and sample[:4] == b"\0\0\0\1"
    )
    if begins_with_code and int.from_bytes(sample[5:9], "big") > len(sample):
        yield from _split(video, sample, 4, len(sample))
        return
    cursor = 0
    while cursor + length_bytes < len(sample):
        length = int.from_bytes(sample[cursor : cursor + length_bytes], "big")
        cursor += length_bytes
        if length == 0 or cursor + length > len(sample):
            raise NotAStartError(
                f"a NAL unit of {length} bytes in a picture with {len(sample) - cursor} bytes "
                "left; the picture is damaged"
            )
        yield from _split(video, sample, cursor, cursor + length)
        cursor += length


def _split(
    video: VideoFormat, sample: Bytes, begin: int, end: int
) -> Iterator[tuple[int, int, int]]:
    """Yields the NAL units that start codes make of one, up to the first slice of a picture, in
    which there is no start code.
    """
    while True:
        kind = _kind(video, sample[begin])
        code = -1 if _is_picture(video, kind) else bytes(sample[begin:end]).find(_START_CODE)
        if code < 0 or begin + code + len(_START_CODE) >= end:
            yield kind, begin, end
            return
        yield kind, begin, begin + code
        begin += code + len(_START_CODE)


def _header(sample: Bytes, begin: int, stop: int) -> bytes:
    return (stop - begin).to_bytes(4) + bytes(sample[begin:stop])


def hevc_start(video: VideoFormat, sample: Bytes) -> Start:
    """Looks for an IDR, CRA or BLA picture, rewrites CRA to BLA; raises `NotAStartError` if a
    decoder cannot start there.
    """
    rewritten = None
    headers = []
    num_pictures = 0
    forgets = True
    for kind, begin, stop in _nal_units(video, sample):
        if not _is_picture(video, kind):
            if kind in _HEVC_HEADERS:
                headers.append(_header(sample, begin, stop))
            continue  # a message
        num_pictures += 1
        forgets = forgets and kind in (_HEVC_IDR_W_RADL, _HEVC_IDR_N_LP)
        if kind == _HEVC_CRA:
            rewritten = rewritten or bytearray(sample)
            rewritten[begin] = sample[begin] & 0x81 | _HEVC_BLA_N_LP << 1
        elif not _HEVC_BLA_W_LP <= kind <= _HEVC_IDR_N_LP:
            raise NotAStartError(
                f"flagged as key frame, but its NAL unit type is {kind}; expected IDR (19, 20), "
                "CRA (21) or BLA (16 to 18)"
            )
    if num_pictures == 0:
        raise NotAStartError("flagged as key frame, but it holds no picture")
    return Start(sample if rewritten is None else bytes(rewritten), b"".join(headers), forgets)


def h264_start(video: VideoFormat, sample: Bytes) -> Start:
    """Looks for an IDR picture; raises `NotAStartError` if a decoder cannot start there."""
    units = list(_nal_units(video, sample))
    kinds = [kind for kind, _, _ in units]
    pictures = [kind for kind in kinds if _is_picture(video, kind)]
    if not pictures or any(kind != _H264_IDR for kind in pictures):
        raise NotAStartError(
            f"flagged as key frame, but it is not an IDR picture (NAL unit types {kinds}); H.264 "
            "with open GOPs is not supported"
        )
    return Start(
        sample,
        b"".join(
            _header(sample, begin, stop) for kind, begin, stop in units if kind in _H264_HEADERS
        ),
    )


def av1_start(video: VideoFormat, sample: Bytes) -> Start:
    """Looks for a key frame; raises `NotAStartError` if a decoder cannot start there."""
    del video
    cursor = 0
    headers = b""
    while cursor < len(sample):
        header = sample[cursor]
        cursor += 2 if header & 4 else 1  # an extension byte follows
        size = len(sample) - cursor
        shift = 0
        if header & 2:  # a size field follows: leb128 (section 4.10.5)
            size = 0
            while cursor < len(sample) and shift < 56:
                byte = sample[cursor]
                cursor += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        kind = header >> 3 & 0xF
        if kind == _AV1_SEQUENCE_HEADER:
            headers += bytes(sample[cursor : cursor + size])
        elif kind in (_AV1_FRAME_HEADER, _AV1_FRAME):
            # The frame header begins with show_existing_frame (1 bit) and frame_type (2 bits), 0 is
            # KEY_FRAME (section 5.9.2).
            if cursor < len(sample) and sample[cursor] >> 5 == 0:
                return Start(sample, headers)
            break
        cursor += size
    raise NotAStartError("flagged as key frame, but it does not begin with an AV1 key frame")


def mpeg4_start(video: VideoFormat, sample: Bytes) -> Start:
    """Looks for an intra picture; raises `NotAStartError` if a decoder cannot start there."""
    del video
    # ISO/IEC 14496-2, 6.2.5: vop_start_code, then vop_coding_type (2 bits), 0 is an I-VOP.
    data = bytes(sample)
    start = data.find(b"\0\0\1\xb6")
    if start < 0 or start + 4 >= len(data) or data[start + 4] >> 6 != 0:
        raise NotAStartError(
            "flagged as key frame, but it does not begin with an MPEG-4 intra picture"
        )
    # The time of a group of pictures (b3) stands with the headers, and differs from GOP to GOP.
    # The version that an encoder writes (b2) counts: FFmpeg decodes by it.
    pieces = data[:start].split(_START_CODE)
    return Start(
        sample, b"".join(_START_CODE + piece for piece in pieces if piece and piece[0] != 0xB3)
    )


def vp9_start(video: VideoFormat, sample: Bytes) -> Start:
    """Looks for a key frame; raises `NotAStartError` if a decoder cannot start there."""
    del video
    # VP9 bitstream specification, 6.2: frame_marker (2 bits, 2), profile (2 bits, the lower one
    # first), a reserved bit in profile 3, show_existing_frame (1 bit), frame_type (1 bit), 0 is
    # KEY_FRAME.
    header = sample[0] if len(sample) else 0
    place = 1 if header >> 4 & 3 == 3 else 2
    if header >> 6 != 2 or header >> place & 3 != 0:
        raise NotAStartError("flagged as key frame, but it does not begin with a VP9 key frame")
    return Start(sample, b"")
