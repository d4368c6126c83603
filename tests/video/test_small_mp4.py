"""Small MP4s: stitched frames of any places are bit for bit those of decoding the whole files; what
cannot be stitched is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from torchcodec.decoders import VideoDecoder

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video.mp4 import SampleTable
from lerobot_grain._video.small_mp4 import (
    CodedUnit,
    Unit,
    coded_unit,
    small_mp4,
    stitchable,
    unit_of_frames,
)
from tests.support.helpers import box, boxes, decode_all, encoded, read_table


class Video(NamedTuple):
    """A file, its sample table, and all of its frames as decoding it from start to end
    gives them.
    """

    data: bytes
    table: SampleTable
    frames: npt.NDArray[np.uint8]


def video(data: bytes) -> Video:
    return Video(data, read_table(data), decode_all(data))


def unit_and_samples(source: Video, gop: int, frames: list[int]) -> tuple[Unit, CodedUnit]:
    unit = unit_of_frames(source.table, gop, np.array(frames, np.int64))
    payload = source.data[unit.byte_range.start : unit.byte_range.stop]
    return unit, coded_unit(source.table, unit, payload, where="a.mp4")


def check_stitched(requests: list[tuple[Video, int, list[int]]]) -> None:
    """Stitches GOPs and compares the wanted frames, decoded as the reader does (those alone) and
    all in a row.
    """
    found = [unit_and_samples(source, gop, frames) for source, gop, frames in requests]
    coded = [samples for _, samples in found]
    together = stitchable(coded)
    assert sorted(place for places in together for place in places) == list(range(len(requests)))
    for places in together:
        wanted, expected, base = [], [], 0
        for place in places:
            source, _, frames = requests[place]
            wanted += (base + found[place][0].wanted).tolist()
            expected.append(source.frames[frames])
            base += len(coded[place].sizes)
        mp4 = small_mp4(requests[0][0].table.format, [coded[place] for place in places])
        decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        assert decoder.metadata.num_frames == base
        alone = np.stack([decoder.get_frame_at(frame).data.numpy() for frame in wanted])
        np.testing.assert_array_equal(alone, np.concatenate(expected))
        np.testing.assert_array_equal(decode_all(mp4)[wanted], np.concatenate(expected))


def frames_by_gop(table: SampleTable) -> dict[int, list[int]]:
    gops = table.gop_of_frame(np.arange(table.num_frames))
    return {int(gop): np.flatnonzero(gops == gop).tolist() for gop in np.unique(gops)}


def random_requests(
    sources: list[Video], rng: np.random.Generator, count: int
) -> list[tuple[Video, int, list[int]]]:
    requests = []
    for _ in range(count):
        source = sources[rng.integers(len(sources))]
        by_gop = frames_by_gop(source.table)
        gop = int(rng.choice(list(by_gop)))
        frames = by_gop[gop]
        chosen = sorted(
            rng.choice(frames, rng.integers(1, len(frames) + 1), replace=False).tolist()
        )
        requests.append((source, gop, chosen))
    return requests


CASES: dict[str, dict[str, Any]] = {
    "av1 g=2": {"codec": "av1", "gop": 2},
    "av1 g=8": {"codec": "av1", "gop": 8},
    "h264": {"codec": "h264", "gop": 5},
    "h264 all key frames": {"codec": "h264", "gop": 1},
    "h264 B pictures": {"codec": "h264", "b_frames": 2},
    "h264 and sound": {"codec": "h264", "b_frames": 2, "audio": True},
    "hevc": {"codec": "hevc"},
    "hevc B pictures": {"codec": "hevc", "b_frames": 3},
    "hevc open GOPs": {"codec": "hevc", "b_frames": 3, "open_gop": True},
    "hevc open GOPs of 5": {"codec": "hevc", "b_frames": 4, "open_gop": True, "gop": 5},
    "mpeg4": {"codec": "mpeg4"},
    "mpeg4 B pictures": {"codec": "mpeg4", "b_frames": 2},
}


@pytest.fixture(scope="module")
def videos() -> dict[str, list[Video]]:
    """Two files of each case, of one encoder: what belongs into one small MP4."""
    return {
        name: [video(encoded(**options, seed=seed, num_frames=30 - 4 * seed)) for seed in range(2)]
        for name, options in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_random_frames_of_random_gops_and_files(videos: dict[str, list[Video]], name: str) -> None:
    first, second = videos[name]
    assert len({frame.tobytes() for source in (first, second) for frame in source.frames}) == 56, (
        "two frames look alike"
    )
    # The bit rate of a file, which sets the others' descriptions apart, is part of what MPEG-4
    # decoders are given (esds).
    together = [first] if name.startswith("mpeg4") else [first, second]
    assert len({source.table.format for source in together}) == 1
    rng = np.random.default_rng(len(name))
    for _ in range(6):
        check_stitched(random_requests(together, rng, int(rng.integers(1, 9))))


@pytest.mark.parametrize("name", CASES)
def test_each_frame_alone_and_a_whole_file_backwards(
    videos: dict[str, list[Video]], name: str
) -> None:
    source = videos[name][0]
    by_gop = frames_by_gop(source.table)
    check_stitched([(source, gop, by_gop[gop]) for gop in reversed(by_gop)])
    for gop, frames in by_gop.items():
        for frame in frames:
            check_stitched([(source, gop, [frame])])


@pytest.mark.parametrize("name", ["hevc_bframes", "h264_bframes", "av1_rolled"])
def test_golden_files(shared: Path, name: str) -> None:
    # The HEVC file has CRA pictures with leading pictures, as lerobot writes it.
    path = sorted((shared / "golden" / name / "videos").rglob("*.mp4"))[-1]
    source = video(path.read_bytes())
    rng = np.random.default_rng(3)
    for _ in range(3):
        check_stitched(random_requests([source], rng, 6))
    if name == "hevc_bframes":
        table = source.table
        leading = [
            gop
            for gop, frames in frames_by_gop(table).items()
            if table.presentation[frames].max() >= np.append(table.key_samples, 1 << 40)[gop + 1]
        ]
        assert leading, "no open GOP in the file"
        check_stitched([(source, gop, frames_by_gop(table)[gop]) for gop in leading])


def test_one_unit_again_and_again(videos: dict[str, list[Video]]) -> None:
    for name in ("hevc open GOPs", "h264 B pictures", "av1 g=8"):
        source = videos[name][0]
        frames = frames_by_gop(source.table)[1]
        check_stitched([(source, 1, frames[:3]), (source, 1, frames), (source, 1, frames[-1:])])


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_units_hold_what_is_needed_and_no_more(videos: dict[str, list[Video]], name: str) -> None:
    for source in videos[name]:
        table = source.table
        for gop, frames in frames_by_gop(table).items():
            for chosen in (frames, frames[:1], frames[-1:], frames[::2]):
                unit = unit_of_frames(table, gop, np.array(chosen))
                key = table.key_samples[gop]
                # Decode order, from the key frame to the last sample that is wanted; nothing that
                # is presented before the key frame.
                last = max(table.presentation[chosen])
                assert unit.samples.tolist() == [
                    sample for sample in range(key, last + 1) if table.pts[sample] >= table.pts[key]
                ]
                times = table.pts[unit.samples].tolist()
                assert unit.ranks.tolist() == [sorted(times).index(pts) for pts in times]
                assert [sorted(times)[rank] for rank in unit.wanted] == table.pts[
                    table.presentation[chosen]
                ].tolist()
                assert unit.byte_range.start == min(table.offsets[unit.samples])
                assert unit.byte_range.stop == max(
                    table.offsets[unit.samples] + table.sizes[unit.samples]
                )


def test_a_unit_of_the_first_frames_is_short(videos: dict[str, list[Video]]) -> None:
    unit = unit_of_frames(videos["av1 g=8"][0].table, 1, np.array([8, 9]))
    assert (unit.samples.tolist(), unit.ranks.tolist(), unit.wanted.tolist()) == (
        [8, 9],
        [0, 1],
        [0, 1],
    )


def test_leading_pictures_belong_to_the_gop_before(videos: dict[str, list[Video]]) -> None:
    source = videos["hevc open GOPs"][0]
    table = source.table
    before, key = 0, table.key_samples[1]
    frames = frames_by_gop(table)[before]
    unit = unit_of_frames(table, before, np.array(frames))
    assert key in unit.samples
    assert (unit.samples > key).any()
    assert not set(
        unit_of_frames(table, 1, np.array(frames_by_gop(table)[1][:1])).samples.tolist()
    ) & set(range(key + 1, key + 3))


def test_cra_pictures_become_bla_pictures_in_front_of_a_unit_and_nowhere_else(
    videos: dict[str, list[Video]],
) -> None:
    source = videos["hevc open GOPs"][0]
    kinds = {}
    for gop in (0, 1):
        unit, coded = unit_and_samples(source, gop, frames_by_gop(source.table)[gop])
        samples = [bytes(piece) for piece in coded.pieces]
        raw = [
            source.data[o : o + n]
            for o, n in zip(
                source.table.offsets[unit.samples], source.table.sizes[unit.samples], strict=True
            )
        ]
        assert samples[1:] == raw[1:]
        kinds[gop] = (
            picture_kinds(raw[0]),
            picture_kinds(samples[0]),
            [kind for sample in samples[1:] for kind in picture_kinds(sample)],
        )
    first, second = kinds[0], kinds[1]
    assert first[0] == first[1]
    assert 21 in first[2], "the unit runs on into the next GOP, whose CRA picture stays"
    assert (second[0], second[1]) == ([21], [18])


@pytest.mark.parametrize(
    ("name", "places"),
    [
        # The first GOPs of the two files begin with IDR pictures, the others with CRA pictures.
        ("hevc open GOPs", [[0, 3], [1], [2], [4], [5]]),
        ("hevc open GOPs of 5", [[0, 3], [1], [2], [4], [5]]),
        ("hevc B pictures", [[0, 1, 2, 3, 4, 5]]),
        ("h264 B pictures", [[0, 1, 2, 3, 4, 5]]),
        ("av1 g=8", [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_only_gops_that_clear_every_decoder_are_stitched(
    videos: dict[str, list[Video]], name: str, places: list[list[int]]
) -> None:
    """FFmpeg from 7.1 on predicts what follows a CRA or BLA picture from a picture before it that
    has the same number.
    """
    coded = []
    for source in videos[name]:
        frames = frames_by_gop(source.table)
        coded += [unit_and_samples(source, gop, frames[gop])[1] for gop in (0, 1, 2)]
    assert stitchable(coded) == places


def picture_kinds(sample: bytes) -> list[int]:
    kinds, cursor = [], 0
    while cursor < len(sample):
        length = int.from_bytes(sample[cursor : cursor + 4], "big")
        kinds.append(sample[cursor + 4] >> 1 & 0x3F)
        cursor += 4 + length
    return [kind for kind in kinds if kind < 32]


# --- the file ------------------------------------------------------------------------------------


def test_frame_i_is_presented_at_tick_i(videos: dict[str, list[Video]]) -> None:
    for name in ("hevc open GOPs", "h264 B pictures", "av1 g=8"):
        source = videos[name][0]
        units = [
            unit_and_samples(source, gop, frames_by_gop(source.table)[gop])[1] for gop in (1, 0)
        ]
        table = read_table(small_mp4(source.table.format, units))
        times = table.pts[table.presentation]
        assert times[0] == 0
        assert len(np.unique(np.diff(times))) == 1
        assert table.format[:3] == (source.table.format.codec, 96, 64)
        assert table.format == source.table.format
        assert [kind for kind, _ in boxes(small_mp4(source.table.format, units))] == [
            "ftyp",
            "moov",
            "mdat",
        ]


# --- what is refused -----------------------------------------------------------------------------


def refusal(
    source: Video, first_picture: bytes, *, gop: int = 0, table: SampleTable | None = None
) -> str:
    """Returns the text about a GOP whose first picture is `first_picture`; its unit is that picture
    alone.
    """
    table = source.table if table is None else table
    frame = frames_by_gop(table)[gop][0]
    unit = unit_of_frames(table, gop, np.array([frame]))
    table = dataclasses.replace(
        table,
        sizes=np.where(
            np.arange(table.num_frames) == table.key_samples[gop], len(first_picture), table.sizes
        ),
    )
    with pytest.raises(DatasetFormatError) as caught:
        coded_unit(table, unit, first_picture, where="a.mp4")
    prefix = f"a.mp4, bytes {unit.byte_range}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def first_sample(source: Video, sample: int = 0) -> bytes:
    start = source.table.offsets[sample]
    return source.data[start : start + source.table.sizes[sample]]


def test_h264_with_open_gops() -> None:
    source = video(encoded("h264", b_frames=3, open_gop=True))
    gop = 2
    assert picture_types(first_sample(source, int(source.table.key_samples[gop])))[-1] == 1, (
        "the encoder made an IDR picture"
    )
    text = refusal(source, first_sample(source, int(source.table.key_samples[gop])), gop=gop)
    kinds = picture_types(first_sample(source, int(source.table.key_samples[gop])))
    assert text == (
        f"flagged as key frame, but it is not an IDR picture (NAL unit types {kinds}); H.264 with "
        "open GOPs is not supported"
    )


def picture_types(sample: bytes) -> list[int]:
    kinds, cursor = [], 0
    while cursor < len(sample):
        kinds.append(sample[cursor + 4] & 0x1F)
        cursor += 4 + int.from_bytes(sample[cursor : cursor + 4], "big")
    return kinds


def nal(*units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


H264_KEY = "flagged as key frame, but it is not an IDR picture"
HEVC_KEY = "expected IDR (19, 20), CRA (21) or BLA (16 to 18)"
DAMAGED = "the picture is damaged"


@pytest.mark.parametrize(
    ("name", "picture", "text"),
    [
        (
            "h264",
            nal(b"\x41slice"),
            f"{H264_KEY} (NAL unit types [1]); H.264 with open GOPs is not supported",
        ),
        (
            "h264",
            nal(b"\x06sei", b"\x65idr", b"\x41slice"),
            f"{H264_KEY} (NAL unit types [6, 5, 1]); H.264 with open GOPs is not supported",
        ),
        (
            "h264",
            nal(b"\x67sps", b"\x68pps"),
            f"{H264_KEY} (NAL unit types [7, 8]); H.264 with open GOPs is not supported",
        ),
        ("h264", b"", f"{H264_KEY} (NAL unit types []); H.264 with open GOPs is not supported"),
        ("h264", bytes(20), f"a NAL unit of 0 bytes in a picture with 16 bytes left; {DAMAGED}"),
        (
            "h264",
            b"\0\0\0\x63" + b"\x65idr",
            f"a NAL unit of 99 bytes in a picture with 4 bytes left; {DAMAGED}",
        ),
        (
            "h264",
            b"\xff" * 9,
            f"a NAL unit of 4294967295 bytes in a picture with 5 bytes left; {DAMAGED}",
        ),
        (
            "hevc",
            nal(b"\x02\x01slice"),
            f"flagged as key frame, but its NAL unit type is 1; {HEVC_KEY}",
        ),
        (
            "hevc",
            nal(b"\x26\x01idr", b"\x02\x01slice"),
            f"flagged as key frame, but its NAL unit type is 1; {HEVC_KEY}",
        ),
        (
            "hevc",
            nal(b"\x2c\x01reserved"),
            f"flagged as key frame, but its NAL unit type is 22; {HEVC_KEY}",
        ),
        ("hevc", bytes(9), f"a NAL unit of 0 bytes in a picture with 5 bytes left; {DAMAGED}"),
        ("av1 g=8", b"", "flagged as key frame, but it does not begin with an AV1 key frame"),
        ("av1 g=8", bytes(9), "flagged as key frame, but it does not begin with an AV1 key frame"),
        (
            "av1 g=8",
            b"\xff" * 40,
            "flagged as key frame, but it does not begin with an AV1 key frame",
        ),
        (
            "av1 g=8",
            b"\x12\x00\x32\x01\x30",
            "flagged as key frame, but it does not begin with an AV1 key frame",
        ),
        (
            "av1 g=8",
            b"\x12\x00\x32\x01",
            "flagged as key frame, but it does not begin with an AV1 key frame",
        ),
        ("mpeg4", b"", "flagged as key frame, but it does not begin with an MPEG-4 intra picture"),
        (
            "mpeg4",
            b"\0\0\x01\xb6",
            "flagged as key frame, but it does not begin with an MPEG-4 intra picture",
        ),
        (
            "mpeg4",
            b"\0\0\x01\xb6\x50data",
            "flagged as key frame, but it does not begin with an MPEG-4 intra picture",
        ),
        (
            "mpeg4",
            bytes(50),
            "flagged as key frame, but it does not begin with an MPEG-4 intra picture",
        ),
    ],
)
def test_first_pictures_that_are_none(
    videos: dict[str, list[Video]], name: str, picture: bytes, text: str
) -> None:
    assert refusal(videos[name][0], picture) == text


@pytest.mark.parametrize(
    "picture",
    [b"", nal(b"\x40\x01vps"), nal(b"\x4e\x01sei")],
    ids=["empty", "parameter set", "message"],
)
def test_hevc_samples_without_a_picture(videos: dict[str, list[Video]], picture: bytes) -> None:
    assert refusal(videos["hevc"][0], picture).startswith("flagged as key frame, but")


@pytest.mark.parametrize(
    "name",
    ["h264", "h264 B pictures", "hevc", "hevc open GOPs", "av1 g=8", "mpeg4", "mpeg4 B pictures"],
)
def test_pictures_that_are_no_key_frames(videos: dict[str, list[Video]], name: str) -> None:
    # The key flag is not trusted: here it is at the next picture.
    source = videos[name][0]
    text = refusal(source, first_sample(source, 2))
    assert text.startswith("flagged as key frame, but")


@pytest.mark.parametrize(("name", "kind"), [("h264", "avcC"), ("hevc", "hvcC")])
def test_sample_descriptions_without_a_configuration(
    videos: dict[str, list[Video]], name: str, kind: str
) -> None:
    source = videos[name][0]
    for description in (
        source.table.format.sample_description.replace(kind.encode(), b"abcd"),
        box("stsd", b"12345678" + kind.encode()),
    ):
        table = dataclasses.replace(
            source.table, format=source.table.format._replace(sample_description=description)
        )
        text = refusal(source, first_sample(source), table=table)
        assert text == f"the sample description has no {kind} box; the file cannot be decoded"


@pytest.mark.parametrize("name", ["h264 B pictures", "hevc open GOPs", "av1 g=8", "mpeg4"])
def test_damaged_first_pictures_give_samples_or_the_format_error(
    videos: dict[str, list[Video]], name: str
) -> None:
    source = videos[name][0]
    rng = np.random.default_rng(0)
    unit = unit_of_frames(source.table, 1, np.array(frames_by_gop(source.table)[1][:1]))
    payload = source.data[unit.byte_range.start : unit.byte_range.stop]
    refused = 0
    for _ in range(500):
        damaged = bytearray(payload)
        for place in rng.integers(0, min(len(payload), 60), 3):
            damaged[place] = rng.integers(256)
        try:
            coded = coded_unit(source.table, unit, bytes(damaged), where="a.mp4")
        except DatasetFormatError:
            refused += 1
        else:
            assert len(coded.pieces[0]) == source.table.sizes[unit.samples[0]]
    assert refused > 10
