"""The default frames: a drifting texture with a bright disc that shows where the state is.

A frame must do three jobs. A reader must be able to tell frames apart (the barcode, see
`_writer/barcode`), a policy must be able to learn from it (the disc shows `state[0:2]`), and a
codec must find it about as hard as a robot's camera (the texture drifts, `noise` is adjustable).

Rules:
* The disc stays clear of the barcode strip and inside the frame. Its center is linear in the
  state, see `disc_center`.
* Same arguments, same bytes. Episodes are drawn independently, so threads can draw them in any
  order.

Not here: the state itself (`_writer/rows`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lerobot_grain.testing._writer.barcode import strip_height

# How far the texture drifts before it turns back, in pixels.
_DRIFT = 32
_DISC_COLOR = np.array([255, 240, 160], np.float32)


def disc_radius(height: int, width: int) -> float:
    """Returns the radius of the disc in pixels, an eighth of the shorter side."""
    return min(height, width) / 8


def disc_center(
    state_xy: npt.NDArray[np.floating], *, height: int, width: int
) -> npt.NDArray[np.float64]:
    """Returns where the disc is drawn.

    Args:
      state_xy: (..., 2), horizontal and vertical, from 0 (left, top) to 1 (right, bottom); clipped
        to that.
      height: of the frame, pixels.
      width: of the frame, pixels.

    Returns:
      float64 (..., 2): column and row of the center in pixels. The whole disc lies below the
      barcode strip and inside the frame.
    """
    radius = disc_radius(height, width)
    top = strip_height(height) + 1
    low = np.array([radius, top + radius])
    high = np.array([width - 1 - radius, height - 1 - radius])
    center: npt.NDArray[np.float64] = low + np.clip(np.asarray(state_xy, np.float64), 0.0, 1.0) * (
        high - low
    )
    return center


def draw_pictures(
    state_xy: npt.NDArray[np.floating],
    *,
    height: int,
    width: int,
    episode_index: int,
    camera_index: int,
    seed: int,
    noise: float,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draws the frames of one camera of one episode, one after the other.

    Args:
      state_xy: (frames, 2) positions of the disc, see `disc_center`.
      height: of the frames, pixels.
      width: of the frames, pixels.
      episode_index: changes the colors and the direction of the drift.
      camera_index: the same.
      seed: the same.
      noise: 0 for none, 1 for noise that hides everything but the barcode and the outline of the
        disc.

    Yields:
      uint8 (height, width, 3), a new array each time. One at a time, because a long episode at
      480x640 does not fit into memory twice.
    """
    rng = np.random.default_rng([seed, episode_index, camera_index, 1])
    texture = _texture(rng, height + _DRIFT, width + _DRIFT)
    centers = disc_center(state_xy, height=height, width=width)
    steps = rng.integers(1, 3, 2)
    for index, center in enumerate(centers):
        # A triangle wave, so that the texture never jumps: a jump would be a scene cut, and
        # encoders like key frames there.
        row, column = _DRIFT - np.abs(index * steps % (2 * _DRIFT) - _DRIFT)
        frame = texture[row : row + height, column : column + width].copy()
        _draw_disc(frame, center, disc_radius(height, width))
        if noise > 0:
            _add_noise(frame, rng, noise)
        yield frame


def _texture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Returns a smooth, dark (40 to 140) texture, uint8 (height, width, 3)."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)
    phases = rng.uniform(0, 2 * np.pi, (3, 2)).astype(np.float32)
    waves = rng.uniform(15, 40, (3, 2)).astype(np.float32)
    planes = [
        90
        + 25
        * (np.sin(rows / waves[c, 0] + phases[c, 0]) + np.sin(columns / waves[c, 1] + phases[c, 1]))
        for c in range(3)
    ]
    return np.stack(planes, axis=-1).astype(np.uint8)


def _draw_disc(
    frame: npt.NDArray[np.uint8], center: npt.NDArray[np.float64], radius: float
) -> None:
    """Blends an anti-aliased disc into `frame`, so that it moves by fractions of a pixel."""
    left, top = np.floor(center - radius).astype(int).clip(0)
    right, bottom = np.ceil(center + radius).astype(int) + 1
    box = frame[top:bottom, left:right]
    rows = np.arange(top, top + box.shape[0], dtype=np.float32)[:, None] - center[1]
    columns = np.arange(left, left + box.shape[1], dtype=np.float32) - center[0]
    cover = np.clip(radius + 0.5 - np.sqrt(rows**2 + columns**2), 0, 1).astype(np.float32)[
        ..., None
    ]
    box[:] = np.rint(box + (_DISC_COLOR - box) * cover).astype(np.uint8)


def _add_noise(frame: npt.NDArray[np.uint8], rng: np.random.Generator, noise: float) -> None:
    """Adds uniform noise of up to +-127 x `noise` gray levels, in place."""
    raw = np.frombuffer(rng.bytes(frame.size), np.int8).reshape(frame.shape)
    # Integer arithmetic in 1/128: half the time of float32 on a 480x640 frame.
    scaled = raw * np.int16(round(noise * 128)) >> 7
    np.clip(frame + scaled, 0, 255, out=scaled)
    frame[:] = scaled
