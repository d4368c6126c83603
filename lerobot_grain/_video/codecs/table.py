"""The table of the codecs that are read: what they are called, and the check of a first picture,
without which none can be added. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lerobot_grain._video.codecs.bitstreams import (
    Bytes,
    Start,
    av1_start,
    h264_start,
    hevc_start,
    mpeg4_start,
    vp9_start,
)
from lerobot_grain._video.codecs.video_format import VideoFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One codec.

    Attributes:
      name: that lerobot uses.
      sample_entries: the names (fourcc) in sample descriptions for which FFmpeg takes its decoder.
      aliases: what encoders and boxes are called in `video.codec` of info.json, where it is not the
        name.
      start: looks at the first picture of a unit; raises `NotAStartError` if a decoder cannot start
        there. Required: a codec whose first pictures nobody looks at could be stitched into wrong
        frames without an error.
    """

    name: str
    sample_entries: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    start: Callable[[VideoFormat, Bytes], Start]

    def __post_init__(self) -> None:
        if not callable(self.start):
            raise TypeError(
                f"codec {self.name}: start={self.start!r}; expected the check of a first picture"
            )


CODECS = {
    codec.name: codec
    for codec in (
        Codec(
            name="av1",
            sample_entries=("av01",),
            aliases=("libsvtav1", "libaom-av1", "av01"),
            start=av1_start,
        ),
        Codec(
            name="h264",
            sample_entries=("avc1", "avc3"),
            aliases=("libx264", "avc1", "avc"),
            start=h264_start,
        ),
        Codec(
            name="hevc",
            sample_entries=("hvc1", "hev1"),
            aliases=("libx265", "h265", "hvc1", "hev1"),
            start=hevc_start,
        ),
        Codec(name="mpeg4", sample_entries=("mp4v",), start=mpeg4_start),
        Codec(name="vp9", sample_entries=("vp09",), start=vp9_start),
    )
}
CODEC_OF_SAMPLE_ENTRY = {
    entry: codec for codec in CODECS.values() for entry in codec.sample_entries
}


def start_of(video: VideoFormat, sample: Bytes) -> Start:
    """Looks at the first picture of a unit.

    Raises:
      NotAStartError: a decoder cannot start there.
    """
    return CODECS[video.codec].start(video, sample)
