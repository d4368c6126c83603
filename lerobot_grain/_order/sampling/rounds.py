"""One round of weighted rows: which copies of clips it has, and how many rows each of them has.
docs/architecture/order.md, "Weights", defines it.

A round may have many times as many copies as there are clips, and all of them decide which row is
at a position. So they are drawn in steps: the first copies of all clips, then the second ones, and
so on. The words of a step are those of one stream, and what belongs to its clips is read in the
order of memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Stream, Words, first_of_permutation, words, words_at
from lerobot_grain._order.sampling.weighted_clips import WeightedClips
from lerobot_grain._order.sampling.weights import UNIT_BITS

# The parts of stream DRAW: the order of the clips, the begin of the running sum, and from this one
# on the numbers of the copies: one part for the first copy of every clip, one for the second, ...
_ORDER, _BEGIN, _COPIES = 0, 1, 2
# Up to so many words of a stream, all in a row, are made for each one that is wanted: that still
# costs less than making the wanted ones one by one.
_CHEAP_WORDS = 64
# A walk that fills a round up puts so many times as many clips in order as are expected to do; if
# these do not, all.
_SAFE_FACTOR = 4


class DrawnCopies(NamedTuple):
    """The copies of a round, in the order of clips.

    Attributes:
      stops: int64 `(clips,)`, copies of each clip and of all clips before it.
      drawn: uint64 `(copies,)`, the word that says where each begins; any where it does not matter.
      lengths: int64 `(copies,)`, rows of each.
    """

    stops: Integers
    drawn: Words
    lengths: Integers


class _Step(NamedTuple):
    """Copies of some clips of a walk.

    Attributes:
      clips: int64 `(copies,)`, ascending: number of the clip of each.
      copies: int64 `(copies,)`, or one for all: their numbers among the copies of the clip.
      drawn, lengths: as of `DrawnCopies`.
    """

    clips: Integers
    copies: Integers | int
    drawn: Words
    lengths: Integers

    def only(self, kept: npt.NDArray[np.bool_]) -> _Step:
        """Returns this for a part of its copies, bool `(copies,)`."""
        if kept.all():
            return self
        copies = self.copies if isinstance(self.copies, int) else self.copies[kept]
        return _Step(self.clips[kept], copies, self.drawn[kept], self.lengths[kept])


class _Walk(NamedTuple):
    """One walk through clips.

    Attributes:
      counts: int64 `(clips,)`, copies of each of all clips.
      steps: these copies.
      num_rows: the rows of all.
    """

    counts: Integers
    steps: list[_Step]
    num_rows: int


class Round:
    """A round that is being drawn.

    Args:
      clips: of all rows.
      seed: of the order.
      number: of the round.
    """

    def __init__(self, clips: WeightedClips, seed: int, number: int) -> None:
        self._clips = clips
        self._seed = seed
        self._number = number

    def copies(self, num_rows: int) -> DrawnCopies:
        """Returns the copies of the round, which have so many rows together."""
        walks = [self._walk(0, num_rows)]
        missing = num_rows - walks[0].num_rows
        while missing:
            walks.append(self._walk(len(walks), missing))
            missing -= walks[-1].num_rows
        stops = np.cumsum(sum(walk.counts for walk in walks))
        drawn = np.zeros(stops[-1], np.uint64)
        lengths = np.empty(stops[-1], np.int64)
        # The next copy of each clip; those of earlier walks are first.
        nexts = np.concatenate(([0], stops[:-1]))
        for walk in walks:
            for step in walk.steps:
                places = nexts[step.clips] + step.copies
                drawn[places] = step.drawn
                lengths[places] = step.lengths
            nexts += walk.counts
        return DrawnCopies(stops, drawn, lengths)

    def _walk(self, draw: int, num_rows: int) -> _Walk:
        """Returns walk `draw`, cut so that it has at most `num_rows` rows."""
        num_members = len(self._clips.members)
        expected = int(num_rows / self._clips.total * num_members * (1 << UNIT_BITS))
        count = _SAFE_FACTOR * (expected + 1)
        if draw and count < num_members:
            walk = self._part_of_walk(draw, num_rows, count)
            if walk.num_rows == num_rows:
                return walk
        return self._part_of_walk(draw, num_rows, num_members)

    def _part_of_walk(self, draw: int, num_rows: int, count: int) -> _Walk:
        """Returns the first `count` clips of a walk, cut so that they have at most `num_rows`
        rows.
        """
        members = self._clips.members
        key = {"seed": self._seed, "epoch": self._number, "block": draw}
        order = first_of_permutation(len(members), count, Stream.DRAW, part=_ORDER, **key)
        begin = int(words(1, Stream.DRAW, part=_BEGIN, **key)[0]) >> (64 - UNIT_BITS)
        walked = members[order]
        passed = self._clips.weights[walked]
        np.cumsum(passed, out=passed)
        passed += begin
        passed >>= UNIT_BITS
        counts = np.zeros(len(self._clips.weights), np.int64)
        counts[walked] = np.diff(passed, prepend=0)
        steps = self._draw(counts, draw)
        total = sum(int(step.lengths.sum()) for step in steps)
        if total < num_rows:
            return _Walk(counts, steps, total)
        rows = np.zeros(len(counts), np.int64)
        for step in steps:
            if isinstance(step.copies, int):
                rows[step.clips] += step.lengths
            else:
                np.add.at(rows, step.clips, step.lengths)
        rows_walked = np.cumsum(rows[walked])
        # The clip with which the round is full; those after it in the walk do not come.
        last = int(np.searchsorted(rows_walked, num_rows))
        counts[walked[last + 1 :]] = 0
        last_clip = walked.item(last)
        left = num_rows - (rows_walked.item(last) - rows.item(last_clip))
        return _Walk(counts, _cut(steps, counts, last_clip, left), num_rows)

    def _draw(self, counts: Integers, draw: int) -> list[_Step]:
        """Returns the copies of clips: first the first ones of all, then the second ones, ...

        Args:
          counts: int64 `(clips,)`, copies of each.
          draw: number of the walk.
        """
        steps = []
        key = {"seed": self._seed, "epoch": self._number}
        clips = np.flatnonzero(counts)
        copy = 0
        # Most clips have few copies: there are ever fewer of each.
        while len(clips):
            # All up to the last one that is wanted are made.
            num_made = clips.item(-1) + 1
            if num_made > _CHEAP_WORDS * len(clips):
                break
            if self._clips.has_chance[clips].any():
                made = words(num_made, Stream.DRAW, block=draw, part=_COPIES + copy, **key)
                steps.append(self._step(clips, copy, made[clips]))
            else:
                steps.append(self._step(clips, copy, np.zeros(len(clips), np.uint64)))
            copy += 1
            clips = clips[counts[clips] > copy]
        if len(clips):
            more = counts[clips] - copy
            ends = np.cumsum(more)
            copies = copy + np.arange(ends[-1]) - np.repeat(ends - more, more)
            clips = np.repeat(clips, more)
            drawn = np.zeros(len(clips), np.uint64)
            chance = np.flatnonzero(self._clips.has_chance[clips])
            parts = _COPIES + copies[chance]
            drawn[chance] = words_at(clips[chance], Stream.DRAW, blocks=draw, parts=parts, **key)
            steps.append(self._step(clips, copies, drawn))
        return steps

    def _step(self, clips: Integers, copies: Integers | int, drawn: Words) -> _Step:
        lengths = self._clips.rows_of_copy[clips]
        lengths += drawn > self._clips.longer_above[clips]
        return _Step(clips, copies, drawn, lengths)


def _cut(steps: list[_Step], counts: Integers, last_clip: int, left: int) -> list[_Step]:
    """Returns the copies that come.

    Args:
      steps: those of a walk.
      counts: int64 `(clips,)`, copies of each clip that come; that of the last clip is corrected.
      last_clip: the one of which so many rows are `left`, > 0.
    """
    comes = counts > 0
    found = []
    for step in steps:
        begin, end = np.searchsorted(step.clips, (last_clip, last_clip + 1)).tolist()
        own = step.lengths[begin:end]
        own[:] = np.clip(left - (np.cumsum(own) - own), 0, own)
        left -= int(own.sum())
        counts[last_clip] -= int((own == 0).sum())
        found.append(step.only(comes[step.clips] & (step.lengths > 0)))
    return found
