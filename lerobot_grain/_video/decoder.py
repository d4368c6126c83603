"""Loads torchcodec, and says what every decoder of small MP4s does: `_video/rgb` and `_video/depth`
are the two.

Decoders release the GIL while they decode, so they are called from threads.
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._base.errors import DatasetFormatError, LeRobotGrainError
from lerobot_grain._base.versions import decoder_transforms, installed, triton_hidden_from_torch

# uint8 RGB, or float32 depth.
Frames = npt.NDArray[Any]


@functools.cache
def load_decoder() -> tuple[Any, Any]:
    """Returns `torchcodec.decoders` and `torchcodec.transforms`; None instead of these where
    torchcodec is older than they are.

    They are imported here and not above because they bring PyTorch: two seconds and 200 MB that
    datasets without video need not pay.

    Raises:
      LeRobotGrainError: torchcodec, PyTorch or FFmpeg's shared libraries cannot be loaded.
    """
    try:
        with triton_hidden_from_torch():
            from torchcodec import decoders

            return decoders, decoder_transforms()
    except (ImportError, OSError, RuntimeError) as error:
        raise LeRobotGrainError(
            f"the video decoder cannot be loaded ({_reason(error)}); install FFmpeg's shared "
            "libraries (version 4 to 8) and a torchcodec that fits torch, or leave the cameras "
            f"out of features=[...]; installed: {installed('torch', 'torchcodec')}"
        ) from error


@functools.cache
def decoder_version() -> str:
    """Returns the versions of everything that decides the pixels of a decoded frame.

    Raises:
      LeRobotGrainError: as `load_decoder`.
    """
    load_decoder()
    from torchcodec import _core

    # torchcodec is no more than its libraries: FFmpeg decodes, converts and resizes.
    found = getattr(_core, "get_ffmpeg_library_versions", lambda: "unknown")()
    return f"{installed('torch', 'torchcodec', 'numpy')}, FFmpeg {found}"


def _reason(error: Exception) -> str:
    """Returns why a library cannot be loaded. torchcodec's own first line does not say it: it has a
    traceback for each FFmpeg it tried.
    """
    missing = dict.fromkeys(re.findall(r"(\S+): cannot open shared object file", str(error)))
    if others := [name for name in missing if not name.startswith(("libav", "libsw"))]:
        return f"{', '.join(others)} cannot be found"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class FrameDecoder(abc.ABC):
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
                f"{self.where}: asked for picture {numbers[odd[0]]}, the decoder gave "
                f"{found[odd[0]]:g}; the video is damaged"
            )

    @abc.abstractmethod
    def _decode(
        self, numbers: Integers, into: Frames, slots: Integers
    ) -> npt.NDArray[np.floating[Any]]:
        """Does what `read` says; returns `(n,)`: the presentation times of the frames that the
        decoder gave, in frames of the small MP4.
        """

    def check_shape(self, shape: Sequence[int], into: Frames) -> None:
        """Checks the shape of a decoded frame.

        Raises:
          DatasetFormatError: it is not the one that is expected.
        """
        if tuple(shape) != into.shape[1:]:
            raise DatasetFormatError(
                f"{self.where}: a frame has shape {tuple(shape)}; info.json declares "
                f"{into.shape[1:]}"
            )

    def refused(self, error: Exception) -> DatasetFormatError:
        """Returns what to raise for an error of the decoder."""
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DatasetFormatError(
            f"{self.where}: the decoder refused the video ({message}); the file is damaged or "
            "uses a feature it does not know"
        )


# Opens the bytes of a small MP4, with a text that names it and the degrees clockwise that it turns
# frames by.
OpenVideo = Callable[[bytes, str, int], FrameDecoder]
