"""Every codec and pixel format that real datasets have, in GOPs of any length: each frame equals
sequential decoding of its whole file.

The codec is told by the file; what info.json says of it is wrong in all of these datasets.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lerobot_grain as lg
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._reading.frames import frame_reader, gop_decoder
from lerobot_grain._reading.frames.decoding import DecodeJob, decode_jobs
from lerobot_grain._repository.sample_tables import sample_table
from lerobot_grain._video.codecs.bitstreams import NotAStartError
from lerobot_grain._video.codecs.table import CODEC_OF_SAMPLE_ENTRY, CODECS, Codec, start_of
from lerobot_grain._video.codecs.video_format import VideoFormat
from lerobot_grain._video.rgb import RgbDecoder
from lerobot_grain._video.small_mp4 import coded_unit, unit_of_frames
from lerobot_grain.testing import Camera, WrittenDataset, read_barcodes, write_dataset
from tests.support.helpers import decode_all, read_table

TOP = "top"
LENGTHS = [13, 1, 18, 8]
NUM_ROWS = sum(LENGTHS)
OFFSETS = [-4, 0, 3]
IRREGULAR = (1, 5, 2, 9, 1, 3)

CASES: dict[str, dict[str, Any]] = {
    "av1": {},
    "av1, scene cuts": {"gop": IRREGULAR},
    "av1, 10 bits": {"pix_fmt": "yuv420p10le", "gop": 5},
    "av1, odd size": {"height": 65, "width": 99, "gop": 3},
    "h264, all in one GOP": {"codec": "h264", "gop": 250, "b_frames": 2},
    "h264, scene cuts": {"codec": "h264", "gop": IRREGULAR, "b_frames": 2},
    "h264, full range": {"codec": "h264", "pix_fmt": "yuvj420p", "gop": 4},
    "h264, 4:2:2": {"codec": "h264", "pix_fmt": "yuv422p", "gop": 4, "height": 50},
    "h264, 4:4:4, odd size": {
        "codec": "h264",
        "pix_fmt": "yuv444p",
        "gop": 4,
        "height": 61,
        "width": 83,
    },
    "h264, 10 bits": {"codec": "h264", "pix_fmt": "yuv420p10le", "gop": 4, "b_frames": 1},
    "h264, 4:2:2, 10 bits": {"codec": "h264", "pix_fmt": "yuv422p10le", "gop": 4},
    "h264, 4:4:4, 10 bits": {"codec": "h264", "pix_fmt": "yuv444p10le", "gop": 4},
    "h264, no multiple of 16": {"codec": "h264", "height": 74, "width": 86, "gop": 3},
    "hevc, open GOPs": {"codec": "hevc", "gop": 6, "b_frames": 3, "open_gop": True},
    "hevc, scene cuts": {"codec": "hevc", "gop": IRREGULAR, "b_frames": 2},
    "hevc, full range": {"codec": "hevc", "pix_fmt": "yuvj420p", "gop": 4},
    "hevc, 10 bits": {
        "codec": "hevc",
        "pix_fmt": "yuv420p10le",
        "gop": 4,
        "b_frames": 3,
        "open_gop": True,
    },
    "hevc, 4:4:4, 12 bits": {
        "codec": "hevc",
        "pix_fmt": "yuv444p12le",
        "gop": 4,
        "height": 67,
        "width": 81,
    },
    "mpeg4": {"codec": "mpeg4", "gop": 12},
    "mpeg4, B pictures": {"codec": "mpeg4", "gop": 5, "b_frames": 2},
    "mpeg4, scene cuts, odd size": {"codec": "mpeg4", "gop": IRREGULAR, "height": 65, "width": 99},
    "vp9": {"codec": "vp9", "gop": 20},
    "vp9, scene cuts, odd size": {"codec": "vp9", "gop": IRREGULAR, "height": 65, "width": 99},
}


def write(directory: Path, **camera: Any) -> WrittenDataset:
    """Writes two video files, the second with `moov` at its end, and a wrong codec in info.json."""
    arguments = {"key": TOP, "height": 64, "width": 96} | camera
    written = write_dataset(
        directory,
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(Camera(**arguments),),
        episodes_per_video_file=3,
        noise=0.05,
        statistics=False,
    )
    path = directory / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][TOP]["info"] |= {"video.codec": "mjpeg", "video.pix_fmt": "gray"}
    path.write_text(json.dumps(info))
    return written


def video_files(directory: Path) -> list[Path]:
    return sorted((directory / "videos" / TOP).rglob("*.mp4"))


def check(directory: Path, *, budget_bytes: int = 3 << 29) -> None:
    """Reads an epoch of windows in disorder, and compares every frame with those of decoding whole
    files, and with its barcode.
    """
    expected = np.concatenate([decode_all(path.read_bytes()) for path in video_files(directory)])
    assert len({frame.tobytes() for frame in expected}) == len(expected) == NUM_ROWS
    dataset = lg.LeRobotIterDataset(
        directory,
        shuffle=lg.Shuffle(seed=1, clip_length=3, num_parts=4, buffer_size=8),
        num_epochs=1,
        features=[TOP, "index", "episode_index", "frame_index"],
        delta_timestamps={TOP: [offset / 10 for offset in OFFSETS]},
        read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
    )
    rows = []
    for example in dataset:
        row, episode, frame = (
            int(example[key]) for key in ("index", "episode_index", "frame_index")
        )
        wanted = np.array([frame + offset for offset in OFFSETS]).clip(0, LENGTHS[episode] - 1)
        assert np.array_equal(example[TOP], expected[row - frame + wanted])
        assert read_barcodes(example[TOP]).tolist() == [[episode, f, 0] for f in wanted]
        rows.append(row)
    assert sorted(rows) == list(range(NUM_ROWS))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    return {
        name: write(root / str(number), **camera).directory
        for number, (name, camera) in enumerate(CASES.items())
    }


@pytest.mark.parametrize("name", CASES)
def test_every_frame_equals_sequential_decoding(directories: dict[str, Path], name: str) -> None:
    codec = {"av1": "av1", "hevc": "hevc", "h264": "h264", "mpeg4": "mpeg4", "vp9": "vp9"}[
        name.split(",")[0]
    ]
    tables = [read_table(path.read_bytes()) for path in video_files(directories[name])]
    assert [table.format.codec for table in tables] == [codec, codec]
    camera = CASES[name]
    if isinstance(camera.get("gop"), tuple):
        # Every episode begins with the lengths again.
        assert tables[0].gop_lengths().tolist() == [1, 5, 2, 5, 1, 1, 5, 2, 9, 1]
        assert tables[1].gop_lengths().tolist() == [1, 5, 2]
    check(directories[name])


@pytest.mark.parametrize(
    "name",
    ["av1, scene cuts", "h264, all in one GOP", "hevc, open GOPs", "mpeg4, B pictures", "vp9"],
)
def test_decoded_in_pieces_and_again_and_again(directories: dict[str, Path], name: str) -> None:
    check(directories[name], budget_bytes=1 << 18)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("av1", "h264, scene cuts"),
        ("hevc, open GOPs", "vp9"),
        ("h264, 10 bits", "h264, full range"),
        ("mpeg4", "hevc, scene cuts"),
    ],
)
def test_files_of_one_camera_with_different_encodings(
    directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
) -> None:
    """GOPs of both files are needed side by side, and never go into one small MP4."""
    tasks: list[set[bytes]] = []

    def decode(jobs: Sequence[DecodeJob], *arguments: Any) -> Any:
        tasks.append({job.wanted.file.table.format.sample_description for job in jobs})
        return decode_jobs(jobs, *arguments)

    monkeypatch.setattr(gop_decoder, "decode_jobs", decode)
    shutil.copytree(directories[first], tmp_path / "data")
    shutil.copy(video_files(directories[second])[1], video_files(tmp_path / "data")[1])
    tables = [read_table(path.read_bytes()) for path in video_files(tmp_path / "data")]
    assert tables[0].format != tables[1].format
    check(tmp_path / "data")
    assert all(len(descriptions) == 1 for descriptions in tasks)
    assert set().union(*tasks) == {table.format.sample_description for table in tables}


@pytest.mark.parametrize("name", ["hevc, open GOPs", "hevc, 10 bits"])
@pytest.mark.parametrize("image_size", [None, (24, 32)])
def test_a_decoder_meets_a_cra_picture_at_the_start_or_in_its_place(
    directories: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    image_size: tuple[int, int] | None,
) -> None:
    """Stitched after GOPs of other places it would not clear FFmpeg 7.1 and later, which then
    predict from those.
    """
    starts: list[list[int]] = []

    class Watched(RgbDecoder):
        def __init__(self, mp4: bytes, where: str, rotation: int, **options: Any) -> None:
            super().__init__(mp4, where, rotation, **options)
            table = read_table(mp4)
            kinds = [mp4[offset + 4] >> 1 & 0x3F for offset in table.offsets.tolist()]
            starts.append([place for place, kind in enumerate(kinds) if 16 <= kind <= 18])
            numbers.append(sum(kind in (19, 20) for kind in kinds))

    numbers: list[int] = []
    monkeypatch.setattr(frame_reader, "RgbDecoder", Watched)
    dataset = lg.LeRobotIterDataset(
        directories[name],
        shuffle=lg.Shuffle(seed=1, clip_length=1),
        num_epochs=1,
        features=[TOP, "index"],
        image_size=image_size,
    )
    assert len(list(dataset)) == NUM_ROWS
    assert [0] in starts, "no GOP of the files begins with a CRA picture"
    assert [places for places in starts if places not in ([], [0])] == []
    assert max(numbers) > 1, "GOPs that begin with IDR pictures are stitched"


@pytest.mark.parametrize("moov", ["start", "end"])
def test_where_moov_stands(tmp_path: Path, moov: Any) -> None:
    write(tmp_path / "data", codec="h264", gop=4, b_frames=2, moov=moov)
    for path in video_files(tmp_path / "data"):
        data = path.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) == (moov == "start")
    check(tmp_path / "data")


def test_full_range_is_not_read_as_limited(tmp_path: Path) -> None:
    """White, black and gray are the same in both; a range that got lost on the way would move them
    by up to 16 levels.
    """

    levels = np.array([0, 40, 128, 215, 255], np.uint8)
    picture = np.broadcast_to(np.repeat(levels, 16)[None, :, None], (64, 80, 3))
    cameras = [
        Camera(
            key=f"{codec} {pix_fmt}",
            height=64,
            width=80,
            codec=codec,
            pix_fmt=pix_fmt,
            gop=3,
            crf=10,
        )
        for codec in ("h264", "hevc")
        for pix_fmt in ("yuv420p", "yuvj420p")
    ]
    write_dataset(
        tmp_path / "data",
        episode_lengths=[5],
        cameras=cameras,
        frame_content=lambda *_: picture,
        barcodes=False,
    )
    for example in lg.LeRobotIterDataset(tmp_path / "data", num_epochs=1):
        for camera in cameras:
            middles = example[camera.key][32, 8::16].astype(int)
            assert np.abs(middles - levels.astype(int)[:, None]).max() <= 4, camera.key


def test_pictures_of_vp9_that_are_no_key_frames(directories: dict[str, Path]) -> None:
    storage = lg.open_repository(directories["vp9"]).storage
    path = str(video_files(directories["vp9"])[0].relative_to(directories["vp9"]))
    table = sample_table(storage, path)
    unit = unit_of_frames(table, 0, np.array([0]))
    data = (directories["vp9"] / path).read_bytes()
    second = data[table.offsets[1] : table.offsets[1] + table.sizes[1]]
    for first in (second, b"", b"\x00" * 20, b"\xff" * 20, b"\x88"):
        padded = (
            first[: unit.byte_range.length].ljust(unit.byte_range.length, b"\0")
            if first
            else bytes(unit.byte_range.length)
        )
        with pytest.raises(
            DatasetFormatError,
            match=r"a.mp4, bytes .*: flagged as key frame, but it does not begin with a VP9 key "
            r"frame",
        ):
            coded_unit(table, unit, padded, where="a.mp4")


# --- the table -----------------------------------------------------------------------------------


def test_a_codec_without_a_check_of_its_first_picture_cannot_be_added() -> None:
    arguments: dict[str, Any] = {"name": "theora", "sample_entries": ("theo",)}
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'start'"):
        Codec(**arguments)
    with pytest.raises(
        TypeError, match="codec theora: start=None; expected the check of a first picture"
    ):
        Codec(**arguments, start=None)


def test_each_codec_refuses_what_is_not_its_key_frame() -> None:
    """Every codec of the table refuses it, so that a check that looks at nothing is found."""
    configuration = bytes(4) + b"avcC" + bytes(30) + b"hvcC" + bytes(30)
    for codec in CODECS.values():
        for sample in (b"", bytes(30)):
            with pytest.raises(NotAStartError):
                start_of(VideoFormat(codec.name, 96, 64, configuration), sample)


def test_a_sample_entry_and_an_alias_name_one_codec() -> None:
    for names in (
        [codec.sample_entries for codec in CODECS.values()],
        [codec.aliases for codec in CODECS.values()],
    ):
        assert len(set(itertools.chain(*names))) == sum(map(len, names))
    assert list(CODEC_OF_SAMPLE_ENTRY) == ["av01", "avc1", "avc3", "hvc1", "hev1", "mp4v", "vp09"]
