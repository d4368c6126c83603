"""The description of the samples of a file that a decoder gets, as a value. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

# The matrix that turns nothing (ISO/IEC 14496-12, 8.3.2).
IDENTITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


class VideoFormat(NamedTuple):
    """The description of the samples of a file that a decoder gets.

    Samples of files with equal formats can be decoded together.

    Attributes:
      codec: `av1`, `h264`, `hevc`, `mpeg4` or `vp9`, told by the file.
      width, height: pixels, as coded.
      sample_description: the `stsd` box, without bit rates.
      matrices: those of the movie and of the track, 36 bytes each: how the frames are turned for
        display.
      rotation: degrees clockwise that they turn it by: 0, 90, 180 or 270.
    """

    codec: str
    width: int
    height: int
    sample_description: bytes
    matrices: tuple[bytes, bytes] = (IDENTITY, IDENTITY)
    rotation: int = 0

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of a frame, turned."""
        return (
            (self.width, self.height) if self.rotation in (90, 270) else (self.height, self.width)
        )
