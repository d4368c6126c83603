"""Depth cameras: what the codes of depth video stand for, which frame they belong to, and what is
refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lerobot_grain as lg
from lerobot_grain._format.info import Depth
from lerobot_grain._reading.frames import decoding
from lerobot_grain._video.depth import DepthDecoder, depths_of_codes, load_depth_decoder
from lerobot_grain._video.images import decode_depth_image, nearest
from lerobot_grain._video.small_mp4 import coded_unit, small_mp4, unit_of_frames
from lerobot_grain.testing import Camera, WrittenDataset, read_barcodes, write_dataset
from tests.support.helpers import encoded, read_table

DEPTH, LONG, TIFF, RGB = (f"observation.images.{name}" for name in ("depth", "long", "tiff", "rgb"))
LENGTHS = [21, 1, 34, 12]
NUM_ROWS = sum(LENGTHS)


def content(episode: int, frame: int, camera: int) -> npt.NDArray[Any]:
    """Depths from 0 to 12 m, which differ from pixel to pixel and from frame to frame; RGB in the
    one camera that is none.
    """
    if camera == 3:
        return np.full((64, 80, 3), 10 * frame % 256, np.uint8)
    height, width = (65, 81) if camera == 1 else (64, 80)
    grid = np.arange(height * width).reshape(height, width, 1)
    return ((grid * 13 + 1009 * frame + 4001 * episode) % 12_000).astype(np.uint16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenDataset:
    cameras = (
        Camera(key=DEPTH, height=64, width=80, depth=True, gop=4, b_frames=3, open_gop=True),
        Camera(key=LONG, height=65, width=81, depth=True, gop=30, b_frames=2),
        Camera(key=TIFF, height=64, width=80, depth=True, kind="image"),
        Camera(key=RGB, height=64, width=80),
    )
    return write_dataset(
        tmp_path_factory.mktemp("depth") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=cameras,
        episodes_per_video_file={DEPTH: 2, LONG: 4},
        frame_content=content,
        barcodes=False,
    )


def sequential(directory: Path, camera: str) -> npt.NDArray[np.uint16]:
    """Returns the codes of all rows, uint16 `(rows, height, width)`, by decoding the files from
    start to end.
    """
    codes = []
    for path in sorted((directory / "videos" / camera).rglob("*.mp4")):
        with av.open(str(path)) as container:
            codes += [frame.to_ndarray() for frame in container.decode(video=0)]
    return np.stack(codes)


def change_info(directory: Path, camera: str, **values: Any) -> None:
    path = directory / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][camera]["info"] |= values
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("budget_bytes", [3 << 29, 1 << 20], ids=["groups", "pieces"])
def test_every_frame_equals_sequential_decoding(
    written: WrittenDataset, budget_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of GOPs, and with a small budget long ones in pieces, and all again and again; one
    camera has open GOPs.
    """
    table = read_table(next((written.directory / "videos" / DEPTH).rglob("*.mp4")).read_bytes())
    assert (
        sum(int((table.pts[key:] < table.pts[key]).sum()) for key in table.key_samples.tolist()) > 5
    ), "leading pictures"
    offsets = [-3, 0, 5]
    dataset = lg.LeRobotIterDataset(
        written.directory,
        shuffle=lg.Shuffle(seed=1, clip_length=4, num_parts=4, buffer_size=16),
        num_epochs=1,
        delta_timestamps={key: [offset / 10 for offset in offsets] for key in (DEPTH, LONG, TIFF)},
        read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
    )
    codes = {key: sequential(written.directory, key) for key in (DEPTH, LONG)}
    assert {key: found.max() <= 4095 and len(found) for key, found in codes.items()} == {
        DEPTH: NUM_ROWS,
        LONG: NUM_ROWS,
    }
    depths = depths_of_codes(Depth())
    problems = count_alone(monkeypatch)
    rows = []
    for example in dataset:
        row, episode, frame = (
            int(example[key]) for key in ("index", "episode_index", "frame_index")
        )
        wanted = np.array([frame + offset for offset in offsets])
        inside = wanted.clip(0, LENGTHS[episode] - 1)
        for key in (DEPTH, LONG):
            assert (example[key].dtype, example[key].shape[0], example[key].shape[3]) == (
                np.float32,
                3,
                1,
            )
            assert np.array_equal(example[key][..., 0], depths[codes[key][row - frame + inside]])
        assert np.array_equal(
            example[TIFF],
            np.stack([content(episode, int(f), 2) for f in inside]).astype(np.float32),
        )
        for key in (DEPTH, LONG, TIFF):
            assert np.array_equal(
                example[f"{key}_is_pad"], (wanted < 0) | (wanted >= LENGTHS[episode])
            )
        assert example[RGB].dtype == np.uint8
        rows.append(row)
    assert sorted(rows) == list(range(NUM_ROWS))
    assert not problems, "a group had to be decoded GOP by GOP"


@pytest.mark.parametrize("mark", ["is_depth_map", "video.is_depth_map"])
def test_a_mark_in_video_info_next_to_a_full_info(
    written: WrittenDataset, tmp_path: Path, mark: str
) -> None:
    copy = shutil.copytree(written.directory, tmp_path / "copy")
    info = json.loads((copy / "meta/info.json").read_text())
    for key in (DEPTH, TIFF):
        description = info["features"][key]
        moved = {name: value for name, value in description["info"].items() if "depth" in name}
        description["info"] = {"video.codec": "hevc"} | {
            name: v for name, v in description["info"].items() if name not in moved
        }
        description["video_info"] = {
            name: v for name, v in moved.items() if not name.endswith("is_depth_map")
        } | {mark: True}
    (copy / "meta/info.json").write_text(json.dumps(info))
    assert lg.open_repository(copy).features == lg.open_repository(written.directory).features
    found, expected = (
        next(iter(lg.LeRobotIterDataset(root, features=[DEPTH, TIFF], shuffle=None).batch(3)))
        for root in (copy, written.directory)
    )
    for key in (DEPTH, TIFF):
        assert found[key].dtype == np.float32
        assert np.array_equal(found[key], expected[key])


def count_alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that gets the errors of groups of GOPs, which are then decoded one by one:
    right, but slow.
    """
    problems: list[str] = []

    def decode(*arguments: Any) -> None:
        try:
            together(*arguments)
        except Exception as error:
            problems.append(str(error))
            raise

    together = decoding._decode_together
    monkeypatch.setattr(decoding, "_decode_together", decode)
    return problems


def test_values_are_those_that_were_recorded_but_for_the_step_of_a_code(
    written: WrittenDataset,
) -> None:
    for example in lg.LeRobotIterDataset(
        written.directory,
        num_epochs=1,
        shuffle=None,
        features=[DEPTH, "episode_index", "frame_index"],
    ):
        recorded = (
            content(int(example["episode_index"]), int(example["frame_index"]), 0)
            .astype(np.float64)
            .clip(10, 10_000)
        )
        # Half a step of the logarithm of (depth + 3.5 m), and half a millimeter.
        step = (recorded + 3500) * np.log(13.5 / 3.51) / 4095
        assert (np.abs(example[DEPTH] - recorded) <= step / 2 * 1.001 + 0.5).all()


def test_batches_are_the_examples(written: WrittenDataset) -> None:
    dataset = lg.LeRobotIterDataset(written.directory, num_epochs=1, features=[DEPTH, LONG])
    examples = list(dataset)
    for number, batch in enumerate(dataset.batch(16)):
        assert batch[DEPTH].shape[1:] == (64, 80, 1)
        for key in (DEPTH, LONG):
            assert batch[key].dtype == np.float32
            assert np.array_equal(
                batch[key],
                np.stack([example[key] for example in examples[16 * number : 16 * number + 16]]),
            )


def test_image_size_takes_the_nearest_pixels(written: WrittenDataset) -> None:
    arguments: dict[str, Any] = {"num_epochs": 1, "shuffle": None, "features": [DEPTH, TIFF, RGB]}
    full = list(lg.LeRobotIterDataset(written.directory, **arguments))
    small = list(lg.LeRobotIterDataset(written.directory, image_size=(32, 96), **arguments))
    for whole, resized in zip(full, small, strict=True):
        assert resized[RGB].shape == (32, 96, 3)
        for key in (DEPTH, TIFF):
            reference = Image.fromarray(whole[key][..., 0]).resize(
                (96, 32), Image.Resampling.NEAREST
            )
            assert np.array_equal(resized[key][..., 0], np.array(reference))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, [0, 1, 2, 3, 4]), ((1, 5), [0, 1, 2, 3, 4]), ((1, 2), [1, 3]), ((1, 1), [2])],
)
def test_nearest(size: tuple[int, int] | None, expected: list[int]) -> None:
    assert nearest(np.arange(5)[None], size).tolist() == [expected]


@given(old=st.integers(1, 1 << 20), new=st.integers(1, 5000))
def test_the_nearest_pixel_is_that_of_integer_arithmetic(old: int, new: int) -> None:
    """The middle of a new pixel, in old ones, rounded down: no rounding of floats moves it."""
    found = nearest(np.arange(old, dtype=np.int64)[None], (1, new))
    assert np.array_equal(found[0], (np.arange(new) * 2 + 1) * old // (2 * new))


def test_default_pictures_of_depth_carry_barcodes(tmp_path: Path) -> None:
    cameras = (
        Camera(key="video", height=64, width=96, depth=True, gop=(3, 1, 5)),
        Camera(key="image", height=32, width=48, depth=True, kind="image"),
    )
    written = write_dataset(tmp_path / "data", episode_lengths=[9, 7], cameras=cameras)
    for key in ("video", "image"):
        change_info(written.directory, key, depth_unit="m")
    repository = lg.open_repository(written.directory)
    assert repository.cameras == ("video", "image")
    for example in lg.LeRobotIterDataset(repository, num_epochs=1):
        for number, key in enumerate(("video", "image")):
            assert example[key].dtype == np.float32
            assert read_barcodes(example[key][None]).tolist() == [
                [example["episode_index"], example["frame_index"], number]
            ]
        assert (example["video"] >= 0.498).all()
        assert (example["video"] <= 2.542).all()
        assert (example["image"] == np.rint(example["image"])).all(), (
            "embedded pictures are given as they are"
        )
    assert repository.stats is not None
    assert {
        stats.shape for name, stats in repository.stats["video"].items() if name != "count"
    } == {(1, 1, 1)}
    assert 500 <= float(repository.stats["video"]["mean"][0, 0, 0]) <= 2540


# --- what a code stands for ----------------------------------------------------------------------


@pytest.mark.parametrize("is_logarithmic", [True, False])
@pytest.mark.parametrize("unit", ["m", "mm"])
def test_codes(unit: str, is_logarithmic: bool) -> None:
    depth = Depth(unit, 0.2, 4.0, 0.5, is_logarithmic)
    found = depths_of_codes(depth)
    place = np.arange(4096) / 4095
    expected = (
        np.exp(place * np.log(4.5 / 0.7) + np.log(0.7)) - 0.5
        if is_logarithmic
        else 0.2 + place * 3.8
    )
    assert (found.shape, str(found.dtype), found.flags.writeable) == ((4096,), "float32", False)
    assert (np.diff(found) >= 0).all()
    if unit == "m":
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        assert (found[0], found[-1]) == (np.float32(0.2), np.float32(4.0))
    else:
        assert (found == np.rint(found)).all()
        assert np.abs(found - expected * 1000).max() <= 0.51
    assert depths_of_codes(Depth("mm", 1.0, 100.0, 0.0, False))[-1] == 65535, (
        "as lerobot, which keeps millimeters in 16 bits"
    )


DECLARED: list[tuple[dict[str, Any], Depth]] = [
    ({}, Depth("mm", 0.01, 10.0, 3.5, True)),
    (
        {
            "depth_unit": "m",
            "video.depth_min": 0,
            "video.depth_max": 2,
            "video.shift": 0.1,
            "video.use_log": True,
        },
        Depth("m", 0, 2, 0.1),
    ),
    (
        {"video.depth_min": 0.0, "video.shift": 0.0, "video.use_log": False},
        Depth("mm", 0.0, 10.0, 0.0, False),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), DECLARED)
def test_what_info_json_says(
    written: WrittenDataset, tmp_path: Path, fields: dict[str, Any], expected: Depth
) -> None:
    feature = features_with(written, tmp_path, {"is_depth_map": True, **fields})[DEPTH]
    assert feature.depth == expected
    assert (feature.is_depth, feature.num_channels, feature.frame_dtype) == (True, 1, "float32")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"depth_unit": "cm"}, r"depth_unit 'cm'; expected \"m\" or \"mm\""),
    ({"depth_unit": None}, r"depth_unit None; expected"),
    (
        {"video.depth_min": 10.0},
        r"has video.depth_min 10.0, video.depth_max 10.0 and video.shift 3.5; expected numbers of "
        r"meters, 0 <=",
    ),
    ({"video.depth_min": -1.0}, r"video.depth_min -1.0"),
    ({"video.depth_max": "far"}, r"video.depth_max 'far'"),
    ({"video.depth_max": True}, r"video.depth_max True"),
    ({"video.depth_max": 1e300}, r"video.depth_max 1e\+300"),
    ({"video.shift": float("nan")}, r"video.shift nan"),
    ({"video.shift": [1]}, r"video.shift \[1\]"),
    (
        {"video.shift": -0.01},
        r"video.use_log True, video.depth_min 0.01 and video.shift -0.01; expected false, or true "
        r"and",
    ),
    ({"video.use_log": 1}, r"video.use_log 1, "),
]


@pytest.mark.parametrize(("fields", "text"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_what_info_json_cannot_mean(
    written: WrittenDataset, tmp_path: Path, fields: dict[str, Any], text: str
) -> None:
    """Refused where the camera is selected, and nothing to others."""
    assert DEPTH not in features_with(written, tmp_path, {"is_depth_map": True, **fields})
    expected = (
        f"info.json: depth camera 'observation.images.depth' has .*{text.removeprefix('has ')}"
    )
    for features in (None, [DEPTH], ["action", DEPTH]):
        with pytest.raises(lg.DatasetFormatError, match=expected):
            lg.LeRobotIterDataset(tmp_path, features=features)
    assert lg.LeRobotIterDataset(tmp_path, features=["action"]).num_rows == NUM_ROWS


def features_with(written: WrittenDataset, tmp_path: Path, info: dict[str, Any]) -> Any:
    """Returns the features of the dataset with another `info` of its depth camera; only metadata
    are there.
    """
    (tmp_path / "meta").symlink_to(written.directory / "meta", target_is_directory=True)
    described = json.loads((tmp_path / "meta/info.json").read_text())
    described["features"][DEPTH]["info"] = info
    (tmp_path / "meta").unlink()
    (tmp_path / "meta").mkdir()
    for path in (written.directory / "meta").iterdir():
        (tmp_path / "meta" / path.name).symlink_to(path)
    (tmp_path / "meta/info.json").unlink()
    (tmp_path / "meta/info.json").write_text(json.dumps(described))
    return lg.open_repository(tmp_path).features


# --- what is refused -----------------------------------------------------------------------------


def test_without_pyav_only_depth_video_is_refused(
    written: WrittenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    load_depth_decoder.cache_clear()
    try:
        with pytest.raises(
            lg.InvalidRequestError,
            match=r'pip install "lerobot_grain\[depth\]", or leave the depth cameras out of '
            r"features",
        ):
            lg.LeRobotIterDataset(written.directory)
        example = next(iter(lg.LeRobotIterDataset(written.directory, features=[TIFF, RGB])))
        assert set(example) == {TIFF, RGB}
    finally:
        load_depth_decoder.cache_clear()


def test_a_depth_camera_whose_video_is_rgb(tmp_path: Path) -> None:
    written = write_dataset(
        tmp_path / "data", episode_lengths=[4], cameras=(Camera(key=DEPTH, height=64, width=96),)
    )
    change_info(written.directory, DEPTH, is_depth_map=True)
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"episode 0, camera observation.images.depth, GOP 0.*: the video of a depth camera "
        r"has pixel format yuv420p; "
        r"expected gray12le",
    ):
        next(iter(lg.LeRobotIterDataset(written.directory, shuffle=None)))


def test_an_rgb_camera_whose_video_is_depth_has_frames_of_rgb(tmp_path: Path) -> None:
    # Video that info.json does not call depth is given as any other video.
    write_dataset(
        tmp_path / "data",
        episode_lengths=[4],
        cameras=(Camera(key=DEPTH, height=64, width=96, depth=True),),
    )
    change_info(tmp_path / "data", DEPTH, is_depth_map=False)
    assert next(iter(lg.LeRobotIterDataset(tmp_path / "data")))[DEPTH].dtype == np.uint8


def test_another_size_than_declared(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "data",
        episode_lengths=[4],
        cameras=(Camera(key=DEPTH, height=64, width=96, depth=True),),
    )
    path = tmp_path / "data/meta/info.json"
    info = json.loads(path.read_text())
    info["features"][DEPTH]["shape"] = [96, 64, 1]
    path.write_text(json.dumps(info))
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"a frame has shape \(64, 96, 1\); info.json declares \(96, 64, 1\)",
    ):
        next(iter(lg.LeRobotIterDataset(tmp_path / "data")))


def depth_mp4(directory: Path) -> bytes:
    """Returns the first GOP of the camera with long ones, which is the first episode, as a small
    MP4.
    """
    data = next((directory / "videos" / LONG).rglob("*.mp4")).read_bytes()
    table = read_table(data)
    unit = unit_of_frames(table, 0, np.arange(LENGTHS[0]))
    assert len(unit.samples) == LENGTHS[0]
    return small_mp4(
        table.format,
        [
            coded_unit(
                table, unit, data[unit.byte_range.start : unit.byte_range.stop], where="a.mp4"
            )
        ],
    )


def depth_video(mp4: bytes) -> DepthDecoder:
    return DepthDecoder(mp4, "a.mp4", depth=Depth(), image_size=None)


def read_numbers(video: DepthDecoder, numbers: list[int]) -> npt.NDArray[np.float32]:
    into = np.zeros((len(numbers), 65, 81, 1), np.float32)
    video.read(np.array(numbers), into, np.arange(len(numbers)))
    return into[..., 0]


def test_reading_on_and_going_back(written: WrittenDataset) -> None:
    expected = depths_of_codes(Depth())[sequential(written.directory, LONG)]
    video = depth_video(depth_mp4(written.directory))
    for numbers in ([0, 3], [4], [20], [2, 5, 6], [0], [0]):
        assert np.array_equal(read_numbers(video, numbers), expected[numbers]), numbers


def test_damaged_video_is_refused(written: WrittenDataset) -> None:
    mp4 = depth_mp4(written.directory)
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"a.mp4: asked for picture 21, but the decoder gave no more; the video is damaged",
    ):
        read_numbers(depth_video(mp4), [8, 21])
    for damaged in (b"", b"not a video", mp4[: mp4.index(b"mdat") - 4]):
        with pytest.raises(
            lg.DatasetFormatError,
            match=r"a.mp4: (the decoder refused the video|asked for picture 0)",
        ):
            read_numbers(depth_video(damaged), [0])
    with pytest.raises(lg.DatasetFormatError, match=r"pixel format yuv420p; expected gray12le"):
        read_numbers(depth_video(encoded("hevc")), [0])
    rng = np.random.default_rng(0)
    start = mp4.index(b"mdat")
    for _ in range(20):
        data = bytearray(mp4)
        for place in rng.integers(start, len(mp4), 40):
            data[place] = rng.integers(256)
        with contextlib.suppress(lg.DatasetFormatError):
            read_numbers(depth_video(bytes(data)), list(range(LENGTHS[0])))


def picture(mode: str, kind: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    image = (
        Image.fromarray(np.arange(24, dtype=np.float32).reshape(4, 6))
        if mode == "F"
        else Image.new(mode, (6, 4), 7)
    )
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_embedded_pictures_of_depth() -> None:
    for mode, kind in (("I;16", "TIFF"), ("I;16", "PNG"), ("I;16B", "TIFF"), ("I", "TIFF")):
        found = decode_depth_image(picture(mode, kind), image_size=None, where="a")
        assert (str(found.dtype), found.shape, set(found.ravel().tolist())) == (
            "float32",
            (4, 6, 1),
            {7.0},
        )
    assert decode_depth_image(picture("F"), image_size=(2, 3), where="a")[..., 0].tolist() == [
        [7, 9, 11],
        [19, 21, 23],
    ]
    for mode in ("L", "RGB"):
        with pytest.raises(
            lg.DatasetFormatError,
            match=f"a: an image of mode {mode}; expected one channel of 16 or 32 bits",
        ):
            decode_depth_image(picture(mode), image_size=None, where="a")
    with pytest.raises(lg.DatasetFormatError, match=r"a: not an image that can be decoded"):
        decode_depth_image(picture("I;16")[:-9], image_size=None, where="a")


def test_golden_depth_has_open_gops_and_every_frame_is_that_of_the_whole_file(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = count_alone(monkeypatch)
    directory = shared / "golden/depth"
    table = read_table(next((directory / "videos" / DEPTH).rglob("*.mp4")).read_bytes())
    leading = sum(
        int((table.pts[key:] < table.pts[key]).sum()) for key in table.key_samples.tolist()
    )
    assert leading > 50
    expected = depths_of_codes(Depth())[sequential(directory, DEPTH)]
    for budget_bytes in (3 << 29, 1 << 20):
        dataset = lg.LeRobotIterDataset(
            directory,
            num_epochs=1,
            shuffle=lg.Shuffle(seed=2, clip_length=3, num_parts=4, buffer_size=16),
            features=[DEPTH, "index"],
            read_options=lg.ReadOptions(memory_budget_bytes=budget_bytes),
        )
        for example in dataset:
            assert np.array_equal(example[DEPTH][..., 0], expected[example["index"]])
    assert not problems
