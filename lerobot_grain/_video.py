"""Coded pictures -> frames: small MP4s through torchcodec, embedded images through Pillow. Nothing else imports either of them.

torchcodec releases the GIL while it decodes, so this is called from threads.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lerobot_grain._errors import DatasetFormatError, LeRobotGrainError
from lerobot_grain._plan import GopRead
from lerobot_grain._small_mp4 import TICKS_PER_FRAME, TIMESCALE, coded_samples, small_mp4

Frames = npt.NDArray[np.uint8]

# From about this size on, copying a frame costs more than taking the lock for it.
_LARGE_FRAME_PIXELS = 360 * 480
# Of a small MP4.
_FRAMES_PER_SECOND = TIMESCALE / TICKS_PER_FRAME


@functools.cache
def load_decoder() -> tuple[Any, Any]:
    """Returns `torchcodec.decoders` and `torchcodec.transforms`.

    They are imported here and not above because they bring PyTorch: two seconds and 200 MB that data sets without video need not pay.

    Raises:
      LeRobotGrainError: torchcodec, PyTorch or FFmpeg's shared libraries cannot be loaded.
    """
    try:
        from torchcodec import decoders, transforms
    except (ImportError, OSError, RuntimeError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LeRobotGrainError(
            f"the video decoder cannot be loaded ({message}); install FFmpeg's shared libraries (version 4 to 8) and a torchcodec that "
            "fits the installed torch, or leave the cameras out of features=[...]"
        ) from error
    return decoders, transforms


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
    units, wanted, num_pictures = [], [], 0
    for (read, frames), payload in zip(group, coded, strict=True):
        unit = read.file.unit(read.gop, frames)
        start = unit.byte_range.start - read.byte_range.start
        data = payload.payloads.result()[payload.slot][start : start + unit.byte_range.length]
        units.append((coded_samples(read.file.table, unit, data, where=_where(read)), unit.ranks))
        wanted += [int(rank) + num_pictures for rank in unit.wanted]
        num_pictures += len(unit.samples)
    first = group[0][0]
    where = _where(first) if len(group) == 1 else f"{_where(first)} and {len(group) - 1} more"
    return list(SmallVideo(small_mp4(first.file.table, units), image_size=image_size, where=where).frames(wanted))


def _where(read: GopRead) -> str:
    return f"{read.file.where}: episode {read.episode}, camera {read.file.camera}, GOP {read.gop}"


class SmallVideo:
    """Decodes frames of a small MP4, going on where it stopped. For one thread at a time.

    Args:
      mp4: as `small_mp4` makes it.
      image_size: (height, width) to resize to, bilinear and anti-aliased, or `None`.
      where: names what is decoded in messages.

    Raises:
      DatasetFormatError: the decoder does not know the video.
    """

    def __init__(self, mp4: bytes, *, image_size: tuple[int, int] | None, where: str) -> None:
        self._where = where
        decoders, transformations = load_decoder()
        transforms = None if image_size is None else [transformations.Resize(image_size)]
        try:
            # One FFmpeg thread: groups are decoded side by side, which costs no more and needs less memory than threads inside one.
            # "Approximate" is exact here, where every frame lies on its tick; it saves a scan of the file, and a seek back to its start
            # where frames that are not wanted are passed over (torchcodec 0.13 does that in its exact mode).
            self._decoder = decoders.VideoDecoder(
                mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate", transforms=transforms
            )
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from None
        self._is_large = (self._decoder.metadata.height or 0) * (self._decoder.metadata.width or 0) >= _LARGE_FRAME_PIXELS

    def frames(self, frames: Sequence[int]) -> list[Frames]:
        """Decodes `frames`, ascending numbers, each to uint8 `(height, width, 3)`, RGB, in memory of its own.

        Raises:
          DatasetFormatError: the pictures cannot be decoded.
        """
        try:
            if self._is_large:
                # One by one: each frame gets memory of its own without a copy.
                found = [self._decoder.get_frame_at(frame) for frame in frames]
                decoded = [frame.data.numpy() for frame in found]
                times = np.array([frame.pts_seconds for frame in found])
            else:
                # In one call, which takes Python's lock once and not for every frame, each time against a busy consumer.
                batch = self._decoder.get_frames_at(list(frames))
                decoded = [np.array(frame) for frame in batch.data.numpy()]
                times = batch.pts_seconds.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._refused(error) from None
        # A decoder that drops a damaged picture goes on with the next one.
        if (odd := np.flatnonzero(np.abs(times * _FRAMES_PER_SECOND - np.array(frames)) > 0.5)).size:
            raise DatasetFormatError(
                f"{self._where}: asked for picture {frames[odd[0]]}, the decoder gave {times[odd[0]] * _FRAMES_PER_SECOND:g}; "
                "the video is damaged"
            )
        return decoded

    def _refused(self, error: Exception) -> DatasetFormatError:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DatasetFormatError(
            f"{self._where}: the decoder refused the video ({message}); the file is damaged or uses a feature it does not know"
        )


class OpenGop:
    """One long GOP, decoded in pieces by a decoder that stays open between them.

    Args:
      read: the GOP.
      coded: its bytes; the first piece waits for them.
      image_size: (height, width) to resize to, or `None`.
    """

    def __init__(self, read: GopRead, coded: Coded, image_size: tuple[int, int] | None) -> None:
        self._read, self._coded, self._image_size = read, coded, image_size
        self._lock = threading.Lock()
        self._video: SmallVideo | None = None

    def frames(self, frames: list[int]) -> list[Any]:
        """Decodes ascending frames of the file; returns them, or an exception in the place of each. Going back begins the GOP anew."""
        first = self._read.file.frames_of(self._read.gop)
        try:
            with self._lock:
                if self._video is None:
                    self._video = self._open(first)
                return list(self._video.frames([frame - first.start for frame in frames]))
        except Exception as error:
            return [error] * len(frames)

    def _open(self, frames: range) -> SmallVideo:
        file = self._read.file
        where = _where(self._read)
        unit = file.unit(self._read.gop, frames)
        samples = coded_samples(file.table, unit, self._coded.payloads.result()[self._coded.slot], where=where)
        return SmallVideo(small_mp4(file.table, [(samples, unit.ranks)]), image_size=self._image_size, where=where)


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
