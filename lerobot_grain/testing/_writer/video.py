"""Encodes episodes to MP4 and stitches them into video files, the way lerobot's recorder does.

The recorder encodes every episode to an MP4 of its own. The first one of a video file is moved into
place as it is, with its `moov` box at the end; each further one is appended by copying coded
samples (ffmpeg's concat demuxer) into a file whose `moov` comes first. So every episode starts at a
key frame, and GOPs are cut where episodes end (`dataset_writer._save_episode_video` of lerobot
0.6.1).

Rules:
* This is the only module that imports PyAV, which comes with the extra `testing`. Without PyAV it
  imports, and encoding raises.
* Encoders run on one thread each and print nothing: the caller encodes episodes side by side.
* Episodes follow each other at whole frames, as in the recorder's files: lerobot 0.6.1 asks for
  PyAV 15, whose FFmpeg 7.1 joins so. Newer ones round the length of H.264 with B pictures down to
  milliseconds and join there, each a little differently; so the lengths are told to them.
* GOPs have exactly the declared lengths, so scene-cut detection is off. lerobot leaves it on; `gop`
  of several lengths is like that.

Not here: what frames show, and which episode goes into which file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, cycle, islice
from pathlib import Path
from typing import Any, Literal

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer.depth import (
    MAX_METERS,
    MIN_METERS,
    SHIFT_METERS,
    Pictures,
    codes_of_depth,
)

try:
    import av
except ModuleNotFoundError:
    av = None

# x265 4 overruns its buffers below about 56 columns or rows, and the process dies later in free()
# (PyAV 18.1, 48x48 and 96x48).
_MIN_HEVC_PIXELS = 64
# The recorder's files count their length in milliseconds, as those of every FFmpeg before 9 (PyAV
# 19), which takes ticks of the video.
_JOINING_OPTIONS = {"movie_timescale": "1000"}
# With B pictures x265 takes the first decode times from pictures that a shorter episode does not
# have, that is from uninitialised memory.
_MIN_HEVC_FRAMES = 3

Codec = Literal["av1", "h264", "hevc", "mpeg4", "vp9"]


@dataclass(frozen=True, slots=True)
class _Encoder:
    library: str
    crf: int
    preset: str | int | None
    pix_fmts: tuple[str, ...]


# The presets are the fastest at which barcodes still survive. AV1: lerobot's own crf and preset.
# The others: the crf of their libraries' documentation, but for MPEG-4, which has none: there it is
# the quantizer.
_ENCODERS: dict[Codec, _Encoder] = {
    "av1": _Encoder("libsvtav1", 30, 12, ("yuv420p", "yuv420p10le")),
    "h264": _Encoder(
        *("libx264", 23, "veryfast"),
        ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    ),
    "hevc": _Encoder(
        "libx265",
        23,
        "ultrafast",
        ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"),
    ),
    "mpeg4": _Encoder("mpeg4", 4, None, ("yuv420p",)),
    "vp9": _Encoder("libvpx-vp9", 31, None, ("yuv420p",)),
}
_DEPTH_ENCODER = _Encoder("libx265", 30, None, ("gray12le",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One camera of the dataset, and how its frames are stored.

    Attributes:
      key: name of the feature.
      height: pixels. At least 64 for HEVC, like the width.
      width: pixels. Odd sizes work with AV1, MPEG-4 and VP9, with `yuv444p`, and for depth.
      kind: `"video"`, or `"image"` for PNGs embedded in the data files; then the fields below mean
        nothing.
      depth: a depth camera: video is HEVC of the format `gray12le`, without loss, as lerobot writes
        it, and `codec`, `pix_fmt` and `crf` mean nothing; embedded images are TIFF of 16 bits.
      codec: of the video.
      gop: frames from one key frame to the next; 2 is lerobot's default. Or several lengths, used
        in turn, from the start of each episode.
      b_frames: how many B pictures may stand in a row, for h264 and HEVC: frames are then not
        stored in the order they are shown.
      open_gop: B pictures shown before a key frame may refer to frames before it (HEVC only).
        lerobot's HEVC files are like that.
      pix_fmt: FFmpeg's name of the pixel format.
      crf: quality; less is better and larger. None: the codec's default (AV1 30, h264 and HEVC 23,
        MPEG-4 4, VP9 31).
      moov: where the `moov` box stands: `"as_recorded"` is at the end for a file of one episode and
        at the start for more.
    """

    key: str = "observation.images.top"
    height: int = 96
    width: int = 96
    kind: Literal["video", "image"] = "video"
    depth: bool = False
    codec: Codec = "av1"
    gop: int | tuple[int, ...] = 2
    b_frames: int = 0
    open_gop: bool = False
    pix_fmt: str = "yuv420p"
    crf: int | None = None
    moov: Literal["as_recorded", "start", "end"] = "as_recorded"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InvalidRequestError(
                f"camera {self.key!r}: size {self.height}x{self.width} (height x width) must be "
                "positive"
            )
        if self.kind == "image":
            return
        if self.codec not in _ENCODERS:
            raise InvalidRequestError(
                f"camera {self.key!r}: codec {self.codec!r} is not one of {sorted(_ENCODERS)}"
            )
        formats = _ENCODERS[self.codec].pix_fmts
        is_hevc = self.stored_codec == "hevc"
        if self.pix_fmt not in formats and not self.depth:
            raise InvalidRequestError(
                f"camera {self.key!r}: pixel format {self.pix_fmt!r} is not one of {formats}, "
                f"which {self.codec} can have"
            )
        if min(self.gop_lengths, default=0) < 1 or self.b_frames < 0:
            raise InvalidRequestError(
                f"camera {self.key!r}: gop {self.gop} must be at least 1 and b_frames "
                f"{self.b_frames} at least 0"
            )
        if self.b_frames and self.stored_codec in ("av1", "vp9"):
            raise InvalidRequestError(
                f"camera {self.key!r}: {self.stored_codec.upper()} has no B pictures; set "
                "b_frames=0 or use h264 or hevc"
            )
        if self.open_gop and not is_hevc:
            raise InvalidRequestError(
                f"camera {self.key!r}: open GOPs are written for hevc only, not for {self.codec}"
            )
        if is_hevc and min(self.height, self.width) < _MIN_HEVC_PIXELS:
            raise InvalidRequestError(
                f"camera {self.key!r}: x265 cannot safely encode {self.height}x{self.width} "
                f"(height x width); make both at least {_MIN_HEVC_PIXELS} or use av1 or h264"
            )
        if self.moov not in ("as_recorded", "start", "end"):
            raise InvalidRequestError(
                f"camera {self.key!r}: moov {self.moov!r} is not one of 'as_recorded', 'start', "
                "'end'"
            )

    @property
    def num_channels(self) -> int:
        """Channels of its frames: 1 for depth, else 3."""
        return 1 if self.depth else 3

    @property
    def gop_lengths(self) -> tuple[int, ...]:
        return (self.gop,) if isinstance(self.gop, int) else self.gop

    @property
    def stored_codec(self) -> Codec:
        return "hevc" if self.depth else self.codec

    def info(self, fps: int) -> dict[str, Any]:
        """Returns the `info` entry of the feature in `info.json`, as lerobot 0.6.1 writes it; empty
        where it writes none.
        """
        unit = {"is_depth_map": True, "depth_unit": "mm"} if self.depth else {}
        if self.kind == "image":
            return unit
        encoder = _encoder(self)
        quantizer = {
            "video.depth_min": MIN_METERS,
            "video.depth_max": MAX_METERS,
            "video.shift": SHIFT_METERS,
            "video.use_log": True,
        }
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": self.stored_codec,
            "video.pix_fmt": encoder.pix_fmts[0] if self.depth else self.pix_fmt,
            "video.fps": fps,
            "video.channels": self.num_channels,
            "has_audio": False,
            "video.g": max(self.gop_lengths),
            "video.crf": encoder.crf if self.crf is None else self.crf,
            "video.preset": encoder.preset,
            "video.fast_decode": 0,
            "video.video_backend": "pyav",
            "video.extra_options": {"x265-params": "lossless=1"} if self.depth else {},
            "is_depth_map": False,
            **unit,
            **(quantizer if self.depth else {}),
        }


def _encoder(camera: Camera) -> _Encoder:
    return _DEPTH_ENCODER if camera.depth else _ENCODERS[camera.codec]


def encode_episode(path: Path, frames: Iterable[Pictures], *, camera: Camera, fps: int) -> float:
    """Encodes one episode to an MP4 of its own, with `moov` at the end.

    Args:
      path: file to write.
      frames: uint8 (height, width, 3) each, in the order they are shown; depth: uint16 (height,
        width, 1), millimeters.
      camera: size and coding.
      fps: frames per second.

    Returns:
      Duration in seconds: frames / fps, which is what lerobot takes from a file that its recorder
        encoded.

    Raises:
      ImportError: PyAV is missing.
      InvalidRequestError: the encoder refuses the size or the format.
    """
    _require_av()
    encoder = _encoder(camera)
    pix_fmt = encoder.pix_fmts[0] if camera.depth else camera.pix_fmt
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(encoder.library, fps, options=_encoder_options(camera))
        stream.pix_fmt = pix_fmt
        stream.width = camera.width
        stream.height = camera.height
        stream.codec_context.thread_count = 1
        try:
            stream.codec_context.open()
        except av.FFmpegError as error:
            raise InvalidRequestError(
                f"camera {camera.key!r}: {encoder.library} refuses {camera.height}x{camera.width} "
                f"(height x width) with {pix_fmt}; use an even height and width, or "
                "pix_fmt='yuv444p' with h264 or hevc"
            ) from error
        source = _video_frames(frames, camera)
        head = list(islice(source, _MIN_HEVC_FRAMES))
        num_frames = 0
        for frame in chain(head, source):
            container.mux(stream.encode(frame))
            num_frames += 1
        flushed = stream.encode()
        if camera.stored_codec == "hevc" and camera.b_frames and len(head) < _MIN_HEVC_FRAMES:
            # So few frames all come at the end, and in the order they are shown. Two frames ahead
            # is where x265 starts otherwise.
            for index, packet in enumerate(flushed):
                packet.dts = index - 2
        container.mux(flushed)
    return num_frames / fps


def stitch_episodes(
    path: Path, episodes: Sequence[Path], *, moov: Literal["as_recorded", "start", "end"]
) -> None:
    """Puts the MP4s of consecutive episodes together into one video file and deletes them.

    All are joined at once. lerobot appends one at a time, which yields the same samples with the
    same times. Each episode starts where the frames of those before it end.

    Args:
      path: file to write; its directory must exist.
      episodes: written by `encode_episode`, at least one, all from the same camera.
      moov: see `Camera`.
    """
    _require_av()
    if len(episodes) == 1 and moov != "start":
        shutil.move(episodes[0], path)
        return
    listing = episodes[0].with_suffix(".txt")
    listing.write_text(_listing(episodes))
    options = _JOINING_OPTIONS if moov == "end" else _JOINING_OPTIONS | {"movflags": "faststart"}
    with (
        av.open(str(listing), format="concat", options={"safe": "0"}) as source,
        av.open(str(path), "w", format="mp4", options=options) as target,
    ):
        copied = target.add_stream_from_template(source.streams.video[0], opaque=True)
        # The time base of the episodes, and not the muxer's choice, so that times are copied
        # without rounding.
        copied.time_base = source.streams.video[0].time_base
        last_dts = None
        for packet in source.demux(source.streams.video[0]):
            # The demuxer ends with an empty packet that asks a decoder to flush.
            if packet.dts is None:
                continue
            # An episode shorter than the reordering delay of its encoder starts to be decoded later
            # than the others, so the next one starts before it ends. The ffmpeg program moves such
            # times forward, too; without that the muxer refuses the packet.
            if last_dts is not None and packet.dts <= last_dts:
                packet.dts = last_dts + 1
            last_dts = packet.dts
            packet.stream = copied
            target.mux(packet)
    for used in (listing, *episodes):
        used.unlink()


def _listing(episodes: Sequence[Path]) -> str:
    """Returns what the concat demuxer is to join: the files, and how long each of them is."""
    lines = []
    start_seconds = 0.0
    for episode in episodes:
        with av.open(str(episode)) as container:
            stream = container.streams.video[0]
            stop_seconds = start_seconds + stream.frames / float(stream.average_rate)
        # The demuxer counts in microseconds: rounded one by one, the durations of many episodes
        # would move the last ones by a tick.
        duration = round(stop_seconds * 1_000_000) - round(start_seconds * 1_000_000)
        # The concat demuxer ends a quoted name at a quote, so that one is closed, escaped and
        # opened again.
        name = str(episode.resolve()).replace("'", "'\\''")
        lines += [f"file '{name}'", f"duration {duration}us"]
        start_seconds = stop_seconds
    return "\n".join(lines) + "\n"


def _video_frames(frames: Iterable[Pictures], camera: Camera) -> Iterator[Any]:
    """Yields what the encoder is given; where GOPs have several lengths, with their first frames
    marked.
    """
    starts = accumulate(chain([0], cycle(camera.gop_lengths)))
    start = next(starts)
    for index, frame in enumerate(frames):
        if camera.depth:
            given = av.VideoFrame.from_ndarray(codes_of_depth(frame[..., 0]), format="gray12le")
        else:
            given = av.VideoFrame.from_ndarray(frame, format="rgb24")
        if index == start:
            start = next(starts)
            if len(camera.gop_lengths) > 1:
                given.pict_type = av.video.frame.PictureType.I
        yield given


def _encoder_options(camera: Camera) -> dict[str, str]:
    encoder = _encoder(camera)
    crf = encoder.crf if camera.crf is None else camera.crf
    gop = max(camera.gop_lengths)
    shortest = min(camera.gop_lengths)
    options = {"g": str(gop), "crf": str(crf)} | (
        {} if encoder.preset is None else {"preset": str(encoder.preset)}
    )
    match camera.stored_codec:
        case "av1":
            return options | {"svtav1-params": "lp=1"}
        case "h264":
            # With B pictures and mbtree, x264 made different bytes of the same frames in one
            # process (PyAV 18.1).
            return options | {
                "bf": str(camera.b_frames),
                "sc_threshold": "0",
                "mbtree": "0",
                "forced-idr": "1",
            }
        case "hevc":
            parameters = {
                "log-level": "none",
                "bframes": camera.b_frames,
                "open-gop": int(camera.open_gop),
                "scenecut": 0,
                "min-keyint": shortest,
                "pools": "none",
                "frame-threads": 1,
            } | ({"lossless": 1} if camera.depth else {})
            return options | {
                "forced-idr": "1",
                "x265-params": ":".join(f"{name}={value}" for name, value in parameters.items()),
            }
        case "mpeg4":
            return {
                "g": str(gop),
                "qmin": str(crf),
                "qmax": str(crf),
                "bf": str(camera.b_frames),
                "sc_threshold": "1000000000",
            }
        case "vp9":
            # Key frames where they are asked for; with coded pictures that are not shown, as
            # files of VP9 have them.
            return options | {
                "b": "0",
                "cpu-used": "5",
                "lag-in-frames": "8",
                "auto-alt-ref": "1",
                "keyint_min": str(shortest),
            }


def _require_av() -> None:
    if av is None:
        raise ImportError(
            "writing video needs PyAV, which is not installed; install it with: pip install "
            "'lerobot_grain[testing]'"
        )
    # SVT-AV1 has a log of its own, straight to stderr, which only this variable turns down (1:
    # errors only). It is read at first use.
    os.environ.setdefault("SVT_LOG", "1")
