"""One round of weighted rows: which copies of clips it has, and how many rows each of them has.
docs/architecture/order.md, "Weights", defines it.

A round may have many times as many copies as there are clips, and all of them decide which row is
at a position. So of a copy no more is found and kept than its number of rows; the word that says
which rows these are is made again for the few copies that are asked for.

The first walk has nearly all copies. They are drawn in steps, the first copies of all clips, then
the second ones, and so on: the words of a step are those of one stream, and what belongs to its
clips is read in the order of memory. Later walks have the few copies that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lerobot_grain._base.arrays import Integers
from lerobot_grain._order.philox import Stream, Words, first_of_permutation, words, words_at
from lerobot_grain._order.sampling.weighted_clips import Lengths, WeightedClips
from lerobot_grain._order.sampling.weights import UNIT_BITS

# The parts of stream DRAW: the order of the clips, the begin of the running sum, and from this one
# on the numbers of the copies: one part for the first copy of every clip, one for the second, ...
_ORDER, _BEGIN, _COPIES = 0, 1, 2
# Up to so many words of a stream, all in a row, are made for each one that is wanted: that still
# costs less than making the wanted ones one by one.
_CHEAP_WORDS = 24
# A walk that fills a round up puts so many times as many clips in order as are expected to do; if
# these do not, all.
_SAFE_FACTOR = 4
# The cut looks at the copies of so many clips at the end of a walk, and of ever more where these
# have too few rows.
_LAST_CLIPS = 256


class CopyNames(NamedTuple):
    """Copies by what the definition calls them.

    Attributes:
      clips: int64 `(n,)`, number of the clip of each.
      walks: int64 `(n,)`, number of the walk.
      numbers: int64 `(n,)`, its number among the copies that the clip has in that walk.
    """

    clips: Integers
    walks: Integers
    numbers: Integers


_NO_COPIES = CopyNames(*(np.zeros(0, np.int64) for _ in range(3)))


@dataclass(frozen=True, slots=True, eq=False)
class DrawnCopies:
    """The copies of a round, in the order of clips, walks, and numbers.

    Attributes:
      seed, round_number: of which order and round.
      begins: int64 `(clips + 1,)`, copies that the first walk has of all clips before each.
      later: those of later walks.
      places_of_later: int64, where among all copies these are.
      lengths: `(copies,)`, rows of each, > 0.
    """

    seed: int
    round_number: int
    begins: Integers
    later: CopyNames
    places_of_later: Integers
    lengths: Lengths

    def names(self, copies: Integers) -> CopyNames:
        """Returns which these are of all copies, int64 `(n,)`."""
        later_before = np.searchsorted(self.places_of_later, copies)
        in_first = copies - later_before
        clips = np.searchsorted(self.begins, in_first, side="right") - 1
        found = CopyNames(clips, np.zeros_like(copies), in_first - self.begins[clips])
        is_later = np.searchsorted(self.places_of_later, copies, side="right") > later_before
        for values, of_later in zip(found, self.later, strict=True):
            values[is_later] = of_later[later_before[is_later]]
        return found

    def words(self, names: CopyNames) -> Words:
        """Returns uint64 `(n,)`: the words that say where copies begin."""
        return _words(names, seed=self.seed, round_number=self.round_number)


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
        begins, lengths = self._first_walk(num_rows)
        later, lengths_of_later = self._later_walks(num_rows - int(lengths.sum()))
        places = begins[later.clips + 1]
        return DrawnCopies(
            seed=self._seed,
            round_number=self._number,
            begins=begins,
            later=later,
            places_of_later=places + np.arange(len(places)),
            lengths=np.insert(lengths, places, lengths_of_later) if len(places) else lengths,
        )

    def _first_walk(self, num_rows: int) -> tuple[Integers, Lengths]:
        """Returns `begins` of `DrawnCopies`, and the lengths of the copies of the first walk, which
        have at most `num_rows` rows.
        """
        walked, counts_walked = self._walked(0, len(self._clips.members))
        counts = np.zeros(len(self._clips.weights), np.int64)
        counts[walked] = counts_walked
        begins = _begins(counts)
        lengths = self._lengths(counts, begins)
        excess = int(lengths.sum()) - num_rows
        if excess <= 0:
            return begins, lengths
        # The last copies of the walk, the last one first, do not come.
        num_last = _LAST_CLIPS
        without = np.zeros(0, np.int64)
        while not (len(without) and without[-1] > excess):
            last = walked[: -num_last - 1 : -1]
            clips = np.repeat(last, counts[last])
            places = begins[clips + 1] - 1 - _within(counts[last])
            without = np.cumsum(lengths[places], dtype=np.int64)
            num_last *= 8
        num_removed = int(np.searchsorted(without, excess, side="right"))
        lengths[places[num_removed]] = without[num_removed] - excess
        np.subtract.at(counts, clips[:num_removed], 1)
        return _begins(counts), np.delete(lengths, places[:num_removed])

    def _walked(self, draw: int, count: int) -> tuple[Integers, Integers]:
        """Returns the first `count` clips of a walk, and how many copies each has, int64
        `(count,)` each.
        """
        members = self._clips.members
        key = {"seed": self._seed, "epoch": self._number, "block": draw}
        order = first_of_permutation(len(members), count, Stream.DRAW, part=_ORDER, **key)
        walked = order if len(members) == len(self._clips.weights) else members[order]
        begin = int(words(1, Stream.DRAW, part=_BEGIN, **key)[0]) >> (64 - UNIT_BITS)
        # The copies up to each clip, with it.
        passed = self._clips.weights[walked]
        np.cumsum(passed, out=passed)
        passed += begin
        passed >>= UNIT_BITS
        counts = passed.copy()
        counts[1:] -= passed[:-1]
        return walked, counts

    def _lengths(self, counts: Integers, begins: Integers) -> Lengths:
        """Returns the rows of all copies of the first walk.

        Args:
          counts: int64 `(clips,)`, copies of each clip.
          begins: as of `DrawnCopies`.
        """
        rows_of_copy = self._clips.rows_of_copy
        lengths = np.empty(begins[-1], rows_of_copy.dtype)
        key = {"seed": self._seed, "epoch": self._number}
        copy = 0
        clips = np.flatnonzero(counts > 0)
        # Most clips have few copies: there are ever fewer of each.
        while len(clips):
            # All up to the last one that is wanted are made.
            num_made = clips.item(-1) + 1
            if num_made > _CHEAP_WORDS * len(clips):
                break
            rows = rows_of_copy
            if self._clips.may_be_longer:
                drawn = words(num_made, Stream.DRAW, part=_COPIES + copy, **key)
                rows = rows[:num_made] + (drawn > self._clips.longer_above[:num_made])
            lengths[begins[clips] + copy] = rows[clips]
            copy += 1
            clips = np.flatnonzero(counts > copy)
        if len(clips):
            more = counts[clips] - copy
            clips = np.repeat(clips, more)
            numbers = copy + _within(more)
            lengths[begins[clips] + numbers] = self._lengths_of(
                CopyNames(clips, np.zeros_like(clips), numbers)
            )
        return lengths

    def _later_walks(self, missing: int) -> tuple[CopyNames, Lengths]:
        """Returns the copies of later walks, which have so many rows together, and their rows, in
        the order of clips, walks, and numbers.
        """
        found = [_NO_COPIES]
        lengths = [self._clips.rows_of_copy[:0]]
        while missing:
            names, rows = self._later_walk(len(found), missing)
            found.append(names)
            lengths.append(rows)
            missing -= int(rows.sum())
        names = CopyNames(*map(np.concatenate, zip(*found, strict=True)))
        order = np.argsort(names.clips, kind="stable")
        return CopyNames(*(values[order] for values in names)), np.concatenate(lengths)[order]

    def _later_walk(self, draw: int, missing: int) -> tuple[CopyNames, Lengths]:
        """Returns the copies of a walk up to the one with which they have so many rows, in its
        order, and the rows of each.
        """
        num_members = len(self._clips.members)
        expected = int(missing / self._clips.total * num_members * (1 << UNIT_BITS))
        for count in sorted({min(_SAFE_FACTOR * (expected + 1), num_members), num_members}):
            walked, counts = self._walked(draw, count)
            clips = np.repeat(walked, counts)
            names = CopyNames(clips, np.full_like(clips, draw), _within(counts))
            lengths = self._lengths_of(names)
            ends = np.cumsum(lengths, dtype=np.int64)
            last = int(np.searchsorted(ends, missing))
            if last < len(ends):
                lengths[last] -= ends[last] - missing
                break
        return CopyNames(*(values[: last + 1] for values in names)), lengths[: last + 1]

    def _lengths_of(self, names: CopyNames) -> Lengths:
        """Returns the rows of some copies, `(n,)`."""
        lengths = self._clips.rows_of_copy[names.clips]
        if self._clips.may_be_longer:
            drawn = _words(names, seed=self._seed, round_number=self._number)
            lengths += drawn > self._clips.longer_above[names.clips]
        return lengths


def each_once(clips: WeightedClips) -> DrawnCopies:
    """Returns every clip of a weight above 0 once, which is every round where no weight is another
    one than 0 and 1.
    """
    return DrawnCopies(
        seed=0,
        round_number=0,
        begins=_begins((clips.weights > 0).astype(np.int64)),
        later=_NO_COPIES,
        places_of_later=_NO_COPIES.clips,
        lengths=clips.rows_of_copy[clips.members],
    )


def _words(names: CopyNames, *, seed: int, round_number: int) -> Words:
    return words_at(
        names.clips,
        Stream.DRAW,
        seed=seed,
        epoch=round_number,
        blocks=names.walks,
        parts=_COPIES + names.numbers,
    )


def _begins(counts: Integers) -> Integers:
    """Returns the running sum of `(n,)` counts from 0 on, int64 `(n + 1,)`."""
    begins = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=begins[1:])
    return begins


def _within(counts: Integers) -> Integers:
    """Returns 0, 1, ... up to each count, int64 `(sum of counts,)`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)
