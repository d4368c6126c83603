"""Sample tables: what FFmpeg's demuxer says, for every layout of boxes; for damaged files the
format error and never another one.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._video import mp4
from lerobot_grain._video.mp4 import SampleTable, SampleTableReader, read_sample_table
from tests.support.helpers import box, boxes, decode_all, edit_box, encoded, read_table

TRACK = "moov/trak/mdia/minf/stbl"

FILES: dict[str, dict[str, Any]] = {
    "av1": {"codec": "av1", "gop": 2},
    "av1 moov first": {"codec": "av1", "gop": 8, "movflags": "faststart"},
    "h264": {"codec": "h264"},
    "h264 B pictures": {"codec": "h264", "b_frames": 2},
    "h264 B pictures moov first": {"codec": "h264", "b_frames": 2, "movflags": "faststart"},
    "h264 all key frames": {"codec": "h264", "gop": 1},
    "h264 one frame": {"codec": "h264", "num_frames": 1},
    "h264 and sound": {"codec": "h264", "audio": True},
    "hevc": {"codec": "hevc"},
    "hevc B pictures": {"codec": "hevc", "b_frames": 3},
    "hevc open GOPs": {"codec": "hevc", "b_frames": 3, "open_gop": True},
    "mpeg4": {"codec": "mpeg4"},
    "mpeg4 B pictures": {"codec": "mpeg4", "b_frames": 2},
}
PLAIN = FILES["h264 B pictures"]


def refusal(data: bytes) -> str:
    with pytest.raises(DatasetFormatError) as caught:
        read_table(data, where="org/name@1a2b, a.mp4")
    text = str(caught.value)
    assert text.startswith("org/name@1a2b, a.mp4")
    return text.removeprefix("org/name@1a2b, a.mp4").removeprefix(": ")


def check_against_demuxer(table: SampleTable, data: bytes) -> None:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert table.format.codec == {"libdav1d": "av1"}.get(
            stream.codec_context.name, stream.codec_context.name
        )
        assert table.format.frame_size == (stream.codec_context.height, stream.codec_context.width)
        assert Fraction(1, table.timescale) == stream.time_base
        assert table.num_frames == len(packets) == stream.frames
    assert table.sizes.tolist() == [packet.size for packet in packets]
    assert table.offsets.tolist() == [packet.pos for packet in packets]
    assert table.pts.tolist() == [packet.pts for packet in packets]
    assert table.key_samples.tolist() == [
        number for number, packet in enumerate(packets) if packet.is_keyframe
    ]
    assert table.presentation.tolist() == sorted(
        range(len(packets)), key=lambda number: packets[number].pts
    )
    assert [data[o : o + n] for o, n in zip(table.offsets, table.sizes, strict=True)] == [
        bytes(packet) for packet in packets
    ]


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_tables_are_what_the_demuxer_says(name: str) -> None:
    data = encoded(**FILES[name])
    ranges: list[ByteRange] = []
    check_against_demuxer(read_table(data, ranges=ranges), data)
    assert len(ranges) <= 3
    assert sum(r.length for r in ranges) <= len(data)


def test_the_files_have_what_their_names_say() -> None:
    kinds = {
        name: [kind for kind, _ in boxes(encoded(**options))] for name, options in FILES.items()
    }
    assert kinds["h264"] == ["ftyp", "free", "mdat", "moov"]
    assert (
        kinds["av1 moov first"]
        == kinds["h264 B pictures moov first"]
        == ["ftyp", "moov", "free", "mdat"]
    )
    tables = {name: read_table(encoded(**options)) for name, options in FILES.items()}
    for name in ("h264 B pictures", "hevc B pictures", "mpeg4 B pictures"):
        assert (np.diff(tables[name].pts) < 0).any()
    assert tables["h264 all key frames"].key_samples.tolist() == list(range(30))
    edits = dict(boxes(dict(boxes(dict(boxes(encoded(**PLAIN)))["moov"]))["trak"]))["edts"]
    assert struct.unpack_from(">iI", edits[8:], 12)[0] > 0  # media_time of the only edit


@pytest.mark.parametrize("name", ["h264 B pictures", "hevc open GOPs", "av1"])
def test_frames_and_their_gops(name: str) -> None:
    table = read_table(encoded(**FILES[name]))
    times = table.pts / table.timescale
    # Frame f of the file is presented at f / 10 s; half-way the earlier one is nearest.
    assert times[table.presentation] == pytest.approx(np.arange(30) / 10, abs=1e-9)
    assert table.frame_at(np.arange(30) / 10).tolist() == list(range(30))
    assert table.frame_at(np.array([-5.0, 0.049, 0.051, 1.0 - 1e-9, 2.9, 1e9])).tolist() == [
        0,
        0,
        1,
        10,
        29,
        29,
    ]
    for frame in range(30):
        keys = [
            gop
            for gop, key in enumerate(table.key_samples)
            if table.pts[key] <= table.pts[table.presentation[frame]]
        ]
        assert table.gop_of_frame(np.array([frame])).tolist() == [keys[-1]]
    assert table.gop_lengths().sum() == 30
    assert table.gop_lengths().tolist() == np.diff([*table.key_samples, 30]).tolist()


def test_a_file_of_one_frame() -> None:
    table = read_table(encoded(**FILES["h264 one frame"]))
    assert table.frame_at(np.array([0.0, 7.0])).tolist() == [0, 0]
    assert (table.key_samples.tolist(), table.gop_lengths().tolist(), table.num_frames) == (
        [0],
        [1],
        1,
    )


def test_tables_are_read_only_and_pickle() -> None:
    table = read_table(encoded(**PLAIN))
    again = pickle.loads(pickle.dumps(table))
    for name in ("offsets", "sizes", "pts", "key_samples", "presentation"):
        assert not getattr(table, name).flags.writeable
        assert getattr(table, name).dtype == np.int64
        assert getattr(again, name).tolist() == getattr(table, name).tolist()
    assert again.format == table.format


@pytest.mark.parametrize("name", ["av1_rolled", "h264_bframes", "hevc_bframes"])
def test_golden_files(shared: Any, name: str) -> None:
    for path in sorted((shared / "golden" / name / "videos").rglob("*.mp4")):
        data, ranges = path.read_bytes(), list[ByteRange]()
        check_against_demuxer(read_table(data, ranges=ranges), data)
        assert len(ranges) <= 3


def test_few_ranges_and_few_bytes_of_a_long_file() -> None:
    # 8 MB of pictures, of which nothing is read: one range for the head, one for the header after
    # mdat, one for moov.
    small = encoded(**PLAIN)
    filler = bytes(8 << 20)
    kinds = dict(boxes(small))
    media_offset = len(box("ftyp", kinds["ftyp"])) + 8
    long = (
        box("ftyp", kinds["ftyp"])
        + box("free", kinds["free"])
        + box("mdat", kinds["mdat"] + filler)
        + box("moov", kinds["moov"])
    )
    ranges: list[ByteRange] = []
    table = read_table(long, ranges=ranges)
    assert table.offsets.min() > media_offset
    assert len(ranges) == 2
    assert sum(r.length for r in ranges) < 4096 + len(kinds["moov"]) + 32
    tail = box("free", bytes(5 << 20))
    ranges = []
    assert read_table(long + tail, ranges=ranges).pts.tolist() == table.pts.tolist()
    assert len(ranges) == 3
    assert sum(r.length for r in ranges) < 4096 + len(kinds["moov"]) + 32


def with_co64(data: bytes) -> bytes:
    def change(stco: bytes) -> bytes:
        count = struct.unpack_from(">I", stco, 4)[0]
        return box("co64", stco[:8] + np.frombuffer(stco, ">u4", count, 8).astype(">u8").tobytes())

    return edit_box(data, f"{TRACK}/stco", change)


def with_large_mdat(data: bytes) -> bytes:
    # FFmpeg puts an empty `free` in front of mdat for just this.
    at = data.index(b"\0\0\0\x08free")
    size = struct.unpack_from(">I", data, at + 8)[0]
    return data[:at] + struct.pack(">I4sQ", 1, b"mdat", size + 8) + data[at + 16 :]


def with_large_moov(data: bytes) -> bytes:
    return edit_box(
        data, "moov", lambda payload: struct.pack(">I4sQ", 1, b"moov", 16 + len(payload)) + payload
    )


def with_moov_up_to_the_end(data: bytes) -> bytes:
    return edit_box(data, "moov", lambda payload: struct.pack(">I4s", 0, b"moov") + payload)


def with_one_chunk_per_sample(data: bytes) -> bytes:
    table = read_table(data)
    stco = struct.pack(">II", 0, len(table.offsets)) + table.offsets.astype(">u4").tobytes()
    data = edit_box(data, f"{TRACK}/stco", lambda _: box("stco", stco))
    return edit_box(
        data, f"{TRACK}/stsc", lambda _: box("stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    )


def with_uneven_chunks(data: bytes) -> bytes:
    # Chunks of 4, 4, 4, 7, 7 and 4 samples.
    table = read_table(data)
    starts = np.cumsum([0, 4, 4, 4, 7, 7])
    stco = struct.pack(">II", 0, 6) + table.offsets[starts].astype(">u4").tobytes()
    stsc = struct.pack(">II9I", 0, 3, 1, 4, 1, 4, 7, 1, 6, 4, 1)
    return edit_box(
        edit_box(data, f"{TRACK}/stco", lambda _: box("stco", stco)),
        f"{TRACK}/stsc",
        lambda _: box("stsc", stsc),
    )


def with_edit_list_version_1(data: bytes) -> bytes:
    def change(elst: bytes) -> bytes:
        count, duration, media_time, rate = struct.unpack_from(">IIiI", elst, 4)
        return box("elst", struct.pack(">IIQqI", 1 << 24, count, duration, media_time, rate))

    return edit_box(data, "moov/trak/edts/elst", change)


def with_media_header_version_1(data: bytes) -> bytes:
    def change(mdhd: bytes) -> bytes:
        _, made, changed, timescale, duration = struct.unpack_from(">5I", mdhd)
        return box(
            "mdhd", struct.pack(">IQQIQ", 1 << 24, made, changed, timescale, duration) + mdhd[20:]
        )

    return edit_box(data, "moov/trak/mdia/mdhd", change)


def with_unknown_boxes(data: bytes) -> bytes:
    data = edit_box(
        data,
        f"{TRACK}/stsz",
        lambda stsz: box("zzzz", bytes(7)) + box("stsz", stsz) + box("sdtp", b"\0" * 9),
    )
    return data + box("abcd", bytes(100))


VARIANTS: list[Callable[[bytes], bytes]] = [
    with_co64,
    with_large_mdat,
    with_large_moov,
    with_moov_up_to_the_end,
    with_one_chunk_per_sample,
    with_uneven_chunks,
    with_edit_list_version_1,
    with_media_header_version_1,
    with_unknown_boxes,
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_other_layouts_of_the_same_file(variant: Callable[[bytes], bytes]) -> None:
    original = encoded(**PLAIN)
    changed = variant(original)
    assert changed != original
    table = read_table(changed)
    check_against_demuxer(table, changed)
    expected = read_table(original)
    assert (table.pts.tolist(), table.offsets.tolist()) == (
        expected.pts.tolist(),
        expected.offsets.tolist(),
    )


def test_samples_of_constant_size() -> None:
    # No encoder makes them, but a table can have them.
    data = encoded(**PLAIN)
    stsz = struct.pack(">III", 0, 40, 30)
    table = read_table(edit_box(data, f"{TRACK}/stsz", lambda _: box("stsz", stsz)))
    assert table.sizes.tolist() == [40] * 30
    assert np.diff(table.offsets).tolist() == [40] * 29


def test_without_a_list_of_key_frames_every_picture_is_one() -> None:
    data = encoded(**FILES["h264 all key frames"])
    assert b"stss" not in data
    assert read_table(data).key_samples.tolist() == list(range(30))


def test_without_an_edit_list_times_count_from_the_first_frame() -> None:
    data = encoded(**PLAIN)
    with_edits = read_table(data)
    without = read_table(edit_box(data, "moov/trak/edts", lambda _: b""))
    assert without.pts.tolist() == with_edits.pts.tolist()
    empty = read_table(edit_box(data, "moov/trak/edts/elst", lambda _: box("elst", bytes(8))))
    assert empty.pts.tolist() == without.pts.tolist()


def test_negative_composition_offsets_in_version_0() -> None:
    def change(ctts: bytes) -> bytes:
        runs = np.frombuffer(ctts, ">i4", offset=8).reshape(-1, 2).copy()
        runs[:, 1] -= 2048
        return box("ctts", ctts[:8] + runs.tobytes())

    data = encoded(**PLAIN)
    shifted = edit_box(edit_box(data, f"{TRACK}/ctts", change), "moov/trak/edts", lambda _: b"")
    assert read_table(shifted).pts.tolist() == read_table(data).pts.tolist()


def test_bit_rates_do_not_tell_sample_descriptions_apart() -> None:
    # FFmpeg writes the bit rate of each file; the files of one encoder are to be decoded together.
    first, second = encoded("h264", seed=0), encoded("h264", seed=1, num_frames=20)
    assert b"btrt" in first
    assert b"btrt" in second
    descriptions = [read_table(data).format.sample_description for data in (first, second)]
    assert descriptions[0] == descriptions[1]
    assert b"btrt" not in descriptions[0]
    assert b"avcC" in descriptions[0]


@pytest.mark.parametrize("size", ["smaller than the tail", "larger"])
def test_a_moov_that_is_expected_last(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, front = encoded("h264"), encoded("h264", movflags="faststart")
    expected = read_table(data)
    if size == "larger":
        monkeypatch.setattr(mp4, "_LAST_MOOV_BYTES", 2048)
    assert len(data) > 2048
    ranges: list[ByteRange] = []
    assert (
        read_table(data, ranges=ranges, is_moov_last=True).offsets.tolist()
        == expected.offsets.tolist()
    )
    assert ranges == [ByteRange(max(0, len(data) - mp4._LAST_MOOV_BYTES), len(data))]
    # Elsewhere it is found as without that expectation, also after bytes that look like it.
    for other in (
        front,
        data + box("free", b"xyz"),
        data + box("free", b"moov" * 3),
        data + box("free", b"\0\0\0\x09moov!"),
    ):
        found = read_table(other, is_moov_last=True)
        assert found.pts.tolist() == expected.pts.tolist()
    with pytest.raises(DatasetFormatError, match="there is no moov box"):
        read_table(data[: data.index(b"moov") - 4], is_moov_last=True)


# --- what is refused -----------------------------------------------------------------------------


def set_entries(kind: str, *values: int, skip: int = 8) -> Callable[[bytes], bytes]:
    """Changes the payload of a box from byte `skip` on to 32-bit values."""
    return lambda payload: box(
        kind,
        payload[:skip]
        + struct.pack(f">{len(values)}I", *values)
        + payload[skip + 4 * len(values) :],
    )


def twice(kind: str) -> Callable[[bytes], bytes]:
    return lambda payload: box(kind, payload) * 2


def as_vp8(stsd: bytes) -> bytes:
    return box("stsd", stsd.replace(b"avc1", b"vp08"))


def with_edits(*entries: tuple[int, int]) -> Callable[[bytes], bytes]:
    """Makes an edit list of entries (ticks of the movie, start in ticks of the media)."""
    rows = b"".join(struct.pack(">IiI", length, start, 0x10000) for length, start in entries)
    return lambda _: box("elst", struct.pack(">II", 0, len(entries)) + rows)


def gone(_: bytes) -> bytes:
    return b""


SIZE = len(encoded(**PLAIN))
MOOV_START = SIZE - len(dict(boxes(encoded(**PLAIN)))["moov"]) - 8
FRAGMENTED = "a fragmented MP4 (moov holds mvex); only files with one complete moov box are read"
ONE_MOOV = "only files with one moov box are read"
NO_MOOV = "the file is truncated, or its recording was never finished"
ONE_DESCRIPTION = "sample descriptions; an encoding that changes half-way is not supported"
STSS = "stss does not list key frames in order, beginning with the first of the 30 pictures"
PICTURES = "they begin at 2048 to 31744"
ONE_EDIT = "only one edit, with or without a wait before it, is supported"
REFUSED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (TRACK + "/stsd", gone, "stbl holds no box stsd; found stts, stss, ctts, stsc, stsz, stco"),
    (TRACK + "/stts", gone, "stbl holds no box stts; found stsd, stss, ctts, stsc, stsz, stco"),
    (TRACK + "/stsc", gone, "stbl holds no box stsc; found stsd, stts, stss, ctts, stsz, stco"),
    (TRACK + "/stsz", gone, "stbl holds no box stsz; found stsd, stts, stss, ctts, stsc, stco"),
    (TRACK + "/stco", gone, "expected one of the boxes stco and co64"),
    (TRACK, gone, "minf holds 0 boxes stbl; expected one"),
    (TRACK, twice("stbl"), "minf holds 2 boxes stbl; expected one"),
    ("moov/trak/mdia/minf", gone, "mdia holds 0 boxes minf; expected one"),
    ("moov/trak/mdia/hdlr", gone, "mdia holds 0 boxes hdlr; expected one"),
    ("moov/trak/mdia/mdhd", gone, "mdia holds 0 boxes mdhd; expected one"),
    ("moov/trak/mdia", gone, "trak holds 0 boxes mdia; expected one"),
    ("moov/trak/edts/elst", gone, "edts holds 0 boxes elst; expected one"),
    ("moov/trak", gone, "found 0 video tracks; expected one"),
    ("moov/trak", twice("trak"), "found 2 video tracks; expected one"),
    ("moov", gone, f"there is no moov box in its {MOOV_START} bytes; {NO_MOOV}"),
    ("moov", lambda payload: box("moov", payload + box("mvex", b"")), FRAGMENTED),
    (
        "moov",
        lambda payload: box("moof", b"") + box("moov", payload),
        f"a fragmented MP4 (box moof at byte {MOOV_START}); {ONE_MOOV}",
    ),
    (
        "ftyp",
        lambda payload: box("RIFF", payload),
        "not an MP4 file: it starts with a box 'RIFF'; expected ftyp",
    ),
    ("moov/trak/mdia/mdhd", set_entries("mdhd", 0, skip=12), "the timescale is 0"),
    (
        TRACK + "/stsd",
        as_vp8,
        "unsupported codec 'vp08'; expected one of av01, avc1, avc3, hvc1, hev1, mp4v, vp09",
    ),
    (TRACK + "/stsd", lambda stsd: box("stsd", stsd + stsd[8:]), f"found 2 {ONE_DESCRIPTION}"),
    (TRACK + "/stsd", lambda stsd: box("stsd", stsd[:8]), f"found 0 {ONE_DESCRIPTION}"),
    (
        TRACK + "/stsz",
        set_entries("stsz", 0),
        f"stsz says 0 samples in a box of 132 bytes and a file of {SIZE}",
    ),
    (
        TRACK + "/stsz",
        set_entries("stsz", 31),
        f"stsz says 31 samples in a box of 132 bytes and a file of {SIZE}",
    ),
    (
        TRACK + "/stsz",
        set_entries("stsz", 1, 2**31, skip=4),
        f"stsz says 2147483648 samples in a box of 132 bytes and a file of {SIZE}",
    ),
    (TRACK + "/stsz", set_entries("stsz", 29), "the chunks hold 30 samples, stsz 29"),
    (
        TRACK + "/stsc",
        set_entries("stsc", 1, 1, 29, 1, skip=4),
        "the chunks hold 29 samples, stsz 30",
    ),
    (TRACK + "/stsc", set_entries("stsc", 2), "stsc does not describe the 1 chunks in order"),
    (
        TRACK + "/stsc",
        set_entries("stsc", 0, skip=4),
        "stsc does not describe the 1 chunks in order",
    ),
    (TRACK + "/stsc", set_entries("stsc", 2, skip=4), "stsc says 2 entries in a box of 20 bytes"),
    (TRACK + "/stts", set_entries("stts", 29), "stts describes 29 samples, stsz 30"),
    (TRACK + "/stts", set_entries("stts", 2**32 - 1), "stts describes 4294967295 samples, stsz 30"),
    (
        TRACK + "/stts",
        set_entries("stts", 2**32 - 1, skip=4),
        "stts says 4294967295 entries in a box of 16 bytes",
    ),
    (TRACK + "/ctts", set_entries("ctts", 7), "ctts describes 36 samples, stsz 30"),
    (TRACK + "/stss", set_entries("stss", 2), STSS),
    (TRACK + "/stss", set_entries("stss", 1, 1), STSS),
    (TRACK + "/stss", set_entries("stss", 1, 9, 17, 31), STSS),
    (TRACK + "/stss", set_entries("stss", 0, skip=4), STSS),
    (
        TRACK + "/stts",
        set_entries("stts", 30, 0),
        "two pictures have the same presentation time; which one a row belongs to is not known",
    ),
    (
        "moov/trak/edts/elst",
        with_edits((1000, 2048), (1000, 5120)),
        f"an edit list of 2 entries starting at 2048; {ONE_EDIT}",
    ),
    (
        "moov/trak/edts/elst",
        with_edits((1000, 2048), (300, -1)),
        f"an edit list of 2 entries starting at 2048; {ONE_EDIT}",
    ),
    (
        "moov/trak/edts/elst",
        with_edits((3000, -1)),
        f"an edit list of 1 entries starting at -1; {ONE_EDIT}",
    ),
    (
        "moov/trak/edts/elst",
        with_edits((0, 2048)),
        "an edit list that shows 0 ticks from 2048 on, where there is no picture; " + PICTURES,
    ),
    ("moov/trak/edts/elst", set_entries("elst", 2, skip=4), "malformed moov box ("),
    ("moov/trak/edts/elst", set_entries("elst", 2**31, skip=4), "malformed moov box ("),
    (
        "moov/mvhd",
        set_entries("mvhd", 0, skip=12),
        "an edit list, but no timescale of the movie (mvhd); expected ticks per second above 0",
    ),
    (
        "moov/mvhd",
        gone,
        "an edit list, but no timescale of the movie (mvhd); expected ticks per second above 0",
    ),
    ("moov/trak/edts/elst", lambda elst: box("elst", elst[:6]), "malformed moov box ("),
    ("moov/trak/mdia/hdlr", lambda _: box("hdlr", b""), "found 0 video tracks; expected one"),
    ("moov/trak/mdia/mdhd", lambda _: box("mdhd", b""), "malformed moov box ("),
]


@pytest.mark.parametrize(
    ("path", "change", "text"),
    REFUSED,
    ids=[f"{path.rsplit('/', 1)[-1]}-{text[:40]}" for path, _, text in REFUSED],
)
def test_boxes_that_contradict_each_other(
    path: str, change: Callable[[bytes], bytes], text: str
) -> None:
    found = refusal(edit_box(encoded(**PLAIN), path, change))
    assert found.startswith(text) if text.endswith("(") else found == text


@pytest.mark.parametrize(
    "first_chunks",
    [(2, 4, 6), (0, 4, 6), (1, 4, 7), (1, 4, 4), (1, 6, 4), (4, 1, 6)],
    ids=[
        "not from the first",
        "from 0",
        "after the last",
        "one twice",
        "backwards at the end",
        "backwards at the start",
    ],
)
def test_runs_of_chunks_that_are_out_of_order(first_chunks: tuple[int, int, int]) -> None:
    first, second, third = first_chunks
    stsc = struct.pack(">II9I", 0, 3, first, 4, 1, second, 7, 1, third, 4, 1)
    data = edit_box(
        with_uneven_chunks(encoded(**PLAIN)), f"{TRACK}/stsc", lambda _: box("stsc", stsc)
    )
    assert refusal(data) == "stsc does not describe the 6 chunks in order"


@pytest.mark.parametrize(
    "offset", [SIZE, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1], ids=str
)
def test_samples_behind_the_end_of_the_file(offset: int) -> None:
    # With each sample in a chunk of its own, nothing else gives away that offset + size overflowed.
    def change(co64: bytes) -> bytes:
        return box("co64", co64[:8] + struct.pack(">Q", offset) + co64[16:])

    data = with_co64(with_one_chunk_per_sample(encoded(**PLAIN)))
    text = refusal(edit_box(data, f"{TRACK}/co64", change))
    assert re.fullmatch(
        rf"picture 0 of 30 should lie at bytes \[.*\), but the file has {len(data)}; it is "
        rf"truncated",
        text,
    )


def test_samples_in_front_of_the_file() -> None:
    # A sample of nearly 4 GB in a chunk of two: the second begins past the end.
    data = encoded(**PLAIN)
    text = refusal(edit_box(data, f"{TRACK}/stsz", set_entries("stsz", 2**32 - 1, skip=12)))
    assert re.fullmatch(
        rf"picture 0 of 30 should lie at bytes \[\d+, \d+\), but the file has {SIZE}; it is "
        rf"truncated",
        text,
    )


def test_fragmented_files() -> None:
    assert refusal(encoded("h264", movflags="frag_keyframe")) == FRAGMENTED
    assert refusal(encoded("h264", movflags="frag_keyframe+empty_moov")) == FRAGMENTED


def test_two_video_tracks() -> None:
    assert refusal(encoded("h264", num_tracks=2)) == "found 2 video tracks; expected one"


def test_a_picture_presented_before_the_first_key_frame_cannot_be_decoded() -> None:
    # As a file looks that was cut out of one with open GOPs: the first key frame is presented after
    # the pictures that follow it.
    def change(ctts: bytes) -> bytes:
        count = struct.unpack_from(">I", ctts, 4)[0]
        runs = np.frombuffer(ctts, ">i4", count * 2, 8).reshape(-1, 2).copy()
        assert runs[0, 0] == 1
        runs[0, 1] += 2560
        return box("ctts", ctts[:8] + runs.tobytes())

    assert "key frame" in refusal(edit_box(encoded(**PLAIN), f"{TRACK}/ctts", change))


def test_key_frames_presented_out_of_order() -> None:
    # The second key frame is moved in front of the first.
    table = read_table(encoded(**FILES["h264"]))
    times = np.zeros((30, 2), ">i4")
    times[:, 0] = 1
    times[table.key_samples[1], 1] = -(table.pts[table.key_samples[1]] + 512)
    ctts = box("ctts", struct.pack(">II", 0, 30) + times.tobytes())
    text = refusal(
        edit_box(encoded(**FILES["h264"]), f"{TRACK}/stsz", lambda stsz: ctts + box("stsz", stsz))
    )
    assert (
        text == "key frames are not presented in the order in which they are stored; this is not "
        "supported"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            b"",
            "there is no moov box in its 0 bytes; the file is truncated, or its recording was "
            "never finished",
        ),
        (
            b"1234567",
            "there is no moov box in its 7 bytes; the file is truncated, or its recording was "
            "never finished",
        ),
        (b"<!DOCTYPE html><html></html>", "box '"),
        (bytes(100), "not an MP4 file: it starts with a box '\\x00\\x00\\x00\\x00'; expected ftyp"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid "
            b"sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n",
            "box '",
        ),
        (
            box("ftyp", b"") + struct.pack(">I4s", 0, b"mdat") + bytes(50),
            "there is no moov box in its 66 bytes",
        ),
        (
            box("ftyp", b"") + struct.pack(">I4sQ", 1, b"mdat", 15) + bytes(50),
            "box 'mdat' at byte 8 has 15 bytes, but 66 are left",
        ),
        (
            box("ftyp", b"") + struct.pack(">I4sQ", 1, b"mdat", 2**64 - 1) + bytes(50),
            "box 'mdat' at byte 8 has 18446744073709551615 bytes",
        ),
        (
            box("ftyp", b"") + struct.pack(">I4s", 7, b"mdat") + bytes(50),
            "box 'mdat' at byte 8 has 7 bytes, but 58 are left",
        ),
        (box("free", b"") * 1001, "no moov box among the first 1000 boxes"),
        (
            box("ftyp", b"") + box("sidx", b""),
            "a fragmented MP4 (box sidx at byte 8); only files with one moov box are read",
        ),
    ],
    ids=[
        "empty",
        "short",
        "html",
        "zeros",
        "git lfs",
        "mdat to the end",
        "large size",
        "huge size",
        "small size",
        "boxes",
        "sidx",
    ],
)
def test_files_that_are_none(data: bytes, text: str) -> None:
    assert refusal(data).startswith(text)


def test_a_huge_moov_is_refused_before_it_is_read() -> None:
    reader = read_sample_table(1 << 40, where="a.mp4")
    next(reader)
    head = box("ftyp", b"isom") + struct.pack(">I4sQ", 1, b"moov", 1 << 39)
    with pytest.raises(
        DatasetFormatError, match=f"a.mp4: moov has {1 << 39} bytes; at most {64 << 20} are read"
    ):
        reader.send(head + bytes(4096 - len(head)))


def feed(reader: SampleTableReader, data: bytes) -> None:
    """Sends the reader what it asks for; past the end of the data are zeros."""
    wanted = next(reader)
    while True:
        wanted = reader.send(data[wanted.start : wanted.stop].ljust(wanted.length, b"\0"))


def test_a_huge_number_of_samples_is_refused_before_anything_is_allocated() -> None:
    # Samples of constant size take no place in the box. 10 million pictures are 11 days at 10 fps.
    count = 10_000_000
    data = edit_box(encoded(**PLAIN), f"{TRACK}/stsz", set_entries("stsz", 1, count, skip=4))
    data = edit_box(data, f"{TRACK}/stts", set_entries("stts", count))
    data = edit_box(data, f"{TRACK}/ctts", set_entries("ctts", 1, count, 0, skip=4))
    data = edit_box(data, f"{TRACK}/stsc", set_entries("stsc", 1, 1, count, 1, skip=4))
    declared = 1 << 30  # bytes after moov that are never read
    tracemalloc.start()
    try:
        with pytest.raises(DatasetFormatError, match="stsz says 10000000 samples"):
            feed(read_sample_table(declared, where="a.mp4"), data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# --- parse, or the format error, never another one -----------------------------------------------


def structural_offsets(data: bytes) -> list[int]:
    """Returns the places at which a box begins, its payload begins or it ends."""
    found = set()
    containers = {"moov", "trak", "mdia", "minf", "stbl", "edts", "dinf", "udta"}

    def walk(start: int, stop: int) -> None:
        while start + 8 <= stop:
            size, kind = struct.unpack_from(">I4s", data, start)
            found.update((start, start + 4, start + 8, start + size))
            if kind.decode("latin-1") in containers:
                walk(start + 8, start + size)
            start += size

    walk(0, len(data))
    return sorted(found)


@pytest.mark.parametrize("name", ["h264 B pictures", "h264 B pictures moov first"])
def test_every_prefix_of_a_file_is_refused(name: str) -> None:
    data = encoded(**FILES[name])
    places = structural_offsets(data)
    assert len(places) > 60
    rng = np.random.default_rng(0)
    cuts = {place + delta for place in places for delta in (-1, 0, 1)} | set(
        rng.integers(0, len(data), 100).tolist()
    )
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(data)):
        with pytest.raises(DatasetFormatError, match=r"truncated|not an MP4 file"):
            read_table(data[:cut])


def test_texts_of_truncated_files() -> None:
    last, first = encoded(**PLAIN), encoded(**FILES["h264 B pictures moov first"])
    moov = last.index(b"moov") - 4
    assert refusal(last[:moov]).startswith(
        f"there is no moov box in its {moov} bytes; the file is truncated"
    )
    assert (
        refusal(last[:2000])
        == "box 'mdat' at byte 40 has 12974 bytes, but 1960 are left; the file is truncated or "
        "not an MP4 file"
        or (
            re.fullmatch(
                r"box 'mdat' at byte \d+ has \d+ bytes, but \d+ are left; the file is truncated "
                r"or not an MP4 file",
                refusal(last[:2000]),
            )
        )
    )
    assert re.fullmatch(
        r"box 'moov' at byte \d+ has \d+ bytes, but \d+ are left; the file is truncated or not an "
        r"MP4 file",
        refusal(last[:-1]),
    )
    table = read_table(first)
    # With moov first, the box mdat comes after the bytes that are read; the samples tell.
    cut = int(table.offsets[20]) + 1
    lies = f"[{table.offsets[20]}, {table.offsets[20] + table.sizes[20]})"
    assert (
        refusal(first[:cut])
        == f"picture 20 of 30 should lie at bytes {lies}, but the file has {cut}; it is truncated"
    )


@pytest.mark.parametrize(
    "name", ["h264 B pictures", "hevc open GOPs", "av1 moov first", "h264 and sound"]
)
def test_flipped_bytes_in_moov(name: str) -> None:
    data = encoded(**FILES[name])
    start = data.index(b"moov") - 4
    stop = start + struct.unpack_from(">I", data, start)[0]
    rng = np.random.default_rng(1)
    read, refused = 0, 0
    started = time.process_time()
    tracemalloc.start()
    try:
        for _ in range(600):
            damaged = bytearray(data)
            for place in rng.integers(start, stop, rng.integers(1, 4)):
                # Small and large values in turn: counts and sizes that nearly fit, and that do not
                # at all.
                damaged[place] = rng.choice(
                    [
                        0,
                        1,
                        0x7F,
                        0x80,
                        0xFF,
                        damaged[place] ^ (1 << rng.integers(8)),
                        rng.integers(256),
                    ]
                )
            try:
                table = read_table(bytes(damaged))
            except DatasetFormatError:
                refused += 1
                continue
            read += 1
            assert (
                len(table.offsets)
                == len(table.sizes)
                == len(table.pts)
                >= len(table.presentation)
                > 0
            )
            assert (
                (table.offsets >= 0)
                & (table.sizes >= 0)
                & (table.offsets + table.sizes <= len(data))
            ).all()
            assert table.key_samples[0] == 0
            assert (table.gop_of_frame(np.arange(table.num_frames)) >= 0).all()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert read > 50
    assert refused > 50
    assert time.process_time() - started < 20


def test_flipped_bytes_in_the_tables_of_samples() -> None:
    # Three values of every byte of every table: 2,400 files.
    data = encoded("h264", b_frames=2, num_frames=6, gop=3)
    start, stop = data.index(b"stbl") - 4, data.index(b"udta") - 4
    for place in range(start, stop):
        for value in (0, 0xFF, data[place] ^ 1):
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                table = read_table(damaged)
            except DatasetFormatError:
                continue
            assert (table.offsets + table.sizes <= len(data)).all()


def test_the_decoder_finds_as_many_frames() -> None:
    for options in FILES.values():
        assert len(decode_all(encoded(**options))) == read_table(encoded(**options)).num_frames
