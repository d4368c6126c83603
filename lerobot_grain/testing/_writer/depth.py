"""Depth: what the default frames of a depth camera show, and how lerobot 0.6 stores depth in
video.

Depth is in millimeters, uint16 (height, width, 1). Video holds codes of 12 bits, which grow with
the logarithm of the depth (`quantize_depth` of lerobot's `datasets/depth_utils.py`); it is coded
without loss, so only the rounding to codes is lost: 2 mm at 2.5 m.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Frames of a camera: uint8 (..., height, width, 3), or depth: uint16 (..., height, width, 1).
Pictures = npt.NDArray[np.uint8 | np.uint16]

# The recorder's defaults, in meters, which `info.json` names.
MIN_METERS = 0.01
MAX_METERS = 10.0
SHIFT_METERS = 3.5
MAX_CODE = 4095

# Black and white of a frame, in millimeters: what is seen from a robot's arm.
NEAREST = 500
FARTHEST = 2540


def depth_of_picture(picture: Pictures) -> Pictures:
    """Returns a frame, uint8 (height, width, 3), as depth: the greener, the farther away."""
    return (NEAREST + picture[..., 1:2].astype(np.uint16) * ((FARTHEST - NEAREST) // 255)).astype(
        np.uint16
    )


def codes_of_depth(depth: Pictures) -> npt.NDArray[np.uint16]:
    """Returns the 12-bit codes of depths in millimeters, of any shape."""
    low, high = np.log(np.array([MIN_METERS, MAX_METERS]) + SHIFT_METERS)
    place = (np.log(depth / 1000 + SHIFT_METERS) - low) / (high - low)
    codes: npt.NDArray[np.uint16] = np.rint(place * MAX_CODE).clip(0, MAX_CODE).astype(np.uint16)
    return codes
