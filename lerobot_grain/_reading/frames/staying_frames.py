"""Frames that stay though no known example needs them (any more): two kinds, both of use for goals.

* *Shared* frames are those that many examples have, in the clips of a whole epoch, such as the last
  frame of an episode as its goal. The examples of one clip are known together, those of the next
  clip of the episode are not; so without this such a frame would be decoded once for each clip.
* *Waiting* frames are the others of a GOP that is decoded for a shared frame before the clip of
  that GOP is known. They went through the decoder anyway, and would do so again for their clip.
  They wait until an example is known to need them.

A frame stays by one use more that nobody makes, until others have taken its place or memory is
short: then it goes before all others, since no example is known to need it. Waiting frames go
first: one of them saves one coded picture, a shared one those of its GOP. They take only memory
that nothing else takes, and none goes for another one: when their clips come is not known, so each
is worth the same, and what is dropped was copied in vain. A waiting frame that lies in the frame
cache leaves its memory to others: its clip takes it from there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._format.episodes import EpisodeTable
from lerobot_grain._reading.frame_cache.camera_frames import CameraFrames
from lerobot_grain._reading.frames.frame_store import FrameDemand
from lerobot_grain._reading.frames.gop_decoder import DecodeCandidate

_NONE = np.zeros(0, np.int64)
# This part of the frames that may stay does not go for what would only be decoded further ahead:
# a frame that is decoded again takes the decoding of its GOP.
_KEPT_PART = 4


class StayingFrames:
    """The frames of one camera that stay.

    Args:
      demand: of the camera.
      most: shared frames; the least recently asked for go.
      episodes: of the dataset.
    """

    def __init__(self, demand: FrameDemand, most: int, episodes: EpisodeTable) -> None:
        self._demand = demand
        self._most = most
        self._episodes = episodes
        self._shared: OrderedDict[int, None] = OrderedDict()  # least recently asked for first
        self._waiting: OrderedDict[int, None] = OrderedDict()  # the oldest ones first

    @property
    def has_shared(self) -> bool:
        """Whether shared frames stay; without them no frame waits either."""
        return bool(self._shared)

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
            if entry in self._shared:
                self._shared.move_to_end(entry)
            else:
                self._shared[entry] = None
                self._demand.add_use(entry)
        gone = [self._shared.popitem(last=False)[0] for _ in range(len(self._shared) - self._most)]
        return self._demand.use(np.array(gone)) if gone else _NONE

    def end_waiting(self, entries: Integers) -> None:
        """Notes which frames examples are known to need, entries int64 of any shape: they wait no
        more.
        """
        if not self._waiting:
            return
        found = [entry for entry in set(entries.reshape(-1).tolist()) if entry in self._waiting]
        for entry in found:
            del self._waiting[entry]
        if found:
            self._demand.use(np.array(found))  # not the last use

    def with_waiting(
        self, wanted: Sequence[DecodeCandidate], *, room: int
    ) -> list[DecodeCandidate]:
        """Returns what is to be decoded, and with GOPs that hold a shared frame those of their
        other frames that nobody is known to need yet; the last ones of each, if there is no room
        for all: without the first ones fewer coded pictures have to be decoded again than without
        others.

        Args:
          wanted: what is to be decoded.
          room: for so many frames more.
        """
        found = []
        for item in wanted:
            if room > 0 and item.entries.item(-1) in self._shared:
                joined = self._joined(item, room)
                room -= len(joined.entries) - len(item.entries)
                found.append(joined)
            else:
                found.append(item)
        return found

    def _joined(self, item: DecodeCandidate, room: int) -> DecodeCandidate:
        """Returns a GOP with up to `room` frames more, which wait."""
        gop = item.gop
        first = gop.file.first_frame(gop.episode)
        start = max(item.camera.next_frame(gop), first)
        others = np.setdiff1d(np.arange(start, gop.frames.item(-1)), gop.frames)
        rows = others + (self._episodes.first_rows.item(gop.episode) - first)
        if len(rows) == 0:
            return item
        is_unknown = self._demand.uses[self._demand.find(rows)] == 0
        others = others[is_unknown][-room:]
        if len(others) == 0:
            return item
        entries = self._demand.add(rows[is_unknown][-room:])
        self._waiting.update(dict.fromkeys(entries.tolist()))
        frames = np.concatenate((gop.frames, others))
        order = np.argsort(frames)
        return replace(
            item,
            gop=gop._replace(frames=frames[order]),
            entries=np.concatenate((item.entries, entries))[order],
            is_now=np.concatenate((item.is_now, np.zeros(len(others), np.bool_)))[order],
        )

    def spare(self) -> Integers:
        """Returns the entries of decoded frames that may go though memory is not short yet, int64
        `(n,)`: those that wait, and the shared ones that no example is known to need, but for those
        that were asked for last. Those that go first are first.
        """
        num_spare = max(0, len(self._shared) - self._most // _KEPT_PART)
        entries = np.array([*self._waiting, *list(self._shared)[:num_spare]], np.int64)
        is_spare = (self._demand.uses[entries] == 1) & (self._demand.slots[entries] >= 0)
        spare: Integers = entries[is_spare]
        return spare

    def written(self, on_disk: CameraFrames) -> Integers:
        """Returns the entries of decoded frames that wait and lie in the frame cache, int64
        `(n,)`: from there their clip takes them.
        """
        entries = np.array(list(self._waiting), np.int64)
        entries = entries[self._demand.slots[entries] >= 0]
        if len(entries) == 0:
            return entries
        found: Integers = entries[
            on_disk.find(*self._episodes.locate_all(self._demand.rows_of(entries)))
        ]
        return found

    def drop(self, entries: Integers) -> None:
        """Lets go of those that are among some entries, int64 `(n,)`, which are not decoded any
        more.
        """
        found = []
        for kind in (self._shared, self._waiting):
            ended = [entry for entry in entries.tolist() if entry in kind]
            for entry in ended:
                del kind[entry]
            found += ended
        if found:
            self._demand.use(np.array(found))
