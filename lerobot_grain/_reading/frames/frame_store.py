"""Which frames of a camera coming examples need, how often, and where each of them is: dense
arrays, without an object per frame.

Frames are named by the row of the dataset that they belong to. A dataset may have many millions
of rows, of which a few thousand are known to be needed, in short runs; so the arrays have pages of
consecutive rows, made when a row of theirs becomes known and given up after its last use. The
elements that belong to a row are its *entry*. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers

# The values in `slots` for a frame that is not decoded, and for one that cannot be.
NO_SLOT = -1
FAILED = -2
# The same for one that lies in the frame cache.
CACHED = -3

_PAGE_BITS = 8
_PAGE = 1 << _PAGE_BITS
# Up to so many entries are looked at one by one.
_FEW = 8
_MANY = np.iinfo(np.int64).max


class FrameDemand:
    """The frames of one camera that are known to be needed.

    Attributes:
      uses: int32 `(entries,)`: how often a frame is still needed; 0 at entry 0, which stands for
        all rows that are not known.
      slots: int32 `(entries,)`: where the decoded frame is, `NO_SLOT`, `FAILED` or `CACHED`.
      is_requested: bool `(entries,)`: whether its coded bytes were asked for; stays true while it
        is decoded. True for `CACHED`, too.
    """

    def __init__(self) -> None:
        # number of a page of the dataset -> page of the arrays; page 0 is not used
        self._pages: dict[int, int] = {}
        self._free: list[int] = []
        self._num_pages = 0
        self._waiting_uses = np.zeros(0, np.int64)  # of all frames of a page
        self._numbers = np.zeros(0, np.int64)
        self.uses = np.zeros(0, np.int32)
        self.slots = np.zeros(0, np.int32)
        self.is_requested = np.zeros(0, np.bool_)
        self._grow()

    def add(self, rows: Integers) -> Integers:
        """Counts one more use for each of the rows, of any shape; returns their entries, which hold
        until the last use.
        """
        numbers, inverse, counts = np.unique(
            rows >> _PAGE_BITS, return_inverse=True, return_counts=True
        )
        pages = np.array([self._page(number) for number in numbers.tolist()], np.int64)
        self._waiting_uses[pages] += counts
        entries = (pages[inverse].reshape(rows.shape) << _PAGE_BITS) + (rows & _PAGE - 1)
        np.add.at(self.uses, entries.reshape(-1), 1)
        return entries

    def add_use(self, entry: int) -> None:
        """Counts one more use of an entry that holds."""
        self.uses[entry] += 1
        self._waiting_uses[entry >> _PAGE_BITS] += 1

    def find(self, rows: Integers) -> Integers:
        """Returns the entries of ascending rows, int64 `(n,)`, n > 0: 0 where a row is not
        known.
        """
        numbers = rows >> _PAGE_BITS
        bounds = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        firsts = numbers[np.append(0, bounds)].tolist() if len(bounds) else [numbers.item(0)]
        pages = np.array([self._pages.get(number, 0) for number in firsts])
        if len(pages) == 1:
            start = pages.item(0) << _PAGE_BITS
            found: Integers = (rows & _PAGE - 1) + start if start else np.zeros_like(rows)
            return found
        all_pages = np.repeat(pages, np.diff(bounds, prepend=0, append=len(rows)))
        entries: Integers = np.where(
            all_pages > 0, (all_pages << _PAGE_BITS) + (rows & _PAGE - 1), 0
        )
        return entries

    def rows_of(self, entries: Integers) -> Integers:
        """Returns the rows of entries, int64 `(n,)`. For any thread."""
        rows: Integers = (self._numbers[entries >> _PAGE_BITS] << _PAGE_BITS) + (
            entries & _PAGE - 1
        )
        return rows

    def use(self, entries: Integers) -> Integers:
        """Counts one use less for each of the entries, int64 `(n,)`; returns the slots of the
        frames that are needed no more, `CACHED` among them.
        """
        if len(entries) <= _FEW:
            return self._use_few(entries.tolist())
        np.subtract.at(self.uses, entries, 1)
        gone = np.unique(entries[self.uses[entries] == 0])
        slots: Integers = self.slots[gone].astype(np.int64)
        self.slots[gone] = NO_SLOT
        self.is_requested[gone] = False
        pages, counts = np.unique(entries >> _PAGE_BITS, return_counts=True)
        self._waiting_uses[pages] -= counts
        for page in pages[self._waiting_uses[pages] == 0].tolist():
            del self._pages[int(self._numbers[page])]
            self._free.append(page)
        return slots

    def _use_few(self, entries: list[int]) -> Integers:
        """The same for a few, for which the setup of array operations would take longer."""
        gone = []
        for entry in entries:
            self.uses[entry] -= 1
            if self.uses[entry] == 0:
                gone.append(entry)
            page = entry >> _PAGE_BITS
            self._waiting_uses[page] -= 1
            if self._waiting_uses[page] == 0:
                del self._pages[self._numbers.item(page)]
                self._free.append(page)
        slots: Integers = self.slots[gone].astype(np.int64)
        self.slots[gone] = NO_SLOT
        self.is_requested[gone] = False
        return slots

    def next_uses(self, coming: Sequence[tuple[int, Integers]]) -> Integers:
        """Returns for every entry the first of the coming blocks that need it, each given as its
        number and the entries, in ascending order; a very high number where none does.
        """
        found = np.full(len(self.uses), _MANY, np.int64)
        for number, entries in reversed(coming):
            found[entries.reshape(-1)] = number
        return found

    def _page(self, number: int) -> int:
        page = self._pages.get(number)
        if page is None:
            if not self._free:
                self._grow()
            page = self._pages[number] = self._free.pop()
            self._numbers[page] = number
        return page

    def _grow(self) -> None:
        """Doubles the number of pages."""
        added = max(16, self._num_pages)
        self._free += range(max(1, self._num_pages), self._num_pages + added)
        self._num_pages += added
        self._waiting_uses = np.concatenate([self._waiting_uses, np.zeros(added, np.int64)])
        self._numbers = np.concatenate([self._numbers, np.zeros(added, np.int64)])
        self.uses = np.concatenate([self.uses, np.zeros(added * _PAGE, np.int32)])
        self.slots = np.concatenate([self.slots, np.full(added * _PAGE, NO_SLOT, np.int32)])
        self.is_requested = np.concatenate([self.is_requested, np.zeros(added * _PAGE, np.bool_)])


class FrameStore:
    """Memory for decoded frames of one shape, of any cameras, used again and again: fresh memory
    costs more than copying into used one.

    Args:
      shape: (height, width, channels).
      dtype: of the frames.
      capacity: frames. Memory is taken from the system when a slot is used first; no such one is
        while one that was used is free.

    Attributes:
      frames: `(capacity, height, width, channels)`.
      num_tasks: decode tasks that were to write slots so far.
      task_of: int64 `(capacity,)`: number of the one that writes, or wrote, a slot.
      is_held: bool `(capacity,)`: whether a slot must not be used again yet; other threads change
        it. `None`: no slot is ever held.
      frame_bytes: of one frame.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: npt.DTypeLike, capacity: int) -> None:
        self.frames: npt.NDArray[Any] = np.empty((capacity, *shape), dtype)
        self.num_tasks = 0
        self.task_of = np.zeros(capacity, np.int64)
        self.is_held: npt.NDArray[np.bool_] | None = None
        self._waiting = np.zeros(0, np.int64)  # given back, but held then
        self.frame_bytes = self.frames[:1].nbytes
        self._free = np.arange(capacity - 1, -1, -1)
        self._num_free = capacity

    @property
    def num_used(self) -> int:
        return len(self._free) - self._num_free

    @property
    def used_bytes(self) -> int:
        return self.num_used * self.frame_bytes

    def take(self, count: int) -> tuple[Integers, int]:
        """Returns free slots, int64 `(count,)`, and the number of the decode task that is to write
        them.
        """
        assert count <= self._num_free
        self._num_free -= count
        slots = self._free[self._num_free : self._num_free + count][::-1].copy()
        self.num_tasks += 1
        self.task_of[slots] = self.num_tasks
        return slots, self.num_tasks

    def give_back(self, slots: Integers) -> None:
        if self.is_held is not None:
            slots = np.concatenate([self._waiting, slots])
            is_held = self.is_held[slots]
            self._waiting = slots[is_held]
            slots = slots[~is_held]
        self._free[self._num_free : self._num_free + len(slots)] = slots
        self._num_free += len(slots)
