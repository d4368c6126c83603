"""Coded pictures of depth cameras -> depths: small MP4s through PyAV.

Nothing else of the rooms imports it.

lerobot 0.6 quantizes depth to codes of 12 bits and stores them as gray video (HEVC, `gray12le`,
lossless). torchcodec gives 8 bits a channel (0.13), so these pictures go through PyAV, which comes
with the extra `depth`.

Rules:
* The value of a code follows lerobot's rule (`dequantize_depth` of its `datasets/depth_utils.py`),
  in its precision: all values in millimeters are equal to those that it returns, those in meters
  but for a last bit (39 of the 4096). So code 0, which is also what a pixel without a measurement
  was given, is the least depth.
* Frames are resized by taking the nearest pixel.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, InvalidRequestError
from lerobot_grain._base.versions import installed
from lerobot_grain._format.info import Depth
from lerobot_grain._video.decoder import FrameDecoder, Frames
from lerobot_grain._video.images import nearest
from lerobot_grain._video.small_mp4 import TICKS_PER_FRAME

_PIXEL_FORMAT = "gray12le"
_NUM_CODES = 1 << 12
_MILLIMETERS_PER_METER = 1000
_MAX_MILLIMETERS = 65535


@functools.cache
def load_depth_decoder() -> Any:
    """Returns the module `av`; not imported above because datasets without depth video need not
    have it.

    Raises:
      InvalidRequestError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InvalidRequestError(
            f"depth video is read with PyAV, which cannot be loaded ({error}); pip install "
            f'"lerobot_grain[depth]", '
            "or leave the depth cameras out of features=[...]"
        ) from error
    return av


@functools.cache
def depth_decoder_version() -> str:
    """Returns the versions of everything that decides the values of a decoded depth frame.

    Raises:
      InvalidRequestError: as `load_depth_decoder`.
    """
    return f"{installed('av', 'numpy')}, FFmpeg {load_depth_decoder().library_versions}"


@functools.cache
def depths_of_codes(depth: Depth) -> npt.NDArray[np.float32]:
    """Returns float32 `(4096,)`: what each code stands for, in the unit of the camera.

    Read-only.
    """
    low = depth.min_meters
    high = depth.max_meters
    shift = depth.shift_meters
    start, stop = (
        (math.log(low + shift), math.log(high + shift)) if depth.is_logarithmic else (low, high)
    )
    found = np.arange(_NUM_CODES, dtype=np.float32) * np.float32(
        (stop - start) / (_NUM_CODES - 1)
    ) + np.float32(start)
    if depth.is_logarithmic:
        # Rounded from double precision: NumPy's own exp of float32 differs in the last bit from one
        # processor to another.
        found = np.exp(found.astype(np.float64)).astype(np.float32) - np.float32(shift)
    found = found.clip(np.float32(low), np.float32(high))
    if depth.unit == "mm":
        found = np.rint(found * np.float32(_MILLIMETERS_PER_METER)).clip(0, _MAX_MILLIMETERS)
    found.flags.writeable = False
    return found


class DepthDecoder(FrameDecoder):
    """Gives float32 `(height, width, 1)`, in the unit of the camera.

    Args:
      mp4: as `small_mp4` makes it.
      where: names what is decoded in messages.
      rotation: 0.
      depth: of the camera.
      image_size: (height, width) to resize to, or `None`.
    """

    def __init__(
        self,
        mp4: bytes,
        where: str,
        rotation: int = 0,
        *,
        depth: Depth,
        image_size: tuple[int, int] | None,
    ) -> None:
        super().__init__(where)
        assert rotation == 0, "such a file is refused when it is opened"
        self._av = load_depth_decoder()
        self._mp4 = mp4
        self._depths = depths_of_codes(depth)
        self._image_size = image_size
        self._frames = self._start()
        self._next = 0

    def _start(self) -> Iterator[Any]:
        """Yields the decoded frames, from the first on."""
        try:
            with self._av.open(io.BytesIO(self._mp4), format="mp4") as container:
                stream = container.streams.video[0]
                # Groups are decoded side by side, as those of RGB.
                stream.codec_context.thread_count = 1
                for packet in container.demux(stream):
                    yield from packet.decode()
        except (self._av.FFmpegError, ValueError, IndexError) as error:
            raise self.refused(error) from None

    def _decode(
        self, numbers: Integers, into: Frames, slots: Integers
    ) -> npt.NDArray[np.floating[Any]]:
        if numbers.item(0) < self._next:
            self._frames = self._start()
        return np.array(
            [
                self._decode_frame(number, into, slot)
                for number, slot in zip(numbers.tolist(), slots.tolist(), strict=True)
            ]
        )

    def _decode_frame(self, number: int, into: Frames, slot: int) -> float:
        for frame in self._frames:
            found = -1.0 if frame.pts is None else frame.pts / TICKS_PER_FRAME
            if found > number - 0.5:
                self._next = number + 1
                np.take(
                    self._depths, self._codes(frame, into), out=into[slot, :, :, 0], mode="clip"
                )
                return found
        raise DatasetFormatError(
            f"{self.where}: asked for picture {number}, but the decoder gave no more; the video "
            "is damaged"
        )

    def _codes(self, frame: Any, into: Frames) -> npt.NDArray[np.uint16]:
        if frame.format.name != _PIXEL_FORMAT:
            raise DatasetFormatError(
                f"{self.where}: the video of a depth camera has pixel format {frame.format.name}; "
                f"expected {_PIXEL_FORMAT}"
            )
        plane = frame.planes[0]
        rows = np.frombuffer(plane, "<u2").reshape(frame.height, plane.line_size // 2)
        codes = nearest(rows[:, : frame.width], self._image_size)
        self.check_shape((*codes.shape, 1), into)
        return codes
