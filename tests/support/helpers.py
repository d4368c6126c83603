"""Small videos in memory, and what several tests do with them."""

from __future__ import annotations

import functools
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from torchcodec.decoders import VideoDecoder

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._video.mp4 import SampleTable, read_sample_table

# SVT-AV1 has a log of its own, straight to stderr, which only this variable turns down.
os.environ.setdefault("SVT_LOG", "1")

_LIBRARIES = {"av1": "libsvtav1", "h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4"}


def pictures(
    num_frames: int, *, height: int, width: int, seed: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields frames of which no two look alike: a bright square walks over a noisy background that
    changes from frame to frame.
    """
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 120, (height, width, 3), np.uint8)
    for frame in range(num_frames):
        picture = np.roll(background, 3 * frame, axis=1)
        top, left = (frame * 5 + seed) % (height - 16), (frame * 7) % (width - 16)
        picture[top : top + 16, left : left + 16] = 255 - 4 * (frame % 32)
        yield picture


@functools.cache
def encoded(
    codec: str,
    *,
    num_frames: int = 30,
    gop: int = 8,
    b_frames: int = 0,
    open_gop: bool = False,
    movflags: str = "",
    num_tracks: int = 1,
    audio: bool = False,
    seed: int = 0,
) -> bytes:
    """Returns an MP4 of 96x64 frames at 10 fps; `movflags` are FFmpeg's: `faststart` puts `moov`
    first.
    """
    options = {"g": str(gop), "crf": "30", "bf": str(b_frames)}
    if codec == "av1":
        options = {"g": str(gop), "crf": "45", "preset": "12", "svtav1-params": "lp=1"}
    elif codec == "h264":
        options |= {
            "preset": "veryfast",
            "sc_threshold": "0",
            "x264-params": f"open-gop={int(open_gop)}:keyint={gop}:min-keyint={gop}",
        }
    elif codec == "hevc":
        parameters = (
            f"bframes={b_frames}:open-gop={int(open_gop)}:keyint={gop}:min-keyint={gop}:scenecut=0"
        )
        options |= {
            "preset": "ultrafast",
            "x265-params": f"{parameters}:log-level=none:pools=none:frame-threads=1",
        }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "video.mp4"
        with av.open(
            str(path), "w", options={"movflags": movflags} if movflags else {}
        ) as container:
            streams: list[Any] = []
            for _ in range(num_tracks):
                streams.append(
                    container.add_stream(_LIBRARIES[codec], rate=10, options=dict(options))
                )
                streams[-1].width, streams[-1].height, streams[-1].pix_fmt = 96, 64, "yuv420p"
                streams[-1].codec_context.thread_count = 1
            sound: Any = container.add_stream("aac", rate=16000) if audio else None
            for number, picture in enumerate(pictures(num_frames, height=64, width=96, seed=seed)):
                for stream in streams:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts = number
                    container.mux(stream.encode(frame))
                if audio:
                    samples = np.sin(np.arange(1600, dtype=np.float32) / 9)[None]
                    tone = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                    tone.sample_rate, tone.pts = 16000, number * 1600
                    container.mux(sound.encode(tone))
            for stream in [*streams, *([sound] if audio else [])]:
                container.mux(stream.encode())
        return path.read_bytes()


def read_table(
    data: bytes,
    *,
    where: str = "a.mp4",
    ranges: list[ByteRange] | None = None,
    size_bytes: int | None = None,
    is_moov_last: bool = False,
) -> SampleTable:
    """Drives the reader of sample tables over a file in memory; collects what it asked for in
    `ranges`.

    With `size_bytes` the file is said to be larger than its data, after which come zeros.
    """
    size_bytes = len(data) if size_bytes is None else size_bytes
    reader = read_sample_table(size_bytes, where=where, is_moov_last=is_moov_last)
    wanted = next(reader)
    while True:
        assert 0 <= wanted.start < wanted.stop <= size_bytes
        if ranges is not None:
            ranges.append(wanted)
        try:
            wanted = reader.send(data[wanted.start : wanted.stop].ljust(wanted.length, b"\0"))
        except StopIteration as stop:
            table: SampleTable = stop.value
            return table


def decode_all(mp4: bytes) -> npt.NDArray[np.uint8]:
    """Returns uint8 `(frames, height, width, 3)`: all frames, by decoding a file from start
    to end.
    """
    frames = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")[
        :
    ].numpy()
    assert frames.dtype == np.uint8
    return frames


# --- boxes ---------------------------------------------------------------------------------------


def box(kind: str, payload: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(payload), kind.encode()) + payload


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    """Returns (type, payload) of the boxes that fill `data`; sizes of 32 bits only."""
    found, offset = [], 0
    while offset < len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        found.append((kind.decode("latin-1"), data[offset + 8 : offset + size]))
        offset += size
    return found


def edit_box(data: bytes, path: str, change: Callable[[bytes], bytes]) -> bytes:
    """Returns `data` with the first box at a path such as `moov/trak/mdia` replaced by
    `change(payload)`, which is whole boxes.
    """
    kind, _, rest = path.partition("/")
    edited, done = b"", False
    for name, payload in boxes(data):
        if name == kind and not done:
            edited += box(name, edit_box(payload, rest, change)) if rest else change(payload)
            done = True
        else:
            edited += box(name, payload)
    assert done, path
    return edited
