"""Decodes embedded images through Pillow, color and depth, and resizes depth.

No other module of the reading folders imports Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, features

from lerobot_grain._base.errors import DatasetFormatError
from lerobot_grain._base.versions import installed


def decode_image(
    encoded: bytes, *, image_size: tuple[int, int] | None, where: str
) -> npt.NDArray[np.uint8]:
    """Decodes an embedded PNG, JPEG or TIFF image to uint8 `(height, width, 3)`, RGB, resized to
    `image_size` (height, width) if given.

    It is turned and mirrored first, where its EXIF data says how it is to be shown.

    Raises:
      DatasetFormatError: not an image, or not one of 8 bits a channel.
    """
    rgb = _opened(encoded, ("RGB", "RGBA", "L", "P"), "8-bit RGB or gray", where).convert("RGB")
    if image_size is not None and image_size != (rgb.height, rgb.width):
        rgb = rgb.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.array(rgb)


def decode_depth_image(
    encoded: bytes, *, image_size: tuple[int, int] | None, where: str
) -> npt.NDArray[np.float32]:
    """Decodes an embedded image of one channel of 16 or 32 bits to float32 `(height, width, 1)`,
    as `decode_image` does.

    Resized by taking the nearest pixel.

    Raises:
      DatasetFormatError: not an image, or not one of depth.
    """
    picture = _opened(
        encoded, ("I;16", "I;16L", "I;16B", "I", "F"), "one channel of 16 or 32 bits", where
    )
    return nearest(np.array(picture), image_size)[..., None].astype(np.float32)


def _opened(encoded: bytes, modes: Sequence[str], expected: str, where: str) -> Image.Image:
    """Returns an image, loaded, and turned as its EXIF data says."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "TIFF")) as image:
            if image.mode not in modes:
                raise DatasetFormatError(
                    f"{where}: an image of mode {image.mode}; expected {expected}"
                )
            image.load()
            # PNG may have EXIF data after its pixels. A TIFF image was turned by Pillow, which
            # has taken the tag out.
            if image.getexif().get(ExifTags.Base.Orientation) is None:
                return image
            # As `datasets.Image` does it, and so lerobot.
            return ImageOps.exif_transpose(image)
    except (DatasetFormatError, MemoryError):
        raise
    except Exception as error:
        # of damaged images mostly OSError; of malformed EXIF data also errors of struct and of
        # dicts
        raise DatasetFormatError(
            f"{where}: not an image that can be decoded ({str(error) or type(error).__name__})"
        ) from None


def image_decoder_version() -> str:
    """Returns the versions of everything that decides the pixels of an embedded image."""
    # A TIFF file may hold pictures in the format of each of the others, which libtiff decodes.
    names = ("jpg", "libjpeg_turbo", "libtiff", "webp", "zlib", "zlib_ng")
    libraries = {name: features.version(name) for name in names}
    return f"{installed('pillow', 'numpy')}, {libraries}"


def nearest(pixels: npt.NDArray[Any], image_size: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Resizes `(height, width)` to `image_size`, if given, by taking the pixel nearest to each
    center.

    For depth: a mean of near and far is a depth where nothing is.
    """
    if image_size is None or image_size == pixels.shape:
        return pixels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(image_size, pixels.shape, strict=True)
    )
    resized: npt.NDArray[Any] = pixels[rows[:, None], columns]
    return resized
