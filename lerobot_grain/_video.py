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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lerobot_grain._byte_ranges import ByteRange
from lerobot_grain._errors import DatasetFormatError, LeRobotGrainError
from lerobot_grain._plan import WantedGop
from lerobot_grain._small_mp4 import TICKS_PER_FRAME, TIMESCALE, coded_unit, small_mp4

Frames = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

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


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Coded bytes of a file from byte `start` on, once they are there."""

    payload: Future[bytes]
    start: int

    def bytes_of(self, wanted: ByteRange) -> memoryview:
        """Returns the bytes of a range of the file; waits for them."""
        return memoryview(self.payload.result())[wanted.start - self.start : wanted.stop - self.start]


class Piece(NamedTuple):
    """A part of a decode task: what is wanted of a GOP, its coded bytes, and int64 `(n,)`, the slots that its frames are written to."""

    wanted: WantedGop
    coded: Coded
    slots: Integers


def decode_pieces(pieces: Sequence[Piece], into: Frames, image_size: tuple[int, int] | None) -> dict[int, Exception]:
    """Decodes GOPs that share a sample description; waits for their bytes.

    Args:
      pieces: what to decode.
      into: uint8 `(slots, height, width, 3)`; the wanted frames are written there.
      image_size: (height, width) to resize to, or `None`.

    Returns:
      Slot -> what is wrong with its frame; empty if all is well.
    """
    try:
        _decode_together(pieces, into, image_size)
    except Exception as error:
        if len(pieces) == 1:
            return dict.fromkeys(pieces[0].slots.tolist(), error)
        # One GOP of the group is bad: alone, each gives its frames or its own error.
        problems = {}
        for piece in pieces:
            problems.update(decode_pieces([piece], into, image_size))
        return problems
    return {}


def _decode_together(pieces: Sequence[Piece], into: Frames, image_size: tuple[int, int] | None) -> None:
    units, wanted, num_pictures = [], [], 0
    for gop, coded, _ in pieces:
        unit = gop.file.unit(gop.gop, gop.frames)
        units.append(coded_unit(gop.file.table, unit, coded.bytes_of(unit.byte_range), where=gop))
        wanted.append(unit.wanted + num_pictures)
        num_pictures += len(unit.samples)
    first = pieces[0].wanted
    where = f"{first}" if len(pieces) == 1 else f"{first} and {len(pieces) - 1} more"
    video = SmallVideo(small_mp4(first.file.table, units), image_size=image_size, where=where)
    video.read(np.concatenate(wanted), into, np.concatenate([piece.slots for piece in pieces]))


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

    def read(self, numbers: Integers, into: Frames, slots: Integers) -> None:
        """Decodes frames, RGB, into memory.

        Args:
          numbers: int64 `(n,)`, ascending: the frames.
          into: uint8 `(slots, height, width, 3)`.
          slots: int64 `(n,)`: where each is written to.

        Raises:
          DatasetFormatError: the pictures cannot be decoded, or have another size.
        """
        try:
            if self._is_large:
                # One by one: the decoder's own memory for a frame stays in the processor's cache.
                times = np.array(
                    [self._read_frame(number, into, slot) for number, slot in zip(numbers.tolist(), slots.tolist(), strict=True)]
                )
            else:
                # In one call, which takes Python's lock once and not for every frame, each time against a busy consumer.
                batch = self._decoder.get_frames_at(numbers.tolist())
                self._check_shape(batch.data.shape[1:], into)
                into[slots] = batch.data.numpy()
                times = batch.pts_seconds.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._refused(error) from None
        # A decoder that drops a damaged picture goes on with the next one.
        if (odd := np.flatnonzero(np.abs(times * _FRAMES_PER_SECOND - numbers) > 0.5)).size:
            raise DatasetFormatError(
                f"{self._where}: asked for picture {numbers[odd[0]]}, the decoder gave {times[odd[0]] * _FRAMES_PER_SECOND:g}; "
                "the video is damaged"
            )

    def _read_frame(self, number: int, into: Frames, slot: int) -> float:
        frame = self._decoder.get_frame_at(number)
        self._check_shape(frame.data.shape, into)
        into[slot] = frame.data.numpy()
        return float(frame.pts_seconds)

    def _check_shape(self, shape: Sequence[int], into: Frames) -> None:
        if tuple(shape) != into.shape[1:]:
            raise DatasetFormatError(f"{self._where}: a frame has shape {tuple(shape)}; info.json declares {into.shape[1:]}")

    def _refused(self, error: Exception) -> DatasetFormatError:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DatasetFormatError(
            f"{self._where}: the decoder refused the video ({message}); the file is damaged or uses a feature it does not know"
        )


class OpenGop:
    """One long GOP, decoded in pieces by a decoder that stays open between them.

    Args:
      coded: its bytes; the first piece waits for them.
      image_size: (height, width) to resize to, or `None`.
    """

    def __init__(self, coded: Coded, image_size: tuple[int, int] | None) -> None:
        self._coded, self._image_size = coded, image_size
        self._lock = threading.Lock()
        self._video: SmallVideo | None = None

    def decode(self, wanted: WantedGop, into: Frames, slots: Integers) -> dict[int, Exception]:
        """Decodes frames of the GOP, as `decode_pieces` does. Going back begins the GOP anew."""
        first = wanted.file.frames_of(wanted.gop)
        try:
            with self._lock:
                if self._video is None:
                    self._video = self._open(wanted, first)
                self._video.read(wanted.frames - first.start, into, slots)
        except Exception as error:
            return dict.fromkeys(slots.tolist(), error)
        return {}

    def _open(self, wanted: WantedGop, frames: range) -> SmallVideo:
        file = wanted.file
        unit = file.unit(wanted.gop, frames)
        coded = coded_unit(file.table, unit, self._coded.bytes_of(unit.byte_range), where=wanted)
        return SmallVideo(small_mp4(file.table, [coded]), image_size=self._image_size, where=f"{wanted}")


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
