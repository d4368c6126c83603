"""Decodes small MP4s to frames of 8 bits a channel, through torchcodec."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.versions import decoder_turns_frames, resized_frames, turned_frames
from lerobot_grain._video.decoder import FrameDecoder, Frames, load_decoder
from lerobot_grain._video.small_mp4 import FRAMES_PER_SECOND

# Frames of one call of the decoder. A call takes Python's lock a few times, each time against all
# other threads; but the frames of a call that returns more than this are written to memory, and not
# to the processor's cache, before they are copied (640x480, 32 at a time: 10 to 40 % slower).
_BYTES_PER_CALL = 8 << 20
# From this size on, copying a frame takes longer than taking the lock for it.
_LARGE_BYTES = 128 << 10


class RgbDecoder(FrameDecoder):
    """Gives uint8 `(height, width, 3)`.

    Args:
      mp4: as `small_mp4` makes it.
      where: names what is decoded in messages.
      rotation: degrees clockwise that the MP4 turns frames by: 0, 90, 180 or 270.
      image_size: (height, width) to resize to, bilinear and anti-aliased, or `None`.

    Raises:
      DatasetFormatError: the decoder does not know the video.
    """

    def __init__(
        self, mp4: bytes, where: str, rotation: int = 0, *, image_size: tuple[int, int] | None
    ) -> None:
        super().__init__(where)
        decoders, transformations = load_decoder()
        # The steps that the decoder cannot do yet, in this order.
        self._after: list[Callable[[Any], Any]] = []
        resized_first = image_size
        if rotation and not decoder_turns_frames(decoders):
            self._after.append(functools.partial(turned_frames, degrees=rotation))
            resized_first = (
                image_size[::-1] if image_size is not None and rotation != 180 else image_size
            )
        transforms = {}
        if image_size is not None and transformations is not None:
            transforms = {"transforms": [transformations.Resize(resized_first)]}
        elif image_size is not None:
            self._after.append(functools.partial(resized_frames, image_size=image_size))
        try:
            # One FFmpeg thread: groups are decoded side by side, which costs no more and needs less
            # memory than threads inside one. "Approximate" is exact here, where every frame lies on
            # its tick; it saves a scan of the file, and a seek back to its start where frames that
            # are not wanted are passed over (torchcodec 0.13 does that in its exact mode).
            self._decoder = decoders.VideoDecoder(
                mp4,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="approximate",
                **transforms,
            )
        except (RuntimeError, ValueError) as error:
            raise self.refused(error) from None

    def _decode(
        self, numbers: Integers, into: Frames, slots: Integers
    ) -> npt.NDArray[np.floating[Any]]:
        step = max(1, _BYTES_PER_CALL // into[:1].nbytes)
        times = []
        try:
            for start in range(0, len(numbers), step):
                part = slice(start, start + step)
                batch = self._decoder.get_frames_at(numbers[part].tolist())
                frames = self._finished(batch.data)
                self.check_shape(frames.shape[1:], into)
                _copy(frames.numpy(), into, slots[part])
                times.append(batch.pts_seconds.numpy())
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.refused(error) from None
        return np.concatenate(times) * FRAMES_PER_SECOND

    def _finished(self, frames: Any) -> Any:
        for step in self._after:
            frames = step(frames)
        return frames


def _copy(frames: Frames, into: Frames, slots: Integers) -> None:
    """Copies frames to their slots."""
    if frames[:1].nbytes < _LARGE_BYTES:
        into[slots] = frames
        return
    # This one gives Python's lock to others meanwhile; assignment to many slots does not.
    for frame, slot in zip(frames, slots.tolist(), strict=True):
        into[slot] = frame
