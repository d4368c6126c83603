"""One round of weighted rows: which copies of clips it has, and how many rows each of them has.
docs/architecture/order.md, "Weights", defines it.

A round may have many times as many copies as there are clips, and all of them decide which row is
at a position. So of each copy no more is found and kept than its number of rows; the word that says
which rows these are is made again for the few copies that are asked for.

Rules:
* Whatever is done for all clips or copies takes them in the order of memory. Only the order of a
  walk does not: its clips are looked up once, and those at its end again, for the cut.
* Copies are drawn in steps: the first copies of all clips, then the second ones, and so on. The
  words of a step are those of one stream.
"""

from __future__ import annotations

from dataclasses import dataclass

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
_CHEAP_WORDS = 24
# A walk that fills a round up puts so many times as many clips in order as are expected to do; if
# these do not, all.
_SAFE_FACTOR = 4
# The cut looks at so many clips at the end of a walk; at ever more where these are too few.
_LAST_CLIPS = 256

# Rows of copies, int32 `(copies,)`: a round has less than 2**30.
Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class DrawnCopies:
    """The copies of a round, in the order of clips, walks, and copies of a clip in a walk.

    Attributes:
      seed, number: of the order, and of the round.
      ends: for each walk int64 `(clips,)`, copies of each clip in all walks up to this one.
      stops: int64 `(clips,)`, copies of each clip and of all clips before it.
      lengths: int32 `(copies,)`, rows of each, > 0.
    """

    seed: int
    number: int
    ends: tuple[Integers, ...]
    stops: Integers
    lengths: Lengths

    def words(self, copies: Integers, clips: Integers) -> Words:
        """Returns uint64 `(n,)`: the word that says where each of `copies` begins, int64 `(n,)`,
        the clips of which are `clips`, int64 `(n,)`.
        """
        nth = copies - self.stops[clips] + self.ends[-1][clips]
        in_walk = nth
        walks = np.zeros(len(copies), np.int64)
        for ends in self.ends[:-1]:
            beyond = nth - ends[clips]
            walks += beyond >= 0
            in_walk = np.where(beyond >= 0, beyond, in_walk)
        return words_at(
            clips,
            Stream.DRAW,
            seed=self.seed,
            epoch=self.number,
            blocks=walks,
            parts=_COPIES + in_walk,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """One walk through clips.

    Attributes:
      counts: int64 `(clips,)`, copies of each of all clips.
      stops, lengths: as of `DrawnCopies`.
      num_rows: the rows of all.
    """

    counts: Integers
    stops: Integers
    lengths: Lengths
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
        walk = self._walk(0, num_rows)
        ends = [walk.counts]
        stops = walk.stops
        lengths = walk.lengths
        missing = num_rows - walk.num_rows
        while missing:
            walk = self._walk(len(ends), missing)
            ends.append(ends[-1] + walk.counts)
            lengths = np.insert(lengths, np.repeat(stops, walk.counts), walk.lengths)
            stops = stops + walk.stops
            missing -= walk.num_rows
        return DrawnCopies(self._seed, self._number, tuple(ends), stops, lengths)

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
        stops = np.cumsum(counts)
        lengths = np.repeat(self._clips.rows_of_copy, counts)
        self._lengthen(lengths, counts, stops, draw)
        walk = _Walk(counts, stops, lengths, int(lengths.sum()))
        beyond = walk.num_rows - num_rows
        return walk if beyond <= 0 else _without_last(walk, walked, beyond)

    def _lengthen(self, lengths: Lengths, counts: Integers, stops: Integers, draw: int) -> None:
        """Adds the rows that chance adds to copies.

        Args:
          lengths: int32 `(copies,)`, the fewest rows that each can have.
          counts, stops: of a walk.
          draw: its number.
        """
        key = {"seed": self._seed, "epoch": self._number}
        longer_above = self._clips.longer_above
        clips = np.flatnonzero(self._clips.may_be_longer & (counts > 0))
        places = (stops - counts)[clips]
        more = counts[clips]
        copy = 0
        # Most clips have few copies: there are ever fewer of each.
        while len(clips):
            # All up to the last one that is wanted are made.
            num_made = clips.item(-1) + 1
            if num_made > _CHEAP_WORDS * len(clips):
                break
            made = words(num_made, Stream.DRAW, block=draw, part=_COPIES + copy, **key)
            lengths[places] += made[clips] > longer_above[clips]
            copy += 1
            left = np.flatnonzero(more > copy)
            clips = clips[left]
            places = places[left] + 1
            more = more[left]
        if len(clips):
            more -= copy
            ends = np.cumsum(more)
            within = np.arange(ends[-1]) - np.repeat(ends - more, more)
            places = np.repeat(places, more) + within
            clips = np.repeat(clips, more)
            parts = _COPIES + copy + within
            drawn = words_at(clips, Stream.DRAW, blocks=draw, parts=parts, **key)
            lengths[places] += drawn > longer_above[clips]


def _without_last(walk: _Walk, walked: Integers, beyond: int) -> _Walk:
    """Returns a walk without its last rows.

    Args:
      walk: all of it.
      walked: int64, its clips in its order.
      beyond: so many rows do not come, > 0.
    """
    count = _LAST_CLIPS
    while True:
        # The last copies of the walk, the last one first.
        last = walked[: -count - 1 : -1]
        more = walk.counts[last]
        ends = np.cumsum(more)
        places = np.repeat(walk.stops[last] - 1 + ends - more, more) - np.arange(ends[-1])
        without = np.cumsum(walk.lengths[places])
        if len(without) and without[-1] > beyond:
            break
        count *= 8
    num_removed = int(np.searchsorted(without, beyond, side="right"))
    walk.lengths[places[num_removed]] = without[num_removed] - beyond
    counts = walk.counts
    np.subtract.at(counts, np.repeat(last, more)[:num_removed], 1)
    lengths = np.delete(walk.lengths, places[:num_removed])
    return _Walk(counts, np.cumsum(counts), lengths, walk.num_rows - beyond)
