"""Coded pictures -> frames: small MP4s through torchcodec, embedded images through Pillow. Nothing else imports either of them.

torchcodec releases the GIL while it decodes, so this is called from threads; a call has no state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from lerobot_grain._errors import DatasetFormatError

Frames = npt.NDArray[np.uint8]


def decode_frames(mp4: bytes, frames: Sequence[int], *, num_frames: int, image_size: tuple[int, int] | None, where: str) -> list[Frames]:
    """Decodes frames of a small MP4.

    Args:
      mp4: as `small_mp4` makes it.
      frames: ascending numbers of the wanted frames.
      num_frames: pictures in the file; all of them must come out of the decoder.
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
        decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact", transforms=transforms)
        found = decoder.metadata.num_frames
        # One by one: each frame gets memory of its own without a copy, and the decoder runs on where it is.
        decoded = [decoder.get_frame_at(frame).data.numpy() for frame in frames]
    except (RuntimeError, ValueError, IndexError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetFormatError(
            f"{where}: the decoder refused the video ({message}); the file is damaged or uses a feature it does not know"
        ) from None
    if found != num_frames:
        raise DatasetFormatError(f"{where}: the decoder found {found} of {num_frames} pictures; the video is damaged")
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
