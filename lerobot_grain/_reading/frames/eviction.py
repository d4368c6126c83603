"""Which decoded frames stay when memory is short: those that are needed first. Pure.

The order in which frames are needed is known, so the best choice is known too (Belady's rule):
whatever is needed last goes first. Frames that are still to be decoded for later blocks are judged
together with those that are decoded already: it does not pay to decode one, and to drop another
that is needed earlier.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers


def frames_that_stay(next_use: Integers, size: Integers, room: int) -> npt.NDArray[np.bool_]:
    """Returns which frames stay, bool `(n,)`: in the order of their next use, as many as there is
    room for.

    From the first one on that there is no room for, none stays, small as it may be. Among frames
    with the same next use, earlier ones stay.

    Args:
      next_use: int64 `(n,)`: when each frame is needed next.
      size: int64 `(n,)`: its bytes.
      room: bytes; may be negative, then none stays.
    """
    order = np.argsort(next_use, kind="stable")
    stays = np.zeros(len(order), np.bool_)
    stays[order] = np.cumsum(size[order]) <= room
    return stays
