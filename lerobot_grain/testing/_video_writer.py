"""Encodes episodes to MP4 and stitches them into video files, the way lerobot's recorder does.

The recorder encodes every episode to an MP4 of its own. The first one of a video file is moved into place as it is, with its `moov` box
at the end; each further one is appended by copying coded samples (ffmpeg's concat demuxer) into a file whose `moov` comes first. So every
episode starts at a key frame, and GOPs are cut where episodes end (`dataset_writer._save_episode_video` of lerobot 0.6.1).

Rules:
* This is the only module that imports PyAV, which comes with the extra `testing`. Without PyAV it imports, and encoding raises.
* Encoders run on one thread each and print nothing: the caller encodes episodes side by side.
* GOPs have exactly the declared length, so scene-cut detection is off. lerobot leaves it on; real files are less regular than these.

Not here: pictures, and which episode goes into which file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lerobot_grain._errors import InvalidRequestError

try:
    import av
except ModuleNotFoundError:
    av = None

# x265 4 overruns its buffers below about 56 columns or rows, and the process dies later in free() (PyAV 18.1, 48x48 and 96x48).
_MIN_HEVC_PIXELS = 64
# With B pictures x265 takes the first decode times from pictures that a shorter episode does not have, that is from uninitialised memory.
_MIN_HEVC_FRAMES = 3

Codec = Literal["av1", "h264", "hevc"]


@dataclass(frozen=True, slots=True)
class _Encoder:
    library: str
    crf: int
    preset: str | int
    pix_fmts: tuple[str, ...]


# The presets are the fastest at which barcodes still survive. AV1: lerobot's own crf and preset. h264 and HEVC: the crf of their libraries'
# documentation.
_ENCODERS: dict[Codec, _Encoder] = {
    "av1": _Encoder("libsvtav1", 30, 12, ("yuv420p", "yuv420p10le")),
    "h264": _Encoder("libx264", 23, "veryfast", ("yuv420p", "yuvj420p", "yuv422p", "yuv444p")),
    "hevc": _Encoder("libx265", 23, "ultrafast", ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One camera of the data set, and how its pictures are stored.

    Attributes:
      key: name of the feature.
      height: pixels. At least 64 for HEVC, like the width.
      width: pixels. Odd sizes work with AV1, and with `yuv444p`.
      kind: `"video"`, or `"image"` for PNGs embedded in the data files; then the fields below mean nothing.
      codec: of the video.
      gop: frames from one key frame to the next; 2 is lerobot's default.
      b_frames: how many B pictures may stand in a row, for h264 and HEVC: frames are then not stored in the order they are shown.
      open_gop: B pictures shown before a key frame may refer to frames before it (HEVC only). lerobot's HEVC files are like that.
      pix_fmt: FFmpeg's name of the pixel format.
      crf: quality; less is better and larger. None: the codec's default (AV1 30, h264 and HEVC 23).
      moov: where the `moov` box stands: `"as_recorded"` is at the end for a file of one episode and at the start for more.
    """

    key: str = "observation.images.top"
    height: int = 96
    width: int = 96
    kind: Literal["video", "image"] = "video"
    codec: Codec = "av1"
    gop: int = 2
    b_frames: int = 0
    open_gop: bool = False
    pix_fmt: str = "yuv420p"
    crf: int | None = None
    moov: Literal["as_recorded", "start", "end"] = "as_recorded"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InvalidRequestError(f"camera {self.key!r}: size {self.height}x{self.width} (height x width) must be positive")
        if self.kind == "image":
            return
        if self.codec not in _ENCODERS:
            raise InvalidRequestError(f"camera {self.key!r}: codec {self.codec!r} is not one of {sorted(_ENCODERS)}")
        formats = _ENCODERS[self.codec].pix_fmts
        if self.pix_fmt not in formats:
            raise InvalidRequestError(
                f"camera {self.key!r}: pixel format {self.pix_fmt!r} is not one of {formats}, which {self.codec} can have"
            )
        if self.gop < 1 or self.b_frames < 0:
            raise InvalidRequestError(f"camera {self.key!r}: gop {self.gop} must be at least 1 and b_frames {self.b_frames} at least 0")
        if self.b_frames and self.codec == "av1":
            raise InvalidRequestError(f"camera {self.key!r}: AV1 has no B pictures; set b_frames=0 or use h264 or hevc")
        if self.open_gop and self.codec != "hevc":
            raise InvalidRequestError(f"camera {self.key!r}: open GOPs are written for hevc only, not for {self.codec}")
        if self.codec == "hevc" and min(self.height, self.width) < _MIN_HEVC_PIXELS:
            raise InvalidRequestError(
                f"camera {self.key!r}: x265 cannot safely encode {self.height}x{self.width} (height x width); "
                f"make both at least {_MIN_HEVC_PIXELS} or use av1 or h264"
            )
        if self.moov not in ("as_recorded", "start", "end"):
            raise InvalidRequestError(f"camera {self.key!r}: moov {self.moov!r} is not one of 'as_recorded', 'start', 'end'")

    def video_info(self, fps: int) -> dict[str, Any]:
        """Returns the `info` entry of the feature in `info.json`, as lerobot 0.6.1 writes it."""
        encoder = _ENCODERS[self.codec]
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": self.codec,
            "video.pix_fmt": self.pix_fmt,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
            "video.g": self.gop,
            "video.crf": encoder.crf if self.crf is None else self.crf,
            "video.preset": encoder.preset,
            "video.fast_decode": 0,
            "video.video_backend": "pyav",
            "video.extra_options": {},
            "is_depth_map": False,
        }


def encode_episode(path: Path, frames: Iterable[npt.NDArray[np.uint8]], *, camera: Camera, fps: int) -> float:
    """Encodes one episode to an MP4 of its own, with `moov` at the end.

    Args:
      path: file to write.
      frames: uint8 (height, width, 3) each, in the order they are shown.
      camera: size and coding.
      fps: frames per second.

    Returns:
      Duration in seconds as lerobot takes it from the file, which is not always frames / fps: with B pictures it can be shorter by less
      than a millisecond (61 frames of h264 at 30 fps: 2.0330 s).

    Raises:
      ImportError: PyAV is missing.
      InvalidRequestError: the encoder refuses the size or the format.
    """
    _require_av()
    encoder = _ENCODERS[camera.codec]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(encoder.library, fps, options=_encoder_options(camera))
        stream.pix_fmt, stream.width, stream.height = camera.pix_fmt, camera.width, camera.height
        stream.codec_context.thread_count = 1
        try:
            stream.codec_context.open()
        except av.FFmpegError as error:
            raise InvalidRequestError(
                f"camera {camera.key!r}: {encoder.library} refuses {camera.height}x{camera.width} (height x width) with {camera.pix_fmt}; "
                "use an even height and width, or pix_fmt='yuv444p' with h264 or hevc"
            ) from error
        source = iter(frames)
        head = list(islice(source, _MIN_HEVC_FRAMES))
        for frame in chain(head, source):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        flushed = stream.encode()
        if camera.codec == "hevc" and camera.b_frames and len(head) < _MIN_HEVC_FRAMES:
            # So few pictures all come at the end, and in the order they are shown. Two frames ahead is where x265 starts otherwise.
            for index, packet in enumerate(flushed):
                packet.dts = index - 2
        container.mux(flushed)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float(stream.duration * stream.time_base)


def stitch_episodes(path: Path, episodes: Sequence[Path], *, moov: Literal["as_recorded", "start", "end"]) -> None:
    """Puts the MP4s of consecutive episodes together into one video file and deletes them.

    All are joined at once. lerobot appends one at a time, which yields the same samples with the same times.

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
    # The concat demuxer ends a quoted name at a quote, so that one is closed, escaped and opened again.
    listing.write_text("".join("file '" + str(episode.resolve()).replace("'", "'\\''") + "'\n" for episode in episodes))
    options = {} if moov == "end" else {"movflags": "faststart"}
    with (
        av.open(str(listing), format="concat", options={"safe": "0"}) as source,
        av.open(str(path), "w", format="mp4", options=options) as target,
    ):
        copied = target.add_stream_from_template(source.streams.video[0], opaque=True)
        # The time base of the episodes, and not the muxer's choice, so that times are copied without rounding.
        copied.time_base = source.streams.video[0].time_base
        last_dts = None
        for packet in source.demux(source.streams.video[0]):
            # The demuxer ends with an empty packet that asks a decoder to flush.
            if packet.dts is None:
                continue
            # An episode shorter than the reordering delay of its encoder starts to be decoded later than the others, so the next one starts
            # before it ends. The ffmpeg program moves such times forward, too; without that the muxer refuses the packet.
            if last_dts is not None and packet.dts <= last_dts:
                packet.dts = last_dts + 1
            last_dts = packet.dts
            packet.stream = copied
            target.mux(packet)
    for used in (listing, *episodes):
        used.unlink()


def _encoder_options(camera: Camera) -> dict[str, str]:
    encoder = _ENCODERS[camera.codec]
    crf = encoder.crf if camera.crf is None else camera.crf
    options = {"g": str(camera.gop), "crf": str(crf), "preset": str(encoder.preset)}
    match camera.codec:
        case "av1":
            return options | {"svtav1-params": "lp=1"}
        case "h264":
            # With B pictures and mbtree, x264 made different bytes of the same pictures in one process (PyAV 18.1).
            return options | {"bf": str(camera.b_frames), "sc_threshold": "0", "mbtree": "0"}
        case "hevc":
            parameters = {
                "log-level": "none",
                "bframes": camera.b_frames,
                "open-gop": int(camera.open_gop),
                "scenecut": 0,
                "min-keyint": camera.gop,
                "pools": "none",
                "frame-threads": 1,
            }
            return options | {"x265-params": ":".join(f"{name}={value}" for name, value in parameters.items())}


def _require_av() -> None:
    if av is None:
        raise ImportError("writing video needs PyAV, which is not installed; install it with: pip install 'lerobot_grain[testing]'")
    # SVT-AV1 has a log of its own, straight to stderr, which only this variable turns down (1: errors only). It is read at first use.
    os.environ.setdefault("SVT_LOG", "1")
