"""Barcodes that say, on the frame itself, which frame of which episode it is.

A reader of video can be off by one frame without anybody noticing. A barcode that survives lossy
coding turns "is this the right frame?" into an exact comparison.

Layout: the top `max(8, height // 16)` rows hold 24 blocks of `width // 24` columns, black = 0 and
white = 1, least significant bit first: 10 bits episode index, 10 bits frame index, 2 bits camera
index, then 1 and 0. The columns right of the last block are black. On frames of depth black is
near and white is far.

Rules:
* At most 1024 episodes, 1024 frames per episode and 4 cameras; `draw_barcodes` refuses larger
  numbers instead of wrapping them.
* Reading leaves out the first and the last row of the strip, which a codec blurs into its
  neighborhood.

Not here: what else is on the frames (`_writer/pictures`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain.testing._writer.depth import FARTHEST, NEAREST, Pictures

MAX_EPISODES = 1 << 10
MAX_FRAMES_PER_EPISODE = 1 << 10
MAX_CAMERAS = 1 << 2

_EPISODE_BITS = 10
_FRAME_BITS = 10
_CAMERA_BITS = 2
_NUM_BLOCKS = _EPISODE_BITS + _FRAME_BITS + _CAMERA_BITS + 2
MIN_WIDTH = _NUM_BLOCKS
MIN_HEIGHT = 16
# Blocks of 3 columns kept every bit of 7,000 frames at the default quality of AV1, h264 and HEVC,
# with any noise; blocks of 2 did not.
MIN_VIDEO_WIDTH = 3 * _NUM_BLOCKS


def strip_height(height: int) -> int:
    """Returns how many rows at the top of a frame of `height` rows belong to the barcode."""
    return max(8, height // 16)


def draw_barcodes(
    frames: Pictures, *, episode_index: int, first_frame_index: int, camera_index: int
) -> None:
    """Draws the barcodes of consecutive frames of one episode, in place.

    Args:
      frames: uint8 (frames, height, width, 3), at least 16 high and 24 wide, or 72 wide to survive
        a lossy codec; or depth in millimeters, uint16 (frames, height, width, 1).
      episode_index: of all frames.
      first_frame_index: frame index of `frames[0]`; it counts up by one.
      camera_index: position of the camera among all cameras of the dataset.

    Raises:
      InvalidRequestError: a number does not fit into its bits, or the frames are too small.
    """
    count, height, width, _ = frames.shape
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise InvalidRequestError(
            f"a frame of {height}x{width} (height x width) has no room for a barcode: at least "
            f"{MIN_HEIGHT}x{MIN_WIDTH} is needed; use larger frames or turn the barcodes off"
        )
    for name, value, limit in (
        ("episode index", episode_index, MAX_EPISODES),
        ("frame index", first_frame_index + count - 1, MAX_FRAMES_PER_EPISODE),
        ("camera index", camera_index, MAX_CAMERAS),
    ):
        if not 0 <= value < limit:
            raise InvalidRequestError(
                f"{name} {value} does not fit into a barcode, which holds 0 to {limit - 1}; turn "
                "the barcodes off"
            )
    bits = np.empty((count, _NUM_BLOCKS), np.uint8)
    bits[:, :10] = episode_index >> np.arange(_EPISODE_BITS) & 1
    bits[:, 10:20] = (
        np.arange(first_frame_index, first_frame_index + count)[:, None] >> np.arange(_FRAME_BITS)
        & 1
    )
    bits[:, 20:22] = camera_index >> np.arange(_CAMERA_BITS) & 1
    bits[:, 22:] = (1, 0)
    strip = frames[:, : strip_height(height)]
    black, white = (0, 255) if frames.dtype == np.uint8 else (NEAREST, FARTHEST)
    strip[:] = black
    block = width // _NUM_BLOCKS
    strip[:, :, : block * _NUM_BLOCKS] = np.repeat(np.where(bits, white, black), block, axis=1)[
        :, None, :, None
    ]


def read_barcodes(
    frames: npt.NDArray[np.generic], *, channels_first: bool = False
) -> npt.NDArray[np.int64]:
    """Reads the barcodes of many frames at once.

    Args:
      frames: uint8 (frames, height, width, 3), or (frames, 3, height, width) when `channels_first`.
        Drawn or decoded. Or depth, of one channel, in any unit.
      channels_first: which of the two.

    Returns:
      int64 (frames, 3): episode index, frame index, camera index; -1, -1, -1 for a frame without
      a barcode.
    """
    channels_axis, height_axis = (1, 2) if channels_first else (3, 1)
    height = frames.shape[height_axis]
    block = frames.shape[height_axis + 1] // _NUM_BLOCKS
    rows = slice(1, strip_height(height) - 1)
    strip = frames[:, :, rows] if channels_first else frames[:, rows]
    columns = strip.mean(axis=(channels_axis, height_axis), dtype=np.float32)[
        :, : block * _NUM_BLOCKS
    ]
    blocks = columns.reshape(len(frames), _NUM_BLOCKS, block).mean(axis=2)
    # The last two blocks are white and black, which in depth are what they are.
    threshold = 127 if frames.dtype == np.uint8 else blocks[:, -2:].mean(axis=1, keepdims=True)
    bits = (blocks > threshold).astype(np.int64)
    numbers = np.stack(
        [
            bits[:, :10] @ (1 << np.arange(_EPISODE_BITS)),
            bits[:, 10:20] @ (1 << np.arange(_FRAME_BITS)),
            bits[:, 20:22] @ (1 << np.arange(_CAMERA_BITS)),
        ],
        axis=1,
    )
    numbers[(bits[:, 22] != 1) | (bits[:, 23] != 0)] = -1
    return numbers
