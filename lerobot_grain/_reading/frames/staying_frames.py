"""Frames that stay after their last known use: those that many examples have, in the clips of a
whole epoch, such as the last frame of an episode as its goal.

The examples of one clip are known together, those of the next clip of the episode are not; so
without this such a frame would be decoded once for each clip. A frame stays by one use more that
nobody makes, until others have taken its place or memory is short: then it goes before all others,
since no example is known to need it.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._reading.frames.frame_store import FrameDemand

_NONE = np.zeros(0, np.int64)
# This part of the frames that may stay does not go for what would only be decoded further ahead:
# a frame that is decoded again takes the decoding of its GOP.
_KEPT_PART = 4


class StayingFrames:
    """The frames of one camera that stay.

    Args:
      demand: of the camera.
      most: frames; the least recently asked for go.
    """

    def __init__(self, demand: FrameDemand, most: int) -> None:
        self._demand = demand
        self._most = most
        self._entries: OrderedDict[int, None] = OrderedDict()  # least recently asked for first

    def add(self, entries: Integers) -> Integers:
        """Lets frames stay, which examples are known to need.

        Args:
          entries: int64 `(n,)`, of the frames.

        Returns:
          The slots of those that are needed no more, as of `FrameDemand.use`.
        """
        if self._most == 0:
            return _NONE
        for entry in dict.fromkeys(entries.tolist()):
            if entry in self._entries:
                self._entries.move_to_end(entry)
            else:
                self._entries[entry] = None
                self._demand.add_use(entry)
        gone = [
            self._entries.popitem(last=False)[0] for _ in range(len(self._entries) - self._most)
        ]
        return self._demand.use(np.array(gone)) if gone else _NONE

    def spare(self) -> Integers:
        """Returns the entries of decoded frames that may go though memory is not short yet, int64
        `(n,)`: no example is known to need them, and they are not among those that were asked for
        last. Those that were asked for least recently are first.
        """
        if len(self._entries) <= self._most // _KEPT_PART:
            return _NONE
        entries = np.array(list(self._entries), np.int64)[: -(self._most // _KEPT_PART) or None]
        is_spare = (self._demand.uses[entries] == 1) & (self._demand.slots[entries] >= 0)
        spare: Integers = entries[is_spare]
        return spare

    def drop(self, entries: Integers) -> None:
        """Lets go of those that are among some entries, int64 `(n,)`, which are not decoded any
        more.
        """
        found = [entry for entry in entries.tolist() if entry in self._entries]
        for entry in found:
            del self._entries[entry]
        if found:
            self._demand.use(np.array(found))
