"""`meta/info.json`: what real files have, what is refused and in which words, and that nothing but
the format error ever comes out.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._format.info import DatasetInfo, Depth, Feature, PathTemplate, parse_info

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO: dict[str, Any] = {
    "codebase_version": "v3.0",
    "fps": 30,
    "features": {
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "top": {
            "dtype": "video",
            "shape": [4, 6, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.g": 2},
        },
    },
    "total_episodes": 3,
    "total_frames": 50,
    "data_path": DATA_PATH,
    "video_path": VIDEO_PATH,
    "robot_type": "so101",
    "splits": {"train": "0:3"},
    "tools": [{"anything": 1}],
}
MISSING = "(missing)"


def parse(value: Any) -> DatasetInfo:
    return parse_info(
        value if isinstance(value, bytes) else json.dumps(value).encode(),
        where="org/name@1a2b, meta/info.json",
    )


def with_fields(**fields: Any) -> DatasetInfo:
    return parse(
        {name: value for name, value in {**INFO, **fields}.items() if value is not MISSING}
    )


def feature(**fields: Any) -> Feature:
    return with_fields(features={"key": fields}).features["key"]


def refusal(make: Any) -> str:
    with pytest.raises(DatasetFormatError) as caught:
        make()
    text = str(caught.value)
    assert text.startswith("org/name@1a2b, meta/info.json: ")
    return text.removeprefix("org/name@1a2b, meta/info.json: ")


# --- what is read --------------------------------------------------------------------------------


def test_a_whole_info() -> None:
    info = parse(INFO)
    assert info == DatasetInfo(
        codebase_version="v3.0",
        fps=30.0,
        features={
            "action": Feature("action", "float32", (2,), ("x", "y")),
            "top": Feature(
                "top", "video", (4, 6, 3), ("height", "width", "channels"), gop_length=2
            ),
        },
        total_episodes=3,
        total_frames=50,
        data_path=PathTemplate(DATA_PATH),
        video_path=PathTemplate(VIDEO_PATH),
        robot_type="so101",
        splits={"train": "0:3"},
    )
    assert list(info.features) == ["action", "top"]
    assert pickle.loads(pickle.dumps(info)) == info


def test_all_that_may_be_missing() -> None:
    info = parse(
        {
            "codebase_version": "v3.0",
            "fps": 12.5,
            "features": {"a": {"dtype": "int64", "shape": [1]}},
        }
    )
    assert (
        info.total_episodes,
        info.total_frames,
        info.video_path,
        info.robot_type,
        info.splits,
    ) == (None, None, None, None, {})
    assert info.data_path.path(chunk_index=1, file_index=23) == "data/chunk-001/file-023.parquet"
    assert info.fps == 12.5


@pytest.mark.parametrize("version", ["v3.0", "3.0", "v3.1", "v3.0.1", "v3.12"])
def test_versions_that_are_read(version: str) -> None:
    assert with_fields(codebase_version=version).codebase_version == version


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"fps": 29.97}, {"fps": 29.97}),
        ({"total_frames": 50.0}, {"total_frames": 50}),
        (
            {"total_frames": None, "total_episodes": None},
            {"total_frames": None, "total_episodes": None},
        ),
        (
            {"video_path": None, "features": {"a": {"dtype": "int64", "shape": [1]}}},
            {"video_path": None},
        ),
        ({"robot_type": None}, {"robot_type": None}),
        ({"robot_type": ["a"]}, {"robot_type": None}),
        ({"splits": None}, {"splits": {}}),
        ({"storage_format": "parquet"}, {}),
        ({"storage_format": None}, {}),
        ({"encoding": {"x": [1]}, "total_chunks": -1}, {}),
    ],
    ids=str,
)
def test_fields_as_other_recorders_write_them(
    fields: dict[str, Any], found: dict[str, Any]
) -> None:
    info = with_fields(**fields)
    assert {name: getattr(info, name) for name in found} == found
    assert {type(getattr(info, name)) for name in found if name.startswith("total")} <= {
        int,
        type(None),
    }


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ([4, 6, 3], ["height", "width", "channels"], (4, 6, 3)),
        ([4, 6, 3], ["height", "width", "channel"], (4, 6, 3)),
        ([3, 4, 6], ["channels", "height", "width"], (4, 6, 3)),
        ([3, 4, 6], ["channel", "height", "width"], (4, 6, 3)),
        ([3, 4, 6], None, (4, 6, 3)),
        ([1, 4, 6], None, (4, 6, 1)),
        ([4, 6, 3], None, (4, 6, 3)),
        ([3, 6, 3], None, (3, 6, 3)),
        ([3, 4, 6], {"motors": ["a"]}, (4, 6, 3)),
        ([3, 6, 3], ["channels", "height", "width"], (6, 3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["image", "video"])
def test_camera_shapes_become_channels_last(
    dtype: str, shape: list[int], names: Any, expected: tuple[int, ...]
) -> None:
    camera = feature(dtype=dtype, shape=shape, names=names)
    assert camera.shape == expected
    assert (camera.is_camera, camera.is_video) == (True, dtype == "video")


def test_low_dimensional_shapes_stay() -> None:
    assert feature(
        dtype="float64", shape=[3, 4, 6], names=["channels", "height", "width"]
    ).shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("shape", "is_scalar"),
    [([], True), ([1], True), ([1, 1], False), ([2], False), ([0], False)],
    ids=str,
)
def test_scalars(shape: list[int], is_scalar: bool) -> None:
    assert feature(dtype="bool", shape=shape).is_scalar is is_scalar


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ("x", "y")),
        (None, None),
        ({"motors": ["x", "y"]}, None),
        ([["x"], ["y"]], None),
        ("xy", None),
        ([], ()),
    ],
    ids=str,
)
def test_names(names: Any, expected: tuple[str, ...] | None) -> None:
    assert feature(dtype="float32", shape=[2], names=names).names == expected


@pytest.mark.parametrize(
    ("fields", "gop_length", "is_depth"),
    [
        ({"info": {"video.g": 30}}, 30, False),
        ({"video_info": {"video.g": 30}}, 30, False),
        ({"info": None, "video_info": {"video.g": 30}}, 30, False),
        ({"info": {"video.g": 30}, "video_info": {"video.g": 2}}, 30, False),
        ({}, None, False),
        ({"info": {}}, None, False),
        ({"info": {"video.g": 0}}, None, False),
        ({"info": {"video.g": "2"}}, None, False),
        ({"info": {"video.g": True}}, None, False),
        ({"info": {"video.g": -30}}, None, False),
        ({"info": {"is_depth_map": True}}, None, True),
        ({"video_info": {"video.is_depth_map": True}}, None, True),
        ({"info": {"is_depth_map": False}}, None, False),
        ({"info": {"video.is_depth_map": True}}, None, True),
        ({"video_info": {"is_depth_map": True}}, None, True),
        (
            {"info": {"video.g": 7}, "video_info": {"video.is_depth_map": True, "video.g": 2}},
            7,
            True,
        ),
        (
            {"info": {"video.codec": "hevc"}, "video_info": {"is_depth_map": True, "video.g": 2}},
            2,
            True,
        ),
        ({"info": {"is_depth_map": False}, "video_info": {"video.is_depth_map": True}}, None, True),
        ({"info": {"is_depth_map": True}, "video_info": {"video.is_depth_map": False}}, None, True),
        ({"info": {"video.g": None}, "video_info": {"video.g": 2}}, 2, False),
        ({"info": {"is_depth_map": 1}}, None, True),
        ({"info": {"is_depth_map": 0}}, None, False),
        ({"info": {"is_depth_map": None}, "video_info": {"video.is_depth_map": ""}}, None, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["video", "image"])
def test_encoding_of_a_camera(
    fields: dict[str, Any], gop_length: int | None, is_depth: bool, dtype: str
) -> None:
    camera = feature(dtype=dtype, shape=[4, 6, 3], **fields)
    assert (camera.gop_length, camera.is_depth) == (gop_length, is_depth)
    assert type(camera.gop_length) in (int, type(None))


def test_what_depths_mean_may_stand_in_either_place() -> None:
    camera = feature(
        dtype="video",
        shape=[4, 6, 1],
        info={"depth_unit": "m", "video.depth_max": 5.0, "video.shift": None},
        video_info={
            "video.is_depth_map": True,
            "video.depth_max": 8.0,
            "video.shift": 2.0,
            "video.use_log": False,
        },
    )
    assert camera.depth == Depth("m", max_meters=5.0, shift_meters=2.0, is_logarithmic=False)


@pytest.mark.parametrize(
    ("fields", "is_depth", "note"),
    [
        (
            {"info": {"is_depth_map": "True"}},
            True,
            "camera 'key' has is_depth_map 'True' in info, a text; it is read as a depth camera, "
            "as by lerobot",
        ),
        (
            {"info": {"video.g": 2}, "video_info": {"video.is_depth_map": "true"}},
            True,
            "camera 'key' has video.is_depth_map 'true' in video_info, a text; it is read as a "
            "depth camera, as by lerobot",
        ),
        (
            {"info": {"video.g": 2}, "video_info": "av1"},
            False,
            "camera 'key' has video_info 'av1', which is no object; only its info is used",
        ),
        (
            {"info": {"video.g": 2}, "video_info": [1]},
            False,
            "camera 'key' has video_info [1], which is no object; only its info is used",
        ),
    ],
    ids=str,
)
def test_encodings_that_are_odd(fields: dict[str, Any], is_depth: bool, note: str) -> None:
    info = with_fields(features={"key": {"dtype": "video", "shape": [4, 6, 3], **fields}})
    assert (info.features["key"].is_depth, info.notes) == (is_depth, (note,))


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (VIDEO_PATH, "videos/top/chunk-001/file-023.mp4"),
        ("v/{video_key}/{chunk_index}-{file_index:d}.mp4", "v/top/1-23.mp4"),
        ("v/{chunk_index:06d}.mp4", "v/000001.mp4"),
        ("{{v}}/{file_index:4d}", "{v}/  23"),
        ("video.mp4", "video.mp4"),
    ],
)
def test_templates(template: str, path: str) -> None:
    info = with_fields(video_path=template)
    assert info.video_path is not None
    assert info.video_path.path(video_key="top", chunk_index=1, file_index=23) == path


@pytest.mark.parametrize(
    "name",
    [
        "real/cr5_v30",
        "real/gr00t_v30",
        "real/pusht_rows_v30",
        "real/oc_models_meta_v30",
        "real/lerobot_studio_v30",
    ],
)
def test_real_files(shared: Path, name: str) -> None:
    raw = (shared / name / "meta/info.json").read_bytes()
    info, declared = parse(raw), json.loads(raw)
    assert list(info.features) == list(declared["features"])
    assert all(f.shape[2] in (1, 3) for f in info.features.values() if f.is_camera)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            b"",
            "not valid JSON (Expecting value: line 1 column 1 (char 0)); expected the description "
            "of a LeRobotDataset",
        ),
        (
            b"<html>",
            "not valid JSON (Expecting value: line 1 column 1 (char 0)); expected the description "
            "of a LeRobotDataset",
        ),
        (json.dumps(INFO).encode()[:-9], "not valid JSON ("),
        (
            b'{"codebase_version": "v3.0", "robot_type": "\xff"}',
            "not valid JSON ('utf-8' codec can't decode byte 0xff",
        ),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"a":' * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"fps": ' + b"9" * 5000 + b"}", "not valid JSON (Exceeds the limit (4300 digits)"),
        (b"[]", "found a JSON list; expected an object with codebase_version, fps and features"),
        (b'"v3.0"', "found a JSON str; expected an object with codebase_version, fps and features"),
        (
            b"null",
            "found a JSON NoneType; expected an object with codebase_version, fps and features",
        ),
        (b"{}", 'codebase_version is None; expected "v3.0"'),
    ],
    ids=[
        "empty",
        "html",
        "truncated",
        "not utf-8",
        "deep list",
        "deep object",
        "many digits",
        "list",
        "str",
        "null",
        "nothing",
    ],
)
def test_files_that_are_no_info(raw: bytes, text: str) -> None:
    found = refusal(lambda: parse(raw))
    assert found == text or (
        text.endswith(("(", "exceeded", "0xff", "digits)")) and found.startswith(text)
    )


OLD = (
    "expected v2.0, v2.1 or v3.x. Convert it with lerobot's scripts, or look for a newer "
    "revision of it"
)
NEW = "this version of lerobot_grain reads v2.0, v2.1 and v3.x"
DATA_PATH_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
CHUNKS = "chunks_size is {}; expected episodes in a folder, such as 1000"
TEMPLATE_V2 = (
    "expected a relative path with the fields video_key, episode_chunk and "
    f"episode_index, such as {DATA_PATH_V2}"
)
TEMPLATE = (
    "expected a relative path with the fields video_key, chunk_index and file_index, such "
    f"as {DATA_PATH}"
)
FPS, COUNT = "expected a number > 0", "expected an integer >= 0"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"codebase_version": "v2.2"}, f"this is a LeRobotDataset v2.2; {NEW}"),
        (
            {"codebase_version": "v2.1"},
            f"data_path is {DATA_PATH!r}, with a field {{chunk_index:03d}}; {TEMPLATE_V2}",
        ),
        (
            {
                "codebase_version": "v2.0",
                "data_path": DATA_PATH_V2,
                "video_path": None,
                "chunks_size": 0,
            },
            CHUNKS.format(0),
        ),
        (
            {
                "codebase_version": "v2.0",
                "data_path": DATA_PATH_V2,
                "video_path": None,
                "chunks_size": 1 << 50,
            },
            CHUNKS.format(1 << 50),
        ),
        ({"codebase_version": "v1.6"}, f"this is a LeRobotDataset v1.6; {OLD}"),
        ({"codebase_version": "v4.0"}, f"this is a LeRobotDataset v4.0; {NEW}"),
        ({"codebase_version": 3.0}, 'codebase_version is 3.0; expected "v3.0"'),
        ({"codebase_version": "three"}, "codebase_version is 'three'; expected \"v3.0\""),
        ({"codebase_version": MISSING}, 'codebase_version is None; expected "v3.0"'),
        (
            {"storage_format": "lance"},
            "storage_format is 'lance'; only parquet tables with MP4 video are read",
        ),
        (
            {"storage_format": []},
            "storage_format is []; only parquet tables with MP4 video are read",
        ),
        ({"fps": MISSING}, f"fps is None; {FPS}"),
        ({"fps": 0}, f"fps is 0; {FPS}"),
        ({"fps": -30}, f"fps is -30; {FPS}"),
        ({"fps": float("nan")}, f"fps is nan; {FPS}"),
        ({"fps": float("inf")}, f"fps is inf; {FPS}"),
        ({"fps": "30"}, f"fps is '30'; {FPS}"),
        ({"fps": True}, f"fps is True; {FPS}"),
        ({"fps": [30]}, f"fps is [30]; {FPS}"),
        ({"total_frames": -1}, f"total_frames is -1; {COUNT}"),
        ({"total_frames": 1.5}, f"total_frames is 1.5; {COUNT}"),
        ({"total_frames": "50"}, f"total_frames is '50'; {COUNT}"),
        ({"total_frames": float("nan")}, f"total_frames is nan; {COUNT}"),
        ({"total_frames": float("inf")}, f"total_frames is inf; {COUNT}"),
        ({"total_episodes": False}, f"total_episodes is False; {COUNT}"),
        (
            {"splits": ["train"]},
            'splits is [\'train\']; expected an object such as {"train": "0:50"}',
        ),
        (
            {"features": MISSING},
            "features is NoneType; expected a non-empty object of feature key -> description",
        ),
        (
            {"features": {}},
            "features is dict; expected a non-empty object of feature key -> description",
        ),
        (
            {"features": ["action"]},
            "features is list; expected a non-empty object of feature key -> description",
        ),
        (
            {"features": {"action": "float32"}},
            "feature 'action' is 'float32'; expected an object with dtype and shape",
        ),
        ({"data_path": 5}, f"data_path is 5; {TEMPLATE}"),
        ({"data_path": None}, f"data_path is None; {TEMPLATE}"),
        (
            {"data_path": "{chunk_index"},
            f"data_path is '{{chunk_index' (expected '}}' before end of string); {TEMPLATE}",
        ),
        (
            {"data_path": "data/}"},
            f"data_path is 'data/}}' (Single '}}' encountered in format string); {TEMPLATE}",
        ),
        ({"video_path": ["a"]}, f"video_path is ['a']; {TEMPLATE}"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_malformed_fields(fields: dict[str, Any], text: str) -> None:
    assert refusal(lambda: with_fields(**fields)) == text


def test_a_rate_that_no_float_holds() -> None:
    assert refusal(lambda: with_fields(fps=10**400)).endswith(FPS)


@pytest.mark.parametrize(
    "field",
    [
        "chunk_index.__class__",
        "chunk_index[0]",
        "file_index:0100000000d",
        "file_index:100d",
        "chunk_index!r",
        "video_key!r",
        "video_key:>100000000",
        "chunk_index:x",
        "chunk_index:+3d",
        "chunk_index:{file_index}d",
        "episode_chunk:03d",
        "robot_type",
        "",
        "0",
        "chunk_index:.3f",
    ],
)
@pytest.mark.parametrize("which", ["data_path", "video_path"])
def test_attacks_by_template(which: str, field: str) -> None:
    text = refusal(lambda: with_fields(**{which: f"data/{{{field}}}.parquet"}))
    shown = field if ":" in field else field + ":"
    assert text == f"{which} is 'data/{{{field}}}.parquet', with a field {{{shown}}}; {TEMPLATE}"


DTYPE = "expected a NumPy dtype such as float32, or string, image, video, language"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, f"feature 'key' has dtype None; {DTYPE}"),
        ({"dtype": "float128"}, f"feature 'key' has dtype 'float128'; {DTYPE}"),
        ({"dtype": "object"}, f"feature 'key' has dtype 'object'; {DTYPE}"),
        ({"dtype": ["float32"]}, f"feature 'key' has dtype ['float32']; {DTYPE}"),
        (
            {"dtype": "float32", "shape": None},
            "feature 'key' has shape None; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": 7},
            "feature 'key' has shape 7; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": [2.0]},
            "feature 'key' has shape [2.0]; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": [-1]},
            "feature 'key' has shape [-1]; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": [True]},
            "feature 'key' has shape [True]; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": ["7"]},
            "feature 'key' has shape ['7']; expected a list of integers >= 0",
        ),
        (
            {"dtype": "float32", "shape": [[7]]},
            "feature 'key' has shape [[7]]; expected a list of integers >= 0",
        ),
        (
            {"dtype": "video", "shape": [4, 6]},
            "camera 'key' has shape [4, 6]; expected [height, width, channels]",
        ),
        (
            {"dtype": "image", "shape": [1, 4, 6, 3]},
            "camera 'key' has shape [1, 4, 6, 3]; expected [height, width, channels]",
        ),
        (
            {"dtype": "video", "shape": [4, 6, 3], "info": [2]},
            "camera 'key' has info [2]; expected an object",
        ),
        (
            {"dtype": "video", "shape": [4, 6, 3], "video_info": "g"},
            "camera 'key' has info 'g'; expected an object",
        ),
        (
            {"dtype": "video", "shape": [4, 6, 3], "info": "g", "video_info": {}},
            "camera 'key' has info 'g'; expected an object",
        ),
        *(
            (
                {
                    "dtype": "video",
                    "shape": [4, 6, 3],
                    "info": {"video.g": 2},
                    "video_info": {"video.is_depth_map": value},
                },
                f"camera 'key' has video.is_depth_map {value!r} in video_info; expected true or "
                "false",
            )
            for value in ("false", "no", "0", 2, -1, 0.5, [False], {"a": 1}, float("nan"))
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_malformed_features(fields: dict[str, Any], text: str) -> None:
    assert refusal(lambda: feature(**fields)) == text


# --- parse, or the format error, never another one -----------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**310, -(10**310), float("nan"), float("inf"), 1e300]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "v3.0",
            "v2.1",
            "float32",
            "video",
            "string",
            "{chunk_index:03d}",
            "{video_key}",
            "{",
            "}",
            "{0.a}",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from([*INFO, "dtype", "shape", "info", "video.g"]), inner, max_size=4
        ),
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


@settings(max_examples=600, derandomize=True, deadline=None)
@given(st.sampled_from([place for place in places(INFO) if place]), st.one_of(SCALARS, VALUES))
def test_any_value_at_any_place(place: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(INFO)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    check_any(json.dumps(changed).encode())


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.one_of(VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_any_value_and_any_bytes(raw: bytes) -> None:
    check_any(raw)


def check_any(raw: bytes) -> None:
    try:
        info = parse(raw)
    except DatasetFormatError:
        return
    assert 0 < info.fps < float("inf")
    assert info.features
    for template in (info.data_path, info.video_path):
        if template is not None:
            assert (
                len(template.path(video_key="top", chunk_index=1, file_index=2))
                < len(template.text) + 1000
            )
