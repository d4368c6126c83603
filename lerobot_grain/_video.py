"""Coded pictures -> frames: small MP4s through torchcodec, embedded images through Pillow. Nothing else imports either of them.

torchcodec releases the GIL while it decodes, so this is called from threads; a call has no state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from lerobot_grain._errors import DatasetFormatError
from lerobot_grain._plan import GopRead
from lerobot_grain._small_mp4 import TICKS_PER_FRAME, TIMESCALE, coded_samples, small_mp4

Frames = npt.NDArray[np.uint8]

# From about this size on, copying a frame costs more than taking the lock for it.
_LARGE_FRAME_PIXELS = 360 * 480
# Of a small MP4.
_FRAMES_PER_SECOND = TIMESCALE / TICKS_PER_FRAME


@dataclass(eq=False, slots=True)
class Coded:
    """Coded bytes of a GOP: the element `slot` of what `payloads` will give."""

    payloads: Future[list[bytes]]
    slot: int


def decode_group(group: list[tuple[GopRead, list[int]]], coded: list[Coded], image_size: tuple[int, int] | None) -> list[Any]:
    """Decodes GOPs that share a sample description; waits for their bytes.

    Args:
      group: (GOP, its wanted frames of the file, ascending).
      coded: their bytes.
      image_size: (height, width) to resize to, or `None`.

    Returns:
      The wanted frames of all GOPs, one after the other: uint8 `(height, width, 3)`, or an exception in its place.
    """
    try:
        return _decode_together(group, coded, image_size)
    except Exception as error:
        if len(group) == 1:
            return [error] * len(group[0][1])
    # One GOP of the group is bad: alone, each gives its frames or its own error.
    return [frame for item, payload in zip(group, coded, strict=True) for frame in decode_group([item], [payload], image_size)]


def _decode_together(group: list[tuple[GopRead, list[int]]], coded: list[Coded], image_size: tuple[int, int] | None) -> list[Any]:
    units, wanted, num_pictures, places = [], [], 0, []
    for (read, frames), payload in zip(group, coded, strict=True):
        where = f"{read.file.where}: episode {read.episode}, camera {read.file.camera}, GOP {read.gop}"
        unit = read.file.unit(read.gop, frames)
        start = unit.byte_range.start - read.byte_range.start
        data = payload.payloads.result()[payload.slot][start : start + unit.byte_range.length]
        units.append((coded_samples(read.file.table, unit, data, where=where), unit.ranks))
        wanted += [int(rank) + num_pictures for rank in unit.wanted]
        num_pictures += len(unit.samples)
        places.append(where)
    table = group[0][0].file.table
    where = places[0] if len(group) == 1 else f"{places[0]} and {len(group) - 1} more"
    return decode_frames(small_mp4(table, units), wanted, num_frames=num_pictures, image_size=image_size, where=where)


def decode_frames(mp4: bytes, frames: Sequence[int], *, num_frames: int, image_size: tuple[int, int] | None, where: str) -> list[Frames]:
    """Decodes frames of a small MP4.

    Args:
      mp4: as `small_mp4` makes it.
      frames: ascending numbers of the wanted frames.
      num_frames: pictures in the file.
      image_size: (height, width) to resize to, bilinear and anti-aliased, or `None`.
      where: names what is decoded in messages.

    Returns:
      For each, uint8 `(height, width, 3)`, RGB, in memory of its own.

    Raises:
      DatasetFormatError: the pictures cannot be decoded.
    """
    transforms = None if image_size is None else [Resize(image_size)]
    try:
        # One FFmpeg thread: groups are decoded side by side, which costs no more and needs less memory than threads inside one.
        # "Approximate" is exact here, where every frame lies on its tick; it saves a scan of the file, and a seek back to its start where
        # frames that are not wanted are passed over (torchcodec 0.13 does that in its exact mode).
        decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate", transforms=transforms)
        if (decoder.metadata.height or 0) * (decoder.metadata.width or 0) >= _LARGE_FRAME_PIXELS:
            # One by one: each frame gets memory of its own without a copy, and the decoder runs on where it is.
            found = [decoder.get_frame_at(frame) for frame in frames]
            decoded = [frame.data.numpy() for frame in found]
            times = np.array([frame.pts_seconds for frame in found])
        else:
            # In one call, which takes Python's lock once and not for every frame, each time against a busy consumer.
            batch = decoder.get_frames_at(list(frames))
            decoded = [np.array(frame) for frame in batch.data.numpy()]
            times = batch.pts_seconds.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetFormatError(
            f"{where}: the decoder refused the video ({message}); the file is damaged or uses a feature it does not know"
        ) from None
    # A decoder that drops a damaged picture goes on with the next one.
    if (odd := np.flatnonzero(np.abs(times * _FRAMES_PER_SECOND - np.array(frames)) > 0.5)).size:
        raise DatasetFormatError(
            f"{where}: asked for picture {frames[odd[0]]} of {num_frames}, the decoder gave {times[odd[0]] * _FRAMES_PER_SECOND:g}; "
            "the video is damaged"
        )
    return decoded


def decode_image(encoded: bytes, *, image_size: tuple[int, int] | None, where: str) -> Frames:
    """Decodes an embedded PNG, JPEG or TIFF picture to uint8 `(height, width, 3)`, RGB, resized to `image_size` (height, width) if given.

    Raises:
      DatasetFormatError: not a picture, or not one of 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "TIFF")) as image:
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise DatasetFormatError(f"{where}: a picture of mode {image.mode}; expected 8-bit RGB or grey")
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetFormatError(f"{where}: not a picture that can be decoded ({error})") from None
    if image_size is not None and image_size != (rgb.height, rgb.width):
        rgb = rgb.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.array(rgb)
