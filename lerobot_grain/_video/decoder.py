"""Coded pictures -> frames: small MP4s through torchcodec, embedded images through Pillow. Nothing else imports either of them.

torchcodec releases the GIL while it decodes, so this is called from threads. It gives 8 bits a channel; the decoder of depth video is in
`_video/depth`.
"""

from __future__ import annotations

import abc
import functools
import io
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.byte_ranges import ByteRange
from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError
from lerobot_grain._base.versions import (
    decoder_transforms,
    decoder_turns_frames,
    installed,
    resized_frames,
    triton_hidden_from_torch,
    turned_frames,
)
from lerobot_grain._video.small_mp4 import FRAMES_PER_SECOND, Unit, coded_unit, small_mp4, stitchable
from lerobot_grain._video.video_file import WantedGop

# uint8 RGB, or float32 depth.
Frames = npt.NDArray[Any]

# From about this size on, copying a frame costs more than taking the lock for it.
_LARGE_FRAME_PIXELS = 360 * 480


@functools.cache
def load_decoder() -> tuple[Any, Any]:
    """Returns `torchcodec.decoders` and `torchcodec.transforms`; None instead of these where torchcodec is older than they are.

    They are imported here and not above because they bring PyTorch: two seconds and 200 MB that data sets without video need not pay.

    Raises:
      LeRobotGrainError: torchcodec, PyTorch or FFmpeg's shared libraries cannot be loaded.
    """
    try:
        with triton_hidden_from_torch():
            from torchcodec import decoders

            return decoders, decoder_transforms()
    except (ImportError, OSError, RuntimeError) as error:
        raise LeRobotGrainError(
            f"the video decoder cannot be loaded ({_reason(error)}); install FFmpeg's shared libraries (version 4 to 8) and a "
            f"torchcodec that fits torch, or leave the cameras out of features=[...]; installed: {installed('torch', 'torchcodec')}"
        ) from error


def _reason(error: Exception) -> str:
    """Returns why a library cannot be loaded. torchcodec's own first line does not say it: it has a traceback for each FFmpeg it tried."""
    missing = dict.fromkeys(re.findall(r"(\S+): cannot open shared object file", str(error)))
    if others := [name for name in missing if not name.startswith(("libav", "libsw"))]:
        return f"{', '.join(others)} cannot be found"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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


class SmallVideo(abc.ABC):
    """Decodes frames of a small MP4, going on where it stopped. For one thread at a time.

    Args:
      where: names what is decoded in messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def read(self, numbers: Integers, into: Frames, slots: Integers) -> None:
        """Decodes frames into memory.

        Args:
          numbers: int64 `(n,)`, ascending: the frames.
          into: `(slots, height, width, channels)`.
          slots: int64 `(n,)`: where each is written to.

        Raises:
          DatasetFormatError: the pictures cannot be decoded, or are not what info.json declares.
        """
        found = self._decode(numbers, into, slots)
        # A decoder that drops a damaged picture goes on with the next one.
        if (odd := np.flatnonzero(np.abs(found - numbers) > 0.5)).size:
            raise DatasetFormatError(
                f"{self.where}: asked for picture {numbers[odd[0]]}, the decoder gave {found[odd[0]]:g}; the video is damaged"
            )

    @abc.abstractmethod
    def _decode(self, numbers: Integers, into: Frames, slots: Integers) -> npt.NDArray[np.floating[Any]]:
        """Does what `read` says; returns `(n,)`: the presentation times of the frames that the decoder gave, in frames of the small MP4."""

    def check_shape(self, shape: Sequence[int], into: Frames) -> None:
        """Checks the shape of a decoded frame.

        Raises:
          DatasetFormatError: it is not the one that is expected.
        """
        if tuple(shape) != into.shape[1:]:
            raise DatasetFormatError(f"{self.where}: a frame has shape {tuple(shape)}; info.json declares {into.shape[1:]}")

    def refused(self, error: Exception) -> DatasetFormatError:
        """Returns what to raise for an error of the decoder."""
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DatasetFormatError(
            f"{self.where}: the decoder refused the video ({message}); the file is damaged or uses a feature it does not know"
        )


# Opens the bytes of a small MP4, with a text that names it and the degrees clockwise that it turns frames by.
OpenVideo = Callable[[bytes, str, int], SmallVideo]


def decode_pieces(pieces: Sequence[Piece], into: Frames, open_video: OpenVideo) -> dict[int, Exception]:
    """Decodes GOPs that share a sample description; waits for their bytes.

    Args:
      pieces: what to decode.
      into: `(slots, height, width, channels)`; the wanted frames are written there.
      open_video: the decoder of the camera.

    Returns:
      Slot -> what is wrong with its frame; empty if all is well.
    """
    try:
        _decode_together(pieces, into, open_video)
    except Exception as error:
        if len(pieces) == 1:
            return dict.fromkeys(pieces[0].slots.tolist(), error)
        # One GOP of the group is bad: alone, each gives its frames or its own error.
        problems = {}
        for piece in pieces:
            problems.update(decode_pieces([piece], into, open_video))
        return problems
    return {}


def _decode_together(pieces: Sequence[Piece], into: Frames, open_video: OpenVideo) -> None:
    units, coded = [], []
    for piece in pieces:
        file = piece.wanted.file
        unit = file.unit(piece.wanted.gop, piece.wanted.frames)
        units.append(unit)
        coded.append(coded_unit(file.table, unit, piece.coded.bytes_of(unit.byte_range), where=piece.wanted))
    for places in stitchable(coded):
        before = np.cumsum([0, *(len(units[place].samples) for place in places)])
        first = pieces[places[0]].wanted
        where = f"{first}" if len(places) == 1 else f"{first} and {len(places) - 1} more"
        track = first.file.table.format
        video = open_video(small_mp4(track, [coded[place] for place in places]), where, track.rotation)
        numbers = np.concatenate([units[place].wanted + count for place, count in zip(places, before[:-1].tolist(), strict=True)])
        video.read(numbers, into, np.concatenate([pieces[place].slots for place in places]))


class RgbVideo(SmallVideo):
    """Gives uint8 `(height, width, 3)`.

    Args:
      mp4: as `small_mp4` makes it.
      where: names what is decoded in messages.
      rotation: degrees clockwise that the MP4 turns frames by: 0, 90, 180 or 270.
      image_size: (height, width) to resize to, bilinear and anti-aliased, or `None`.

    Raises:
      DatasetFormatError: the decoder does not know the video.
    """

    def __init__(self, mp4: bytes, where: str, rotation: int = 0, *, image_size: tuple[int, int] | None) -> None:
        super().__init__(where)
        decoders, transformations = load_decoder()
        # What the decoder cannot do yet, in this order.
        self._after: list[Callable[[Any], Any]] = []
        resized_first = image_size
        if rotation and not decoder_turns_frames(decoders):
            self._after.append(functools.partial(turned_frames, degrees=rotation))
            resized_first = image_size[::-1] if image_size is not None and rotation != 180 else image_size
        transforms = {}
        if image_size is not None and transformations is not None:
            transforms = {"transforms": [transformations.Resize(resized_first)]}
        elif image_size is not None:
            self._after.append(functools.partial(resized_frames, image_size=image_size))
        try:
            # One FFmpeg thread: groups are decoded side by side, which costs no more and needs less memory than threads inside one.
            # "Approximate" is exact here, where every frame lies on its tick; it saves a scan of the file, and a seek back to its start
            # where frames that are not wanted are passed over (torchcodec 0.13 does that in its exact mode).
            self._decoder = decoders.VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate", **transforms)
        except (RuntimeError, ValueError) as error:
            raise self.refused(error) from None
        self._is_large = (self._decoder.metadata.height or 0) * (self._decoder.metadata.width or 0) >= _LARGE_FRAME_PIXELS

    def _decode(self, numbers: Integers, into: Frames, slots: Integers) -> npt.NDArray[np.floating[Any]]:
        try:
            if self._is_large:
                # One by one: the decoder's own memory for a frame stays in the processor's cache.
                times = np.array(
                    [self._decode_frame(number, into, slot) for number, slot in zip(numbers.tolist(), slots.tolist(), strict=True)]
                )
            else:
                # In one call, which takes Python's lock once and not for every frame, each time against a busy consumer.
                batch = self._decoder.get_frames_at(numbers.tolist())
                frames = self._finished(batch.data)
                self.check_shape(frames.shape[1:], into)
                into[slots] = frames.numpy()
                times = batch.pts_seconds.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.refused(error) from None
        return times * FRAMES_PER_SECOND

    def _decode_frame(self, number: int, into: Frames, slot: int) -> float:
        frame = self._decoder.get_frame_at(number)
        pixels = self._finished(frame.data[None])[0] if self._after else frame.data
        self.check_shape(pixels.shape, into)
        into[slot] = pixels.numpy()
        return float(frame.pts_seconds)

    def _finished(self, frames: Any) -> Any:
        for step in self._after:
            frames = step(frames)
        return frames


class OpenGop:
    """One long GOP, decoded in pieces by a decoder that stays open between them.

    Args:
      coded: its bytes; the first piece waits for them.
      open_video: the decoder of the camera.
    """

    def __init__(self, coded: Coded, open_video: OpenVideo) -> None:
        self._coded, self._open_video = coded, open_video
        self._lock = threading.Lock()
        self._video: SmallVideo | None = None
        self._unit: Unit | None = None  # all frames of the GOP, of which the small MP4 is made

    def decode(self, wanted: WantedGop, into: Frames, slots: Integers) -> dict[int, Exception]:
        """Decodes frames of the GOP, as `decode_pieces` does. Going back begins the GOP anew."""
        first = wanted.file.frames_of(wanted.gop)
        try:
            with self._lock:
                if self._video is None:
                    self._unit = wanted.file.unit(wanted.gop, first)
                    self._video = self._open(wanted, self._unit)
                assert self._unit is not None
                self._video.read(self._unit.wanted[wanted.frames - first.start], into, slots)
        except Exception as error:
            return dict.fromkeys(slots.tolist(), error)
        return {}

    def _open(self, wanted: WantedGop, unit: Unit) -> SmallVideo:
        file = wanted.file
        coded = coded_unit(file.table, unit, self._coded.bytes_of(unit.byte_range), where=wanted)
        return self._open_video(small_mp4(file.table.format, [coded]), f"{wanted}", file.table.format.rotation)


def decode_image(encoded: bytes, *, image_size: tuple[int, int] | None, where: str) -> npt.NDArray[np.uint8]:
    """Decodes an embedded PNG, JPEG or TIFF picture to uint8 `(height, width, 3)`, RGB, resized to `image_size` (height, width) if given.

    It is turned and mirrored first, where its EXIF data says how it is to be shown.

    Raises:
      DatasetFormatError: not a picture, or not one of 8 bits a channel.
    """
    rgb = _opened(encoded, ("RGB", "RGBA", "L", "P"), "8-bit RGB or grey", where).convert("RGB")
    if image_size is not None and image_size != (rgb.height, rgb.width):
        rgb = rgb.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.array(rgb)


def decode_depth_image(encoded: bytes, *, image_size: tuple[int, int] | None, where: str) -> npt.NDArray[np.float32]:
    """Decodes an embedded picture of one channel of 16 or 32 bits to float32 `(height, width, 1)`, as `decode_image` does.

    Resized by taking the nearest pixel.

    Raises:
      DatasetFormatError: not a picture, or not one of depth.
    """
    picture = _opened(encoded, ("I;16", "I;16L", "I;16B", "I", "F"), "one channel of 16 or 32 bits", where)
    return nearest(np.array(picture), image_size)[..., None].astype(np.float32)


def _opened(encoded: bytes, modes: Sequence[str], expected: str, where: str) -> Image.Image:
    """Returns a picture, loaded, and turned as its EXIF data says."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "TIFF")) as image:
            if image.mode not in modes:
                raise DatasetFormatError(f"{where}: a picture of mode {image.mode}; expected {expected}")
            image.load()
            # PNG may have EXIF data behind its pixels. A TIFF picture was turned by Pillow, which has taken the tag out.
            if image.getexif().get(ExifTags.Base.Orientation) is None:
                return image
            # As `datasets.Image` does it, and so lerobot.
            return ImageOps.exif_transpose(image)
    except (DatasetFormatError, MemoryError):
        raise
    except Exception as error:  # of damaged pictures mostly OSError; of malformed EXIF data also errors of struct and of dicts
        raise DatasetFormatError(f"{where}: not a picture that can be decoded ({str(error) or type(error).__name__})") from None


def nearest(pixels: npt.NDArray[Any], image_size: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Resizes `(height, width)` to `image_size`, if given, by taking the pixel nearest to each centre.

    For depth: a mean of near and far is a depth where nothing is.
    """
    if image_size is None or image_size == pixels.shape:
        return pixels
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(image_size, pixels.shape, strict=True))
    resized: npt.NDArray[Any] = pixels[rows[:, None], columns]
    return resized
