"""Embedded pictures that say by EXIF how they are to be shown: turned and mirrored, as
`datasets.Image`, and so lerobot, gives them.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageOps

import lerobot_grain as lg
from lerobot_grain._video.images import decode_depth_image, decode_image
from lerobot_grain.testing import write_dataset

Pixels = npt.NDArray[Any]
HEIGHT, WIDTH = 16, 24
# EXIF 2.32, tag 0x0112, as arrays of (row, column): where row 0 and column 0 of what is stored are
# to be shown.
ORIENTATIONS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}
MODES = {"I;16": np.uint16, "I": np.int32, "F": np.float32}


def stored_pixels(mode: str) -> Pixels:
    """Returns pixels of which no two rows or columns are alike, smooth for JPEG."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    if mode in MODES:
        return (x * 100 + y * 2500 + 1).astype(MODES[mode])
    gray = (x * 4 + y * 6).astype(np.uint8)
    return {
        "RGB": np.stack((gray, 255 - gray, (y * 15).astype(np.uint8)), axis=-1),
        "RGBA": np.stack((gray, 255 - gray, gray // 2, np.full_like(gray, 255)), axis=-1),
        "L": gray,
    }[mode]


def encoded(mode: str, kind: str, orientation: int | None) -> bytes:
    out = io.BytesIO()
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    Image.fromarray(stored_pixels(mode)).save(out, kind, **options)
    return out.getvalue()


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def as_datasets_does(encoded: bytes) -> Image.Image:
    """What `datasets.Image.decode_example` does."""
    image = Image.open(io.BytesIO(encoded))
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        return ImageOps.exif_transpose(image)
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "TIFF"),
        ("RGBA", "PNG"),
        ("L", "JPEG"),
        ("L", "PNG"),
    ],
)
def test_pictures_are_turned(mode: str, kind: str, orientation: int) -> None:
    picture = encoded(mode, kind, orientation)
    found = decode_image(picture, image_size=None, where="a")
    stored = np.asarray(Image.fromarray(stored_pixels(mode)).convert("RGB")).astype(int)
    expected = ORIENTATIONS[orientation](stored)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (4 if kind == "JPEG" else 0)
    assert np.array_equal(found, np.asarray(as_datasets_does(picture).convert("RGB")))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF")]
)
def test_depth_pictures_are_turned(mode: str, kind: str, orientation: int) -> None:
    picture = encoded(mode, kind, orientation)
    found = decode_depth_image(picture, image_size=None, where="a")
    assert np.array_equal(
        found[..., 0], ORIENTATIONS[orientation](stored_pixels(mode)).astype(np.float32)
    )
    assert np.array_equal(found[..., 0], np.asarray(as_datasets_does(picture)))


@pytest.mark.parametrize("orientation", [None, 0, 9, 65535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_orientation_that_is_none_changes_nothing(kind: str, orientation: int | None) -> None:
    found = decode_image(encoded("RGB", kind, orientation), image_size=None, where="a").astype(int)
    assert np.abs(found - stored_pixels("RGB")).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_data_behind_the_pixels(mode: str) -> None:
    *others, end = [chunk for chunk in chunks_of(encoded(mode, "PNG", 6)) if chunk[0] != b"eXIf"]
    (exif,) = [chunk for chunk in chunks_of(encoded(mode, "PNG", 6)) if chunk[0] == b"eXIf"]
    decode = decode_image if mode == "RGB" else decode_depth_image
    for chunks in ([*others, exif, end], [others[0], exif, *others[1:], end]):
        found = decode(png_of(chunks), image_size=None, where="a")
        assert np.array_equal(found.squeeze(), ORIENTATIONS[6](stored_pixels(mode)))


def test_they_are_turned_before_they_are_resized() -> None:
    found = decode_image(encoded("RGB", "PNG", 8), image_size=(12, 8), where="a")
    turned = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[8](stored_pixels("RGB"))))
    assert np.array_equal(found, np.asarray(turned.resize((8, 12), Image.Resampling.BILINEAR)))
    depth = decode_depth_image(encoded("I;16", "PNG", 8), image_size=(12, 8), where="a")
    assert depth.shape == (12, 8, 1)


# --- malformed EXIF data -------------------------------------------------------------------------


def with_exif(kind: str, exif: bytes) -> bytes:
    """Returns an image with these bytes as its EXIF data."""
    if kind == "PNG":
        first, *others = chunks_of(encoded("RGB", "PNG", None))
        return png_of([first, (b"eXIf", exif), *others])
    jpeg = encoded("RGB", "JPEG", None)
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + jpeg[2:]


def tiff_header(tag_type: int, count: int, value: bytes) -> bytes:
    """EXIF data of the one entry that tells the orientation."""
    return (
        b"II*\0"
        + struct.pack("<IH", 8, 1)
        + struct.pack("<HHI", 0x0112, tag_type, count)
        + value
        + struct.pack("<I", 0)
    )


MALFORMED = {
    "no TIFF header": b"garbage and more of it",
    "another byte order": b"MM*\0" + tiff_header(3, 1, struct.pack("<HH", 6, 0))[4:],
    "cut": tiff_header(3, 1, struct.pack("<HH", 6, 0))[:12],
    "a directory far away": b"II*\0" + struct.pack("<I", 1 << 30),
    "a value far away": tiff_header(3, 1000, struct.pack("<I", 1 << 30)),
    "a type that is none": tiff_header(99, 1, struct.pack("<I", 6)),
    "a text": tiff_header(2, 4, b"six\0"),
    "two values": tiff_header(3, 2, struct.pack("<HH", 6, 6)),
    "a fraction of nothing": tiff_header(5, 1, struct.pack("<I", 26)) + struct.pack("<II", 6, 0),
    "nothing": b"",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_exif_data(name: str, kind: str) -> None:
    """The format error, or what Pillow, and so lerobot, makes of it."""
    picture = with_exif(kind, MALFORMED[name])
    try:
        expected = np.asarray(as_datasets_does(picture))
    except Exception:
        with pytest.raises(
            lg.DatasetFormatError, match=r"^data, episode 3: not an image that can be decoded \("
        ):
            decode_image(picture, image_size=None, where="data, episode 3")
    else:
        assert np.array_equal(
            decode_image(picture, image_size=None, where="data, episode 3"), expected
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_any_change_of_a_picture_is_read_or_refused(kind: str) -> None:
    random = Random(kind)
    picture = encoded("RGB", kind, 6)
    start = (
        picture.find(b"II*\0")
        if kind == "TIFF"
        else picture.find(b"Exif" if kind == "JPEG" else b"eXIf")
    )
    assert start >= 0
    refused = 0
    for _ in range(300):
        changed = bytearray(picture)
        for _ in range(random.randint(1, 3)):
            place = start + random.randrange(min(60, len(picture) - start))
            changed[place] = random.randrange(256)
        data = bytes(changed)
        if kind == "PNG":
            # Checksums of chunks are those of the changed data.
            head, length = data[: start - 4], struct.unpack(">I", data[start - 4 : start])[0]
            if length > 1000:
                continue
            body = data[start : start + 4 + length]
            data = (
                head
                + data[start - 4 : start]
                + body
                + struct.pack(">I", zlib.crc32(body))
                + data[start + 8 + length :]
            )
        try:
            decode_image(data, image_size=None, where="a")
        except lg.DatasetFormatError:
            refused += 1
    assert refused < 300


# --- in a dataset --------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An episode of eight rows, each with another orientation that keeps the size, or swaps its
    sides; and one of depth.
    """
    root = write_dataset(
        tmp_path / "data", episode_lengths=[4, 4], fps=10, cameras=(), statistics=False
    ).directory
    path = root / "data/chunk-000/file-000.parquet"
    pictures = {
        "flat": [encoded("RGB", "PNG", orientation) for orientation in (1, 2, 3, 4) * 2],
        "tall": [encoded("RGB", "JPEG", orientation) for orientation in (5, 6, 7, 8) * 2],
        "deep": [encoded("I;16", "TIFF", orientation) for orientation in (5, 6, 7, 8) * 2],
    }
    table = pq.read_table(path)
    for key, values in pictures.items():
        table = table.append_column(
            key, pa.array([{"bytes": value, "path": None} for value in values])
        )
    pq.write_table(table, path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["flat"] = {"dtype": "image", "shape": [HEIGHT, WIDTH, 3], "names": None}
    info["features"]["tall"] = {"dtype": "image", "shape": [WIDTH, HEIGHT, 3], "names": None}
    info["features"]["deep"] = {
        "dtype": "image",
        "shape": [WIDTH, HEIGHT, 1],
        "names": None,
        "info": {"is_depth_map": True},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_pictures_of_a_dataset(directory: Path) -> None:
    (batch,) = lg.LeRobotIterDataset(
        directory, shuffle=None, num_epochs=1, delta_timestamps={"tall": [0.0, 0.1]}
    ).batch(8)
    assert batch["tall"].shape == (8, 2, WIDTH, HEIGHT, 3)
    for row in range(8):
        assert np.array_equal(batch["flat"][row], ORIENTATIONS[1 + row % 4](stored_pixels("RGB")))
        assert np.array_equal(
            batch["deep"][row, ..., 0], ORIENTATIONS[5 + row % 4](stored_pixels("I;16"))
        )
        expected = ORIENTATIONS[5 + row % 4](stored_pixels("RGB")).astype(int)
        assert np.abs(batch["tall"][row, 0] - expected).max() <= 4


def test_the_declared_shape_is_that_of_the_turned_picture(directory: Path) -> None:
    info = json.loads((directory / "meta/info.json").read_text())
    info["features"]["tall"]["shape"] = [HEIGHT, WIDTH, 3]
    (directory / "meta/info.json").write_text(json.dumps(info))
    dataset = lg.LeRobotIterDataset(directory, features=["tall"], shuffle=None, num_epochs=1)
    iterator = iter(dataset)
    with pytest.raises(
        lg.DatasetFormatError,
        match=r"an image has shape \(24, 16, 3\); info.json declares \(16, 24, 3\)",
    ):
        next(iterator)
    iterator.close()
    resized = list(
        lg.LeRobotIterDataset(
            directory, features=["tall"], image_size=(12, 8), shuffle=None, num_epochs=1
        )
    )
    assert {example["tall"].shape for example in resized} == {(12, 8, 3)}
