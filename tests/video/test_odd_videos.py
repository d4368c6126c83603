"""Video files that no lerobot recorder wrote: what torchcodec shows of the whole file, read from
start to end, is what rows are given.

PyAV, with an FFmpeg of its own, is the second witness, by barcode.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchcodec.decoders
from torchcodec.decoders import VideoDecoder

import lerobot_grain as lg
from lerobot_grain._base.versions import decoder_transforms, decoder_turns_frames, resized_frames
from lerobot_grain._parquet.table import ParquetTable
from lerobot_grain.testing import Camera, write_dataset
from tests.support.helpers import box, boxes, edit_box, read_table
from tests.support.odd_videos import (
    CODECS,
    GOP,
    HEIGHT,
    KEY,
    TABLES,
    TURNS,
    WIDTH,
    VideoOf,
    codes_by_pyav,
    codes_of,
    decoded,
    edited,
    film,
    filmed,
    headers_of,
    joined,
    nal_units,
    of_nal_units,
    times_of,
    turned,
    with_headers,
    with_samples,
    write_with_videos,
)
from tests.support.pairwise import choose

# At least 120 of them by `scripts/test.sh --long`, the first ones always: those hold the rarest
# pairs.
NUM_FILES, NUM_ALWAYS = 132, 22

FACTORS: Mapping[str, tuple[Any, ...]] = {
    "codec": tuple(CODECS),
    "headers": ("described", "in samples", "in some samples", "of two recorders"),
    "edit": ("as written", "none", "wait", "cut 0.07", "cut 0.6", "cut 1.4", "cut 6.4", "short"),
    "turn": ("0", "90", "180 in mvhd", "270"),
    "rate": ("fps", "29.97", "double"),
    "num_episodes": (1, 2),
}


def is_possible(values: Mapping[str, Any]) -> bool:
    # AV1 has its headers in the samples anyway, VP9 has none.
    return (values["headers"] == "described" or values["codec"] not in ("av1", "vp9")) and (
        values["headers"] != "of two recorders" or values["num_episodes"] == 2
    )


FILES = choose(FACTORS, NUM_FILES, is_possible=is_possible)


def made(values: Mapping[str, Any]) -> bytes:
    """Returns the file that the values describe, of episodes of 11 and 8 frames."""
    rate = {"fps": Fraction(10), "29.97": Fraction(30000, 1001), "double": Fraction(20)}[
        values["rate"]
    ]
    films = [film(values["codec"], 0, 11, rate=rate)]
    if values["num_episodes"] == 2:
        films.append(
            film(values["codec"], 1, 8, rate=rate, is_other=values["headers"] == "of two recorders")
        )
    if values["headers"] != "described":
        films = [with_headers(each, first=values["headers"] == "in some samples") for each in films]
    data = joined(*films) if len(films) > 1 else films[0]
    times = times_of(data)
    kind, _, cut = values["edit"].partition(" ")
    if kind == "cut":
        data = edited(data, (times.length, times.start + round(float(cut) * times.frame)))
    elif kind == "wait":
        data = edited(data, (130, -1), (times.length, times.start))
    elif kind == "short":
        data = edited(
            data, (times.length - round(1.5 * times.frame * times.movie / times.media), times.start)
        )
    elif kind == "none":
        data = edited(data)
    turn, _, where = values["turn"].partition(" in ")
    return turned(data, TURNS[int(turn)], where=where or "tkhd") if turn != "0" else data


def check(directory: Path, files: list[VideoOf], expected: np.ndarray, *, fps: int) -> None:
    """Streams a dataset, shuffled and through windows; the row `index` must have the frame of this
    number.
    """
    repository = lg.open_repository(directory)
    lengths = [length for file in files for length in file.lengths]
    firsts = np.cumsum([0, *lengths])
    dataset = lg.LeRobotIterDataset(
        repository,
        features=[KEY, "index", "episode_index"],
        delta_timestamps={KEY: [-1 / fps, 0.0, 2 / fps]},
        shuffle=lg.Shuffle(seed=1, clip_length=4, num_parts=2, buffer_size=8),
        num_epochs=1,
    )
    rows = []
    for example in dataset:
        row, episode = int(example["index"]), int(example["episode_index"])
        rows.append(row)
        wanted = np.clip(row + np.array([-1, 0, 2]), firsts[episode], firsts[episode + 1] - 1)
        np.testing.assert_array_equal(example[KEY], expected[wanted])
    assert sorted(rows) == list(range(sum(lengths)))


def parametrized() -> list[Any]:
    return [
        pytest.param(
            values,
            id="-".join(map(str, values.values())),
            marks=[pytest.mark.long] if number >= NUM_ALWAYS else [],
        )
        for number, values in enumerate(FILES)
    ]


@pytest.mark.parametrize("values", parametrized())
def test_rows_have_the_frames_that_the_decoder_shows(
    values: Mapping[str, Any], tmp_path: Path
) -> None:
    data = made(values)
    turn, codes = int(values["turn"].split()[0]), codes_by_pyav(data)
    shown = decoded(data)
    # FFmpeg's decoder of AV1 gives, in version 5, the frames past the end of an edit, too; in
    # version 8, which PyAV has, no more.
    assert len(shown) == len(codes) or (values["codec"], values["edit"]) == ("av1", "short")
    shown = shown[: len(codes)]
    assert codes_of(shown, turn) == codes
    step, fps, rate = {
        "fps": (1, 10, Fraction(10)),
        "29.97": (1, 30, Fraction(30)),
        "double": (2, 10, Fraction(20)),
    }[values["rate"]]
    counts = [
        sum(episode == number for episode, _ in codes) for number in range(values["num_episodes"])
    ]
    starts = [float(sum(counts[:number]) / rate) for number in range(len(counts))]
    odd = VideoOf(data, [-(-count // step) for count in counts], starts)
    # A file of the first recorder without anything odd, whose GOPs are decoded together with those
    # of the other one where they can be.
    plain = VideoOf(
        turned(film(values["codec"], 2, 9, rate=rate), TURNS[turn]),
        [9] if step == 1 else [5],
        [0.0],
    )
    frames, begin = [], 0
    for count in counts:
        frames.append(shown[begin : begin + count : step])
        begin += count
    expected = np.concatenate([*frames, decoded(plain.data)[::step]])
    written = write_with_videos(tmp_path / "data", [odd, plain], fps=fps, size=expected.shape[1:3])
    check(written.directory, [odd, plain], expected, fps=fps)


# --- headers in samples --------------------------------------------------------------------------


def stream(directory: Path, *, seed: int = 0, **arguments: Any) -> dict[int, np.ndarray]:
    """Returns the frame of each row, by its number, of a shuffled epoch."""
    dataset = lg.LeRobotIterDataset(
        directory,
        **(
            {
                "features": [KEY, "index"],
                "shuffle": lg.Shuffle(seed=seed, clip_length=GOP),
                "num_epochs": 1,
            }
            | arguments
        ),
    )
    return {int(example["index"]): example[KEY] for example in dataset}


def assert_frames(found: Mapping[int, np.ndarray], expected: np.ndarray) -> None:
    assert sorted(found) == list(range(len(expected)))
    np.testing.assert_array_equal(np.stack([found[row] for row in range(len(expected))]), expected)


@pytest.mark.parametrize("codec", ["h264", "h264 B", "hevc", "hevc open"])
@pytest.mark.parametrize("seed", range(3))
def test_gops_of_two_recorders_and_of_files_without_headers_in_samples(
    codec: str, seed: int, tmp_path: Path
) -> None:
    """All files have the sample description of the first recorder, so their GOPs could be stitched
    together.
    """
    first, other = film(codec, 0, 10), film(codec, 1, 10, is_other=True)
    mixed = joined(with_headers(first), with_headers(other))
    plain = film(codec, 2, 20)
    assert read_table(mixed).format == read_table(plain).format
    assert headers_of(first) != headers_of(other)
    files = [VideoOf(mixed, [10, 10], [0.0, 1.0]), VideoOf(plain, [20], [0.0])]
    write_with_videos(tmp_path / "data", files)
    expected = np.concatenate([decoded(first), decoded(other), decoded(plain)])
    assert codes_of(expected) == [(0, i) for i in range(10)] + [(1, i) for i in range(10)] + [
        (2, i) for i in range(20)
    ]
    assert_frames(stream(tmp_path / "data", seed=seed), expected)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_headers_that_change_inside_of_a_gop(codec: str, tmp_path: Path) -> None:
    """Nothing may be decoded with the parameter sets that come with the last picture of a file."""
    other = headers_of(film(codec, 1, 10, is_other=True))
    changing = with_samples(
        film(codec, 0, 20), lambda number, sample: other + sample if number == 19 else sample
    )
    plain = film(codec, 2, 20)
    write_with_videos(
        tmp_path / "data", [VideoOf(changing, [20], [0.0]), VideoOf(plain, [20], [0.0])]
    )
    expected = np.concatenate([decoded(changing), decoded(plain)])
    for seed in range(3):
        assert_frames(stream(tmp_path / "data", seed=seed), expected)


def test_parameter_sets_that_are_in_samples_alone(tmp_path: Path) -> None:
    """As cameras write them under `avc3`: the sample description has none."""

    def without_sets(stsd: bytes) -> bytes:
        entry = boxes(stsd[8:])[0][1]
        kinds = dict(boxes(entry[78:]))
        stripped = b"".join(
            box(kind, payload[:5] + b"\xe0\0" if kind == "avcC" else payload)
            for kind, payload in kinds.items()
        )
        return box("stsd", stsd[:8] + box("avc3", entry[:78] + stripped))

    data = edit_box(with_headers(film("h264", 0, 12)), f"{TABLES}/stsd", without_sets)
    assert codes_by_pyav(data) == [(0, i) for i in range(12)]
    write_with_videos(tmp_path / "data", [VideoOf(data, [12], [0.0])])
    assert_frames(stream(tmp_path / "data"), decoded(film("h264", 0, 12)))


def behind_start_codes(code: bytes) -> Any:
    def change(number: int, sample: bytes) -> bytes:
        return (
            of_nal_units([code.join([b"\x09\xf0", *nal_units(sample)])])
            if number % GOP == 0
            else sample
        )

    return change


@pytest.mark.parametrize(
    "change",
    [
        behind_start_codes(b"\0\0\1"),
        behind_start_codes(b"\0\0\0\1"),
        lambda _, sample: of_nal_units([b"\x09\xf0", b"\x06\x05\x01\x00\x80", *nal_units(sample)]),
        lambda _, sample: b"".join(b"\0\0\0\1" + unit for unit in nal_units(sample)),
    ],
    ids=[
        "in one NAL unit",
        "in one NAL unit, long codes",
        "after other NAL units",
        "without lengths",
    ],
)
@pytest.mark.parametrize("is_joined", [False, True], ids=["one recorder", "two recorders"])
def test_pictures_behind_other_units_in_one_sample(
    change: Any, is_joined: bool, tmp_path: Path
) -> None:
    """As two phones write H.264: delimiter, message and picture in one sample, with start codes
    between them.
    """
    films = [film("h264", 0, 10), film("h264", 1, 10, is_other=is_joined)]
    data = with_samples(joined(*films), change)
    expected = [(episode, i) for episode in range(2) for i in range(10)]
    assert codes_by_pyav(data) == expected
    plain = film("h264", 2, 10)
    write_with_videos(
        tmp_path / "data", [VideoOf(data, [10, 10], [0.0, 1.0]), VideoOf(plain, [10], [0.0])]
    )
    assert_frames(stream(tmp_path / "data"), np.concatenate([*map(decoded, films), decoded(plain)]))


# --- hidden frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-2600, -3072, -4096], ids=str)
@pytest.mark.parametrize("entry", [(2000, 0), (1400, 900), (900, 3000)], ids=str)
def test_frames_before_0_s_in_an_edit_are_not_reached(
    shift: int, entry: tuple[int, int], tmp_path: Path
) -> None:
    """FFmpeg presents some frames of an edit before 0 s where composition times are negative.
    lerobot never asks for them.
    """

    def change(ctts: bytes) -> bytes:
        runs = np.frombuffer(ctts, ">i4", offset=8).reshape(-1, 2).copy()
        runs[:, 1] += shift
        return box("ctts", ctts[:8] + runs.tobytes())

    data = edited(edit_box(film("h264 B", 0, 14), f"{TABLES}/ctts", change), entry)
    shown = decoded(data)
    assert entry[1] > 0 or len(shown) < len(codes_by_pyav(data))
    write_with_videos(tmp_path / "data", [VideoOf(data, [len(shown)], [0.0])])
    assert_frames(stream(tmp_path / "data"), shown)


@pytest.mark.parametrize("codec", ["h264 B", "hevc open", "av1"])
def test_long_gops_with_hidden_frames_are_read_in_pieces(codec: str, tmp_path: Path) -> None:
    films = [film(codec, episode, 60, gop=60) for episode in range(4)]
    cut = [
        edited(data, (times.length, times.start + round(7.4 * times.frame)))
        for data in films
        for times in [times_of(data)]
    ]
    write_with_videos(tmp_path / "data", [VideoOf(data, [52], [0.0]) for data in cut])
    expected = np.concatenate([decoded(data) for data in cut])
    assert codes_of(expected) == [(episode, i) for episode in range(4) for i in range(8, 60)]
    # Small enough that these GOPs are long ones.
    options = lg.ReadOptions(memory_budget_bytes=HEIGHT * WIDTH * 3 * 64)
    assert_frames(
        stream(tmp_path / "data", read_options=options, shuffle=lg.Shuffle(seed=0, clip_length=8)),
        expected,
    )


def test_more_rows_than_frames_that_are_shown(tmp_path: Path) -> None:
    data = film("h264", 0, 12)
    times = times_of(data)
    write_with_videos(
        tmp_path / "data", [VideoOf(edited(data, (times.length, times.start + 1)), [12], [0.0])]
    )
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"it has 12 rows, but only 11 frames from 0\.000000 s until the file ends",
    ):
        stream(tmp_path / "data")


# --- turned pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (40, 30), (33, 50)], ids=str)
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_frames_are_resized_as_the_decoder_does(
    turn: int, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    data = turned(film("h264", 0, 10), TURNS[turn])
    declared = (HEIGHT, WIDTH) if turn == 180 else (WIDTH, HEIGHT)
    write_with_videos(tmp_path / "data", [VideoOf(data, [10], [0.0])], size=declared)
    expected = np.rot90(decoded(film("h264", 0, 10)), -turn // 90, axes=(1, 2))
    if size is None:
        np.testing.assert_array_equal(decoded(data), expected)
    elif decoder_turns_frames(torchcodec.decoders):
        resize = importlib.import_module("torchcodec.transforms").Resize(size)
        decoder = VideoDecoder(
            data, dimension_order="NHWC", seek_mode="approximate", transforms=[resize]
        )
        expected = np.stack([decoder.get_frame_at(number).data.numpy() for number in range(10)])
    else:
        assert decoder_transforms() is None, "torchcodec 0.10 is in none of the environments"
        expected = resized_frames(torch.from_numpy(expected.copy()), size).numpy()
    assert_frames(stream(tmp_path / "data", image_size=size), expected)


def test_files_that_are_turned_differently_are_not_decoded_together(tmp_path: Path) -> None:
    films = [film("h264", episode, 10) for episode in range(3)]
    files = [films[0], turned(films[1], TURNS[180]), turned(films[2], TURNS[180], where="mvhd")]
    write_with_videos(tmp_path / "data", [VideoOf(data, [10], [0.0]) for data in files])
    assert_frames(stream(tmp_path / "data"), np.concatenate([decoded(data) for data in files]))


MIRRORED = {
    "left and right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "about the diagonal": (0, 1, 1, 0),
    "about the other diagonal": (0, -1, -1, 0),
    "45 degrees": (0.7071, 0.7071, -0.7071, 0.7071),
    "10 degrees": (0.985, 0.174, -0.174, 0.985),
    "slanted": (1, 0, 0.5, 1),
    "flat": (1, 0, 0, 0),
}


@pytest.mark.parametrize("name", MIRRORED)
@pytest.mark.parametrize("where", ["tkhd", "mvhd"])
def test_pictures_that_are_mirrored_or_turned_by_other_angles_are_refused(
    name: str, where: str, tmp_path: Path
) -> None:
    data = turned(film("h264", 0, 10), MIRRORED[name], where=where)
    write_with_videos(tmp_path / "data", [VideoOf(data, [10], [0.0])])
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"its matrix \(.*\) mirrors or distorts the frames; expected one that turns them by",
    ):
        stream(tmp_path / "data", shuffle=lg.Shuffle(clip_length=4))


@pytest.mark.parametrize(
    "matrix",
    [(2, 0, 0, 2), (2, 0, 0, 1), (0, 0, 0, 0), (1, 1.6e-5, -1.6e-5, 1)],
    ids=["larger", "wider", "zero", "rounded"],
)
def test_matrices_that_turn_nothing(
    matrix: tuple[float, float, float, float], tmp_path: Path
) -> None:
    data = turned(film("h264", 0, 10), matrix)
    write_with_videos(tmp_path / "data", [VideoOf(data, [10], [0.0])])
    np.testing.assert_array_equal(decoded(data), decoded(film("h264", 0, 10)))
    assert_frames(stream(tmp_path / "data"), decoded(data))


def test_turned_depth_is_refused(tmp_path: Path) -> None:
    """lerobot reads depth with PyAV, which does not turn it, while it is shown turned."""
    written = write_dataset(
        tmp_path / "data",
        episode_lengths=[4],
        fps=10,
        cameras=[Camera(key=KEY, depth=True, height=64, width=96)],
    )
    path = written.directory / f"videos/{KEY}/chunk-000/file-000.mp4"
    path.write_bytes(turned(path.read_bytes(), TURNS[180]))
    with pytest.raises(
        lg.DatasetFormatError,
        match="its matrix turns the frames by 180 degrees; depth video is not read turned",
    ):
        stream(written.directory)


# --- codecs by other names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (0x6C, "MJPEG"),
        (0x61, "MPEG-2"),
        (0x60, "MPEG-2"),
        (0x6A, "MPEG-1"),
        (0x21, "H.264"),
        (0xA3, "VC-1"),
        (0x99, "of object type 0x99"),
    ],
)
@pytest.mark.parametrize("num_length_bytes", [1, 4])
def test_codecs_behind_mp4v(kind: int, name: str, num_length_bytes: int) -> None:
    """The descriptors of `esds` tell; the length of each may have one byte to four."""

    def change(stsd: bytes) -> bytes:
        entry = boxes(stsd[8:])[0][1]

        def descriptor(tag: int, payload: bytes) -> bytes:
            return bytes([tag, *[0x80] * (num_length_bytes - 1), len(payload)]) + payload

        config = descriptor(4, bytes([kind]) + bytes(12))
        esds = box("esds", bytes(4) + descriptor(3, b"\0\1\0" + config))
        return box("stsd", stsd[:8] + box("mp4v", entry[:78] + esds))

    data = edit_box(film("mpeg4", 0, 6), f"{TABLES}/stsd", change)
    with pytest.raises(
        lg.DatasetFormatError,
        match=f"a.mp4: unsupported codec {name} in a sample entry mp4v; expected MPEG-4 Part 2 "
        "there",
    ):
        read_table(data)


def test_motion_jpeg_that_an_encoder_wrote() -> None:
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream_of = container.add_stream("mjpeg", 10)
        stream_of.width, stream_of.height, stream_of.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        container.mux(stream_of.encode(av.VideoFrame.from_ndarray(filmed(0, 1)[0], format="rgb24")))
        container.mux(stream_of.encode())
    with pytest.raises(
        lg.DatasetFormatError, match="unsupported codec MJPEG in a sample entry mp4v"
    ):
        read_table(written.getvalue())


# --- rows that were dropped ----------------------------------------------------------------------


def drop_rows(
    directory: Path, keep: list[list[int]], *, version: str = "v3.0", renumber: bool = True
) -> None:
    """Takes rows out of the data files and the table of episodes, of which the video is left as it
    is.
    """
    lengths = [len(rows) for rows in keep]
    info = json.loads((directory / "meta/info.json").read_text())
    (directory / "meta/info.json").write_text(json.dumps(info | {"total_frames": sum(lengths)}))
    for path in sorted((directory / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        frames, episodes = table["frame_index"].to_numpy(), table["episode_index"].to_numpy()
        stays = np.array(
            [
                frame in keep[episode]
                for episode, frame in zip(episodes.tolist(), frames.tolist(), strict=True)
            ]
        )
        table, episodes = table.filter(pa.array(stays)), episodes[stays]
        firsts = np.cumsum([0, *lengths])
        within = np.arange(len(episodes)) - np.searchsorted(episodes, episodes)
        table = table.set_column(
            table.column_names.index("index"), "index", pa.array(firsts[episodes] + within)
        )
        if renumber:
            table = table.set_column(
                table.column_names.index("frame_index"), "frame_index", pa.array(within)
            )
        pq.write_table(table, path, row_group_size=7)
    if version == "v3.0":
        path = directory / "meta/episodes/chunk-000/file-000.parquet"
        table = pq.read_table(path)
        firsts = np.cumsum([0, *lengths])
        for name, values in (
            ("length", lengths),
            ("dataset_from_index", firsts[:-1]),
            ("dataset_to_index", firsts[1:]),
        ):
            table = table.set_column(
                table.column_names.index(name), name, pa.array(np.array(values))
            )
        pq.write_table(table, path)
    else:
        path = directory / "meta/episodes.jsonl"
        lines = [
            json.loads(line) | {"length": length}
            for line, length in zip(path.read_text().splitlines(), lengths, strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


KEPT = [[0, 1, 2, 5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7], list(range(8)), [0, 2, 4, 6, 8, 10]]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("renumber", [True, False], ids=["numbered anew", "numbers with gaps"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_rows_that_were_dropped_keep_their_frames(
    version: str, renumber: bool, codec: Any, tmp_path: Path
) -> None:
    camera = Camera(
        key=KEY,
        height=HEIGHT,
        width=WIDTH,
        codec=codec,
        gop=4,
        b_frames=2 if codec == "hevc" else 0,
    )
    arguments = {} if version == "v2.1" else {"episodes_per_video_file": 2}
    written = write_dataset(
        tmp_path / "data",
        version=version,
        episode_lengths=[12, 10, 9, 11],
        fps=10,
        cameras=[camera],
        **arguments,
    )
    drop_rows(written.directory, KEPT, version=version, renumber=renumber)
    dataset = lg.LeRobotIterDataset(
        written.directory,
        features=[KEY, "episode_index", "timestamp"],
        delta_timestamps={KEY: [-0.1, 0.0, 0.1]},
        shuffle=lg.Shuffle(seed=3, clip_length=4, num_parts=2, buffer_size=8),
        num_epochs=2,
    )
    seen = []
    for example in dataset:
        episode, frame = int(example["episode_index"]), round(float(example["timestamp"]) * 10)
        place = KEPT[episode].index(frame)
        window = [
            KEPT[episode][min(max(place + offset, 0), len(KEPT[episode]) - 1)]
            for offset in (-1, 0, 1)
        ]
        assert codes_of(example[KEY]) == [(episode, each) for each in window]
        seen.append((episode, frame))
    assert sorted(seen) == sorted(
        2 * [(episode, frame) for episode, frames in enumerate(KEPT) for frame in frames]
    )
    report = lg.check(lg.open_repository(written.directory))
    assert report.is_fine
    assert {
        e for finding in report.findings if finding.kind == "dropped_rows" for e in finding.episodes
    } == {0, 1, 3}


@pytest.mark.parametrize(
    "shuffle", [None, lg.Shuffle(seed=3, clip_length=4)], ids=["in order", "shuffled"]
)
@pytest.mark.parametrize(("codec", "gop"), [("av1", 2), ("h264", 1), ("hevc", 2)])
def test_all_rows_of_a_gop_were_dropped(
    codec: Any, gop: int, shuffle: lg.Shuffle | None, tmp_path: Path
) -> None:
    camera = Camera(key=KEY, height=HEIGHT, width=WIDTH, codec=codec, gop=gop)
    written = write_dataset(tmp_path / "data", episode_lengths=[12, 10], fps=10, cameras=[camera])
    kept = [[0, 1, 2, 3, 6, 7, 10, 11], [4, 5, 6, 7, 8, 9]]
    drop_rows(written.directory, kept)
    seen = [
        codes_of(example[KEY][None])[0] + (round(float(example["timestamp"]) * 10),)
        for example in lg.LeRobotIterDataset(
            written.directory, features=[KEY, "timestamp"], shuffle=shuffle, num_epochs=1
        )
    ]
    assert sorted(seen) == [
        (episode, frame, frame) for episode, frames in enumerate(kept) for frame in frames
    ]


def test_timestamps_of_a_row_group_are_read_once_for_all_its_video_files(tmp_path: Path) -> None:
    camera = Camera(key=KEY, height=HEIGHT, width=WIDTH, codec="h264", gop=4)
    written = write_dataset(
        tmp_path / "data",
        episode_lengths=[12, 10, 9, 11],
        fps=10,
        cameras=[camera],
        episodes_per_video_file=1,
    )
    drop_rows(written.directory, KEPT)
    path = written.directory / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path)
    repository = lg.open_repository(written.directory)
    reads = []
    read_group = ParquetTable.read_group

    def counted(self: ParquetTable, group: int, columns: Any, **arguments: Any) -> Any:
        reads.extend(column for column in columns if column == "timestamp")
        return read_group(self, group, columns, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParquetTable, "read_group", counted)
        assert len(list(lg.LeRobotIterDataset(repository, features=[KEY], num_epochs=1))) == sum(
            map(len, KEPT)
        )
    assert reads == ["timestamp"]


def test_a_state_of_before_restores_where_rows_were_dropped(tmp_path: Path) -> None:
    """Positions are those of rows: only the frame that a row shows is another one than a reader
    would count.
    """
    camera = Camera(key=KEY, height=HEIGHT, width=WIDTH, codec="h264", gop=4)
    written = write_dataset(
        tmp_path / "data",
        episode_lengths=[12, 10, 9, 11],
        fps=10,
        cameras=[camera],
        episodes_per_video_file=2,
    )
    drop_rows(written.directory, KEPT)
    arguments = {"shuffle": lg.Shuffle(seed=3, clip_length=4), "num_epochs": 1}
    rows = [
        int(example["index"])
        for example in lg.LeRobotIterDataset(written.directory, features=["index"], **arguments)
    ]
    iterator = iter(lg.LeRobotIterDataset(written.directory, features=["index"], **arguments))
    for _ in range(9):
        next(iterator)
    resumed = iter(lg.LeRobotIterDataset(written.directory, features=["index", KEY], **arguments))
    resumed.set_state(iterator.get_state())
    assert [int(example["index"]) for example in resumed] == rows[9:]


def test_rows_of_which_it_is_not_known_which_were_dropped(tmp_path: Path) -> None:
    camera = Camera(key=KEY, height=HEIGHT, width=WIDTH, codec="h264", gop=4)
    written = write_dataset(tmp_path / "data", episode_lengths=[12, 10], fps=10, cameras=[camera])
    drop_rows(written.directory, [[0, 1, 2, 3, 4, 5, 6, 7], list(range(10))])
    path = written.directory / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    times = table["timestamp"].to_numpy().copy()
    times[3] = times[2]
    pq.write_table(
        table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times)), path
    )
    text = (
        r"episode 0, camera .*: it has 8 rows and 12 frames from 0\.000000 s on, and its "
        r"timestamps should name the frames"
    )
    with pytest.raises(lg.DatasetFormatError, match=text):
        stream(written.directory)
    assert lg.check(lg.open_repository(written.directory)).unusable_episodes == (0,)
    assert sorted(stream(written.directory, episodes=[1])) == list(range(8, 18))
