"""The definition of draws in docs/architecture/order.md a second time: one example after the other,
with Python's integers and fractions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from fractions import Fraction

from lerobot_grain._order.draws import Draw, GeometricDraw, UniformDraw
from tests.support.orders import philox_words

WINDOW = 2**32 + 4


@functools.cache
def word(name: str, seed: int, position: int) -> int:
    """Word number `position` of the stream WINDOW of a name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return philox_words(position + 1, seed, key, 0, 0, WINDOW)[position]


def draw_frame(
    draw: Draw, word: int, frame: int, length: int, *, fps: float, is_valid: Sequence[bool] = ()
) -> tuple[int, bool]:
    """Returns the frame that is drawn for the example at a frame of an episode, and whether it is
    padded.

    Args:
      is_valid: of each frame of the episode; empty: all are.
    """
    valid = is_valid or [True] * length
    first, last = 1, length - 1
    if isinstance(draw, UniformDraw):
        first = round(draw.from_seconds * fps)
        last = round(draw.to_seconds * fps)
    possible = [at for at in range(frame + first, min(frame + last, length - 1) + 1) if valid[at]]
    if not possible:
        end = min(frame + last, length - 1)
        return max([at for at in range(frame, end + 1) if valid[at]], default=frame), True
    if isinstance(draw, UniformDraw):
        return possible[word * len(possible) // 2**64], False
    if isinstance(draw, GeometricDraw):
        mean = max(Fraction(1), Fraction(draw.mean_seconds) * Fraction(fps))
        rest = 2**128
        for at in possible:
            rest = rest * (mean.numerator - mean.denominator) // mean.numerator
            if word < min(2**64 - 1, (2**128 - rest) // 2**64):
                return at, False
    return possible[-1], False
