"""MP4 files as phones, editors and other recorders leave them: joined, cut, turned, with headers in
their samples. Frames have barcodes.

And datasets whose video files are such ones: `write_with_videos`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torchcodec._core
import torchcodec.decoders
from torchcodec.decoders import VideoDecoder

from lerobot_grain._base.versions import decoder_turns_frames
from lerobot_grain.testing import WrittenDataset, draw_barcodes, read_barcodes, write_dataset
from lerobot_grain.testing._writer.video import stitch_episodes
from tests.support.helpers import box, boxes, edit_box, read_table

os.environ.setdefault("SVT_LOG", "1")

HEIGHT, WIDTH, GOP = 64, 96, 5
KEY = "observation.images.top"
TABLES = "moov/trak/mdia/minf/stbl"
_HEVC = "log-level=none:pools=none:frame-threads=1:scenecut=0"
# Encoder, its options, and what other settings of a recorder change of them.
CODECS: Mapping[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "h264": (
        "libx264",
        {"bf": "0", "sc_threshold": "0", "preset": "veryfast", "crf": "23"},
        {"preset": "ultrafast", "crf": "30"},
    ),
    "h264 B": (
        "libx264",
        {
            "bf": "2",
            "sc_threshold": "0",
            "preset": "veryfast",
            "crf": "23",
            "x264-params": "mbtree=0",
        },
        {"crf": "33"},
    ),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "crf": "28", "x265-params": f"{_HEVC}:bframes=2:open-gop=0"},
        {"x265-params": f"{_HEVC}:bframes=2:open-gop=0:sao=1:amp=1:cbqpoffs=4"},
    ),
    "hevc open": (
        "libx265",
        {"preset": "ultrafast", "crf": "28", "x265-params": f"{_HEVC}:bframes=2:open-gop=1"},
        {"x265-params": f"{_HEVC}:bframes=2:open-gop=1:sao=1:amp=1:cbqpoffs=4"},
    ),
    "av1": (
        "libsvtav1",
        {"crf": "40", "preset": "12", "svtav1-params": "lp=1"},
        {"svtav1-params": "lp=1:enable-cdef=0:tune=0"},
    ),
    "mpeg4": (
        "mpeg4",
        {"qmin": "4", "qmax": "4", "sc_threshold": "1000000000"},
        {"mpv_flags": "+qp_rd", "mbd": "rd", "flags": "+mv4"},
    ),
    "vp9": (
        "libvpx-vp9",
        {"crf": "31", "b": "0", "cpu-used": "8", "lag-in-frames": "0"},
        {"crf": "45"},
    ),
}


def filmed(episode: int, length: int) -> npt.NDArray[np.uint8]:
    """Returns uint8 `(length, HEIGHT, WIDTH, 3)`: moving colors under the barcodes (episode, frame,
    camera 0).
    """
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    frames = np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
    for frame in range(length):
        for channel in range(3):
            frames[frame, :, :, channel] = 127 + 100 * np.sin(
                3 * x + 2 * y * (channel + 1) + 1.7 * episode + channel + 0.4 * frame
            )
    draw_barcodes(frames, episode_index=episode, first_frame_index=0, camera_index=0)
    return frames


@functools.cache
def film(
    codec: str,
    episode: int,
    length: int,
    *,
    rate: Fraction = Fraction(10),
    gop: int = GOP,
    is_other: bool = False,
) -> bytes:
    """Returns the MP4 of one episode; `is_other`: of a recorder with other settings."""
    library, options, others = CODECS[codec]
    options = {"g": str(gop), "keyint_min": str(gop)} | options | (others if is_other else {})
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream(library, rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in filmed(episode, length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return written.getvalue()


def joined(*films: bytes) -> bytes:
    """Returns the films one after the other in one file, as lerobot's recorder joins episodes:
    samples are copied.
    """
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / f"{number}.mp4" for number in range(len(films))]
        for path, data in zip(paths, films, strict=True):
            path.write_bytes(data)
        whole = Path(directory) / "whole.mp4"
        stitch_episodes(whole, paths, moov="as_recorded")
        return whole.read_bytes()


# --- what is done to a file ----------------------------------------------------------------------


def with_samples(data: bytes, change: Callable[[int, bytes], bytes]) -> bytes:
    """Returns the file with each sample replaced by `change(number, sample)`, each in a chunk of
    its own.
    """
    table = read_table(data)
    samples = [
        change(i, data[o : o + n])
        for i, (o, n) in enumerate(zip(table.offsets.tolist(), table.sizes.tolist(), strict=True))
    ]
    kinds = dict(boxes(data))
    start = box("ftyp", kinds["ftyp"])
    offsets = np.cumsum([len(start) + 8, *map(len, samples[:-1])])
    count = struct.pack(">II", 0, len(samples))
    sizes = (
        count[:4]
        + struct.pack(">II", 0, len(samples))
        + np.array([len(sample) for sample in samples], ">u4").tobytes()
    )
    moov = box("moov", kinds["moov"])
    moov = edit_box(moov, f"{TABLES}/stsz", lambda _: box("stsz", sizes))
    moov = edit_box(
        moov, f"{TABLES}/stco", lambda _: box("stco", count + offsets.astype(">u4").tobytes())
    )
    moov = edit_box(
        moov, f"{TABLES}/stsc", lambda _: box("stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    )
    return start + box("mdat", b"".join(samples)) + moov


def nal_units(sample: bytes) -> list[bytes]:
    """Returns the NAL units of a sample whose lengths have four bytes."""
    found = []
    while sample:
        length = int.from_bytes(sample[:4], "big")
        found.append(sample[4 : 4 + length])
        sample = sample[4 + length :]
    return found


def of_nal_units(units: Sequence[bytes]) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def headers_of(data: bytes) -> bytes:
    """Returns what the sample description has, as it stands in a sample: parameter sets, or
    MPEG-4's layers above the picture.
    """
    entry = boxes(read_table(data).format.sample_description[16:])[0][1]
    kinds = dict(boxes(entry[78:]))
    if "avcC" in kinds:
        rest, units = kinds["avcC"][5:], []
        for _ in range(2):
            count, rest = rest[0] & 0x1F, rest[1:]
            for _ in range(count):
                length = int.from_bytes(rest[:2], "big")
                units.append(rest[2 : 2 + length])
                rest = rest[2 + length :]
        return of_nal_units(units)
    if "hvcC" in kinds:
        rest, units = kinds["hvcC"][23:], []
        while rest:
            count, rest = int.from_bytes(rest[1:3], "big"), rest[3:]
            for _ in range(count):
                length = int.from_bytes(rest[:2], "big")
                units.append(rest[2 : 2 + length])
                rest = rest[2 + length :]
        return of_nal_units(units)
    esds = kinds["esds"]
    start = esds.index(b"\0\0\1\xb0")
    return esds[start : start + esds[start - 1]]


def with_headers(data: bytes, *, first: int = 0) -> bytes:
    """Puts the headers into the samples of key frames, from number `first` on, too."""
    keys, headers = read_table(data).key_samples[first:].tolist(), headers_of(data)
    return with_samples(data, lambda number, sample: headers + sample if number in keys else sample)


def edited(data: bytes, *entries: tuple[int, int]) -> bytes:
    """Gives the track an edit list of entries (ticks of the movie, start in ticks of the media, -1
    for a wait); none: no edit list.
    """
    rows = b"".join(struct.pack(">IiI", length, start, 0x10000) for length, start in entries)
    edts = box("edts", box("elst", struct.pack(">II", 0, len(entries)) + rows)) if entries else b""
    # which puts moov after them, so that it may grow
    data = with_samples(data, lambda _, sample: sample)
    without = edit_box(
        data,
        "moov/trak",
        lambda trak: box("trak", b"".join(box(*each) for each in boxes(trak) if each[0] != "edts")),
    )
    return edit_box(without, "moov/trak/tkhd", lambda tkhd: box("tkhd", tkhd) + edts)


class Times(NamedTuple):
    """Ticks of a file: per second of the movie and of the media, of a frame, and the time at which
    the media begins.
    """

    movie: int
    media: int
    frame: int
    start: int
    length: int


def times_of(data: bytes) -> Times:
    moov = dict(boxes(dict(boxes(data))["moov"]))
    trak = dict(boxes(moov["trak"]))
    media = struct.unpack_from(">I", dict(boxes(trak["mdia"]))["mdhd"], 12)[0]
    length, start = struct.unpack_from(">Ii", dict(boxes(trak["edts"]))["elst"], 8)
    table = read_table(data)
    frame = int(np.diff(table.pts[table.presentation]).min()) if table.num_frames > 1 else 0
    return Times(struct.unpack_from(">I", moov["mvhd"], 12)[0], media, frame, start, length)


TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def turned(data: bytes, matrix: tuple[float, float, float, float], *, where: str = "tkhd") -> bytes:
    """Writes a matrix (a, b, c, d) into the header of the track, or of the movie (`mvhd`)."""
    path, place = ("moov/trak/tkhd", 40) if where == "tkhd" else ("moov/mvhd", 36)
    a, b, c, d = (round(number * 0x10000) for number in matrix)

    def change(payload: bytes) -> bytes:
        return box(
            where,
            payload[:place]
            + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
            + payload[place + 36 :],
        )

    return edit_box(data, path, change)


# --- oracles -------------------------------------------------------------------------------------


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    """Returns uint8 `(frames, height, width, 3)`: what torchcodec shows, read from start to end.

    In approximate mode, as lerobot reads: its exact mode is wrong where frames are hidden (0.13).
    Before 0.11 it does not turn frames, and may seek to a wrong one, so that they are taken as they
    come.
    """
    decoder = VideoDecoder(
        data, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate"
    )
    frames = []
    if decoder_turns_frames(torchcodec.decoders):
        for number in range(len(decoder)):
            try:
                frames.append(decoder.get_frame_at(number).data.numpy())
            except RuntimeError as error:
                if "no more frames" not in str(error):
                    raise
                break
        return np.stack(frames)
    with contextlib.suppress(IndexError):
        while True:
            frame, time, _ = torchcodec._core.get_next_frame(decoder._decoder)
            if float(time) > -1e-6:
                frames.append(frame.numpy())
    return np.ascontiguousarray(
        np.rot90(np.stack(frames), -read_table(data).format.rotation // 90, axes=(1, 2))
    )


def codes_of(frames: npt.NDArray[Any], rotation: int = 0) -> list[tuple[int, int]]:
    """Returns (episode, frame) of the barcodes of frames that were turned by some degrees
    clockwise.
    """
    upright = np.rot90(frames, rotation // 90, axes=(1, 2))
    return [
        (int(episode), int(frame))
        for episode, frame, _ in read_barcodes(np.ascontiguousarray(upright))
    ]


def codes_by_pyav(data: bytes) -> list[tuple[int, int]]:
    """Returns (episode, frame) of the frames that PyAV shows, which does not turn them."""
    with av.open(io.BytesIO(data)) as container:
        return codes_of(
            np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        )


# --- datasets -----------------------------------------------------------------------------------


class VideoOf(NamedTuple):
    """A video file and the episodes in it: rows of each, and seconds at which each should start."""

    data: bytes
    lengths: Sequence[int]
    starts: Sequence[float]


def write_with_videos(
    directory: Path,
    files: Sequence[VideoOf],
    *,
    fps: int = 10,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> WrittenDataset:
    """Writes a dataset whose one camera has these files; `size` is the (height, width) that
    info.json declares.
    """
    lengths = [length for file in files for length in file.lengths]
    written = write_dataset(
        directory,
        episode_lengths=lengths,
        fps=fps,
        cameras=(),
        state_size=1,
        action_size=1,
        statistics=False,
    )
    info = json.loads((written.directory / "meta/info.json").read_text())
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info["features"][KEY] = {
        "dtype": "video",
        "shape": [*size, 3],
        "names": ["height", "width", "channels"],
        "info": {},
    }
    (written.directory / "meta/info.json").write_text(json.dumps(info))
    path = written.directory / "meta/episodes/chunk-000/file-000.parquet"
    numbers = [number for number, file in enumerate(files) for _ in file.lengths]
    starts = [float(start) for file in files for start in file.starts]
    columns = {"chunk_index": [0] * len(lengths), "file_index": numbers, "from_timestamp": starts}
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.append_column(f"videos/{KEY}/{name}", pa.array(values))
    pq.write_table(table, path)
    for number, file in enumerate(files):
        target = written.directory / f"videos/{KEY}/chunk-000/file-{number:03d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
    return written
