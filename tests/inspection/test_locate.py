"""`locate`: the frame, time, GOP and bytes that it names, held against PyAV and the barcodes of the
frames; `lerobot-grain show`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

import lerobot_grain as lg
from lerobot_grain._cli.main import main
from lerobot_grain.testing import Camera, WrittenDataset, read_barcodes, write_dataset
from tests.format.test_episode_numbers import renumbered
from tests.support.datasets import change_info, change_table
from tests.video.test_odd_videos import KEPT, KEY, drop_rows

TOP, DEPTH, PICTURE = "top", "depth", "picture"
LENGTHS = [12, 8, 10]
CAMERAS = (
    Camera(key=TOP, height=64, width=96, codec="hevc", gop=5, b_frames=2, open_gop=True),
    Camera(key=DEPTH, height=64, width=96, depth=True, gop=4),
    Camera(key=PICTURE, height=32, width=80, kind="image"),
)
VERSIONS = ["v3.0", "v2.1"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenDataset]:
    directory = tmp_path_factory.mktemp("locate")
    # In v3.0 several episodes share a file, and several row groups an episode; in v2.1 each has
    # files of its own.
    several = {"episodes_per_video_file": 2, "episodes_per_data_file": 2, "rows_per_row_group": 7}
    return {
        version: write_dataset(
            directory / version,
            version=version,
            episode_lengths=LENGTHS,
            fps=10,
            cameras=CAMERAS,
            **(several if version == "v3.0" else {}),
        )
        for version in VERSIONS
    }


@pytest.fixture
def directory(both: dict[str, WrittenDataset], tmp_path: Path) -> Path:
    """A copy of the dataset of v3.0 that a test may damage."""
    return shutil.copytree(both["v3.0"].directory, tmp_path / "copy")


def pixels_of(frame: Any) -> Any:
    return (
        frame.to_ndarray()[..., None]
        if frame.format.name.startswith("gray")
        else frame.to_ndarray(format="rgb24")
    )


def code_of(frame: Any) -> tuple[int, int]:
    """Returns (episode, frame) of the barcode of a frame that PyAV decoded."""
    episode, number, _ = read_barcodes(pixels_of(frame)[None])[0].tolist()
    return episode, number


def assert_is_there(directory: Path, found: lg.FrameLocation, code: tuple[int, int]) -> None:
    """Holds every figure of the location of a video frame against the file, as PyAV reads it."""
    assert found.byte_range is not None
    assert found.frame is not None
    assert found.gop is not None
    with av.open(str(directory / found.path)) as container:
        shown = list(container.decode(video=0))
    assert code_of(shown[found.frame]) == code
    assert shown[found.frame].time == pytest.approx(found.time_seconds, abs=1e-6)
    with av.open(str(directory / found.path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        assert found.samples[0] == keys[found.gop]
        start, stop = found.byte_range
        assert packets[keys[found.gop]].pos == start, "the range begins with the key frame"
        for sample in found.samples:
            assert start <= packets[sample].pos
            assert packets[sample].pos + packets[sample].size <= stop
        # Decoding these samples alone gives the frame.
        decoder = stream.codec_context
        frames = [
            frame for sample in found.samples for frame in decoder.decode(packets[sample])
        ] + decoder.decode(None)
    assert code in [code_of(frame) for frame in frames if frame.pts == shown[found.frame].pts]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_frame_is_where_it_is_said_to_be(
    both: dict[str, WrittenDataset], version: str
) -> None:
    directory = both[version].directory
    repository = lg.open_repository(directory)
    places = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
    for row, (episode, frame) in enumerate(places):
        found = lg.locate(repository, row)
        assert (found.row, found.episode, found.episode_position, found.frame) == (
            row,
            episode,
            episode,
            frame,
        )
        assert found.episode_length == LENGTHS[episode]
        group = pq.ParquetFile(directory / found.path).read_row_group(found.row_group)
        assert group["index"][found.row_in_group].as_py() == row
        assert list(found.cameras) == [TOP, DEPTH, PICTURE]
        assert_is_there(directory, found.cameras[TOP], (episode, frame))
        assert_is_there(directory, found.cameras[DEPTH], (episode, frame))
        assert found.cameras[PICTURE] == lg.FrameLocation(camera=PICTURE, path=found.path)


def test_one_camera_and_rows_as_numpy_counts_them(both: dict[str, WrittenDataset]) -> None:
    repository = lg.open_repository(both["v3.0"].directory)
    found = lg.locate(repository, np.int64(13), DEPTH)
    assert found.cameras == {DEPTH: lg.locate(repository, 13).cameras[DEPTH]}
    assert type(found.row) is int


def test_what_is_printed(both: dict[str, WrittenDataset]) -> None:
    directory = both["v3.0"].directory
    found = lg.locate(lg.open_repository(directory), 15)
    (top_start, top_stop), (depth_start, depth_stop) = (
        found.cameras[TOP].byte_range,
        found.cameras[DEPTH].byte_range,
    )
    assert str(found).splitlines() == [
        f"{directory}, row 15",
        "episode 1 (position 1 in the episode table): frame 3 of 8",
        "row 1 of row group 2 of data/chunk-000/file-000.parquet",
        "top: frame 15 of videos/top/chunk-000/file-000.mp4, at 1.500000 s",
        f"  GOP 3: bytes [{top_start}, {top_stop}), {top_stop - top_start} bytes",
        f"  decoded for it: {len(found.cameras[TOP].samples)} coded pictures, samples "
        f"{found.cameras[TOP].samples[0]} to {found.cameras[TOP].samples[-1]}",
        "depth: frame 15 of videos/depth/chunk-000/file-000.mp4, at 1.500000 s",
        f"  GOP 3: bytes [{depth_start}, {depth_stop}), {depth_stop - depth_start} bytes",
        "  decoded for it: 4 coded pictures, samples 12 to 15",
        "picture: an image embedded in data/chunk-000/file-000.parquet",
    ]


def test_samples_that_do_not_follow_each_other() -> None:
    video = {
        "camera": TOP,
        "path": "a.mp4",
        "frame": 3,
        "time_seconds": 0.1,
        "gop": 0,
        "byte_range": (0, 9),
    }
    assert str(lg.FrameLocation(**video, samples=(0, 3, 4, 5, 8))).endswith(
        "5 coded pictures, samples 0, 3 to 5, 8"
    )
    assert str(lg.FrameLocation(**video, samples=(0,))).endswith("1 coded picture, samples 0")


def test_rows_in_another_order_than_that_of_the_frames(directory: Path) -> None:
    path = directory / "data/chunk-000/file-000.parquet"
    order = [*range(11, -1, -1), 14, 12, 13, *range(15, 20)]
    change_table(path, lambda table: table.take(order), row_group_size=20)
    repository = lg.open_repository(directory)
    for row in range(20):
        found = lg.locate(repository, row, TOP)
        assert (found.row_group, found.row_in_group) == (0, order.index(row))
        assert_is_there(directory, found.cameras[TOP], (0, row) if row < 12 else (1, row - 12))


def test_rows_without_a_column_that_orders_them(directory: Path) -> None:
    names = ["index", "frame_index", "episode_index"]
    for path in sorted(directory.glob("data/*/*.parquet")):
        change_table(path, lambda table: table.drop_columns(names), row_group_size=7)
    change_info(directory, lambda info: [info["features"].pop(name) for name in names])
    found = lg.locate(lg.open_repository(directory), 15)
    assert (found.row_group, found.row_in_group) == (2, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_dropped_rows_count(version: str, tmp_path: Path) -> None:
    camera = Camera(key=KEY, height=64, width=96, codec="h264", gop=4)
    together = {} if version == "v2.1" else {"episodes_per_video_file": 2}
    written = write_dataset(
        tmp_path / "data",
        version=version,
        episode_lengths=[12, 10, 9, 11],
        fps=10,
        cameras=[camera],
        **together,
    )
    drop_rows(written.directory, KEPT, version=version)
    repository = lg.open_repository(written.directory)
    for row, code in enumerate(
        (episode, frame) for episode, frames in enumerate(KEPT) for frame in frames
    ):
        assert_is_there(written.directory, lg.locate(repository, row).cameras[KEY], code)


def test_numbers_of_episodes_with_gaps(both: dict[str, WrittenDataset], tmp_path: Path) -> None:
    directory = renumbered(shutil.copytree(both["v2.1"].directory, tmp_path / "copy"), [10, 20, 24])
    found = lg.locate(lg.open_repository(directory), 21, DEPTH)
    assert (found.episode, found.episode_position, found.frame) == (24, 2, 1)
    assert (found.path, found.cameras[DEPTH].path) == (
        "data/chunk-000/episode_000024.parquet",
        "videos/chunk-000/depth/episode_000024.mp4",
    )
    assert "episode 24 (position 2 in the episode table)" in str(found)


@pytest.mark.parametrize(
    ("row", "camera", "message"),
    [
        (30, None, r"row 30: expected 0 <= row < 30"),
        (-1, None, r"row -1: expected 0 <= row < 30"),
        (True, None, r"locate\(row=True\): expected an int"),
        (1.0, None, r"locate\(row=1\.0\): expected an int"),
        (0, "side", r"there is no camera 'side'; there are top, depth, picture"),
        (0, "action", r"there is no camera 'action'; there are top, depth, picture"),
    ],
)
def test_what_is_not_there(
    both: dict[str, WrittenDataset], row: Any, camera: str | None, message: str
) -> None:
    with pytest.raises(lg.InvalidRequestError, match=message):
        lg.locate(lg.open_repository(both["v3.0"].directory), row, camera)


def test_what_cannot_be_read_is_the_error_of_the_reader(directory: Path) -> None:
    repository = lg.open_repository(directory)
    video = directory / "videos/top/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(lg.DatasetFormatError, match=r"videos/top/chunk-000/file-000\.mp4: "):
        lg.locate(repository, 0)
    assert lg.locate(repository, 0, DEPTH).cameras[DEPTH].frame == 0
    assert lg.locate(repository, 20, TOP).cameras[TOP].frame == 0, "another file"
    change_table(directory / "data/chunk-000/file-000.parquet", lambda table: table.slice(1))
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"file-000\.parquet: it has 19 rows; the episode table puts 20 into it",
    ):
        lg.locate(repository, 0, DEPTH)


def test_an_episode_with_fewer_frames_than_rows(directory: Path) -> None:
    shutil.copy(
        directory / "videos/depth/chunk-000/file-001.mp4",
        directory / "videos/depth/chunk-000/file-000.mp4",
    )
    repository = lg.open_repository(directory)
    with pytest.raises(lg.DatasetFormatError, match=r"file-000\.mp4: episode 1, camera depth: it "):
        lg.locate(repository, 12, DEPTH)


def test_a_camera_that_cannot_be_read_is_refused_where_it_is_named(directory: Path) -> None:
    change_info(directory, lambda info: info["features"][TOP].update(shape=["wide"]))
    repository = lg.open_repository(directory)
    assert list(lg.locate(repository, 0).cameras) == [DEPTH, PICTURE]
    with pytest.raises(lg.DatasetFormatError, match=r"feature 'top' has shape \['wide'\]"):
        lg.locate(repository, 0, TOP)


# --- lerobot-grain show --------------------------------------------------------------------------


def test_the_command_prints_what_locate_returns(
    both: dict[str, WrittenDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = both["v3.0"].directory
    found = lg.locate(lg.open_repository(directory), 13)
    assert main(["show", str(directory), "--row", "13"]) == 0
    assert capsys.readouterr() == (f"{found}\n", "")
    assert main(["show", str(directory), "--row", "13", "--camera", TOP, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(
        json.dumps(asdict(lg.locate(lg.open_repository(directory), 13, TOP)))
    )
    assert printed["cameras"][TOP]["byte_range"] == list(found.cameras[TOP].byte_range or ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "30"], "row 30: expected 0 <= row < 30"),
        (["--row", "0", "--camera", "side"], "there is no camera 'side'"),
    ],
)
def test_the_command_ends_with_status_2(
    both: dict[str, WrittenDataset],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["show", str(both["v3.0"].directory), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lerobot-grain: ")
    assert message in captured.err


def test_without_a_row_the_command_shows_examples(
    both: dict[str, WrittenDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = both["v3.0"].directory
    assert main(["show", str(directory), "--examples", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("row ")]
    assert len(rows) == 2
